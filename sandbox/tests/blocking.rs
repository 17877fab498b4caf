//! The library without async, against a fake VMM.
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
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;

use flashpan::api::PortForward;
use flashpan::blocking::Sandbox;
use flashpan::{
    CopyOptions, Error, ExecOptions, ExitReason, ExitStatus, Forward, ForwardOptions, ReadOptions,
    WatchOptions, WriteOptions,
};
use world::World;

fn boot(world: &World) -> Sandbox {
    Sandbox::boot(world.builder()).unwrap()
}

#[test]
fn programs_run_and_talk() {
    let world = World::new("normal");
    let sandbox = boot(&world);
    let both = sandbox
        .exec(ExecOptions::argv(["both"]))
        .unwrap()
        .collect(100)
        .unwrap();
    assert_eq!(
        (both.stdout.as_slice(), both.stderr.as_slice()),
        (&b"out"[..], &b"err"[..])
    );

    let mut cat = sandbox
        .exec(ExecOptions::argv(["cat"]).stdin(true))
        .unwrap();
    let (mut stdin, mut stdout) = (cat.stdin.take().unwrap(), cat.stdout.take().unwrap());
    let content = vec![b'x'; 1_000_000];
    std::thread::scope(|scope| {
        scope.spawn(|| {
            stdin.write_all(&content).unwrap();
            drop(stdin);
        });
        let mut back = Vec::new();
        stdout.read_to_end(&mut back).unwrap();
        assert!(back == content);
    });
    assert_eq!(cat.wait().unwrap(), ExitStatus::Code(0));

    let mut sleep = sandbox.exec(ExecOptions::argv(["sleep"])).unwrap();
    sleep.signal(15).unwrap();
    assert_eq!(sleep.wait().unwrap(), ExitStatus::Signal(15));
    assert_eq!(sandbox.kill().reason, ExitReason::Killed);
    let error = sandbox.exec(ExecOptions::argv(["both"])).unwrap_err();
    assert!(
        matches!(error, Error::VmEnded(ExitReason::Killed)),
        "{error}"
    );
}

#[test]
fn files_trees_changes_and_ports_work() {
    let world = World::new("normal");
    let sandbox = boot(&world);
    let place = world.path("place");
    sandbox.mkdir(&place, 0o755, false).unwrap();
    let mut watch = sandbox.watch(&place, WatchOptions::new()).unwrap();
    let mut content = &b"content"[..];
    let file = place.join("file");
    sandbox
        .write_file_from(&file, &mut content, WriteOptions::new())
        .unwrap();
    let change = watch.next().unwrap().unwrap();
    assert_eq!(change.path, Path::new("file"));
    let mut back = String::new();
    let mut reader = sandbox.open_file(&file, ReadOptions::new()).unwrap();
    reader.read_to_string(&mut back).unwrap();
    assert_eq!(back, "content");
    let copied = sandbox
        .copy_out(&place, world.path("out"), CopyOptions::new())
        .unwrap();
    assert_eq!(copied.entries, 2);
    assert_eq!(fs::read(world.path("out/file")).unwrap(), b"content");
    let mut archive = Vec::new();
    let copied = sandbox
        .tar_out(&file, &mut archive, CopyOptions::new())
        .unwrap();
    assert_eq!(copied.entries, 1);
    fs::remove_file(world.path("out/file")).unwrap();
    let mut archive = archive.as_slice();
    sandbox
        .tar_in(&mut archive, world.path("out"), CopyOptions::new())
        .unwrap();
    assert_eq!(fs::read(world.path("out/file")).unwrap(), b"content");

    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let ports = PortForward {
        local_port: 0,
        remote_port: server.local_addr().unwrap().port(),
    };
    let forwards = [Forward::tcp(ports)];
    let forwarding = sandbox
        .port_forward(&forwards, ForwardOptions::new())
        .unwrap();
    let mut client = TcpStream::connect(forwarding.bindings()[0].address).unwrap();
    let (mut accepted, _) = server.accept().unwrap();
    accepted.write_all(b"hello").unwrap();
    drop(accepted);
    let mut hello = String::new();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    client.read_to_string(&mut hello).unwrap();
    assert_eq!(hello, "hello");
}

#[tokio::test]
async fn a_vm_that_is_dropped_is_gone_at_once() {
    let world = World::new("normal");
    let path = world.path("vmlinux");
    let builder = world.builder();
    let thread = std::thread::spawn(move || {
        let sandbox = Sandbox::boot(builder).unwrap();
        let process = sandbox.exec(ExecOptions::argv(["sleep"])).unwrap();
        // What it gave out may be dropped later.
        drop(sandbox);
        drop(process);
        let kernel = fs::File::open(path).unwrap();
        let lock = nix::fcntl::FlockArg::LockExclusiveNonblock;
        drop(nix::fcntl::Flock::lock(kernel, lock).expect("the VMM lives on"));
    });
    thread.join().unwrap();
    world.vmm_is_gone().await;
}

#[test]
fn a_vm_that_does_not_boot_is_an_error() {
    let error = Sandbox::boot(World::new("boot-failed").builder()).unwrap_err();
    assert!(matches!(error, Error::BootFailed { .. }), "{error}");
}
