//! Archives that go into a guest and come out of it, against a fake VMM whose guest has
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
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use flashpan::{Copied, CopyOptions, Error, Sandbox};
use flashpan_rootfs::tar::{END, Member, MemberKind};
use flashpan_rootfs::tree::Timestamp;
use pictures::{options, picture, tree};
use world::World;

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

/// An archive of directories and empty files.
fn archive_of(members: &[(&str, u16, i64)]) -> Vec<u8> {
    let mut archive = Vec::new();
    for (path, permissions, seconds) in members {
        let member = Member {
            path: path.as_bytes(),
            kind: match path.ends_with('/') {
                true => MemberKind::Directory,
                false => MemberKind::Regular(0),
            },
            permissions: *permissions,
            uid: 0,
            gid: 0,
            modified: Timestamp {
                seconds: *seconds,
                nanoseconds: 0,
            },
        };
        member.write(&mut archive);
    }
    archive.extend_from_slice(&END);
    archive
}

async fn unpack(sandbox: &Sandbox, archive: &[u8], to: &Path) -> Result<Copied, Error> {
    let mut archive = archive;
    sandbox.tar_in(&mut archive, to, options()).await
}

#[tokio::test]
async fn of_a_directory_the_last_entry_in_the_archive_holds() {
    let world = World::new("normal");
    let sandbox = world.boot().await;
    let place = world.path("place");
    fs::create_dir_all(place.join("was-there")).unwrap();
    fs::set_permissions(place.join("was-there"), PermissionsExt::from_mode(0o770)).unwrap();
    let there = place.join("was-there").metadata().unwrap();
    let archive = archive_of(&[
        ("after/inner/f", 0o644, 1),
        ("after/inner/", 0o511, 11),
        ("after/", 0o711, 12),
        ("twice/", 0o755, 1),
        ("twice/f", 0o644, 1),
        ("twice/", 0o700, 13),
        ("closed/", 0o555, 14),
        ("closed/f", 0o644, 1),
        ("between", 0o644, 1),
        ("closed/g", 0o644, 1),
        ("never/f", 0o644, 1),
        ("was-there/", 0o500, 1),
    ]);
    let copied = unpack(&sandbox, &archive, &place).await.unwrap();
    assert_eq!(copied.entries, 12);
    for (name, mode, modified) in [
        ("after/inner", 0o511, 11),
        ("after", 0o711, 12),
        ("twice", 0o700, 13),
        ("closed", 0o555, 14),
    ] {
        let meta = place.join(name).metadata().unwrap();
        let is = (meta.mode() & 0o7777, meta.mtime());
        assert_eq!(is, (mode, modified), "{name}");
    }
    let never = place.join("never").metadata().unwrap();
    assert_eq!(never.mode() & 0o7777, 0o755);
    for name in [
        "after/inner/f",
        "twice/f",
        "closed/f",
        "closed/g",
        "never/f",
    ] {
        assert!(place.join(name).is_file(), "{name}");
    }
    let still = place.join("was-there").metadata().unwrap();
    assert_eq!((still.mode(), still.mtime()), (there.mode(), there.mtime()));
}

#[tokio::test]
async fn hard_links_of_an_archive_are_links_to_what_it_had_before() {
    let world = World::new("normal");
    let sandbox = world.boot().await;
    let (here, place) = (world.path("here"), world.path("place"));
    fs::create_dir_all(here.join("d")).unwrap();
    fs::create_dir(&place).unwrap();
    fs::write(here.join("a"), "content").unwrap();
    for name in ["d/b", "c"] {
        fs::hard_link(here.join("a"), here.join(name)).unwrap();
    }
    let names = ["a", "d/b", "c"];
    let pack = |more: &[&str]| tar(&[&["-cPf", "-"], more, &names].concat(), &here, b"");
    for _ in 0..2 {
        let copied = unpack(&sandbox, &pack(&[]), &place).await.unwrap();
        assert_eq!((copied.entries, copied.bytes), (3, 7));
        let file = place.join("a").metadata().unwrap();
        assert_eq!(file.nlink(), 3);
        for name in names {
            let name = place.join(name);
            assert_eq!(name.metadata().unwrap().ino(), file.ino());
            assert_eq!(fs::read(name).unwrap(), b"content");
        }
    }
    // Not to what was there, or is elsewhere, by whatever way.
    let outside = world.path("outside");
    fs::write(&outside, "precious").unwrap();
    symlink("..", place.join("up")).unwrap();
    let absolute = outside.to_str().unwrap();
    for (target, says) in [
        (
            "c",
            "d/b: it is a hard link to c, and no file of that name is before it",
        ),
        ("up/outside", "no file of that name is before it"),
        ("../outside", "what it is a hard link to has `..`"),
        (absolute, "what it is a hard link to is an absolute path"),
    ] {
        let transform = format!("--transform=s|^a$|{target}|RSh");
        let error = unpack(&sandbox, &pack(&[&transform]), &place).await;
        let text = error.unwrap_err().to_string();
        assert!(text.contains(says), "{target}: {text}");
        assert_eq!(outside.metadata().unwrap().nlink(), 1, "{target}");
    }
}

#[tokio::test]
async fn an_archive_that_comes_out_goes_in_however_deep_it_is() {
    let world = World::new("normal");
    let sandbox = world.boot().await;
    let place = world.path("place");
    fs::create_dir(&place).unwrap();
    let deep = |levels: usize| vec!["d"; levels].join("/");
    fs::create_dir_all(world.path(&deep(256))).unwrap();
    fs::write(world.path(&deep(256)).join("f"), "content").unwrap();
    let mut archive = Vec::new();
    let packed = sandbox.tar_out(world.path("d"), &mut archive, CopyOptions::new());
    assert_eq!(packed.await.unwrap().entries, 257);
    let copied = unpack(&sandbox, &archive, &place).await.unwrap();
    assert_eq!(copied.entries, 257);
    assert!(place.join(deep(256)).join("f").exists());

    fs::create_dir(world.path(&deep(257))).unwrap();
    let mut archive = Vec::new();
    let packed = sandbox.tar_out(world.path("d"), &mut archive, CopyOptions::new());
    let too_deep = "its directories are nested too deep: 256 levels are the most";
    let error = packed.await.unwrap_err().to_string();
    assert!(error.contains(too_deep), "{error}");
    let theirs = tar(&["-cf", "-", "d"], &world.path(""), b"");
    let error = unpack(&sandbox, &theirs, &place).await.unwrap_err();
    assert!(error.to_string().contains(too_deep), "{error}");
}

#[tokio::test]
async fn a_guest_does_not_fill_this_machine_with_zeros() {
    let world = World::new("normal");
    let sandbox = world.boot().await;
    let mut archive = Vec::new();
    let packed = sandbox.tar_out("/fake/tree:hollow", &mut archive, CopyOptions::new());
    assert_eq!(
        packed.await.unwrap_err().to_string(),
        "/fake/tree:hollow/big in the guest: it became shorter while it was read, by more \
         than 16 MiB"
    );
    assert!(archive.len() < 4096, "{}", archive.len());
}
