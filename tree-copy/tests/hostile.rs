//! What becomes of a tree that nobody should send.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

#[allow(dead_code, reason = "each test program uses a part")]
mod both;

use std::fs;
use std::os::unix::fs::MetadataExt;

use both::{OPTIONS, copy, directory, file, link, of_kind, open};
use flashpan_protocol::file::{FileFailureKind, FileStat, MAX_NAME, MAX_TREE_DEPTH, TreeEntry};
use flashpan_tree_copy::{Failure, Options, Why, Writer};
use tempfile::TempDir;

/// A place to write to, with something beside it that must stay as it is.
struct Victim(TempDir);

impl Victim {
    fn new() -> Self {
        let here = tempfile::tempdir().unwrap();
        fs::create_dir(here.path().join("outside")).unwrap();
        fs::write(here.path().join("outside/file"), "precious").unwrap();
        fs::create_dir(here.path().join("to")).unwrap();
        Self(here)
    }

    fn writer(&self, root: &TreeEntry) -> Result<Writer, Failure> {
        let to = self.0.path().join("to");
        let to = to.to_str().unwrap().as_bytes();
        Writer::new(&open, to, false, root, b"tree", OPTIONS)
    }

    fn in_tree(&self) -> Writer {
        self.writer(&directory("whatever it says")).unwrap()
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let mut names: Vec<_> = fs::read_dir(self.0.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["outside", "to"]);
        let outside = self.0.path().join("outside");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
        assert_eq!(fs::read(outside.join("file")).unwrap(), b"precious");
    }
}

fn is_protocol<T: std::fmt::Debug>(result: Result<T, Failure>) {
    let why = result.unwrap_err().why;
    assert!(matches!(why, Why::Protocol(_)), "{why:?}");
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    let victim = Victim::new();
    let long = "n".repeat(MAX_NAME + 1);
    for name in [
        "",
        ".",
        "..",
        "/",
        "../outside/file",
        "/etc/x",
        "a/b",
        "a\0",
        &long,
    ] {
        for entry in [file(name), directory(name), link(name, "x")] {
            is_protocol(victim.in_tree().entry(&entry));
        }
    }
    // What the root is called is not up to it.
    let to = victim.0.path().join("to/tree");
    fs::remove_dir(&to).unwrap();
    let mut writer = victim.writer(&file("../outside/file")).unwrap();
    writer.data(b"content").unwrap();
    writer.close().unwrap();
    assert_eq!(fs::read(to).unwrap(), b"content");
}

#[test]
fn nothing_is_written_through_a_link_that_was_sent() {
    let victim = Victim::new();
    for target in ["../../outside", "../..", "/"] {
        let mut writer = victim.in_tree();
        writer.entry(&link("way", target)).unwrap();
        let error = writer.entry(&directory("way")).unwrap_err();
        assert!(matches!(
            error.why,
            Why::Refused(FileFailureKind::Exists, _)
        ));
    }
    // Nor to what it points to: it is replaced.
    let mut writer = victim.in_tree();
    writer.entry(&link("file", "../../outside/file")).unwrap();
    writer.entry(&file("file")).unwrap();
    writer.data(b"poison").unwrap();
    writer.close().unwrap();
    let written = victim.0.path().join("to/tree/file");
    assert!(written.symlink_metadata().unwrap().is_file());
    // Links of links neither.
    let mut writer = victim.in_tree();
    writer.entry(&link("one", "two")).unwrap();
    writer.entry(&link("two", "../../outside")).unwrap();
    assert!(writer.entry(&directory("one")).is_err());
}

#[test]
fn what_is_sent_twice_is_replaced_or_filled() {
    let victim = Victim::new();
    let mut writer = victim.in_tree();
    for content in ["first", "second"] {
        writer.entry(&directory("d")).unwrap();
        writer.entry(&file("f")).unwrap();
        writer.data(content.as_bytes()).unwrap();
        writer.close().unwrap();
        writer.close().unwrap();
    }
    let file = victim.0.path().join("to/tree/d/f");
    assert_eq!(fs::read(file).unwrap(), b"second");
}

#[test]
fn a_hard_link_is_to_a_file_of_the_tree_by_way_of_its_directories() {
    let victim = Victim::new();
    let outside = victim.0.path().join("outside/file");
    let mut writer = victim.in_tree();
    writer.entry(&file("f")).unwrap();
    writer.close().unwrap();
    writer.entry(&link("out", "../../outside")).unwrap();
    writer
        .entry(&link("to-file", "../../outside/file"))
        .unwrap();
    writer.entry(&directory("d")).unwrap();
    for (path, says) in [
        ("none", "is not there"),
        ("none/f", "is not there"),
        ("f/x", "is not there"),
        ("out/file", "is not there"),
        ("d", "neither a file nor a symbolic link"),
    ] {
        let error = writer.hard_link(b"new", path.as_bytes()).unwrap_err();
        assert!(error.to_string().contains(says), "{path}: {error}");
        assert_eq!(error.path, b"d/new", "{path}");
    }
    let deep = "d/".repeat(MAX_TREE_DEPTH + 1) + "f";
    let absolute = outside.to_str().unwrap();
    for path in [
        "",
        "..",
        "../../outside/file",
        "d/../f",
        "./f",
        "d//f",
        absolute,
        &deep,
    ] {
        is_protocol(writer.hard_link(b"new", path.as_bytes()));
    }
    for name in [&b""[..], b".", b"..", b"../x", b"a/b"] {
        is_protocol(writer.hard_link(name, b"f"));
    }
    // A link to a link is the link, and not what that points to.
    writer.hard_link(b"same", b"to-file").unwrap();
    let to = victim.0.path().join("to/tree");
    assert!(to.join("d/same").symlink_metadata().unwrap().is_symlink());
    assert_eq!(fs::metadata(outside).unwrap().nlink(), 1);
    assert!(writer.hard_link(b"d", b"f").is_ok());
    writer.close().unwrap();
    let error = writer.hard_link(b"d", b"f").unwrap_err();
    assert!(matches!(
        error.why,
        Why::Refused(FileFailureKind::IsADirectory, _)
    ));
    // Nothing half made stays.
    let mut names: Vec<_> = fs::read_dir(&to)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["d", "f", "out", "to-file"]);
    drop(writer);
    // There is no tree that a single file is in.
    fs::remove_dir_all(&to).unwrap();
    let mut writer = victim.writer(&file("tree")).unwrap();
    is_protocol(writer.hard_link(b"x", b"tree"));
    writer.close().unwrap();
    is_protocol(writer.hard_link(b"x", b"tree"));
}

#[test]
fn only_a_directory_is_gone_into() {
    let victim = Victim::new();
    let mut writer = victim.in_tree();
    is_protocol(writer.enter(&file("f")));
    writer.entry(&link("way", "../../outside")).unwrap();
    let error = writer.enter(&directory("way")).unwrap_err();
    assert!(matches!(
        error.why,
        Why::Refused(FileFailureKind::Exists, _)
    ));
    is_protocol(writer.enter(&directory("..")));
}

#[test]
fn frames_that_are_out_of_order_are_refused() {
    let victim = Victim::new();
    is_protocol(victim.in_tree().data(b"x"));
    let mut writer = victim.in_tree();
    writer.close().unwrap();
    assert!(writer.is_finished());
    is_protocol(writer.close());
    is_protocol(writer.entry(&file("second root")));
    let mut writer = victim.in_tree();
    writer.entry(&file("open")).unwrap();
    is_protocol(writer.entry(&file("another")));
    for mode in [0o010_644, 0o020_644, 0o060_644, 0o140_644, 0] {
        is_protocol(victim.in_tree().entry(&of_kind("device", mode, "")));
    }
    for target in ["", "a\0b", &"x".repeat(5000)] {
        is_protocol(victim.in_tree().entry(&link("link", target)));
    }
    let times = TreeEntry {
        stat: FileStat {
            mode: 0o100_644,
            // UTIME_NOW of Linux.
            modified_ns: (1 << 30) - 1,
            modified: 77,
            ..FileStat::default()
        },
        ..file("timed")
    };
    let mut writer = victim.in_tree();
    writer.entry(&times).unwrap();
    writer.close().unwrap();
    let meta = victim.0.path().join("to/tree/timed").metadata().unwrap();
    assert_eq!((meta.mtime(), meta.mtime_nsec()), (77, 0));
}

#[test]
fn a_tree_is_no_deeper_than_the_options_allow() {
    for (depth, most) in [(1, 1), (3, 3), (usize::MAX, MAX_TREE_DEPTH)] {
        let victim = Victim::new();
        let to = victim.0.path().join("to");
        let to = to.to_str().unwrap().as_bytes();
        let options = Options { depth, ..OPTIONS };
        let root = directory("tree");
        let mut writer = Writer::new(&open, to, false, &root, b"tree", options).unwrap();
        for _ in 1..most {
            writer.entry(&directory("d")).unwrap();
        }
        // Files are in the last level and none of their own.
        writer.entry(&file("f")).unwrap();
        writer.close().unwrap();
        let error = writer.entry(&directory("d")).unwrap_err();
        assert!(matches!(
            error.why,
            Why::Refused(FileFailureKind::TooMany, _)
        ));
    }
}

#[test]
fn a_directory_that_is_there_and_gets_what_is_in_the_root_is_no_level() {
    let victim = Victim::new();
    let to = victim.0.path().join("to");
    let to = to.to_str().unwrap().as_bytes();
    let root = directory("tree");
    let mut writer = Writer::new(&open, to, true, &root, b"tree", OPTIONS).unwrap();
    for _ in 0..MAX_TREE_DEPTH {
        writer.entry(&directory("d")).unwrap();
    }
    let error = writer.entry(&directory("d")).unwrap_err();
    assert!(matches!(
        error.why,
        Why::Refused(FileFailureKind::TooMany, _)
    ));
}

#[test]
fn a_tree_that_is_too_deep_is_refused_by_both_sides() {
    let victim = Victim::new();
    let mut writer = victim.in_tree();
    for _ in 1..MAX_TREE_DEPTH {
        writer.entry(&directory("d")).unwrap();
    }
    let error = writer.entry(&directory("d")).unwrap_err();
    assert!(matches!(
        error.why,
        Why::Refused(FileFailureKind::TooMany, _)
    ));
    assert_eq!(
        error.path.len(),
        2 * MAX_TREE_DEPTH - 1,
        "where it is too deep"
    );
    drop(writer);
    let mut inner = victim.0.path().join("to/tree");
    for _ in 0..MAX_TREE_DEPTH {
        inner.push("d");
    }
    fs::create_dir_all(inner).unwrap();
    let error = copy(
        &victim.0.path().join("to/tree"),
        &victim.0.path().join("to/copy"),
    );
    assert!(matches!(
        error.unwrap_err().why,
        Why::Refused(FileFailureKind::TooMany, _)
    ));
}
