//! From a configuration to a VM, against the fake VMM, and the time limits of VMs
//! and programs. No KVM is needed.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

#[allow(dead_code, reason = "each test program uses a part")]
#[path = "fake/world.rs"]
mod world;

use std::sync::Arc;
use std::time::{Duration, Instant};

use flashpan::api::{Config, ErrorCode};
use flashpan::launch::{HostOptions, Overrides, RootSource, Silent, TimeLimit, UpperSource};
use flashpan::{Error, ExecOptions, ExitReason, ExitStatus, Launch, Phase, Sandbox};
use flashpan_rootfs::cache::Cache;
use flashpan_rootfs::disk;
use tokio::time::timeout;
use world::{LONG, World};

const SHORT: Duration = Duration::from_millis(300);

/// An ext4 image in a file.
fn ext4(world: &World, name: &str) {
    let cache = Cache::at(world.path("cache"));
    drop(disk::kept(&world.path(name), disk::SIZE_MIN, &cache).unwrap());
}

fn options(world: &World, scenario: &str) -> HostOptions {
    if !world.path("root.ext4").exists() {
        ext4(world, "root.ext4");
    }
    let mut options = HostOptions::new(world.path("vmlinux"))
        .root(RootSource::Path(world.path("root.ext4")))
        .upper(UpperSource::Memory);
    options.vmm = Some(world.path(scenario));
    options.guest_init = Some(world.path("init"));
    options
}

fn config(json: &str) -> Config {
    let named = Config::from_json(br#"{"network":{"hostname":"fake"}}"#).unwrap();
    named
        .config
        .merge(Config::from_json(json.as_bytes()).unwrap().config)
}

#[tokio::test]
async fn a_configuration_becomes_a_vm_that_knows_it() {
    let world = World::new("normal");
    let json = r#"{"env":{"A":"1"},"resources":{"memory_mb":96},
        "image_config":{"user":"7","working_dir":"/w","cmd":["show"]}}"#;
    let options = options(&world, "normal");
    let launch = Launch::new(config(json), options, Arc::new(Silent))
        .await
        .unwrap();
    assert!(!launch.keeps_something());
    let sandbox = launch.boot().await.unwrap();
    assert_eq!(sandbox.stats().await.unwrap().vmm_resident_kib, 96);
    assert!(sandbox.id().unwrap().starts_with("vm-"));
    assert_eq!(sandbox.config().unwrap().env["A"], "1");
    let show = launch
        .exec_defaults()
        .program(&Overrides::default())
        .unwrap();
    let shown = sandbox
        .exec(show)
        .await
        .unwrap()
        .collect(4096)
        .await
        .unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.starts_with("A=1\n"), "{shown}");
    assert!(shown.ends_with("in /w as 7\n"), "{shown}");
    sandbox.kill().await;
    // Several VMs of one configuration.
    let second = launch.boot().await.unwrap();
    assert_eq!(second.stats().await.unwrap().vmm_resident_kib, 96);
    second.kill().await;
    world.vmm_is_gone().await;
}

/// What `show` says of the surroundings it got.
async fn shown(sandbox: &Sandbox, options: ExecOptions) -> String {
    let show = sandbox.exec(options).await.unwrap();
    let shown = show.collect(4096).await.unwrap();
    String::from_utf8(shown.stdout).unwrap()
}

#[tokio::test]
async fn programs_get_what_the_configuration_says_unless_they_say_otherwise() {
    let world = World::new("normal");
    let json = r#"{"env":{"A":"1","B":"2"},"privileged":true,
        "image_config":{"user":"7","working_dir":"/w","env":{"B":"image","C":"image"}}}"#;
    let sandbox = Sandbox::create(config(json), options(&world, "normal"))
        .await
        .unwrap();
    let show = || ExecOptions::argv(["show"]);
    let path = format!("PATH={}\n", flashpan::DEFAULT_PATH);
    assert_eq!(
        shown(&sandbox, show()).await,
        format!("A=1\nB=2\nC=image\n{path}in /w as 7 privileged\n")
    );
    let own = show().env("A", "own").working_dir("/own").user("me");
    let own = own.privilege(flashpan::Privilege::confined());
    assert_eq!(
        shown(&sandbox, own).await,
        format!("A=own\nB=2\nC=image\n{path}in /own as me\n")
    );
    assert_eq!(
        shown(&sandbox, show().bare()).await,
        format!("{path}in  as \n")
    );
    // What was put together before is not put together again.
    let defaults = sandbox.exec_defaults().unwrap();
    let wishes = Overrides {
        command: vec!["show".into()],
        ..Overrides::default()
    };
    let program = defaults.program(&wishes).unwrap().env("C", "own");
    let program = program.privilege(flashpan::Privilege::confined());
    assert_eq!(
        shown(&sandbox, program).await,
        format!("A=1\nB=2\nC=own\n{path}in /w as 7\n")
    );
    sandbox.kill().await;
}

#[tokio::test]
async fn what_cannot_be_obeyed_is_refused_before_there_is_a_vm() {
    let world = World::new("normal");
    let json = r#"{"network":{"secrets":{"K":{"value":"hunter2","hosts":["a"]}}}}"#;
    let mut options = options(&world, "normal");
    options.network = flashpan::Network::None;
    let error = Sandbox::create(config(json), options).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::Unsupported);
    let shown = format!("{error} {error:?}");
    assert!(shown.contains("network.secrets"), "{shown}");
    assert!(!shown.contains("hunter2"), "{shown}");
}

#[tokio::test]
async fn the_image_s_own_command_is_started_if_that_is_asked_for() {
    let world = World::new("normal");
    let start = |command: &str| {
        let json = format!(
            r#"{{"launch_entrypoint":true,"image_config":{{"entrypoint":["{command}"]}}}}"#
        );
        Sandbox::create(config(&json), options(&world, "normal"))
    };
    let sandbox = start("sleep").await.unwrap();
    // Nobody but the launch has started anything.
    assert!(
        sandbox
            .timeline()
            .since_start(Phase::CommandStarted)
            .is_some()
    );
    let mut beside = sandbox
        .exec(ExecOptions::argv(["exit", "4"]))
        .await
        .unwrap();
    assert_eq!(beside.wait().await.unwrap(), ExitStatus::Code(4));
    drop(sandbox);
    let error = start("missing").await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::CommandNotFound);
    assert_eq!(
        error.to_string(),
        "start image entrypoint: missing: not found in PATH"
    );
    world.vmm_is_gone().await;
}

#[tokio::test]
async fn what_the_image_s_own_command_writes_is_kept() {
    let world = World::new("normal");
    let json = r#"{"launch_entrypoint":true,"image_config":{"entrypoint":["both"]}}"#;
    let sandbox = Sandbox::create(config(json), options(&world, "normal"))
        .await
        .unwrap();
    let mut logs = sandbox.logs().unwrap();
    let mut written = Vec::new();
    while written.len() < 6 {
        let more = timeout(LONG, logs.next()).await.unwrap().unwrap();
        written.extend(more.unwrap());
    }
    // Two streams: each is whole, and which is first is not said.
    written.sort_unstable();
    assert_eq!(written, b"eorrtu");
    assert!(!logs.take_lost());
    assert!(logs.available().unwrap().is_empty());
    // Whoever comes later gets it as well; other programs are not in it.
    let other = sandbox.exec(ExecOptions::argv(["both"])).await.unwrap();
    other.collect(10).await.unwrap();
    sandbox.kill().await;
    let mut late = sandbox.logs().unwrap();
    assert_eq!(
        timeout(LONG, late.next())
            .await
            .unwrap()
            .unwrap()
            .unwrap()
            .len(),
        6
    );
    for logs in [&mut logs, &mut late] {
        assert_eq!(timeout(LONG, logs.next()).await.unwrap().unwrap(), None);
    }
    world.vmm_is_gone().await;
}

#[tokio::test]
async fn what_is_collected_is_a_result_of_the_interface() {
    let world = World::new("normal");
    let sandbox = world.boot().await;
    let run = |argv: &[&str]| sandbox.exec(ExecOptions::argv(argv).timeout(LONG));
    let began = Instant::now();
    let both = run(&["both"]).await.unwrap().collect(10).await.unwrap();
    assert!(!both.duration.is_zero() && both.duration <= began.elapsed());
    let result = flashpan::api::ExecResult::from(both.clone());
    assert_eq!(
        (&result.stdout[..], &result.stderr[..]),
        (&b"out"[..], &b"err"[..])
    );
    assert_eq!((result.exit_code, result.duration), (0, both.duration));
    let failed = run(&["exit", "255"]).await.unwrap();
    let failed = failed.collect(10).await.unwrap();
    assert_eq!(flashpan::api::ExecResult::from(failed).exit_code, 255);
    let asleep = run(&["sleep"]).await.unwrap();
    asleep.signal(9).unwrap();
    let killed = asleep.collect(10).await.unwrap();
    assert_eq!(flashpan::api::ExecResult::from(killed).exit_code, -1);
    sandbox.kill().await;
}

#[tokio::test]
async fn the_start_of_the_image_s_own_command_is_an_event() {
    let world = World::new("normal");
    let json = r#"{"launch_entrypoint":true,"image_config":{"entrypoint":["tells","entry"]}}"#;
    let sandbox = Sandbox::create(config(json), options(&world, "normal"))
        .await
        .unwrap();
    let mut events = sandbox.events().unwrap();
    let first = timeout(LONG, events.next()).await.unwrap().unwrap();
    let flashpan::VmEventKind::ExecStarted(started) = first.kind else {
        panic!("{first:?}")
    };
    assert_eq!(started.argv(), ["tells", "entry"]);
    drop(sandbox);
    world.vmm_is_gone().await;
}

#[tokio::test]
async fn a_kept_upper_disk_is_its_vm_s_as_long_as_that_lives() {
    let world = World::new("normal");
    ext4(&world, "upper.ext4");
    let mut options = options(&world, "normal");
    options.upper = UpperSource::Disk(world.path("upper.ext4"));
    let create = || Launch::new(config("{}"), options.clone(), Arc::new(Silent));
    let launch = create().await.unwrap();
    assert!(launch.keeps_something());
    let sandbox = launch.boot().await.unwrap();
    // The VMM has the same open file.
    drop(launch);
    let refused = create().await.unwrap_err();
    assert_eq!(refused.code(), ErrorCode::DiskUnusable);
    assert!(refused.to_string().contains("is in use"), "{refused}");
    sandbox.shutdown(Duration::ZERO).await;
    create().await.unwrap();
}

#[tokio::test]
async fn a_vm_whose_time_is_up_is_ended_in_order() {
    let world = World::new("normal");
    let mut options = options(&world, "normal");
    options.time_limit = TimeLimit::After(SHORT);
    let sandbox = Sandbox::create(config("{}"), options).await.unwrap();
    let mut process = sandbox.exec(ExecOptions::argv(["sleep"])).await.unwrap();
    assert_eq!(timeout(LONG, sandbox.time_is_up()).await.unwrap(), SHORT);
    let error = timeout(LONG, process.wait()).await.unwrap().unwrap_err();
    assert!(
        matches!(error, Error::VmTimeout { after: SHORT }),
        "{error:?}"
    );
    assert!(error.is_timeout());
    let exit = timeout(LONG, sandbox.wait()).await.unwrap();
    let expected = ExitReason::TimedOut {
        after: SHORT,
        orderly: true,
    };
    assert_eq!(exit.reason, expected);
    // Whoever comes later hears the same.
    let error = sandbox
        .exec(ExecOptions::argv(["exit", "0"]))
        .await
        .unwrap_err();
    assert!(matches!(error, Error::VmTimeout { .. }), "{error:?}");
}

#[tokio::test]
async fn a_guest_that_does_not_obey_is_killed_when_its_time_is_up() {
    let world = World::new("stubborn");
    let sandbox = world.builder().time_limit(SHORT).boot().await.unwrap();
    let exit = timeout(LONG, sandbox.wait()).await.unwrap();
    let expected = ExitReason::TimedOut {
        after: SHORT,
        orderly: false,
    };
    assert_eq!(exit.reason, expected);
    world.vmm_is_gone().await;
}

#[tokio::test]
async fn a_vm_that_ends_before_its_time_is_up_has_its_own_reason() {
    let world = World::new("normal");
    let sandbox = world.builder().time_limit(LONG).boot().await.unwrap();
    let exit = sandbox.shutdown(Duration::ZERO).await;
    assert_eq!(exit.reason, ExitReason::PowerOff);
    let refused = world.builder().time_limit(Duration::ZERO).validate();
    assert!(
        refused
            .unwrap_err()
            .to_string()
            .starts_with("time limit: 0")
    );
}

#[tokio::test]
async fn a_program_whose_time_is_up_is_ended_and_nothing_else() {
    let world = World::new("normal");
    let sandbox = world.boot().await;
    let exec = |argv: &[&str]| ExecOptions::argv(argv).timeout(SHORT);
    // One that obeys: no later than its agent says so.
    let began = Instant::now();
    let slow = sandbox.exec(exec(&["until-cancelled"])).await.unwrap();
    let error = timeout(LONG, slow.collect(1)).await.unwrap().unwrap_err();
    assert!(
        matches!(error, Error::ProgramTimeout { after: SHORT }),
        "{error:?}"
    );
    assert!((SHORT..Duration::from_secs(5)).contains(&began.elapsed()));
    assert_eq!(error.code(), ErrorCode::Timeout);
    // One that does not, whose agent does not, and whose output nobody reads.
    for argv in [&["deaf"][..], &["flood", "/dev/null"]] {
        let mut process = sandbox.exec(exec(argv)).await.unwrap();
        let error = timeout(LONG, process.wait()).await.unwrap().unwrap_err();
        assert!(matches!(error, Error::ProgramTimeout { .. }), "{error:?}");
    }
    // One that ends in time.
    let in_time = ExecOptions::argv(["exit", "6"]).timeout(LONG);
    let mut in_time = sandbox.exec(in_time).await.unwrap();
    assert_eq!(in_time.wait().await.unwrap(), ExitStatus::Code(6));
    sandbox.kill().await;
}
