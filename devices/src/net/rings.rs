//! The queues of the device (virtio 1.2 §5.1.2), as a source and a sink of frames.
//!
//! Kicks are asked for only when they are waited for: of the tx queue once it is
//! drained, of the rx queue while a frame waits for room in it.

use super::header::HEADER_LEN;
use super::stack::Frame;
use crate::ring::{Chain, Ring, RingError};
use crate::virtio::GuestRam;

/// Where a frame has gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Placed {
    /// To the driver.
    Done,
    /// Nowhere yet: the driver has too little room, and kicks when it has more.
    Starved,
    /// Nowhere: it fits into nothing that this driver gives.
    TooLong,
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Rings {
    pub(super) rx: Ring,
    pub(super) tx: Ring,
    /// Frames may be spread over several buffers.
    mergeable: bool,
    /// Kicks of the rx queue are on.
    starved: bool,
    /// Chains were completed since the driver was last told, of rx and of tx.
    used: [bool; 2],
}

impl Rings {
    /// # Errors
    /// If a ring cannot be accessed.
    pub(super) fn new(
        memory: &GuestRam,
        rx: Ring,
        tx: Ring,
        mergeable: bool,
    ) -> Result<Self, RingError> {
        let mut rings = Self {
            rx,
            tx,
            mergeable,
            starved: false,
            used: [false; 2],
        };
        rings.rx.disable_kicks(memory)?;
        Ok(rings)
    }

    /// Takes a frame of the driver; false if there is none, after which the driver
    /// kicks.
    pub(super) fn pop_tx<'m>(
        &mut self,
        memory: &'m GuestRam,
        chain: &mut Chain<'m>,
    ) -> Result<bool, RingError> {
        self.tx.pop_or_await(memory, chain)
    }

    pub(super) fn complete_tx(&mut self, memory: &GuestRam, head: u16) -> Result<(), RingError> {
        let [_, used] = &mut self.used;
        *used = true;
        self.tx.complete(memory, head, 0)
    }

    /// Gives a frame to the driver, if it has room for it. The content of `chains` means
    /// nothing: it is kept for the next frame.
    ///
    /// # Errors
    /// If the driver broke a rule, or gave a buffer into which not even the header fits.
    pub(super) fn place<'m>(
        &mut self,
        memory: &'m GuestRam,
        frame: &Frame,
        chains: &mut Vec<Chain<'m>>,
    ) -> Result<Placed, RingError> {
        let needed = HEADER_LEN.saturating_add(frame.bytes.len());
        let mut room = 0_usize;
        let mut popped = 0_u16;
        let mut announced = false;
        while room < needed {
            let used = usize::from(popped);
            if chains.len() == used {
                chains.push(Chain::new());
            }
            let Some(chain) = chains.get_mut(used) else {
                return Err(RingError::AvailIndexJump);
            };
            if self.rx.pop(memory, chain)? {
                announced = false;
                popped = popped.wrapping_add(1);
                if chain.writable.len() < HEADER_LEN {
                    return Err(RingError::ShortRequest);
                }
                room = room.saturating_add(chain.writable.len());
                let all = self.rx.state().size;
                if room < needed && (!self.mergeable || popped >= all) {
                    self.rx.put_back(popped);
                    return Ok(Placed::TooLong);
                }
                continue;
            }
            if announced {
                return Err(RingError::AvailIndexJump);
            }
            // At the first buffer after those that are too few.
            self.starved = true;
            announced = self.rx.enable_kicks(memory)?;
            if !announced {
                self.rx.put_back(popped);
                return Ok(Placed::Starved);
            }
        }
        if std::mem::take(&mut self.starved) {
            self.rx.disable_kicks(memory)?;
        }
        let header = frame.header.to_bytes(popped);
        let mut rest = frame.bytes.as_slice();
        let used = usize::from(popped);
        let mut done = Vec::with_capacity(used);
        for (index, chain) in chains.iter_mut().take(used).enumerate() {
            let mut len = 0;
            if index == 0 {
                len += chain.writable.write(&header);
            }
            let written = chain.writable.write(rest);
            rest = rest.get(written..).unwrap_or_default();
            len += written;
            done.push((chain.head(), u32::try_from(len).unwrap_or(u32::MAX)));
        }
        let [used, _] = &mut self.used;
        *used = true;
        // A driver looks for all buffers of a frame as soon as it finds the first.
        self.rx.complete_together(memory, &done)?;
        Ok(Placed::Done)
    }

    /// Whether the driver has to be interrupted for what was completed.
    pub(super) fn wants_interrupt(&mut self, memory: &GuestRam) -> Result<bool, RingError> {
        let mut wanted = false;
        for (ring, used) in [&mut self.rx, &mut self.tx].into_iter().zip(&mut self.used) {
            if std::mem::take(used) {
                wanted |= ring.wants_interrupt(memory)?;
            }
        }
        Ok(wanted)
    }
}
