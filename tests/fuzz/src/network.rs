//! What a guest sends on its network, as the stack behind its card takes it. The same
//! runs over the corpus in `devices/tests/fuzz_corpus.rs`.

use flashpan_devices::net::{NetEvent, Offload, Stack};
use flashpan_protocol::network::{Link, Refusal};

/// More flows than one input can make.
const MOST: usize = 64;

/// Frames, each with its length in two bytes before it; the first of them, and its bits
/// from the second on, say what becomes of flows.
pub fn network(data: &[u8]) {
    let [choice, rest @ ..] = data else {
        return;
    };
    let offload = Offload {
        checksum: choice & 1 != 0,
        tso4: choice & 1 != 0,
        tso6: choice & 1 != 0,
    };
    let mut stack = Stack::new(Link::standard(1500), offload).unwrap();
    // The host's ends stay open, unless the choice is otherwise.
    let mut held = Vec::new();
    let mut rest = rest;
    while let [low, high, more @ ..] = rest {
        let len = usize::from(u16::from_le_bytes([*low, *high])).min(more.len());
        let (frame, after) = more.split_at(len);
        rest = after;
        stack.input(frame);
        step(&mut stack, *choice, &mut held);
    }
    step(&mut stack, *choice, &mut held);
    assert!(held.len() <= data.len() + MOST);
}

/// Lets the stack do what it has to do, answers it, and takes all frames.
fn step(stack: &mut Stack, choice: u8, held: &mut Vec<NetEvent>) {
    for _ in 0..4 {
        stack.poll();
        stack.run();
        while let Some(frame) = stack.frame() {
            // What goes out is a frame: at least a header, at most a packet.
            assert!((14..=14 + 65_535).contains(&frame.bytes.len()));
            assert!(frame.header.segmentation.is_none() || frame.header.checksum.is_some());
            stack.frame_done();
        }
        let events: Vec<_> = stack.events().collect();
        for event in events {
            if let NetEvent::Asked { id, .. } = &event {
                match choice >> 2 & 3 {
                    0 => stack.refuse(*id, Refusal::Reset),
                    1 => stack.refuse(*id, Refusal::Host),
                    _ => stack.accept(*id),
                }
            }
            if choice & 16 == 0 {
                held.push(event);
            }
        }
        assert!(stack.wants_input(), "all frames were taken");
    }
}
