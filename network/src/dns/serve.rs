//! The two ways in which questions come: datagrams, and a stream.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::question::MAX_QUESTION;
use super::{Resolver, Transport};
use crate::message::Messages;
use crate::names::Names;
use crate::policy::Policy;
use crate::report::Reporter;

/// Questions of one flow that are answered at once. More wait.
const MAX_AT_ONCE: usize = 16;

/// How long a flow of datagrams may be silent: whoever asks again asks by then.
const DATAGRAMS_IDLE: Duration = Duration::from_secs(15);

/// How long a stream may be silent, or not take an answer.
const STREAM_IDLE: Duration = Duration::from_secs(30);

/// What is read at once of a stream.
const READ: usize = 4096;

/// Answers questions, of any number of flows.
#[derive(Debug, Clone)]
pub struct Server {
    /// Who resolves.
    pub resolver: Arc<Resolver>,
    /// Where answers are remembered.
    pub names: Arc<Names>,
    /// Where questions are told of.
    pub reporter: Reporter,
    /// What may be reached, at each time.
    pub policy: watch::Receiver<Arc<Policy>>,
}

impl Server {
    /// What one message is answered.
    pub async fn answer(&self, transport: Transport, message: &[u8]) -> Option<Vec<u8>> {
        let policy = Arc::clone(&self.policy.borrow());
        let (names, reporter) = (&self.names, &self.reporter);
        let resolver = &self.resolver;
        (resolver.answer(&policy, names, reporter, transport, message)).await
    }

    /// Answers what comes on a socket pair of messages, until it is closed or silent.
    /// What is no question is dropped.
    ///
    /// # Errors
    /// If the socket fails.
    pub async fn serve_socket(&self, socket: OwnedFd) -> io::Result<()> {
        self.serve_datagrams(&Messages::new(socket)?).await
    }

    /// The same, of such a socket.
    pub(crate) async fn serve_datagrams(&self, messages: &Messages) -> io::Result<()> {
        // One byte more than is looked at: what is cut off must not be taken for the whole.
        let mut buffer = vec![0; MAX_QUESTION + 1];
        let mut answering = JoinSet::new();
        let mut idle = Instant::now() + DATAGRAMS_IDLE;
        loop {
            tokio::select! {
                received = messages.receive(&mut buffer), if answering.len() < MAX_AT_ONCE => {
                    let len = match received {
                        Ok(len) => len,
                        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                        Err(error) => return Err(error),
                    };
                    let message = buffer.get(..len).unwrap_or_default().to_vec();
                    let server = self.clone();
                    answering.spawn(async move { server.answer(Transport::Udp, &message).await });
                }
                Some(answered) = answering.join_next() => {
                    if let Ok(Some(answer)) = answered {
                        messages.send(&answer).await?;
                        idle = Instant::now() + DATAGRAMS_IDLE;
                    }
                }
                () = sleep_until(idle), if answering.is_empty() => return Ok(()),
            }
        }
    }

    /// Answers what comes on a stream (RFC 7766), in the order in which answers are known,
    /// until it ends or is silent. It ends at what is no question.
    ///
    /// # Errors
    /// If the stream fails.
    pub async fn serve_stream<S>(&self, stream: S) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let (mut reader, mut writer) = tokio::io::split(stream);
        let mut read = Vec::new();
        let mut has_ended = false;
        let mut answering = JoinSet::new();
        let mut idle = Instant::now() + STREAM_IDLE;
        loop {
            while answering.len() < MAX_AT_ONCE {
                let message = match first(&mut read) {
                    First::Message(message) => message,
                    First::Part => break,
                    First::Wrong => return Ok(()),
                };
                let server = self.clone();
                answering.spawn(async move { server.answer(Transport::Tcp, &message).await });
                idle = Instant::now() + STREAM_IDLE;
            }
            if has_ended && answering.is_empty() {
                return writer.shutdown().await;
            }
            let has_room = !has_ended && answering.len() < MAX_AT_ONCE;
            read.reserve(READ);
            tokio::select! {
                len = reader.read_buf(&mut read), if has_room => has_ended = len? == 0,
                Some(answered) = answering.join_next() => {
                    let Ok(Some(answer)) = answered else {
                        return Ok(());
                    };
                    let len = u16::try_from(answer.len()).unwrap_or_default();
                    let answer = [&len.to_be_bytes(), answer.as_slice()].concat();
                    timeout(STREAM_IDLE, writer.write_all(&answer)).await??;
                    idle = Instant::now() + STREAM_IDLE;
                }
                () = sleep_until(idle), if answering.is_empty() => return Ok(()),
            }
        }
    }
}

enum First {
    Message(Vec<u8>),
    /// More has to come.
    Part,
    /// It is none that anybody means.
    Wrong,
}

/// Takes the first message of what was read.
fn first(read: &mut Vec<u8>) -> First {
    let Some((len, rest)) = read.split_first_chunk::<2>() else {
        return First::Part;
    };
    let len = usize::from(u16::from_be_bytes(*len));
    if len == 0 || len > MAX_QUESTION {
        return First::Wrong;
    }
    let Some(message) = rest.get(..len) else {
        return First::Part;
    };
    let message = message.to_vec();
    read.drain(..2 + len);
    First::Message(message)
}
