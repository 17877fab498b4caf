//! One connection against a model: plain 64-bit counts of what both sides did.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_lossless
)] // The counts wrap on purpose.

use proptest::prelude::*;

use super::super::packet::MAX_PAYLOAD;
use super::*;

const PORTS: Ports = Ports { host: 1, guest: 2 };
const BUF_ALLOC: u32 = 256 * 1024;

/// What a guest or the host may do next.
#[derive(Debug, Clone)]
enum Step {
    /// The guest sends this much, whether it may or not.
    GuestSends(u32),
    /// The host's stream takes this much of what is kept.
    HostTakes(usize),
    /// The host has this much for the guest; it is sent as far as there is credit.
    HostSends(u32),
    /// The guest uses up this much, and has a buffer of that size.
    GuestReads(u32, u32),
    /// A packet with counts out of thin air.
    GuestLies(u32, u32),
    GuestShuts(u32),
    HostSendsNoMore,
    HostReceivesNoMore,
    /// A control packet finds a receive buffer.
    Deliver,
}

fn any_step() -> impl Strategy<Value = Step> {
    let len = || prop_oneof![0u32..10, 0u32..=MAX_PAYLOAD];
    let window = prop_oneof![Just(0u32), 1u32..5000, Just(BUF_ALLOC), any::<u32>()];
    prop_oneof![
        10 => len().prop_map(Step::GuestSends),
        10 => (0usize..200_000).prop_map(Step::HostTakes),
        10 => len().prop_map(Step::HostSends),
        10 => (len(), window).prop_map(|(read, window)| Step::GuestReads(read, window)),
        3 => (any::<u32>(), any::<u32>()).prop_map(|(a, b)| Step::GuestLies(a, b)),
        1 => (0u32..4).prop_map(Step::GuestShuts),
        1 => Just(Step::HostSendsNoMore),
        1 => Just(Step::HostReceivesNoMore),
        10 => Just(Step::Deliver),
    ]
}

#[derive(Debug, Default)]
struct Model {
    guest_sent: u64,
    host_took: u64,
    host_sent: u64,
    guest_read: u64,
    /// The last true promise of the guest.
    window: u64,
    /// `fwd_cnt` as the guest last saw it.
    seen_fwd_cnt: u64,
    told_shut: u32,
}

fn packet(op: Op, flags: u32, len: u32, counts: (u32, u32)) -> Header {
    Header {
        src_port: PORTS.guest,
        dst_port: PORTS.host,
        raw_op: op.to_wire(),
        flags,
        len,
        kind: TYPE_STREAM,
        buf_alloc: counts.0,
        fwd_cnt: counts.1,
        ..Header::default()
    }
}

/// An established connection whose counters are about to wrap.
fn established(start: u32) -> Connection {
    let request = packet(Op::Request, 0, 0, (BUF_ALLOC, 0));
    let mut connection = Connection::incoming(&request, BUF_ALLOC);
    assert!(connection.accept());
    let response = connection.due().unwrap();
    assert_eq!(response.op, Op::Response);
    connection.sent(response);
    connection.rx_cnt = start;
    connection.fwd_cnt = start;
    connection.told_fwd_cnt = start;
    connection.tx_cnt = start;
    connection.peer_fwd_cnt = start;
    connection
}

/// Gives the next control packet to the guest of the model.
fn deliver(connection: &mut Connection, model: &mut Model) -> bool {
    let Some(control) = connection.due() else {
        return false;
    };
    assert_ne!(control.op, Op::Rw);
    if control.op == Op::Shutdown {
        assert_eq!(
            control.flags & model.told_shut,
            model.told_shut,
            "taken back"
        );
        assert_ne!(control.flags, model.told_shut, "said twice");
        model.told_shut = control.flags;
    }
    connection.sent(control);
    model.seen_fwd_cnt = model.host_took;
    true
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

    #[test]
    fn counts_agree_with_the_model(
        start in prop_oneof![Just(0u32), u32::MAX - 300_000..=u32::MAX],
        steps in prop::collection::vec(any_step(), 1..200),
    ) {
        let mut connection = established(start);
        let mut model = Model { window: BUF_ALLOC.into(), ..Model::default() };
        let mut lied = false;
        for step in steps {
            if connection.phase() != Phase::Established {
                break;
            }
            let fwd_cnt = start.wrapping_add(model.guest_read as u32);
            let counts = (model.window as u32, fwd_cnt);
            match step {
                Step::GuestSends(len) => {
                    let reaction = connection.receive(&packet(Op::Rw, 0, len, counts));
                    lied = false;
                    prop_assert_eq!(reaction, Reaction::Data);
                    let held = model.guest_sent - model.host_took + u64::from(len);
                    let may = held <= BUF_ALLOC.into() && connection.guest_shut & SHUTDOWN_SEND == 0;
                    prop_assert_eq!(connection.admit(len), may);
                    if !may {
                        // The handler ends it here.
                        return Ok(());
                    }
                    model.guest_sent += u64::from(len);
                    if connection.host_receives() {
                        connection.keep(&vec![0; len as usize]);
                    } else {
                        connection.forwarded(len);
                        model.host_took += u64::from(len);
                    }
                }
                Step::HostTakes(count) => {
                    let count = count.min(connection.buffer.len());
                    connection.forwarded_kept(count);
                    model.host_took += count as u64;
                }
                Step::HostSends(len) => {
                    if connection.reads_host() {
                        let len = len.min(connection.credit());
                        connection.sent_data(len);
                        model.host_sent += u64::from(len);
                        model.seen_fwd_cnt = model.host_took;
                        if !lied && len > 0 {
                            prop_assert!(model.host_sent - model.guest_read <= model.window);
                        }
                        if connection.credit() == 0 {
                            connection.stalled();
                        }
                    }
                }
                Step::GuestReads(read, window) => {
                    let read = u64::from(read).min(model.host_sent - model.guest_read);
                    model.guest_read += read;
                    model.window = window.into();
                    let fwd_cnt = start.wrapping_add(model.guest_read as u32);
                    let reaction = connection.receive(&packet(Op::CreditUpdate, 0, 0, (window, fwd_cnt)));
                    lied = false;
                    prop_assert_eq!(reaction, Reaction::None);
                }
                Step::GuestLies(buf_alloc, fwd_cnt) => {
                    // The counts may be anything; they must only not be believed
                    // when they contradict what was sent.
                    let before = connection.peer_fwd_cnt;
                    connection.receive(&packet(Op::CreditUpdate, 0, 0, (buf_alloc, fwd_cnt)));
                    let step = connection.peer_fwd_cnt.wrapping_sub(before);
                    prop_assert!(u64::from(step) <= model.host_sent);
                    prop_assert!(u64::from(connection.in_flight()) <= model.host_sent);
                    lied = true;
                    // From here on the guest's count is what it said.
                    model.guest_read = model.host_sent - u64::from(connection.in_flight());
                }
                Step::GuestShuts(flags) => {
                    let reaction = connection.receive(&packet(Op::Shutdown, flags, 0, counts));
                    let finished = connection.guest_shut == SHUTDOWN_BOTH;
                    let expected = if finished { Reaction::Finished } else { Reaction::GuestShutdown };
                    prop_assert_eq!(reaction, expected);
                    if finished {
                        return Ok(());
                    }
                }
                Step::HostSendsNoMore => connection.host_sends_no_more(),
                Step::HostReceivesNoMore => {
                    connection.host_receives_no_more();
                    model.host_took = model.guest_sent;
                }
                Step::Deliver => {
                    deliver(&mut connection, &mut model);
                }
            }

            // Memory is what was promised at most, and is what the counts say.
            let held = model.guest_sent - model.host_took;
            prop_assert_eq!(connection.buffer.len() as u64, held);
            prop_assert!(held <= BUF_ALLOC.into());
            prop_assert_eq!(connection.fwd_cnt, start.wrapping_add(model.host_took as u32));

            // Once everything was passed on and due packets were delivered, a
            // guest that keeps to any window can send again.
            if held == 0 && !lied {
                while deliver(&mut connection, &mut model) {}
                if connection.phase() == Phase::Established {
                    let window = model.window.min(BUF_ALLOC.into());
                    let thinks_held = model.guest_sent - model.seen_fwd_cnt;
                    prop_assert!(window == 0 || thinks_held < window || thinks_held == 0);
                }
            }
        }
    }
}

#[test]
fn connection_of_the_host_goes_through_its_phases() {
    // virtio 1.2 §5.10.6.5
    let mut connection = Connection::outgoing(PORTS, BUF_ALLOC);
    assert!(!connection.is_known_to_guest());
    assert!(!connection.accept());
    let request = connection.due().unwrap();
    assert_eq!(request.op, Op::Request);
    connection.sent(request);
    assert!(connection.is_known_to_guest());
    assert_eq!(connection.due(), None);
    let response = packet(Op::Response, 0, 0, (100, 0));
    assert_eq!(connection.receive(&response), Reaction::Connected);
    assert_eq!(connection.credit(), 100);
    connection.host_sends_no_more();
    connection.host_receives_no_more();
    let shutdown = connection.due().unwrap();
    assert_eq!((shutdown.op, shutdown.flags), (Op::Shutdown, SHUTDOWN_BOTH));
    connection.sent(shutdown);
    assert_eq!(connection.phase(), Phase::Closing);
    assert_eq!(connection.due(), None);
    let rst = packet(Op::Rst, 0, 0, (0, 0));
    assert_eq!(connection.receive(&rst), Reaction::Gone);
}

#[test]
fn every_packet_has_one_meaning_in_every_phase() {
    let connecting = || {
        let mut connection = Connection::outgoing(PORTS, BUF_ALLOC);
        connection.sent(connection.due().unwrap());
        connection
    };
    let asked = || Connection::incoming(&packet(Op::Request, 0, 0, (9, 0)), BUF_ALLOC);
    let closing = || {
        let mut connection = established(0);
        connection.host_sends_no_more();
        connection.host_receives_no_more();
        connection.sent(connection.due().unwrap());
        connection
    };
    use Reaction::{Connected, Data, Finished, Gone, None, Violation};
    // In the order of the operations, SHUTDOWN of both directions.
    let table: [(&dyn Fn() -> Connection, [Reaction; 8]); 4] = [
        (
            &asked,
            [
                Violation, Violation, Violation, Gone, Violation, Violation, Violation, Violation,
            ],
        ),
        (
            &connecting,
            [
                Violation, Violation, Connected, Gone, Violation, Violation, Violation, Violation,
            ],
        ),
        (
            &|| established(0),
            [
                Violation, Violation, Violation, Gone, Finished, Data, None, None,
            ],
        ),
        (
            &closing,
            [
                Violation, Violation, Violation, Gone, Finished, None, None, None,
            ],
        ),
    ];
    for (make, reactions) in table {
        for (raw_op, expected) in (0..).zip(reactions) {
            let mut connection = make();
            let phase = connection.phase();
            let mut header = packet(Op::Rst, SHUTDOWN_BOTH, 0, (9, 0));
            header.raw_op = raw_op;
            assert_eq!(connection.receive(&header), expected, "{phase:?} {raw_op}");
        }
    }
}

#[test]
fn answer_to_a_question_that_was_not_asked_yet_is_an_offence() {
    let mut connection = Connection::outgoing(PORTS, BUF_ALLOC);
    let response = packet(Op::Response, 0, 0, (100, 0));
    assert_eq!(connection.receive(&response), Reaction::Violation);
}

#[test]
fn empty_buffers_keep_no_memory() {
    let mut connection = established(0);
    assert!(connection.admit(200_000));
    connection.keep(&vec![1; 200_000]);
    connection.forwarded_kept(200_000);
    assert_eq!(connection.buffer.capacity(), 0);
}
