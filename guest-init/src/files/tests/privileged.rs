//! What needs root: owners, full and read-only file systems.

mod fuse;

use std::ops::Deref;

use nix::mount::{MsFlags, mount, umount};

use super::*;
use crate::testing::in_own_namespaces;

/// A directory with a file system of one mebibyte.
struct Small(Directory);

impl Small {
    fn new() -> Self {
        let here = Directory::new();
        let (tmpfs, size) = (Some("tmpfs"), Some("size=1m"));
        mount(tmpfs, &here.0, tmpfs, MsFlags::empty(), size).unwrap();
        Self(here)
    }
}

impl Deref for Small {
    type Target = Directory;

    fn deref(&self) -> &Directory {
        &self.0
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = umount(&self.0.0);
    }
}

#[test]
#[ignore = "needs root: mounts"]
fn a_write_that_does_not_fit_fails_and_leaves_the_old_file() {
    in_own_namespaces(
        "files::tests::privileged::a_write_that_does_not_fit_fails_and_leaves_the_old_file",
        || {
            let here = Small::new();
            let file = here.path("file");
            write(write_request(&file), b"old").unwrap();
            let error = write(write_request(&file), &vec![b'x'; 4 << 20]).unwrap_err();
            assert_eq!(error.0, FileFailureKind::NoSpace);
            assert!(error.1.contains("No space left"), "{error:?}");
            assert_eq!(fs::read(&file).unwrap(), b"old");
            assert_eq!(here.names(), ["file"]);
            // What was taken is free again.
            write(write_request(here.path("more")), &vec![b'x'; 900 << 10]).unwrap();
        },
    );
}

#[test]
#[ignore = "needs root: mounts"]
fn nothing_is_changed_on_a_read_only_file_system() {
    in_own_namespaces(
        "files::tests::privileged::nothing_is_changed_on_a_read_only_file_system",
        || {
            let here = Small::new();
            let file = here.path("file");
            fs::write(&file, "old").unwrap();
            let (flags, none) = (MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, None::<&str>);
            mount(none, &here.0.0, none, flags, none).unwrap();
            let failures = [
                kind(write(write_request(&file), b"new")),
                kind(mkdir(here.path("new"), 0o755, true)),
                kind(remove(&file, true)),
                kind(rename(&file, here.path("new"))),
            ];
            assert_eq!(failures, [FileFailureKind::ReadOnly; 4]);
            assert_eq!(read(&file).unwrap(), b"old");
        },
    );
}

#[test]
#[ignore = "needs root: mounts"]
fn a_removal_stops_at_what_is_mounted() {
    in_own_namespaces(
        "files::tests::privileged::a_removal_stops_at_what_is_mounted",
        || {
            let here = Directory::new();
            let inner = here.path("tree/inner");
            fs::create_dir_all(&inner).unwrap();
            let none = None::<&str>;
            mount(Some("tmpfs"), &inner, Some("tmpfs"), MsFlags::empty(), none).unwrap();
            fs::write(inner.join("kept"), "").unwrap();
            assert_eq!(
                kind(remove(here.path("tree"), true)),
                FileFailureKind::Other
            );
            assert!(inner.join("kept").exists());
            umount(&inner).unwrap();
        },
    );
}

#[test]
#[ignore = "needs root: changes owners"]
fn a_file_gets_the_owner_that_is_asked_for_or_keeps_its_own() {
    in_own_namespaces(
        "files::tests::privileged::a_file_gets_the_owner_that_is_asked_for_or_keeps_its_own",
        || {
            let here = Directory::new();
            let file = here.path("file");
            let request = WriteRequest {
                mode: Some(0o6755),
                uid: Some(1234),
                gid: Some(5678),
                ..write_request(&file)
            };
            write(request, b"one").unwrap();
            let seen = || {
                let meta = file.metadata().unwrap();
                (meta.uid(), meta.gid(), meta.mode() & 0o7777)
            };
            assert_eq!(seen(), (1234, 5678, 0o6755));
            write(write_request(&file), b"two").unwrap();
            assert_eq!(seen(), (1234, 5678, 0o6755));
            let request = WriteRequest {
                uid: Some(0),
                ..write_request(&file)
            };
            write(request, b"three").unwrap();
            assert_eq!(seen(), (0, 5678, 0o6755));
        },
    );
}

#[test]
#[ignore = "needs root: mounts"]
fn a_tree_that_does_not_fit_fails_with_the_name_of_the_file() {
    in_own_namespaces(
        "files::tests::privileged::a_tree_that_does_not_fit_fails_with_the_name_of_the_file",
        || {
            use flashpan_protocol::file::{TreeEntry, TreeInRequest};
            let here = Small::new();
            let entry = |name: &str, mode| {
                FileInput::Entry(TreeEntry {
                    name: Bytes::from(name.as_bytes()),
                    stat: FileStat {
                        mode,
                        ..FileStat::default()
                    },
                    target: Bytes::new(),
                })
            };
            let mut session = Session::start(FileRequest::TreeIn(TreeInRequest {
                path: bytes(&here.0.0),
                contents: false,
                owner: None,
            }));
            session.send(&entry("tree", 0o040_755));
            session.send(&entry("big", 0o100_644));
            for _ in 0..64 {
                session.send(&FileInput::Data(vec![b'x'; MAX_DATA]));
            }
            let (kind, message) = session.finish().unwrap_err();
            assert_eq!(kind, FileFailureKind::NoSpace);
            assert!(
                message.starts_with("big: write it: No space left"),
                "{message}"
            );
            assert_eq!(fs::read_dir(here.path("tree")).unwrap().count(), 0);
        },
    );
}

#[test]
#[ignore = "needs root: mounts"]
fn the_kernels_books_are_no_part_of_a_tree_and_other_mounts_are() {
    in_own_namespaces(
        "files::tests::privileged::the_kernels_books_are_no_part_of_a_tree_and_other_mounts_are",
        || {
            let here = Small::new();
            for (name, kind) in [("proc", "proc"), ("more", "tmpfs")] {
                fs::create_dir(here.path(name)).unwrap();
                let none = None::<&str>;
                mount(none, &here.path(name), Some(kind), MsFlags::empty(), none).unwrap();
            }
            fs::write(here.path("more/file"), "content").unwrap();
            let mut session = Session::start(FileRequest::TreeOut {
                path: bytes(&here.0.0),
                follow: false,
            });
            let (mut entries, mut skipped) = (0, Vec::new());
            loop {
                match session.next().unwrap() {
                    FileOutput::Entry(_) => entries += 1,
                    FileOutput::Skipped(entry) => skipped.push(entry.name),
                    FileOutput::Data(_) | FileOutput::Close => {}
                    FileOutput::Done => break,
                    other => panic!("{other:?}"),
                }
            }
            session.abandon();
            for name in ["proc", "more"] {
                umount(&here.path(name)).unwrap();
            }
            assert_eq!((entries, skipped), (3, vec![bytes("proc")]));
        },
    );
}
