//! Save and restore: connections do not survive, and both sides learn it.

use std::io::Write;
use std::time::Duration;

use vm_memory::Bytes;
use vm_memory::GuestAddress;

use super::super::packet::Op;
use super::super::{Deadlines, MAX_CONNECTIONS, MAX_PENDING_RSTS, VsockState};
use super::driver::{EVENT, FEATURES, Guest, RX, WRITE, data, pair};
use crate::state::{DeviceState, RestoreError};
use crate::virtio::VirtioDevice;

/// The same guest on another device, as after a restore.
fn restored(guest: &mut Guest, deadlines: Deadlines) {
    let state = guest.device.save();
    let queues = guest.device.reset();
    let mut next = Guest::bare(deadlines);
    std::mem::swap(&mut next.memory, &mut guest.memory);
    std::mem::swap(&mut next.rings, &mut guest.rings);
    next.device.restore(&state).unwrap();
    next.activate_with(queues, FEATURES);
    next.repost = guest.repost;
    next.inbox.append(&mut guest.inbox);
    next.set_rx_len(super::driver::LINUX_RX_BUFFER);
    *guest = next;
}

#[test]
fn connections_in_flight_are_reset_after_a_restore() {
    let mut guest = Guest::new();
    let (mut a, mut host_a) = guest.connect_out(80, 1000);
    let (b, _host_b) = guest.connect_in(99);
    let (_ours, theirs) = pair();
    guest.device.connect(8, 100, theirs);
    let (request, _) = guest.expect(Op::Request);
    host_a.write_all(&[7; 5000]).unwrap();
    a.send(&mut guest, b"on its way");
    guest.settle();
    guest.inbox.clear();
    guest.rings[EVENT].take(&guest.memory);

    let DeviceState::Vsock(state) = guest.device.save() else {
        panic!("another device's state");
    };
    let mut open = vec![(80, a.guest), (b.host, 99), (request.src_port, 100)];
    open.sort_unstable();
    assert_eq!(state.open, open);
    let encoded = format!("{state:?}");
    assert!(encoded.contains("next_port"));

    restored(&mut guest, Deadlines::default());
    // §5.10.6.7: first the event, and nothing before the driver took notice.
    guest.expect_silence();
    let event = guest.rings[EVENT].take(&guest.memory);
    assert_eq!(event, Some((0, 4)));
    let id: u32 = guest.memory.read_obj(GuestAddress(data(EVENT, 0))).unwrap();
    assert_eq!(id, 0);
    let (_ours, theirs) = pair();
    guest.device.connect(1, 55, theirs);
    guest.expect_silence();
    assert!(!guest.is_ready(0));

    // The driver gives the buffer back, and is asked to kick for it.
    let old = guest.rings[EVENT].avail;
    guest.rings[EVENT].offer(&guest.memory, 0);
    assert!(guest.rings[EVENT].wants_kick(&guest.memory, old));
    let mut resets = Vec::new();
    for _ in 0..3 {
        let (reset, _) = guest.expect(Op::Rst);
        resets.push((reset.src_port, reset.dst_port));
    }
    resets.sort_unstable();
    assert_eq!(resets, open);
    // New connections work, on ports that were not used before.
    let (request, _) = guest.expect(Op::Request);
    assert!(open.iter().all(|(host, _)| *host != request.src_port));
    // Old ones do not.
    guest.raw(Op::CreditUpdate, 80, a.guest);
    guest.expect(Op::Rst);
}

#[test]
fn event_waits_for_a_buffer() {
    let mut guest = Guest::new();
    // The driver has all its event buffers for itself just now.
    while guest.rings[EVENT].take(&guest.memory).is_some() {}
    let mut queues = guest.device.reset();
    let spent = guest.rings[EVENT].queue(FEATURES);
    guest.rings[EVENT].publish(&guest.memory, 0);
    guest.rings[EVENT].avail = 0;
    queues[EVENT] = spent;
    guest
        .device
        .restore(&DeviceState::Vsock(VsockState::default()))
        .unwrap();
    guest.activate_with(queues, FEATURES);
    guest.expect_silence();
    assert_eq!(guest.rings[EVENT].take(&guest.memory), None);
    guest.rings[EVENT].describe(&guest.memory, 3, (data(EVENT, 3), 4, WRITE, 0));
    guest.rings[EVENT].offer(&guest.memory, 3);
    assert!(guest.rings[EVENT].wants_kick(&guest.memory, 0));
    guest.settle();
    assert_eq!(guest.rings[EVENT].take(&guest.memory), Some((3, 4)));
}

#[test]
fn driver_that_ignores_the_event_is_not_waited_for_for_ever() {
    let mut guest = Guest::new();
    let (a, _host) = guest.connect_out(80, 1000);
    let deadlines = Deadlines {
        transport_reset: Duration::from_millis(30),
        ..Deadlines::default()
    };
    restored(&mut guest, deadlines);
    guest.expect_silence();
    guest.run_until(|guest| !guest.inbox.is_empty());
    assert_eq!(guest.expect(Op::Rst).0.dst_port, a.guest);
}

#[test]
fn a_second_snapshot_before_the_resets_were_sent_has_them_too() {
    let mut guest = Guest::new();
    let (_a, _host) = guest.connect_out(80, 1000);
    let first = guest.device.save();
    restored(&mut guest, Deadlines::default());
    guest.settle();
    assert_eq!(guest.device.save(), first);
    assert_eq!(guest.device.queue_states().len(), 3);
    assert_eq!(guest.rings[RX].size, 256);
}

#[test]
fn states_that_cannot_be_are_refused() {
    let mut guest = Guest::bare(Deadlines::default());
    let error = guest.device.restore(&DeviceState::Entropy).unwrap_err();
    assert!(matches!(error, RestoreError::WrongDevice { .. }));
    let many = VsockState {
        open: vec![(1, 1); MAX_CONNECTIONS + MAX_PENDING_RSTS + 1],
        next_port: 0,
    };
    let error = guest.device.restore(&DeviceState::Vsock(many)).unwrap_err();
    assert!(matches!(error, RestoreError::Invalid { .. }));
    for next_port in [0, u32::MAX] {
        let odd = VsockState {
            open: vec![(0, 0), (u32::MAX, u32::MAX)],
            next_port,
        };
        guest.device.restore(&DeviceState::Vsock(odd)).unwrap();
    }
}
