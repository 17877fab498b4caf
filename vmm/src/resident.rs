//! How much memory the VMM itself takes.

use std::fs::File;
use std::os::unix::fs::FileExt;

/// Most bytes of `smaps` that are read: about a thousand mappings, where a VMM
/// has a few dozen.
const MAX_SMAPS: usize = 1024 * 1024;

/// Reads the sizes from a descriptor that is opened before the jail closes.
#[derive(Debug)]
pub(crate) struct ResidentSize {
    smaps: Option<File>,
}

impl ResidentSize {
    pub(crate) fn open() -> Self {
        Self {
            smaps: File::open("/proc/self/smaps").ok(),
        }
    }

    /// Resident KiB of all mappings for which `is_guest` is false of their
    /// first address; 0 if the host does not tell.
    pub(crate) fn kib(&self, is_guest: impl Fn(u64) -> bool) -> u64 {
        let mut text = Vec::new();
        let mut chunk = [0_u8; 16 * 1024];
        while text.len() < MAX_SMAPS {
            let at = u64::try_from(text.len()).unwrap_or(u64::MAX);
            match self.smaps.as_ref().map(|file| file.read_at(&mut chunk, at)) {
                Some(Ok(len)) if len > 0 => {
                    text.extend_from_slice(chunk.get(..len).unwrap_or_default());
                }
                _ => break,
            }
        }
        sum(&String::from_utf8_lossy(&text), is_guest)
    }
}

/// Sums `Rss` over the mappings of a `/proc/*/smaps` that are not the guest's.
fn sum(smaps: &str, is_guest: impl Fn(u64) -> bool) -> u64 {
    let mut ours = false;
    let mut total = 0_u64;
    for line in smaps.lines() {
        if let Some(kib) = line.strip_prefix("Rss:") {
            let kib = kib
                .split_whitespace()
                .next()
                .and_then(|kib| kib.parse().ok());
            total = total.saturating_add(kib.filter(|_| ours).unwrap_or(0));
        } else if let Some((start, _)) = line.split_once('-')
            && let Ok(start) = u64::from_str_radix(start, 16)
        {
            ours = !is_guest(start);
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_memory_is_not_counted() {
        let smaps = "00400000-00500000 r-xp 00000000 fe:00 1   /x\nSize: 1024 kB\nRss: 700 kB\n\
                     7f0000000000-7f0008000000 rw-p 00000000 00:00 0\nRss: 131072 kB\n\
                     7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0 [stack]\nRss: 12 kB\n";
        assert_eq!(sum(smaps, |start| start == 0x7f00_0000_0000), 712);
    }

    #[test]
    fn this_process_has_a_size() {
        assert!(ResidentSize::open().kib(|_| false) > 0);
    }
}
