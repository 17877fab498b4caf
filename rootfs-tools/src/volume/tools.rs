//! The programs of e2fsprogs that check and resize a file system.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::child;

/// Where they are: often not in the `PATH` of ordinary users.
const DIRECTORIES: [&str; 3] = ["/usr/sbin/", "/sbin/", ""];

/// Why a program did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not installed.
    #[error("{0} not found; install it: apt-get install e2fsprogs")]
    Missing(&'static str),
    /// It could not be run.
    #[error("cannot run {program}: {source}")]
    Run {
        /// Its name.
        program: &'static str,
        /// Why.
        source: io::Error,
    },
    /// It failed.
    #[error("{program} failed on {path}: {message}")]
    Failed {
        /// Its name.
        program: &'static str,
        /// The file that it worked on.
        path: PathBuf,
        /// The last line that it printed, or its exit status.
        message: String,
    },
}

/// Replays the journal and repairs what can be repaired without asking.
pub(super) fn check(file: &File, path: &Path) -> Result<(), Error> {
    // 1: errors were corrected.
    run("e2fsck", &["-f", "-p"], file, path, &[], &[0, 1])
}

/// Gives the file system in `file` this size in bytes, a multiple of 1024.
pub(super) fn resize(file: &File, path: &Path, size: u64) -> Result<(), Error> {
    let kib = format!("{}K", size / 1024);
    run("resize2fs", &["-f"], file, path, &[&kib], &[0])
}

/// Runs a program on `file`, which is at `path` for messages. It has the file as
/// its standard input, so that a lock on that lasts as long as the program, even
/// if we are killed.
fn run(
    program: &'static str,
    options: &[&str],
    file: &File,
    path: &Path,
    more: &[&str],
    good: &[i32],
) -> Result<(), Error> {
    for directory in DIRECTORIES {
        let given = file
            .try_clone()
            .map_err(|source| Error::Run { program, source })?;
        let mut command = Command::new(format!("{directory}{program}"));
        command
            .args(options)
            .arg("/proc/self/fd/0")
            .args(more)
            .env("LC_ALL", "C")
            .stdin(given);
        let output = match child::output(&mut command) {
            Ok(output) => output,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => return Err(Error::Run { program, source }),
        };
        if output
            .status
            .code()
            .is_some_and(|code| good.contains(&code))
        {
            return Ok(());
        }
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        let message = match text.lines().rfind(|line| !line.trim().is_empty()) {
            Some(line) => line.trim().to_owned(),
            None => output.status.to_string(),
        };
        return Err(Error::Failed {
            program,
            path: path.to_owned(),
            message,
        });
    }
    Err(Error::Missing(program))
}
