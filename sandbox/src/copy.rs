//! Trees of files, into the guest and out of it.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use flashpan_protocol::agent::MAX_DATA;
use flashpan_protocol::file::{
    FileFailureKind, FileInput, FileOutput, FileRequest, MAX_FILE_FRAME, MAX_TREE_ENTRIES,
    TreeEntry, TreeInRequest,
};
use flashpan_protocol::frame;
use flashpan_tree_copy::{Failure, Options, Owner, Reader, Step, Why, Writer};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::copy_time::Time;
use crate::error::{Error, Result};
use crate::file_link::{ANSWER_WITHIN, FileLink, guest_path};
use crate::pump::broken;
use crate::sandbox::Sandbox;

/// Frames that wait between the guest and the files of this machine.
const FRAMES: usize = 4;

/// Most levels of directories that are taken out of a guest: whoever copies may
/// have few descriptors, and each level takes one.
const DEPTH: usize = 128;

/// Most paths of [`Copied::skipped`].
const SKIPPED_KEPT: usize = 256;

/// How a tree is copied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[must_use = "options do nothing until a method of `Sandbox` that copies has them"]
pub struct CopyOptions {
    archive: bool,
    follow_link: bool,
    owner: Option<(u32, u32)>,
    pub(crate) limit: Option<u64>,
    entry_limit: Option<u64>,
    pub(crate) timeout: Option<Duration>,
}

impl CopyOptions {
    /// What comes in belongs to root, what comes out to whoever runs this; a
    /// symbolic link is copied as one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Keeps user and group, as numbers; and out of the guest the bits that make
    /// a program run with the rights of its owner, which otherwise are left out.
    /// Giving files to others takes root.
    pub fn archive(mut self, archive: bool) -> Self {
        self.archive = archive;
        self
    }

    /// Whether a symbolic link that is named itself stands for what it points
    /// to. Those in a directory are copied as links in any case.
    pub fn follow_link(mut self, follow: bool) -> Self {
        self.follow_link = follow;
        self
    }

    /// Who owns what comes into the guest: user and group.
    pub fn owner(mut self, uid: u32, gid: u32) -> Self {
        self.owner = Some((uid, gid));
        self
    }

    /// Of what comes into the guest, unless the tree says it.
    pub(crate) fn owner_given(&self) -> Option<(u32, u32)> {
        self.owner
    }

    /// Most bytes of content that are taken out of the guest, which can have
    /// files without end; of an archive, most bytes of the archive. None otherwise:
    /// this machine's disk is the limit.
    pub fn limit(mut self, bytes: u64) -> Self {
        self.limit = Some(bytes);
        self
    }

    /// Most files, directories and symbolic links that are taken out of the
    /// guest, where what is named itself is the first and what is left out counts
    /// as well. 4,194,304 otherwise, and at most.
    pub fn entry_limit(mut self, entries: u64) -> Self {
        self.entry_limit = Some(entries);
        self
    }

    /// How long the whole copy may take; then it is given up, with
    /// [`Error::Timeout`]. As long as it likes otherwise: a guest that is silent for
    /// a minute when it is its turn is given up, but one that means ill can send a byte
    /// at a time. Only this, or the end of its VM, is the end of such a copy.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }
}

/// What was copied.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Copied {
    /// How many files, directories and symbolic links.
    pub entries: u64,
    /// How many bytes of content.
    pub bytes: u64,
    /// Sockets, FIFOs, devices and mounts of the kernel's own books: those are
    /// not copied. The first 256, relative to the root.
    pub skipped: Vec<PathBuf>,
    /// How many those are.
    pub skipped_count: u64,
    /// Files that became shorter while they were read into an archive, and have
    /// zeros there for what was gone. The first 256, relative to the root.
    pub shrunk: Vec<PathBuf>,
    /// How many those are.
    pub shrunk_count: u64,
}

impl Copied {
    pub(crate) fn skip(&mut self, path: &[u8]) {
        self.skipped_count = self.skipped_count.saturating_add(1);
        if self.skipped.len() < SKIPPED_KEPT {
            self.skipped.push(path_from(path));
        }
    }

    pub(crate) fn shrink(&mut self, path: &[u8]) {
        self.shrunk_count = self.shrunk_count.saturating_add(1);
        if self.shrunk.len() < SKIPPED_KEPT {
            self.shrunk.push(path_from(path));
        }
    }

    pub(crate) fn content(&mut self, length: usize) {
        let length = u64::try_from(length).unwrap_or(u64::MAX);
        self.bytes = self.bytes.saturating_add(length);
    }
}

/// # Trees of files
///
/// They land as with `docker cp`: at the place that is named if there is
/// nothing, in it under their own name if there is a directory, and in the place
/// of a file if they are one. Of a directory named with `/.` at its end, what is
/// in it is copied and not itself. A slash at the end of the place says that it
/// must be a directory. The directory above the place has to be there.
///
/// Files and links replace what is there; directories are filled where there are
/// some, and neither replaces the other. Permissions and times are kept; a
/// directory that was there has its own, and its owner. A hard link becomes a
/// file of its own, a file with holes one without. What the copied files hold is
/// complete under their names or not there; a copy that fails or is dropped
/// leaves what was complete by then.
///
/// When the time of the VM is up ([`crate::SandboxBuilder::time_limit`]), so is that of
/// its copies: they fail with [`Error::VmTimeout`]. An attached handle does not hear of
/// that before the VM has ended.
impl Sandbox {
    /// Copies a file, or a directory with all that is in it, from this machine
    /// into the guest.
    ///
    /// No symbolic link below `from` is followed, and nothing is read of what is
    /// no file, directory or link.
    ///
    /// # Errors
    /// See [above](#files-of-the-guest), where the message names the file; and
    /// [`Error::HostFile`] for what cannot be read here.
    pub async fn copy_in(
        &self,
        from: impl AsRef<Path>,
        to: impl AsRef<Path>,
        options: CopyOptions,
    ) -> Result<Copied> {
        let (from, to) = (from.as_ref(), to.as_ref());
        let time = Time::of(self, options);
        time.limit(self.send_tree(from, to, options)).await
    }

    async fn send_tree(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<Copied> {
        let root = Root::of_host(from)?;
        let request = FileRequest::TreeIn(TreeInRequest {
            path: guest_path(to)?,
            contents: root.contents,
            owner: match options.archive {
                true => options.owner,
                false => options.owner.or(Some((0, 0))),
            },
        });
        let (frames, mut outgoing) = mpsc::channel(FRAMES);
        let (source, follow) = (from.to_owned(), options.follow_link);
        let reading = tokio::task::spawn_blocking(move || read(&source, &root, follow, &frames));
        // What cannot be read is said before the guest hears of it.
        let Some(first) = outgoing.recv().await else {
            return ended(reading).await;
        };
        let FileLink {
            mut input,
            mut output,
        } = FileLink::start(self, to, request).await?;
        let sending = async {
            input.frame(&first).await?;
            while let Some(frame) = outgoing.recv().await {
                input.frame(&frame).await?;
            }
            let copied = ended(reading).await?;
            input.end().await?;
            Ok::<_, Error>(copied)
        };
        // An answer before the end is a failure.
        let (copied, answer) = tokio::select! {
            biased;
            early = output.next() => return Err(output.unexpected(&early?)),
            sent = sending => (sent?, output.next_within(ANSWER_WITHIN).await?),
        };
        output.done(&answer)?;
        Ok(copied)
    }

    /// Copies a file, or a directory with all that is in it, out of the guest:
    /// at most 128 levels of directories, where 256 go into it.
    ///
    /// Whatever the guest sends, nothing is written outside of the place that
    /// `to` names. It can send links that lead anywhere, though, and names and
    /// contents of its choice: what comes out of a guest is no more to be trusted
    /// than the guest.
    ///
    /// So where `to` itself is a symbolic link, which may have come out of the
    /// guest, a file or link replaces it, and a directory is refused; with a slash
    /// or `/.` at the end of `to`, it is followed to a directory that is there.
    /// Links further up in `to` are followed: name no place below what came out
    /// of a guest.
    ///
    /// # Errors
    /// See [above](#files-of-the-guest); [`Error::HostFile`] for what cannot be
    /// written here, [`Error::CopyTooLong`] and [`Error::CopyTooMany`].
    pub async fn copy_out(
        &self,
        from: impl AsRef<Path>,
        to: impl AsRef<Path>,
        options: CopyOptions,
    ) -> Result<Copied> {
        let (from, to) = (from.as_ref(), to.as_ref());
        let time = Time::of(self, options);
        let Outgoing {
            root,
            mut link,
            first,
        } = time.limit(self.begin_out(from, options)).await?;
        let (steps, incoming) = mpsc::channel(FRAMES);
        let place = to.to_owned();
        let writing = tokio::task::spawn_blocking(move || {
            write(&place, &root, &first, options.archive, incoming)
        });
        let received = time.limit(receive(&mut link, from, options, steps)).await;
        // What is not complete is removed when this is done.
        let written = ended(writing).await;
        received?;
        written
    }

    /// Has the guest send a tree, of which the root has come.
    pub(crate) async fn begin_out(&self, from: &Path, options: CopyOptions) -> Result<Outgoing> {
        let root = Root::of_guest(from)?;
        let request = FileRequest::TreeOut {
            path: guest_path(from)?,
            follow: options.follow_link,
        };
        let mut link = FileLink::start(self, from, request).await?;
        let FileOutput::Entry(first) = link.output.next_within(ANSWER_WITHIN).await? else {
            return Err(broken("it sent a tree without a root".to_owned()));
        };
        if options.follow_link && first.stat.is_symlink() {
            let why = "it sent a symbolic link instead of what it points to";
            return Err(broken(why.to_owned()));
        }
        Ok(Outgoing { root, link, first })
    }
}

/// A tree that comes out of the guest.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) root: Root,
    pub(crate) link: FileLink,
    pub(crate) first: TreeEntry,
}

/// Takes a tree from the guest, whose root has come, to the thread that writes it.
async fn receive(
    link: &mut FileLink,
    from: &Path,
    options: CopyOptions,
    steps: mpsc::Sender<FileOutput>,
) -> Result<()> {
    let mut budget = Budget::new(from, options);
    loop {
        let step = tokio::select! {
            biased;
            // The thread has failed, and says why.
            () = steps.closed() => return Ok(()),
            step = link.output.next_within(ANSWER_WITHIN) => step?,
        };
        budget.take(&step, link)?;
        let last = step == FileOutput::Done;
        if steps.send(step).await.is_err() || last {
            return Ok(());
        }
    }
}

/// How much a guest may send yet. Each step either counts against a limit or ends
/// something that did.
pub(crate) struct Budget<'a> {
    from: &'a Path,
    limit: u64,
    left: u64,
    entry_limit: u64,
    entries_left: u64,
}

impl<'a> Budget<'a> {
    /// After the root.
    pub(crate) fn new(from: &'a Path, options: CopyOptions) -> Self {
        let limit = options.limit.unwrap_or(u64::MAX);
        let entry_limit = options.entry_limit.unwrap_or(u64::MAX);
        let entry_limit = entry_limit.min(MAX_TREE_ENTRIES);
        Self {
            from,
            limit,
            left: limit,
            entry_limit,
            entries_left: entry_limit.saturating_sub(1),
        }
    }

    /// `Ok` if the next step fits, and may be one at all.
    pub(crate) fn take(&mut self, step: &FileOutput, link: &FileLink) -> Result<()> {
        match step {
            FileOutput::Data(bytes) if bytes.len() > MAX_DATA => {
                return Err(broken(format!("{} bytes in one message", bytes.len())));
            }
            FileOutput::Data(bytes) if bytes.is_empty() => {
                return Err(broken("it sent content without a byte".to_owned()));
            }
            FileOutput::Data(bytes) => {
                let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
                let left = self.left.checked_sub(length);
                self.left = left.ok_or_else(|| Error::CopyTooLong {
                    path: self.from.to_owned(),
                    limit: self.limit,
                })?;
            }
            FileOutput::Entry(_) | FileOutput::Skipped(_) => {
                let left = self.entries_left.checked_sub(1);
                self.entries_left = left.ok_or_else(|| Error::CopyTooMany {
                    path: self.from.to_owned(),
                    limit: self.entry_limit,
                })?;
            }
            // The writer refuses an end of nothing.
            FileOutput::Close | FileOutput::Done => {}
            other => return Err(link.output.unexpected(other)),
        }
        Ok(())
    }
}

async fn ended(thread: JoinHandle<Result<Copied>>) -> Result<Copied> {
    // It does not panic; a runtime that ends takes it along.
    thread.await.unwrap_or(Err(Error::NotRunning))
}

/// The root of a tree by its path.
#[derive(Debug)]
pub(crate) struct Root {
    /// What it is called where it keeps its name.
    pub(crate) name: Vec<u8>,
    /// Whether only what is in it is copied.
    pub(crate) contents: bool,
}

impl Root {
    fn of_host(path: &Path) -> Result<Self> {
        let bytes = path.as_os_str().as_bytes();
        if bytes.is_empty() || bytes.contains(&0) {
            let why = "is empty or has a NUL byte";
            return Err(Error::config("path to copy from", why));
        }
        match Self::of(bytes) {
            Some(root) => Ok(root),
            // `..` and the like: by what is there.
            None => {
                let there = path.canonicalize().map_err(|error| {
                    let errno = Errno::from_raw(error.raw_os_error().unwrap_or(0));
                    of_host(path, &Failure::opening(errno))
                })?;
                let root = Self::of(there.as_os_str().as_bytes());
                root.ok_or_else(|| Error::config("path to copy from", "does not end in a name"))
            }
        }
    }

    pub(crate) fn of_guest(path: &Path) -> Result<Self> {
        let root = Self::of(path.as_os_str().as_bytes());
        root.ok_or_else(|| Error::config("path in the guest", "does not end in a name"))
    }

    fn of(path: &[u8]) -> Option<Self> {
        let contents = path == b"." || path.ends_with(b"/.");
        let name = path
            .split(|byte| *byte == b'/')
            .rfind(|name| !matches!(*name, b"" | b"."));
        match name {
            Some(b"..") => None,
            Some(name) => Some(Self {
                name: name.to_vec(),
                contents,
            }),
            // The root directory, or the working directory, has no name to keep.
            None => Some(Self {
                name: b"root".to_vec(),
                contents: true,
            }),
        }
    }
}

fn open(path: &[u8], flags: OFlag) -> nix::Result<OwnedFd> {
    nix::fcntl::open(std::ffi::OsStr::from_bytes(path), flags, Mode::empty())
}

pub(crate) fn path_from(bytes: &[u8]) -> PathBuf {
    PathBuf::from(std::ffi::OsStr::from_bytes(bytes))
}

/// Reads the tree at `source` into frames; for a thread that may block.
fn read(
    source: &Path,
    root: &Root,
    follow: bool,
    frames: &mpsc::Sender<Vec<u8>>,
) -> Result<Copied> {
    let failed = |failure: Failure| of_host(source, &failure);
    let mut copied = Copied::default();
    let path = source.as_os_str().as_bytes();
    let mut reader = Reader::new(&open, path, follow, &root.name).map_err(failed)?;
    // Where it is, for what is skipped.
    let mut levels: Vec<Vec<u8>> = Vec::new();
    let mut in_file = false;
    let mut buffer = vec![0; MAX_DATA];
    while let Some(step) = reader.next(&mut buffer).map_err(failed)? {
        let message = match step {
            Step::Entry(entry) => {
                copied.entries = copied.entries.saturating_add(1);
                in_file = entry.stat.is_file();
                if entry.stat.is_dir() {
                    levels.push(entry.name.to_vec());
                }
                FileInput::Entry(entry)
            }
            Step::Data(n) => {
                copied.content(n);
                FileInput::Data(buffer.get(..n).unwrap_or_default().to_vec())
            }
            Step::Close => {
                if !std::mem::take(&mut in_file) {
                    levels.pop();
                }
                FileInput::Close
            }
            Step::Skipped(entry) => {
                let mut path = levels.get(1..).unwrap_or_default().to_vec();
                path.push(entry.name.into_vec());
                copied.skip(&path.join(&b'/'));
                continue;
            }
        };
        let frame = frame::encode(&message, MAX_FILE_FRAME)?;
        // Whoever wanted it has had enough.
        if frames.blocking_send(frame).is_err() {
            break;
        }
    }
    Ok(copied)
}

/// Writes the tree that comes in to `place`; for a thread that may block.
fn write(
    place: &Path,
    root: &Root,
    first: &TreeEntry,
    archive: bool,
    mut steps: mpsc::Receiver<FileOutput>,
) -> Result<Copied> {
    let failed = |failure: Failure| of_host(place, &failure);
    let mut copied = Copied {
        entries: 1,
        ..Copied::default()
    };
    let options = Options {
        owner: match archive {
            true => Owner::AsSent,
            false => Owner::Writer,
        },
        // Files of a guest must not run with the rights of whoever copied them.
        special_bits: archive,
        // A link there may be one that this guest sent before.
        follow_place: false,
        // A guest has no need to begin one again, and could send millions.
        again: false,
        entries: MAX_TREE_ENTRIES,
        depth: DEPTH,
    };
    let (path, contents) = (place.as_os_str().as_bytes(), root.contents);
    let mut writer =
        Writer::new(&open, path, contents, first, &root.name, options).map_err(failed)?;
    while let Some(step) = steps.blocking_recv() {
        match step {
            FileOutput::Entry(entry) => {
                copied.entries = copied.entries.saturating_add(1);
                writer.entry(&entry).map_err(failed)?;
            }
            FileOutput::Data(bytes) => {
                copied.content(bytes.len());
                writer.data(&bytes).map_err(failed)?;
            }
            FileOutput::Close => writer.close().map_err(failed)?,
            FileOutput::Skipped(entry) => copied.skip(&writer.path_of(&entry.name)),
            FileOutput::Done if writer.is_finished() => return Ok(copied),
            _ => return Err(broken("it did not send all of a tree".to_owned())),
        }
    }
    // Given up; nobody asks for the result but after a failure.
    Ok(copied)
}

/// A failure on this machine's side.
fn of_host(root: &Path, failure: &Failure) -> Error {
    let source = match failure.why {
        Why::System(errno) => errno.into(),
        Why::Refused(FileFailureKind::NotFound, why) => {
            io::Error::new(io::ErrorKind::NotFound, why)
        }
        Why::Refused(_, why) => io::Error::other(why),
        Why::Protocol(how) => return broken(format!("it sent {how}")),
    };
    let path = match failure.path.as_slice() {
        [] => root.to_owned(),
        below => root.join(path_from(below)),
    };
    Error::HostFile {
        what: failure.what,
        path,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_says_what_its_root_is_called() {
        for (path, name, contents) in [
            ("/a/b", "b", false),
            ("/a/b/", "b", false),
            ("/a/b//", "b", false),
            ("/a/b/.", "b", true),
            ("b", "b", false),
            ("./b", "b", false),
            (".", "root", true),
            ("./", "root", true),
            ("/", "root", true),
            ("/.", "root", true),
        ] {
            let root = Root::of(path.as_bytes()).unwrap();
            assert_eq!(
                (root.name.as_slice(), root.contents),
                (name.as_bytes(), contents),
                "{path}"
            );
        }
        for path in ["..", "/a/..", "../", "a/../."] {
            assert!(Root::of(path.as_bytes()).is_none(), "{path}");
        }
    }
}
