//! The MP table: how a kernel without ACPI learns of its CPUs and its IO-APIC.
//!
//! Layout after Intel's MultiProcessor Specification 1.4, chapter 4; the
//! clause of each record is given where it is built.

use crate::layout::{IO_APIC, LAST_IRQ, LOCAL_APIC, MP_TABLE, MP_TABLE_MAX};

/// Version of the specification, 1.4.
const SPEC_1_4: u8 = 4;
/// Version register of the APICs.
const APIC_VERSION: u8 = 0x14;
/// Bus number of the only bus, ISA.
const ISA_BUS: u8 = 0;

/// Record types (MP 1.4 table 4-3).
mod record {
    pub(super) const PROCESSOR: u8 = 0;
    pub(super) const BUS: u8 = 1;
    pub(super) const IO_APIC: u8 = 2;
    pub(super) const IO_INTERRUPT: u8 = 3;
    pub(super) const LOCAL_INTERRUPT: u8 = 4;
}

/// Interrupt types (MP 1.4 table 4-11).
mod interrupt {
    pub(super) const VECTORED: u8 = 0;
    pub(super) const NMI: u8 = 1;
    pub(super) const EXT_INT: u8 = 3;
}

/// The bytes of the table, to be put at [`MP_TABLE`]. APIC numbers of the
/// `vcpus` processors are 0, 1, …; interrupt line `n` is pin `n`.
#[must_use]
pub fn build(vcpus: u8) -> Vec<u8> {
    let io_apic_id = vcpus;
    let mut records: Vec<u8> = Vec::with_capacity(MP_TABLE_MAX);
    let mut count: u16 = 0;
    let mut push = |record: &[u8]| {
        records.extend_from_slice(record);
        count = count.saturating_add(1);
    };
    for id in 0..vcpus {
        push(&processor(id));
    }
    push(&bus());
    push(&io_apic(io_apic_id));
    for line in 0..=LAST_IRQ {
        if let Ok(line) = u8::try_from(line) {
            push(&io_interrupt(line, io_apic_id));
        }
    }
    // Both pins of every local APIC: the 8259's on 0, NMI on 1.
    push(&local_interrupt(interrupt::EXT_INT, 0, 0));
    push(&local_interrupt(interrupt::NMI, 0xff, 1));

    let mut table = pointer();
    table.extend(header(&records, count));
    table.extend(records);
    table
}

/// Floating pointer structure (MP 1.4 §4.1); the table follows it.
fn pointer() -> Vec<u8> {
    let table = u32::try_from(MP_TABLE.saturating_add(16)).unwrap_or(0);
    let mut bytes = Vec::from(*b"_MP_");
    bytes.extend(table.to_le_bytes());
    bytes.extend([1, SPEC_1_4, 0, 0, 0, 0, 0, 0]);
    set_checksum(&mut bytes, 10);
    bytes
}

/// Configuration table header (MP 1.4 §4.2).
fn header(records: &[u8], count: u16) -> Vec<u8> {
    const LEN: usize = 44;
    let len = u16::try_from(LEN.saturating_add(records.len())).unwrap_or(0);
    let mut bytes = Vec::from(*b"PCMP");
    bytes.extend(len.to_le_bytes());
    bytes.extend([SPEC_1_4, 0]);
    bytes.extend(*b"FLASHPANMICROVM     ");
    bytes.extend([0; 6]);
    bytes.extend(count.to_le_bytes());
    bytes.extend(LOCAL_APIC.to_le_bytes());
    bytes.extend([0; 4]);
    // The checksum covers header and records.
    let sum = checksum(&bytes).wrapping_add(checksum(records));
    if let Some(byte) = bytes.get_mut(7) {
        *byte = sum;
    }
    bytes
}

/// Processor entry (MP 1.4 §4.3.1).
fn processor(id: u8) -> [u8; 20] {
    const ENABLED: u8 = 1;
    const BOOT: u8 = 2;
    let flags = if id == 0 { ENABLED | BOOT } else { ENABLED };
    let mut entry = [0; 20];
    if let Some(head) = entry.first_chunk_mut::<4>() {
        *head = [record::PROCESSOR, id, APIC_VERSION, flags];
    }
    entry
}

/// Bus entry (MP 1.4 §4.3.2).
fn bus() -> [u8; 8] {
    let [i, s, a, b, c, d] = *b"ISA   ";
    [record::BUS, ISA_BUS, i, s, a, b, c, d]
}

/// I/O APIC entry (MP 1.4 §4.3.3).
fn io_apic(id: u8) -> [u8; 8] {
    let [a, b, c, d] = IO_APIC.to_le_bytes();
    [record::IO_APIC, id, APIC_VERSION, 1, a, b, c, d]
}

/// I/O interrupt assignment (MP 1.4 §4.3.4): polarity and trigger of the bus.
fn io_interrupt(line: u8, io_apic: u8) -> [u8; 8] {
    [
        record::IO_INTERRUPT,
        interrupt::VECTORED,
        0,
        0,
        ISA_BUS,
        line,
        io_apic,
        line,
    ]
}

/// Local interrupt assignment (MP 1.4 §4.3.5).
fn local_interrupt(kind: u8, apic: u8, pin: u8) -> [u8; 8] {
    [record::LOCAL_INTERRUPT, kind, 0, 0, ISA_BUS, 0, apic, pin]
}

/// What makes the sum of `bytes` zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_sub(*byte))
}

fn set_checksum(bytes: &mut [u8], at: usize) {
    let sum = checksum(bytes);
    if let Some(byte) = bytes.get_mut(at) {
        *byte = sum;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        bytes
            .iter()
            .fold(0, |sum: u8, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn checksums_are_zero_and_the_table_fits() {
        for vcpus in [1, 2, 31, 32] {
            let table = build(vcpus);
            assert!(
                table.len() <= MP_TABLE_MAX,
                "{vcpus} CPUs: {} bytes",
                table.len()
            );
            assert_eq!(sum(&table[..16]), 0, "floating pointer");
            let len = usize::from(u16::from_le_bytes([table[20], table[21]]));
            assert_eq!(len, table.len() - 16);
            assert_eq!(sum(&table[16..16 + len]), 0, "configuration table");
        }
    }

    #[test]
    fn one_processor_is_the_boot_processor() {
        let table = build(4);
        let processors: Vec<_> = (0..4)
            .map(|i| (table[60 + i * 20 + 1], table[60 + i * 20 + 3]))
            .collect();
        assert_eq!(processors, [(0, 3), (1, 1), (2, 1), (3, 1)]);
    }
}
