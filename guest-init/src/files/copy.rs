//! Trees, in and out.

use std::os::fd::OwnedFd;

use flashpan_protocol::agent::MAX_DATA;
use flashpan_protocol::file::{
    FileFailure, FileFailureKind, FileInput, FileOutput, MAX_TREE_DEPTH, MAX_TREE_ENTRIES,
    TreeInRequest,
};
use flashpan_tree_copy::{Failure, Options, Owner, Reader, Step, Why, Writer};
use nix::errno::Errno;
use nix::fcntl::OFlag;

use super::link::{Link, Stop, kind};
use super::place::{check, lookup};

/// Most bytes of a path that a message has: what is far down is at its end.
const PATH_SHOWN: usize = 160;

/// Receives the tree that `request` describes.
pub(super) fn receive(
    link: &mut Link,
    root: &OwnedFd,
    request: &TreeInRequest,
) -> Result<(), Stop> {
    check(&request.path)?;
    let options = Options {
        owner: request
            .owner
            .map_or(Owner::AsSent, |(uid, gid)| Owner::Of(uid, gid)),
        special_bits: true,
        // Who asks may write everywhere in the guest.
        follow_place: true,
        again: true,
        entries: MAX_TREE_ENTRIES,
        depth: MAX_TREE_DEPTH,
    };
    let FileInput::Entry(first) = link.receive()? else {
        return Err(Stop::Gone);
    };
    let open = |path: &[u8], flags: OFlag| lookup(root, path, flags);
    let (path, contents) = (&request.path, request.contents);
    let mut writer =
        Writer::new(&open, path, contents, &first, &first.name, options).map_err(told)?;
    loop {
        let done = match link.receive()? {
            FileInput::Entry(entry) => writer.entry(&entry),
            FileInput::Data(bytes) => writer.data(&bytes),
            FileInput::Close => writer.close(),
            FileInput::Enter(entry) => writer.enter(&entry),
            FileInput::HardLink { name, path } => writer.hard_link(&name, &path),
            FileInput::End if writer.is_finished() => return Ok(()),
            FileInput::End | FileInput::Start(_) => return Err(Stop::Gone),
        };
        done.map_err(told)?;
    }
}

/// Sends the tree at `path`.
pub(super) fn send(link: &mut Link, root: &OwnedFd, path: &[u8], follow: bool) -> Result<(), Stop> {
    check(path)?;
    let open = |path: &[u8], flags: OFlag| lookup(root, path, flags);
    // The supervisor knows what it calls the root.
    let mut reader = Reader::new(&open, path, follow, b"root").map_err(told)?;
    let mut buffer = vec![0; MAX_DATA];
    while let Some(step) = reader.next(&mut buffer).map_err(told)? {
        let message = match step {
            Step::Entry(entry) => FileOutput::Entry(entry),
            Step::Data(n) => FileOutput::Data(buffer.get(..n).unwrap_or_default().to_vec()),
            Step::Close => FileOutput::Close,
            Step::Skipped(entry) => FileOutput::Skipped(entry),
        };
        link.send(&message)?;
    }
    Ok(())
}

/// The message for the supervisor: it does not know which file it was.
#[allow(clippy::needless_pass_by_value)] // For `map_err`.
fn told(failure: Failure) -> Stop {
    let (kind, errno) = match failure.why {
        Why::System(errno) => (kind(errno), errno as i32),
        Why::Refused(kind @ FileFailureKind::NotFound, _) => (kind, Errno::ENOENT as i32),
        Why::Refused(kind, _) => (kind, 0),
        // Nobody who obeys it waits for an answer.
        Why::Protocol(_) => return Stop::Gone,
    };
    let from = failure.path.len().saturating_sub(PATH_SHOWN);
    let path = String::from_utf8_lossy(failure.path.get(from..).unwrap_or_default());
    let message = match (path.is_empty(), from) {
        (true, _) => failure.to_string(),
        (false, 0) => format!("{path}: {failure}"),
        (false, _) => format!("…{path}: {failure}"),
    };
    Stop::Failed(FileFailure {
        kind,
        errno,
        message,
    })
}
