//! What a supervisor gets that reads, and what becomes of one that does not.

use flashpan_protocol::control::{ExitCount, FullDisk};
use flashpan_protocol::network::NotOpened;

use super::*;
use crate::vm::channel;

/// The VMM's end and the supervisor's.
fn pair() -> (Control, UnixDatagram) {
    let mut fds = [-1; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: the pointer is to room for two descriptors.
    let made = unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()) };
    assert_eq!(made, 0);
    // SAFETY: the call has just made them.
    let [ours, theirs] = fds.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    (Control::new(ours).unwrap(), theirs.into())
}

fn next(supervisor: &UnixDatagram) -> Event {
    let mut buffer = vec![0; MAX_PACKET];
    let len = supervisor.recv(&mut buffer).unwrap();
    decode(&buffer[..len]).unwrap()
}

/// Counters that fit no packet.
fn too_many() -> Stats {
    let exit = ExitCount {
        reason: "pio_in".to_owned(),
        detail: "port 0x1234".to_owned(),
        count: 1,
    };
    Stats {
        exits: vec![exit; 10_000],
        console_dropped: 1,
        full_disks: vec![FullDisk {
            disk: 3,
            failures: 2,
        }],
        ..Stats::default()
    }
}

#[test]
fn a_report_arrives_even_if_its_counters_are_too_long() {
    let (control, supervisor) = pair();
    let report = ExitReport {
        reason: ExitReason::TripleFault,
        at_ns: 7,
        stats: too_many(),
    };
    control.event(VmEvent::Stats(Box::new(too_many())));
    control.finish(&Event::Exited(Box::new(report))).unwrap();
    let shorter = Stats {
        exits: Vec::new(),
        ..too_many()
    };
    assert_eq!(next(&supervisor), Event::Stats(Box::new(shorter.clone())));
    let Event::Exited(report) = next(&supervisor) else {
        panic!("not the report");
    };
    assert_eq!((report.reason, report.at_ns), (ExitReason::TripleFault, 7));
    assert_eq!(report.stats, shorter);
}

#[test]
fn a_supervisor_that_does_not_read_costs_bounded_memory_and_the_machine() {
    let (control, supervisor) = pair();
    control.set_nonblocking(true).unwrap();
    let (vm, commands, _wake) = channel().unwrap();
    let _subscriber = ControlSubscriber::new(control.clone(), vm).unwrap();
    let queued = || control.inner.queue.lock().unwrap().len();

    // What does not matter is dropped, and ends nothing.
    for _ in 0..10 * MAX_QUEUED {
        control.event(VmEvent::UserPhase {
            code: 200,
            at_ns: 0,
        });
    }
    assert_eq!(queued(), MAX_QUEUED_MARKS);
    // There is room yet for what does.
    for id in 0..(MAX_QUEUED - MAX_QUEUED_MARKS) as u64 {
        control.event(VmEvent::Connected { id });
    }
    assert!(
        commands.try_recv().is_err(),
        "nothing was lost that matters"
    );

    for id in 0..10 * MAX_QUEUED as u64 {
        control.event(VmEvent::Connected { id });
    }
    assert_eq!(queued(), MAX_QUEUED);
    let Ok(Command::End(ExitReason::VmmError(why))) = commands.try_recv() else {
        panic!("the machine goes on");
    };
    assert!(why.contains("does not read"), "{why}");
    assert!(commands.try_recv().is_err(), "it ends once");
    drop(supervisor);
}

#[test]
fn an_order_to_connect_to_the_card_has_one_stream() {
    let open = encode(&Request::FlowOpen { id: 3, port: 80 }).unwrap();
    let streams = || [0, 1].map(|_| UnixDatagram::unbound().unwrap());
    for count in [0, 1, 2] {
        let (control, supervisor) = pair();
        control.set_nonblocking(true).unwrap();
        let (vm, commands, _wake) = channel().unwrap();
        let subscriber = ControlSubscriber::new(control, vm).unwrap();
        let streams = streams();
        let sent: Vec<_> = streams.iter().take(count).map(AsRawFd::as_raw_fd).collect();
        supervisor.send_with_fds(&[&open[..]], &sent).unwrap();
        match subscriber.serve() {
            Ok(()) => assert!(matches!(
                commands.try_recv(),
                Ok(Command::FlowOpen {
                    id: 3,
                    port: 80,
                    ..
                })
            )),
            Err(ControlError::Descriptors { got, expected: 1 }) => assert_eq!(got, count),
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn what_becomes_of_a_flow_that_was_opened_is_told() {
    let (control, supervisor) = pair();
    let why = NotOpened::Silent;
    for (event, told) in [
        (
            VmEvent::FlowOpened { id: 3, flow: 9 },
            Event::FlowOpened { id: 3, flow: 9 },
        ),
        (
            VmEvent::FlowNotOpened { id: 4, why },
            Event::FlowNotOpened { id: 4, why },
        ),
        (
            VmEvent::FlowFinished { id: 9 },
            Event::FlowFinished { id: 9 },
        ),
    ] {
        control.event(event);
        assert_eq!(next(&supervisor), told);
    }
}
