//! Files of a running guest, by the library: what the supervisor writes is what
//! programs see, and what programs write is what it reads.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::path::PathBuf;
use std::time::Duration;

use flashpan::{
    Error, ExecOptions, ExitStatus, FileFailureKind, FsType, Privilege, ReadOptions, Root, Sandbox,
    SandboxBuilder, Upper, WriteOptions,
};
use flashpan_tests::{Home, fixtures};
use tokio::time::timeout;

/// How long anything here may take, even emulated.
const PATIENCE: Duration = Duration::from_secs(180);

/// A program of ours, beside the one that is tested.
fn program(name: &str) -> PathBuf {
    fixtures::flashpan().with_file_name(name)
}

fn builder() -> SandboxBuilder {
    let root = Root::new(fixtures::debian(), FsType::Erofs);
    Sandbox::builder(fixtures::kernel(), root)
        .vmm(program("flashpan-vmm"))
        .guest_init(program("flashpan-guest-init"))
        .boot_timeout(PATIENCE)
}

/// What a script in the guest prints; it has to succeed.
async fn script(sandbox: &Sandbox, script: &str) -> String {
    let program = sandbox.exec(ExecOptions::shell(script)).await.unwrap();
    let ended = program.collect(1 << 20).await.unwrap();
    let errors = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status, ExitStatus::Code(0), "{script}: {errors}");
    String::from_utf8(ended.stdout).unwrap()
}

fn kind<T: std::fmt::Debug>(result: Result<T, Error>) -> FileFailureKind {
    match result {
        Err(Error::File { kind, .. }) => kind,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn files_go_in_and_out_of_a_running_guest() {
    // Looks for what is left when it is dropped, which is last.
    let _home = Home::new();
    let sandbox = builder().boot().await.unwrap();
    let options = WriteOptions::new().mode(0o640).uid(1000).gid(50);
    let write = sandbox.write_file("/srv/work/input", "one\n", options);
    timeout(PATIENCE, write).await.unwrap().unwrap();
    let look = "stat -c '%a %u %g' /srv/work/input; cat /srv/work/input";
    assert_eq!(script(&sandbox, look).await, "640 1000 50\none\n");

    script(
        &sandbox,
        "echo two >> /srv/work/input; ln -s input /srv/work/link",
    )
    .await;
    let content = sandbox.read_file("/srv/work/link", 100).await.unwrap();
    assert_eq!(content, b"one\ntwo\n");
    // What is replaced keeps its owner and mode.
    let again = sandbox.write_file("/srv/work/input", "three\n", WriteOptions::new());
    again.await.unwrap();
    let stat = sandbox.stat("/srv/work/input").await.unwrap();
    assert_eq!((stat.uid, stat.gid, stat.permissions()), (1000, 50, 0o640));

    sandbox.mkdir("/srv/work/sub", 0o750, false).await.unwrap();
    let files = sandbox.list_files("/srv/work").await.unwrap();
    let names: Vec<_> = files.iter().map(|file| file.name.as_str()).collect();
    assert_eq!(names, ["input", "link", "sub"]);
    assert_eq!((files[0].size, files[2].is_dir), (6, true));

    let renamed = sandbox.rename("/srv/work/input", "/srv/work/sub/moved");
    renamed.await.unwrap();
    assert_eq!(script(&sandbox, "cat /srv/work/sub/moved").await, "three\n");
    let gone = sandbox.read_file("/srv/work/input", 100).await;
    assert_eq!(kind(gone), FileFailureKind::NotFound);
    let full = sandbox.remove("/srv/work", false).await;
    assert_eq!(kind(full), FileFailureKind::NotEmpty);
    sandbox.remove("/srv/work", true).await.unwrap();
    assert_eq!(script(&sandbox, "ls /srv").await, "");

    // A file of the image, and one of the kernel.
    let passwd = sandbox.read_file("/etc/passwd", 1 << 20).await.unwrap();
    assert!(passwd.starts_with(b"root:"));
    let version = sandbox.read_file("/proc/version", 1 << 10).await.unwrap();
    assert!(version.starts_with(b"Linux version "));
    sandbox.kill().await;
}

#[tokio::test]
async fn a_guest_cannot_make_its_files_hold_anything_up() {
    let _home = Home::new();
    let sandbox = builder().boot().await.unwrap();
    script(
        &sandbox,
        "mkfifo /tmp/fifo; ln -s /dev/zero /tmp/zero; ln -s /tmp/a /tmp/a",
    )
    .await;
    for path in ["/tmp/fifo", "/tmp/zero", "/dev/zero"] {
        let read = timeout(PATIENCE, sandbox.read_file(path, 100))
            .await
            .unwrap();
        assert_eq!(kind(read), FileFailureKind::NotRegular, "{path}");
    }
    let looped = timeout(PATIENCE, sandbox.read_file("/tmp/a", 100)).await;
    assert_eq!(kind(looped.unwrap()), FileFailureKind::Other);
    // Longer than all the guest's memory, and nobody reads it to its end.
    script(&sandbox, "truncate -s 100G /tmp/long").await;
    for _ in 0..40 {
        let open = sandbox.open_file("/tmp/long", ReadOptions::new());
        let mut reader = timeout(PATIENCE, open).await.unwrap().unwrap();
        assert!(reader.next_chunk().await.unwrap().is_some());
        // Dropped, it makes room for the next: there is room for 32.
        drop(reader);
    }
    assert_eq!(script(&sandbox, "echo alive").await, "alive\n");
    sandbox.kill().await;
}

#[tokio::test]
async fn a_read_only_root_and_a_full_one_say_so() {
    let _home = Home::new();
    let sandbox = builder().upper(Upper::ReadOnly).boot().await.unwrap();
    let write = sandbox
        .write_file("/etc/new", "x", WriteOptions::new())
        .await;
    assert_eq!(kind(write), FileFailureKind::ReadOnly);
    sandbox.kill().await;

    let sandbox = builder().memory_mib(128).boot().await.unwrap();
    let mount = ExecOptions::shell("mkdir /small; mount -t tmpfs -o size=1m tmpfs /small");
    // Where the supervisor sees it too.
    let mount = mount.privilege(Privilege::privileged());
    let program = sandbox.exec(mount).await.unwrap();
    let ended = program.collect(1 << 10).await.unwrap();
    assert_eq!(ended.status, ExitStatus::Code(0), "{ended:?}");
    let content = vec![b'x'; 4 << 20];
    let write = sandbox.write_file("/small/file", &content, WriteOptions::new());
    let full = timeout(PATIENCE, write).await.unwrap();
    assert_eq!(kind(full), FileFailureKind::NoSpace);
    assert_eq!(script(&sandbox, "ls -A /small").await, "");
    sandbox.kill().await;
}
