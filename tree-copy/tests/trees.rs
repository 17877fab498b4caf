//! What becomes of a tree that is taken apart and put together again.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

#[allow(dead_code, reason = "each test program uses a part")]
mod both;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use both::{OPTIONS, copy, copy_as, directory, file, of_kind, open};
use flashpan_protocol::file::{FileFailureKind, MAX_NAME, TreeEntry};
use flashpan_tree_copy::{Options, Reader, Step, Why, Writer};
use nix::sys::stat::Mode;
use tempfile::TempDir;

/// Everything that is to be kept of a tree.
fn picture(root: &Path) -> BTreeMap<PathBuf, (u32, i64, i64, Vec<u8>)> {
    let mut all = BTreeMap::new();
    let mut left = vec![root.to_owned()];
    while let Some(path) = left.pop() {
        let meta = path.symlink_metadata().unwrap();
        let content = if meta.is_dir() {
            left.extend(
                fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
            Vec::new()
        } else if meta.is_symlink() {
            fs::read_link(&path).unwrap().into_os_string().into_vec()
        } else {
            fs::read(&path).unwrap()
        };
        let name = path.strip_prefix(root).unwrap().to_owned();
        all.insert(
            name,
            (meta.mode(), meta.mtime(), meta.mtime_nsec(), content),
        );
    }
    all
}

fn set_time(path: &Path, seconds: i64) {
    let time = nix::sys::time::TimeSpec::new(seconds, 123_456_789);
    let itself = nix::sys::stat::UtimensatFlags::NoFollowSymlink;
    nix::sys::stat::utimensat(nix::fcntl::AT_FDCWD, path, &time, &time, itself).unwrap();
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

/// A tree with a bit of everything, and the directory that it is in.
fn tree() -> (TempDir, PathBuf) {
    let here = tempfile::tempdir().unwrap();
    let root = here.path().join("tree");
    fs::create_dir_all(root.join("deep/down")).unwrap();
    fs::create_dir(root.join("empty")).unwrap();
    fs::write(root.join("file"), vec![b'x'; 2345]).unwrap();
    fs::write(root.join("nothing"), "").unwrap();
    fs::write(root.join("deep/down/program"), "#!/bin/sh\n").unwrap();
    set_mode(&root.join("deep/down/program"), 0o4755);
    set_mode(&root.join("empty"), 0o1777);
    symlink("deep/down", root.join("link")).unwrap();
    symlink("/nowhere/at/all", root.join("broken")).unwrap();
    for name in [
        &b"\xff\xfe not text"[..],
        b"new\nline",
        b"-rf *",
        b"...",
        b" ",
        &[b'n'; MAX_NAME],
    ] {
        fs::write(root.join(OsString::from_vec(name.to_vec())), name).unwrap();
    }
    for (path, time) in [
        ("file", 1_000_000_000),
        ("link", 1),
        ("deep/down", 86_400),
        ("deep", -5),
    ] {
        set_time(&root.join(path), time);
    }
    // No directory is changed by what is in it.
    set_mode(&root.join("deep"), 0o555);
    set_time(&root, 42);
    (here, root)
}

#[test]
fn a_copy_is_what_was_copied() {
    let (here, root) = tree();
    let to = here.path().join("copy");
    copy(&root, &to).unwrap();
    assert_eq!(picture(&to), picture(&root));
    // And again over it, after which only directories that were filled are as new.
    copy_as(&root, to.to_str().unwrap(), true, OPTIONS).unwrap();
    set_time(&to, 42);
    set_time(&to.join("deep/down"), 86_400);
    assert_eq!(picture(&to), picture(&root));
}

#[test]
fn bits_that_give_rights_away_are_kept_only_if_wanted() {
    let (here, root) = tree();
    let to = here.path().join("copy");
    let options = Options {
        special_bits: false,
        ..OPTIONS
    };
    copy_as(&root, to.to_str().unwrap(), false, options).unwrap();
    let mode = |path: &str| to.join(path).metadata().unwrap().mode() & 0o7777;
    assert_eq!(mode("deep/down/program"), 0o755);
    assert_eq!(mode("empty"), 0o777);
}

/// The rules of `docker cp`: what is copied, to where, and what is there then.
#[test]
fn it_lands_where_docker_would_put_it() {
    let cases: [(&str, bool, &str, Result<&str, FileFailureKind>); 19] = [
        ("file", false, "new", Ok("new")),
        ("file", false, "dir", Ok("dir/file")),
        ("file", false, "dir/", Ok("dir/file")),
        ("file", false, "dir/.", Ok("dir/file")),
        ("file", false, "dir/new", Ok("dir/new")),
        ("file", false, "other", Ok("other")),
        ("file", false, "to-other", Ok("other")),
        ("file", false, "to-dir", Ok("dir/file")),
        ("file", false, "to-new", Ok("dir/made")),
        ("file", false, "new/", Err(FileFailureKind::NotFound)),
        ("file", true, "new", Err(FileFailureKind::NotADirectory)),
        ("tree", false, "new", Ok("new/inner")),
        ("tree", false, "new/", Ok("new/inner")),
        ("tree", false, "dir", Ok("dir/tree/inner")),
        ("tree", false, "to-dir", Ok("dir/tree/inner")),
        ("tree", false, "other", Err(FileFailureKind::Exists)),
        ("tree", true, "dir", Ok("dir/inner")),
        ("tree", true, "to-dir/", Ok("dir/inner")),
        ("tree", true, "new", Ok("new/inner")),
    ];
    for (from, contents, to, expected) in cases {
        let here = tempfile::tempdir().unwrap();
        let source = here.path().join("source");
        fs::create_dir_all(source.join("tree")).unwrap();
        fs::write(source.join("tree/inner"), "content").unwrap();
        fs::write(source.join("file"), "content").unwrap();
        let place = here.path().join("place");
        fs::create_dir_all(place.join("dir")).unwrap();
        fs::write(place.join("other"), "old").unwrap();
        symlink("other", place.join("to-other")).unwrap();
        symlink(place.join("dir"), place.join("to-dir")).unwrap();
        symlink("dir/made", place.join("to-new")).unwrap();
        let case = format!("{from} {contents} {to}");
        let to = format!("{}/{to}", place.display());
        let copied = copy_as(&source.join(from), &to, contents, OPTIONS);
        match expected {
            Ok(file) => {
                copied.unwrap_or_else(|error| panic!("{case}: {error}"));
                let file = place.join(file);
                assert!(file.symlink_metadata().unwrap().is_file(), "{case}");
                assert_eq!(fs::read(file).unwrap(), b"content", "{case}");
            }
            Err(kind) => {
                let Why::Refused(why, _) = copied.unwrap_err().why else {
                    panic!("{case}");
                };
                assert_eq!(why, kind, "{case}");
            }
        }
    }
}

/// As far as a link is concerned that an earlier tree may have left.
#[test]
fn a_link_in_the_place_is_followed_only_if_the_path_says_so() {
    const IN_THE_WAY: &str = "it is a symbolic link; name what it points to, or remove it";
    let cases: [(&str, bool, &str, Result<&str, &str>); 20] = [
        ("file", false, "to-other", Ok("to-other")),
        ("file", false, "to-dir", Ok("to-dir")),
        ("file", false, "to-new", Ok("to-new")),
        ("link", false, "to-other", Ok("to-other")),
        ("link", false, "to-dir", Ok("to-dir")),
        ("file", false, "dir/file", Ok("dir/file")),
        ("file", false, "dir", Ok("dir/file")),
        ("file", false, "to-dir/", Ok("dir/file")),
        ("file", false, "to-dir/.", Ok("dir/file")),
        ("file", false, "to-dir/new", Ok("dir/new")),
        ("tree", false, "to-dir", Err(IN_THE_WAY)),
        ("tree", true, "to-dir", Err(IN_THE_WAY)),
        ("tree", false, "to-new", Err(IN_THE_WAY)),
        ("tree", true, "to-new", Err(IN_THE_WAY)),
        ("tree", false, "to-other", Err(IN_THE_WAY)),
        ("tree", false, "to-new/", Err(IN_THE_WAY)),
        ("tree", false, "to-dir/", Ok("dir/tree/inner")),
        ("tree", true, "to-dir/.", Ok("dir/inner")),
        ("tree", true, "dir", Ok("dir/inner")),
        ("tree", false, "new", Ok("new/inner")),
    ];
    let options = Options {
        follow_place: false,
        ..OPTIONS
    };
    for (from, contents, to, expected) in cases {
        let here = tempfile::tempdir().unwrap();
        let source = here.path().join("source");
        fs::create_dir_all(source.join("tree")).unwrap();
        fs::write(source.join("tree/inner"), "content").unwrap();
        fs::write(source.join("file"), "content").unwrap();
        symlink("content", source.join("link")).unwrap();
        let place = here.path().join("place");
        fs::create_dir_all(place.join("dir")).unwrap();
        fs::write(place.join("other"), "old").unwrap();
        symlink("other", place.join("to-other")).unwrap();
        symlink("dir", place.join("to-dir")).unwrap();
        symlink("made", place.join("to-new")).unwrap();
        symlink("../other", place.join("dir/file")).unwrap();
        let before = picture(&place);
        let case = format!("{from} {contents} {to}");
        let to = format!("{}/{to}", place.display());
        let copied = copy_as(&source.join(from), &to, contents, options);
        match expected {
            Ok(made) => {
                copied.unwrap_or_else(|error| panic!("{case}: {error}"));
                let made = place.join(made);
                let is_link = made.symlink_metadata().unwrap().is_symlink();
                assert_eq!(is_link, from == "link", "{case}");
                let content = match is_link {
                    true => fs::read_link(made).unwrap().into_os_string().into_vec(),
                    false => fs::read(made).unwrap(),
                };
                assert_eq!(content, b"content", "{case}");
            }
            Err(why) => {
                assert_eq!(copied.unwrap_err().to_string(), why, "{case}");
                assert_eq!(picture(&place), before, "{case}");
            }
        }
        assert_eq!(fs::read(place.join("other")).unwrap(), b"old", "{case}");
        assert!(!place.join("made").exists(), "{case}");
    }
}

#[test]
fn a_directory_that_is_filled_keeps_its_permissions() {
    let (here, root) = tree();
    let to = here.path().join("there");
    fs::create_dir(&to).unwrap();
    set_mode(&to, 0o710);
    copy_as(&root, to.to_str().unwrap(), true, OPTIONS).unwrap();
    assert_eq!(to.metadata().unwrap().mode() & 0o7777, 0o710);
    // One inside that is new becomes what was sent.
    assert_eq!(to.join("empty").metadata().unwrap().mode() & 0o7777, 0o1777);
}

#[test]
fn directories_that_were_there_stay_as_they_are_at_every_level() {
    let (here, root) = tree();
    let to = here.path().join("there");
    let own = ["tree", "tree/deep", "tree/empty"];
    for name in own {
        fs::create_dir_all(to.join(name)).unwrap();
        set_mode(&to.join(name), 0o710);
    }
    // Nothing is put into this one.
    set_time(&to.join("tree/empty"), 1234);
    copy_as(&root, to.to_str().unwrap(), false, OPTIONS).unwrap();
    for name in own {
        let there = to.join(name).metadata().unwrap();
        assert_eq!(there.mode() & 0o7777, 0o710, "{name}");
        let sent = root.parent().unwrap().join(name).metadata().unwrap();
        assert_ne!(there.mtime(), sent.mtime(), "{name}");
    }
    assert_eq!(to.join("tree/empty").metadata().unwrap().mtime(), 1234);
    let new = to.join("tree/deep/down").metadata().unwrap();
    assert_eq!(new.mtime(), 86_400);
}

#[test]
fn directories_and_others_do_not_take_each_others_places() {
    for (from, there) in [
        ("dir", "file"),
        ("dir", "link"),
        ("file", "dir"),
        ("link", "dir"),
    ] {
        let here = tempfile::tempdir().unwrap();
        let make = |what: &str, path: PathBuf| match what {
            "dir" => fs::create_dir(path).unwrap(),
            "file" => fs::write(path, "mine").unwrap(),
            _ => symlink("/tmp", path).unwrap(),
        };
        let (source, to) = (here.path().join("source"), here.path().join("to"));
        fs::create_dir(&source).unwrap();
        fs::create_dir(&to).unwrap();
        make(from, source.join("thing"));
        make(there, to.join("thing"));
        let before = picture(&to.join("thing"));
        let error = copy_as(&source, to.to_str().unwrap(), true, OPTIONS).unwrap_err();
        assert!(matches!(error.why, Why::Refused(..)), "{error}");
        assert_eq!(error.path, b"thing");
        assert_eq!(picture(&to.join("thing")), before);
    }
}

#[test]
fn what_is_neither_file_nor_directory_nor_link_is_skipped_and_named() {
    let (here, root) = tree();
    nix::unistd::mkfifo(&root.join("empty/fifo"), Mode::S_IRWXU).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(root.join("empty/socket")).unwrap();
    let to = here.path().join("copy");
    let mut skipped = copy_as(&root, to.to_str().unwrap(), false, OPTIONS).unwrap();
    skipped.sort();
    assert_eq!(skipped, ["empty/fifo", "empty/socket"]);
    assert_eq!(fs::read_dir(to.join("empty")).unwrap().count(), 0);
    // As the root there is nothing else to copy.
    let error = copy(&root.join("empty/fifo"), &to).unwrap_err();
    assert!(matches!(
        error.why,
        Why::Refused(FileFailureKind::NotRegular, _)
    ));
}

#[test]
fn a_file_without_a_size_is_read_to_its_end() {
    let here = tempfile::tempdir().unwrap();
    copy(Path::new("/proc/version"), here.path()).unwrap();
    let copied = fs::read(here.path().join("version")).unwrap();
    assert_eq!(copied, fs::read("/proc/version").unwrap());
}

/// One that is written to all the time has an end all the same.
#[test]
fn a_file_is_as_long_as_it_was_when_it_was_looked_at() {
    let here = tempfile::tempdir().unwrap();
    for before in [0, 3] {
        let path = here.path().join("log");
        fs::write(&path, vec![b'a'; before]).unwrap();
        let own = path.as_os_str().as_bytes();
        let mut reader = Reader::new(&open, own, false, b"log").unwrap();
        let mut buffer = vec![0; 1000];
        assert!(matches!(reader.next(&mut buffer), Ok(Some(Step::Entry(_)))));
        fs::write(&path, [b'a'; 500]).unwrap();
        let mut read = 0;
        while let Some(Step::Data(n)) = reader.next(&mut buffer).unwrap() {
            read += n;
        }
        assert_eq!(read, before);
    }
}

#[test]
fn a_copy_that_is_given_up_leaves_no_half_file() {
    let here = tempfile::tempdir().unwrap();
    let old = here.path().join("file");
    fs::write(&old, "old").unwrap();
    let to = here.path().to_str().unwrap().as_bytes();
    let mut writer = Writer::new(&open, to, false, &file("file"), b"file", OPTIONS).unwrap();
    writer.data(b"half").unwrap();
    assert_eq!(fs::read_dir(here.path()).unwrap().count(), 2);
    drop(writer);
    assert_eq!(fs::read_dir(here.path()).unwrap().count(), 1);
    assert_eq!(fs::read(&old).unwrap(), b"old");
}

#[test]
fn a_copy_that_is_given_up_and_repeated_ends_as_if_it_was_the_first() {
    let (here, root) = tree();
    let to = here.path().join("copy");
    let to_bytes = to.to_str().unwrap().as_bytes();
    let mut writer =
        Writer::new(&open, to_bytes, false, &directory("tree"), b"tree", OPTIONS).unwrap();
    writer.entry(&directory("deep")).unwrap();
    writer.entry(&of_kind("down", 0o040_750, "")).unwrap();
    drop(writer);
    copy_as(&root, to.to_str().unwrap(), true, OPTIONS).unwrap();
    for (name, mode) in [("", 0o755), ("deep", 0o755), ("deep/down", 0o750)] {
        let there = to.join(name).metadata().unwrap();
        assert_eq!(there.mode() & 0o7777, mode, "{name}");
    }
    assert!(to.join("deep/down/program").exists());
}

/// A directory with these permissions and time.
fn described(name: &str, mode: u32, modified: i64) -> TreeEntry {
    let mut entry = directory(name);
    entry.stat.mode = 0o040_000 | mode;
    entry.stat.modified = modified;
    entry
}

/// Does it as somebody whom permissions bind; root is not one.
fn as_nobody<T: Send>(at: &Path, act: impl FnOnce() -> T + Send) -> T {
    if !nix::unistd::geteuid().is_root() {
        return act();
    }
    let nobody = 65_534;
    std::os::unix::fs::chown(at, Some(nobody), Some(nobody)).unwrap();
    // Of this thread alone, with the capabilities that override permissions.
    let alone = || {
        nix::unistd::setfsuid(nobody.into());
        act()
    };
    std::thread::scope(|scope| scope.spawn(alone).join().unwrap())
}

#[test]
fn what_is_said_last_of_a_directory_holds_whatever_comes_before_and_after() {
    let here = tempfile::tempdir().unwrap();
    set_mode(here.path(), 0o755);
    let to = here.path().join("to");
    fs::create_dir(&to).unwrap();
    fs::create_dir(to.join("there")).unwrap();
    set_mode(&to, 0o777);
    set_mode(&to.join("there"), 0o777);
    set_time(&to.join("there"), 9);
    let there = to.join("there").metadata().unwrap();
    as_nobody(&to, || {
        let place = to.to_str().unwrap().as_bytes();
        let root = directory("root");
        let mut writer = Writer::new(&open, place, true, &root, b"root", OPTIONS).unwrap();
        let begin = |writer: &mut Writer, name, is_said: bool, (mode, modified)| {
            let entry = described(name, mode, modified);
            match is_said {
                true => writer.entry(&entry).unwrap(),
                false => writer.enter(&entry).unwrap(),
            }
        };
        for name in ["one", "two", "three", "four"] {
            let put = |writer: &mut Writer| {
                writer.entry(&file(name)).unwrap();
                writer.close().unwrap();
            };
            // Said once it is full; twice; once, and filled later.
            let said: &[_] = match name {
                "one" => &[(false, (0o755, 1)), (true, (0o555, 5))],
                "two" => &[(true, (0o755, 1)), (true, (0o555, 5))],
                "three" => &[(true, (0o555, 5)), (false, (0o755, 1))],
                _ => &[(true, (0o500, 1)), (false, (0o755, 1)), (true, (0o555, 5))],
            };
            for (is_said, what) in said {
                begin(&mut writer, name, *is_said, *what);
                put(&mut writer);
                begin(&mut writer, "inner", false, (0o750, 7));
                writer.close().unwrap();
                writer.close().unwrap();
            }
        }
        // What was there is not of this tree.
        for is_said in [true, false, true] {
            begin(&mut writer, "there", is_said, (0o700, 1));
            writer.close().unwrap();
        }
        writer.close().unwrap();
        assert!(writer.is_finished());
    });
    for name in ["one", "two", "three", "four"] {
        let meta = to.join(name).metadata().unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.mtime()), (0o555, 5), "{name}");
        assert!(to.join(name).join(name).is_file());
        let inner = to.join(name).join("inner").metadata().unwrap();
        assert_eq!((inner.mode() & 0o7777, inner.mtime()), (0o750, 7), "{name}");
    }
    let meta = to.join("there").metadata().unwrap();
    assert_eq!((meta.mode(), meta.mtime()), (there.mode(), there.mtime()));
}

#[test]
fn a_directory_that_one_may_not_begin_again_is_as_one_that_was_there() {
    let here = tempfile::tempdir().unwrap();
    let place = here.path().join("to");
    let to = place.to_str().unwrap().as_bytes();
    let options = Options {
        again: false,
        ..OPTIONS
    };
    let mut writer = Writer::new(&open, to, false, &directory("to"), b"to", options).unwrap();
    for mode in [0o750, 0o700] {
        writer.entry(&described("d", mode, 1)).unwrap();
        writer.close().unwrap();
    }
    writer.enter(&described("d", 0o711, 2)).unwrap();
    writer.enter(&described("new", 0o711, 2)).unwrap();
    for _ in 0..3 {
        writer.close().unwrap();
    }
    assert!(writer.is_finished());
    let mode = |path: &str| place.join(path).metadata().unwrap().mode() & 0o7777;
    assert_eq!((mode("d"), mode("d/new")), (0o750, 0o711));
}

#[test]
fn going_into_a_directory_again_is_no_entry_and_making_one_is() {
    let here = tempfile::tempdir().unwrap();
    let place = here.path().join("to");
    let to = place.to_str().unwrap().as_bytes();
    let options = Options {
        entries: 3,
        ..OPTIONS
    };
    let mut writer = Writer::new(&open, to, false, &directory("to"), b"to", options).unwrap();
    for _ in 0..20 {
        writer.enter(&directory("one")).unwrap();
        writer.close().unwrap();
    }
    writer.enter(&directory("one")).unwrap();
    writer.enter(&directory("two")).unwrap();
    let refused = writer.enter(&directory("three")).unwrap_err();
    assert!(refused.to_string().contains("more files"), "{refused}");
}

#[test]
fn a_hard_link_is_another_name_of_the_same_file() {
    let here = tempfile::tempdir().unwrap();
    let place = here.path().join("to");
    let to = place.to_str().unwrap().as_bytes();
    let mut writer = Writer::new(&open, to, false, &directory("to"), b"to", OPTIONS).unwrap();
    writer.entry(&directory("d")).unwrap();
    writer.entry(&file("f")).unwrap();
    writer.data(b"content").unwrap();
    writer.close().unwrap();
    writer.close().unwrap();
    fs::write(place.join("taken"), "before").unwrap();
    writer.entry(&directory("e")).unwrap();
    // Also of its own name, and again.
    writer.hard_link(b"g", b"d/f").unwrap();
    writer.hard_link(b"g", b"d/f").unwrap();
    writer.hard_link(b"g", b"e/g").unwrap();
    writer.close().unwrap();
    writer.hard_link(b"taken", b"e/g").unwrap();
    writer.close().unwrap();
    let file = place.join("d/f").metadata().unwrap();
    assert_eq!(file.nlink(), 3);
    for name in ["e/g", "taken"] {
        assert_eq!(place.join(name).metadata().unwrap().ino(), file.ino());
        assert_eq!(fs::read(place.join(name)).unwrap(), b"content");
    }
    assert_eq!(fs::read_dir(place.join("e")).unwrap().count(), 1);
}
