//! What a machine tells of itself, and the orders that it takes, from any thread.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver, Sender};

use flashpan_protocol::control::{ExitReason, Stamp, Stats};
use flashpan_protocol::network::{End, NotOpened, Protocol, Refusal, Tuple};
use vmm_sys_util::eventfd::EventFd;

use super::{clone, eventfd};
use crate::error::BootError;
use crate::state::{MachineStateError, VmState};

/// What a machine tells of itself.
#[derive(Debug)]
pub enum VmEvent {
    /// A phase was reached.
    Phase(Stamp),
    /// A program in the guest marked a code of its own.
    UserPhase {
        /// The code.
        code: u8,
        /// `CLOCK_MONOTONIC`, nanoseconds.
        at_ns: u64,
    },
    /// The guest connects to a port of the host: answer with
    /// [`Command::Accept`] or [`Command::Reject`].
    Incoming {
        /// The connection.
        id: u64,
        /// The port.
        port: u32,
        /// The host's end of it.
        stream: UnixStream,
    },
    /// A [`Command::Connect`] was accepted by the guest.
    Connected {
        /// Its number.
        id: u64,
    },
    /// A [`Command::Connect`] was refused by the guest.
    Refused {
        /// Its number.
        id: u64,
    },
    /// The guest wants a flow: answer with [`Command::FlowAccept`] or
    /// [`Command::FlowRefuse`].
    FlowAsked {
        /// Its number.
        id: u64,
        /// What it is made of.
        protocol: Protocol,
        /// From whom to whom.
        tuple: Tuple,
        /// The host's end of it.
        socket: OwnedFd,
    },
    /// A flow exists no more, or will not.
    FlowEnded {
        /// Its number.
        id: u64,
        /// How.
        how: End,
    },
    /// The guest has accepted a [`Command::FlowOpen`].
    FlowOpened {
        /// The caller's number of it.
        id: u64,
        /// The number of the flow.
        flow: u64,
    },
    /// There is no flow for a [`Command::FlowOpen`].
    FlowNotOpened {
        /// The caller's number of it.
        id: u64,
        /// Why.
        why: NotOpened,
    },
    /// In a flow that was opened the guest sends no more.
    FlowFinished {
        /// Its number.
        id: u64,
    },
    /// vCPUs and devices stand still.
    Paused,
    /// They go on.
    Resumed,
    /// The answer to [`Command::Stats`].
    Stats(Box<Stats>),
}

/// Who is told of [`VmEvent`]s. Called from vCPU threads and from the event
/// loop: must not block.
pub trait Observer: Send + Sync {
    /// Something happened.
    fn event(&self, event: VmEvent);
}

/// An order to a machine.
#[derive(Debug)]
pub enum Command {
    /// Connect `stream` to a port on which the guest listens.
    Connect {
        /// Chosen by the caller.
        id: u64,
        /// The port in the guest.
        port: u32,
        /// The machine's end of the stream.
        stream: UnixStream,
    },
    /// Let a connection of the guest be made.
    Accept {
        /// Its number.
        id: u64,
    },
    /// Refuse a connection of the guest.
    Reject {
        /// Its number.
        id: u64,
    },
    /// Let a flow be.
    FlowAccept {
        /// Its number.
        id: u64,
    },
    /// Refuse a flow.
    FlowRefuse {
        /// Its number.
        id: u64,
        /// What the guest gets instead.
        why: Refusal,
    },
    /// End a flow that was accepted or opened.
    FlowClose {
        /// Its number.
        id: u64,
    },
    /// Connect `stream` to a TCP port of the guest, at the address of its card.
    FlowOpen {
        /// Chosen by the caller.
        id: u64,
        /// The port in the guest.
        port: u16,
        /// The machine's end of the stream.
        stream: UnixStream,
    },
    /// Let the vCPUs and the devices stand still: after [`VmEvent::Paused`]
    /// nothing changes in the guest's memory or its disks.
    Pause,
    /// Let them go on.
    Resume,
    /// Report the counters.
    Stats,
    /// Save the machine's state; it must stand still. The answer goes to the
    /// sender; there is none if the machine ends first.
    Save(Sender<Result<Box<VmState>, MachineStateError>>),
    /// End the machine for this reason.
    End(ExitReason),
}

/// Gives orders to a machine, from any thread.
#[derive(Debug)]
pub struct VmHandle {
    sender: Sender<Command>,
    wake: EventFd,
}

impl VmHandle {
    /// Gives an order. Nothing happens if the machine has ended.
    pub fn send(&self, command: Command) {
        if self.sender.send(command).is_ok() {
            // Only a full counter can fail, and then the loop is awake already.
            let _ = self.wake.write(1);
        }
    }

    /// Another handle for the same machine.
    ///
    /// # Errors
    /// If the host has no descriptor left.
    pub fn try_clone(&self) -> std::io::Result<Self> {
        Ok(Self {
            sender: self.sender.clone(),
            wake: self.wake.try_clone()?,
        })
    }
}

/// A handle, where its commands arrive, and what is readable when some have.
pub(crate) fn channel() -> Result<(VmHandle, Receiver<Command>, EventFd), BootError> {
    let (sender, receiver) = mpsc::channel();
    let wake = eventfd()?;
    let handle = VmHandle {
        sender,
        wake: clone(&wake)?,
    };
    Ok((handle, receiver, wake))
}
