//! The serial port against a guest that prints, one that floods, and one that
//! does anything.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

use proptest::prelude::*;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{PioDevice, SERIAL_SIZE, SavedSerial, SerialPort};

const DATA: u64 = 0;
const IER: u64 = 1;
const IIR: u64 = 2;
const LCR: u64 = 3;
const MCR: u64 = 4;
const LSR: u64 = 5;

fn eventfd() -> EventFd {
    EventFd::new(EFD_NONBLOCK).unwrap()
}

fn port<W: Write>(sink: W) -> SerialPort<W> {
    SerialPort::new(eventfd(), sink, None)
}

/// Reads one register.
fn read<W: Write + Send>(port: &mut SerialPort<W>, offset: u64) -> u8 {
    let mut data = [0xa5];
    port.read(offset, &mut data);
    data[0]
}

/// Remembers each write.
#[derive(Default)]
struct Writes(Vec<Vec<u8>>);

impl Write for &mut Writes {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0.push(data.to_vec());
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A nonblocking pipe that takes nothing more.
fn full_pipe() -> (UnixStream, UnixStream) {
    let (reader, mut writer) = UnixStream::pair().unwrap();
    writer.set_nonblocking(true).unwrap();
    while writer.write(&[0; 4096]).is_ok() {}
    (reader, writer)
}

#[test]
fn lines_are_written_as_lines() {
    let mut writes = Writes::default();
    let mut port = port(&mut writes);
    for byte in b"one\ntwo\n" {
        // As the kernel's console does.
        assert_eq!(read(&mut port, LSR) & 0x60, 0x60, "can send");
        port.write(DATA, &[*byte]);
    }
    assert_eq!(port.metrics().written(), 8);
    drop(port);
    assert_eq!(writes.0, [b"one\n", b"two\n"]);
}

#[test]
fn a_prompt_is_written_when_the_burst_ends() {
    for (end, offset) in [("IIR", IIR), ("IER", IER), ("MCR", MCR)] {
        let mut writes = Writes::default();
        let mut port = port(&mut writes);
        for byte in b"$ " {
            port.write(DATA, &[*byte]);
        }
        assert_eq!(port.metrics().written(), 0);
        if end == "IIR" {
            read(&mut port, offset);
        } else {
            port.write(offset, &[0]);
        }
        assert_eq!(port.metrics().written(), 2, "after {end}");
    }
}

#[test]
fn a_long_line_does_not_grow_the_buffer() {
    let mut writes = Writes::default();
    let mut port = port(&mut writes);
    port.write(DATA, &[b'x'; 1000]);
    port.flush();
    port.flush();
    drop(port);
    let lens: Vec<_> = writes.0.iter().map(Vec::len).collect();
    assert_eq!(lens, [256, 256, 256, 232]);
}

#[test]
fn a_full_sink_loses_output_and_nothing_else() {
    let (mut reader, writer) = full_pipe();
    let mut port = port(writer);
    for _ in 0..1000 {
        port.write(DATA, b"a line that nobody reads\n");
    }
    let metrics = port.metrics();
    assert_eq!((metrics.written(), metrics.dropped()), (0, 25_000));

    // The reader comes back, and reads all there is.
    reader.set_nonblocking(true).unwrap();
    while reader.read(&mut [0; 65536]).is_ok_and(|len| len > 0) {}
    port.write(DATA, b"here\n");
    assert_eq!((metrics.written(), metrics.dropped()), (5, 25_000));
}

#[test]
fn a_sink_that_is_gone_loses_output_and_nothing_else() {
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    let mut port = port(writer);
    port.write(DATA, b"anybody?\n");
    assert_eq!(port.metrics().dropped(), 9);
}

#[test]
fn a_sink_that_takes_little_gets_all() {
    struct Little(Vec<u8>, bool);
    impl Write for &mut Little {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            if self.1 {
                self.1 = false;
                return Err(io::ErrorKind::Interrupted.into());
            }
            self.1 = true;
            self.0.push(data[0]);
            Ok(1)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut little = Little(Vec::new(), true);
    let mut port = port(&mut little);
    port.write(DATA, b"piece by piece\n");
    drop(port);
    assert_eq!(little.0, b"piece by piece\n");
}

/// CVE-2020-27173: input waits outside while the FIFO is full.
#[test]
fn input_is_bounded_by_the_fifo() {
    let room = eventfd();
    let mut port = SerialPort::new(eventfd(), io::sink(), Some(room.try_clone().unwrap()));
    assert_eq!(port.enqueue(&[]), 0);
    assert_eq!(port.enqueue(&[b'i'; 1000]), 64);
    assert_eq!(port.enqueue(&[b'i'; 1000]), 0);
    for left in (0..64).rev() {
        assert_eq!(read(&mut port, LSR) & 1, 1);
        assert_eq!(read(&mut port, DATA), b'i');
        assert_eq!(room.read().is_ok(), left == 0, "{left} left");
    }
    assert_eq!(read(&mut port, LSR) & 1, 0);
    assert_eq!(port.enqueue(b"more"), 4);
}

#[test]
fn no_input_in_loopback_mode() {
    let mut port = port(io::sink());
    port.write(MCR, &[0x10]);
    assert_eq!(port.enqueue(b"input"), 0);
    port.write(MCR, &[0]);
    assert_eq!(port.enqueue(b"input"), 5);
}

#[test]
fn interrupts_for_input_and_room() {
    let irq = eventfd();
    let mut port = SerialPort::new(irq.try_clone().unwrap(), io::sink(), None);
    port.enqueue(b"a");
    assert!(irq.read().is_err(), "not enabled");
    port.write(IER, &[1]);
    assert_eq!(irq.read().unwrap(), 1);
    assert_eq!(read(&mut port, IIR) & 0xf, 4, "data");
    port.write(IER, &[2]);
    assert_eq!(irq.read().unwrap(), 1);
    assert_eq!(read(&mut port, IIR) & 0xf, 2, "room");
}

#[test]
fn other_widths() {
    let mut port = port(io::sink());
    port.write(7, &[0x5a]);
    // Wider than a register: ignored.
    port.write(7, &[1, 2]);
    port.write(7, &[]);
    assert_eq!(read(&mut port, 7), 0x5a);
    let mut data = [0xff; 4];
    port.read(7, &mut data);
    assert_eq!(data, [0x5a, 0, 0, 0]);
    port.read(7, &mut []);
    for offset in [SERIAL_SIZE, 256, 263, u64::MAX] {
        port.write(offset, &[1]);
        assert_eq!(read(&mut port, offset), 0);
    }
}

#[test]
fn a_port_moves_with_unread_input() {
    let mut writes = Writes::default();
    let mut port = port(&mut writes);
    port.write(LCR, &[0x1b]);
    port.write(IER, &[1]);
    port.enqueue(b"input");
    port.write(DATA, b"half a line");
    let saved = port.save();
    assert_eq!(port.metrics().written(), 11);

    let frame = flashpan_protocol::frame::encode(&saved, 1 << 16).unwrap();
    let saved: SavedSerial = flashpan_protocol::frame::from_bytes(&frame[4..]).unwrap();
    let irq = eventfd();
    let mut other = SerialPort::new(irq.try_clone().unwrap(), io::sink(), None);
    other.restore(&saved).unwrap();
    assert_eq!(irq.read().unwrap(), 1, "the guest is told about its input");
    assert_eq!(other.save(), saved);
    assert_eq!(read(&mut other, LCR), 0x1b);
    let input: Vec<u8> = (0..5).map(|_| read(&mut other, DATA)).collect();
    assert_eq!(input, b"input");
}

#[test]
fn a_state_with_too_much_input_is_refused() {
    let mut saved = port(io::sink()).save();
    saved.in_buffer = vec![0; 65];
    let mut port = port(io::sink());
    let before = port.save();
    let error = port.restore(&saved).unwrap_err();
    assert!(error.to_string().contains("serial"), "{error}");
    assert_eq!(port.save(), before);
}

proptest! {
    /// Anything: no panic, and what was sent is either written or dropped.
    #[test]
    fn random_accesses(
        accesses in prop::collection::vec(
            (0u64..10, prop::collection::vec(any::<u8>(), 0..12), any::<bool>()),
            0..100,
        ),
    ) {
        let mut port = port(io::sink());
        for (offset, mut data, is_read) in accesses {
            if is_read {
                port.read(offset, &mut data);
            } else {
                port.write(offset, &data);
            }
            port.enqueue(&data);
            let saved = port.save();
            port.restore(&saved).unwrap();
            prop_assert_eq!(port.save(), saved);
        }
        prop_assert_eq!(port.metrics().dropped(), 0);
    }
}
