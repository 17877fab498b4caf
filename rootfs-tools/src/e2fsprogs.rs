//! The programs of e2fsprogs that make, check and change ext4 file systems.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

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

/// Where a program is, if it is there and runs.
pub(crate) fn find(program: &'static str) -> Result<String, Error> {
    let (path, output) = first(program, |command| {
        command.arg("-V").stdin(Stdio::null());
        Ok(())
    })?;
    if output.status.success() {
        Ok(path)
    } else {
        let source = io::Error::other(output.status.to_string());
        Err(Error::Run { program, source })
    }
}

/// Makes a file system that fills the file.
pub(crate) fn format(file: &File, path: &Path, options: &[&str]) -> Result<(), Error> {
    run("mkfs.ext4", options, file, path, &[], &[0])
}

/// Replays the journal and repairs what can be repaired without asking.
pub(crate) fn check(file: &File, path: &Path) -> Result<(), Error> {
    // 1: errors were corrected.
    run("e2fsck", &["-f", "-p"], file, path, &[], &[0, 1])
}

/// Gives the file system in `file` this size in bytes, a multiple of 1024.
pub(crate) fn resize(file: &File, path: &Path, size: u64) -> Result<(), Error> {
    let kib = format!("{}K", size / 1024);
    run("resize2fs", &["-f"], file, path, &[&kib], &[0])
}

/// Gives the file system a UUID that no other has, and replays its journal.
pub(crate) fn renew_uuid(file: &File, path: &Path) -> Result<(), Error> {
    let program = "tune2fs";
    // Checksums begin with the UUID. So that not all of them have to be computed
    // anew, which a file system that was not just checked is refused, the old one
    // stays what they begin with.
    let mut features = [0; 4];
    file.read_exact_at(&mut features, FEATURES)
        .map_err(|source| Error::Run { program, source })?;
    let options: &[&str] = match u32::from_le_bytes(features) & METADATA_CSUM {
        0 => &["-U", "random"],
        _ => &["-O", "metadata_csum_seed", "-U", "random"],
    };
    run(program, options, file, path, &[], &[0])
}

/// Where the superblock has `s_feature_ro_compat`.
const FEATURES: u64 = 1024 + 100;
/// A bit of that: metadata have checksums.
const METADATA_CSUM: u32 = 0x400;

/// Runs a program on `file`, which is at `path` for messages. It has the file as
/// its standard input, so that a lock on that lasts as long as the program, even
/// if we are killed; and it gets that and no path, where another file may be by
/// then.
fn run(
    program: &'static str,
    options: &[&str],
    file: &File,
    path: &Path,
    more: &[&str],
    good: &[i32],
) -> Result<(), Error> {
    let (_, output) = first(program, |command| {
        command
            .args(options)
            .arg("/proc/self/fd/0")
            .args(more)
            // What the host's file says about new file systems does not count.
            .env("MKE2FS_CONFIG", "/dev/null")
            .env("LC_ALL", "C")
            .stdin(file.try_clone()?);
        Ok(())
    })?;
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
    Err(Error::Failed {
        program,
        path: path.to_owned(),
        message,
    })
}

/// Runs a program from the first directory that has it; with its path.
fn first(
    program: &'static str,
    prepare: impl Fn(&mut Command) -> io::Result<()>,
) -> Result<(String, Output), Error> {
    let failed = |source| Error::Run { program, source };
    for directory in DIRECTORIES {
        let path = format!("{directory}{program}");
        let mut command = Command::new(&path);
        prepare(&mut command).map_err(failed)?;
        match child::output(&mut command) {
            Ok(output) => return Ok((path, output)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(failed(source)),
        }
    }
    Err(Error::Missing(program))
}
