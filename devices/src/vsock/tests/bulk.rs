//! A lot of data, whole and in order.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use super::driver::{Guest, Task, pattern};
use super::socket::Socket;

const LEN: usize = 16 << 20;

/// A generator of sizes; the same in every run.
struct Sizes(u32);

impl Sizes {
    fn next(&mut self, most: usize) -> usize {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        1 + (self.0 >> 8) as usize % most
    }
}

/// A host that reads in pieces of any size, sometimes much later.
fn reader(guest: &Guest, mut host: UnixStream, pieces: usize) -> Task<Vec<u8>> {
    guest.spawn(move || {
        let mut sizes = Sizes(1);
        let mut all = Vec::with_capacity(LEN);
        let mut buffer = vec![0; pieces];
        while all.len() < LEN {
            if sizes.next(16) == 1 {
                std::thread::yield_now();
            }
            let size = sizes.next(pieces);
            let count = host.read(&mut buffer[..size]).unwrap();
            assert!(count > 0, "ended after {} bytes", all.len());
            all.extend_from_slice(&buffer[..count]);
        }
        all
    })
}

fn writer(guest: &Guest, mut host: UnixStream, pieces: usize) -> Task<()> {
    guest.spawn(move || {
        let mut sizes = Sizes(2);
        let data = pattern(LEN);
        let mut done = 0;
        while done < LEN {
            let size = sizes.next(pieces).min(LEN - done);
            host.write_all(&data[done..done + size]).unwrap();
            done += size;
        }
    })
}

/// Both directions at once through one connection.
fn both_ways(rx_buffer: u32, guest_buffer: u32, pieces: usize) {
    let mut guest = Guest::new();
    if rx_buffer != super::driver::LINUX_RX_BUFFER {
        guest = Guest::bare(super::super::Deadlines::default());
        guest.activate(super::driver::FEATURES);
        guest.post_all(rx_buffer);
    }
    let (mut socket, host) = guest.connect_out(80, guest_buffer);
    let _open = host.try_clone().unwrap();
    let reader = reader(&guest, host.try_clone().unwrap(), pieces);
    let writer = writer(&guest, host, pieces);
    let data = pattern(LEN);
    let mut sizes = Sizes(3);
    let (mut sent, mut received) = (0, Vec::with_capacity(LEN));
    guest.run_until(|guest| {
        // As much as goes: then there is an event to wait for.
        loop {
            let size = sizes.next(pieces.min(64 * 1024)).min(LEN - sent);
            let out = socket.send(guest, &data[sent..sent + size]);
            sent += out;
            guest.settle();
            socket.take_in(guest);
            let got = socket.read(guest, sizes.next(2 * pieces));
            socket.take_in(guest);
            received.extend_from_slice(&got);
            if socket.credit().min((LEN - sent) as u32) == 0 && got.is_empty() {
                break;
            }
        }
        assert!(!socket.reset && socket.shut == 0);
        sent == LEN && received.len() == LEN
    });
    guest.finish(writer);
    assert!(guest.finish(reader) == data);
    assert!(received == data);
}

#[test]
fn sixteen_mib_each_way_as_linux_does_it() {
    both_ways(super::driver::LINUX_RX_BUFFER, 256 * 1024, 100_000);
}

#[test]
fn sixteen_mib_each_way_with_large_buffers() {
    both_ways(65_580, 1 << 20, 300_000);
}

#[test]
fn sixteen_mib_each_way_in_small_pieces() {
    both_ways(super::driver::LINUX_RX_BUFFER, 64 * 1024, 5_000);
}

#[test]
fn interrupts_and_system_calls_are_few() {
    let mut guest = Guest::new();
    let (mut socket, mut host) = guest.connect_in(1);
    let data = pattern(128 * 1024);
    let before = *guest.device.metrics();
    for _ in 0..64 {
        host.write_all(&data).unwrap();
        guest.rings[super::driver::RX].enable_interrupt(&guest.memory);
        guest.settle();
        socket.take_in(&mut guest);
        assert_eq!(socket.read(&mut guest, data.len()).len(), data.len());
    }
    let after = *guest.device.metrics();
    assert_eq!(after.rx_bytes - before.rx_bytes, 8 << 20);
    // 8 MiB in 3.7 KiB buffers are some 2,300 packets.
    assert!(after.rx_packets - before.rx_packets > 2_000);
    assert!(after.interrupts - before.interrupts <= 3 * 64);
    assert!(after.wakeups - before.wakeups <= 6 * 64);
}

#[test]
fn packets_wait_for_one_interrupt_together() {
    let mut guest = Guest::new();
    let (mut socket, _host) = guest.connect_in(1);
    guest.rings[super::driver::TX].enable_interrupt(&guest.memory);
    let before = guest.device.metrics().interrupts;
    for _ in 0..32 {
        Socket::send(&mut socket, &mut guest, b"small");
    }
    guest.settle();
    assert_eq!(guest.device.metrics().interrupts - before, 1);
}
