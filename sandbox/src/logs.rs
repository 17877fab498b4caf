//! What a VM's own command writes: kept in memory up to a limit, and where its owner
//! wants it.

use std::collections::VecDeque;
use std::fmt;
use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::time::timeout;

use crate::driver::Ended;
use crate::error::{Error, Result};
use crate::process::Process;
use crate::pump::Task;
use crate::sandbox::{Sandbox, Way};
use crate::shared::Shared;
use crate::state::{LogReader, LogStream};
use crate::stdio::Output;

/// Most bytes of output that are kept in memory.
const KEPT: usize = 1 << 20;

/// How long the last output may take to be written.
const WRITTEN_WITHIN: Duration = Duration::from_secs(5);

/// Where output goes besides.
pub(crate) type OutputSink = Box<dyn Write + Send>;

/// The last output of the VM's own command.
#[derive(Default)]
pub(crate) struct OutputLog {
    ring: Mutex<VecDeque<u8>>,
    so_far: watch::Sender<SoFar>,
    sink: Mutex<Option<OutputSink>>,
}

/// How much was written, by how many that still do.
#[derive(Debug, Clone, Copy, Default)]
struct SoFar {
    bytes: u64,
    writers: usize,
}

impl fmt::Debug for OutputLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutputLog")
            .field("so_far", &*self.so_far.borrow())
            .finish_non_exhaustive()
    }
}

impl OutputLog {
    /// Where output goes from now on as well.
    pub(crate) fn set_sink(&self, sink: OutputSink) {
        *lock(&self.sink) = Some(sink);
    }

    fn has_sink(&self) -> bool {
        lock(&self.sink).is_some()
    }

    fn push(&self, bytes: &[u8]) {
        let kept = bytes.get(bytes.len().saturating_sub(KEPT)..);
        let kept = kept.unwrap_or_default();
        let mut ring = lock(&self.ring);
        let excess = ring.len().saturating_add(kept.len()).saturating_sub(KEPT);
        ring.drain(..excess);
        ring.extend(kept);
        // With the lock: whoever counts from the end must find it.
        let more = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.so_far
            .send_modify(|so_far| so_far.bytes = so_far.bytes.saturating_add(more));
    }

    /// What was written after the first `position` bytes, as far as it is still there;
    /// whether all of it is.
    fn after(&self, position: &mut u64) -> (Vec<u8>, bool) {
        let ring = lock(&self.ring);
        let end = self.so_far.borrow().bytes;
        let kept = u64::try_from(ring.len()).unwrap_or(u64::MAX);
        let begin = end.saturating_sub(kept);
        let skipped = usize::try_from(position.saturating_sub(begin)).unwrap_or(usize::MAX);
        let is_whole = *position >= begin;
        *position = end;
        (ring.iter().skip(skipped).copied().collect(), is_whole)
    }
}

/// Nothing panics while holding these locks, and what they hold is whole in any case.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counts as a writer.
struct Writing(Arc<Shared>);

impl Writing {
    fn new(shared: &Arc<Shared>) -> Self {
        let so_far = &shared.output.so_far;
        so_far.send_modify(|so_far| so_far.writers = so_far.writers.saturating_add(1));
        Self(Arc::clone(shared))
    }

    fn write(&self, bytes: &[u8]) {
        self.0.output.push(bytes);
        if let Some(sink) = &mut *lock(&self.0.output.sink) {
            // One that takes no more does without: the program goes on.
            let _ = sink.write_all(bytes);
        }
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        let so_far = &self.0.output.so_far;
        so_far.send_modify(|so_far| so_far.writers = so_far.writers.saturating_sub(1));
    }
}

/// A program that runs as long as the VM does.
#[derive(Debug)]
pub(crate) struct Kept {
    _process: Process,
    /// End when it has written all.
    pumps: Vec<Pump>,
}

#[derive(Debug)]
enum Pump {
    /// To memory.
    Task { _task: Task },
    /// Also to where it may take long.
    Thread(Option<oneshot::Receiver<()>>),
}

impl Pump {
    fn start(mut output: Output, shared: &Arc<Shared>) -> Result<Self> {
        let writing = Writing::new(shared);
        if !shared.output.has_sink() {
            let _task = Task::spawn(async move {
                while let Some(chunk) = output.next_chunk().await {
                    writing.write(&chunk);
                }
            });
            return Ok(Self::Task { _task });
        }
        let (done, written) = oneshot::channel();
        thread::Builder::new()
            .name("output".to_owned())
            .spawn(move || {
                while let Some(chunk) = output.blocking_next_chunk() {
                    writing.write(&chunk);
                }
                drop(writing);
                // Nobody waits any more when it took too long.
                let _ = done.send(());
            })
            .map_err(Error::host("start a thread for the command's output"))?;
        Ok(Self::Thread(Some(written)))
    }
}

impl Sandbox {
    /// What the VM's own command has written and writes, output and errors as they come.
    /// Of a VM of this process that is the image's command, if it was launched with it
    /// (`launch_entrypoint`), at most the last MiB; an attached handle reads the VM's
    /// log, which has what `flashpan logs` shows, and needs a tokio runtime for it.
    ///
    /// # Errors
    /// [`Error::State`] on an attached handle if that cannot be read.
    pub fn logs(&self) -> Result<Logs> {
        let source = match &self.way {
            Way::Own { .. } => Source::Kept {
                shared: Arc::clone(&self.shared),
                so_far: self.shared.output.so_far.subscribe(),
                position: 0,
            },
            Way::Attached(attachment) => {
                Source::Written(Box::new(attachment.log(LogStream::Output)?))
            }
        };
        Ok(Logs {
            source,
            ended: self.ended(),
            over: false,
            lost: false,
        })
    }

    /// Has a program run as long as the VM does; its output goes to [`Sandbox::logs`],
    /// and to the sink of its builder.
    pub(crate) fn keep(&self, mut program: Process) -> Result<()> {
        drop(program.stdin.take());
        let outputs = [program.stdout.take(), program.stderr.take()];
        let pumps = outputs.into_iter().flatten();
        let pumps = pumps.map(|output| Pump::start(output, &self.shared));
        let pumps = pumps.collect::<Result<_>>()?;
        lock(&self.kept).push(Kept {
            _process: program,
            pumps,
        });
        Ok(())
    }

    /// Waits until all that such programs wrote before they ended is where it should be.
    pub(crate) async fn kept_written(&self) {
        let written: Vec<_> = lock(&self.kept)
            .iter_mut()
            .flat_map(|kept| &mut kept.pumps)
            .filter_map(|pump| match pump {
                Pump::Task { .. } => None,
                Pump::Thread(written) => written.take(),
            })
            .collect();
        for written in written {
            let _ = timeout(WRITTEN_WITHIN, written).await;
        }
    }
}

/// What a VM's own command writes ([`Sandbox::logs`]).
#[derive(Debug)]
pub struct Logs {
    source: Source,
    ended: Ended,
    /// Whether nobody tells the end of the VM any more.
    over: bool,
    lost: bool,
}

#[derive(Debug)]
enum Source {
    /// In memory.
    Kept {
        shared: Arc<Shared>,
        so_far: watch::Receiver<SoFar>,
        position: u64,
    },
    /// By its supervisor.
    Written(Box<LogReader>),
}

impl Logs {
    /// What there is that was not returned before, or else what comes next; `None` when
    /// the VM has ended and all of it is read, or on an attached handle that is gone.
    /// Cancel safe.
    ///
    /// # Errors
    /// [`Error::State`] if a file cannot be read.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>> {
        loop {
            // Seen before the last bytes are read.
            let over = self.is_over();
            let there = self.available()?;
            if !there.is_empty() {
                return Ok(Some(there));
            }
            if over {
                return Ok(None);
            }
            self.news().await?;
        }
    }

    /// Waits until there may be more, or it may be over, since it was last asked whether
    /// it is. Cancel safe.
    async fn news(&mut self) -> Result<()> {
        let changed = async {
            match &mut self.source {
                // It fails only if the sender is gone, which `shared` holds.
                Source::Kept { so_far, .. } => drop(so_far.changed().await),
                Source::Written(reader) => reader.changed().await?,
            }
            Ok::<_, Error>(())
        };
        tokio::select! {
            changed = changed => changed?,
            // At once if it was told since it was looked at.
            told = self.ended.changed(), if !self.over => self.over = told.is_err(),
        }
        Ok(())
    }

    /// What there is now that was not returned before; empty if there is nothing.
    ///
    /// # Errors
    /// As [`Logs::next`].
    pub fn available(&mut self) -> Result<Vec<u8>> {
        match &mut self.source {
            Source::Kept {
                shared, position, ..
            } => {
                let (bytes, is_whole) = shared.output.after(position);
                self.lost |= !is_whole;
                Ok(bytes)
            }
            Source::Written(reader) => {
                let bytes = reader.available()?;
                self.lost |= reader.take_lost();
                Ok(bytes)
            }
        }
    }

    /// Whether more was written than was read in time, since this was last asked.
    pub fn take_lost(&mut self) -> bool {
        std::mem::take(&mut self.lost)
    }

    /// Whether nothing is written any more. What comes after this look is news.
    fn is_over(&mut self) -> bool {
        let ended = self.over || self.ended.borrow().is_some();
        let is_written = match &mut self.source {
            Source::Kept { so_far, .. } => so_far.borrow_and_update().writers == 0,
            Source::Written(_) => true,
        };
        ended && is_written
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::{Exit, ExitReason};

    #[test]
    fn the_last_of_the_output_is_kept_and_what_is_missing_is_said() {
        let log = OutputLog::default();
        let (mut early, mut late) = (0, 0);
        log.push(b"one ");
        assert_eq!(log.after(&mut early), (b"one ".to_vec(), true));
        assert_eq!(log.after(&mut early), (Vec::new(), true));
        log.push(b"two");
        assert_eq!(log.after(&mut early), (b"two".to_vec(), true));
        assert_eq!(log.after(&mut late), (b"one two".to_vec(), true));
        log.push(&vec![b'x'; KEPT - 1]);
        log.push(b"y");
        let (all, is_whole) = log.after(&mut early);
        assert!(is_whole && all.len() == KEPT && all.ends_with(b"xy"));
        log.push(&vec![b'z'; 3 * KEPT]);
        let (rest, is_whole) = log.after(&mut late);
        assert!(!is_whole && rest == vec![b'z'; KEPT]);
    }

    /// The VM's end is told, and the last writer goes, each before any of the steps of
    /// [`Logs::next`].
    #[tokio::test]
    async fn the_end_is_news_whenever_it_comes() {
        let minute = Duration::from_secs(60);
        let steps = || 0..4;
        for (told, gone) in steps().flat_map(|told| steps().map(move |gone| (told, gone))) {
            let shared: Arc<Shared> = Arc::default();
            let (teller, ended) = watch::channel(None);
            let mut writing = Some(Writing::new(&shared));
            let mut logs = Logs {
                source: Source::Kept {
                    so_far: shared.output.so_far.subscribe(),
                    shared: Arc::clone(&shared),
                    position: 0,
                },
                ended,
                over: false,
                lost: false,
            };
            let mut before = |step| {
                if step == told {
                    teller.send_replace(Some(Arc::new(Exit {
                        reason: ExitReason::PowerOff,
                        console: Vec::new(),
                        stats: None,
                    })));
                }
                if step == gone {
                    writing = None;
                }
            };
            before(0);
            if told == 0 {
                // That alone was waited for.
                let news = timeout(minute, logs.news()).await;
                assert!(matches!(news, Ok(Ok(()))), "{gone}: {news:?}");
            }
            before(1);
            let over = logs.is_over();
            before(2);
            assert!(logs.available().unwrap().is_empty());
            before(3);
            if !over {
                let news = timeout(minute, logs.news()).await;
                assert!(matches!(news, Ok(Ok(()))), "{told} {gone}: {news:?}");
            }
            let next = timeout(minute, logs.next()).await;
            assert!(matches!(next, Ok(Ok(None))), "{told} {gone}: {next:?}");
        }
    }
}
