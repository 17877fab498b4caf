//! Packets and rings of any content: no panic, bounded memory, no spinning.

use std::io::{Read, Write};

use proptest::prelude::*;

use super::super::packet::{HEADER_LEN, Header, MAX_PAYLOAD};
use super::super::{MAX_CONNECTIONS, MAX_PENDING_RSTS, VsockEvent};
use super::driver::{GUEST_CID, Guest, RX, TX};
use crate::virtio::VirtioDevice;

/// Mostly near what means something.
fn any_header() -> impl Strategy<Value = Header> {
    let cid = |good| prop_oneof![20 => Just(good), 1 => any::<u64>()];
    let port = || prop_oneof![20 => 1u32..4, 1 => any::<u32>()];
    let count = || prop_oneof![0u32..5, Just(u32::MAX), 0u32..300_000, any::<u32>()];
    (
        (cid(GUEST_CID), cid(2), port(), port()),
        prop_oneof![20 => 0u32..100, 2 => Just(MAX_PAYLOAD + 1), 1 => any::<u32>()],
        prop_oneof![20 => Just(1u16), 1 => any::<u16>()],
        prop_oneof![20 => 1u16..8, 1 => any::<u16>()],
        (0u32..5, count(), count()),
    )
        .prop_map(
            |(address, len, kind, raw_op, (flags, buf_alloc, fwd_cnt))| {
                let (src_cid, dst_cid, src_port, dst_port) = address;
                Header {
                    src_cid,
                    dst_cid,
                    src_port,
                    dst_port,
                    len,
                    kind,
                    raw_op,
                    flags,
                    buf_alloc,
                    fwd_cnt,
                }
            },
        )
}

/// One step of a guest, or of the host.
#[derive(Debug, Clone)]
enum Step {
    Packet(Header, usize, Vec<usize>),
    Descriptor(usize, u16, (u64, u32, u16, u16)),
    Offer(usize, u16),
    Index(usize, u16),
    Answer(bool),
    HostWrites(usize),
    HostReads,
    HostCloses,
    HostConnects(u32),
    Reset,
}

fn any_step() -> impl Strategy<Value = Step> {
    let queue = || prop_oneof![Just(RX), Just(TX)];
    let address = prop_oneof![any::<u64>(), 0u64..(64 << 20)];
    let len = prop_oneof![any::<u32>(), 0u32..5000];
    prop_oneof![
        40 => (any_header(), 0usize..100, prop::collection::vec(0usize..150, 0..3))
            .prop_map(|(header, len, cuts)| Step::Packet(header, len, cuts)),
        1 => (queue(), 0u16..256, (address, len, 0u16..8, 0u16..300))
            .prop_map(|(queue, at, descriptor)| Step::Descriptor(queue, at, descriptor)),
        1 => (queue(), 0u16..300).prop_map(|(queue, head)| Step::Offer(queue, head)),
        1 => (queue(), any::<u16>()).prop_map(|(queue, index)| Step::Index(queue, index)),
        8 => any::<bool>().prop_map(Step::Answer),
        8 => (0usize..20_000).prop_map(Step::HostWrites),
        4 => Just(Step::HostReads),
        2 => Just(Step::HostCloses),
        4 => (0u32..5).prop_map(Step::HostConnects),
        1 => Just(Step::Reset),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..Default::default() })]

    #[test]
    fn nothing_that_a_guest_sends_breaks_the_device(steps in prop::collection::vec(any_step(), 1..80)) {
        let mut guest = Guest::new();
        let mut streams = Vec::new();
        let mut asked = Vec::new();
        let mut buffer = vec![0; 100_000];
        for step in steps {
            match step {
                Step::Packet(header, len, cuts) => {
                    guest.transmit_cut(&header, &vec![7; len], &cuts);
                }
                Step::Descriptor(queue, at, descriptor) => {
                    guest.rings[queue].describe(&guest.memory, at, descriptor);
                }
                Step::Offer(queue, head) => guest.rings[queue].offer(&guest.memory, head),
                Step::Index(queue, index) => guest.rings[queue].publish(&guest.memory, index),
                Step::Answer(yes) => {
                    if let Some(id) = asked.pop() {
                        if yes {
                            guest.device.accept(id);
                        } else {
                            guest.device.reject(id);
                        }
                    }
                }
                Step::HostWrites(len) => {
                    for stream in &mut streams {
                        let stream: &mut std::os::unix::net::UnixStream = stream;
                        let _ = stream.write(&buffer[..len]);
                    }
                }
                Step::HostReads => {
                    for stream in &mut streams {
                        let _ = stream.read(&mut buffer);
                    }
                }
                Step::HostCloses => drop(streams.pop()),
                Step::HostConnects(port) => {
                    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
                    ours.set_nonblocking(true).unwrap();
                    streams.push(ours);
                    guest.device.connect(1, port, theirs);
                }
                Step::Reset => {
                    guest.device.reset();
                    guest.interrupt.clear();
                    let fresh = Guest::new();
                    guest.rings = fresh.rings.clone();
                    guest.memory = fresh.memory.clone();
                    let queues = guest.rings.iter().map(|ring| ring.queue(super::driver::FEATURES));
                    let mut queues: Vec<_> = queues.collect();
                    for (queue, ring) in queues.iter_mut().zip(&guest.rings) {
                        use virtio_queue::QueueT;
                        queue.set_next_used(ring.used);
                    }
                    guest.activate_with(queues, super::driver::FEATURES);
                }
            }
            guest.device.run();
            let mut runs = 0;
            while guest.is_ready(0) {
                guest.device.run_streams();
                runs += 1;
                prop_assert!(runs < 200, "the event loop spins");
            }
            while let Ok(event) = guest.host.try_recv() {
                if let VsockEvent::Incoming { id, stream, .. } = event {
                    stream.set_nonblocking(true).unwrap();
                    asked.push(id);
                    streams.push(stream);
                }
            }
            let handler = guest.device.handler();
            prop_assert!(handler.resets.len() <= MAX_PENDING_RSTS);
            prop_assert!(handler.table.len() <= MAX_CONNECTIONS);
        }
    }

    #[test]
    fn headers_survive_their_encoding(bytes in prop::collection::vec(any::<u8>(), HEADER_LEN)) {
        let bytes: [u8; HEADER_LEN] = bytes.try_into().unwrap();
        prop_assert_eq!(Header::parse(&bytes).to_bytes(), bytes);
    }
}
