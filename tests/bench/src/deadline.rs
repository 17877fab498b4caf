//! Programs that may not end.

use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::process::{Child, Command, Output};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

/// How long a run may take, hundreds of times what it does. Where time is a count
/// of instructions and everything waits, the clock leaps from timer to timer.
pub(crate) const DEADLINE: Duration = Duration::from_secs(120);

/// A program that is ended when this goes.
#[derive(Debug)]
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a program to its end; nothing if it had to be ended for it, together with
/// everything that it had started: what is left would slow down the next.
///
/// What it says goes into files, not pipes: a pipe ends when the last process that
/// inherited it does, and a file when the program itself does.
///
/// # Errors
/// It cannot be started, or what it said cannot be kept.
pub(crate) fn run_for(command: &mut Command, most: Duration) -> io::Result<Option<Output>> {
    // Its orphans become ours, so that they can be found.
    set_child_subreaper(true)?;
    let (stdout, stderr) = (tempfile::tempfile()?, tempfile::tempfile()?);
    command.stdout(stdout.try_clone()?);
    command.stderr(stderr.try_clone()?);
    let mut child = command.spawn()?;
    let pid = Pid::from_raw(child.id().cast_signed());
    let (done, ended) = mpsc::channel::<()>();
    let watching = thread::spawn(move || {
        let late = ended.recv_timeout(most) == Err(RecvTimeoutError::Timeout);
        // It has not been waited for, so the number is its own.
        late && kill(pid, Signal::SIGKILL).is_ok()
    });
    let status = child.wait()?;
    drop(done);
    if watching.join().unwrap_or(false) {
        end_descendants()?;
        return Ok(None);
    }
    Ok(Some(Output {
        status,
        stdout: content(stdout)?,
        stderr: content(stderr)?,
    }))
}

/// Ends our children, and theirs, which become ours as soon as these are gone.
fn end_descendants() -> io::Result<()> {
    loop {
        for thread in fs::read_dir("/proc/self/task")? {
            let children = fs::read_to_string(thread?.path().join("children"))?;
            for child in children.split_ascii_whitespace() {
                if let Ok(child) = child.parse() {
                    // Only this thread waits for children, so the number is its own.
                    let _ = kill(Pid::from_raw(child), Signal::SIGKILL);
                }
            }
        }
        match waitpid(None, None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(Errno::ECHILD) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

fn content(mut file: File) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut content)?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One test, since a process has all its children in common.
    #[test]
    fn what_does_not_end_is_ended_with_all_it_started() {
        let mut echo = Command::new("echo");
        echo.arg("x");
        let output = run_for(&mut echo, DEADLINE).unwrap().unwrap();
        assert_eq!(output.stdout, b"x\n");

        // An orphan in a session of its own, which holds the same output open, and
        // says who it is.
        let mut tree = Command::new("sh");
        let pid_file = tempfile::NamedTempFile::new().unwrap();
        tree.args(["-c", "setsid sleep 1000 & echo $! >\"$0\"; exec sleep 1000"]);
        tree.arg(pid_file.path());
        let ended = run_for(&mut tree, Duration::from_secs(5)).unwrap();
        assert!(ended.is_none());
        let orphan = fs::read_to_string(pid_file.path()).unwrap();
        let orphan = Pid::from_raw(orphan.trim().parse().unwrap());
        assert_eq!(kill(orphan, None), Err(Errno::ESRCH));

        // What is not late may leave behind whom it likes.
        let mut parent = Command::new("sh");
        parent.args(["-c", "sleep 1000 & echo $!"]);
        let output = run_for(&mut parent, DEADLINE).unwrap().unwrap();
        let left = String::from_utf8(output.stdout).unwrap();
        let left = Pid::from_raw(left.trim().parse().unwrap());
        kill(left, Signal::SIGKILL).unwrap();
        waitpid(left, None).unwrap();
    }
}
