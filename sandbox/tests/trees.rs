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

use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use flashpan::api::ErrorCode;
use flashpan::{CopyOptions, Error, FileFailureKind, Sandbox};
use tokio::time::timeout;
use world::{LONG, World};

/// What is in a directory, by name, kind, mode, and content.
fn picture(root: &Path) -> Vec<(PathBuf, u32, i64, Vec<u8>)> {
    let mut all = Vec::new();
    let mut left = vec![root.to_owned()];
    while let Some(path) = left.pop() {
        let meta = path.symlink_metadata().unwrap();
        let content = match meta {
            _ if meta.is_dir() => {
                left.extend(
                    fs::read_dir(&path)
                        .unwrap()
                        .map(|entry| entry.unwrap().path()),
                );
                Vec::new()
            }
            _ if meta.is_symlink() => fs::read_link(&path).unwrap().into_os_string().into_vec(),
            _ => fs::read(&path).unwrap(),
        };
        let name = path.strip_prefix(root).unwrap().to_owned();
        all.push((name, meta.mode(), meta.mtime(), content));
    }
    all.sort();
    all
}

fn tree(at: &Path) {
    fs::create_dir_all(at.join("deep/down")).unwrap();
    fs::write(at.join("deep/down/long"), vec![b'x'; 300_000]).unwrap();
    fs::write(at.join("deep/empty"), "").unwrap();
    fs::set_permissions(at.join("deep/empty"), PermissionsExt::from_mode(0o751)).unwrap();
    symlink("deep/down/long", at.join("link")).unwrap();
    let odd = std::ffi::OsString::from_vec(b"\xff\n-rf".to_vec());
    fs::write(at.join(odd), "odd").unwrap();
}

fn options() -> CopyOptions {
    let (uid, gid) = (nix::unistd::getuid(), nix::unistd::getgid());
    CopyOptions::new().owner(uid.as_raw(), gid.as_raw())
}

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

/// Has the real tar do something in a directory.
fn tar(words: &[&str], at: &Path, input: &[u8]) -> Vec<u8> {
    let mut child = std::process::Command::new("tar")
        .args(words)
        .current_dir(at)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let output = std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(input).unwrap());
        child.wait_with_output().unwrap()
    });
    assert!(output.status.success(), "{words:?}");
    output.stdout
}

async fn archive_length(sandbox: &Sandbox, from: &Path) -> usize {
    let mut archive = Vec::new();
    let packed = sandbox.tar_out(from, &mut archive, CopyOptions::new());
    packed.await.unwrap();
    archive.len()
}

#[tokio::test]
async fn a_tree_comes_out_as_an_archive_and_goes_in_again() {
    let world = World::new("normal");
    let sandbox = world.boot().await;
    let here = world.path("here");
    tree(&here);
    // Names and targets that headers have no room for, and a path of more than one.
    let deep = here.join("n".repeat(150)).join("m".repeat(200));
    fs::create_dir_all(&deep).unwrap();
    symlink("t".repeat(300), deep.join("far")).unwrap();
    let mut archive = Vec::new();
    let copied = sandbox
        .tar_out(&here, &mut archive, CopyOptions::new())
        .await
        .unwrap();
    assert_eq!((copied.entries, copied.bytes), (10, 300_003));
    // By the real tar, by our own reader, and by way of the real tar's archive.
    for name in ["tar", "own", "both"] {
        fs::create_dir(world.path(name)).unwrap();
    }
    tar(&["-xpf", "-"], &world.path("tar"), &archive);
    let copied = sandbox
        .tar_in(&mut archive.as_slice(), world.path("own"), options())
        .await
        .unwrap();
    assert_eq!((copied.entries, copied.bytes), (10, 300_003));
    for format in ["gnu", "posix"] {
        let format = format!("--format={format}");
        let theirs = tar(&["-cf", "-", &format, "here"], &world.path("tar"), b"");
        sandbox
            .tar_in(&mut theirs.as_slice(), world.path("both"), options())
            .await
            .unwrap();
        assert_eq!(picture(&world.path("both/here")), picture(&here));
        fs::remove_dir_all(world.path("both/here")).unwrap();
    }
    for name in ["tar/here", "own/here"] {
        assert_eq!(picture(&world.path(name)), picture(&here), "{name}");
    }
    // The archive of a link is the link, and that of a file the file.
    symlink("deep", here.join("to-deep")).unwrap();
    for (from, follow, names) in [
        ("here/to-deep", false, "to-deep\n"),
        ("here/deep/empty", false, "empty\n"),
        ("here/deep/down/.", false, "./\n./long\n"),
        ("here/deep/down", true, "down/\ndown/long\n"),
    ] {
        let mut archive = Vec::new();
        let options = CopyOptions::new().follow_link(follow);
        sandbox
            .tar_out(world.path(from), &mut archive, options)
            .await
            .unwrap();
        let listed = tar(&["-tf", "-"], &here, &archive);
        assert_eq!(String::from_utf8(listed).unwrap(), names);
    }
    // As much as was asked for, and no more.
    let all = u64::try_from(archive_length(&sandbox, &here).await).unwrap();
    for (limit, fits) in [(all, true), (all - 1, false)] {
        let options = CopyOptions::new().limit(limit);
        let mut archive = Vec::new();
        let packed = sandbox.tar_out(&here, &mut archive, options).await;
        assert_eq!(packed.is_ok(), fits, "{packed:?}");
        assert!(archive.len() as u64 <= limit);
    }
    let error = sandbox
        .tar_out(&here, &mut Vec::new(), CopyOptions::new().limit(1000))
        .await
        .unwrap_err();
    assert!(
        matches!(error, Error::CopyTooLong { limit: 1000, .. }),
        "{error}"
    );
}

#[tokio::test]
async fn nothing_of_an_archive_gets_out_of_its_directory() {
    let world = World::new("normal");
    let sandbox = world.boot().await;
    fs::create_dir_all(world.path("outside/there")).unwrap();
    fs::create_dir(world.path("in")).unwrap();
    symlink("../outside", world.path("in/was-there")).unwrap();
    fs::create_dir_all(world.path("evil/was-there")).unwrap();
    fs::write(world.path("evil/was-there/x"), "x").unwrap();
    fs::write(world.path("evil/x"), "x").unwrap();
    symlink("../outside", world.path("evil/sent")).unwrap();
    let evil = world.path("evil");
    let made = |words: &[&str]| tar(&[&["-cPf", "-"], words].concat(), &evil, b"");
    // A link, and then something in what it points to.
    let by_link = made(&["--transform=s,^x$,sent/x,", "sent", "x"]);
    for (archive, says) in [
        (made(&["../evil/x"]), "leads out"),
        (made(&[evil.join("x").to_str().unwrap()]), "absolute path"),
        (by_link, "which a directory does not replace"),
        (made(&["was-there/x"]), "which a directory does not replace"),
        (b"x".repeat(4096), "it is not a tar archive"),
        (made(&["x"])[..512].to_vec(), "is truncated"),
        (Vec::new(), "not one byte came"),
    ] {
        let error = sandbox
            .tar_in(&mut archive.as_slice(), world.path("in"), options())
            .await
            .unwrap_err();
        assert!(error.to_string().contains(says), "{says}: {error}");
    }
    // Where nothing is, nothing is made.
    let archive = made(&["x"]);
    fs::write(world.path("file"), "").unwrap();
    for (place, says) in [
        ("none", "there is no such file or directory"),
        ("none/", "there is no such file or directory"),
        ("file", "it is not a directory"),
    ] {
        let error = sandbox
            .tar_in(&mut archive.as_slice(), world.path(place), options())
            .await
            .unwrap_err();
        assert!(error.to_string().contains(says), "{says}: {error}");
    }
    assert!(!world.path("none").exists());
    assert_eq!(picture(&world.path("outside")).len(), 2);
    assert!(!world.path("x").exists());
    // Whoever names a link to a directory means the directory.
    sandbox
        .tar_in(
            &mut archive.as_slice(),
            world.path("in/was-there"),
            options(),
        )
        .await
        .unwrap();
    assert_eq!(fs::read(world.path("outside/x")).unwrap(), b"x");
}
