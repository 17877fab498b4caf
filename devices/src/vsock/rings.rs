//! The three queues of the device (virtio 1.2 §5.10.2), as a source and a sink
//! of packets.
//!
//! Kicks are asked for only when they are waited for: of the tx queue once it
//! is drained, of the rx queue while there is something to send and nothing to
//! put it into, of the event queue during a transport reset.

use vm_memory::VolatileSlice;

use super::packet::{HEADER_LEN, Header};
use crate::ring::{Chain, Ring, RingError};
use crate::virtio::GuestRam;

/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET` (virtio 1.2 §5.10.6.7), a
/// `struct virtio_vsock_event`.
const TRANSPORT_RESET: [u8; 4] = 0u32.to_le_bytes();

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Rings {
    pub(super) rx: Ring,
    pub(super) tx: Ring,
    /// A driver may do without.
    pub(super) event: Option<Ring>,
    /// Kicks of the rx queue are on.
    starved: bool,
    /// Chains were completed since the driver was last told, per queue.
    used: [bool; 3],
}

/// What the event queue knows of a transport reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TransportReset {
    /// None under way.
    Idle,
    /// The driver gave no buffer for the event yet.
    Due,
    /// The event is in the driver's hands, which then had given this many more
    /// buffers. It gives another one after it handled the event.
    Sent { spare: u16 },
}

impl Rings {
    /// # Errors
    /// If a ring cannot be accessed.
    pub(super) fn new(
        memory: &GuestRam,
        rx: Ring,
        tx: Ring,
        event: Option<Ring>,
    ) -> Result<Self, RingError> {
        let mut rings = Self {
            rx,
            tx,
            event,
            starved: false,
            used: [false; 3],
        };
        rings.rx.disable_kicks(memory)?;
        if let Some(event) = &mut rings.event {
            event.disable_kicks(memory)?;
        }
        Ok(rings)
    }

    /// Takes a packet of the driver; false if there is none, after which the
    /// driver kicks.
    pub(super) fn pop_tx<'m>(
        &mut self,
        memory: &'m GuestRam,
        chain: &mut Chain<'m>,
    ) -> Result<bool, RingError> {
        self.tx.pop_or_await(memory, chain)
    }

    pub(super) fn complete_tx(&mut self, memory: &GuestRam, head: u16) -> Result<(), RingError> {
        let [_, used, _] = &mut self.used;
        *used = true;
        self.tx.complete(memory, head, 0)
    }

    /// Takes a buffer for a packet to the driver; false if there is none, after
    /// which the driver kicks.
    ///
    /// # Errors
    /// If the driver broke a rule, or gave a buffer that no data fits into.
    pub(super) fn pop_rx<'m>(
        &mut self,
        memory: &'m GuestRam,
        chain: &mut Chain<'m>,
    ) -> Result<bool, RingError> {
        if !self.rx.pop(memory, chain)? {
            self.starved = true;
            if !self.rx.enable_kicks(memory)? {
                return Ok(false);
            }
            pop_announced(&mut self.rx, memory, chain)?;
        }
        if self.starved {
            self.starved = false;
            self.rx.disable_kicks(memory)?;
        }
        if chain.writable.len() <= HEADER_LEN {
            return Err(RingError::ShortRequest);
        }
        Ok(true)
    }

    /// Puts a header into a buffer and gives it to the driver. The payload that
    /// the header announces is in its place behind the header already.
    pub(super) fn complete_packet(
        &mut self,
        memory: &GuestRam,
        chain: &mut Chain<'_>,
        header: &Header,
    ) -> Result<(), RingError> {
        // The room was checked when the chain was taken.
        let written = chain.writable.write(&header.to_bytes());
        let len = u32::try_from(written)
            .unwrap_or(0)
            .saturating_add(header.len);
        self.complete_rx(memory, chain.head(), len)
    }

    fn complete_rx(&mut self, memory: &GuestRam, head: u16, len: u32) -> Result<(), RingError> {
        let [used, _, _] = &mut self.used;
        *used = true;
        self.rx.complete(memory, head, len)
    }

    /// Carries a transport reset on; what the next step is.
    pub(super) fn reset_transport(
        &mut self,
        memory: &GuestRam,
        state: TransportReset,
    ) -> Result<TransportReset, RingError> {
        let Some(event) = &mut self.event else {
            return Ok(TransportReset::Idle);
        };
        let mut state = state;
        let mut announced = false;
        loop {
            let before = state;
            let spare = match state {
                TransportReset::Idle => return Ok(state),
                TransportReset::Due => {
                    let mut chain = Chain::new();
                    if event.pop(memory, &mut chain)? {
                        let written = chain.writable.write(&TRANSPORT_RESET);
                        let len = u32::try_from(written).unwrap_or(0);
                        event.complete(memory, chain.head(), len)?;
                        let [_, _, used] = &mut self.used;
                        *used = true;
                        let spare = count_available(event, memory)?;
                        state = TransportReset::Sent { spare };
                        spare
                    } else {
                        0
                    }
                }
                TransportReset::Sent { spare } => {
                    if count_available(event, memory)? > spare {
                        event.disable_kicks(memory)?;
                        return Ok(TransportReset::Idle);
                    }
                    spare
                }
            };
            if announced && state == before {
                return Err(RingError::AvailIndexJump);
            }
            announced = kick_after(event, memory, spare)?;
            if !announced {
                return Ok(state);
            }
        }
    }

    /// Whether the driver has to be interrupted for what was completed.
    pub(super) fn wants_interrupt(&mut self, memory: &GuestRam) -> Result<bool, RingError> {
        let mut wanted = false;
        let rings = [Some(&mut self.rx), Some(&mut self.tx), self.event.as_mut()];
        for (ring, used) in rings.into_iter().zip(&mut self.used) {
            if let Some(ring) = ring
                && std::mem::take(used)
            {
                wanted |= ring.wants_interrupt(memory)?;
            }
        }
        Ok(wanted)
    }
}

/// Takes the chain that the ring just said is there. A driver that has taken it
/// back meanwhile, again and again, could keep the device busy for ever.
fn pop_announced<'m>(
    ring: &mut Ring,
    memory: &'m GuestRam,
    chain: &mut Chain<'m>,
) -> Result<(), RingError> {
    if ring.pop(memory, chain)? {
        Ok(())
    } else {
        Err(RingError::AvailIndexJump)
    }
}

/// Takes `limit` chains, or all if there are fewer; how many.
fn skip(event: &mut Ring, memory: &GuestRam, limit: u16) -> Result<u16, RingError> {
    let mut chain = Chain::new();
    let mut count = 0;
    while count < limit && event.pop(memory, &mut chain)? {
        count += 1;
    }
    Ok(count)
}

/// Chains that are available, and stay so.
fn count_available(event: &mut Ring, memory: &GuestRam) -> Result<u16, RingError> {
    let count = skip(event, memory, u16::MAX)?;
    event.put_back(count);
    Ok(count)
}

/// Asks for a kick at the chain after the next `spare` ones; true if it is
/// there already.
fn kick_after(event: &mut Ring, memory: &GuestRam, spare: u16) -> Result<bool, RingError> {
    let count = skip(event, memory, spare)?;
    let more = event.enable_kicks(memory);
    event.put_back(count);
    more
}

/// Appends the pieces of `slices` from `skip` on, `limit` bytes at most, to
/// `out`; returns how many bytes these are.
pub(super) fn gather<'m>(
    out: &mut Vec<VolatileSlice<'m>>,
    slices: &[VolatileSlice<'m>],
    skip: usize,
    limit: usize,
) -> usize {
    let (mut skip, mut taken) = (skip, 0);
    for slice in slices {
        let offset = skip.min(slice.len());
        skip -= offset;
        let count = (slice.len() - offset).min(limit - taken);
        if count > 0
            && let Ok(piece) = slice.subslice(offset, count)
        {
            out.push(piece);
            taken += count;
        }
    }
    taken
}
