//! The device in an event loop, as the virtual machine has it.

use std::io::{Read, Write};
use std::sync::{Arc, Mutex};

use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::super::packet::Op;
use super::super::{Deadlines, Vsock, VsockSubscriber};
use super::driver::{FEATURES, Guest, LINUX_RX_BUFFER, TX, pair};
use super::socket::header;
use crate::virtio::{Activation, VirtioDevice};

#[test]
fn kicks_streams_and_commands_reach_the_device() {
    // Only the driver's side of this one is used.
    let mut guest = Guest::bare(Deadlines::default());
    let device = Arc::new(Mutex::new(Vsock::new(42, Box::new(|_| {})).unwrap()));
    let kick = || EventFd::new(EFD_NONBLOCK).unwrap();
    let kicks = [kick(), kick(), kick()];
    let copies = [0, 1, 2].map(|queue: usize| kicks[queue].try_clone().unwrap());
    let mut manager: EventManager<Box<dyn MutEventSubscriber>> = EventManager::new().unwrap();
    manager.add_subscriber(Box::new(VsockSubscriber::new(device.clone(), kicks)));
    let activation = Activation {
        memory: guest.memory.clone(),
        features: FEATURES,
        queues: guest
            .rings
            .iter()
            .map(|ring| ring.queue(FEATURES))
            .collect(),
        interrupt: guest.interrupt.clone(),
    };
    device.lock().unwrap().activate(activation).unwrap();
    guest.post_all(LINUX_RX_BUFFER);
    let mut run = |guest: &mut Guest| {
        manager.run_with_timeout(20_000).unwrap();
        while manager.run_with_timeout(0).unwrap() > 0 {}
        guest.reap();
    };

    // A command of the host, without any kick.
    let (mut ours, theirs) = pair();
    device.lock().unwrap().connect(1, 99, theirs);
    run(&mut guest);
    let (request, _) = guest.inbox.pop_front().unwrap();
    assert_eq!(request.op(), Some(Op::Request));
    // The interrupt line is what the guest would be woken by.
    assert_eq!(guest.line.read().unwrap(), 1);

    // A kick of the driver.
    guest.transmit(&header(Op::Response, request.src_port, 99), &[]);
    copies[TX].write(1).unwrap();
    run(&mut guest);

    // A stream of the host.
    ours.write_all(b"hello").unwrap();
    run(&mut guest);
    assert_eq!(guest.inbox.pop_front().unwrap().1, b"hello");

    let mut data = header(Op::Rw, request.src_port, 99);
    data.len = 2;
    guest.transmit(&data, b"ok");
    copies[TX].write(1).unwrap();
    run(&mut guest);
    let mut bytes = [0; 2];
    ours.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"ok");

    // And then there is nothing to do.
    assert_eq!(manager.run_with_timeout(0).unwrap(), 0);
}
