//! What a process of the host uses, as the kernel tells in `/proc`.

use std::fs;

use flashpan_protocol::supervisor::Usage;

/// Adds what the process uses. What cannot be read stays as it is.
pub(crate) fn add_process(usage: &mut Usage, pid: i32) {
    let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).ok();
    if let Some(stat) = read("stat")
        && let Some(ns) = cpu_ns(&stat, ticks_per_second())
    {
        usage.cpu_ns = ns;
    }
    if let Some(statm) = read("statm")
        && let Some(pages) = statm.split_ascii_whitespace().nth(1)
        && let Ok(pages) = pages.parse::<u64>()
    {
        usage.resident_bytes = pages.saturating_mul(page_size());
    }
    if let Some(io) = read("io") {
        usage.read_bytes = value(&io, "read_bytes:");
        usage.written_bytes = value(&io, "write_bytes:");
    }
}

/// User and system time: fields 14 and 15, counted after the name, which is in
/// parentheses and may hold anything.
fn cpu_ns(stat: &str, ticks: u64) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    let sum = next()?.checked_add(next()?)?;
    let ns = u128::from(sum) * 1_000_000_000 / u128::from(ticks.max(1));
    u64::try_from(ns).ok()
}

fn value(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().parse().ok()
}

fn ticks_per_second() -> u64 {
    configured(nix::unistd::SysconfVar::CLK_TCK, 100)
}

fn page_size() -> u64 {
    configured(nix::unistd::SysconfVar::PAGE_SIZE, 4096)
}

fn configured(variable: nix::unistd::SysconfVar, usual: u64) -> u64 {
    let value = nix::unistd::sysconf(variable).ok().flatten();
    value
        .and_then(|value| u64::try_from(value).ok())
        .unwrap_or(usual)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_used_something() {
        let mut usage = Usage::default();
        add_process(&mut usage, i32::try_from(std::process::id()).unwrap());
        assert!(usage.resident_bytes > 64 << 10, "{usage:?}");
        assert!(usage.written_bytes.is_some(), "{usage:?}");
    }

    #[test]
    fn a_name_with_parentheses_is_passed_over() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 0 0 0 150 50 0 0 20 0 1 0 9 1 1";
        assert_eq!(cpu_ns(stat, 100), Some(2_000_000_000));
        assert_eq!(cpu_ns("7 (x) S 1", 100), None);
        assert_eq!(cpu_ns("", 100), None);
    }
}
