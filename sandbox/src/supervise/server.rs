//! What clients ask of a supervisor, over its socket.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use flashpan_protocol::agent::{ExecInput, ExecRequest, StartFailureKind};
use flashpan_protocol::frame;
use flashpan_protocol::supervisor::{
    Activity, Answer, MAGIC, MAX_ANSWER, MAX_REQUEST, PolicyRequest, Refusal, RefusalKind, Request,
    VERSION,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::error::Error;
use crate::frames::FrameReader;
use crate::sandbox::Sandbox;
use crate::supervise::life::Shared;
use crate::text::one_line;

/// Most clients at a time. One that was handed over to the guest is none any more.
const CLIENTS: u32 = 256;

/// How long a client may take to say what it wants, or to take an answer.
const CLIENT_WITHIN: Duration = Duration::from_secs(10);

/// How long the last clients may take to hear of the end.
const FAREWELL: Duration = Duration::from_secs(2);

/// How much of a request is read at a time.
const CHUNK: usize = 16 * 1024;

/// Longest text that is passed on, in characters.
const QUOTED: usize = 500;

/// When a connection cannot be taken (there are too many descriptors), nothing tells
/// that it can be again.
const AGAIN_AFTER: Duration = Duration::from_millis(100);

/// The clients there are.
#[derive(Debug)]
pub(super) struct Clients(Arc<Semaphore>);

impl Clients {
    pub(super) fn none() -> Self {
        Self(Arc::new(Semaphore::new(CLIENTS as usize)))
    }

    /// Takes connections, for ever.
    pub(super) async fn serve(&self, listener: UnixListener, shared: Arc<Shared>) {
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(_) => {
                    tokio::time::sleep(AGAIN_AFTER).await;
                    continue;
                }
            };
            let own = nix::unistd::geteuid().as_raw();
            if !stream.peer_cred().is_ok_and(|peer| peer.uid() == own) {
                continue;
            }
            match Arc::clone(&self.0).try_acquire_owned() {
                Ok(permit) => drop(tokio::spawn(client(stream, Arc::clone(&shared), permit))),
                Err(_) => refuse_for_number(&stream),
            }
        }
    }

    /// Waits until all have heard of the end, if they want to.
    pub(super) async fn farewell(&self) {
        let _ = timeout(FAREWELL, self.0.acquire_many(CLIENTS)).await;
    }
}

/// One line to who is one too many, if it takes it at once.
fn refuse_for_number(stream: &UnixStream) {
    let answer = refusal(
        RefusalKind::Busy,
        &format!("it has {CLIENTS} clients already; try again"),
    );
    if let Ok(frame) = frame::encode(&answer, MAX_ANSWER) {
        let _ = stream.try_write(&frame);
    }
}

async fn client(stream: UnixStream, shared: Arc<Shared>, _permit: OwnedSemaphorePermit) {
    let Ok(Some((request, mut stream))) = timeout(CLIENT_WITHIN, hear(stream)).await else {
        return;
    };
    let answer = match request {
        Request::Dial { port } => match dial(stream, port, &shared).await {
            Ok(()) => return,
            Err((error, refused)) => {
                stream = refused;
                refusal_of(&error)
            }
        },
        request => match obey(request, &mut stream, &shared).await {
            Some(answer) => answer,
            None => return,
        },
    };
    say(&mut stream, &answer).await;
}

/// The request of a client that has shown itself, and nothing behind it.
async fn hear(stream: UnixStream) -> Option<(Request, UnixStream)> {
    let mut reader = FrameReader::new(stream, MAX_REQUEST, CHUNK);
    let Ok(Some(Request::Hello {
        magic: MAGIC,
        version,
    })) = reader.next().await
    else {
        return None;
    };
    if version != VERSION {
        let mut stream = reader.into_inner();
        say(&mut stream, &Answer::Hello { version: VERSION }).await;
        return None;
    }
    let request = reader.next().await;
    let nothing_more = reader.is_empty();
    let mut stream = reader.into_inner();
    say(&mut stream, &Answer::Hello { version: VERSION }).await;
    let why = match request {
        Ok(Some(Request::Hello { .. })) => "a second hello".to_owned(),
        Ok(Some(request)) if nothing_more => return Some((request, stream)),
        Ok(Some(_)) => "something behind the request".to_owned(),
        Ok(None) => return None,
        Err(error) => error.to_string(),
    };
    say(&mut stream, &refusal(RefusalKind::BadRequest, &why)).await;
    None
}

/// Tells a client something; one that does not take it has enough.
async fn say(stream: &mut UnixStream, answer: &Answer) {
    if let Ok(frame) = frame::encode(answer, MAX_ANSWER) {
        let _ = timeout(CLIENT_WITHIN, stream.write_all(&frame)).await;
    }
}

/// Makes the connection itself the host end of one to the guest.
async fn dial(
    mut stream: UnixStream,
    port: u32,
    shared: &Arc<Shared>,
) -> Result<(), (Error, UnixStream)> {
    let sandbox = match running(shared) {
        Ok(sandbox) => sandbox,
        Err(error) => return Err((error, stream)),
    };
    // Before the VMM has it: the guest may speak first.
    say(&mut stream, &Answer::Accepted).await;
    let Ok(stream) = stream.into_std() else {
        return Ok(());
    };
    // From here on it is closed where anything fails, which is how a guest refuses.
    if let Ok(accepted) = sandbox.hand_over(port, OwnedFd::from(stream)).await {
        drop(accepted);
    }
    Ok(())
}

/// The answer to a request; `None` if nobody waits for it any more.
async fn obey(request: Request, stream: &mut UnixStream, shared: &Arc<Shared>) -> Option<Answer> {
    let answer = match request {
        Request::Hello { .. } | Request::Dial { .. } => {
            refusal(RefusalKind::BadRequest, "it makes no sense here")
        }
        Request::Status => Answer::Status(shared.activity()),
        Request::Spawn(request) => match spawn(*request, shared).await {
            Ok(pid) => Answer::Started { pid },
            Err(error) => refusal_of(&error),
        },
        Request::Stop {
            grace_ms,
            within_ms,
        } => {
            let milliseconds = |ms| Duration::from_millis(u64::from(ms));
            shared.stop(milliseconds(grace_ms), milliseconds(within_ms));
            return ended(stream, shared).await;
        }
        Request::Kill => {
            shared.kill();
            return ended(stream, shared).await;
        }
        Request::Wait => return ended(stream, shared).await,
        Request::WaitCommand => return command_ended(stream, shared).await,
        Request::Pause => done(pause(shared).await),
        Request::Resume => done(resume(shared).await),
        Request::Policy(request) => match policy(request, shared).await {
            Ok(answer) => answer,
            Err(error) => refusal_of(&error),
        },
        Request::Usage => match usage(shared).await {
            Ok(answer) => answer,
            Err(error) => refusal_of(&error),
        },
    };
    Some(answer)
}

fn done(result: Result<(), Error>) -> Answer {
    match result {
        Ok(()) => Answer::Done,
        Err(error) => refusal_of(&error),
    }
}

async fn ended(stream: &mut UnixStream, shared: &Shared) -> Option<Answer> {
    tokio::select! {
        record = shared.finished() => Some(Answer::Ended { record: record.to_string() }),
        () = closed(stream) => None,
    }
}

async fn command_ended(stream: &mut UnixStream, shared: &Shared) -> Option<Answer> {
    tokio::select! {
        // If both have ended the command's status is what was asked for.
        biased;
        status = shared.command_ended() => Some(Answer::CommandEnded(status)),
        record = shared.finished() => Some(Answer::Ended { record: record.to_string() }),
        () = closed(stream) => None,
    }
}

/// Returns when a client that has nothing more to say is gone. Cancel safe.
async fn closed(stream: &mut UnixStream) {
    let mut nothing = [0; 64];
    while matches!(stream.read(&mut nothing).await, Ok(1..)) {}
}

/// The VM, if its guest is there for programs.
fn running(shared: &Shared) -> Result<&Arc<Sandbox>, Error> {
    match (shared.activity(), shared.sandbox()) {
        (Activity::Running, Some(sandbox)) => Ok(sandbox),
        (Activity::Paused, _) => Err(Error::Paused),
        (Activity::Stopping, _) => Err(Error::NotRunning),
        (Activity::Starting, _) | (_, None) => Err(Error::Starting),
    }
}

async fn pause(shared: &Arc<Shared>) -> Result<(), Error> {
    running(shared)?.pause().await?;
    shared.say(Activity::Paused);
    shared.written().await;
    Ok(())
}

async fn resume(shared: &Arc<Shared>) -> Result<(), Error> {
    let sandbox = match (shared.activity(), shared.sandbox()) {
        (Activity::Paused, Some(sandbox)) => sandbox,
        (Activity::Stopping, _) => return Err(Error::NotRunning),
        _ => return Err(Error::NotPaused),
    };
    sandbox.resume().await?;
    shared.say(Activity::Running);
    shared.written().await;
    Ok(())
}

async fn usage(shared: &Shared) -> Result<Answer, Error> {
    let sandbox = shared.sandbox().ok_or(Error::Starting)?;
    let mut usage = sandbox.usage().await?;
    usage.uptime_ns = shared.uptime_ns();
    Ok(Answer::Usage(Box::new(usage)))
}

/// What the guest may reach can be changed also while it stands still.
async fn policy(request: PolicyRequest, shared: &Shared) -> Result<Answer, Error> {
    let sandbox = shared.sandbox().ok_or(Error::Starting)?;
    sandbox.ask_policy(request).await
}

/// Runs a program that nobody watches.
async fn spawn(mut request: ExecRequest, shared: &Shared) -> Result<u32, Error> {
    let sandbox = running(shared)?;
    request.stdin = false;
    let terminal = request.terminal.is_some();
    let start = ExecInput::Start(Box::new(request));
    let start = frame::encode(&start, flashpan_protocol::agent::MAX_FRAME)?;
    let mut process = sandbox
        .exec_frame(&start, (false, terminal), None, tokio::time::Instant::now())
        .await?;
    let pid = process.pid();
    (process.stdout, process.stderr) = (None, None);
    tokio::spawn(async move {
        // It ends when it likes, at the latest with the VM.
        let _ = process.wait().await;
    });
    Ok(pid)
}

fn refusal(kind: RefusalKind, message: &str) -> Answer {
    let message = one_line(message, QUOTED);
    Answer::Refused(Refusal { kind, message })
}

fn refusal_of(error: &Error) -> Answer {
    let kind = match error {
        Error::Starting => RefusalKind::Starting,
        Error::Paused => RefusalKind::Paused,
        Error::NotPaused => RefusalKind::NotPaused,
        Error::NotRunning | Error::VmEnded(_) => RefusalKind::Ending,
        Error::StartFailed { kind, .. } => match kind {
            StartFailureKind::NotFound => RefusalKind::ProgramNotFound,
            StartFailureKind::NotExecutable => RefusalKind::ProgramNotExecutable,
            _ => RefusalKind::Failed,
        },
        _ => RefusalKind::Failed,
    };
    refusal(kind, &error.to_string())
}
