//! Whatever is killed, at any moment: what is said of the VM afterwards is true, other
//! VMs are untouched, and nothing is left when it is removed.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use flashpan_tests::{Flashpan, Home};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{PidfdFlags, pidfd_open};

/// At how many moments something is killed, unless `FLASHPAN_TEST_MOMENTS` says otherwise.
const MOMENTS: u32 = 8;

fn how_many() -> u32 {
    match std::env::var("FLASHPAN_TEST_MOMENTS") {
        Ok(number) => number.parse().unwrap(),
        Err(_) => MOMENTS,
    }
}

/// Longer than anything here takes, even emulated.
const PATIENCE: Duration = Duration::from_secs(180);

/// Random moments, the same for the same seed.
struct Moments {
    seed: u64,
    span: Duration,
}

impl Moments {
    /// Within as long as a VM takes to come up, and half as long again.
    fn within_a_start(home: &Home) -> Self {
        let begun = Instant::now();
        let run = Flashpan::new(home, ["run", "-d"]).finish();
        run.expect_status(0);
        let span = begun.elapsed() * 3 / 2;
        remove(home, run.text().trim());
        let seed = u64::from(std::process::id()) | 1;
        println!("seed {seed}, moments within {span:?}");
        Self { seed, span }
    }

    fn next(&mut self) -> Duration {
        self.seed = self
            .seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let part = f64::from((self.seed >> 32) as u32) / f64::from(u32::MAX);
        self.span.mul_f64(part)
    }
}

fn ok(home: &Home, words: &[&str]) -> String {
    let run = Flashpan::new(home, words).finish();
    run.expect_status(0);
    run.text()
}

fn remove(home: &Home, id: &str) {
    ok(home, &["rm", "-f", id]);
}

/// Processes with this word at this place of their command lines.
fn processes(is_it: impl Fn(&[&str]) -> bool) -> Vec<Pid> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let found = entries.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let line = fs::read_to_string(entry.path().join("cmdline")).ok()?;
        let words: Vec<_> = line.split_terminator('\0').collect();
        is_it(&words).then_some(Pid::from_raw(pid))
    });
    found.collect()
}

fn supervisors() -> Vec<Pid> {
    processes(|words| words.get(1) == Some(&"supervise"))
}

fn vmms() -> Vec<Pid> {
    processes(|words| {
        words
            .first()
            .is_some_and(|word| word.ends_with("flashpan-vmm"))
    })
}

/// Waits until a process has ended; whether that was `within` this time.
fn has_ended(pid: Pid, within: Duration) -> bool {
    let raw = rustix::process::Pid::from_raw(pid.as_raw()).unwrap();
    let process = match pidfd_open(raw, PidfdFlags::empty()) {
        Err(Errno::SRCH) => return true,
        process => process.unwrap(),
    };
    let within = Timespec::try_from(within).unwrap();
    let mut fds = [PollFd::new(&process, PollFlags::IN)];
    loop {
        match poll(&mut fds, Some(&within)) {
            Err(Errno::INTR) => {}
            ended => return ended.unwrap() > 0,
        }
    }
}

/// Another VM, which nothing of all this is about.
struct Bystander<'a> {
    home: &'a Home,
    id: String,
    processes: [Vec<Pid>; 2],
}

impl<'a> Bystander<'a> {
    fn new(home: &'a Home) -> Self {
        let id = ok(home, &["run", "-d", "--name", "bystander"])
            .trim()
            .to_owned();
        ok(home, &["exec", "bystander", "touch", "/dev/shm/here"]);
        Self {
            home,
            id,
            processes: [supervisors(), vmms()],
        }
    }

    /// Processes that are not this one's.
    fn others(&self, all: Vec<Pid>) -> Vec<Pid> {
        let own = self.processes.iter().flatten().collect::<Vec<_>>();
        all.into_iter().filter(|pid| !own.contains(&pid)).collect()
    }

    /// Waits until all processes but those of this VM are gone.
    fn alone(&self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut others = self.others(supervisors());
            others.extend(self.others(vmms()));
            if others.is_empty() {
                return;
            }
            for pid in &others {
                let left = deadline.saturating_duration_since(Instant::now());
                assert!(has_ended(*pid, left), "left behind: {others:?}");
            }
        }
    }

    fn is_well(&self) {
        ok(self.home, &["exec", "bystander", "ls", "/dev/shm/here"]);
    }
}

/// What the list says is so, and after removing what it lists nothing is left.
fn check(home: &Home, bystander: &Bystander<'_>, when: Duration) {
    let listed = ok(home, &["ls", "--format", "{{.ID}} {{.Status}}"]);
    for line in listed.lines() {
        let (id, status) = line.split_once(' ').unwrap();
        if id == bystander.id {
            assert_eq!(status, "running", "after {when:?}");
            continue;
        }
        let program = Flashpan::new(home, ["exec", id, "true"]).finish();
        // One whose start is broken off goes by itself, at any moment.
        let is_going = matches!(status, "starting" | "stopping");
        match status {
            // What was killed takes a moment to be missed; then it is said.
            "running" if program.status == Some(125) => {
                let now = ok(home, &["ls", "--format", "{{.ID}} {{.Status}}"]);
                assert!(!now.contains(&format!("{id} running")), "{now}{program}");
                &program
            }
            "running" => program.expect_status(0),
            "created" | "stopped" | "crashed" => program.expect_status(125),
            // It ends because of what was killed.
            _ if is_going => &program,
            other => panic!("{other} after {when:?}"),
        };
        let removed = Flashpan::new(home, ["rm", "-f", id]).finish();
        if !(is_going && removed.stderr.contains("no VM has the id")) {
            removed.expect_status(0);
        }
    }
    ok(home, &["prune"]);
    bystander.alone();
    bystander.is_well();
    let state = &home.environment()[0].1.join("flashpan");
    let vms = fs::read_dir(state.join("vms")).unwrap().flatten();
    let names: Vec<_> = vms.map(|entry| entry.file_name()).collect();
    assert_eq!(names, [bystander.id.as_str()], "after {when:?}");
}

/// Starts a VM and after each moment does away with something.
fn at_random_moments(kill_it: impl Fn(&Bystander<'_>, Pid)) {
    let home = Home::new();
    let mut moments = Moments::within_a_start(&home);
    let bystander = Bystander::new(&home);
    for _ in 0..how_many() {
        let moment = moments.next();
        let words = ["run", "-d", "--name", "victim", "--", "sleep", "1000"];
        let command = Flashpan::new(&home, words).start();
        // The moment is the test: there is no event to wait for.
        thread::sleep(moment);
        kill_it(&bystander, command.pid());
        let ended = command.finish();
        if ended.status == Some(0) {
            // It was ready by then, or nothing was killed.
            assert!(ended.text().starts_with("vm-"), "{ended}");
        }
        check(&home, &bystander, moment);
    }
    remove(&home, "bystander");
}

#[test]
fn the_command() {
    at_random_moments(|_, command| {
        let _ = kill(command, Signal::SIGKILL);
    });
}

#[test]
fn the_supervisor() {
    at_random_moments(|bystander, _| {
        for pid in bystander.others(supervisors()) {
            let _ = kill(pid, Signal::SIGKILL);
        }
    });
}

#[test]
fn the_vmm() {
    at_random_moments(|bystander, _| {
        for pid in bystander.others(vmms()) {
            let _ = kill(pid, Signal::SIGKILL);
        }
    });
}

#[test]
fn the_agent_cannot_be_killed_from_inside() {
    let home = Home::new();
    let id = ok(&home, &["run", "-d"]).trim().to_owned();
    for signal in ["KILL", "TERM", "INT", "SEGV", "STOP", "HUP"] {
        let script = format!("kill -{signal} 1");
        let words = ["exec", "--privileged", &id, "sh", "-c", &script];
        let _ = Flashpan::new(&home, words).finish();
        let still = Flashpan::new(&home, ["exec", &id, "echo", "there"]).finish();
        if still.status == Some(0) {
            still.expect_stdout("there\n");
            continue;
        }
        // Some of them ask PID 1 for the end of the VM, as they do on any Linux.
        ok(&home, &["wait", &id]);
        let inspected = ok(&home, &["inspect", &id]);
        assert!(inspected.contains("\"orderly\": true"), "{inspected}");
        ok(&home, &["start", &id]);
    }
    remove(&home, &id);
}
