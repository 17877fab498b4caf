//! A home for one test, and the proof that nothing was left in it.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::wait;
use nix::unistd::Pid;
use tempfile::TempDir;

/// What outlives its VM has this long to go: a second, or ten in the lab, whose
/// emulated CPUs are that much slower and take a second to free a guest's memory.
fn grace() -> Duration {
    let in_the_lab = std::env::var_os("FLASHPAN_LAB").is_some();
    Duration::from_secs(if in_the_lab { 10 } else { 1 })
}

/// Tests that look for what is left must not run beside each other.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Directories for state, sockets and temporary files that only one test uses.
/// Dropping it fails the test if anything is left there, or runs still.
#[derive(Debug)]
pub struct Home {
    directory: TempDir,
    shared_memory: Vec<OsString>,
    _alone: MutexGuard<'static, ()>,
}

impl Default for Home {
    fn default() -> Self {
        Self::new()
    }
}

impl Home {
    /// A home, empty. Every orphan of the programs run in it becomes our child.
    #[must_use]
    pub fn new() -> Self {
        let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        nix::sys::prctl::set_child_subreaper(true).expect("cannot become a subreaper");
        let directory = tempfile::Builder::new()
            .prefix("e2e-")
            .tempdir()
            .expect("no directory");
        let home = Self {
            directory,
            shared_memory: shared_memory(),
            _alone: alone,
        };
        for (_, path) in home.environment() {
            fs::create_dir(path).expect("cannot make a home");
        }
        home
    }

    /// The variables that make a program live here. The cache is not among
    /// them: what is kept there is meant to stay.
    #[must_use]
    pub fn environment(&self) -> [(&'static str, PathBuf); 3] {
        let place = |name: &str| self.directory.path().join(name);
        [
            ("XDG_STATE_HOME", place("state")),
            ("XDG_RUNTIME_DIR", place("run")),
            ("TMPDIR", place("tmp")),
        ]
    }

    /// A file name for the test's own use, outside what has to stay empty.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The one process of this name that programs run here have started and is running, whoever
    /// has started it.
    ///
    /// # Panics
    /// If there is none, or more than one.
    #[must_use]
    pub fn process(&self, name: &str) -> i32 {
        let mut families = vec![std::process::id()];
        let mut found = Vec::new();
        while let Some(parent) = families.pop() {
            for (pid, its_name) in children(parent) {
                families.extend(u32::try_from(pid));
                found.extend((its_name == name).then_some(pid));
            }
        }
        match found[..] {
            [pid] => pid,
            _ => panic!("there are {} processes `{name}`", found.len()),
        }
    }

    /// Fails if a process, a file or a socket is left.
    ///
    /// # Panics
    /// If so; the message lists them.
    pub fn assert_nothing_left(&self) {
        let mut left = processes_left();
        for (_, path) in self.environment() {
            files(&path, &mut left);
        }
        let here = self.directory.path().display().to_string();
        let sockets = fs::read_to_string("/proc/net/unix").expect("no list of sockets");
        left.extend(
            sockets
                .lines()
                .filter(|line| line.contains(&here))
                .map(|line| {
                    let path = line.split_whitespace().last().unwrap_or_default();
                    format!("socket {path}")
                }),
        );
        let before = &self.shared_memory;
        let new = shared_memory()
            .into_iter()
            .filter(|name| !before.contains(name));
        left.extend(new.map(|name| format!("/dev/shm/{}", name.display())));
        assert!(left.is_empty(), "left behind:\n  {}", left.join("\n  "));
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if thread::panicking() {
            // What a failed test left running must not fail the next one too.
            processes_left();
        } else {
            self.assert_nothing_left();
        }
    }
}

fn shared_memory() -> Vec<OsString> {
    let entries = fs::read_dir("/dev/shm").into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name()).collect()
}

/// Everything that is no directory, all the way down.
fn files(directory: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() && !path.is_symlink() {
            files(&path, found);
        } else {
            found.push(path.display().to_string());
        }
    }
}

/// Waits until all children (orphans are ours, see [`Home::new`]) have ended;
/// those that have not after the grace are killed and listed.
fn processes_left() -> Vec<String> {
    let (done, ended) = mpsc::channel();
    let waiter = thread::spawn(move || {
        while wait() != Err(Errno::ECHILD) {}
        // Nobody listens any more when it took too long.
        let _ = done.send(());
    });
    let mut left = Vec::new();
    while ended.recv_timeout(grace()).is_err() {
        for (pid, name) in children(std::process::id()) {
            left.push(format!("process {pid} {name}"));
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    waiter.join().expect("waiting for children");
    left
}

/// The children of a process that are not zombies, with their names.
fn children(parent: u32) -> Vec<(i32, String)> {
    let parent = parent.to_string();
    let entries = fs::read_dir("/proc").expect("no /proc").flatten();
    entries
        .filter_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            // The name is in parentheses and may hold anything.
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            let (head, tail) = stat.rsplit_once(") ")?;
            let mut fields = tail.split(' ');
            let (state, its_parent) = (fields.next()?, fields.next()?);
            let name = head.split_once('(')?.1.to_owned();
            (its_parent == parent && state != "Z").then_some((pid, name))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn complaint(leave: impl FnOnce(&Home)) -> String {
        let home = Home::new();
        leave(&home);
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            home.assert_nothing_left();
        }));
        // What was left is not to fail this test a second time.
        for (_, path) in home.environment() {
            fs::remove_dir_all(path).unwrap();
        }
        result
            .unwrap_err()
            .downcast::<String>()
            .map(|text| *text)
            .unwrap()
    }

    #[test]
    fn an_orphan_is_found() {
        let text = complaint(|_| {
            let status = Command::new("sh").args(["-c", "sleep 1000 &"]).status();
            assert!(status.unwrap().success());
        });
        assert!(text.contains("sleep"), "{text}");
    }

    #[test]
    fn a_file_is_found_however_deep() {
        let text = complaint(|home| {
            let [(_, state), ..] = home.environment();
            fs::create_dir_all(state.join("a/b")).unwrap();
            fs::write(state.join("a/b/vm.json"), "{}").unwrap();
        });
        assert!(text.contains("a/b/vm.json"), "{text}");
    }

    #[test]
    fn an_empty_home_is_in_order() {
        Home::new().assert_nothing_left();
    }
}
