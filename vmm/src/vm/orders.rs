//! What the event loop of a machine is told: commands, and its end.

use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Mutex};

use event_manager::{EventOps, Events, MutEventSubscriber};
use flashpan_devices::net::Net;
use flashpan_devices::vsock::Vsock;
use flashpan_protocol::control::ExitReason;
use flashpan_protocol::network::NotOpened;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use super::{Command, Observer, VmEvent, lock};
use crate::machine::Machine;
use crate::state::{MachineStateError, VmState};

/// An order that needs the whole machine.
#[derive(Debug)]
pub(super) enum Order {
    Pause,
    Resume,
    Stats,
    Save(Sender<Result<Box<VmState>, MachineStateError>>),
    End(ExitReason),
}

/// Takes commands in the event loop.
pub(super) struct Commands {
    receiver: Receiver<Command>,
    wake: EventFd,
    vsock: Arc<Mutex<Vsock>>,
    net: Option<Arc<Mutex<Net>>>,
    observer: Arc<dyn Observer>,
    /// For [`super::Vm::run`] to do after this round of events.
    pub(super) pending: Vec<Order>,
    pub(super) ended: Option<ExitReason>,
}

impl MutEventSubscriber for Commands {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(Events::new(&self.wake, EventSet::IN)) {
            self.ended = Some(unwatched("commands", &error));
        }
    }

    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        let _ = self.wake.read();
        self.receive();
    }
}

impl Commands {
    pub(super) fn new(
        receiver: Receiver<Command>,
        wake: EventFd,
        vsock: Arc<Mutex<Vsock>>,
        net: Option<Arc<Mutex<Net>>>,
        observer: Arc<dyn Observer>,
    ) -> Self {
        Self {
            receiver,
            wake,
            vsock,
            net,
            observer,
            pending: Vec::new(),
            ended: None,
        }
    }

    /// Takes all commands that there are.
    pub(super) fn receive(&mut self) {
        while let Ok(command) = self.receiver.try_recv() {
            match command {
                Command::Connect { id, port, stream } => {
                    lock(&self.vsock).connect(id, port, stream);
                }
                Command::Accept { id } => lock(&self.vsock).accept(id),
                Command::Reject { id } => lock(&self.vsock).reject(id),
                Command::FlowAccept { id } => self.net(|net| net.accept(id)),
                Command::FlowRefuse { id, why } => self.net(|net| net.refuse(id, why)),
                Command::FlowClose { id } => self.net(|net| net.close(id)),
                Command::FlowOpen { id, port, stream } => match &self.net {
                    Some(net) => lock(net).open(id, port, stream),
                    None => {
                        let why = NotOpened::NoRoom;
                        self.observer.event(VmEvent::FlowNotOpened { id, why });
                    }
                },
                Command::Pause => self.pending.push(Order::Pause),
                Command::Resume => self.pending.push(Order::Resume),
                Command::Stats => self.pending.push(Order::Stats),
                Command::Save(reply) => self.pending.push(Order::Save(reply)),
                Command::End(reason) => self.pending.push(Order::End(reason)),
            }
        }
    }

    /// A machine without a card has no flows that an order could be about.
    fn net(&self, order: impl FnOnce(&mut Net)) {
        if let Some(net) = &self.net {
            order(&mut lock(net));
        }
    }
}

/// Notices that a vCPU has ended the machine.
pub(super) struct EndSubscriber {
    machine: Arc<Machine>,
    commands: Arc<Mutex<Commands>>,
}

impl EndSubscriber {
    pub(super) fn new(machine: Arc<Machine>, commands: Arc<Mutex<Commands>>) -> Self {
        Self { machine, commands }
    }
}

impl MutEventSubscriber for EndSubscriber {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(Events::new(self.machine.end_event(), EventSet::IN)) {
            lock(&self.commands).ended = Some(unwatched("the end of the guest", &error));
        }
    }

    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        let _ = self.machine.end_event().read();
        if let Some(reason) = self.machine.end_reason() {
            lock(&self.commands).ended.get_or_insert(reason);
        }
    }
}

fn unwatched(what: &str, error: &event_manager::Error) -> ExitReason {
    ExitReason::VmmError(format!("could not watch {what}: {error}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::vm::channel;

    #[derive(Default)]
    struct Told(Mutex<Vec<VmEvent>>);

    impl Observer for Told {
        fn event(&self, event: VmEvent) {
            self.0.lock().unwrap().push(event);
        }
    }

    #[test]
    fn without_a_card_there_is_an_answer_to_who_wants_it() {
        let vsock = Arc::new(Mutex::new(Vsock::new(3, Box::new(|_| {})).unwrap()));
        let (vm, receiver, wake) = channel().unwrap();
        let told = Arc::new(Told::default());
        let observer = Arc::clone(&told) as Arc<dyn Observer>;
        let mut commands = Commands::new(receiver, wake, vsock, None, observer);
        let (_ours, stream) = UnixStream::pair().unwrap();
        vm.send(Command::FlowOpen {
            id: 5,
            port: 80,
            stream,
        });
        commands.receive();
        let told = told.0.lock().unwrap();
        let why = NotOpened::NoRoom;
        assert!(
            matches!(&told[..], [VmEvent::FlowNotOpened { id: 5, why: said }] if *said == why),
            "{told:?}"
        );
    }
}
