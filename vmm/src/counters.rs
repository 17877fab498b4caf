//! How often the guest left for the VMM, and why.
//!
//! Counts are deterministic enough to be budgets in tests where milliseconds
//! are not.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use flashpan_devices::transport::register_name;
use flashpan_protocol::control::ExitCount;

use crate::layout::{MAX_DEVICES, MMIO_STRIDE};
use crate::vm::lock;

/// First offset of the device's own configuration space.
const CONFIG: u64 = 0x100;
/// Counters of one device: a register each, then the configuration space.
const REGISTERS: usize = 65;
/// I/O ports with a counter of their own; the rest share a locked map.
const FAST_PORTS: [(u16, &str); 12] = [
    (0x3f8, "serial data"),
    (0x3f9, "serial IER"),
    (0x3fa, "serial IIR/FCR"),
    (0x3fb, "serial LCR"),
    (0x3fc, "serial MCR"),
    (0x3fd, "serial LSR"),
    (0x3fe, "serial MSR"),
    (0x3ff, "serial SCR"),
    (0x60, "i8042 data"),
    (0x64, "i8042 command"),
    (flashpan_protocol::phase::PHASE_PORT, "phase"),
    (flashpan_protocol::phase::EXIT_PORT, "exit"),
];

/// Ports of the slow map; what a guest does to any others is counted together,
/// so that it cannot make us keep more.
const MAX_OTHER_PORTS: usize = 64;
/// Longest list, so that it fits a packet of the control socket whatever the
/// guest touched: an entry has 60 bytes at most.
const MAX_LISTED: usize = 512;

/// Which way an access goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The guest reads.
    Read,
    /// The guest writes.
    Write,
}

#[derive(Debug, Default)]
struct Pair {
    reads: AtomicU64,
    writes: AtomicU64,
}

impl Pair {
    fn add(&self, direction: Direction) {
        let counter = match direction {
            Direction::Read => &self.reads,
            Direction::Write => &self.writes,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn list(&self, kind: [&str; 2], detail: &str, counts: &mut Vec<ExitCount>) {
        for (reason, counter) in kind.into_iter().zip([&self.reads, &self.writes]) {
            push(counts, reason, detail, counter.load(Ordering::Relaxed));
        }
    }
}

/// The counters of a VM, shared by its vCPU threads.
#[derive(Debug)]
pub struct Counters {
    ports: [Pair; FAST_PORTS.len()],
    mmio: Vec<[Pair; REGISTERS]>,
    unmapped: Pair,
    /// Ports without a counter of their own; at most [`MAX_OTHER_PORTS`].
    other_ports: Mutex<BTreeMap<u16, [u64; 2]>>,
    /// All ports that found no room there.
    more_ports: Pair,
    /// Returns from KVM_RUN because of a signal.
    interrupted: AtomicU64,
    names: Vec<String>,
}

impl Counters {
    /// Counters for virtio devices of these names, in order of their slots.
    #[must_use]
    pub fn new(names: Vec<String>) -> Self {
        let mmio = names
            .iter()
            .take(MAX_DEVICES)
            .map(|_| std::array::from_fn(|_| Pair::default()));
        Self {
            ports: std::array::from_fn(|_| Pair::default()),
            mmio: mmio.collect(),
            unmapped: Pair::default(),
            other_ports: Mutex::default(),
            more_ports: Pair::default(),
            interrupted: AtomicU64::new(0),
            names,
        }
    }

    /// Counts an access to an I/O port.
    pub fn port(&self, port: u16, direction: Direction) {
        let fast = FAST_PORTS.iter().position(|(number, _)| *number == port);
        if let Some(pair) = fast.and_then(|index| self.ports.get(index)) {
            pair.add(direction);
            return;
        }
        let mut others = lock(&self.other_ports);
        if others.len() >= MAX_OTHER_PORTS && !others.contains_key(&port) {
            self.more_ports.add(direction);
            return;
        }
        let [reads, writes] = others.entry(port).or_default();
        let count = match direction {
            Direction::Read => reads,
            Direction::Write => writes,
        };
        *count = count.saturating_add(1);
    }

    /// Counts an access to a virtio device, or to nothing at all.
    pub fn mmio(&self, slot: Option<(usize, u64)>, direction: Direction) {
        let pair = slot.and_then(|(slot, offset)| {
            let register = usize::try_from(offset.min(CONFIG) / 4).unwrap_or(REGISTERS);
            self.mmio.get(slot)?.get(register)
        });
        pair.unwrap_or(&self.unmapped).add(direction);
    }

    /// Counts a return from `KVM_RUN` that a signal caused.
    pub fn interrupted(&self) {
        self.interrupted.fetch_add(1, Ordering::Relaxed);
    }

    /// All counters that are not zero, most frequent first. The least frequent
    /// are summed up where there are more than 512.
    #[must_use]
    pub fn list(&self) -> Vec<ExitCount> {
        let mut counts = Vec::new();
        for ((_, name), pair) in FAST_PORTS.iter().zip(&self.ports) {
            pair.list(["pio_in", "pio_out"], name, &mut counts);
        }
        for (port, [reads, writes]) in &*lock(&self.other_ports) {
            let detail = format!("port {port:#x}");
            push(&mut counts, "pio_in", &detail, *reads);
            push(&mut counts, "pio_out", &detail, *writes);
        }
        self.more_ports
            .list(["pio_in", "pio_out"], "more ports", &mut counts);
        for (registers, device) in self.mmio.iter().zip(&self.names) {
            for (offset, pair) in (0..=CONFIG).step_by(4).zip(registers) {
                let register = if offset == CONFIG {
                    "Config"
                } else {
                    register_name(offset)
                };
                let detail = format!("{device} {register}");
                pair.list(["mmio_read", "mmio_write"], &detail, &mut counts);
            }
        }
        self.unmapped
            .list(["mmio_read", "mmio_write"], "unmapped", &mut counts);
        let interrupted = self.interrupted.load(Ordering::Relaxed);
        push(&mut counts, "interrupted", "", interrupted);
        counts.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.detail.cmp(&b.detail)));
        if counts.len() > MAX_LISTED {
            let rest = counts.split_off(MAX_LISTED - 1);
            let sum = (rest.iter()).fold(0_u64, |sum, rest| sum.saturating_add(rest.count));
            push(&mut counts, "other", "", sum);
        }
        counts
    }
}

fn push(counts: &mut Vec<ExitCount>, reason: &str, detail: &str, count: u64) {
    if count > 0 {
        counts.push(ExitCount {
            reason: reason.to_owned(),
            detail: detail.to_owned(),
            count,
        });
    }
}

const _: () = assert!(MMIO_STRIDE > CONFIG);

#[cfg(test)]
mod tests {
    use flashpan_protocol::control::{FullDisk, MAX_DISKS, NetworkUse};

    use super::*;

    #[test]
    fn accesses_are_told_apart_by_device_and_register() {
        let counters = Counters::new(vec!["blk0".to_owned(), "rng".to_owned()]);
        for _ in 0..3 {
            counters.mmio(Some((1, 0x60)), Direction::Read);
        }
        counters.mmio(Some((0, 0x104)), Direction::Read);
        counters.mmio(None, Direction::Write);
        counters.port(0x3fd, Direction::Read);
        counters.port(0x80, Direction::Write);
        let seen: Vec<_> = counters
            .list()
            .into_iter()
            .map(|c| (c.reason, c.detail, c.count))
            .collect();
        let has = |reason: &str, detail: &str, count| {
            assert!(
                seen.contains(&(reason.to_owned(), detail.to_owned(), count)),
                "{reason} {detail} {count} not in {seen:?}"
            );
        };
        assert_eq!(
            seen[0],
            ("mmio_read".to_owned(), "rng InterruptStatus".to_owned(), 3)
        );
        has("mmio_read", "blk0 Config", 1);
        has("mmio_write", "unmapped", 1);
        has("pio_in", "serial LSR", 1);
        has("pio_out", "port 0x80", 1);
        assert_eq!(seen.len(), 5);
    }

    /// A guest that touches every port and every register there is does not
    /// make a report that cannot be sent.
    #[test]
    fn the_list_fits_a_packet_whatever_the_guest_touches() {
        let names = (0..MAX_DEVICES).map(|index| format!("device{index}"));
        let counters = Counters::new(names.collect());
        for direction in [Direction::Read, Direction::Write] {
            for port in 0..=u16::MAX {
                counters.port(port, direction);
            }
            for slot in 0..MAX_DEVICES {
                for offset in (0..MMIO_STRIDE).step_by(4) {
                    counters.mmio(Some((slot, offset)), direction);
                }
            }
        }
        // As if each had been touched as often as can be counted.
        let mut exits = counters.list();
        let accesses = 2 * (0x1_0000 + MAX_DEVICES as u64 * MMIO_STRIDE / 4);
        assert_eq!(exits.iter().map(|exit| exit.count).sum::<u64>(), accesses);
        exits.iter_mut().for_each(|exit| exit.count = u64::MAX);
        let stats = flashpan_protocol::control::Stats {
            exits,
            console_dropped: u64::MAX,
            vmm_resident_kib: u64::MAX,
            full_disks: (0..MAX_DISKS)
                .map(|disk| FullDisk {
                    disk: u8::try_from(disk).unwrap(),
                    failures: u64::MAX,
                })
                .collect(),
            network: Some(NetworkUse {
                received_bytes: u64::MAX,
                received_frames: u64::MAX,
                sent_bytes: u64::MAX,
                sent_frames: u64::MAX,
                flows_asked: u64::MAX,
                flows_accepted: u64::MAX,
                flows_refused: u64::MAX,
                dropped: u64::MAX,
            }),
        };
        flashpan_protocol::control::encode(&stats).unwrap();
    }
}
