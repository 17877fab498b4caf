//! What changes in a directory of the guest.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use flashpan_protocol::agent::Bytes;
use flashpan_protocol::file::{
    Change as Sent, ChangeKind, FileOutput, FileRequest, MAX_PATH, MAX_WATCHES,
};

use crate::error::{Error, Result};
use crate::file_link::{ANSWER_WITHIN, FileLink, guest_path};
use crate::pump::broken;
use crate::sandbox::Sandbox;

/// How a directory is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "options do nothing until `Sandbox::watch`"]
pub struct WatchOptions {
    recursive: bool,
    most: u32,
}

impl Default for WatchOptions {
    /// With the directories in it, at most 8192.
    fn default() -> Self {
        Self {
            recursive: true,
            most: 8192,
        }
    }
}

impl WatchOptions {
    /// As [`WatchOptions::default`].
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether the directories in it are watched too, as they are otherwise, and
    /// those that are made or moved there later.
    pub fn recursive(mut self, recursive: bool) -> Self {
        self.recursive = recursive;
        self
    }

    /// How many directories are watched at most, up to 65536. The guest's kernel
    /// has a limit of its own, by its memory.
    pub fn most(mut self, most: u32) -> Self {
        self.most = most;
        self
    }
}

/// A change in a directory of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Change {
    /// What happened. [`ChangeKind::Overflow`] stands for changes that nobody
    /// knows: look at everything again.
    pub kind: ChangeKind,
    /// To what, relative to the watched directory, and empty for that itself.
    /// Never absolute, and without `..`, whatever the guest says.
    pub path: PathBuf,
    /// Of [`ChangeKind::Moved`], where it is now; likewise.
    pub to: Option<PathBuf>,
    /// Whether it is a directory.
    pub is_dir: bool,
}

/// The changes in a directory of the guest. Dropping it ends the watching.
#[derive(Debug)]
pub struct Watch {
    link: FileLink,
    waiting: VecDeque<Sent>,
    ended: bool,
}

impl Sandbox {
    /// Tells what changes in a directory of the guest from now on.
    ///
    /// Changes are told in their order. What is made in a new directory before
    /// that is watched may be told twice. What is moved from outside is told as
    /// created, and what is moved out as removed. Whoever does not take them
    /// loses changes at some point, and is told that
    /// ([`ChangeKind::Overflow`]). At most 16 directories of a guest can be
    /// watched at a time, with all that is in them. The file systems of the
    /// kernel's own books, as `/proc`, are left out.
    ///
    /// # Errors
    /// See [above](#files-of-the-guest); [`Error::File`] with
    /// [`crate::FileFailureKind::TooMany`] if there are more directories than
    /// are allowed.
    pub async fn watch(&self, path: impl AsRef<Path>, options: WatchOptions) -> Result<Watch> {
        let path = path.as_ref();
        if !(1..=MAX_WATCHES).contains(&options.most) {
            let why = format!("{} is not in range 1-{MAX_WATCHES}", options.most);
            return Err(Error::config("directories to watch", why));
        }
        let request = FileRequest::Watch {
            path: guest_path(path)?,
            recursive: options.recursive,
            most: options.most,
        };
        let mut link = FileLink::start(self, path, request).await?;
        match link.output.next_within(ANSWER_WITHIN).await? {
            FileOutput::Info(_) => Ok(Watch {
                link,
                waiting: VecDeque::new(),
                ended: false,
            }),
            other => Err(link.output.unexpected(&other)),
        }
    }
}

impl Watch {
    /// Waits for the next change; `None` after the directory was removed or
    /// moved, which is a change before that. Cancel safe.
    ///
    /// # Errors
    /// What the guest says, or why it says no more. Nothing follows an error.
    pub async fn next(&mut self) -> Result<Option<Change>> {
        loop {
            if let Some(change) = self.waiting.pop_front() {
                return Change::from_guest(change).map(Some);
            }
            if self.ended {
                return Ok(None);
            }
            let next = self.link.output.next().await;
            self.ended = !matches!(next, Ok(FileOutput::Changes(_)));
            match next? {
                FileOutput::Changes(changes) => self.waiting.extend(changes),
                FileOutput::Done => {}
                other => return Err(self.link.output.unexpected(&other)),
            }
        }
    }
}

impl Change {
    /// Takes a change as a guest sends it.
    fn from_guest(change: Sent) -> Result<Self> {
        let to = match change.kind {
            ChangeKind::Moved => Some(relative(change.to)?),
            _ => None,
        };
        Ok(Self {
            kind: change.kind,
            path: relative(change.path)?,
            to,
            is_dir: change.directory,
        })
    }
}

/// A path that leads nowhere else.
fn relative(path: Bytes) -> Result<PathBuf> {
    let path = path.into_vec();
    let mut names = path.split(|byte| *byte == b'/');
    let leads_out = path.len() > MAX_PATH
        || path.contains(&0)
        || (!path.is_empty() && names.any(|name| matches!(name, b"" | b"." | b"..")));
    if leads_out {
        return Err(broken(
            "it told a change outside of the directory".to_owned(),
        ));
    }
    Ok(PathBuf::from(OsString::from_vec(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_lead_elsewhere_are_refused() {
        let long = vec![b'x'; MAX_PATH + 1];
        for bad in [
            &b"/"[..],
            b"/etc",
            b"..",
            b"a/../..",
            b"a//b",
            b"a/",
            b".",
            b"a\0",
            &long,
        ] {
            relative(Bytes::from(bad)).unwrap_err();
        }
        for good in [&b""[..], b"a", b"a/b", b"...", b"\xff\n"] {
            relative(Bytes::from(good)).unwrap();
        }
    }
}
