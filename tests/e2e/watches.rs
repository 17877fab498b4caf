//! What programs of a real guest do to files, told as it happens.

#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod guest;

use std::path::{Path, PathBuf};
use std::time::Duration;

use flashpan::{ChangeKind, Error, FileFailureKind, Watch, WatchOptions};
use flashpan_tests::Home;
use guest::{PATIENCE, builder, script};
use tokio::time::timeout;

/// Waits for a change, passing over others.
async fn expect(watch: &mut Watch, kind: ChangeKind, path: &str) -> Option<PathBuf> {
    loop {
        let change = timeout(PATIENCE, watch.next())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        if change.kind == kind && change.path == Path::new(path) {
            return change.to;
        }
    }
}

#[tokio::test]
async fn what_programs_do_is_told() {
    let _home = Home::new();
    let sandbox = builder().boot().await.unwrap();
    script(&sandbox, "mkdir -p /srv/work/old").await;
    let mut watch = sandbox
        .watch("/srv/work", WatchOptions::new())
        .await
        .unwrap();
    script(
        &sandbox,
        "cd /srv/work && echo x > old/file && mkdir -p a/b/c && mv old/file a/b/c/",
    )
    .await;
    expect(&mut watch, ChangeKind::Created, "old/file").await;
    expect(&mut watch, ChangeKind::Modified, "old/file").await;
    expect(&mut watch, ChangeKind::Created, "a/b/c").await;
    script(&sandbox, "cd /srv/work && mv a z && chmod 600 z/b/c/file").await;
    let to = expect(&mut watch, ChangeKind::Moved, "a").await;
    assert_eq!(to.as_deref(), Some(Path::new("z")));
    expect(&mut watch, ChangeKind::Attributes, "z/b/c/file").await;
    script(&sandbox, "rm -r /srv/work").await;
    expect(&mut watch, ChangeKind::Removed, "").await;
    assert_eq!(
        timeout(PATIENCE, watch.next()).await.unwrap().unwrap(),
        None
    );
    sandbox.kill().await;
}

#[tokio::test]
async fn watches_are_bounded_and_do_not_hold_an_end_up() {
    let _home = Home::new();
    let sandbox = builder().boot().await.unwrap();
    script(
        &sandbox,
        "mkdir -p /srv/many && cd /srv/many && seq 100 | xargs mkdir",
    )
    .await;
    let few = WatchOptions::new().most(50);
    let error = sandbox.watch("/srv/many", few).await.unwrap_err();
    assert!(
        matches!(
            error,
            Error::File {
                kind: FileFailureKind::TooMany,
                ..
            }
        ),
        "{error}"
    );
    let mut watch = sandbox
        .watch("/", WatchOptions::new().most(65536))
        .await
        .unwrap();
    script(&sandbox, "echo x > /srv/many/7/file").await;
    expect(&mut watch, ChangeKind::Created, "srv/many/7/file").await;
    let grace = Duration::from_secs(150);
    let exit = timeout(PATIENCE, sandbox.shutdown(grace)).await.unwrap();
    assert!(exit.reason.is_orderly(), "{exit:?}");
}
