//! Trees that go into a guest and out of it, against a fake VMM whose guest has
//! the files of this machine, and the real agent.
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

#[path = "fake/pictures.rs"]
mod pictures;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use flashpan::api::ErrorCode;
use flashpan::{CopyOptions, Error, FileFailureKind, Sandbox};
use pictures::{options, picture, tree};
use tokio::time::timeout;
use world::{LONG, World};

#[tokio::test]
async fn a_tree_goes_in_and_comes_back_as_it_was() {
    let world = World::new("normal");
    let sandbox = world.boot().await;
    let (here, guest, back) = (world.path("here"), world.path("guest"), world.path("back"));
    tree(&here);
    let copied = sandbox.copy_in(&here, &guest, options()).await.unwrap();
    assert_eq!(picture(&guest), picture(&here));
    assert_eq!((copied.entries, copied.bytes), (7, 300_003));
    assert_eq!(copied.skipped_count, 0);
    let copied = sandbox.copy_out(&guest, &back, options()).await.unwrap();
    assert_eq!(picture(&back), picture(&here));
    assert_eq!((copied.entries, copied.bytes), (7, 300_003));

    // Into a directory that is there, and what is in it alone.
    fs::create_dir(world.path("there")).unwrap();
    for from in ["here", "here/", "here/."] {
        sandbox
            .copy_in(world.path(from), world.path("there"), options())
            .await
            .unwrap();
        if from == "here" {
            // Later the directories are as they are left by what is put into them again.
            assert_eq!(picture(&world.path("there/here")), picture(&here));
        }
    }
    assert!(world.path("there/deep/down/long").exists());
    let file = here.join("deep/empty");
    sandbox
        .copy_out(&file, world.path("there"), options())
        .await
        .unwrap();
    assert!(world.path("there/empty").exists());
}

#[tokio::test]
async fn a_link_that_is_named_is_a_link_unless_it_is_to_be_followed() {
    let world = World::new("normal");
    let sandbox = world.boot().await;
    fs::write(world.path("file"), "content").unwrap();
    symlink("file", world.path("link")).unwrap();
    let follow = options().follow_link(true);
    let (link, to) = (world.path("link"), |name: &str| world.path(name));
    sandbox.copy_in(&link, to("in"), options()).await.unwrap();
    sandbox
        .copy_in(&link, to("in-followed"), follow)
        .await
        .unwrap();
    sandbox.copy_out(&link, to("out"), options()).await.unwrap();
    sandbox
        .copy_out(&link, to("out-followed"), follow)
        .await
        .unwrap();
    for name in ["in", "out"] {
        assert_eq!(fs::read_link(to(name)).unwrap(), Path::new("file"));
        let followed = to(&format!("{name}-followed"));
        assert!(followed.symlink_metadata().unwrap().is_file());
        assert_eq!(fs::read(followed).unwrap(), b"content");
    }
}

#[tokio::test]
async fn what_is_not_copied_is_named_by_both_sides() {
    let world = World::new("normal");
    let sandbox = world.boot().await;
    fs::create_dir_all(world.path("here/inner")).unwrap();
    let mode = nix::sys::stat::Mode::S_IRWXU;
    nix::unistd::mkfifo(&world.path("here/inner/fifo"), mode).unwrap();
    nix::unistd::mkfifo(&world.path("here/fifo"), mode).unwrap();
    let copied = [
        sandbox
            .copy_in(world.path("here"), world.path("in"), options())
            .await
            .unwrap(),
        sandbox
            .copy_out(world.path("here"), world.path("out"), options())
            .await
            .unwrap(),
    ];
    for mut copied in copied {
        copied.skipped.sort();
        assert_eq!(copied.skipped, [Path::new("fifo"), Path::new("inner/fifo")]);
        assert_eq!((copied.entries, copied.skipped_count), (2, 2));
    }
}

#[tokio::test]
async fn a_failure_names_the_file_and_the_side() {
    let world = World::new("normal");
    let sandbox = world.boot().await;
    let here = world.path("here");
    tree(&here);
    let nowhere = world.path("no/such/place");
    let error = sandbox
        .copy_in(&here, &nowhere, options())
        .await
        .unwrap_err();
    assert!(
        matches!(&error, Error::File { kind: FileFailureKind::NotFound, path, .. } if *path == nowhere),
        "{error}"
    );
    let error = sandbox
        .copy_out(&nowhere, &here, options())
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            Error::File {
                kind: FileFailureKind::NotFound,
                ..
            }
        ),
        "{error}"
    );
    let error = sandbox
        .copy_in(&nowhere, &here, options())
        .await
        .unwrap_err();
    let missing = "there is no such file or directory";
    let text = format!("cannot copy {}: {missing}", nowhere.display());
    assert_eq!(error.to_string(), text);
    let error = sandbox
        .copy_out(&here, &nowhere, options())
        .await
        .unwrap_err();
    assert!(
        matches!(&error, Error::HostFile { path, .. } if *path == nowhere),
        "{error}"
    );
    // What is in the way, deep down.
    let there = world.path("there");
    fs::create_dir_all(there.join("here/deep/empty")).unwrap();
    let error = sandbox.copy_in(&here, &there, options()).await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("deep/empty: there is a directory"),
        "{error}"
    );
    let error = sandbox
        .copy_out(&here, &there, options())
        .await
        .unwrap_err();
    let text = format!(
        "cannot copy {}: there is a directory of that name, which is not replaced",
        there.join("deep/empty").display()
    );
    assert_eq!(error.to_string(), text);
    for path in ["", "a\0b"] {
        let error = sandbox.copy_in(path, "/x", options()).await.unwrap_err();
        assert!(matches!(error, Error::InvalidConfig { .. }), "{error}");
    }
    for path in ["", "relative", "/a/.."] {
        let error = sandbox.copy_out(path, &there, options()).await.unwrap_err();
        assert!(matches!(error, Error::InvalidConfig { .. }), "{error}");
    }
}

/// Everything that a guest sends goes to `to`, and nothing beside it changes.
async fn hostile(sandbox: &Sandbox, world: &World, trick: &str) -> (PathBuf, Result<(), Error>) {
    let place = world.path(&format!("place-{trick}"));
    fs::create_dir_all(place.join("to")).unwrap();
    fs::write(place.join("outside"), "precious").unwrap();
    let copy = sandbox.copy_out(format!("/fake/tree:{trick}"), place.join("to"), options());
    let result = timeout(LONG, copy).await.unwrap().map(drop);
    let names: Vec<_> = fs::read_dir(&place).unwrap().collect();
    assert_eq!(names.len(), 2, "{trick}");
    assert_eq!(
        fs::read(place.join("outside")).unwrap(),
        b"precious",
        "{trick}"
    );
    (place.join("to").join(format!("tree:{trick}")), result)
}

#[tokio::test]
async fn a_guest_writes_nothing_outside_of_the_place() {
    let world = World::new("normal");
    let sandbox = world.boot().await;
    for trick in ["dots", "slash", "absolute", "no-root", "no-entry"] {
        let (_, result) = hostile(&sandbox, &world, trick).await;
        let error = result.unwrap_err();
        assert!(matches!(error, Error::Protocol { .. }), "{trick}: {error}");
    }
    let (_, result) = hostile(&sandbox, &world, "through").await;
    assert!(matches!(result, Err(Error::HostFile { .. })), "{result:?}");
    let (root, result) = hostile(&sandbox, &world, "over").await;
    result.unwrap();
    assert!(root.join("l").symlink_metadata().unwrap().is_file());
    // Its name is the one that was asked for.
    let (root, result) = hostile(&sandbox, &world, "root-name").await;
    result.unwrap();
    assert_eq!(fs::read(root).unwrap(), b"poison");
    let (root, result) = hostile(&sandbox, &world, "special").await;
    result.unwrap();
    assert_eq!(root.metadata().unwrap().mode() & 0o7777, 0o755);
    let (root, result) = hostile(&sandbox, &world, "half").await;
    assert!(matches!(result, Err(Error::Protocol { .. })), "{result:?}");
    let names: Vec<_> = fs::read_dir(root)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(names, ["whole"]);
    let (root, result) = hostile(&sandbox, &world, "cut").await;
    assert!(matches!(result, Err(Error::Protocol { .. })), "{result:?}");
    assert_eq!(fs::read_dir(root).unwrap().count(), 0);
}

#[tokio::test]
async fn a_link_that_came_out_of_a_guest_does_not_lead_the_next_copy_elsewhere() {
    let world = World::new("normal");
    let sandbox = world.boot().await;
    let (outside, to) = (world.path("outside"), world.path("to"));
    fs::write(&outside, "precious").unwrap();
    fs::write(world.path("result"), "result").unwrap();
    let link = "/fake/tree:root-link";
    sandbox.copy_out(link, &to, options()).await.unwrap();
    assert_eq!(fs::read_link(&to).unwrap(), Path::new("outside"));
    sandbox
        .copy_out(world.path("result"), &to, options())
        .await
        .unwrap();
    assert!(to.symlink_metadata().unwrap().is_file());
    assert_eq!(fs::read(&to).unwrap(), b"result");
    assert_eq!(fs::read(&outside).unwrap(), b"precious");

    // To a directory of the user's.
    fs::remove_file(&outside).unwrap();
    fs::create_dir(&outside).unwrap();
    let tree = world.path("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("file"), "content").unwrap();
    fs::remove_file(&to).unwrap();
    sandbox.copy_out(link, &to, options()).await.unwrap();
    for from in [tree.clone(), tree.join(".")] {
        let error = sandbox.copy_out(from, &to, options()).await.unwrap_err();
        let text = format!(
            "cannot copy {}: it is a symbolic link; name what it points to, or remove it",
            to.display()
        );
        assert_eq!(error.to_string(), text);
    }
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    // The user says that it is one.
    sandbox
        .copy_out(&tree, world.path("to/"), options())
        .await
        .unwrap();
    assert!(outside.join("tree/file").exists());

    // What a link is to be followed to is none.
    let follow = options().follow_link(true);
    let place = world.path("place");
    let error = sandbox.copy_out(link, &place, follow).await.unwrap_err();
    assert!(matches!(error, Error::Protocol { .. }), "{error}");
    assert!(place.symlink_metadata().is_err());
}

#[tokio::test]
async fn directories_of_this_machine_keep_their_permissions_and_times() {
    let world = World::new("normal");
    let sandbox = world.boot().await;
    let (tree, place) = (world.path("tree"), world.path("place"));
    for (at, mode) in [(&tree, 0o777), (&place, 0o700)] {
        fs::create_dir_all(at.join("tree/inner")).unwrap();
        for name in ["tree/inner", "tree"] {
            fs::set_permissions(at.join(name), PermissionsExt::from_mode(mode)).unwrap();
        }
    }
    for name in ["tree/inner", "tree"] {
        let sent = fs::File::open(tree.join(name)).unwrap();
        sent.set_modified(std::time::UNIX_EPOCH).unwrap();
    }
    let before = picture(&place);
    sandbox
        .copy_out(tree.join("tree"), &place, options())
        .await
        .unwrap();
    assert_eq!(picture(&place), before);
}

#[tokio::test]
async fn a_tree_without_end_ends_at_the_limit_and_with_the_caller() {
    let world = World::new("normal");
    let sandbox = world.boot().await;
    let to = world.path("to");
    let copy = sandbox.copy_out("/fake/tree:endless", &to, options().limit(1_000_000));
    let error = timeout(LONG, copy).await.unwrap().unwrap_err();
    assert!(
        matches!(
            error,
            Error::CopyTooLong {
                limit: 1_000_000,
                ..
            }
        ),
        "{error}"
    );
    assert!(!to.exists());

    let place = world.path("place");
    fs::create_dir(&place).unwrap();
    let copy = sandbox.copy_out("/fake/tree:endless", place.join("file"), options());
    // Once there is half a file.
    let half = async {
        while fs::read_dir(&place).unwrap().count() == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        result = copy => panic!("it cannot be complete: {result:?}"),
        () = half => {}
    }
    // The thread that writes it removes it.
    let gone = async {
        while fs::read_dir(&place).unwrap().count() > 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(LONG, gone).await.unwrap();
}

#[tokio::test]
async fn a_tree_without_content_ends_as_well() {
    let world = World::new("normal");
    let sandbox = world.boot().await;
    let out = async |trick: &str, options: CopyOptions| {
        let from = format!("/fake/tree:{trick}");
        let copy = sandbox.copy_out(from, world.path(trick), options);
        timeout(LONG, copy).await.unwrap().unwrap_err()
    };
    let error = out("endless-nothing", options().limit(10)).await;
    assert!(matches!(error, Error::Protocol { .. }), "{error}");
    assert!(!world.path("endless-nothing").exists());
    for trick in ["endless-entries", "endless-skipped"] {
        let error = out(trick, options().entry_limit(1000)).await;
        let text = format!(
            "/fake/tree:{trick} in the guest has more than 1000 files and directories, \
             the most that are copied; what was copied so far is there"
        );
        assert_eq!(error.to_string(), text);
    }
}

#[tokio::test]
async fn a_guest_cannot_nest_directories_deeper_than_is_taken_out_of_it() {
    let world = World::new("normal");
    let sandbox = world.boot().await;
    for (levels, fits) in [(128, true), (129, false)] {
        let name = format!("deep-{levels}");
        let below = vec!["d"; levels - 1].join("/");
        fs::create_dir_all(world.path(&name).join(below)).unwrap();
        let to = world.path(&format!("out-{levels}"));
        let copied = sandbox.copy_out(world.path(&name), &to, options()).await;
        match copied {
            Ok(_) => assert!(fits),
            Err(error) => {
                assert!(!fits, "{error}");
                let text = error.to_string();
                assert!(text.contains("128 out of a guest"), "{text}");
            }
        }
        // Into a guest it goes.
        sandbox
            .copy_in(
                world.path(&name),
                world.path(&format!("in-{levels}")),
                options(),
            )
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn as_many_files_as_are_allowed_are_copied() {
    let world = World::new("normal");
    let sandbox = world.boot().await;
    tree(&world.path("tree"));
    let mode = nix::sys::stat::Mode::S_IRWXU;
    nix::unistd::mkfifo(&world.path("tree/deep/fifo"), mode).unwrap();
    // Seven, and one that is left out.
    for (limit, fits) in [(8, true), (7, false)] {
        let options = options().entry_limit(limit);
        let to = world.path(&format!("to-{limit}"));
        let copied = sandbox.copy_out(world.path("tree"), to, options).await;
        match copied {
            Ok(copied) => assert_eq!((copied.entries, fits), (7, true)),
            Err(Error::CopyTooMany { limit: 7, .. }) => assert!(!fits),
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test]
async fn a_copy_that_does_not_come_to_an_end_has_its_own_and_that_of_the_vm() {
    const SHORT: Duration = Duration::from_millis(300);
    let world = World::new("normal");
    let sandbox = world.boot().await;
    fs::write(world.path("file"), "content").unwrap();
    let limited = options().timeout(SHORT);
    // Also of a guest that always has more.
    for trick in ["stalled", "endless", "endless-entries"] {
        let (from, to) = (format!("/fake/tree:{trick}"), world.path(trick));
        let error = sandbox.copy_out(from, &to, limited).await.unwrap_err();
        assert!(
            matches!(error, Error::Timeout { after: SHORT, .. }),
            "{trick}: {error}"
        );
        assert_eq!(error.code(), ErrorCode::Timeout);
        // What is not complete is gone by then.
        assert!(!to.is_file(), "{trick}");
    }
    let error = sandbox
        .copy_in(world.path("file"), "/fake/deaf", limited)
        .await
        .unwrap_err();
    assert!(
        matches!(error, Error::Timeout { after: SHORT, .. }),
        "{error}"
    );
    let enough = options().timeout(LONG);
    let copied = sandbox.copy_in(world.path("file"), world.path("in"), enough);
    assert_eq!(copied.await.unwrap().bytes, 7);
    let copied = sandbox.copy_out(world.path("in"), world.path("out"), enough);
    assert_eq!(copied.await.unwrap().bytes, 7);
    drop(sandbox);

    let sandbox = world.builder().time_limit(SHORT).boot().await.unwrap();
    let copy = sandbox.copy_out("/fake/tree:stalled", world.path("late"), options());
    let error = timeout(LONG, copy).await.unwrap().unwrap_err();
    assert!(
        matches!(error, Error::VmTimeout { after: SHORT }),
        "{error}"
    );
}

#[tokio::test]
async fn the_end_of_the_vm_is_the_reason_for_a_copy_that_fails() {
    let world = World::new("normal");
    let sandbox = world.boot().await;
    let to = world.path("to");
    let copy = sandbox.copy_out("/fake/tree:endless", &to, options());
    let (result, _) = tokio::join!(copy, sandbox.kill());
    let error = result.unwrap_err();
    assert!(matches!(error, Error::VmEnded(_)), "{error}");
    assert!(!to.exists());
    let error = sandbox
        .copy_in(world.path("root.erofs"), &to, options())
        .await
        .unwrap_err();
    assert!(matches!(error, Error::VmEnded(_)), "{error}");
}
