//! What confined programs can and cannot do, by what they themselves find.

use flashpan_protocol::privilege::{Capabilities, Scope};

use super::*;
use crate::testing::in_own_namespaces;

/// A request for a confined program.
fn confined(line: &str) -> ExecRequest {
    ExecRequest {
        confinement: Confinement::CONFINED,
        ..shell(line)
    }
}

/// What the agent has for programs. Mounts are those of a test in namespaces of
/// its own.
fn place() -> Place {
    (None, Some(DeviceTree::make("/mnt").unwrap()))
}

fn outcome(request: ExecRequest) -> Outcome {
    Session::start_at(place(), request).finish()
}

#[track_caller]
fn says(request: ExecRequest) -> String {
    let outcome = outcome(request);
    assert_eq!(outcome.status, Some(ExitStatus::Code(0)), "{outcome:?}");
    String::from_utf8(outcome.stdout).unwrap()
}

/// Runs `test` in namespaces of its own; its name is that of the calling test.
macro_rules! in_namespaces {
    ($name:ident, $test:expr) => {
        in_own_namespaces(
            concat!("exec::tests::privileged::confined::", stringify!($name)),
            $test,
        )
    };
}

/// The sets of capabilities, and what else a program cannot take back.
const STATUS: &str = "grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status | tr -d '\\t '";

#[test]
#[ignore = "needs root: confines programs"]
fn capabilities_are_those_that_were_given() {
    in_namespaces!(capabilities_are_those_that_were_given, || {
        let all = Capabilities::CONFINED.0;
        let status = says(confined(STATUS));
        let expected = format!(
            "CapInh:{0:016x}\nCapPrm:{1:016x}\nCapEff:{1:016x}\nCapBnd:{1:016x}\nCapAmb:{0:016x}\nNoNewPrivs:1\nSeccomp:2\n",
            0, all
        );
        assert_eq!(status, expected);

        let mut user = confined(STATUS);
        user.user = Some("1234:4321".to_owned());
        let expected = format!(
            "CapInh:{0:016x}\nCapPrm:{0:016x}\nCapEff:{0:016x}\nCapBnd:{1:016x}\nCapAmb:{0:016x}\nNoNewPrivs:1\nSeccomp:2\n",
            0, all
        );
        assert_eq!(says(user.clone()), expected);

        // Those that a user is to have, but not more than there are.
        user.confinement.ambient = Capabilities::NET_RAW.with(Capabilities::SYS_ADMIN);
        let expected = format!(
            "CapInh:{0:016x}\nCapPrm:{0:016x}\nCapEff:{0:016x}\nCapBnd:{1:016x}\nCapAmb:{0:016x}\nNoNewPrivs:1\nSeccomp:2\n",
            Capabilities::NET_RAW.0,
            all
        );
        assert_eq!(says(user), expected);
    });
}

#[test]
#[ignore = "needs root: confines programs"]
fn a_privileged_program_has_all_but_a_restart() {
    in_namespaces!(a_privileged_program_has_all_but_a_restart, || {
        let status = says(shell(STATUS));
        let own = std::fs::read_to_string("/proc/self/status").unwrap();
        let own = own.lines().find_map(|line| line.strip_prefix("CapBnd:"));
        let own = u64::from_str_radix(own.unwrap().trim(), 16).unwrap();
        let bounding = format!("CapBnd:{:016x}", own & !(1 << 22));
        for line in [bounding.as_str(), "NoNewPrivs:0", "Seccomp:0"] {
            assert!(status.contains(line), "{status}");
        }
    });
}

#[test]
#[ignore = "needs root: confines programs"]
fn set_user_id_programs_work_only_if_they_may() {
    in_namespaces!(set_user_id_programs_work_only_if_they_may, || {
        // On a file system that honours them, which goes with this test.
        let tmpfs = Some("tmpfs");
        let none = None::<&str>;
        nix::mount::mount(tmpfs, "/srv", tmpfs, nix::mount::MsFlags::empty(), none).unwrap();
        std::fs::copy("/usr/bin/id", "/srv/id").unwrap();
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions("/srv/id", PermissionsExt::from_mode(0o4755)).unwrap();
        for (no_new_privileges, expected) in [(true, "1234\n"), (false, "0\n")] {
            let mut request = confined("/srv/id -u");
            request.user = Some("1234".to_owned());
            request.confinement.no_new_privileges = no_new_privileges;
            assert_eq!(says(request), expected);
        }
    });
}

#[test]
#[ignore = "needs root: confines programs"]
fn it_sees_its_own_processes_and_those_of_nobody_else() {
    in_namespaces!(it_sees_its_own_processes_and_those_of_nobody_else, || {
        let look = "cat /proc/1/comm; for p in /proc/[0-9]*; do echo ${p#/proc/}; done | sort -n | tr '\\n' ' '; echo; echo $$ $PPID";
        let text = says(confined(look));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "flashpan-reaper");
        assert!(lines[1].split_whitespace().count() <= 5, "{text}");
        assert!(lines[1].starts_with("1 2 "), "{text}");
        assert_eq!(lines[2], "2 0");
        // From the first moment on, PID 1 can do nothing but what it is for.
        let mut traces = argv(&["grep", "Seccomp:", "/proc/1/status"]);
        traces.confinement = Confinement::CONFINED;
        let capabilities = &mut traces.confinement.capabilities;
        *capabilities = capabilities.with(Capabilities::SYS_PTRACE);
        assert_eq!(says(traces), "Seccomp:\t2\n");
        // PID 1 takes no signal from it, and its files are closed to it.
        let text = says(confined(
            "for s in TERM INT HUP KILL STOP 34; do kill -$s 1; done; echo alive; for l in fd/0 root exe ns/mnt; do readlink /proc/1/$l || echo no; done",
        ));
        assert_eq!(text, "alive\nno\nno\nno\nno\n");

        let mut joined = confined(look);
        joined.confinement.processes = Scope::Vm;
        let text = says(joined);
        assert_ne!(text.lines().next(), Some("flashpan-reaper"), "{text}");
    });
}

#[test]
#[ignore = "needs root: confines programs"]
fn settings_of_the_kernel_are_read_only_and_secrets_are_empty() {
    in_namespaces!(
        settings_of_the_kernel_are_read_only_and_secrets_are_empty,
        || {
            let text = says(confined(
            // Not every kernel has all of them.
            "for f in /proc/sys/kernel/core_pattern /proc/sysrq-trigger /proc/irq/default_smp_affinity; do
                 ! test -e $f || (: >$f) 2>&1 | grep -q 'Read-only' || echo written $f
             done
             for f in /sys/x /sys/fs/cgroup/x; do (: >$f) 2>&1 | grep -q 'Read-only' || echo $f; done
             for f in kcore keys timer_list sched_debug; do
                 ! test -e /proc/$f || wc -c </proc/$f | grep -qx 0 || echo full $f
             done
             for f in kcore keys timer_list sched_debug; do
                 ! test -e /proc/$f || chmod 666 /proc/$f 2>&1 | grep -q 'Read-only' || echo changed $f
             done
             echo x >/proc/self/comm && cat /proc/sys/kernel/ostype",
        ));
            assert_eq!(text, "Linux\n");
            // Nor of this test, of which these are copies.
            let kcore = std::fs::metadata("/proc/kcore");
            assert!(kcore.is_ok_and(|kcore| kcore.len() > 0) || !Path::new("/proc/kcore").exists());
            std::fs::OpenOptions::new()
                .write(true)
                .open("/proc/sys/kernel/core_pattern")
                .unwrap();

            let mut lifted = confined("test -w /proc/sys/kernel/core_pattern && ls /dev | wc -l");
            lifted.confinement.system_paths = false;
            assert_ne!(says(lifted), "15\n");
        }
    );
}

#[test]
#[ignore = "needs root: confines programs"]
fn its_devices_are_harmless_and_work() {
    in_namespaces!(its_devices_are_harmless_and_work, || {
        let text = says(confined(
            "ls /dev | tr '\\n' ' '; echo; echo x >/dev/null; head -c 2 /dev/zero | wc -c; head -c 3 /dev/urandom | wc -c
             echo out >/dev/stdout; echo y >/dev/full || echo full; mknod /dev/d b 254 0 2>/dev/null || echo no",
        ));
        assert_eq!(
            text,
            "core fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero \n2\n3\nout\nfull\nno\n"
        );
        let mut terminal =
            confined("tty; stty size </dev/tty; echo x >$(tty); test -c /dev/ptmx && echo ptmx");
        terminal.terminal = Some(TerminalSize {
            rows: 31,
            columns: 97,
        });
        let text = says(terminal);
        assert!(text.starts_with("/dev/pts/"), "{text}");
        assert!(text.ends_with("\r\n31 97\r\nx\r\nptmx\r\n"), "{text}");
    });
}

#[test]
#[ignore = "needs root: confines programs"]
fn it_cannot_change_the_devices_of_others() {
    in_namespaces!(it_cannot_change_the_devices_of_others, || {
        // The same `/dev` for all of them, as in a VM.
        let devices = DeviceTree::make("/mnt").unwrap();
        let shm = format!("/dev/shm/of-confined-{}", std::process::id());
        let script = format!(
            "for c in 'rm /dev/null' 'mkfifo /dev/x' 'mkdir /dev/x' 'mv /dev/null /dev/x' \\
                 'ln -s x /dev/x' 'touch /dev/x' 'rm /dev/stdout' 'rmdir /dev/shm' \\
                 'chmod 600 /dev/null' 'chown 1 /dev/zero'; do
                 $c 2>&1 | grep -Eq 'Read-only|resource busy' || echo done: $c
             done
             test -c /dev/null && echo x >/dev/null && head -c 1 /dev/zero >/dev/full || echo full
             echo kept >{shm} && cat {shm} && rm {shm}"
        );
        let before = std::fs::read_dir("/mnt").unwrap().count();
        let outcome = Session::start_at((None, Some(devices)), confined(&script)).finish();
        assert_eq!(outcome.status, Some(ExitStatus::Code(0)), "{outcome:?}");
        assert_eq!(outcome.stdout, b"full\nkept\n", "{outcome:?}");
        assert_eq!(std::fs::read_dir("/mnt").unwrap().count(), before);
        use std::os::unix::fs::FileTypeExt;
        let null = std::fs::metadata("/mnt/null").unwrap().file_type();
        assert!(null.is_char_device());
    });
}

#[test]
#[ignore = "needs root: confines programs"]
fn system_calls_of_the_list_are_refused() {
    in_namespaces!(system_calls_of_the_list_are_refused, || {
        // ptrace, mount, keyctl, bpf, userfaultfd, io_uring_setup; clone3; a socket
        // of vsock, and one that is none.
        let script = "for (101, 165, 250, 321, 323, 425) { $! = 0; syscall($_, 0, 0, 0, 0, 0); print 0+$!, ' ' }
            $! = 0; syscall(435, 0, 0); print 0+$!, ' ';
            $! = 0; syscall(41, 40, 1, 0); print 0+$!, ' ';
            print syscall(41, 1, 1, 0) >= 0 ? 'socket' : 'none'";
        let perl = |confinement| ExecRequest {
            confinement,
            ..argv(&["perl", "-e", script])
        };
        let text = says(perl(Confinement::CONFINED));
        assert_eq!(text, "1 1 1 1 1 1 38 1 socket");
        let mut traces = Confinement::CONFINED;
        traces.capabilities = traces.capabilities.with(Capabilities::SYS_PTRACE);
        // It is traced now, by nobody: what comes back is not a refusal.
        let text = says(perl(traces));
        assert!(text.starts_with("0 1 1 1 "), "{text}");
        // Namespaces, with and without a user's.
        let text = says(confined(
            "unshare -m true 2>&1 | grep -c permitted; unshare -Ur true 2>&1 | grep -c permitted",
        ));
        assert_eq!(text, "1\n1\n");
    });
}

#[test]
#[ignore = "needs root: confines programs"]
fn signals_it_does_not_handle_end_it_as_everywhere() {
    in_namespaces!(signals_it_does_not_handle_end_it_as_everywhere, || {
        for signal in [1, 2, 9, 11, 15, 34, 64] {
            let outcome = outcome_of_signal(signal);
            assert_eq!(outcome.status, Some(ExitStatus::Signal(signal)));
        }
        let mut session = Session::start_at(place(), confined("echo ready; exec sleep 1000"));
        session.until("ready");
        session.send(&ExecInput::Signal(15));
        assert_eq!(session.finish().status, Some(ExitStatus::Signal(15)));
        let mut session = Session::start_at(
            place(),
            confined("trap '' TERM; echo ready; while :; do sleep 0.01; done"),
        );
        session.until("ready");
        session.send(&ExecInput::Cancel { grace_ms: 50 });
        assert_eq!(session.finish().status, Some(ExitStatus::Signal(9)));
    });
}

fn outcome_of_signal(signal: i32) -> Outcome {
    outcome(confined(&format!("kill -{signal} $$")))
}

#[test]
#[ignore = "needs root: confines programs"]
fn orphans_are_reaped() {
    in_namespaces!(orphans_are_reaped, || {
        // Until the kernel has: nobody else would.
        let text = says(confined(
            "(sleep 0 & echo $! >/tmp/orphan-$$); pid=$(cat /tmp/orphan-$$); rm /tmp/orphan-$$
             while test -e /proc/$pid; do :; done; echo gone",
        ));
        assert_eq!(text, "gone\n");
    });
}

#[test]
#[ignore = "needs root: confines programs"]
fn what_it_leaves_behind_ends_with_it_or_may_stay() {
    in_namespaces!(what_it_leaves_behind_ends_with_it_or_may_stay, || {
        for linger in [false, true] {
            let mut request = confined(
                "setsid sleep 1000 >/dev/null 2>&1 & until grep -q sleep /proc/$!/comm; do :; done; exit 4",
            );
            request.linger = linger;
            let outcome = outcome(request);
            assert_eq!(outcome.status, Some(ExitStatus::Code(4)));
            // Whoever of it lives is a child of this test by now, or of its reaper.
            let sleeps = || {
                let entries = std::fs::read_dir("/proc").unwrap().flatten();
                let mut pids = entries.filter_map(|entry| {
                    let comm = std::fs::read_to_string(entry.path().join("comm")).ok()?;
                    let pid = entry.file_name().to_str()?.parse().ok()?;
                    (comm == "sleep\n").then_some(pid)
                });
                pids.find(|pid| lives(*pid))
            };
            match (linger, sleeps()) {
                (false, None) => {}
                (true, Some(pid)) => crate::sys::kill(pid.cast_signed(), 9).unwrap(),
                (_, found) => panic!("{found:?} lives"),
            }
        }
    });
}

#[test]
#[ignore = "needs root: confines programs"]
fn it_ends_with_its_reaper() {
    in_namespaces!(it_ends_with_its_reaper, || {
        let mut session = Session::start_at(place(), confined("echo ready; exec sleep 1000"));
        session.until("ready");
        let reaper = std::fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .find_map(|entry| {
                let comm = std::fs::read_to_string(entry.path().join("comm")).ok()?;
                let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
                (comm == "flashpan-reaper\n").then_some(pid)
            });
        crate::sys::kill(reaper.unwrap(), 9).unwrap();
        assert_eq!(session.finish().status, Some(ExitStatus::Signal(9)));
    });
}

#[test]
#[ignore = "needs root: confines programs"]
fn what_it_mounts_is_its_own() {
    in_namespaces!(what_it_mounts_is_its_own, || {
        let mut request = confined("mount -t tmpfs none /srv && touch /srv/x && ls /srv");
        request.confinement.capabilities = request
            .confinement
            .capabilities
            .with(Capabilities::SYS_ADMIN);
        assert_eq!(says(request), "x\n");
        assert!(!Path::new("/srv/x").exists());
        let mut request = shell("mount -t tmpfs none /srv && touch /srv/x");
        request.confinement.mounts = Scope::Private;
        says(request);
        assert!(!Path::new("/srv/x").exists());
        says(shell("mount -t tmpfs none /srv && touch /srv/x"));
        assert!(Path::new("/srv/x").exists());
    });
}

#[test]
#[ignore = "needs root: confines programs"]
fn what_goes_wrong_on_the_way_is_told() {
    in_namespaces!(what_goes_wrong_on_the_way_is_told, || {
        let failure = |place, request| Session::start_at(place, request).failure();
        let missing = ExecRequest {
            confinement: Confinement::CONFINED,
            ..argv(&["no-such-program"])
        };
        let told = failure(place(), missing);
        assert_eq!(told.kind, StartFailureKind::NotFound, "{told:?}");
        let told = failure((None, None), confined("true"));
        assert!(told.message.contains("/dev"), "{told:?}");
        nix::mount::umount2("/sys", nix::mount::MntFlags::MNT_DETACH).unwrap();
        let told = failure(place(), confined("true"));
        assert!(told.message.contains("/sys: "), "{told:?}");
    });
}

#[test]
#[ignore = "needs root: confines programs"]
fn all_else_is_as_without_namespaces() {
    let mut tests = std::process::Command::new(std::env::current_exe().unwrap());
    tests.arg("exec::tests::").env(NAMESPACES, "1");
    // They look for a program by its number in its namespace, or at what is
    // confined on purpose.
    for name in [
        "a_background_process_with_the_output_open_does_not_delay_the_end",
        "the_program_has_three_descriptors_and_a_clean_state",
    ] {
        tests.args(["--skip", name]);
    }
    let output = tests.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    assert!(!text.contains(" 0 passed"), "{text}");
}
