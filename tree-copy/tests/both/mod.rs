//! Both ends of a copy in one process, and what is sent between them.

use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use flashpan_protocol::agent::Bytes;
use flashpan_protocol::file::{FileStat, MAX_TREE_DEPTH, MAX_TREE_ENTRIES, TreeEntry};
use flashpan_tree_copy::{Failure, Options, Owner, Reader, Step, Writer};
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

pub(crate) const OPTIONS: Options = Options {
    owner: Owner::Writer,
    special_bits: true,
    follow_place: true,
    again: true,
    entries: MAX_TREE_ENTRIES,
    depth: MAX_TREE_DEPTH,
};

pub(crate) fn open(path: &[u8], flags: OFlag) -> nix::Result<OwnedFd> {
    nix::fcntl::open(
        Path::new(std::ffi::OsStr::from_bytes(path)),
        flags,
        Mode::empty(),
    )
}

/// Copies as the two ends do; what was skipped.
pub(crate) fn copy_as(
    from: &Path,
    to: &str,
    contents: bool,
    options: Options,
) -> Result<Vec<String>, Failure> {
    let own = from.file_name().unwrap().as_bytes();
    let mut reader = Reader::new(&open, from.as_os_str().as_bytes(), false, own)?;
    let mut writer: Option<Writer> = None;
    let mut buffer = vec![0; 1000];
    let mut skipped = Vec::new();
    while let Some(step) = reader.next(&mut buffer)? {
        match (step, &mut writer) {
            (Step::Entry(root), None) => {
                let to = to.as_bytes();
                writer = Some(Writer::new(&open, to, contents, &root, own, options)?);
            }
            (Step::Entry(entry), Some(writer)) => writer.entry(&entry)?,
            (Step::Data(n), Some(writer)) => writer.data(&buffer[..n])?,
            (Step::Close, Some(writer)) => writer.close()?,
            (Step::Skipped(entry), Some(writer)) => {
                skipped.push(String::from_utf8(writer.path_of(&entry.name)).unwrap());
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(writer.unwrap().is_finished());
    Ok(skipped)
}

pub(crate) fn copy(from: &Path, to: &Path) -> Result<(), Failure> {
    copy_as(from, to.to_str().unwrap(), false, OPTIONS).map(drop)
}

pub(crate) fn of_kind(name: &str, mode: u32, target: &str) -> TreeEntry {
    TreeEntry {
        name: Bytes::from(name.as_bytes()),
        stat: FileStat {
            mode,
            ..FileStat::default()
        },
        target: Bytes::from(target.as_bytes()),
    }
}

pub(crate) fn file(name: &str) -> TreeEntry {
    of_kind(name, 0o100_644, "")
}

pub(crate) fn directory(name: &str) -> TreeEntry {
    of_kind(name, 0o040_755, "")
}

pub(crate) fn link(name: &str, target: &str) -> TreeEntry {
    of_kind(name, 0o120_777, target)
}
