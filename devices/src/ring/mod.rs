//! The device's side of a split virtqueue (virtio 1.2 §2.7).
//!
//! `virtio-queue` keeps the queue's registers, positions and notification
//! rules. Descriptor chains are walked here, because its iterator *ends* at a
//! descriptor that breaks the rules, as it does after the last one: a chain
//! that was cut short cannot be told from a short chain. Here every rule has an
//! error, a chain is read exactly once, and its buffers are checked before the
//! device sees it.

mod buffers;
mod chain;
mod kick;

use std::sync::atomic::{Ordering, fence};

use thiserror::Error;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_INDIRECT_DESC, VRING_AVAIL_F_NO_INTERRUPT};
use virtio_queue::{Queue, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress};

use crate::virtio::{GuestRam, Interrupt};

pub use buffers::Buffers;
pub use chain::Chain;
pub use kick::{KickSubscriber, Kicked};

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "tests choose the numbers")]
mod tests;

/// A rule that the driver broke. The queue cannot be trusted any more: the
/// device asks to be reset (`DEVICE_NEEDS_RESET`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum RingError {
    /// More chains available than the queue has room for (virtio 1.2 §2.7.6).
    #[error("the available index is more than the queue's size ahead")]
    AvailIndexJump,
    /// A head that is not in the descriptor table.
    #[error("the head of a chain is outside the descriptor table")]
    HeadOutOfRange,
    /// A `next` that is not in the descriptor table (virtio 1.2 §2.7.5).
    #[error("a chain leads outside the descriptor table")]
    NextOutOfRange,
    /// A chain longer than the queue (virtio 1.2 §2.7.5.3.1), or a loop
    /// (§2.7.5.2).
    #[error("a chain has more descriptors than the queue")]
    TooManyDescriptors,
    /// A chain of more than 2^32 bytes (virtio 1.2 §2.7.5.2).
    #[error("a chain describes more than 4 GiB")]
    TooManyBytes,
    /// A table or buffer outside guest memory.
    #[error("a descriptor points outside guest memory")]
    OutsideMemory,
    /// A readable buffer after a writable one (virtio 1.2 §2.7.4.2).
    #[error("a chain has a readable buffer after a writable one")]
    ReadableAfterWritable,
    /// An indirect table although the feature was not negotiated
    /// (virtio 1.2 §2.7.5.3.1).
    #[error("an indirect descriptor without VIRTIO_F_INDIRECT_DESC")]
    IndirectNotNegotiated,
    /// An indirect table in an indirect table (virtio 1.2 §2.7.5.3.1).
    #[error("an indirect descriptor in an indirect table")]
    NestedIndirect,
    /// `INDIRECT` and `NEXT` in one descriptor (virtio 1.2 §2.7.5.3.1).
    #[error("an indirect descriptor that continues")]
    IndirectWithNext,
    /// An indirect table that is empty or not a whole number of descriptors.
    #[error("an indirect table of a length that cannot be")]
    IndirectLength,
    /// A request without the parts that every request of the device has.
    #[error("a request is too short for the device to answer")]
    ShortRequest,
    /// A readable buffer for a device that only writes.
    #[error("a readable buffer where the device only writes")]
    UnexpectedReadable,
    /// The ring itself could not be accessed.
    #[error("the ring is not accessible")]
    Inaccessible,
}

/// What may be done for one kick before other devices get their turn.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// Number of chains.
    pub chains: u32,
    /// Bytes described by them, and what else they cost ([`Served::cost`]).
    pub bytes: u64,
}

/// What answering a chain came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Served {
    /// Bytes written, see [`Ring::complete`].
    pub written: u32,
    /// Work that the chain's own bytes do not show, in bytes of [`Budget`].
    pub cost: u64,
    /// Whether no chain may be taken after this one for now.
    pub last: bool,
}

impl From<u32> for Served {
    /// So many bytes written, and no more work than the chain shows.
    fn from(written: u32) -> Self {
        Self {
            written,
            ..Self::default()
        }
    }
}

/// How a run over a queue ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Nothing is available: the driver will kick.
    Drained,
    /// The budget is spent: come back without waiting for a kick.
    Yielded,
    /// No more may be done for now ([`Served::last`]): come back when it may,
    /// without waiting for a kick.
    Held,
    /// The driver broke a rule: nothing more until it resets the device.
    Broken(RingError),
}

/// A live queue.
#[derive(Debug)]
pub struct Ring {
    queue: Queue,
    indirect: bool,
    /// Chains given back since the driver's wish for interrupts was last looked up.
    added: u16,
}

impl Ring {
    /// Takes over `queue` as the transport handed it out, with the negotiated
    /// `features`.
    #[must_use]
    pub fn new(queue: Queue, features: u64) -> Self {
        Self {
            queue,
            indirect: features & 1 << VIRTIO_RING_F_INDIRECT_DESC != 0,
            added: 0,
        }
    }

    /// The queue, for the transport.
    #[must_use]
    pub fn into_queue(self) -> Queue {
        self.queue
    }

    /// The queue's state.
    #[must_use]
    pub fn state(&self) -> QueueState {
        self.queue.state()
    }

    /// Takes the next available chain into `chain`; false if there is none.
    ///
    /// # Errors
    /// If the driver broke a rule.
    pub fn pop<'m>(
        &mut self,
        memory: &'m GuestRam,
        chain: &mut Chain<'m>,
    ) -> Result<bool, RingError> {
        let size = self.queue.size();
        let available = self
            .queue
            .avail_idx(memory, Ordering::Acquire)
            .map_err(|_| RingError::Inaccessible)?;
        let position = self.queue.next_avail();
        let pending = available.0.wrapping_sub(position);
        if pending == 0 {
            return Ok(false);
        }
        if pending > size {
            return Err(RingError::AvailIndexJump);
        }
        // struct virtq_avail: flags, idx, ring[] (virtio 1.2 §2.7.6).
        let entry = position
            .checked_rem(size)
            .and_then(|slot| self.queue.avail_ring().checked_add(4 + 2 * u64::from(slot)))
            .ok_or(RingError::Inaccessible)?;
        let head = memory
            .load::<u16>(GuestAddress(entry), Ordering::Relaxed)
            .map_err(|_| RingError::Inaccessible)?;
        self.queue.set_next_avail(position.wrapping_add(1));
        chain.walk(memory, &self.queue, u16::from_le(head), self.indirect)?;
        Ok(true)
    }

    /// Takes the next available chain, with kicks off; false if there is none, after
    /// which the driver kicks.
    ///
    /// # Errors
    /// If the driver broke a rule: a chain that it has announced and taken back is one,
    /// as that, again and again, could keep the device busy for ever.
    pub fn pop_or_await<'m>(
        &mut self,
        memory: &'m GuestRam,
        chain: &mut Chain<'m>,
    ) -> Result<bool, RingError> {
        if self.pop(memory, chain)? {
            return Ok(true);
        }
        if !self.enable_kicks(memory)? {
            return Ok(false);
        }
        self.disable_kicks(memory)?;
        match self.pop(memory, chain)? {
            true => Ok(true),
            false => Err(RingError::AvailIndexJump),
        }
    }

    /// Undoes the last `count` calls of [`Self::pop`] that took a chain: those
    /// chains are available as before.
    pub fn put_back(&mut self, count: u16) {
        let position = self.queue.next_avail().wrapping_sub(count);
        self.queue.set_next_avail(position);
    }

    /// Gives the chain that began at `head` back, with `len` bytes written to
    /// its writable part, counted from its start (virtio 1.2 §2.7.8.2).
    ///
    /// # Errors
    /// If the used ring cannot be written.
    pub fn complete(&mut self, memory: &GuestRam, head: u16, len: u32) -> Result<(), RingError> {
        self.queue
            .add_used(memory, head, len)
            .map_err(|_| RingError::Inaccessible)?;
        self.added = self.added.wrapping_add(1);
        Ok(())
    }

    /// The same for several chains at once: the driver finds all of them or none. Each
    /// is named by its head, in the order in which they were taken.
    ///
    /// # Errors
    /// If the used ring cannot be written.
    pub fn complete_together(
        &mut self,
        memory: &GuestRam,
        chains: &[(u16, u32)],
    ) -> Result<(), RingError> {
        let Some((&(last, last_len), first)) = chains.split_last() else {
            return Ok(());
        };
        // struct virtq_used: flags, idx, ring[] of id and len (virtio 1.2 §2.7.8).
        let mut position = self.queue.next_used();
        for &(head, len) in first {
            let entry = position
                .checked_rem(self.queue.size())
                .and_then(|slot| (self.queue.used_ring()).checked_add(4 + 8 * u64::from(slot)))
                .ok_or(RingError::Inaccessible)?;
            let [a, b, c, d] = u32::from(head).to_le_bytes();
            let [e, f, g, h] = len.to_le_bytes();
            memory
                .write_slice(&[a, b, c, d, e, f, g, h], GuestAddress(entry))
                .map_err(|_| RingError::Inaccessible)?;
            position = position.wrapping_add(1);
            self.added = self.added.wrapping_add(1);
        }
        // The last one moves the index past all of them.
        self.queue.set_next_used(position);
        self.complete(memory, last, last_len)
    }

    /// Asks the driver not to kick: its chains will be found.
    ///
    /// # Errors
    /// If the used ring cannot be written.
    pub fn disable_kicks(&mut self, memory: &GuestRam) -> Result<(), RingError> {
        self.queue
            .disable_notification(memory)
            .map_err(|_| RingError::Inaccessible)
    }

    /// Asks the driver to kick at its next chain. True if chains became
    /// available meanwhile, for which it will not.
    ///
    /// # Errors
    /// If the rings cannot be accessed.
    pub fn enable_kicks(&mut self, memory: &GuestRam) -> Result<bool, RingError> {
        self.queue
            .enable_notification(memory)
            .map_err(|_| RingError::Inaccessible)
    }

    /// Whether the driver wants an interrupt for what was completed since the
    /// last call (virtio 1.2 §2.7.7.2).
    ///
    /// # Errors
    /// If the available ring cannot be read.
    pub fn wants_interrupt(&mut self, memory: &GuestRam) -> Result<bool, RingError> {
        // What was given back must be seen before the driver's wish is looked up
        // (virtio 1.2 §2.7.10.1).
        fence(Ordering::SeqCst);
        let added = std::mem::take(&mut self.added);
        let load = |offset: u64| {
            (self.queue.avail_ring().checked_add(offset))
                .and_then(|at| memory.load::<u16>(GuestAddress(at), Ordering::Relaxed).ok())
                .map(u16::from_le)
                .ok_or(RingError::Inaccessible)
        };
        if self.queue.event_idx_enabled() {
            // struct virtq_avail ends with used_event (virtio 1.2 §2.7.6).
            let event = load(4 + 2 * u64::from(self.queue.size()))?;
            let since = (self.queue.next_used().wrapping_sub(event)).wrapping_sub(1);
            return Ok(since < added);
        }
        Ok(u32::from(load(0)?) & VRING_AVAIL_F_NO_INTERRUPT == 0)
    }

    /// Serves available chains until there are none, `budget` is spent, or
    /// `handle` says that a chain was the last one.
    /// `handle` answers one chain and returns what that came to: [`Served`], or
    /// just the bytes it wrote.
    ///
    /// The driver is interrupted once, at the end. A broken rule is answered
    /// with `DEVICE_NEEDS_RESET`, after which this does nothing.
    pub fn serve<'m, S: Into<Served>>(
        &mut self,
        memory: &'m GuestRam,
        interrupt: &Interrupt,
        budget: Budget,
        handle: impl FnMut(&mut Chain<'m>) -> Result<S, RingError>,
    ) -> Progress {
        if !self.queue.ready() || interrupt.is_reset_needed() {
            return Progress::Drained;
        }
        let before = self.queue.next_used();
        let served = self.try_serve(memory, budget, handle);
        let told = if self.queue.next_used() == before {
            Ok(false)
        } else {
            self.wants_interrupt(memory)
        };
        if told == Ok(true) {
            // Fails only if the counter is full: the line is up already.
            let _ = interrupt.signal_used();
        }
        match told.and(served) {
            Ok(progress) => progress,
            Err(error) => {
                interrupt.needs_reset();
                Progress::Broken(error)
            }
        }
    }

    fn try_serve<'m, S: Into<Served>>(
        &mut self,
        memory: &'m GuestRam,
        budget: Budget,
        mut handle: impl FnMut(&mut Chain<'m>) -> Result<S, RingError>,
    ) -> Result<Progress, RingError> {
        let mut chain = Chain::new();
        let (mut chains, mut bytes) = (0, 0u64);
        let mut announced = false;
        loop {
            self.disable_kicks(memory)?;
            while self.pop(memory, &mut chain)? {
                announced = false;
                let head = chain.head();
                let described = chain.bytes();
                let Served {
                    written,
                    cost,
                    last,
                } = handle(&mut chain)?.into();
                self.complete(memory, head, written)?;
                bytes = bytes.saturating_add(described).saturating_add(cost);
                chains += 1;
                // Kicks stay disabled: the caller comes back by itself.
                if last {
                    return Ok(Progress::Held);
                }
                if chains >= budget.chains || bytes >= budget.bytes {
                    return Ok(Progress::Yielded);
                }
            }
            // A driver that takes back what it has announced, again and again,
            // would keep the device busy without spending its budget.
            if announced {
                return Err(RingError::AvailIndexJump);
            }
            announced = self.enable_kicks(memory)?;
            if !announced {
                return Ok(Progress::Drained);
            }
        }
    }
}
