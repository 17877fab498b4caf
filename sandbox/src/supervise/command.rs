//! The command of a VM: its output goes to a log.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use flashpan_protocol::agent::ExitStatus;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::error::{Error, Result};
use crate::process::Process;
use crate::state::LogFile;
use crate::stdio::Output;

/// How long the last output may take to be written.
const WRITTEN_WITHIN: Duration = Duration::from_secs(5);

/// The log of what a VM's programs write, for several that do.
#[derive(Debug, Clone)]
pub(super) struct SharedLog(Arc<Mutex<LogFile>>);

impl SharedLog {
    pub(super) fn new(log: LogFile) -> Self {
        Self(Arc::new(Mutex::new(log)))
    }
}

impl Write for SharedLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut log = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        log.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A running command.
#[derive(Debug)]
pub(super) struct OwnCommand {
    process: Process,
    written: Vec<oneshot::Receiver<()>>,
}

impl OwnCommand {
    /// Takes the output of a program to a log, by threads of its own: a disk may be
    /// slow.
    pub(super) fn new(mut process: Process, log: &SharedLog) -> Result<Self> {
        let streams = [process.stdout.take(), process.stderr.take()];
        let written = streams
            .into_iter()
            .flatten()
            .map(|output| copy(output, log.clone()))
            .collect::<Result<_>>()?;
        Ok(Self { process, written })
    }

    /// Asks it to end.
    pub(super) fn signal(&self, signal: i32) {
        // One that has ended needs no asking, and one that does not listen is ended
        // with the VM.
        let _ = self.process.signal(signal);
    }

    /// Waits until it has ended. Cancel safe.
    pub(super) async fn wait(&mut self) -> Result<ExitStatus> {
        self.process.wait().await
    }

    /// Waits until all its output is in the log.
    pub(super) async fn written(self) {
        for written in self.written {
            let _ = timeout(WRITTEN_WITHIN, written).await;
        }
    }
}

fn copy(mut output: Output, mut log: SharedLog) -> Result<oneshot::Receiver<()>> {
    let (done, written) = oneshot::channel();
    thread::Builder::new()
        .name("output".to_owned())
        .spawn(move || {
            while let Some(chunk) = output.blocking_next_chunk() {
                // A log takes everything, or does without.
                let _ = log.write_all(&chunk);
            }
            // Nobody waits any more when it took too long.
            let _ = done.send(());
        })
        .map_err(Error::host("start a thread for the command's output"))?;
    Ok(written)
}
