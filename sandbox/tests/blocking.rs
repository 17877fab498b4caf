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
use std::sync::Arc;

use flashpan::api::{Config, ErrorCode, PortForward};
use flashpan::blocking::{Launch, Sandbox};
use flashpan::launch::{Cancel, HostOptions, RootSource, Silent, UpperSource};
use flashpan::state::{Record, Vms};
use flashpan::{
    Activity, CopyOptions, Error, ExecOptions, ExitReason, ExitStatus, Forward, ForwardOptions,
    ReadOptions, VmEventKind, WatchOptions, WriteOptions,
};
use flashpan_rootfs::cache::Cache;
use flashpan_rootfs::disk;
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

/// What a VM of a configuration needs here.
fn options(world: &World) -> HostOptions {
    let cache = Cache::at(world.path("cache"));
    drop(disk::kept(&world.path("root.ext4"), disk::SIZE_MIN, &cache).unwrap());
    let mut options = HostOptions::new(world.path("vmlinux"))
        .root(RootSource::Path(world.path("root.ext4")))
        .upper(UpperSource::Memory);
    options.vmm = Some(world.path("normal"));
    options.guest_init = Some(world.path("init"));
    options
}

fn config(json: &str) -> Config {
    let named = Config::from_json(br#"{"network":{"hostname":"fake"}}"#).unwrap();
    let more = Config::from_json(json.as_bytes()).unwrap();
    named.config.merge(more.config)
}

#[test]
fn a_configuration_becomes_a_vm_whose_life_is_watched() {
    let world = World::new("normal");
    let json = r#"{"env":{"A":"1"},"launch_entrypoint":true,
        "image_config":{"entrypoint":["both"]}}"#;
    let sandbox = Sandbox::create(config(json), options(&world)).unwrap();
    assert!(sandbox.id().unwrap().starts_with("vm-"));
    assert_eq!(sandbox.config().unwrap().env["A"], "1");
    assert!(sandbox.exec_defaults().unwrap().launches_entrypoint());
    let mut logs = sandbox.logs().unwrap();
    let mut written = 0;
    while written < 6 {
        written += logs.next().unwrap().unwrap().len();
    }
    sandbox.pause().unwrap();
    assert_eq!(sandbox.activity().unwrap(), Activity::Paused);
    let refused = sandbox.exec(ExecOptions::argv(["show"])).unwrap_err();
    assert!(matches!(refused, Error::Paused), "{refused:?}");
    sandbox.resume().unwrap();
    assert_eq!(sandbox.usage().unwrap().vcpus, 1);
    let mut events = sandbox.events().unwrap();
    let told = sandbox.exec(ExecOptions::argv(["tells", "it"])).unwrap();
    let VmEventKind::ExecStarted(started) = events.next().unwrap().kind else {
        panic!("not the start")
    };
    assert_eq!(started.argv(), ["tells", "it"]);
    drop(told);
    let show = sandbox.exec(ExecOptions::argv(["show"])).unwrap();
    assert!(show.collect(4096).unwrap().stdout.starts_with(b"A=1\n"));
    sandbox.kill();
    assert!(logs.next().is_none());
    assert!(events.by_ref().take(100).count() < 100);
}

#[test]
fn a_vm_is_made_step_by_step() {
    let world = World::new("normal");
    let mut checked = Launch::check(config("{}"), options(&world), Arc::new(Silent)).unwrap();
    assert!(!checked.is_to_pull());
    checked.pull(&Cancel::default()).unwrap();
    let launch = checked.finish().unwrap();
    for _ in 0..2 {
        let sandbox = launch.boot().unwrap();
        assert!(launch.start_entrypoint(&sandbox).unwrap().is_none());
        assert_eq!(sandbox.id(), Some(launch.config().id.as_str()));
        sandbox.kill();
    }
}

#[test]
fn a_vm_that_does_not_run_is_not_reached() {
    let directory = tempfile::tempdir().unwrap();
    let vms = Vms::at(directory.path());
    let vm = vms.create().unwrap();
    let vm = vm.publish(Record::new(serde_json::Value::Null)).unwrap();
    let error = Sandbox::attach(&vm).unwrap_err();
    assert_eq!(error.code(), ErrorCode::VmNotRunning);
    // There is nothing to end.
    Sandbox::end(&vms, vm.id()).unwrap();
}
