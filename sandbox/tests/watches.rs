//! Changes in directories of a guest, against a fake VMM whose guest has the files
//! of this machine, and the real agent.
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

use std::fs;
use std::path::Path;

use flashpan::{ChangeKind, Error, FileFailureKind, WatchOptions};
use tokio::time::timeout;
use world::{LONG, World};

#[tokio::test]
async fn changes_are_told_until_the_directory_is_gone() {
    let world = World::new("normal");
    let sandbox = world.boot().await;
    let place = world.path("place");
    fs::create_dir_all(place.join("inner")).unwrap();
    let mut watch = sandbox.watch(&place, WatchOptions::new()).await.unwrap();
    fs::write(place.join("inner/file"), "x").unwrap();
    fs::rename(place.join("inner/file"), place.join("moved")).unwrap();
    fs::remove_dir_all(&place).unwrap();
    let mut all = Vec::new();
    while let Some(change) = timeout(LONG, watch.next()).await.unwrap().unwrap() {
        all.push(change);
    }
    assert_eq!(
        timeout(LONG, watch.next()).await.unwrap().unwrap(),
        None,
        "asked twice"
    );
    let first = &all[0];
    assert_eq!(first.kind, ChangeKind::Created);
    assert_eq!(
        (first.path.as_path(), first.is_dir),
        (Path::new("inner/file"), false)
    );
    let moved = all
        .iter()
        .find(|change| change.kind == ChangeKind::Moved)
        .unwrap();
    assert_eq!(moved.path, Path::new("inner/file"));
    assert_eq!(moved.to.as_deref(), Some(Path::new("moved")));
    let last = all.last().unwrap();
    assert_eq!(last.kind, ChangeKind::Removed);
    assert_eq!((last.path.as_path(), last.is_dir), (Path::new(""), true));
}

#[tokio::test]
async fn a_watch_that_is_dropped_makes_room_for_another() {
    let world = World::new("normal");
    let sandbox = world.boot().await;
    let place = world.path("place");
    fs::create_dir(&place).unwrap();
    // More than there can be at a time.
    for _ in 0..40 {
        let watch = sandbox.watch(&place, WatchOptions::new()).await;
        match watch {
            Ok(watch) => drop(watch),
            // The agent has not seen the end of enough of them yet.
            Err(Error::File {
                kind: FileFailureKind::Resources,
                ..
            }) => {}
            Err(error) => panic!("{error}"),
        }
    }
    let one = async { while sandbox.watch(&place, WatchOptions::new()).await.is_err() {} };
    timeout(LONG, one).await.unwrap();
}

#[tokio::test]
async fn more_than_is_allowed_and_what_is_no_directory_are_typed_errors() {
    let world = World::new("normal");
    let sandbox = world.boot().await;
    fs::create_dir_all(world.path("place/inner")).unwrap();
    for (path, expected) in [
        ("place", FileFailureKind::TooMany),
        ("root.erofs", FileFailureKind::NotADirectory),
        ("none", FileFailureKind::NotFound),
    ] {
        let watch = sandbox
            .watch(world.path(path), WatchOptions::new().most(1))
            .await;
        let Err(Error::File { kind, .. }) = watch else {
            panic!("{watch:?}");
        };
        assert_eq!(kind, expected);
    }
    for most in [0, u32::MAX] {
        let error = sandbox
            .watch("/", WatchOptions::new().most(most))
            .await
            .unwrap_err();
        assert!(matches!(error, Error::InvalidConfig { .. }), "{error}");
    }
}

#[tokio::test]
async fn a_guest_tells_of_nothing_outside_of_the_directory() {
    let world = World::new("normal");
    let sandbox = world.boot().await;
    for path in ["..", "a/../..", "/etc"] {
        let watch = sandbox.watch(format!("/fake/changes:{path}"), WatchOptions::new());
        let mut watch = watch.await.unwrap();
        let change = timeout(LONG, watch.next()).await.unwrap();
        assert!(matches!(change, Err(Error::Protocol { .. })), "{change:?}");
    }
    let mut watch = sandbox
        .watch("/fake/changes:a", WatchOptions::new())
        .await
        .unwrap();
    assert!(watch.next().await.unwrap().is_some());
    sandbox.kill().await;
    let end = timeout(LONG, watch.next()).await.unwrap();
    assert!(matches!(end, Err(Error::VmEnded(_))), "{end:?}");
}
