//! What a guest sends on its network, as the stack behind its card takes it. The same
//! runs over the corpus in `devices/tests/fuzz_corpus.rs`.

use std::io::Write;
use std::os::unix::net::UnixStream;

use flashpan_devices::net::{NetEvent, Offload, Stack};
use flashpan_protocol::network::{Link, Refusal};

/// More flows than one input can make.
const MOST: usize = 64;

/// Frames, each with its length in two bytes before it; the first of them, and its bits
/// from the second on, say what becomes of flows, and whether the host has begun one to which
/// frames are answers.
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
    let opened = (choice & 32 != 0).then(|| open(&mut stack));
    let mut rest = rest;
    while let [low, high, more @ ..] = rest {
        let len = usize::from(u16::from_le_bytes([*low, *high])).min(more.len());
        let (frame, after) = more.split_at(len);
        rest = after;
        match &opened {
            Some((_, sent)) => stack.input(&answer(frame, *sent)),
            None => stack.input(frame),
        }
        step(&mut stack, *choice, &mut held);
    }
    step(&mut stack, *choice, &mut held);
    assert!(held.len() <= data.len() + MOST);
}

/// The port of the guest to which the host connects.
const PORT: u16 = 80;

/// Where a frame without options of IP has the acknowledgement of TCP.
const ACKNOWLEDGED: std::ops::Range<usize> = 42..46;

/// Begins a connection to the guest; the host's end, and the number of its SYN.
fn open(stack: &mut Stack) -> (UnixStream, u32) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    // What it has to say waits for the guest.
    (&ours).write_all(&[7; 4096]).unwrap();
    stack.open(1, PORT, theirs);
    stack.run();
    let syn = stack.frame().unwrap().bytes.get(38..42).unwrap();
    let sent = u32::from_be_bytes(syn.try_into().unwrap());
    stack.frame_done();
    (ours, sent)
}

/// A frame whose acknowledgement counts from that SYN on, as one has to that is to answer it.
fn answer(frame: &[u8], sent: u32) -> Vec<u8> {
    let mut frame = frame.to_vec();
    if let Some(acknowledged) = frame.get_mut(ACKNOWLEDGED) {
        let said = u32::from_be_bytes((&*acknowledged).try_into().unwrap());
        acknowledged.copy_from_slice(&said.wrapping_add(sent).to_be_bytes());
    }
    frame
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
