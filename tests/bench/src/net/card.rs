//! Our device between a TAP device and a supervisor: who plays the guest's driver moves
//! frames between the TAP device and the rings, with the header that both have alike.
#![allow(unsafe_code)] // writev(2) from guest memory.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use anyhow::{Context, Result, anyhow};
use flashpan_devices::net::{Metrics, Net, NetEvent, RingMetrics};
use flashpan_devices::ring::{Kicked, Progress};
use flashpan_devices::testing::{Driver, Machine, Segment};
use flashpan_devices::virtio::GuestRam;
use flashpan_network::{Answer, Gateway};
use flashpan_protocol::network::Link;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::supervisor;

/// All that a driver may take.
const FEATURES: u64 = u64::MAX;

/// Memory of the guest.
const MEMORY: usize = 32 << 20;

/// The longest frame with its header.
const LONG: usize = 12 + 14 + 65_535;
/// Buffers of that length for frames to the device.
const LONGS: usize = 128;

/// Buffers of one page for frames from the device, as Linux has them with mergeable
/// buffers.
const PAGE: u32 = 4096;
const PAGES: usize = 256;

/// Frames that are taken from the TAP device before the device has its turn: a driver kicks
/// as soon as the device wants it.
const BATCH: usize = 64;

/// Descriptors of a queue.
const HEADS: usize = 256;

const RX: usize = 0;
const TX: usize = 1;

/// The device at work, until it is dropped.
pub(super) struct Card {
    stop: EventFd,
    thread: Option<thread::JoinHandle<Result<Counters>>>,
}

/// What the device has counted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Counters {
    pub(super) stack: Metrics,
    pub(super) rings: RingMetrics,
}

impl Card {
    /// Lets frames of `tap` be those of a guest on this link, whose flows `gateway` serves.
    pub(super) fn new(tap: File, link: Link, gateway: Arc<Gateway>) -> Result<Self> {
        let stop = EventFd::new(EFD_NONBLOCK)?;
        let stopped = stop.try_clone()?;
        let thread = thread::Builder::new()
            .name("device".to_owned())
            .spawn(move || run(&tap, link, &gateway, &stopped))?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }

    /// Ends it; what it has counted.
    pub(super) fn end(mut self) -> Result<Counters> {
        self.stop.write(1)?;
        let thread = self.thread.take().context("it was ended before")?;
        thread.join().map_err(|_| anyhow!("the device panicked"))?
    }
}

impl Drop for Card {
    fn drop(&mut self) {
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Both ends of what device and supervisor tell each other.
struct Told {
    answers: Receiver<(u64, Answer)>,
    wake: EventFd,
}

fn run(tap: &File, link: Link, gateway: &Arc<Gateway>, stop: &EventFd) -> Result<Counters> {
    let wake = EventFd::new(EFD_NONBLOCK)?;
    let (send, answers) = channel();
    let (supervisor, asked) = supervisor::start(Arc::clone(gateway), send, wake.try_clone()?)?;
    let net = Net::new(
        link,
        Box::new(move |event: NetEvent| {
            // Fails only when the supervisor has ended, with the benchmark.
            let _ = asked.send(event);
        }),
    )?;
    let memory = GuestRam::from_ranges(&[(GuestAddress(0), MEMORY)])
        .map_err(|error| anyhow!("memory for the guest: {error}"))?;
    let mut guest = Guest::new(net, memory);
    let served = guest.serve(tap, &Told { answers, wake }, stop);
    let device = guest.driver.machine.device();
    let counters = Counters {
        stack: *device.metrics(),
        rings: *device.ring_metrics(),
    };
    drop(device);
    drop(guest);
    // Without a device it has nothing to do any more.
    let _ = supervisor.join();
    served.map(|()| counters)
}

/// A driver, and where its buffers are.
struct Guest {
    driver: Driver<Net>,
    memory: GuestRam,
    /// Buffers for frames to the device that nobody uses.
    free: Vec<u64>,
    /// Those that the device has, by the heads of their chains.
    sent: Vec<u64>,
    lent: Vec<u64>,
    /// Pieces of the frame that is being taken from the device.
    pieces: Vec<(u64, usize)>,
}

impl Guest {
    fn new(net: Net, memory: GuestRam) -> Self {
        let machine = Machine::with_memory(net, memory.clone());
        let mut driver = Driver::start(machine, FEATURES);
        let free = (0..LONGS).map(|_| driver.alloc(LONG)).collect();
        let mut guest = Self {
            driver,
            memory,
            free,
            sent: vec![0; HEADS],
            lent: vec![0; HEADS],
            pieces: Vec::new(),
        };
        for _ in 0..PAGES {
            let page = guest.driver.alloc(usize::try_from(PAGE).unwrap_or(0));
            guest.lend(page);
        }
        guest
    }

    fn lend(&mut self, page: u64) {
        if let Some(ring) = self.driver.rings.get_mut(RX) {
            let head = ring.send(&[Segment::writable(page, PAGE)]);
            put(&mut self.lent, head, page);
        }
    }

    /// Moves frames until it is to stop.
    fn serve(&mut self, tap: &File, told: &Told, stop: &EventFd) -> Result<()> {
        let timer = self.driver.machine.device().timer();
        let timer = timer.context("the device has no timer")?;
        loop {
            let [from_tap, from_timer, from_supervisor, stopped] = ready([
                tap.as_raw_fd(),
                timer,
                told.wake.as_raw_fd(),
                stop.as_raw_fd(),
            ])?;
            if stopped {
                return Ok(());
            }
            if from_supervisor {
                let _ = told.wake.read();
                let mut device = self.driver.machine.device();
                for (id, answer) in told.answers.try_iter() {
                    match answer {
                        Answer::Accept => device.accept(id),
                        Answer::Refuse(why) => device.refuse(id, why),
                        Answer::Close => device.close(id),
                    }
                }
            }
            let mut run = false;
            if from_timer {
                self.driver.machine.device().expired();
                run = true;
            }
            if from_tap {
                run |= self.take(tap)?;
            }
            while run {
                let progress = self.driver.machine.device().serve(TX);
                if let Progress::Broken(error) = progress {
                    return Err(error).context("the device gave up its ring");
                }
                run = progress == Progress::Yielded;
                run |= self.give(tap)?;
            }
        }
    }

    /// Frames of the guest, from the TAP device into the ring. True if that is a kick.
    fn take(&mut self, tap: &File) -> Result<bool> {
        let mut tap = tap;
        for _ in 0..BATCH {
            let Some(buffer) = self.free.pop() else {
                break;
            };
            let read = self
                .memory
                .read_volatile_from(GuestAddress(buffer), &mut tap, LONG);
            let len = match read {
                Ok(len) => u32::try_from(len)?,
                Err(error) => {
                    self.free.push(buffer);
                    match error {
                        vm_memory::GuestMemoryError::IOError(error)
                            if error.kind() == io::ErrorKind::WouldBlock =>
                        {
                            break;
                        }
                        error => return Err(anyhow!("read from the TAP device: {error}")),
                    }
                }
            };
            if let Some(ring) = self.driver.rings.get_mut(TX) {
                let head = ring.send(&[Segment::readable(buffer, len)]);
                put(&mut self.sent, head, buffer);
            }
        }
        let ring = self.driver.rings.get_mut(TX).context("no ring")?;
        Ok(ring.wants_kick())
    }

    /// Frames for the guest, from the ring to the TAP device; buffers come back. True if the
    /// device has to be kicked for them.
    fn give(&mut self, tap: &File) -> Result<bool> {
        let [rx, tx] = self.driver.rings.as_mut_slice() else {
            return Err(anyhow!("a device of two queues has others"));
        };
        while let Some((head, _)) = tx.collect() {
            self.free.extend(self.sent.get(usize::from(head)));
        }
        let mut waiting = 0_u16;
        let mut pages = Vec::new();
        while let Some((head, len)) = rx.collect() {
            let page = self.lent.get(usize::from(head)).copied();
            let page = page.context("a buffer that was not lent")?;
            pages.push(page);
            if waiting == 0 {
                // num_buffers, the last field of the header.
                let count: u16 = self.memory.read_obj(GuestAddress(page + 10))?;
                waiting = u16::from_le(count);
            }
            self.pieces.push((page, usize::try_from(len)?));
            waiting = waiting.saturating_sub(1);
            if waiting == 0 {
                write(tap, &self.memory, &self.pieces)?;
                self.pieces.clear();
            }
        }
        for page in pages {
            self.lend(page);
        }
        let ring = self.driver.rings.get_mut(RX).context("no ring")?;
        Ok(ring.wants_kick())
    }
}

/// Notes the buffer of a chain.
fn put(buffers: &mut [u64], head: u16, buffer: u64) {
    if let Some(place) = buffers.get_mut(usize::from(head)) {
        *place = buffer;
    }
}

/// Waits until one of these can be read; which.
fn ready<const N: usize>(fds: [RawFd; N]) -> Result<[bool; N]> {
    // SAFETY: all are open as long as who calls this waits.
    let borrowed = fds.map(|fd| unsafe { BorrowedFd::borrow_raw(fd) });
    let mut fds = borrowed
        .each_ref()
        .map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN));
    while let Err(error) = poll(&mut fds, PollTimeout::NONE) {
        if error != Errno::EINTR {
            return Err(error).context("wait for frames");
        }
    }
    Ok(fds.map(|fd| fd.any().unwrap_or(false)))
}

/// Writes a frame in pieces.
fn write(tap: &File, memory: &GuestRam, pieces: &[(u64, usize)]) -> Result<()> {
    let slices: Vec<_> = (pieces.iter())
        .map(|&(at, len)| memory.get_slice(GuestAddress(at), len))
        .collect::<Result<_, _>>()
        .map_err(|error| anyhow!("a buffer of the guest: {error}"))?;
    let guards: Vec<_> = slices
        .iter()
        .map(vm_memory::VolatileSlice::ptr_guard)
        .collect();
    let vector: Vec<_> = guards
        .iter()
        .map(|guard| libc::iovec {
            iov_base: guard.as_ptr().cast_mut().cast(),
            iov_len: guard.len(),
        })
        .collect();
    let count = libc::c_int::try_from(vector.len())?;
    // SAFETY: each element is a range of mapped memory, which is only read.
    let written = unsafe { libc::writev(tap.as_raw_fd(), vector.as_ptr(), count) };
    if written < 0 {
        // A guest that has no room drops the frame, as a card does.
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::WouldBlock {
            return Err(error).context("write to the TAP device");
        }
    }
    Ok(())
}
