//! The first serial port of a PC: a 16550A whose output goes to a pipe or file.

use std::fmt;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use vm_superio::serial::SerialEvents;
use vm_superio::{Serial, SerialState, Trigger};
use vmm_sys_util::eventfd::EventFd;

use super::PioDevice;
use crate::state::RestoreError;

/// First port of COM1.
pub const SERIAL_BASE: u64 = 0x3f8;

/// Number of ports.
pub const SERIAL_SIZE: u64 = 8;

/// Interrupt line of COM1.
pub const SERIAL_IRQ: u32 = 4;

/// Output that is collected before it is written: a line of a console, most of
/// the time.
const OUTPUT_BUFFER: usize = 256;

// Register offsets.
const DATA: u64 = 0;
const LINE_STATUS: u64 = 5;

/// What the port has done, shared with whoever wants to read it.
#[derive(Debug, Default)]
pub struct SerialMetrics {
    written: AtomicU64,
    dropped: AtomicU64,
}

impl SerialMetrics {
    /// Bytes that the sink took.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Bytes that were lost because the sink was full or gone.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// A serial port in front of `W`, a nonblocking file or pipe.
///
/// A guest that writes faster than the sink takes loses output, which is
/// counted ([`SerialMetrics::dropped`]): neither is its processor blocked nor
/// does the backlog grow. Output is written when a line or a buffer is
/// complete and whenever the driver does something else than sending, which
/// ends every burst of it. What is left at the end goes with [`Self::flush`].
pub struct SerialPort<W> {
    uart: Serial<Line, Events, Vec<u8>>,
    sink: W,
    metrics: Arc<SerialMetrics>,
}

#[derive(Clone)]
struct Line(Arc<EventFd>);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

#[derive(Clone)]
struct Events {
    room: Option<Arc<EventFd>>,
}

impl SerialEvents for Events {
    fn buffer_read(&self) {}

    fn out_byte(&self) {}

    fn tx_lost_byte(&self) {}

    fn in_buffer_empty(&self) {
        if let Some(room) = &self.room {
            // Fails only if the counter is full: known already.
            let _ = room.write(1);
        }
    }
}

impl<W> fmt::Debug for SerialPort<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SerialPort")
            .field("state", &self.uart.state())
            .field("metrics", &self.metrics)
            .finish_non_exhaustive()
    }
}

impl<W: Write> SerialPort<W> {
    /// A port that pulses `irq` and writes to `sink`. `room`, if any, is
    /// written when the guest has taken all input; both descriptors must be
    /// nonblocking.
    #[must_use]
    pub fn new(irq: EventFd, sink: W, room: Option<EventFd>) -> Self {
        let events = Events {
            room: room.map(Arc::new),
        };
        Self {
            uart: Serial::with_events(Line(Arc::new(irq)), events, Vec::new()),
            sink,
            metrics: Arc::default(),
        }
    }

    /// The port's counters.
    #[must_use]
    pub fn metrics(&self) -> Arc<SerialMetrics> {
        Arc::clone(&self.metrics)
    }

    /// Gives the guest input, as much as its FIFO has room for: returns the
    /// number of bytes taken, which may be none. The rest has to wait for
    /// `room`, or for the guest to leave loopback mode.
    pub fn enqueue(&mut self, input: &[u8]) -> usize {
        let room = input.len().min(self.uart.fifo_capacity());
        let fitting = input.get(..room).unwrap_or_default();
        if fitting.is_empty() {
            return 0;
        }
        // An interrupt that could not be raised leaves the bytes in the FIFO.
        self.uart.enqueue_raw_bytes(fitting).unwrap_or(room)
    }

    /// Writes out what is left of the output.
    pub fn flush(&mut self) {
        let output = std::mem::take(self.uart.writer_mut());
        let mut rest = output.as_slice();
        while !rest.is_empty() {
            match self.sink.write(rest) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(taken) if taken > 0 => {
                    add(&self.metrics.written, taken);
                    rest = rest.get(taken..).unwrap_or_default();
                }
                // Full, closed or broken: the guest cannot wait.
                _ => {
                    add(&self.metrics.dropped, rest.len());
                    break;
                }
            }
        }
        let mut empty = output;
        empty.clear();
        *self.uart.writer_mut() = empty;
    }

    /// The port's state; pending output is written out first.
    pub fn save(&mut self) -> SavedSerial {
        self.flush();
        self.uart.state().into()
    }

    /// Takes over a saved state and raises the interrupts that it has pending.
    ///
    /// # Errors
    /// If the state has more input than the FIFO holds, or an interrupt cannot
    /// be raised.
    pub fn restore(&mut self, state: &SavedSerial) -> Result<(), RestoreError> {
        self.flush();
        let line = self.uart.interrupt_evt().clone();
        let events = self.uart.events().clone();
        let state = SerialState::from(state.clone());
        self.uart = Serial::from_state(&state, line, events, Vec::new()).map_err(|error| {
            RestoreError::Invalid {
                device: "serial",
                why: error.to_string(),
            }
        })?;
        Ok(())
    }

    fn put(&mut self, offset: u64, value: u8) {
        let Ok(offset) = u8::try_from(offset) else {
            return;
        };
        // The buffer always takes the byte; an interrupt that cannot be raised
        // is raised by the next byte.
        let _ = self.uart.write(offset, value);
        let output = self.uart.writer();
        if output.len() >= OUTPUT_BUFFER || output.last() == Some(&b'\n') {
            self.flush();
        }
    }
}

impl<W: Write + Send> PioDevice for SerialPort<W> {
    /// Registers are one byte wide: what a wider read asks for beyond that is
    /// zero.
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if offset != LINE_STATUS {
            self.flush();
        }
        if let (Ok(offset), Some(first)) = (u8::try_from(offset), data.first_mut()) {
            *first = self.uart.read(offset);
        }
    }

    /// A longer write of the data register is a string of bytes (`rep outsb`);
    /// one of another register is ignored.
    fn write(&mut self, offset: u64, data: &[u8]) {
        if offset == DATA {
            for &byte in data {
                self.put(offset, byte);
            }
            return;
        }
        self.flush();
        if let [value] = data {
            self.put(offset, *value);
        }
    }
}

fn add(counter: &AtomicU64, bytes: usize) {
    counter.fetch_add(u64::try_from(bytes).unwrap_or(u64::MAX), Ordering::Relaxed);
}

/// The registers of a serial port and its unread input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedSerial {
    baud_divisor_low: u8,
    baud_divisor_high: u8,
    interrupt_enable: u8,
    interrupt_identification: u8,
    line_control: u8,
    line_status: u8,
    modem_control: u8,
    modem_status: u8,
    scratch: u8,
    pub(super) in_buffer: Vec<u8>,
}

impl From<SerialState> for SavedSerial {
    fn from(state: SerialState) -> Self {
        Self {
            baud_divisor_low: state.baud_divisor_low,
            baud_divisor_high: state.baud_divisor_high,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            in_buffer: state.in_buffer,
        }
    }
}

impl From<SavedSerial> for SerialState {
    fn from(state: SavedSerial) -> Self {
        Self {
            baud_divisor_low: state.baud_divisor_low,
            baud_divisor_high: state.baud_divisor_high,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            in_buffer: state.in_buffer,
        }
    }
}
