//! A file of the guest as a stream.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use flashpan_protocol::agent::MAX_DATA;
use flashpan_protocol::file::{FileOutput, FileStat};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::mpsc;

use crate::error::{Error, Result};
use crate::file_link::{ANSWER_WITHIN, FileLink};
use crate::files::io_error;
use crate::pump::{Task, broken};

/// Chunks that wait for the reader.
const CHUNKS: usize = 4;

/// A file of the guest that is being read. Dropping it ends that.
#[derive(Debug)]
pub struct FileReader {
    stat: FileStat,
    chunks: mpsc::Receiver<Result<Option<Vec<u8>>>>,
    /// What [`AsyncRead`] has left of a chunk.
    rest: Vec<u8>,
    finished: bool,
    _task: Task,
}

impl FileReader {
    /// Takes over a connection on which the guest has described the file, of which
    /// it was asked for at most `length` bytes.
    pub(crate) fn new(link: FileLink, stat: FileStat, length: Option<u64>) -> Self {
        let (sender, chunks) = mpsc::channel(CHUNKS);
        Self {
            stat,
            chunks,
            rest: Vec::new(),
            finished: false,
            _task: Task::spawn(pump(link, length, sender)),
        }
    }

    /// What the file was when it was opened. What is read can be shorter or
    /// longer than its size.
    #[must_use]
    pub fn stat(&self) -> FileStat {
        self.stat
    }

    /// The next bytes (1 to 65536), or `None` at the end. Cancel safe.
    ///
    /// # Errors
    /// What the guest says, or why it says no more. Nothing follows an error.
    pub async fn next_chunk(&mut self) -> Result<Option<Vec<u8>>> {
        std::future::poll_fn(|cx| self.poll_chunk(cx)).await
    }

    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Vec<u8>>>> {
        if !self.rest.is_empty() {
            return Poll::Ready(Ok(Some(std::mem::take(&mut self.rest))));
        }
        if self.finished {
            return Poll::Ready(Ok(None));
        }
        // A channel that ends without a word is that of a runtime that ended.
        let next = ready!(self.chunks.poll_recv(cx)).unwrap_or(Err(Error::AgentLost));
        self.finished = !matches!(next, Ok(Some(_)));
        Poll::Ready(next)
    }
}

impl AsyncRead for FileReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(chunk) = ready!(self.poll_chunk(cx)).map_err(io_error)? {
            let n = chunk.len().min(buf.remaining());
            let (now, later) = chunk.split_at_checked(n).unwrap_or_default();
            buf.put_slice(now);
            self.rest = later.to_vec();
        }
        Poll::Ready(Ok(()))
    }
}

/// Takes content from the guest as fast as it is read.
async fn pump(
    mut link: FileLink,
    length: Option<u64>,
    sender: mpsc::Sender<Result<Option<Vec<u8>>>>,
) {
    let mut left = length.unwrap_or(u64::MAX);
    loop {
        let next = match link.output.next_within(ANSWER_WITHIN).await {
            Ok(FileOutput::Data(bytes)) => check(&bytes, &mut left).map(|()| Some(bytes)),
            Ok(FileOutput::Done) => Ok(None),
            Ok(other) => Err(link.output.unexpected(&other)),
            Err(error) => Err(error),
        };
        let last = !matches!(next, Ok(Some(_)));
        // A reader that is gone takes this task with it.
        if sender.send(next).await.is_err() || last {
            return;
        }
    }
}

/// Takes `bytes` off what may still come. None at all are no content: whoever waits
/// for some would wait for as long as such messages come.
fn check(bytes: &[u8], left: &mut u64) -> Result<()> {
    let count = bytes.len();
    if !(1..=MAX_DATA).contains(&count) {
        return Err(broken(format!("{count} bytes of a file in one message")));
    }
    let rest = u64::try_from(count).ok().and_then(|n| left.checked_sub(n));
    *left = rest.ok_or_else(|| broken("it sent more of a file than was asked for".to_owned()))?;
    Ok(())
}
