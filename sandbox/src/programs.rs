//! The programs that run in a guest, as its `/proc` has them.

use std::path::Path;

use flashpan_protocol::file::FileFailureKind;

use crate::error::{Error, Result};
use crate::files::ReadOptions;
use crate::sandbox::Sandbox;
use crate::text::one_line;

/// Longest command line that is told, in characters.
const COMMAND_MAX: usize = 1024;

/// Most bytes that are read of a file of `/proc`.
const READ_MAX: usize = 8 * 1024;

/// Most programs that are listed.
const LISTED_MAX: usize = 32 * 1024;

/// The guest's clock ticks in a second (`USER_HZ`), on every Linux of this kind.
const TICKS: u64 = 100;

/// The process from which all threads of a Linux kernel come.
const KERNEL: u32 = 2;

/// A program in a guest. All of it is the guest's word.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct ProgramInfo {
    /// Its process id in the guest.
    pub pid: u32,
    /// That of the process it belongs to.
    pub parent: u32,
    /// Who it runs as.
    pub uid: u32,
    /// What it does, as `ps` has it: `R`, `S`, `D`, `Z`, `T`, ….
    pub state: char,
    /// CPU time, in milliseconds.
    pub cpu_ms: u64,
    /// Resident memory, in bytes.
    pub resident_bytes: u64,
    /// Program and arguments, or its name in brackets; free of control characters.
    pub command: String,
}

impl Sandbox {
    /// The programs that run in the guest, without the threads of its kernel, by their
    /// ids. The guest's agent reads its `/proc`: no program has to be there for it.
    ///
    /// # Errors
    /// See [above](#files-of-the-guest).
    pub async fn programs(&self) -> Result<Vec<ProgramInfo>> {
        let entries = self.read_directory("/proc").await?;
        let pids = entries
            .iter()
            .filter_map(|entry| entry.name.to_str()?.parse::<u32>().ok());
        let mut programs = Vec::new();
        for pid in pids.take(LISTED_MAX) {
            if let Some(program) = self.program(pid).await? {
                programs.push(program);
            }
        }
        programs.sort_by_key(|program| program.pid);
        Ok(programs)
    }

    /// `None` if it has ended, or is the kernel's.
    async fn program(&self, pid: u32) -> Result<Option<ProgramInfo>> {
        let directory = format!("/proc/{pid}");
        let of_it = async {
            let stat = self.beginning(&directory, "stat").await?;
            let Some(mut program) = parse(pid, &String::from_utf8_lossy(&stat)) else {
                return Ok(None);
            };
            if pid == KERNEL || program.parent == KERNEL {
                return Ok(None);
            }
            program.uid = self.stat(&directory).await?.uid;
            let line = self.beginning(&directory, "cmdline").await?;
            let line: Vec<u8> = line
                .iter()
                .map(|b| if *b == 0 { b' ' } else { *b })
                .collect();
            let line = one_line(&String::from_utf8_lossy(&line), COMMAND_MAX);
            if !line.is_empty() {
                program.command = line;
            }
            Ok(Some(program))
        };
        match of_it.await {
            // It has ended.
            Err(Error::File { kind, errno, .. })
                if kind == FileFailureKind::NotFound || errno == libc::ESRCH =>
            {
                Ok(None)
            }
            result => result,
        }
    }

    async fn beginning(&self, directory: &str, file: &str) -> Result<Vec<u8>> {
        let most = u64::try_from(READ_MAX).unwrap_or(u64::MAX);
        let options = ReadOptions::new().length(most);
        let path = Path::new(directory).join(file);
        let mut reader = self.open_file(&path, options).await?;
        let mut content = Vec::new();
        while let Some(chunk) = reader.next_chunk().await? {
            let left = READ_MAX.saturating_sub(content.len());
            content.extend(chunk.into_iter().take(left));
        }
        Ok(content)
    }
}

/// A line of `/proc/PID/stat`. The name is in parentheses and may hold anything.
fn parse(pid: u32, stat: &str) -> Option<ProgramInfo> {
    let (head, tail) = stat.rsplit_once(')')?;
    let (_, name) = head.split_once('(')?;
    let fields: Vec<_> = tail.split_ascii_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
    let ticks = number(11)?.checked_add(number(12)?)?;
    Some(ProgramInfo {
        pid,
        parent: u32::try_from(number(1)?).ok()?,
        uid: 0,
        state: fields
            .first()?
            .chars()
            .next()
            .filter(char::is_ascii_alphabetic)?,
        cpu_ms: ticks.checked_mul(1000 / TICKS)?,
        resident_bytes: number(21)?.checked_mul(4096)?,
        command: format!("[{}]", one_line(name, 64)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_proc_is_understood_whatever_the_name() {
        let stat = "42 (a) S 1 (x\x1b) R 7 42 42 0 -1 4194560 9 0 0 0 15 5 0 0 20 0 1 0 33 \
                    1000 250 18446744073709551615";
        let program = parse(42, stat).unwrap();
        assert_eq!((program.parent, program.state), (7, 'R'));
        assert_eq!((program.cpu_ms, program.resident_bytes), (200, 250 * 4096));
        assert_eq!(program.command, "[a) S 1 (x?]");
        for bad in [
            "",
            "1",
            "1 (x",
            "1 (x) S",
            "1 (x) S 1",
            &stat.replace("250", "99999999999999999999"),
        ] {
            assert_eq!(parse(1, bad), None, "{bad}");
        }
    }
}
