//! `flashpan cp`: files into a VM, and out of it.

use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use clap::Args;
use flashpan::{Copied, CopyOptions};

use crate::failure::{Failure, plain, say};
use crate::runtime;
use crate::signals::Signals;
use crate::stdio::Patient;
use crate::vms::{attach, find, of};

const EXAMPLES: &str = "\
Examples:
  flashpan cp ./project dev:/root/          /root/project
  flashpan cp ./project/. dev:/srv          what is in it
  flashpan cp dev:/root/project/out ./out
  flashpan cp -a dev:/etc ./etc             with users and groups, as root

As docker's: a place that is a directory takes the copy under its own name, one that is
not there becomes the copy; a slash at the end says that it must be a directory. A path
of this machine with a colon in it is written with ./ before it. What comes into a VM
belongs to its root, what comes out to you, unless -a is given.

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
    #[arg(long, short)]
    quiet: bool,

    /// What to copy: VM:PATH, or a path of this machine.
    #[arg(value_name = "[VM:]SOURCE")]
    source: OsString,

    /// Where to: VM:PATH, or a path of this machine.
    #[arg(value_name = "[VM:]PLACE")]
    place: OsString,
}

/// A path, and whose it is.
#[derive(Debug, PartialEq, Eq)]
enum Side<'a> {
    Host(&'a Path),
    Guest(&'a str, &'a Path),
}

impl<'a> Side<'a> {
    fn of(word: &'a OsStr) -> Self {
        let bytes = word.as_bytes();
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
#[derive(Debug, PartialEq, Eq)]
enum Way<'a> {
    In { from: &'a Path, to: &'a Path },
    Out { from: &'a Path, to: &'a Path },
}

impl<'a> Way<'a> {
    /// With the name of the VM.
    fn between(source: &'a OsStr, place: &'a OsStr) -> Result<(&'a str, Self), Failure> {
        let stream = Side::Host(Path::new("-"));
        match (Side::of(source), Side::of(place)) {
            (Side::Guest(vm, _), side) | (side, Side::Guest(vm, _)) if side == stream => {
                Err(Failure::new(format!(
                    "archives on standard input and output are not taken; use `flashpan exec -i \
                     {vm} tar …`, or ./- for a file of that name"
                )))
            }
            (Side::Host(from), Side::Guest(vm, to)) => Ok((vm, Self::In { from, to })),
            (Side::Guest(vm, from), Side::Host(to)) => Ok((vm, Self::Out { from, to })),
            (Side::Host(_), Side::Host(_)) => Err(Failure::new(
                "neither is in a VM; write VM:PATH for the one that is",
            )),
            (Side::Guest(..), Side::Guest(..)) => Err(Failure::new(
                "both are in VMs; copy to this machine first, and then from it",
            )),
        }
    }
}

/// Runs `flashpan cp`.
pub(crate) fn cp(args: &CpArgs) -> Result<u8, Failure> {
    let options = CopyOptions::new()
        .archive(args.archive)
        .follow_link(args.follow_link);
    let (name, way) = Way::between(&args.source, &args.place)?;
    let vm = find(name)?;
    let copied = runtime(async {
        let mut signals =
            Signals::watch().map_err(|e| Failure::new(format!("cannot watch signals: {e}")))?;
        let sandbox = attach(&vm).await?;
        let copy = async {
            match way {
                Way::In { from, to } => sandbox.copy_in(from, absolute(to), options).await,
                Way::Out { from, to } => sandbox.copy_out(absolute(from), to, options).await,
            }
        };
        tokio::select! {
            copied = copy => copied.map_err(|error| of(&vm, error)),
            signal = signals.ending() => Err(Failure::signalled(signal)),
        }
    })?;
    report(&copied, args.quiet);
    Ok(0)
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
    if !quiet {
        let entries = match copied.entries {
            1 => "one entry".to_owned(),
            entries => format!("{entries} entries"),
        };
        let line = format!("Copied {entries}, {}\n", crate::image::size(copied.bytes));
        // With standard error gone there is nobody to tell.
        let _ = Patient::new(io::stderr().as_fd())
            .and_then(|mut stderr| stderr.write_all(line.as_bytes()));
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
            ("-", host("-")),
        ] {
            assert_eq!(Side::of(OsStr::new(word)), side, "{word}");
        }
    }
}
