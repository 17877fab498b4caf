//! Positions in the rings, kicks and interrupts.

use std::os::fd::AsRawFd;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::*;

/// virtio 1.2 §2.7.13, §2.1.2: more available than the queue holds is nonsense;
/// the device asks to be reset and touches the queue no more.
#[test]
fn avail_idx_jumps() {
    for (position, jump, good) in [
        (0, SIZE, true),
        (0, SIZE + 1, false),
        (0, 0x8000, false),
        (0, 0xffff, false), // backwards
        (0xfffc, SIZE, true),
        (0xfffc, SIZE + 1, false),
        (100, 0xffff, false),
    ] {
        let mut pair = Pair::at(0, position);
        for slot in 0..SIZE {
            pair.driver
                .write_descriptor(slot, descriptor(DATA, 4, 0, 0));
            pair.driver.put_avail(slot, slot);
        }
        pair.driver.set_avail_idx(position.wrapping_add(jump));
        let progress = pair.serve(AMPLE);
        if good {
            assert_eq!(progress, Progress::Drained);
            assert_eq!(pair.driver.used_idx(), position.wrapping_add(jump));
            continue;
        }
        assert_eq!(progress, Progress::Broken(RingError::AvailIndexJump));
        assert!(pair.interrupt.is_reset_needed());
        assert_eq!(pair.driver.used_idx(), position);
        // It does not come to life again by itself.
        pair.driver.set_avail_idx(position.wrapping_add(1));
        assert_eq!(pair.serve(AMPLE), Progress::Drained);
        assert_eq!(pair.driver.used_idx(), position);
    }
}

/// virtio 1.2 §2.7.13.3: an available index that goes back. The used ring lies
/// over it so that it does so whenever the device asks for kicks, which would
/// keep a device busy for ever that looks again each time.
#[test]
fn chains_that_are_announced_and_taken_back() {
    let (sender, progress) = std::sync::mpsc::channel();
    // Out of the way, in case that it never ends.
    std::thread::spawn(move || {
        let mut pair = Pair::new(0);
        // `flags` of the used ring is `idx` of the available ring: "no kicks"
        // is one chain available, "kicks" is none.
        let mut queue = Queue::new(SIZE).unwrap();
        queue.set_desc_table_address(Some(BASE as u32), None);
        queue.set_avail_ring_address(Some(0x2002), None);
        queue.set_used_ring_address(Some(0x2004), None);
        queue.set_next_avail(1);
        queue.set_ready(true);
        pair.device = Ring::new(queue, 0);
        sender.send((pair.serve(AMPLE), pair.interrupt.is_reset_needed()))
    });
    let deadline = std::time::Duration::from_secs(60);
    assert_eq!(
        progress.recv_timeout(deadline).expect("an end"),
        (Progress::Broken(RingError::AvailIndexJump), true)
    );
}

/// Work that a chain's bytes do not show counts as well.
#[test]
fn what_a_chain_costs_is_taken_from_the_budget() {
    let mut pair = Pair::new(0);
    for _ in 0..4 {
        pair.driver.send(&[Segment::readable(DATA, 4)]);
    }
    let budget = Budget {
        chains: 1000,
        bytes: 100,
    };
    let mut run = |cost| {
        let served = Served {
            cost,
            ..Served::default()
        };
        let Pair {
            device,
            memory,
            interrupt,
            ..
        } = &mut pair;
        device.serve(memory, interrupt, budget, |_| Ok(served))
    };
    assert_eq!(run(100), Progress::Yielded);
    assert_eq!(run(u64::MAX), Progress::Yielded);
    assert_eq!(run(0), Progress::Drained);
    assert_eq!(pair.driver.used_idx(), 4);
}

/// virtio 1.2 §2.7.8.2: what was answered before a broken chain is returned,
/// the broken chain is not.
#[test]
fn chains_before_a_broken_one_are_answered() {
    let mut pair = Pair::new(0);
    let good = pair.driver.send(&[Segment::readable(DATA, 7)]);
    pair.driver.offer(SIZE);
    let progress = pair.serve(AMPLE);
    assert_eq!(progress, Progress::Broken(RingError::HeadOutOfRange));
    assert_eq!(pair.driver.collect(), Some((good, 7)));
    assert_eq!(pair.driver.collect(), None);
    assert!(pair.interrupts() > 0);
    assert_eq!(pair.interrupt.status(), 3, "used and changed");
}

/// virtio 1.2 §2.7.8: positions count on from 65535 to 0, with every
/// interrupt and kick that is due.
#[test]
fn event_idx_wraps() {
    for features in [0, EVENT_IDX] {
        let mut pair = Pair::at(features, 0xffe0);
        pair.serve(AMPLE);
        for round in 0..0x40 {
            let heads: Vec<_> = (0..1 + round % 3)
                .map(|_| pair.driver.send(&[Segment::readable(DATA, round)]))
                .collect();
            assert!(pair.driver.wants_kick(), "round {round}");
            assert_eq!(pair.serve(AMPLE), Progress::Drained);
            assert_eq!(pair.interrupts(), 1, "round {round}");
            for head in heads {
                assert_eq!(pair.driver.collect(), Some((head, round)));
            }
            assert_eq!(pair.driver.collect(), None);
        }
    }
}

/// virtio 1.2 §2.7.7.2: with `EVENT_IDX` the interrupt comes when the driver
/// said, not before.
#[test]
fn event_idx_suppresses_interrupts() {
    let mut pair = Pair::new(EVENT_IDX);
    pair.driver.set_used_event(3);
    for (interrupts, already) in [(0, 1), (0, 2), (0, 3), (1, 4), (0, 5)] {
        pair.driver.send(&[Segment::readable(DATA, 1)]);
        pair.serve(AMPLE);
        assert_eq!(pair.driver.used_idx(), already);
        assert_eq!(pair.interrupts(), interrupts, "after {already}");
    }
}

/// virtio 1.2 §2.7.7.2: without it the flag is what counts.
#[test]
fn no_interrupt_flag() {
    let mut pair = Pair::new(0);
    for (flags, interrupts) in [(0, 1), (1, 0), (1, 0), (0, 1)] {
        pair.driver.set_avail_flags(flags);
        pair.driver.send(&[Segment::readable(DATA, 1)]);
        pair.serve(AMPLE);
        assert_eq!(pair.interrupts(), interrupts);
    }
}

/// virtio 1.2 §2.7.10: with nothing left the device wants to be kicked; with
/// something left, which it comes back for by itself, it does not.
#[test]
fn kicks_are_wanted_when_drained() {
    for features in [0, EVENT_IDX] {
        let mut pair = Pair::new(features);
        assert_eq!(pair.serve(AMPLE), Progress::Drained);
        pair.driver.send(&[Segment::readable(DATA, 1)]);
        assert!(pair.driver.wants_kick());
        for _ in 0..3 {
            pair.driver.send(&[Segment::readable(DATA, 1)]);
        }
        let one = Budget {
            chains: 1,
            bytes: u64::MAX,
        };
        assert_eq!(pair.serve(one), Progress::Yielded);
        pair.driver.send(&[Segment::readable(DATA, 1)]);
        assert!(!pair.driver.wants_kick(), "it knows");
        while pair.serve(one) == Progress::Yielded {}
        assert_eq!(pair.driver.used_idx(), 5);
        pair.driver.send(&[Segment::readable(DATA, 1)]);
        assert!(pair.driver.wants_kick());
    }
}

/// virtio 1.2 §2.7.10: driver and device at the same time. A chain that comes
/// while the device is about to wait is seen or kicked for: nobody waits for
/// ever.
#[test]
fn no_kick_is_lost() {
    const REQUESTS: u32 = 20_000;
    for features in [0, EVENT_IDX] {
        let Pair {
            memory,
            mut driver,
            mut device,
            interrupt,
            line,
        } = Pair::new(features);
        let kick = EventFd::new(EFD_NONBLOCK).unwrap();
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::SeqCst) && wait(&kick) {
                    let answer = |chain: &mut Chain<'_>| Ok(chain.readable.len() as u32);
                    device.serve(&memory, &interrupt, AMPLE, answer);
                }
            });
            let (mut sent, mut collected) = (0, 0);
            while collected < REQUESTS {
                if sent < REQUESTS && driver.outstanding() < 3 {
                    driver.send(&[Segment::readable(DATA, 1)]);
                    sent += 1;
                    if driver.wants_kick() {
                        kick.write(1).unwrap();
                    }
                }
                while driver.collect().is_some() {
                    collected += 1;
                }
                let idle = driver.outstanding() == 3 || sent == REQUESTS;
                if idle && collected < REQUESTS && !wait(&line) {
                    break;
                }
            }
            stop.store(true, std::sync::atomic::Ordering::SeqCst);
            kick.write(1).unwrap();
            assert_eq!(
                collected, REQUESTS,
                "the rest waits for a kick or an interrupt"
            );
        });
    }
}

/// Waits until `event` was written. False if it is not for far longer than
/// anything here takes.
fn wait(event: &EventFd) -> bool {
    let epoll = Epoll::new().unwrap();
    let interest = EpollEvent::new(EventSet::IN, 0);
    epoll
        .ctl(ControlOperation::Add, event.as_raw_fd(), interest)
        .unwrap();
    let mut ready = [EpollEvent::default()];
    epoll.wait(20_000, &mut ready).unwrap() == 1 && event.read().is_ok()
}

/// A queue that never ends gives way: by number of chains and by bytes.
#[test]
fn budgets() {
    for (budget, runs) in [
        (
            Budget {
                chains: 2,
                bytes: u64::MAX,
            },
            2,
        ),
        (
            Budget {
                chains: 100,
                bytes: 11,
            },
            2,
        ),
        (
            Budget {
                chains: 100,
                bytes: 1,
            },
            4,
        ),
        (
            Budget {
                chains: 1,
                bytes: 1,
            },
            4,
        ),
    ] {
        let mut pair = Pair::new(0);
        for _ in 0..4 {
            pair.driver.send(&[Segment::readable(DATA, 10)]);
        }
        for run in 0..runs {
            assert_eq!(pair.serve(budget), Progress::Yielded, "run {run}");
        }
        assert_eq!(pair.serve(budget), Progress::Drained);
        assert_eq!(pair.driver.used_idx(), 4);
    }
}

/// virtio 1.2 §2.7.8.2: answers are entries with the head and the length; the
/// index moves after them.
#[test]
fn used_entries() {
    let mut pair = Pair::new(0);
    let heads: Vec<_> = (0..5)
        .map(|len| pair.driver.send(&[Segment::readable(DATA, len)]))
        .collect();
    pair.serve(AMPLE);
    for (len, head) in (0..).zip(heads) {
        assert_eq!(pair.driver.collect(), Some((head, len)));
    }
}

/// virtio 1.2 §2.7.8.3: what the driver writes to the used ring is nothing to
/// the device.
#[test]
fn used_ring_abuse() {
    let mut pair = Pair::new(EVENT_IDX);
    for round in 1..=20 {
        let garbage = vec![0xff; 6 + 8 * usize::from(SIZE)];
        let used = GuestAddress(pair.driver.used);
        pair.memory.write_slice(&garbage, used).unwrap();
        pair.driver.write_descriptor(0, descriptor(DATA, 4, 0, 0));
        pair.driver.offer(0);
        assert_eq!(pair.serve(AMPLE), Progress::Drained);
        assert_eq!(pair.driver.used_idx(), round);
    }
}
