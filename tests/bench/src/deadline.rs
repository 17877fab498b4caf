//! Programs that may not end.

use std::process::{Command, Output};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

/// How long a run may take, hundreds of times what it does. Where time is a count
/// of instructions and everything waits, the clock leaps from timer to timer.
pub(crate) const DEADLINE: Duration = Duration::from_secs(120);

/// Runs a program to its end; nothing if it had to be ended for it.
pub(crate) fn run_for(command: &mut Command, most: Duration) -> std::io::Result<Option<Output>> {
    let child = command.spawn()?;
    let pid = child.id().to_string();
    let (done, ended) = mpsc::channel::<()>();
    let watching = thread::spawn(move || {
        let late = ended.recv_timeout(most) == Err(RecvTimeoutError::Timeout);
        // It has not ended, so the number is its own.
        late && Command::new("kill").args(["-9", &pid]).status().is_ok()
    });
    let output = child.wait_with_output()?;
    drop(done);
    let killed = watching.join().unwrap_or(false);
    Ok((!killed).then_some(output))
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use super::*;

    #[test]
    fn what_does_not_end_is_ended() {
        let mut sleep = Command::new("sleep");
        sleep
            .arg("1000")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        assert!(
            run_for(&mut sleep, Duration::from_millis(50))
                .unwrap()
                .is_none()
        );
        let mut echo = Command::new("echo");
        echo.arg("x").stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = run_for(&mut echo, DEADLINE).unwrap().unwrap();
        assert_eq!(output.stdout, b"x\n");
    }
}
