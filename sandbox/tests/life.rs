//! The life of a VM as its owner sees it, against a fake VMM in a process of
//! its own.
#![allow(
    missing_docs,
    unreachable_pub,
    unsafe_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use flashpan::{
    Error, ExecOptions, ExitReason, ExitStatus, Phase, Process, Sandbox, StartFailureKind,
    TerminalSize, VmEventKind,
};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tokio::time::timeout;

#[path = "fake/world.rs"]
mod world;

use world::{LONG, World};

async fn run(sandbox: &Sandbox, argv: &[&str]) -> Process {
    sandbox
        .exec(ExecOptions::argv(argv).stdin(true))
        .await
        .unwrap()
}

#[tokio::test]
async fn a_program_runs_and_its_streams_and_status_come_back() {
    let world = World::new("normal");
    let sandbox = world.boot().await;
    let both = run(&sandbox, &["both"]).await;
    assert_eq!(both.pid(), 42);
    let both = both.collect(100).await.unwrap();
    assert_eq!(
        (&both.stdout[..], &both.stderr[..]),
        (&b"out"[..], &b"err"[..])
    );
    for code in [0, 1, 42, 255] {
        let mut process = run(&sandbox, &["exit", &code.to_string()]).await;
        assert_eq!(process.wait().await.unwrap(), ExitStatus::Code(code));
        assert_eq!(
            process.wait().await.unwrap(),
            ExitStatus::Code(code),
            "asked twice"
        );
    }
    assert_eq!(sandbox.kill().await.reason, ExitReason::Killed);
}

#[tokio::test]
async fn megabytes_go_through_stdin_and_stdout_unchanged() {
    let world = World::new("normal");
    let sandbox = world.boot().await;
    let mut process = run(&sandbox, &["cat"]).await;
    let mut stdin = process.stdin.take().unwrap();
    let data: Vec<u8> = (0..4_000_000_u32)
        .map(|n| n.to_le_bytes()[(n % 3) as usize])
        .collect();
    let sent = data.clone();
    let writer = tokio::spawn(async move { stdin.write_all(&sent).await.unwrap() });
    let got = process.collect(data.len()).await.unwrap();
    writer.await.unwrap();
    assert!(got.stdout == data, "{} bytes came back", got.stdout.len());
    assert_eq!(got.status, ExitStatus::Code(0));
}

#[tokio::test]
async fn a_signal_overtakes_input_that_the_program_does_not_read() {
    let world = World::new("normal");
    let sandbox = world.boot().await;
    let mut process = run(&sandbox, &["sleep"]).await;
    let mut stdin = process.stdin.take().unwrap();
    let writer = tokio::spawn(async move { stdin.write_all(&vec![0; 10 << 20]).await });
    process.signal(15).unwrap();
    assert_eq!(process.wait().await.unwrap(), ExitStatus::Signal(15));
    let error = writer.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
}

#[tokio::test]
async fn a_signal_goes_out_while_output_is_held_back() {
    let world = World::new("normal");
    let sandbox = world.boot().await;
    // Nobody reads the output, so the pipe is full all the way to the guest.
    let process = run(&sandbox, &["flood-then-obey"]).await;
    process.signal(2).unwrap();
    let ExitReason::VmmDied { status, .. } = &sandbox.wait().await.reason else {
        panic!()
    };
    assert_eq!(status, "exited with status 77");
}

#[tokio::test]
async fn requests_never_wait_and_of_sizes_the_last_counts() {
    let world = World::new("normal");
    let sandbox = world.boot().await;
    let size = |columns| TerminalSize { rows: 1, columns };
    // An agent that takes nothing: at some point it says so.
    let process = run(&sandbox, &["deaf"]).await;
    let signals = std::iter::repeat_with(|| process.signal(1)).take(100_000);
    let error = signals.filter_map(Result::err).next().unwrap();
    assert!(matches!(error, Error::AgentBusy), "{error}");
    for columns in 0..1000 {
        process.resize(size(columns)).unwrap();
    }
    // One that listens gets the last of many at once.
    let mut process = run(&sandbox, &["until-one-column"]).await;
    for columns in (1..1000).rev() {
        process.resize(size(columns)).unwrap();
    }
    let status = timeout(LONG, process.wait()).await.unwrap().unwrap();
    assert_eq!(status, ExitStatus::Code(0));
}

#[tokio::test]
async fn closed_input_is_an_error_for_the_writer() {
    let world = World::new("normal");
    let sandbox = world.boot().await;
    let mut process = run(&sandbox, &["closes-input"]).await;
    let mut stdin = process.stdin.take().unwrap();
    timeout(LONG, stdin.closed()).await.unwrap();
    assert!(stdin.write_all(b"x").await.is_err());
    drop(stdin);
    assert_eq!(process.wait().await.unwrap(), ExitStatus::Code(0));
}

#[tokio::test]
async fn dropping_a_process_ends_the_program_and_nothing_else() {
    let world = World::new("normal");
    let sandbox = world.boot().await;
    let note = world.path("note");
    mkfifo(&note, Mode::S_IRWXU).unwrap();
    let process = run(&sandbox, &["flood", note.to_str().unwrap()]).await;
    drop(process);
    let noted = tokio::task::spawn_blocking(move || std::fs::read_to_string(note).unwrap());
    let noted = timeout(LONG, noted)
        .await
        .expect("the agent did not see the connection close");
    assert_eq!(noted.unwrap(), "cancelled");
    let mut process = run(&sandbox, &["exit", "5"]).await;
    assert_eq!(process.wait().await.unwrap(), ExitStatus::Code(5));
}

#[tokio::test]
async fn a_program_that_cannot_start_says_why() {
    let world = World::new("normal");
    let sandbox = world.boot().await;
    match sandbox
        .exec(ExecOptions::argv(["missing"]))
        .await
        .unwrap_err()
    {
        Error::StartFailed {
            kind: StartFailureKind::NotFound,
            message,
        } => {
            assert_eq!(message, "missing: not found in PATH");
        }
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn an_agent_that_breaks_the_protocol_is_found_out() {
    let world = World::new("normal");
    let sandbox = world.boot().await;
    for (program, expected) in [
        ("too-much-credit", "granted more input"),
        ("too-long-output", "bytes of output in one message"),
    ] {
        let error = run(&sandbox, &[program]).await.wait().await.unwrap_err();
        assert!(
            matches!(error, Error::Protocol { .. }),
            "{program}: {error}"
        );
        assert!(error.to_string().contains(expected), "{error}");
    }
    let error = run(&sandbox, &["hang-up"]).await.wait().await.unwrap_err();
    assert!(matches!(error, Error::AgentLost), "{error}");
}

#[tokio::test]
async fn a_refused_connection_is_an_error() {
    let world = World::new("refuse");
    let sandbox = world.boot().await;
    let error = sandbox.exec(ExecOptions::argv(["x"])).await.unwrap_err();
    assert!(matches!(error, Error::AgentRefused { .. }), "{error}");
}

#[tokio::test]
async fn a_vmm_that_dies_under_a_program_is_its_reason() {
    let world = World::new("normal");
    let sandbox = world.boot().await;
    let error = run(&sandbox, &["crash-the-vmm"])
        .await
        .wait()
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("VMM process exited with status 9"),
        "{error}"
    );
    let error = sandbox.exec(ExecOptions::argv(["x"])).await.unwrap_err();
    assert!(matches!(error, Error::VmEnded(_)), "{error}");
}

#[tokio::test]
async fn an_end_that_a_program_asked_for_is_told_from_ours() {
    for (program, expected) in [
        ("ask-for-power-off", "a program in the guest powered it off"),
        (
            "make-init-fail",
            "guest could not wait for events: Bad file? descriptor",
        ),
    ] {
        let world = World::new("normal");
        let sandbox = world.boot().await;
        let error = run(&sandbox, &[program]).await.wait().await.unwrap_err();
        assert_eq!(error.to_string(), expected);
        let warned = sandbox.take_warnings().concat();
        let asked = program == "ask-for-power-off";
        assert_eq!(warned.contains("a program powers the guest off"), asked);
    }
}

#[tokio::test]
async fn shutdown_asks_the_guest_first() {
    let world = World::new("normal");
    let sandbox = world.boot().await;
    let exit = timeout(LONG, sandbox.shutdown(Duration::from_secs(1)))
        .await
        .unwrap();
    assert_eq!(exit.reason, ExitReason::PowerOff);
    assert!(
        sandbox
            .timeline()
            .since_start(Phase::AgentConnected)
            .is_some()
    );
}

#[tokio::test]
async fn counters_and_warnings_can_be_asked_for() {
    let world = World::new("normal");
    let sandbox = world.builder().memory_mib(64).boot().await.unwrap();
    assert_eq!(sandbox.stats().await.unwrap().vmm_resident_kib, 64);
    assert_eq!(sandbox.take_warnings(), ["no entropy yet"]);
    assert!(sandbox.take_warnings().is_empty(), "a warning came twice");
}

#[tokio::test]
async fn dropping_a_sandbox_ends_its_vmm() {
    let world = World::new("normal");
    drop(world.boot().await);
    world.vmm_is_gone().await;
}

#[test]
fn dropping_the_runtime_ends_its_vmms() {
    let world = World::new("normal");
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    };
    let first = runtime();
    let sandbox = first.block_on(world.boot());
    drop(first);
    // Reaped, not only killed: no zombie may be left either.
    runtime().block_on(world.vmm_is_gone());
    drop(sandbox);
}

#[tokio::test]
async fn a_boot_that_is_given_up_ends_its_vmm() {
    let world = World::new("silent");
    let boot = world.builder().boot();
    assert!(timeout(Duration::from_millis(300), boot).await.is_err());
    world.vmm_is_gone().await;
}

#[tokio::test]
async fn a_vmm_that_does_not_listen_is_killed() {
    let world = World::new("deaf");
    let sandbox = world.boot().await;
    let exit = timeout(LONG, sandbox.kill()).await.unwrap();
    assert_eq!(exit.reason, ExitReason::Killed);
    world.vmm_is_gone().await;
}

#[tokio::test]
async fn a_vmm_that_not_even_a_kill_ends_is_reported() {
    let world = World::new("held");
    let hold = File::create(world.path("hold")).unwrap();
    let hold = Flock::lock(hold, FlockArg::LockExclusive).unwrap();
    let sandbox = world.boot().await;
    let exit = timeout(LONG, sandbox.kill()).await.unwrap();
    let ExitReason::VmmStuck { pid, message } = &exit.reason else {
        panic!("{exit:?}")
    };
    assert_eq!(message, "VM was killed");
    let text = exit.reason.to_string();
    assert!(
        text.contains(&format!("VMM process {pid} does not end")),
        "{text}"
    );
    assert!(Path::new(&format!("/proc/{pid}")).exists());
    drop(hold);
    world.vmm_is_gone().await;
}

#[tokio::test]
async fn a_vmm_that_does_not_read_its_mail_is_killed() {
    let world = World::new("stuffed");
    let (mut console, sink) = std::io::pipe().unwrap();
    let sandbox = world.builder().console_sink(sink).boot().await.unwrap();
    let stuffed = tokio::task::spawn_blocking(move || {
        std::io::Read::read_exact(&mut console, &mut [0; 8]).unwrap();
    });
    timeout(LONG, stuffed).await.unwrap().unwrap();
    // Commands that cannot be sent do not hold up the end either.
    let asked = sandbox.stats();
    let exit = timeout(Duration::from_secs(20), sandbox.kill());
    let (_, exit) = tokio::join!(asked, exit);
    assert_eq!(exit.unwrap().reason, ExitReason::Killed);
    world.vmm_is_gone().await;
}

#[tokio::test]
async fn a_boot_that_takes_too_long_says_how_far_it_got() {
    let world = World::new("silent");
    let error = world
        .builder()
        .boot_timeout(Duration::from_secs(2))
        .boot()
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "guest was not ready within 2s (it got as far as kernel_entry); \
         last on its console: booting...; allow it more time if this host is busy"
    );
    world.vmm_is_gone().await;
}

#[tokio::test]
async fn every_failure_to_boot_has_its_reason() {
    for (scenario, expected) in [
        ("boot-failed", "/vmlinux: not a kernel (256 MiB asked for)"),
        (
            "crash",
            "VMM process exited with status 3; it said: last words",
        ),
        ("panic", "guest kernel panic: VFS: no root"),
        (
            "no-vsock",
            "it could not connect to the supervisor (vsock CID 2, port 1024): Address family not \
             supported by protocol; its kernel needs VSOCKETS, ",
        ),
        (
            "setup-failed",
            "guest could not mount the root image /dev/vda: bad?[1m magic",
        ),
        (
            "other-version",
            "flashpan-vmm speaks protocol version 999, this program speaks ",
        ),
        (
            "other-agent",
            "the guest's init speaks protocol version 999, this program speaks ",
        ),
        ("garbage", "malformed message"),
    ] {
        let world = World::new(scenario);
        let error = world.boot_error().await.to_string();
        assert!(error.contains(expected), "{scenario}: {error}");
        world.vmm_is_gone().await;
    }
}

#[tokio::test]
async fn a_guest_that_fails_leaves_its_warnings_and_timeline() {
    let world = World::new("setup-failed");
    let builder = world.builder();
    let log = builder.log();
    builder.boot().await.unwrap_err();
    assert_eq!(log.take_warnings(), ["the disk is old"]);
    let reached = |phase| log.timeline().since_start(phase).is_some();
    assert!(reached(Phase::AgentConnected) && !reached(Phase::InitReady));
}

#[tokio::test]
async fn console_output_reaches_the_sink_before_the_end() {
    let world = World::new("panic");
    let (mut reader, writer) = std::io::pipe().unwrap();
    world
        .builder()
        .console_sink(writer)
        .boot()
        .await
        .unwrap_err();
    let mut text = String::new();
    std::io::Read::read_to_string(&mut reader, &mut text).unwrap();
    assert_eq!(text, "[ 1.0] Kernel panic - not syncing: VFS: no root\n");
}

#[tokio::test]
async fn files_that_cannot_be_used_are_named() {
    let world = World::new("normal");
    for (file, what) in [
        ("vmlinux", "kernel"),
        ("root.erofs", "root image"),
        ("init", "guest init"),
    ] {
        let path = world.path(file);
        let saved = world.path("saved");
        std::fs::rename(&path, &saved).unwrap();
        let error = world.boot_error().await.to_string();
        let expected = format!("cannot open the {what} {}: ", path.display());
        assert!(error.starts_with(&expected), "{error}");
        let advice = [
            "kernel build`",
            "an EROFS or ext4 image",
            "cargo build --release`",
        ];
        assert!(advice.iter().any(|end| error.ends_with(end)), "{error}");

        std::fs::create_dir(&path).unwrap();
        let error = world.boot_error().await.to_string();
        assert!(
            error.contains("not a regular file") || error.contains("directory"),
            "{error}"
        );
        std::fs::remove_dir(&path).unwrap();
        std::fs::rename(&saved, &path).unwrap();
    }
    std::fs::write(world.path("vmlinux"), "a text").unwrap();
    let error = world.boot_error().await.to_string();
    assert!(error.contains("neither an ELF file nor"), "{error}");
    std::fs::write(world.path("vmlinux"), "\x7fELF").unwrap();
    let error = world
        .builder()
        .vmm("/nowhere/vmm")
        .boot()
        .await
        .unwrap_err();
    assert!(
        error.to_string().starts_with("cannot start /nowhere/vmm: "),
        "{error}"
    );
}

#[tokio::test]
async fn a_root_image_is_locked_while_its_vm_lives() {
    let world = World::new("normal");
    let writer = File::options()
        .write(true)
        .open(world.path("root.erofs"))
        .unwrap();
    writer.try_lock().unwrap();
    let refused = world.boot_error().await.to_string();
    assert!(refused.contains("is in use"), "{refused}");
    assert!(refused.contains("root.erofs"), "{refused}");
    writer.unlock().unwrap();
    let sandbox = world.boot().await;
    assert!(matches!(
        writer.try_lock(),
        Err(std::fs::TryLockError::WouldBlock)
    ));
    // Others that only read it are welcome.
    let reader = File::open(world.path("root.erofs")).unwrap();
    reader.try_lock_shared().unwrap();
    drop(reader);
    sandbox.kill().await;
    world.vmm_is_gone().await;
    writer.try_lock().unwrap();
}

#[tokio::test]
async fn a_paused_vm_refuses_programs_and_files_at_once_and_goes_on() {
    let world = World::new("normal");
    let sandbox = world.boot().await;
    let error = sandbox.resume().await.unwrap_err();
    assert!(matches!(error, Error::NotPaused), "{error}");
    sandbox.pause().await.unwrap();
    let error = sandbox.pause().await.unwrap_err();
    assert!(matches!(error, Error::Paused), "{error}");
    let program = ExecOptions::argv(["both"]);
    let error = sandbox.exec(program.clone()).await.unwrap_err();
    assert!(matches!(error, Error::Paused), "{error}");
    let error = sandbox.stat("/").await.unwrap_err();
    assert!(matches!(error, Error::Paused), "{error}");
    // Questions about it are answered.
    sandbox.stats().await.unwrap();
    sandbox.resume().await.unwrap();
    sandbox.exec(program).await.unwrap();
    // What is paused can be shut down in order all the same.
    sandbox.pause().await.unwrap();
    let exit = timeout(LONG, sandbox.shutdown(Duration::ZERO)).await;
    assert_eq!(exit.unwrap().reason, ExitReason::PowerOff);
    let error = sandbox.pause().await.unwrap_err();
    assert!(matches!(error, Error::VmEnded(_)), "{error}");
}

#[tokio::test]
async fn programs_are_events_whoever_started_them() {
    let world = World::new("normal");
    let sandbox = world.boot().await;
    let mut events = sandbox.events().unwrap();
    let mut process = run(&sandbox, &["tells", "a b"]).await;
    assert_eq!(process.wait().await.unwrap(), ExitStatus::Code(5));
    let first = timeout(LONG, events.next()).await.unwrap().unwrap();
    let VmEventKind::ExecStarted(started) = first.kind else {
        panic!("{first:?}")
    };
    assert_eq!(started.command(), "tells 'a b'");
    assert_eq!((started.uid, started.gid), (1000, 100));
    assert_eq!(started.working_dir, "/srv");
    let lost = timeout(LONG, events.next()).await.unwrap().unwrap();
    assert!(matches!(lost.kind, VmEventKind::Lost(3)), "{lost:?}");
    let last = timeout(LONG, events.next()).await.unwrap().unwrap();
    let VmEventKind::ExecEnded(ended) = last.kind else {
        panic!("{last:?}")
    };
    assert_eq!(ended.status, ExitStatus::Code(5));
    assert_eq!(ended.duration, Duration::from_secs(2));
    assert_eq!(ended.started, Some(started));
    // The stream ends with the VM.
    sandbox.kill().await;
    assert!(timeout(LONG, events.next()).await.unwrap().is_none());
}

#[tokio::test]
async fn a_vm_that_does_not_stand_still_in_time_counts_as_running() {
    let world = World::new("slow-pause");
    let sandbox = world.boot().await;
    let error = sandbox.pause().await.unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    let mut process = run(&sandbox, &["exit", "5"]).await;
    assert_eq!(process.wait().await.unwrap(), ExitStatus::Code(5));
    // Also when whoever asked did not wait for it.
    assert!(
        timeout(Duration::from_millis(1), sandbox.pause())
            .await
            .is_err()
    );
    let mut process = run(&sandbox, &["exit", "6"]).await;
    assert_eq!(process.wait().await.unwrap(), ExitStatus::Code(6));
    let error = sandbox.resume().await.unwrap_err();
    assert!(matches!(error, Error::NotPaused), "{error}");
    sandbox.kill().await;
}
