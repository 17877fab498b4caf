//! The device as the transport and the host see it.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use flashpan_protocol::control::IoRate;
use flashpan_protocol::network::{Link, Refusal};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueState, QueueT};

use super::header::HEADER_LEN;
use super::rings::{Placed, Rings};
use super::{DEVICE_TYPE, Metrics, NetError, NetEvent, Offload, QUEUE_SIZES, Stack};
use crate::rate_limit::RateLimiter;
use crate::ring::{Chain, Kicked, Progress, Ring, RingError};
use crate::state::{DeviceState, RestoreError};
use crate::virtio::{ActivateError, Activation, GuestRam, Interrupt, VirtioDevice, read_bytes};

/// Feature bits (virtio 1.2 §5.1.3).
mod feature {
    /// The driver may leave a checksum to the device.
    pub(super) const CSUM: u64 = 1 << 0;
    /// The device may leave a checksum to the driver.
    pub(super) const GUEST_CSUM: u64 = 1 << 1;
    /// The configuration has an MTU.
    pub(super) const MTU: u64 = 1 << 3;
    /// The configuration has a link address.
    pub(super) const MAC: u64 = 1 << 5;
    /// The driver takes long segments over IPv4.
    pub(super) const GUEST_TSO4: u64 = 1 << 7;
    /// The driver takes long segments over IPv6.
    pub(super) const GUEST_TSO6: u64 = 1 << 8;
    /// The driver may send long segments over IPv4.
    pub(super) const HOST_TSO4: u64 = 1 << 11;
    /// The driver may send long segments over IPv6.
    pub(super) const HOST_TSO6: u64 = 1 << 12;
    /// A frame to the driver may be spread over several buffers.
    pub(super) const MRG_RXBUF: u64 = 1 << 15;
    /// The configuration has a status.
    pub(super) const STATUS: u64 = 1 << 16;
}

/// The link is up (virtio 1.2 §5.1.4).
const LINK_UP: u16 = 1;

/// The longest frame that a driver may send: an Ethernet header and a packet.
const MAX_FRAME: usize = 14 + 65_535;

/// Frames taken from the guest, and given to it, before other devices have their turn.
const FRAMES_PER_RUN: u32 = 256;
/// The same in bytes.
const BYTES_PER_RUN: usize = 2 << 20;

/// A virtio-net device, see the [module](super).
///
/// The host's calls only take note; what follows from them, and all [`NetEvent`]s, come
/// when the event loop runs the device ([`crate::ring::KickSubscriber`]).
pub struct Net {
    config: [u8; 12],
    stack: Stack,
    active: Option<Active>,
    /// Why the event loop cannot run the device.
    unreachable: Option<io::Error>,
    /// The frame of the guest that is being looked at.
    frame: Vec<u8>,
    rings: RingMetrics,
    limits: Limits,
    host: Box<dyn FnMut(NetEvent) + Send>,
}

/// What passes in each direction at most.
#[derive(Debug, Default)]
struct Limits {
    from_guest: Option<RateLimiter>,
    to_guest: Option<RateLimiter>,
    /// When a direction may go on that is held.
    until: Option<Instant>,
}

impl Limits {
    /// Whether a direction has to wait.
    fn hold(limiter: &mut Option<RateLimiter>, until: &mut Option<Instant>) -> bool {
        let Some(limiter) = limiter else {
            return false;
        };
        let now = Instant::now();
        let Some(wait) = limiter.wait(now) else {
            return false;
        };
        let at = now.checked_add(wait).unwrap_or(now);
        *until = Some(until.map_or(at, |other| other.min(at)));
        true
    }

    fn spend(limiter: &mut Option<RateLimiter>, bytes: usize) {
        if let Some(limiter) = limiter {
            limiter.spend(u64::try_from(bytes).unwrap_or(u64::MAX), Instant::now());
        }
    }
}

/// Counters of what happens between the rings and the stack. All only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RingMetrics {
    /// Interrupts raised for used buffers.
    pub interrupts: u64,
    /// Frames of the guest that are longer than any frame.
    pub oversized: u64,
    /// Frames dropped because they fit into no buffer of the driver.
    pub unplaceable: u64,
    /// Rings given up because the driver broke the rules.
    pub broken_rings: u64,
}

struct Active {
    memory: GuestRam,
    rings: Rings,
    interrupt: Interrupt,
}

impl std::fmt::Debug for Net {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        (f.debug_struct("Net"))
            .field("stack", &self.stack)
            .field("active", &self.active.is_some())
            .field("rings", &self.rings)
            .finish_non_exhaustive()
    }
}

impl Net {
    /// A device at the guest's end of this link.
    ///
    /// `host` is called from the event loop, while the device is locked: it must not
    /// call the device.
    ///
    /// # Errors
    /// If the MTU is out of range, or the host refuses a descriptor.
    pub fn new(link: Link, host: Box<dyn FnMut(NetEvent) + Send>) -> Result<Self, NetError> {
        let stack = Stack::new(link, Offload::default())?;
        let [m0, m1, m2, m3, m4, m5] = link.guest_mac;
        let [s0, s1] = LINK_UP.to_le_bytes();
        let [p0, p1] = 1_u16.to_le_bytes();
        let [u0, u1] = link.mtu.to_le_bytes();
        Ok(Self {
            config: [m0, m1, m2, m3, m4, m5, s0, s1, p0, p1, u0, u1],
            stack,
            active: None,
            unreachable: None,
            frame: Vec::new(),
            rings: RingMetrics::default(),
            limits: Limits::default(),
            host,
        })
    }

    /// Lets no more pass in each direction than `rate` says: bytes of frames, and
    /// frames. What is too much waits, in the guest or in its connections.
    #[must_use]
    pub fn limited(mut self, rate: IoRate) -> Self {
        let now = Instant::now();
        self.limits.from_guest = RateLimiter::new(rate, now);
        self.limits.to_guest = RateLimiter::new(rate, now);
        self
    }

    /// Lets a flow be that was asked for. Nothing happens if it is gone.
    pub fn accept(&mut self, id: u64) {
        self.stack.accept(id);
    }

    /// Refuses a flow that was asked for. Nothing happens if it is gone.
    pub fn refuse(&mut self, id: u64, why: Refusal) {
        self.stack.refuse(id, why);
    }

    /// Connects `stream` to a TCP port of the guest; see [`Stack::open`].
    pub fn open(&mut self, request: u64, port: u16, stream: UnixStream) {
        self.stack.open(request, port, stream);
    }

    /// Ends a flow that was accepted or opened: a connection with a reset.
    pub fn close(&mut self, id: u64) {
        self.stack.close(id);
    }

    /// Lets there be at most so many flows at once, for a process that may not have
    /// more descriptors; [`super::MAX_FLOWS`] otherwise, and at most.
    pub fn limit_flows(&mut self, most: usize) {
        self.stack.limit_flows(most);
    }

    /// Puts off what waits for the guest: it has stood still for so long.
    pub fn postpone(&mut self, by: Duration) {
        self.stack.postpone(by);
    }

    /// Counters of the stack.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        self.stack.metrics()
    }

    /// Counters of the rings.
    #[must_use]
    pub fn ring_metrics(&self) -> &RingMetrics {
        &self.rings
    }

    /// Moves frames between rings and stack.
    fn run(&mut self) -> Progress {
        let Self {
            stack,
            active,
            frame,
            rings,
            limits,
            ..
        } = self;
        limits.until = None;
        let moved = match active {
            Some(active) if !active.interrupt.is_reset_needed() => {
                active.run(stack, frame, rings, limits).inspect_err(|_| {
                    rings.broken_rings += 1;
                    active.interrupt.needs_reset();
                    stack.reset(Offload::default());
                })
            }
            // Flows that are left are ended.
            Some(_) | None => {
                stack.run();
                Ok(Progress::Drained)
            }
        };
        self.tell();
        moved.unwrap_or_else(Progress::Broken)
    }

    fn tell(&mut self) {
        for event in self.stack.events() {
            (self.host)(event);
        }
    }
}

impl Active {
    fn run(
        &mut self,
        stack: &mut Stack,
        frame: &mut Vec<u8>,
        metrics: &mut RingMetrics,
        limits: &mut Limits,
    ) -> Result<Progress, RingError> {
        let moved = self.move_frames(stack, frame, metrics, limits);
        stack.set_alarm(limits.until);
        if limits.until.is_some() {
            // Only then the alarm is set.
            stack.run();
        }
        // Also when a ring was broken in the middle: what was completed before counts.
        if self.rings.wants_interrupt(&self.memory)? {
            metrics.interrupts += 1;
            // Fails only if the counter is full: the line is up already.
            let _ = self.interrupt.signal_used();
        }
        moved
    }

    fn move_frames(
        &mut self,
        stack: &mut Stack,
        frame: &mut Vec<u8>,
        metrics: &mut RingMetrics,
        limits: &mut Limits,
    ) -> Result<Progress, RingError> {
        let Limits {
            from_guest,
            to_guest,
            until,
        } = limits;
        let Self { memory, rings, .. } = self;
        let memory = &*memory;
        let (mut chain, mut placed) = (Chain::new(), Vec::new());
        let (mut frames, mut bytes) = (0, 0_usize);
        loop {
            let before = frames;
            while stack.wants_input() && frames < FRAMES_PER_RUN && bytes < BYTES_PER_RUN {
                if Limits::hold(from_guest, until) || !rings.pop_tx(memory, &mut chain)? {
                    break;
                }
                frames += 1;
                bytes = bytes.saturating_add(chain.readable.len());
                Limits::spend(from_guest, chain.readable.len());
                let header = chain.readable.take_array::<HEADER_LEN>();
                if header.is_none() || chain.readable.len() > MAX_FRAME {
                    metrics.oversized += 1;
                } else {
                    // Never shorter again: what is added is filled with zeroes.
                    let len = chain.readable.len();
                    frame.resize(frame.len().max(len), 0);
                    let frame = frame.get_mut(..len).unwrap_or_default();
                    chain.readable.read(frame);
                    stack.input(frame);
                }
                rings.complete_tx(memory, chain.head())?;
            }
            stack.run();
            let mut starved = false;
            while let Some(next) = stack.frame() {
                if Limits::hold(to_guest, until) {
                    break;
                }
                match rings.place(memory, next, &mut placed)? {
                    Placed::Done => {}
                    Placed::TooLong => metrics.unplaceable += 1,
                    Placed::Starved => {
                        starved = true;
                        break;
                    }
                }
                frames += 1;
                bytes = bytes.saturating_add(next.bytes.len());
                Limits::spend(to_guest, next.bytes.len());
                stack.frame_done();
            }
            if frames == before || starved {
                // The tx queue may not be drained: the stack has no room for what it
                // would bring, until the driver gives room in the rx queue.
                return Ok(Progress::Drained);
            }
            if frames >= FRAMES_PER_RUN || bytes >= BYTES_PER_RUN {
                return Ok(Progress::Yielded);
            }
        }
    }
}

impl Kicked for Net {
    fn serve(&mut self, _queue: usize) -> Progress {
        self.run()
    }

    fn unreachable(&mut self, error: io::Error) {
        if let Some(active) = &self.active {
            active.interrupt.needs_reset();
        }
        self.unreachable = Some(error);
    }

    fn timer(&self) -> Option<RawFd> {
        Some(self.stack.as_raw_fd())
    }

    fn expired(&mut self) {
        self.stack.poll();
    }
}

impl VirtioDevice for Net {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        feature::CSUM
            | feature::GUEST_CSUM
            | feature::MTU
            | feature::MAC
            | feature::GUEST_TSO4
            | feature::GUEST_TSO6
            | feature::HOST_TSO4
            | feature::HOST_TSO6
            | feature::MRG_RXBUF
            | feature::STATUS
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
    }

    /// `struct virtio_net_config` (virtio 1.2 §5.1.4): link address, status, pairs of
    /// queues, MTU.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_bytes(&self.config, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation {
            memory,
            features,
            queues,
            interrupt,
        } = activation;
        if let Some(error) = &self.unreachable {
            let what = "wait for the queues of the network device";
            return Err(ActivateError::lasting(what, error));
        }
        let mut queues = queues.into_iter().map(|queue| {
            let ready = queue.ready();
            ready.then(|| Ring::new(queue, features))
        });
        let mut next = || queues.next().flatten();
        let rx = next().ok_or(ActivateError::MissingQueue(0))?;
        let tx = next().ok_or(ActivateError::MissingQueue(1))?;
        let has = |feature: u64| features & feature != 0;
        let mergeable = has(feature::MRG_RXBUF);
        let rings =
            Rings::new(&memory, rx, tx, mergeable).map_err(|error| ActivateError::Host {
                what: "set up the rings of the network device",
                error: io::Error::other(error),
            })?;
        // A driver that takes long segments without checksums has not understood them.
        let checksum = has(feature::GUEST_CSUM);
        self.stack.reset(Offload {
            checksum,
            tso4: checksum && has(feature::GUEST_TSO4),
            tso6: checksum && has(feature::GUEST_TSO6),
        });
        self.active = Some(Active {
            memory,
            rings,
            interrupt,
        });
        Ok(())
    }

    fn queue_states(&self) -> Vec<QueueState> {
        (self.active.iter())
            .flat_map(|Active { rings, .. }| [rings.rx.state(), rings.tx.state()])
            .collect()
    }

    /// Flows do not outlive a snapshot: their host ends are gone. A guest that is
    /// restored finds them reset as soon as it sends something.
    fn save(&self) -> DeviceState {
        DeviceState::Net
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        match state {
            DeviceState::Net => Ok(()),
            _ => Err(RestoreError::WrongDevice { expected: "net" }),
        }
    }

    fn reset(&mut self) -> Vec<Queue> {
        self.stack.reset(Offload::default());
        self.tell();
        let Some(Active { rings, .. }) = self.active.take() else {
            return Vec::new();
        };
        vec![rings.rx.into_queue(), rings.tx.into_queue()]
    }
}
