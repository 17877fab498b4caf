//! VMs from configurations, and their time limits.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use flashpan::api::Config;
use flashpan::launch::{
    HostOptions, Launch, Overrides, RootSource, Silent, TimeLimit, UpperSource,
};
use flashpan::{Error, ExecOptions, ExitReason, ExitStatus, Sandbox};
use flashpan_tests::{Flashpan, Home, fixtures};
use tokio::time::timeout;

/// How long anything here may take, even emulated.
const PATIENCE: Duration = Duration::from_secs(180);

fn options() -> HostOptions {
    let program = |name: &str| Some(fixtures::flashpan().with_file_name(name));
    let mut options = HostOptions::new(fixtures::kernel())
        .root(RootSource::Path(fixtures::debian()))
        .upper(UpperSource::Memory);
    options.vmm = program("flashpan-vmm");
    options.guest_init = program("flashpan-guest-init");
    options.boot_timeout = PATIENCE;
    options.time_limit = TimeLimit::Unlimited;
    options
}

fn config(text: &str) -> Config {
    Config::from_toml_strict(text).unwrap()
}

/// What a script in the guest prints; it has to succeed.
async fn script(sandbox: &Sandbox, script: &str) -> String {
    let program = sandbox.exec(ExecOptions::shell(script)).await.unwrap();
    let ended = program.collect(1 << 20).await.unwrap();
    let errors = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status, ExitStatus::Code(0), "{script}: {errors}");
    String::from_utf8(ended.stdout).unwrap()
}

#[test]
fn a_file_says_what_the_vm_is() {
    let home = Home::new();
    let file = home.file("sandbox.toml");
    let text = "env = { GREETING = 'hello' }\n\
                image_config = { user = 'nobody', working_dir = '/tmp' }\n\
                [resources]\nmemory_mb = 200\ncpus = 2\n\
                [network]\nhostname = 'boxed'\n";
    fs::write(&file, text).unwrap();
    let file = file.display().to_string();
    let script = "hostname; pwd; id -un; echo $GREETING; nproc; \
                  awk '/MemTotal/ { print ($2 > 150000 && $2 < 204800) }' /proc/meminfo";
    let run = Flashpan::run(&home, ["-f", &file], ["sh", "-c", script]).finish();
    run.expect_status(0)
        .expect_stdout("boxed\n/tmp\nnobody\nhello\n2\n1\n");
    let run = Flashpan::run(&home, ["-f", &file, "--cpus", "1"], ["nproc"]).finish();
    run.expect_status(0).expect_stdout("1\n");
    fs::remove_file(file).unwrap();
}

#[test]
fn a_vm_whose_time_is_up_keeps_what_it_wrote() {
    let home = Home::new();
    let made = Flashpan::new(&home, ["volume", "create", "timed", "--size", "64"]).finish();
    made.expect_status(0);
    let disk = ["--disk", "@timed:/kept"];
    let script = "echo written > /kept/file; echo up; sleep 1000";
    let limited = [&disk[..], &["--timeout", "5s"]].concat();
    let run = Flashpan::run(&home, &limited, ["sh", "-c", script]).finish();
    run.expect_status(124).expect_stdout("up\n");
    assert!(run.stderr.contains("time is up: 5s"), "{run}");
    assert!(!run.stderr.contains("may be lost"), "{run}");
    let run = Flashpan::run(&home, disk, ["cat", "/kept/file"]).finish();
    run.expect_status(0).expect_stdout("written\n");
    let removed = Flashpan::new(&home, ["volume", "rm", "timed"]).finish();
    removed.expect_status(0);
}

#[tokio::test]
async fn a_program_whose_time_is_up_is_ended_with_all_that_it_started() {
    // Looks for what is left when it is dropped, which is last.
    let _home = Home::new();
    let sandbox = Sandbox::create(config(""), options()).await.unwrap();
    let slow = "trap '' TERM; sleep 4321 & sleep 4321";
    let exec = ExecOptions::shell(slow).timeout(Duration::from_secs(3));
    let slow = sandbox.exec(exec).await.unwrap();
    let ended = timeout(PATIENCE, slow.collect(1)).await.unwrap();
    assert!(
        matches!(ended, Err(Error::ProgramTimeout { .. })),
        "{ended:?}"
    );
    let left = "ps -e -o args | grep -c '[s]leep 4321' || true";
    assert_eq!(script(&sandbox, left).await, "0\n");
    sandbox.kill().await;
}

#[tokio::test]
async fn a_vm_of_the_library_ends_when_its_time_is_up() {
    let _home = Home::new();
    let mut options = options();
    options.time_limit = TimeLimit::After(Duration::from_secs(5));
    let sandbox = Sandbox::create(config(""), options).await.unwrap();
    let exit = timeout(PATIENCE, sandbox.wait()).await.unwrap();
    let orderly = matches!(exit.reason, ExitReason::TimedOut { orderly: true, .. });
    assert!(orderly, "{:?}", exit.reason);
}

#[tokio::test]
async fn a_vm_that_is_started_again_has_what_it_wrote() {
    let home = Home::new();
    let mut options = options();
    let upper = home.file("upper.ext4");
    options.upper = UpperSource::Disk(upper.clone());
    let config = config("[resources]\ndisk_size_mb = 64\n");
    for (round, expected) in ["1\n", "1\n2\n"].into_iter().enumerate() {
        let launch = Launch::new(config.clone(), options.clone(), Arc::new(Silent));
        let launch = launch.await.unwrap();
        let sandbox = launch.boot().await.unwrap();
        let add = format!("echo {} >> /root/rounds; cat /root/rounds", round + 1);
        let add = Overrides {
            command: ["sh", "-c", &add].map(Into::into).to_vec(),
            ..Overrides::default()
        };
        let add = launch.exec_defaults().program(&add).unwrap();
        let added = sandbox
            .exec(add)
            .await
            .unwrap()
            .collect(1 << 16)
            .await
            .unwrap();
        assert_eq!(String::from_utf8(added.stdout).unwrap(), expected);
        let exit = sandbox.shutdown(Duration::from_secs(5)).await;
        assert!(exit.reason.is_orderly(), "{:?}", exit.reason);
    }
    fs::remove_file(upper).unwrap();
}
