//! The connection of one operation on the guest's files.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use flashpan_protocol::agent::Bytes;
use flashpan_protocol::file::{
    FILE_PORT, FileInput, FileOutput, FileRequest, MAX_FILE_FRAME, MAX_PATH,
};
use flashpan_protocol::frame::{self, FrameError};
use tokio::io::AsyncWriteExt;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

use crate::driver::Ended;
use crate::error::{Error, Result};
use crate::frames::FrameReader;
use crate::pump::{broken, lost};
use crate::sandbox::Sandbox;
use crate::text::{self, one_line};

/// How long a guest may be silent, or take nothing, when it is its turn.
pub(crate) const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// How long it may take to remove a tree.
pub(crate) const REMOVE_WITHIN: Duration = Duration::from_secs(60 * 60);

/// Longest text of a guest that a message quotes, in characters.
const QUOTED: usize = 300;

/// Both directions of the connection.
#[derive(Debug)]
pub(crate) struct FileLink {
    pub(crate) input: FileSender,
    pub(crate) output: FileReceiver,
}

/// To the agent.
#[derive(Debug)]
pub(crate) struct FileSender(OwnedWriteHalf);

/// From the agent.
#[derive(Debug)]
pub(crate) struct FileReceiver {
    reader: FrameReader<OwnedReadHalf>,
    ended: Ended,
    path: PathBuf,
}

/// `path` as it is sent.
pub(crate) fn guest_path(path: &Path) -> Result<Bytes> {
    let bytes = path.as_os_str().as_bytes();
    let why = if !bytes.starts_with(b"/") {
        "is not an absolute path"
    } else if bytes.contains(&0) {
        "has a NUL byte"
    } else if bytes.len() > MAX_PATH {
        "is longer than 4095 bytes"
    } else {
        return Ok(Bytes::from(bytes));
    };
    let shown = text::shown_path(path);
    Err(Error::config("path in the guest", format!("{shown} {why}")))
}

impl FileLink {
    /// Asks the guest for an operation on the file at `path`.
    pub(crate) async fn start(
        sandbox: &Sandbox,
        path: &Path,
        request: FileRequest,
    ) -> Result<Self> {
        let start = frame::encode(&FileInput::Start(request), MAX_FILE_FRAME)?;
        let dialled = timeout(ANSWER_WITHIN, sandbox.dial(FILE_PORT, &start)).await;
        // If the request was not taken, there is an answer that says why.
        let (reader, writer, _written) = dialled.map_err(|_| silent(ANSWER_WITHIN))??;
        Ok(Self {
            input: FileSender(writer),
            output: FileReceiver {
                reader: FrameReader::new(reader, MAX_FILE_FRAME, MAX_FILE_FRAME),
                ended: sandbox.ended(),
                path: path.to_owned(),
            },
        })
    }
}

impl FileSender {
    /// Sends content, 1 to `MAX_DATA` bytes.
    pub(crate) async fn data(&mut self, bytes: &[u8]) -> Result<()> {
        self.send(&FileInput::Data(bytes.to_vec())).await
    }

    /// Says that this was all.
    pub(crate) async fn end(&mut self) -> Result<()> {
        self.send(&FileInput::End).await
    }

    async fn send(&mut self, message: &FileInput) -> Result<()> {
        self.frame(&frame::encode(message, MAX_FILE_FRAME)?).await
    }

    /// Sends a message that is a frame already.
    pub(crate) async fn frame(&mut self, frame: &[u8]) -> Result<()> {
        match timeout(ANSWER_WITHIN, self.0.write_all(frame)).await {
            // When the connection breaks, the other direction has the reason.
            Ok(_) => Ok(()),
            Err(_) => Err(silent(ANSWER_WITHIN)),
        }
    }
}

impl FileReceiver {
    /// The next frame that is no failure. Cancel safe.
    pub(crate) async fn next(&mut self) -> Result<FileOutput> {
        match self.reader.next().await {
            Ok(Some(FileOutput::Failed(failure))) => Err(Error::File {
                path: self.path.clone(),
                kind: failure.kind,
                errno: failure.errno,
                message: one_line(&failure.message, QUOTED),
            }),
            Ok(Some(message)) => Ok(message),
            Ok(None) | Err(FrameError::Io(_) | FrameError::Truncated) => {
                Err(match lost(self.ended.clone()).await {
                    Error::AgentLost => broken("it ended a file operation without a word".into()),
                    error => error,
                })
            }
            Err(error) => Err(broken(error.to_string())),
        }
    }

    /// As [`FileReceiver::next`], which has to come `within` this time.
    pub(crate) async fn next_within(&mut self, within: Duration) -> Result<FileOutput> {
        let next = timeout(within, self.next()).await;
        next.map_err(|_| silent(within))?
    }

    /// `Ok` if `answer` says that it is done.
    pub(crate) fn done(&self, answer: &FileOutput) -> Result<()> {
        match answer {
            FileOutput::Done => Ok(()),
            other => Err(self.unexpected(other)),
        }
    }

    /// The error that `message` is.
    pub(crate) fn unexpected(&self, message: &FileOutput) -> Error {
        let what = match message {
            FileOutput::Info(_) => "a description",
            FileOutput::Data(_) => "content",
            FileOutput::Entries(_) => "entries",
            FileOutput::Done => "the end",
            FileOutput::Failed(_) => "a failure",
            FileOutput::Entry(_) | FileOutput::Close | FileOutput::Skipped(_) => "a part of a tree",
            FileOutput::Changes(_) => "changes",
        };
        broken(format!(
            "it sent {what} of a file when that was not its turn"
        ))
    }
}

fn silent(after: Duration) -> Error {
    Error::Timeout {
        what: "go on with the file operation",
        after,
    }
}
