//! The kernel command line. Only what the kernel itself needs is on it
//! (design decision 4); nothing from a user of a sandbox ever is.

use flashpan_protocol::control::Console;

use crate::error::BootError;
use crate::layout::{CMDLINE_MAX, FIRST_IRQ, MMIO_BASE, MMIO_STRIDE};

/// What every guest gets, with the reason for each.
const ALWAYS: &[&str] = &[
    // Restart by the keyboard controller, which is an exit to us, and not by
    // a triple fault, which looks like a crash.
    "reboot=k",
    // A panic restarts at once: an exit that we can report.
    "panic=-1",
    // kvmclock gives the frequency: no watchdog has to compare clocks.
    "tsc=reliable",
    // The timer interrupt is the local APIC's; do not test the IO-APIC's.
    "no_timer_check",
    // The CPU's generator seeds the pool: getrandom(2) never waits.
    "random.trust_cpu=on",
    // No device needs bounce buffers.
    "swiotlb=noforce",
    // Self-tests of ciphers belong into a build, not into a boot.
    "cryptomgr.notests",
];

/// Builds the command line for a machine with `devices` virtio devices.
///
/// # Errors
/// If it would be longer than Linux reads, or `extra` has bytes that the
/// kernel would misread.
pub fn build(console: Console, devices: usize, extra: &str) -> Result<String, BootError> {
    if let Some(bad) = extra.chars().find(|c| c.is_control() || !c.is_ascii()) {
        return Err(BootError::request(format!(
            "kernel arguments hold the character {bad:?}: give printable ASCII only"
        )));
    }
    let mut words: Vec<String> = ALWAYS.iter().map(|&word| word.to_owned()).collect();
    let console: &[&str] = match console {
        // No UART is probed, nothing is printed.
        Console::Off => &["quiet", "loglevel=0", "8250.nr_uarts=0"],
        // The early console stays registered and prints what ends the kernel;
        // at log level 1 nothing else reaches it.
        Console::Panic => &["loglevel=1", "8250.nr_uarts=0", "earlyprintk=ttyS0,keep"],
        Console::Full => &["console=ttyS0", "8250.nr_uarts=1", "ignore_loglevel"],
    };
    words.extend(console.iter().map(|&word| word.to_owned()));
    let mut address = MMIO_BASE;
    for irq in (FIRST_IRQ..).take(devices) {
        words.push(format!("virtio_mmio.device=4K@{address:#x}:{irq}"));
        address = address.saturating_add(MMIO_STRIDE);
    }
    if !extra.is_empty() {
        words.push(extra.to_owned());
    }
    let line = words.join(" ");
    if line.len() >= CMDLINE_MAX {
        return Err(BootError::request(format!(
            "the kernel command line has {} bytes, but Linux reads only {}: \
             give shorter kernel arguments or fewer disks",
            line.len(),
            CMDLINE_MAX - 1
        )));
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_listed_in_order_with_address_and_line() {
        let line = build(Console::Off, 2, "").unwrap();
        assert!(
            line.ends_with("virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=4K@0xd0001000:6")
        );
    }

    #[test]
    fn a_console_prints_and_no_console_is_silent() {
        assert!(
            build(Console::Full, 0, "")
                .unwrap()
                .contains("console=ttyS0")
        );
        assert!(
            build(Console::Off, 0, "")
                .unwrap()
                .contains("8250.nr_uarts=0")
        );
        assert!(
            build(Console::Panic, 0, "")
                .unwrap()
                .contains("earlyprintk=ttyS0,keep")
        );
    }

    #[test]
    fn line_breaks_nul_and_length_are_refused() {
        for bad in ["a\nb", "a\0b", "naïve"] {
            assert!(
                build(Console::Off, 0, bad)
                    .unwrap_err()
                    .message
                    .contains("ASCII")
            );
        }
        let long = "x".repeat(CMDLINE_MAX);
        assert!(
            build(Console::Off, 0, &long)
                .unwrap_err()
                .message
                .contains("2047")
        );
    }
}
