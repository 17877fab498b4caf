//! Disks with limits, by a clock of the test's. The timer is the host's: it goes
//! off whether that clock has moved or not.

use std::num::NonZeroU64;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use flashpan_protocol::control::{IoRate, Rate};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::*;
use crate::rate_limit::Throttle;
use crate::ring::Kicked;

/// A clock that stands until it is told to move.
#[derive(Clone, Default)]
struct Clock {
    ms: Arc<AtomicU64>,
    /// By how much it moves whenever somebody looks.
    step: u64,
}

impl Clock {
    fn pass(&self, ms: u64) {
        self.ms.fetch_add(ms, Ordering::SeqCst);
    }

    fn throttle(&self, rate: IoRate) -> Option<Throttle> {
        let (start, ms) = (Instant::now(), Arc::clone(&self.ms));
        let step = self.step;
        let now = move || start + Duration::from_millis(ms.fetch_add(step, Ordering::SeqCst));
        Throttle::with_clock(rate, Box::new(now)).unwrap()
    }
}

fn rate(per_second: u64, burst: u64) -> Option<Rate> {
    let number = |n| NonZeroU64::new(n).unwrap();
    Some(Rate {
        per_second: number(per_second),
        burst: number(burst),
    })
}

fn operations(per_second: u64, burst: u64) -> IoRate {
    IoRate {
        bytes: None,
        operations: rate(per_second, burst),
    }
}

fn bytes(per_second: u64, burst: u64) -> IoRate {
    IoRate {
        bytes: rate(per_second, burst),
        operations: None,
    }
}

/// A limited disk, its clock, and what it was asked.
struct Limited {
    fixture: Fixture,
    clock: Clock,
    asked: Vec<(u16, u64, Segment, Segment)>,
    answered: usize,
}

impl Limited {
    fn new(features: u64, rate: IoRate) -> Self {
        Self::with_clock(features, rate, Clock::default())
    }

    fn with_clock(features: u64, rate: IoRate, clock: Clock) -> Self {
        let file = image();
        let device = block(&file, false).throttled(clock.throttle(rate));
        let driver = Driver::new(device, features);
        Self {
            fixture: Fixture { driver, file },
            clock,
            asked: Vec::new(),
            answered: 0,
        }
    }

    /// Asks for one sector after the other, and lets the device do what it may.
    fn ask(&mut self, sectors: std::ops::Range<u64>) {
        for sector in sectors {
            let driver = &mut self.fixture.driver;
            let head = driver.readable(&header(IN, sector));
            let (data, status) = (driver.writable(512), driver.writable(1));
            let head = driver.send(0, &[head, data, status]);
            self.asked.push((head, sector, data, status));
        }
        self.fixture.driver.machine.run();
    }

    /// How many more requests were answered, in order and rightly. Where any were,
    /// the driver was told.
    fn answers(&mut self) -> usize {
        let driver = &mut self.fixture.driver;
        let before = self.answered;
        while let Some((used, len)) = driver.rings[0].collect() {
            let (head, sector, data, status) = self.asked[self.answered];
            assert_eq!((used, len), (head, 513));
            assert_eq!(driver.content(status), [OK]);
            assert_eq!(driver.content(data), [sector as u8 + 1; 512]);
            self.answered += 1;
        }
        let new = self.answered - before;
        assert_eq!(driver.machine.interrupts() > 0, new > 0);
        new
    }

    fn holds(&self) -> u64 {
        let device = self.fixture.driver.machine.device();
        device.metrics().read().holds
    }
}

/// Waits until a descriptor is readable, and leaves it so.
fn wait_for(fd: &impl AsRawFd) {
    let epoll = Epoll::new().unwrap();
    let event = EpollEvent::new(EventSet::IN, 0);
    let add = ControlOperation::Add;
    epoll.ctl(add, fd.as_raw_fd(), event).unwrap();
    let mut events = [EpollEvent::default()];
    assert_eq!(epoll.wait(60_000, &mut events).unwrap(), 1);
}

/// Features with and without `VIRTIO_F_EVENT_IDX`: the two ways of not being kicked.
const WAYS: [u64; 2] = [ALL, ALL & !(1 << 29)];

/// What the burst allows is done at once, the rest as time passes and without
/// another kick; afterwards the disk is as it was.
#[test]
fn a_limited_queue_stops_and_goes_on() {
    for features in WAYS {
        let mut disk = Limited::new(features, operations(1000, 2));
        disk.ask(0..6);
        assert_eq!(disk.answers(), 2);

        // The timer goes off, but there are no tokens.
        disk.fixture.driver.machine.wait();
        assert_eq!(disk.answers(), 0);

        disk.clock.pass(1);
        disk.fixture.driver.machine.wait();
        assert_eq!(disk.answers(), 1);

        // A long rest is worth the burst.
        disk.clock.pass(1_000_000);
        disk.fixture.driver.machine.wait();
        assert_eq!(disk.answers(), 2);
        disk.clock.pass(2);
        disk.fixture.driver.machine.wait();
        assert_eq!(disk.answers(), 1);
        assert_eq!(disk.fixture.driver.rings[0].outstanding(), 0);

        // By a kick again, and what comes when the bucket is empty by the timer.
        disk.clock.pass(1000);
        disk.ask(6..8);
        assert_eq!(disk.answers(), 2);
        disk.ask(8..9);
        assert_eq!(disk.answers(), 0);
        disk.clock.pass(1);
        disk.fixture.driver.machine.wait();
        assert_eq!(disk.answers(), 1);
    }
}

/// There are tokens again by the time that the timer would be set: it is not, and
/// the disk goes on all the same.
#[test]
fn tokens_that_come_at_the_last_moment() {
    let clock = Clock {
        step: 1,
        ..Clock::default()
    };
    let mut disk = Limited::with_clock(ALL, operations(1000, 1), clock);
    disk.ask(0..3);
    assert_eq!(disk.answers(), 3);
    assert_eq!(disk.holds(), 3);
}

/// While a bucket is empty the device is not busy, whatever the driver does.
#[test]
fn a_disk_that_waits_is_idle() {
    for features in WAYS {
        let mut disk = Limited::new(features, bytes(1, 1));
        disk.ask(0..3);
        assert_eq!(disk.answers(), 1);
        let machine = &mut disk.fixture.driver.machine;
        assert_eq!(machine.run_once(), 0);
        for _ in 0..3 {
            machine.kick(0);
            assert_eq!(machine.run(), 1);
        }
        assert_eq!(disk.answers(), 0);
        assert_eq!(disk.holds(), 1);

        // With tokens a kick is as good as the timer.
        disk.clock.pass(512_000);
        disk.fixture.driver.machine.kick(0);
        disk.fixture.driver.machine.run();
        assert_eq!(disk.answers(), 1);
    }
}

/// A request larger than the bucket is served; later ones wait until it is paid.
#[test]
fn large_requests_do_not_starve() {
    let mut disk = Limited::new(ALL, bytes(512, 512));
    assert_eq!(disk.fixture.read(0, 8 * 512).0, OK);
    let _ = disk.fixture.driver.machine.interrupts();
    disk.ask(0..1);
    let mut kick_after = |ms| {
        disk.clock.pass(ms);
        disk.fixture.driver.machine.kick(0);
        disk.fixture.driver.machine.run();
        disk.answers()
    };
    assert_eq!(kick_after(7000), 0);
    assert_eq!(kick_after(1), 1);
}

/// What each request counts for: one operation, and its data.
#[test]
fn costs() {
    type Request = fn(&mut Fixture) -> u8;
    let requests: [(&str, Request, u64); 8] = [
        ("read", |disk| disk.read(0, 512).0, 1),
        ("write", |disk| disk.write(0, &[1; 512]), 1),
        ("zeroes", |disk| disk.ranges(WRITE_ZEROES, &[(0, 1, 1)]), 1),
        ("discard", |disk| disk.ranges(DISCARD, &[(0, 8, 0)]), 0),
        ("flush", |disk| disk.request(FLUSH, 0, &[]).0, 0),
        (
            "name",
            |disk| {
                let id = disk.driver.writable(20);
                disk.request(GET_ID, 0, &[id]).0
            },
            0,
        ),
        ("nothing", |disk| disk.request(IN, 0, &[]).0, 0),
        (
            "refused",
            |disk| {
                assert_eq!(disk.read(SECTORS, 512).0, IOERR);
                OK
            },
            0,
        ),
    ];
    for (name, request, holds) in requests {
        // One byte is enough to empty this bucket, and one operation that.
        let mut disk = Limited::new(ALL, bytes(1, 1));
        assert_eq!(request(&mut disk.fixture), OK, "{name}");
        assert_eq!(disk.holds(), holds, "{name}");
        let mut disk = Limited::new(ALL, operations(1, 1));
        assert_eq!(request(&mut disk.fixture), OK, "{name}");
        assert_eq!(disk.holds(), 1, "{name}");
    }
}

/// A driver that resets the device gets nothing for it, and the timer of before
/// harms nobody (virtio 1.2 §2.4.1).
#[test]
fn a_reset_does_not_fill_the_buckets() {
    let mut disk = Limited::new(ALL, operations(1000, 1));
    disk.ask(0..3);
    assert_eq!(disk.answers(), 1);
    let machine = &mut disk.fixture.driver.machine;
    assert_eq!(machine.set_status(0), 0);
    machine.wait();

    let Fixture { driver, file } = disk.fixture;
    let driver = driver.restart(ALL);
    disk.fixture = Fixture { driver, file };
    disk.asked.truncate(1);
    disk.ask(3..5);
    assert_eq!(disk.answers(), 0);
    disk.clock.pass(1);
    disk.fixture.driver.machine.wait();
    assert_eq!(disk.answers(), 1);
}

/// A timer that goes off while the machine stands still has the device go on
/// afterwards, not before.
#[test]
fn a_paused_machine_goes_on_where_it_was() {
    let mut disk = Limited::new(ALL, operations(1000, 1));
    disk.ask(0..2);
    assert_eq!(disk.answers(), 1);
    let machine = &mut disk.fixture.driver.machine;
    machine.stand_still();
    let timer = machine.device().timer().unwrap();
    wait_for(&timer);
    disk.clock.pass(1);
    assert_eq!(machine.run(), 0);
    assert_eq!(disk.answers(), 0);

    let machine = &mut disk.fixture.driver.machine;
    machine.go_on();
    machine.wait();
    assert_eq!(disk.answers(), 1);
}

/// Requests that wait go with a disk that is saved, and are served where it is
/// restored.
#[test]
fn waiting_requests_survive_a_restore() {
    let mut disk = Limited::new(ALL, bytes(1, 1));
    disk.ask(0..3);
    assert_eq!(disk.answers(), 1);
    let device = block(&disk.fixture.file, false).throttled(disk.clock.throttle(bytes(512, 1024)));
    let Fixture { driver, file } = disk.fixture;
    let mut driver = driver.migrate(device);
    driver.machine.run();
    disk.fixture = Fixture { driver, file };
    assert_eq!(disk.answers(), 2);
}

/// By the host's clock, with nothing of the test's in it.
#[test]
fn real_time_passes() {
    let file = image();
    let device = block(&file, false).limited(operations(100, 1), "disk");
    let driver = Driver::new(device.unwrap(), ALL);
    let mut disk = Limited {
        fixture: Fixture { driver, file },
        clock: Clock::default(),
        asked: Vec::new(),
        answered: 0,
    };
    let start = Instant::now();
    disk.ask(0..6);
    let mut answered = disk.answers();
    while answered < 6 {
        disk.fixture.driver.machine.wait();
        answered += disk.answers();
    }
    // The first one at once, the second when there is a part of a token.
    assert!(start.elapsed() >= Duration::from_millis(40));
}

#[test]
fn a_disk_without_limits_has_no_timer() {
    let device = block(&image(), false);
    let device = device.limited(IoRate::default(), "disk").unwrap();
    assert_eq!(device.timer(), None);
}
