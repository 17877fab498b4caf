//! One operation, from its request to its last frame.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};

use flashpan_protocol::file::{FileOutput, FileRequest};

use super::link::{Link, Stop};
use super::{copy, read, tree, watch, write};

/// Does what the supervisor asks for on `socket`, which blocks. Sets `watching` if
/// that has no end of its own.
pub(super) fn serve(socket: UnixStream, root: &OwnedFd, watching: &AtomicBool) {
    let mut link = Link::new(socket);
    let done = link
        .request()
        .and_then(|request| perform(&mut link, root, &request, watching))
        .and_then(|()| link.send(&FileOutput::Done));
    if let Err(Stop::Failed(failure)) = done {
        link.fail(failure);
    }
}

fn perform(
    link: &mut Link,
    root: &OwnedFd,
    request: &FileRequest,
    watching: &AtomicBool,
) -> Result<(), Stop> {
    match request {
        FileRequest::Write(request) => write::write(link, root, request),
        FileRequest::Read {
            path,
            offset,
            length,
        } => read::read(link, root, path, *offset, *length),
        FileRequest::List { path } => read::list(link, root, path),
        FileRequest::Stat { path, follow } => read::stat(link, root, path, *follow),
        FileRequest::MakeDirectory {
            path,
            mode,
            parents,
        } => tree::make_directory(root, path, *mode, *parents),
        FileRequest::Remove { path, recursive } => tree::remove(link, root, path, *recursive),
        FileRequest::Rename { from, to } => tree::rename(root, from, to),
        FileRequest::TreeIn(request) => copy::receive(link, root, request),
        FileRequest::TreeOut { path, follow } => copy::send(link, root, path, *follow),
        FileRequest::Watch {
            path,
            recursive,
            most,
        } => {
            watching.store(true, Ordering::Release);
            watch::watch(link, root, path, *recursive, *most)
        }
    }
}
