//! What confined programs can do, and what each switch lifts: by what they find
//! themselves, and by the library and the command line alike.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::path::PathBuf;
use std::time::Duration;

use flashpan::{
    ExecOptions, ExitStatus, FsType, Namespace, Privilege, Root, Sandbox, SandboxBuilder,
    VmEventKind,
};
use flashpan_tests::{Flashpan, Home, fixtures};
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

/// How a program ends, and what it prints.
async fn outcome(sandbox: &Sandbox, options: ExecOptions) -> (ExitStatus, String) {
    let program = timeout(PATIENCE, sandbox.exec(options))
        .await
        .unwrap()
        .unwrap();
    let ended = timeout(PATIENCE, program.collect(1 << 20))
        .await
        .unwrap()
        .unwrap();
    let both = [ended.stdout, ended.stderr].concat();
    (ended.status, String::from_utf8(both).unwrap())
}

/// What a script in the guest prints; it has to succeed.
async fn says(sandbox: &Sandbox, options: ExecOptions) -> String {
    let (status, text) = outcome(sandbox, options).await;
    assert_eq!(status, ExitStatus::Code(0), "{text}");
    text
}

fn confined(script: &str) -> ExecOptions {
    ExecOptions::shell(script)
}

fn privileged(script: &str) -> ExecOptions {
    confined(script).privilege(Privilege::privileged())
}

fn with(capability: &str, script: &str) -> ExecOptions {
    let privilege = Privilege::confined().add_capability(capability.parse().unwrap());
    confined(script).privilege(privilege)
}

#[tokio::test]
async fn capabilities_are_few_and_can_be_added() {
    let _home = Home::new();
    let sandbox = builder().boot().await.unwrap();
    let mounts = "mount -t tmpfs none /mnt 2>/dev/null && echo mounted || echo refused";
    assert_eq!(says(&sandbox, confined(mounts)).await, "refused\n");
    assert_eq!(says(&sandbox, with("SYS_ADMIN", mounts)).await, "mounted\n");
    assert_eq!(says(&sandbox, privileged(mounts)).await, "mounted\n");
    let packets = "python3 -c 'import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)' 2>/dev/null && echo raw || echo refused";
    assert_eq!(says(&sandbox, confined(packets)).await, "raw\n");
    let fewer = Privilege::confined().drop_capability("NET_RAW".parse().unwrap());
    let fewer = confined(packets).privilege(fewer);
    assert_eq!(says(&sandbox, fewer).await, "refused\n");
    // Who is not root has what is named for it, and nothing else.
    let effective = "grep CapEff /proc/self/status | cut -f2";
    let user = confined(effective).user("1000");
    assert_eq!(says(&sandbox, user).await, "0000000000000000\n");
    let user = with("NET_RAW", effective).user("1000");
    assert_eq!(says(&sandbox, user).await, "0000000000002000\n");
    sandbox.kill().await;
}

#[tokio::test]
async fn set_user_id_programs_give_nothing_unless_they_may() {
    let _home = Home::new();
    let sandbox = builder().boot().await.unwrap();
    says(
        &sandbox,
        confined("cp /usr/bin/id /srv/id && chmod 4755 /srv/id"),
    )
    .await;
    let id = || confined("/srv/id -u").user("1000");
    assert_eq!(says(&sandbox, id()).await, "1000\n");
    let may = Privilege::confined().allow_new_privileges(true);
    assert_eq!(says(&sandbox, id().privilege(may)).await, "0\n");
    // Root of a confined program, not that of the guest.
    let status = "cp /usr/bin/grep /srv/grep && chmod 4755 /srv/grep";
    says(&sandbox, confined(status)).await;
    let may = Privilege::confined().allow_new_privileges(true);
    let look = confined("/srv/grep CapEff /proc/self/status | cut -f2");
    let effective = says(&sandbox, look.user("1000").privilege(may)).await;
    let effective = u64::from_str_radix(effective.trim(), 16).unwrap();
    assert_eq!(effective & (1 << 21 | 1 << 19 | 1 << 12), 0);
    sandbox.kill().await;
}

#[tokio::test]
async fn system_calls_by_which_kernels_are_attacked_are_refused() {
    let _home = Home::new();
    let sandbox = builder().boot().await.unwrap();
    // Each of them fails otherwise as well, but for another reason.
    let calls = "perl -e 'for (101, 155, 165, 166, 175, 246, 248, 250, 298, 304, 308, 310, 313, 321, 323, 425, 428, 442) {
        $! = 0; syscall($_, -1, 0, 0, 0, 0, 0); print $_, $!{EPERM} ? \"\" : \" allowed\", \"\\n\" }
        $! = 0; syscall(435, 0, 0); print $!{ENOSYS} ? \"\" : \"clone3\\n\";
        $! = 0; syscall(0x40000000 + 39); print $!{ENOSYS} ? \"\" : \"x32\\n\"'";
    let text = says(&sandbox, confined(calls)).await;
    let refused = text
        .lines()
        .all(|line| line.bytes().all(|b| b.is_ascii_digit()));
    assert!(refused && text.lines().count() == 18, "{text}");
    let unfiltered = confined(calls).privilege(Privilege::confined().system_call_filter(false));
    let text = says(&sandbox, unfiltered).await;
    assert!(
        text.contains("250 allowed") && text.contains("clone3"),
        "{text}"
    );
    // A debugger's privilege, and no more.
    let text = says(&sandbox, with("SYS_PTRACE", calls)).await;
    assert!(
        text.contains("101 allowed") && text.contains("165\n"),
        "{text}"
    );
    let users = "unshare --user --map-root-user true 2>/dev/null && echo root || echo refused";
    assert_eq!(says(&sandbox, confined(users)).await, "refused\n");
    assert_eq!(says(&sandbox, privileged(users)).await, "root\n");
    sandbox.kill().await;
}

#[tokio::test]
async fn the_kernels_files_are_read_only_or_empty() {
    let _home = Home::new();
    let sandbox = builder().boot().await.unwrap();
    let writes = "for f in /proc/sys/kernel/core_pattern /proc/sysrq-trigger /sys/kernel/uevent_seqnum \
                  /sys/fs/cgroup/cgroup.procs; do (: >>$f) 2>/dev/null && echo $f; done; echo end";
    assert_eq!(says(&sandbox, confined(writes)).await, "end\n");
    let text = says(&sandbox, privileged(writes)).await;
    assert!(
        text.contains("/proc/sysrq-trigger") && text.contains("cgroup.procs"),
        "{text}"
    );
    let secrets = "for f in /proc/kcore /proc/keys /proc/timer_list; do test ! -e $f || stat -c %F $f; done | sort -u; wc -c </proc/keys";
    // The null device is mounted there.
    let text = says(&sandbox, confined(secrets)).await;
    assert_eq!(text, "character special file\n0\n");
    let text = says(&sandbox, privileged(secrets)).await;
    assert!(text.starts_with("regular "), "{text}");
    // Its own settings it may change.
    says(&sandbox, confined("echo 500 >/proc/self/oom_score_adj")).await;
    let devices =
        "ls /dev | tr '\\n' ' '; head -c 1 /dev/vda >/dev/null 2>&1 && echo disk || echo none";
    assert_eq!(
        says(&sandbox, confined(devices)).await,
        "core fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero none\n"
    );
    assert!(
        says(&sandbox, privileged(devices))
            .await
            .ends_with("disk\n")
    );
    let node = "mknod /tmp/vda b 254 0 2>/dev/null && echo made || echo refused";
    assert_eq!(says(&sandbox, confined(node)).await, "refused\n");
    sandbox.kill().await;
}

#[tokio::test]
async fn programs_do_not_see_each_other() {
    let _home = Home::new();
    let sandbox = builder().boot().await.unwrap();
    let mut sleeper = sandbox.exec(confined("exec sleep 1000")).await.unwrap();
    let pid = sleeper.pid();
    let look = "for p in /proc/[0-9]*; do cat $p/comm; done";
    let text = says(&sandbox, confined(look)).await;
    assert!(text.starts_with("flashpan-reaper\n"), "{text}");
    assert!(!text.contains("sleep"), "{text}");
    let joined =
        |script: &str| confined(script).privilege(Privilege::confined().processes(Namespace::Vm));
    let text = says(&sandbox, joined(look)).await;
    assert!(
        !text.starts_with("flashpan-reaper\n") && text.contains("sleep\n"),
        "{text}"
    );
    // PID 1 of the VM is there, and closed to it.
    let secrets = "for f in fd/0 root exe; do readlink /proc/1/$f || echo no; done; cat /proc/1/environ 2>/dev/null || echo no";
    assert_eq!(says(&sandbox, joined(secrets)).await, "no\nno\nno\nno\n");
    // By the number that the host was told.
    says(&sandbox, joined(&format!("kill -9 {pid}"))).await;
    let ended = timeout(PATIENCE, sleeper.wait()).await.unwrap().unwrap();
    assert_eq!(ended, ExitStatus::Signal(9));
    // Mounts of one are not those of the other.
    let mounts = "mount -t tmpfs none /mnt && touch /mnt/here";
    says(&sandbox, with("SYS_ADMIN", mounts)).await;
    assert_eq!(says(&sandbox, confined("ls /mnt")).await, "");
    says(&sandbox, privileged(mounts)).await;
    assert_eq!(says(&sandbox, confined("ls /mnt")).await, "here\n");
    sandbox.kill().await;
}

#[tokio::test]
async fn signals_do_what_they_do_everywhere_and_orphans_are_reaped() {
    let _home = Home::new();
    let sandbox = builder().boot().await.unwrap();
    for signal in [1, 2, 9, 11, 15, 64] {
        let (status, _) = outcome(&sandbox, confined(&format!("kill -{signal} $$"))).await;
        assert_eq!(status, ExitStatus::Signal(signal));
    }
    let mut sleeper = sandbox.exec(confined("exec sleep 1000")).await.unwrap();
    sleeper.signal(15).unwrap();
    let ended = timeout(PATIENCE, sleeper.wait()).await.unwrap().unwrap();
    assert_eq!(ended, ExitStatus::Signal(15));
    let orphan =
        "(sleep 0 & echo $! >/tmp/pid); while test -e /proc/$(cat /tmp/pid); do :; done; echo gone";
    assert_eq!(says(&sandbox, confined(orphan)).await, "gone\n");
    // Nothing of them is left, as soon as the last reaper has ended.
    let look = "while cat /proc/[0-9]*/comm 2>/dev/null | grep -q -e flashpan-reap -e sleep; do :; done; echo gone";
    let all = Privilege::privileged();
    let looking = outcome(&sandbox, confined(look).privilege(all));
    let (_, text) = timeout(PATIENCE, looking).await.unwrap();
    assert_eq!(text, "gone\n");
    sandbox.kill().await;
}

#[tokio::test]
async fn no_program_can_pose_as_the_host() {
    let _home = Home::new();
    let sandbox = builder().boot().await.unwrap();
    // The agent's ports, by the local address and by the guest's own, and the
    // supervisor's for its own PID 1.
    let dial = "python3 -c '
import socket
for cid, port in (1, 1025), (3, 1025), (1, 1026), (3, 1026), (2, 1024), (2, 1025):
    try:
        s = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        s.settimeout(60)
        s.connect((cid, port))
        # Not a word, and the end.
        got = s.recv(1)
        print(cid, port, \"served\" if got else \"refused\")
    except PermissionError:
        print(cid, port, \"no socket\")
    except OSError:
        print(cid, port, \"refused\")'";
    let text = says(&sandbox, confined(dial)).await;
    assert_eq!(text.matches("no socket").count(), 6, "{text}");
    let text = says(&sandbox, privileged(dial)).await;
    assert_eq!(text.matches("refused").count(), 6, "{text}");
    let bind = "python3 -c '
import socket
s = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
try:
    s.bind((2, 5000))
    print(\"bound\")
except OSError:
    print(\"refused\")'";
    assert_eq!(says(&sandbox, privileged(bind)).await, "refused\n");
    sandbox.kill().await;
}

#[tokio::test]
async fn programs_together_get_a_fraction_of_a_processor() {
    let _home = Home::new();
    let sandbox = builder().cpus(0.5).pids_limit(40).boot().await.unwrap();
    assert_eq!(says(&sandbox, confined("nproc")).await, "1\n");
    let limits = "cat /sys/fs/cgroup/exec/cpu.max /sys/fs/cgroup/exec/pids.max";
    assert_eq!(says(&sandbox, confined(limits)).await, "50000 100000\n40\n");
    // It asks for all that there is for some seconds.
    let used = "timeout 4 sh -c 'while :; do :; done'; grep nr_throttled /sys/fs/cgroup/exec/cpu.stat | cut -d' ' -f2";
    let throttled: u32 = says(&sandbox, confined(used)).await.trim().parse().unwrap();
    assert!(throttled > 5, "{throttled}");
    sandbox.kill().await;
}

#[test]
fn the_host_holds_a_vm_to_its_fraction_where_it_may() {
    let home = Home::new();
    // Here this is for the test to say: in the lab it is root.
    std::fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+cpu").unwrap();
    let groups = || {
        let entries = std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten();
        let names = entries.map(|entry| entry.file_name().into_string().unwrap());
        names
            .filter(|name| name.starts_with("flashpan-vmm-"))
            .collect::<Vec<_>>()
    };
    assert_eq!(groups(), [""; 0]);
    let mut run = Flashpan::run(
        &home,
        ["--cpus", "0.5", "-i"],
        ["sh", "-c", "echo ready; cat"],
    )
    .hold_input()
    .start();
    run.wait_for_stdout("ready\n");
    let [group] = &groups()[..] else {
        panic!("{:?}", groups())
    };
    let read = |file: &str| std::fs::read_to_string(format!("/sys/fs/cgroup/{group}/{file}"));
    assert_eq!(read("cpu.max").unwrap(), "50000 100000\n");
    // Threads of the kernel that work for it are there as well.
    let processes = read("cgroup.procs").unwrap();
    let vmm = group.strip_prefix("flashpan-vmm-");
    assert!(processes.lines().any(|pid| Some(pid) == vmm), "{processes}");
    run.close_input();
    run.finish().expect_status(0);
    assert_eq!(groups(), [""; 0]);
}

#[test]
fn a_fork_bomb_has_as_many_processes_as_it_may() {
    let home = Home::new();
    let script = "f() { sleep 1000 & }; n=0; while [ $n -lt 100 ] && f; do n=$((n + 1)); done; \
                  echo never";
    // The shell gives up when it cannot fork, and all that it started goes with it.
    let run = Flashpan::run(&home, ["--pids-limit", "20"], ["sh", "-c", script]).finish();
    assert_ne!(run.status, Some(0), "{run}");
    assert!(run.stderr.contains("fork"), "{run}");
    let script = "for n in $(seq 10); do sleep 1000 & done; echo enough";
    Flashpan::run(&home, ["--pids-limit", "20"], ["sh", "-c", script])
        .finish()
        .expect_status(0)
        .expect_stdout("enough\n");
}

#[test]
fn the_command_line_has_the_same_switches() {
    let home = Home::new();
    let status = |options: &[&str], script: &str| {
        let run = Flashpan::run(&home, options, ["sh", "-c", script]).finish();
        run.expect_status(0);
        run.text()
    };
    let mount = "mount -t tmpfs none /tmp 2>/dev/null && echo yes || echo no";
    assert_eq!(status(&[], mount), "no\n");
    assert_eq!(status(&["--privileged"], mount), "yes\n");
    assert_eq!(status(&["--cap-add", "sys_admin"], mount), "yes\n");
    let one = "cat /proc/1/comm";
    assert_eq!(status(&[], one), "flashpan-reaper\n");
    assert_ne!(status(&["--pid", "vm"], one), "flashpan-reaper\n");
    let privileges = "grep NoNewPrivs /proc/self/status | cut -f2";
    assert_eq!(status(&[], privileges), "1\n");
    assert_eq!(status(&["--allow-new-privileges"], privileges), "0\n");
    let hosts = "grep db /etc/hosts";
    assert_eq!(
        status(&["--add-host", "db:10.0.0.7"], hosts),
        "10.0.0.7\tdb\n"
    );
}

#[tokio::test]
async fn every_program_is_an_event() {
    let _home = Home::new();
    let sandbox = builder().boot().await.unwrap();
    let mut events = sandbox.events().unwrap();
    let options = ExecOptions::argv(["sh", "-c", "exit 3"])
        .user("nobody")
        .working_dir("/usr");
    let (status, _) = outcome(&sandbox, options).await;
    assert_eq!(status, ExitStatus::Code(3));
    let event = timeout(PATIENCE, events.next()).await.unwrap().unwrap();
    let VmEventKind::ExecStarted(started) = event.kind else {
        panic!("{event:?}")
    };
    assert_eq!(started.command(), "sh -c 'exit 3'");
    assert_eq!(
        (started.uid, started.working_dir.to_str()),
        (65534, Some("/usr"))
    );
    let event = timeout(PATIENCE, events.next()).await.unwrap().unwrap();
    assert!(event.to_api().is_some(), "{event:?}");
    let VmEventKind::ExecEnded(ended) = event.kind else {
        panic!("{event:?}")
    };
    assert_eq!((ended.status, ended.id), (ExitStatus::Code(3), started.id));
    sandbox.kill().await;
    assert!(timeout(PATIENCE, events.next()).await.unwrap().is_none());
}
