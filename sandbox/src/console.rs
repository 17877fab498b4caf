//! The end of what a guest wrote to its console, and what it tells about how
//! the guest ended.

use std::collections::VecDeque;

use flashpan_protocol::agent::INIT_LOG;

use crate::text::one_line;

/// Bytes of console output that are kept for reports.
pub(crate) const TAIL: usize = 64 * 1024;

/// Longest console line that an error message quotes, in characters.
const QUOTED: usize = 160;

/// What Linux prints before it stops for good (`kernel/panic.c`).
const PANIC: &str = "Kernel panic - not syncing: ";

/// The last [`TAIL`] bytes of a stream.
#[derive(Debug, Default)]
pub(crate) struct Tail {
    bytes: VecDeque<u8>,
}

impl Tail {
    /// Adds bytes; the oldest make room for them.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        let kept = bytes
            .get(bytes.len().saturating_sub(TAIL)..)
            .unwrap_or_default();
        let excess = (self.bytes.len() + kept.len()).saturating_sub(TAIL);
        self.bytes.drain(..excess);
        self.bytes.extend(kept);
    }

    /// A copy of what is held.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.bytes.iter().copied().collect()
    }
}

/// The message of the first kernel panic in `console`, on one line.
///
/// A program in the guest that may write to the console can forge one, so this
/// explains an end and never decides anything.
pub(crate) fn panic_message(console: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(console);
    text.lines()
        .find_map(|line| line.split_once(PANIC))
        .map(|(_, message)| one_line(message, QUOTED))
}

/// The last words of the guest's PID 1 in `console`, on one line. As unreliable
/// as [`panic_message`].
pub(crate) fn init_message(console: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(console);
    text.lines()
        .rev()
        .find_map(|line| line.split_once(INIT_LOG))
        .map(|(_, message)| one_line(message, QUOTED))
}

/// Whether a panic message says that the guest had too little memory.
pub(crate) fn is_out_of_memory(panic: &str) -> bool {
    // mm/oom_kill.c: "System is deadlocked on memory", "Out of memory: … panic_on_oom".
    let panic = panic.to_ascii_lowercase();
    panic.contains("deadlocked on memory") || panic.contains("out of memory")
}

/// The last line of `console` that is not empty, for quoting in a message.
pub(crate) fn last_line(console: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(console);
    text.lines()
        .rev()
        .map(|line| one_line(line, QUOTED))
        .find(|line| !line.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_keeps_the_newest_bytes() {
        let mut tail = Tail::default();
        tail.push(&vec![b'a'; TAIL]);
        tail.push(b"xyz");
        let bytes = tail.bytes();
        assert_eq!(bytes.len(), TAIL);
        assert!(bytes.ends_with(b"axyz"));
        tail.push(&vec![b'b'; 3 * TAIL]);
        assert_eq!(tail.bytes(), vec![b'b'; TAIL]);
    }

    #[test]
    fn a_panic_is_recognised_and_made_harmless() {
        let console = b"[    0.512345] Kernel panic - not syncing: VFS: \x1b[31mUnable\r\n\
            [    0.512399] CPU: 0 PID: 1\r\n";
        assert_eq!(panic_message(console).as_deref(), Some("VFS: ?[31mUnable"));
        assert_eq!(panic_message(b"all is well"), None);
    }

    #[test]
    fn the_last_words_of_pid_1_are_found_behind_the_time() {
        let console = b"[    0.3] flashpan-init: mount sysfs: No such device\n[    0.4] more\n";
        assert_eq!(
            init_message(console).as_deref(),
            Some("mount sysfs: No such device")
        );
        assert_eq!(init_message(b"[    0.4] more\n"), None);
    }

    #[test]
    fn panics_for_want_of_memory_are_told_apart() {
        assert!(is_out_of_memory("System is deadlocked on memory"));
        assert!(is_out_of_memory(
            "Out of memory: compulsory panic_on_oom is enabled"
        ));
        assert!(!is_out_of_memory(
            "Attempted to kill init! exitcode=0x00000009"
        ));
    }

    #[test]
    fn the_last_line_skips_blank_ones() {
        assert_eq!(last_line(b"one\ntwo\r\n\r\n\n").as_deref(), Some("two"));
        assert_eq!(last_line(b"\n \n"), None);
    }
}
