//! Trees of files, into a real guest and out of it.

#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod guest;

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use flashpan::{CopyOptions, Error, FileFailureKind};
use flashpan_tests::Home;
use guest::{PATIENCE, builder, script};
use tokio::time::timeout;

/// Bytes of the long file, unless `FLASHPAN_TEST_COPY_MIB` says otherwise.
const LONG: usize = 64 << 20;

/// Names, kinds, permissions, times of files, and contents.
fn picture(root: &Path) -> Vec<(PathBuf, u32, i64, Vec<u8>)> {
    let mut all = Vec::new();
    let mut left = vec![root.to_owned()];
    while let Some(path) = left.pop() {
        let meta = path.symlink_metadata().unwrap();
        let content = match meta {
            _ if meta.is_dir() => {
                let inner = fs::read_dir(&path).unwrap();
                left.extend(inner.map(|entry| entry.unwrap().path()));
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

fn sha256(path: &Path) -> String {
    let told = Command::new("sha256sum").arg(path).output().unwrap();
    let told = String::from_utf8(told.stdout).unwrap();
    told.split_whitespace().next().unwrap().to_owned()
}

#[tokio::test]
async fn a_tree_with_odd_names_goes_in_and_comes_back() {
    let _home = Home::new();
    let place = tempfile::tempdir().unwrap();
    let here = place.path().join("tree");
    fs::create_dir_all(here.join("deep/er")).unwrap();
    for name in [
        &b"\xff\xfe"[..],
        b"new\nline",
        b"-rf *",
        b"...",
        b" ",
        "\u{202e}txt".as_bytes(),
        &[b'n'; 255],
    ] {
        fs::write(here.join(OsString::from_vec(name.to_vec())), name).unwrap();
    }
    symlink("/etc/shadow", here.join("deep/link")).unwrap();
    fs::set_permissions(here.join("deep/er"), PermissionsExt::from_mode(0o711)).unwrap();
    let sandbox = builder().boot().await.unwrap();
    let copy = sandbox.copy_in(&here, "/srv", CopyOptions::new());
    let copied = timeout(PATIENCE, copy).await.unwrap().unwrap();
    assert_eq!(copied.entries, 11);
    let look = "cd /srv/tree && stat -c '%a %U' deep/er && ls -A | wc -l && readlink deep/link";
    // Of the eight names one has a line more.
    let expected = "711 root\n9\n/etc/shadow\n";
    assert_eq!(script(&sandbox, look).await, expected);
    let back = place.path().join("back");
    let copy = sandbox.copy_out("/srv/tree", &back, CopyOptions::new());
    timeout(PATIENCE, copy).await.unwrap().unwrap();
    assert_eq!(picture(&back), picture(&here));

    // What a program makes comes out, and what is no file is named.
    script(
        &sandbox,
        "mkdir /srv/made && cd /srv/made && echo made > file && ln file hard && mkfifo fifo",
    )
    .await;
    let copy = sandbox.copy_out("/srv/made/.", &back, CopyOptions::new());
    let copied = timeout(PATIENCE, copy).await.unwrap().unwrap();
    assert_eq!(copied.skipped, [Path::new("fifo")]);
    assert_eq!(fs::read(back.join("hard")).unwrap(), b"made\n");
    sandbox.kill().await;
}

#[tokio::test]
async fn a_tree_comes_out_as_an_archive_and_goes_in_again_as_it_was() {
    let _home = Home::new();
    let sandbox = builder().boot().await.unwrap();
    let made = "mkdir -p /srv/tree/a/b /srv/again && cd /srv/tree && echo x > a/file && \
                chown 12:34 a/file && chmod 4751 a/file && touch -d @1000000000 a/file a && \
                ln -s /etc/shadow a/b/link && chmod 700 a/b && : > empty";
    script(&sandbox, made).await;
    let mut archive = Vec::new();
    let out = sandbox.tar_out("/srv/tree", &mut archive, CopyOptions::new());
    let copied = timeout(PATIENCE, out).await.unwrap().unwrap();
    assert_eq!((copied.entries, copied.bytes), (6, 2));
    let mut reader = archive.as_slice();
    let back = sandbox.tar_in(&mut reader, "/srv/again", CopyOptions::new());
    let copied = timeout(PATIENCE, back).await.unwrap().unwrap();
    assert_eq!((copied.entries, copied.bytes), (6, 2));
    let look = |place: &str| {
        format!(
            "cd {place} && for f in . a a/b a/b/link a/file empty; do \
             stat -c '%n %f %u %g %s %Y' $f; done && cat a/file && readlink a/b/link"
        )
    };
    let was = script(&sandbox, &look("/srv/tree")).await;
    assert!(was.contains("a/file 89e9 12 34 2 1000000000"), "{was}");
    assert_eq!(script(&sandbox, &look("/srv/again/tree")).await, was);

    // The tar of the guest makes and reads the same.
    let theirs = script(
        &sandbox,
        "tar -cf /srv/theirs -C /srv tree && wc -c < /srv/theirs",
    )
    .await;
    let length = theirs.trim().parse().unwrap();
    let theirs = sandbox.read_file("/srv/theirs", length).await.unwrap();
    script(&sandbox, "rm -r /srv/again/tree").await;
    let mut reader = theirs.as_slice();
    let back = sandbox.tar_in(&mut reader, "/srv/again", CopyOptions::new());
    timeout(PATIENCE, back).await.unwrap().unwrap();
    assert_eq!(script(&sandbox, &look("/srv/again/tree")).await, was);
    sandbox
        .write_file("/srv/ours", &archive, flashpan::WriteOptions::new())
        .await
        .unwrap();
    let unpack = "rm -r /srv/again/tree && tar -xpf /srv/ours -C /srv/again";
    script(&sandbox, unpack).await;
    assert_eq!(script(&sandbox, &look("/srv/again/tree")).await, was);
    sandbox.kill().await;
}

#[tokio::test]
async fn a_long_file_goes_in_and_out_with_equal_hashes() {
    let _home = Home::new();
    let place = tempfile::tempdir().unwrap();
    let long = place.path().join("long");
    let length = match std::env::var("FLASHPAN_TEST_COPY_MIB") {
        Ok(mib) => mib.parse::<usize>().unwrap() << 20,
        Err(_) => LONG,
    };
    // No two pieces of it are the same.
    let mut file = File::create(&long).unwrap();
    for number in 0..u64::try_from(length).unwrap() >> 12 {
        let block: Vec<u8> = (0..512_u64)
            .flat_map(|word| {
                (number << 9 | word)
                    .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                    .to_le_bytes()
            })
            .collect();
        file.write_all(&block).unwrap();
    }
    drop(file);
    // It is in the guest's memory, of which half may be files.
    let mib = u64::try_from(length >> 20).unwrap();
    let sandbox = builder().memory_mib(256 + 3 * mib).boot().await.unwrap();
    let patience = PATIENCE * 10;
    let copy = sandbox.copy_in(&long, "/srv", CopyOptions::new());
    timeout(patience, copy).await.unwrap().unwrap();
    let inside = script(&sandbox, "sha256sum /srv/long").await;
    let back = place.path().join("back");
    let copy = sandbox.copy_out("/srv/long", &back, CopyOptions::new());
    timeout(patience, copy).await.unwrap().unwrap();
    let hash = sha256(&long);
    assert!(inside.starts_with(&hash), "{inside}");
    assert_eq!(sha256(&back), hash);
    sandbox.kill().await;
}

#[tokio::test]
async fn a_full_disk_is_told_with_the_file_and_leaves_whole_files_only() {
    let _home = Home::new();
    let place = tempfile::tempdir().unwrap();
    let here = place.path().join("tree");
    fs::create_dir(&here).unwrap();
    fs::write(here.join("big"), vec![b'x'; 4 << 20]).unwrap();
    let sandbox = builder().boot().await.unwrap();
    script(
        &sandbox,
        "mkdir /small && mount -t tmpfs -o size=1m tmpfs /small",
    )
    .await;
    let copy = sandbox.copy_in(&here, "/small", CopyOptions::new());
    let error = timeout(PATIENCE, copy).await.unwrap().unwrap_err();
    assert!(
        matches!(
            error,
            Error::File {
                kind: FileFailureKind::NoSpace,
                ..
            }
        ),
        "{error}"
    );
    assert!(
        error.to_string().contains("big: write it: No space left"),
        "{error}"
    );
    assert_eq!(script(&sandbox, "find /small -type f").await, "");
    sandbox.kill().await;
}
