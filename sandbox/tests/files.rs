//! Files of a guest as the owner of the VM sees them, against a fake VMM whose
//! guest has the files of this machine.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

#[path = "fake/world.rs"]
#[allow(dead_code)] // Other tests need more of it.
mod world;

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use flashpan::api::FileMode;
use flashpan::{Error, ExitReason, FileFailureKind, ReadOptions, WriteOptions};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use world::{LONG, World};

fn kind<T: std::fmt::Debug>(result: Result<T, Error>) -> FileFailureKind {
    match result {
        Err(Error::File { kind, .. }) => kind,
        other => panic!("{other:?}"),
    }
}

/// A FIFO, and what waits until the guest has written to it.
fn note(path: &Path) -> impl Future<Output = ()> {
    mkfifo(path, Mode::S_IRWXU).unwrap();
    let path = path.to_owned();
    let wait = tokio::task::spawn_blocking(move || fs::read(path).unwrap());
    async move {
        let written = timeout(LONG, wait).await.expect("the guest notes nothing");
        assert_eq!(written.unwrap(), b"cancelled");
    }
}

#[tokio::test]
async fn a_file_goes_in_and_comes_back() {
    let world = World::new("normal");
    let sandbox = world.boot().await;
    let file = world.path("deep/down/file");
    let content: Vec<u8> = (0..500_000_u32).flat_map(u32::to_le_bytes).collect();
    let options = WriteOptions::new().mode(0o640);
    sandbox.write_file(&file, &content, options).await.unwrap();
    assert!(fs::read(&file).unwrap() == content);
    assert_eq!(file.metadata().unwrap().mode() & 0o7777, 0o640);
    let back = sandbox.read_file(&file, content.len()).await.unwrap();
    assert!(back == content);
    let stat = sandbox.stat(&file).await.unwrap();
    assert_eq!((stat.size, stat.permissions()), (2_000_000, 0o640));
    assert!(stat.is_file());
    assert_eq!(sandbox.kill().await.reason, ExitReason::Killed);
}

#[tokio::test]
async fn a_stream_is_written_and_a_part_is_read_as_a_stream() {
    let world = World::new("normal");
    let sandbox = world.boot().await;
    let file = world.path("file");
    let mut source = tokio::io::repeat(b'x').take(1_000_000);
    let written = sandbox.write_file_from(&file, &mut source, WriteOptions::new());
    written.await.unwrap();
    assert_eq!(fs::read(&file).unwrap(), vec![b'x'; 1_000_000]);

    fs::write(&file, "0123456789").unwrap();
    let part = ReadOptions::new().offset(3).length(5);
    let mut reader = sandbox.open_file(&file, part).await.unwrap();
    assert_eq!(reader.stat().size, 10);
    let mut small = [0; 2];
    reader.read_exact(&mut small).await.unwrap();
    assert_eq!(&small, b"34");
    assert_eq!(reader.next_chunk().await.unwrap(), Some(b"567".to_vec()));
    assert_eq!(reader.next_chunk().await.unwrap(), None);
    assert_eq!(reader.next_chunk().await.unwrap(), None, "asked twice");
}

#[tokio::test]
async fn names_of_a_listing_are_sorted_and_complete() {
    let world = World::new("normal");
    let sandbox = world.boot().await;
    let directory = world.path("list");
    sandbox.mkdir(&directory, 0o755, false).await.unwrap();
    assert_eq!(sandbox.list_files(&directory).await.unwrap(), []);
    let odd = OsString::from_vec(b"z\xff".to_vec());
    fs::write(directory.join(&odd), "12").unwrap();
    fs::create_dir(directory.join("b")).unwrap();
    symlink("nowhere", directory.join("a")).unwrap();
    let files = sandbox.list_files(&directory).await.unwrap();
    let names: Vec<_> = files.iter().map(|file| file.name.as_str()).collect();
    assert_eq!(names, ["a", "b", "z\u{fffd}"]);
    assert_eq!(files[0].mode.0 & FileMode::SYMLINK, FileMode::SYMLINK);
    assert!(files[1].is_dir && files[1].mode.is_dir());
    assert_eq!(files[2].size, 2);
    let entries = sandbox.read_directory(&directory).await.unwrap();
    assert_eq!(entries[2].name, odd);
    assert!(entries[0].stat.is_symlink());
    let link = directory.join("a");
    assert!(sandbox.stat_link(&link).await.unwrap().is_symlink());
    assert_eq!(kind(sandbox.stat(&link).await), FileFailureKind::NotFound);
}

#[tokio::test]
async fn names_are_changed_and_removed() {
    let world = World::new("normal");
    let sandbox = world.boot().await;
    let (one, two) = (world.path("one"), world.path("two"));
    sandbox
        .mkdir(one.join("in/ner"), 0o700, true)
        .await
        .unwrap();
    let again = sandbox.mkdir(&one, 0o700, false).await;
    assert_eq!(kind(again), FileFailureKind::Exists);
    sandbox.rename(&one, &two).await.unwrap();
    assert_eq!(
        kind(sandbox.rename(&one, &two).await),
        FileFailureKind::NotFound
    );
    assert_eq!(
        kind(sandbox.remove(&two, false).await),
        FileFailureKind::NotEmpty
    );
    sandbox.remove(&two, true).await.unwrap();
    assert!(!two.exists());
    let error = sandbox.remove(&two, true).await.unwrap_err().to_string();
    assert!(error.starts_with(&two.display().to_string()), "{error}");
    assert!(error.contains("No such file"), "{error}");
}

#[tokio::test]
async fn longer_files_than_asked_for_are_not_taken() {
    let world = World::new("normal");
    let sandbox = world.boot().await;
    let file = world.path("file");
    fs::write(&file, vec![0; 100_001]).unwrap();
    let error = sandbox.read_file(&file, 100_000).await.unwrap_err();
    assert!(
        matches!(error, Error::FileTooLong { limit: 100_000, .. }),
        "{error}"
    );
    let all = sandbox.read_file(&file, 100_001).await.unwrap();
    assert_eq!(all.len(), 100_001);
    // A guest that sends more than it was asked for is stopped.
    let path = world.path("note");
    let cancelled = note(&path);
    let flood = format!("/fake/flood:{}", path.display());
    let error = sandbox.read_file(&flood, 100_000).await.unwrap_err();
    assert!(matches!(error, Error::Protocol { .. }), "{error}");
    cancelled.await;
}

#[tokio::test]
async fn a_reader_that_is_dropped_ends_the_reading_in_the_guest() {
    let world = World::new("normal");
    let sandbox = world.boot().await;
    let path = world.path("note");
    let cancelled = note(&path);
    let flood = format!("/fake/flood:{}", path.display());
    let mut reader = sandbox.open_file(&flood, ReadOptions::new()).await.unwrap();
    assert!(reader.next_chunk().await.unwrap().is_some());
    drop(reader);
    cancelled.await;
}

#[tokio::test]
async fn a_write_that_is_dropped_or_whose_source_fails_puts_nothing_there() {
    let world = World::new("normal");
    let sandbox = world.boot().await;
    let file = world.path("file");
    fs::write(&file, "old").unwrap();
    let abandoned = world.path("file.abandoned");
    let cancelled = note(&abandoned);
    {
        let (mut ours, mut theirs) = tokio::io::duplex(100);
        let write = sandbox.write_file_from(&file, &mut theirs, WriteOptions::new());
        tokio::select! {
            result = write => panic!("it cannot be complete: {result:?}"),
            // All of it was taken once the next byte fits.
            sent = ours.write_all(&[b'x'; 300_000]) => sent.unwrap(),
        }
    }
    cancelled.await;
    fs::remove_file(&abandoned).unwrap();

    let cancelled = note(&abandoned);
    let mut broken = broken_source();
    let write = sandbox.write_file_from(&file, &mut broken, WriteOptions::new());
    let error = write.await.unwrap_err();
    assert!(matches!(error, Error::Host { .. }), "{error}");
    cancelled.await;
    assert_eq!(fs::read(&file).unwrap(), b"old");
}

/// A source that gives something and then fails.
fn broken_source() -> impl tokio::io::AsyncRead + Unpin {
    struct Broken;
    impl tokio::io::AsyncRead for Broken {
        fn poll_read(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
            _: &mut tokio::io::ReadBuf<'_>,
        ) -> std::task::Poll<std::io::Result<()>> {
            std::task::Poll::Ready(Err(std::io::Error::other("no more")))
        }
    }
    tokio::io::repeat(b'x').take(100_000).chain(Broken)
}

#[tokio::test]
async fn a_failure_stops_a_write_that_would_never_end() {
    let world = World::new("normal");
    let sandbox = world.boot().await;
    let mut endless = tokio::io::repeat(b'x');
    let write = sandbox.write_file_from("/fake/escape", &mut endless, WriteOptions::new());
    let error = timeout(LONG, write).await.unwrap().unwrap_err();
    assert_eq!(
        error.to_string(),
        "/fake/escape in the guest: write it: ?[31m full"
    );
    assert_eq!(kind(Err::<(), _>(error)), FileFailureKind::NoSpace);
    let none = world.path("none/file");
    let options = WriteOptions::new().parents(false);
    let write = sandbox.write_file_from(&none, &mut endless, options);
    assert_eq!(
        kind(timeout(LONG, write).await.unwrap()),
        FileFailureKind::NotFound
    );
}

#[tokio::test]
async fn half_a_file_is_not_taken_for_a_whole_one() {
    let world = World::new("normal");
    let sandbox = world.boot().await;
    let open = sandbox.open_file("/fake/cut", ReadOptions::new());
    let mut reader = open.await.unwrap();
    let mut content = Vec::new();
    let error = reader.read_to_end(&mut content).await.unwrap_err();
    assert_eq!(content, b"half");
    assert!(error.to_string().contains("without a word"), "{error}");
}

#[tokio::test]
async fn a_guest_that_breaks_the_rules_is_not_believed() {
    let world = World::new("normal");
    let sandbox = world.boot().await;
    for name in ["", ".", "..", "a|b", "|etc|passwd"] {
        let error = sandbox.read_directory(format!("/fake/name:{name}")).await;
        assert!(
            matches!(error, Err(Error::Protocol { .. })),
            "{name:?}: {error:?}"
        );
    }
    for trick in ["too-long-data", "too-long-frame", "done-at-once"] {
        let error = sandbox.read_file(format!("/fake/{trick}"), 1 << 20).await;
        assert!(
            matches!(error, Err(Error::Protocol { .. })),
            "{trick}: {error:?}"
        );
    }
    let mut endless = tokio::io::repeat(b'x');
    let write = sandbox.write_file_from("/fake/done-at-once", &mut endless, WriteOptions::new());
    let error = timeout(LONG, write).await.unwrap();
    assert!(matches!(error, Err(Error::Protocol { .. })), "{error:?}");
    let error = sandbox
        .list_files("/fake/endless-listing")
        .await
        .unwrap_err();
    assert!(matches!(error, Error::ListingTooLong { .. }), "{error}");
}

#[tokio::test]
async fn a_guest_that_talks_without_saying_anything_is_not_listened_to() {
    let world = World::new("normal");
    let sandbox = world.boot().await;
    let nothing = sandbox.read_file("/fake/endless-nothing", 1 << 20);
    let error = timeout(LONG, nothing).await.unwrap();
    assert!(matches!(error, Err(Error::Protocol { .. })), "{error:?}");
    let nothing = sandbox.list_files("/fake/endless-empty-listing");
    let error = timeout(LONG, nothing).await.unwrap();
    assert!(matches!(error, Err(Error::Protocol { .. })), "{error:?}");
}

#[tokio::test]
async fn a_stream_has_no_more_than_was_asked_for() {
    let world = World::new("normal");
    let sandbox = world.boot().await;
    let part = ReadOptions::new().length(5);
    let mut reader = sandbox
        .open_file("/fake/more-than-asked", part)
        .await
        .unwrap();
    assert_eq!(reader.next_chunk().await.unwrap(), Some(b"abc".to_vec()));
    let error = reader.next_chunk().await.unwrap_err();
    assert!(matches!(error, Error::Protocol { .. }), "{error}");
}

/// Programs list a directory and then open what is in it.
#[tokio::test]
async fn a_name_of_the_guests_choice_does_nothing_in_a_message() {
    let world = World::new("normal");
    let sandbox = world.boot().await;
    let odd = world.path("a\x1b]0;title\x07\nflashpan: b");
    let error = sandbox.stat(&odd).await.unwrap_err().to_string();
    assert!(!error.contains(char::is_control), "{error:?}");
    assert!(
        error.contains("a?]0;title? flashpan: b in the guest"),
        "{error:?}"
    );
    fs::write(&odd, "content").unwrap();
    let error = sandbox.read_file(&odd, 3).await.unwrap_err().to_string();
    assert!(!error.contains(char::is_control), "{error:?}");
}

#[tokio::test]
async fn paths_that_no_guest_has_are_refused_before_it_is_asked() {
    let world = World::new("normal");
    let sandbox = world.boot().await;
    let long = format!("/{}", "x/".repeat(2048));
    for path in ["", "relative", "/a\0b", &long] {
        let error = sandbox.stat(path).await.unwrap_err();
        assert!(matches!(error, Error::InvalidConfig { .. }), "{error}");
        let error = sandbox.rename("/a", path).await.unwrap_err();
        assert!(matches!(error, Error::InvalidConfig { .. }), "{error}");
    }
}

#[tokio::test]
async fn the_end_of_the_vm_is_the_reason() {
    let world = World::new("normal");
    let sandbox = world.boot().await;
    let open = sandbox.open_file("/fake/silent", ReadOptions::new());
    let mut reader = open.await.unwrap();
    sandbox.kill().await;
    let error = reader.next_chunk().await.unwrap_err();
    assert!(
        matches!(error, Error::VmEnded(ExitReason::Killed)),
        "{error}"
    );
    let error = sandbox.stat("/").await.unwrap_err();
    assert!(
        matches!(error, Error::VmEnded(ExitReason::Killed)),
        "{error}"
    );
}
