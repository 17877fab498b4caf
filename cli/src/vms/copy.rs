//! `flashpan cp`: files into a VM, and out of it.

use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use flashpan::state::Vm;
use flashpan::{Copied, CopyOptions, Sandbox};
use serde_json::json;

use crate::archive_stdio::{Input, Output};
use crate::failure::{Failure, plain, print_json_line, say};
use crate::parse;
use crate::runtime;
use crate::signals::Signals;
use crate::stdio::Patient;
use crate::vms::{attach_in_time, find, of};

const EXAMPLES: &str = "\
Examples:
  flashpan cp ./project dev:/root/          /root/project
  flashpan cp ./project/. dev:/srv          what is in it
  flashpan cp dev:/root/project/out ./out
  flashpan cp -a dev:/etc ./etc             with users and groups, as root
  flashpan cp dev:/etc - > etc.tar          as a tar archive
  tar -c . | flashpan cp - dev:/srv         unpacked into a directory
  flashpan cp one:/srv - | flashpan cp - two:/
  flashpan cp --timeout 5m dev:/srv ./srv   given up after five minutes, with status 124

As docker's: a place that is a directory takes the copy under its own name, one that is
not there becomes the copy; a slash at the end says that it must be a directory. A path
of this machine with a colon in it is written with ./ before it. What comes into a VM
belongs to its root, what comes out to you, unless -a is given.

A - stands for a tar archive, on standard output or input: not compressed, with the
owners that it says, -a or not. The first name in one that comes out is the last of the
path; /. at the path's end leaves it out. One that goes in needs a directory that is
there, and nothing in it may lead out of that; a hard link is to what comes before it.

--json says what was copied as one object on a line: entries and bytes, and the paths
that were left out (skipped) and that are filled with zeros (shrunk), at most 256 of
each, with their numbers (skipped_count, shrunk_count). It is on standard output, or on
standard error if an archive is on that; nothing else is said of what was copied.

What comes out of a VM is what its guest wants it to be: look before you run it. It
goes in the place of a symbolic link of this machine, to which a directory is refused,
and through one only if its name has a slash at the end.";

/// Most paths that were left out and are named.
const SKIPPED_SHOWN: usize = 5;

/// Copies files and directories into a VM that runs, or out of it
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct CpArgs {
    /// Keep users and groups, as numbers.
    #[arg(long, short)]
    archive: bool,

    /// Copy what a symbolic link that is named points to, not the link.
    #[arg(long, short = 'L')]
    follow_link: bool,

    /// Do not say how much was copied.
    #[arg(long, short, conflicts_with = "json")]
    quiet: bool,

    /// Say what was copied as JSON.
    #[arg(long)]
    json: bool,

    /// Give the copy up if it takes longer, e.g. 30s or 1h30m.
    #[arg(long, value_name = "DURATION", value_parser = parse::duration)]
    timeout: Option<Duration>,

    /// What to copy: VM:PATH, a path of this machine, or - for an archive.
    #[arg(value_name = "[VM:]SOURCE")]
    source: OsString,

    /// Where to: VM:PATH, a path of this machine, or - for an archive.
    #[arg(value_name = "[VM:]PLACE")]
    place: OsString,
}

/// A path, and whose it is.
#[derive(Debug, PartialEq, Eq)]
enum Side<'a> {
    Host(&'a Path),
    Guest(&'a str, &'a Path),
    /// An archive on standard input or output.
    Archive,
}

impl<'a> Side<'a> {
    fn of(word: &'a OsStr) -> Self {
        let bytes = word.as_bytes();
        if bytes == b"-" {
            return Self::Archive;
        }
        let colon = bytes.iter().position(|byte| *byte == b':');
        let slash = bytes.iter().position(|byte| *byte == b'/');
        let vm = match (colon, slash) {
            // As docker has it: nothing with a slash before its colon is a VM.
            (Some(colon), slash) if slash.is_none_or(|slash| colon < slash) => {
                bytes.split_at_checked(colon)
            }
            _ => None,
        };
        match vm.map(|(vm, path)| (std::str::from_utf8(vm), path)) {
            Some((Ok(vm), path)) if !vm.is_empty() && !vm.starts_with('.') => {
                let path = path.get(1..).unwrap_or_default();
                Self::Guest(vm, Path::new(OsStr::from_bytes(path)))
            }
            _ => Self::Host(Path::new(word)),
        }
    }
}

/// What goes where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way<'a> {
    In { from: &'a Path, to: &'a Path },
    Out { from: &'a Path, to: &'a Path },
    Unpack { to: &'a Path },
    Pack { from: &'a Path },
}

impl<'a> Way<'a> {
    /// With the name of the VM.
    fn between(source: &'a OsStr, place: &'a OsStr) -> Result<(&'a str, Self), Failure> {
        match (Side::of(source), Side::of(place)) {
            (Side::Host(from), Side::Guest(vm, to)) => Ok((vm, Self::In { from, to })),
            (Side::Guest(vm, from), Side::Host(to)) => Ok((vm, Self::Out { from, to })),
            (Side::Archive, Side::Guest(vm, to)) => Ok((vm, Self::Unpack { to })),
            (Side::Guest(vm, from), Side::Archive) => Ok((vm, Self::Pack { from })),
            (Side::Archive, Side::Archive) => Err(Failure::new(
                "both are archives on standard input and output; write VM:PATH for one",
            )),
            (Side::Archive, Side::Host(_)) | (Side::Host(_), Side::Archive) => Err(Failure::new(
                "an archive goes into a VM or comes out of one; write VM:PATH for the other \
                     side, or ./- for a file of that name",
            )),
            (Side::Host(_), Side::Host(_)) => Err(Failure::new(
                "neither is in a VM; write VM:PATH for the one that is",
            )),
            (Side::Guest(..), Side::Guest(..)) => Err(Failure::new(
                "both are in VMs; copy to this machine first, and then from it",
            )),
        }
    }
}

/// A [`Way`] whose standard stream may be used.
enum Open<'a> {
    In { from: &'a Path, to: &'a Path },
    Out { from: &'a Path, to: &'a Path },
    Unpack { stdin: Input, to: &'a Path },
    Pack { from: &'a Path, stdout: Output },
}

impl<'a> Open<'a> {
    fn of(way: Way<'a>) -> Result<Self, Failure> {
        Ok(match way {
            Way::In { from, to } => Self::In { from, to },
            Way::Out { from, to } => Self::Out { from, to },
            Way::Unpack { to } => Self::Unpack {
                stdin: Input::stdin()?,
                to,
            },
            Way::Pack { from } => Self::Pack {
                from,
                stdout: Output::stdout()?,
            },
        })
    }

    async fn copy(
        self,
        sandbox: &Sandbox,
        options: CopyOptions,
    ) -> Result<Copied, flashpan::Error> {
        match self {
            Self::In { from, to } => sandbox.copy_in(from, absolute(to), options).await,
            Self::Out { from, to } => sandbox.copy_out(absolute(from), to, options).await,
            Self::Unpack { mut stdin, to } => {
                sandbox.tar_in(&mut stdin, absolute(to), options).await
            }
            Self::Pack { from, mut stdout } => {
                sandbox.tar_out(absolute(from), &mut stdout, options).await
            }
        }
    }
}

/// The time that the user allows.
#[derive(Debug, Clone, Copy)]
struct Limit {
    all: Duration,
    /// What is left of it for the copy itself.
    left: Duration,
}

/// Why a copy failed.
fn of_copy(vm: &Vm, error: flashpan::Error, limit: Option<Limit>) -> Failure {
    match (error, limit) {
        // Other limits are not the user's.
        (flashpan::Error::Timeout { what, after }, Some(limit)) if after == limit.left => {
            Failure::timed_out(flashpan::Error::Timeout {
                what,
                after: limit.all,
            })
        }
        // As of every command whose reader has had enough.
        (flashpan::Error::Host { source, .. }, _) if source.kind() == io::ErrorKind::BrokenPipe => {
            Failure::signalled(nix::libc::SIGPIPE)
        }
        (error, _) => of(vm, error),
    }
}

/// Runs `flashpan cp`.
pub(crate) fn cp(args: &CpArgs) -> Result<u8, Failure> {
    let mut options = CopyOptions::new()
        .archive(args.archive)
        .follow_link(args.follow_link);
    let (name, way) = Way::between(&args.source, &args.place)?;
    let vm = find(name)?;
    // Before anything that takes time.
    let is_packed = matches!(way, Way::Pack { .. });
    let way = Open::of(way)?;
    let copied = runtime(async {
        let mut signals =
            Signals::watch().map_err(|e| Failure::new(format!("cannot watch signals: {e}")))?;
        let begun = Instant::now();
        let sandbox = attach_in_time(&vm, args.timeout, &mut signals).await?;
        let limit = args.timeout.map(|all| Limit {
            all,
            left: all.saturating_sub(begun.elapsed()),
        });
        if let Some(limit) = limit {
            options = options.timeout(limit.left);
        }
        tokio::select! {
            copied = way.copy(&sandbox, options) => {
                copied.map_err(|error| of_copy(&vm, error, limit))
            }
            signal = signals.ending() => Err(Failure::signalled(signal)),
        }
    })?;
    match (args.json, is_packed) {
        (false, _) => report(&copied, args.quiet),
        (true, false) => print_json_line(&shown(&copied))?,
        (true, true) => tell(&format!("{}\n", shown(&copied))),
    }
    Ok(0)
}

/// What was copied, as JSON has it.
fn shown(copied: &Copied) -> serde_json::Value {
    let paths = |paths: &[PathBuf]| -> Vec<String> {
        let text = |path: &PathBuf| path.to_string_lossy().into_owned();
        paths.iter().map(text).collect()
    };
    json!({
        "entries": copied.entries,
        "bytes": copied.bytes,
        "skipped": paths(&copied.skipped),
        "skipped_count": copied.skipped_count,
        "shrunk": paths(&copied.shrunk),
        "shrunk_count": copied.shrunk_count,
    })
}

/// Says it on standard error.
fn tell(line: &str) {
    // With that gone there is nobody to tell.
    let _ =
        Patient::new(io::stderr().as_fd()).and_then(|mut stderr| stderr.write_all(line.as_bytes()));
}

/// Paths in a guest count from its root, as docker's do.
fn absolute(path: &Path) -> PathBuf {
    Path::new("/").join(path)
}

fn report(copied: &Copied, quiet: bool) {
    for path in copied.skipped.iter().take(SKIPPED_SHOWN) {
        let why = "no file, directory or symbolic link";
        // It may be a guest's word.
        let path = plain(&path.display().to_string());
        say("warning", &format!("{path} is left out: {why}"));
    }
    let more = u64::try_from(copied.skipped.len().min(SKIPPED_SHOWN)).unwrap_or(0);
    match copied.skipped_count.saturating_sub(more) {
        0 => {}
        1 => say("warning", "another one is left out as well"),
        more => say("warning", &format!("{more} others are left out as well")),
    }
    for path in copied.shrunk.iter().take(SKIPPED_SHOWN) {
        let path = plain(&path.display().to_string());
        say(
            "warning",
            &format!("{path} became shorter while it was read, and ends in zeros"),
        );
    }
    let more = u64::try_from(copied.shrunk.len().min(SKIPPED_SHOWN)).unwrap_or(0);
    match copied.shrunk_count.saturating_sub(more) {
        0 => {}
        more => say("warning", &format!("so did {more} more")),
    }
    if !quiet {
        let entries = match copied.entries {
            1 => "one entry".to_owned(),
            entries => format!("{entries} entries"),
        };
        let size = crate::image::size(copied.bytes);
        tell(&format!("Copied {entries}, {size}\n"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_in_a_vm_if_a_colon_comes_before_every_slash() {
        let guest = |vm, path| Side::Guest(vm, Path::new(path));
        let host = |path| Side::Host(Path::new(path));
        for (word, side) in [
            ("web:/etc", guest("web", "/etc")),
            ("web:", guest("web", "")),
            ("web:a:b", guest("web", "a:b")),
            ("./a:b", host("./a:b")),
            ("/a:b", host("/a:b")),
            ("a/b:c", host("a/b:c")),
            ("..:b", host("..:b")),
            (":b", host(":b")),
            ("plain", host("plain")),
            ("./-", host("./-")),
            ("-", Side::Archive),
        ] {
            assert_eq!(Side::of(OsStr::new(word)), side, "{word}");
        }
    }
}
