//! A policy as a script: of what a policy allows, a script may deny requests and connections.
//!
//! A script is functions in [Rhai](https://rhai.rs): `request(req)`, which each request is
//! shown to, and `connection(conn)`, which each connection of the host's is shown to before
//! it is made. What they see is [`Request`] and [`Connection`], and nothing else: there are
//! no files, no clock, no chance and no state that one call leaves to the next. A script
//! that fails, or takes too long, denies. `docs/policy-script.md` has it for who writes one.
//!
//! * `engine` – the language, and what a script may use of the host;
//! * `bounded` – functions of the language that would not keep to its limits;
//! * `shown` – what a script sees.

mod bounded;
mod engine;
mod shown;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use thiserror::Error;
use tokio::sync::{mpsc, oneshot};

use self::engine::Program;
pub use self::shown::{Connection, Request};
use crate::policy::{Code, Denial};

/// The longest script, in bytes.
pub const MAX_SOURCE: usize = 64 * 1024;

/// The stack of what compiles and runs scripts: far more than their limits on depth let
/// them use. Memory that is not used is not there.
const STACK: usize = 16 * 1024 * 1024;

/// Calls that wait for the one that runs. Requests wait when there are more.
const WAITING: usize = 64;

/// The function that requests are shown to.
const REQUEST: &str = "request";

/// The function that connections are shown to.
const CONNECTION: &str = "connection";

/// Why a text is no script.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ScriptError {
    /// It is too long.
    #[error("the script has {0} bytes; at most {MAX_SOURCE} are allowed")]
    TooLong(usize),
    /// It is not of the language.
    #[error("line {line}, column {column}: {why}")]
    Syntax {
        /// The line, from 1; 0: it is at the end.
        line: usize,
        /// The column, from 1.
        column: usize,
        /// What is wrong.
        why: String,
    },
    /// There is something besides functions.
    #[error(
        "line {line}, column {column}: there may be nothing but functions outside of functions; it would never run"
    )]
    Statement {
        /// The line, from 1.
        line: usize,
        /// The column, from 1.
        column: usize,
    },
    /// None of its functions would ever be called.
    #[error(
        "it judges nothing; write `fn request(req) {{ … }}` or `fn connection(conn) {{ … }}`, each with one parameter"
    )]
    Judges,
    /// A function is not one that can be called.
    #[error("the function {0} has {1} parameters; it is called with one")]
    Parameters(&'static str, usize),
    /// There is no thread for it.
    #[error("the host has no thread for it: {0}; end something that runs, and try again")]
    Thread(String),
}

/// A script that compiled. Two of them are the same if their texts are.
#[derive(Clone)]
pub struct Script(Arc<Inner>);

struct Inner {
    source: Box<str>,
    program: Arc<Program>,
    /// What runs it, once it was asked something.
    worker: Mutex<Option<mpsc::Sender<Job>>>,
}

/// One call of a script.
struct Job {
    call: Call,
    answer: oneshot::Sender<Result<(), Refusal>>,
}

/// What a script is asked about.
#[derive(Debug, Clone)]
enum Call {
    Request(Request),
    Connection(Connection),
}

/// Why a script does not let something pass.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Refusal {
    /// It denies it, or could not judge.
    is_denial: bool,
    /// Where, and why.
    why: String,
}

impl Refusal {
    fn failed(why: &str) -> Self {
        Self {
            is_denial: false,
            why: format!("policy_script: {why}"),
        }
    }

    fn denial(self, host: String) -> Denial {
        Denial {
            code: match self.is_denial {
                true => Code::ScriptDenied,
                false => Code::ScriptFailed,
            },
            host,
            rule: Some(self.why),
        }
    }
}

impl Script {
    /// Compiles a script.
    ///
    /// # Errors
    /// It is none, or none that would do anything.
    pub fn new(source: &str) -> Result<Self, ScriptError> {
        if source.len() > MAX_SOURCE {
            return Err(ScriptError::TooLong(source.len()));
        }
        let program = on_a_thread(|| Program::new(source))
            .unwrap_or_else(|why| Err(ScriptError::Thread(why)))?;
        Ok(Self(Arc::new(Inner {
            source: source.into(),
            program: Arc::new(program),
            worker: Mutex::new(None),
        })))
    }

    /// Its text.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.0.source
    }

    /// Whether it judges requests, so that they have to be looked at.
    #[must_use]
    pub fn judges_requests(&self) -> bool {
        self.0.program.judges_requests
    }

    /// Whether it judges connections.
    #[must_use]
    pub fn judges_connections(&self) -> bool {
        self.0.program.judges_connections
    }

    /// Shows it a request. Not on a thread of the runtime's: nothing waits for a script but
    /// what it is asked about, and what it is asked about after that.
    ///
    /// # Errors
    /// The script denies it, or failed.
    pub async fn request(&self, request: Request) -> Result<(), Denial> {
        if !self.judges_requests() {
            return Ok(());
        }
        let host = request.place();
        let asked = self.ask(Call::Request(request)).await;
        asked.map_err(|refusal| refusal.denial(host))
    }

    /// Shows it a connection, as [`Self::request`].
    ///
    /// # Errors
    /// The script denies it, or failed.
    pub async fn connection(&self, connection: Connection) -> Result<(), Denial> {
        if !self.judges_connections() {
            return Ok(());
        }
        let host = connection.place();
        let asked = self.ask(Call::Connection(connection)).await;
        asked.map_err(|refusal| refusal.denial(host))
    }

    /// [`Self::request`] for who may wait: it takes as long as a script may.
    ///
    /// # Errors
    /// The script denies it, or failed.
    pub fn request_now(&self, request: Request) -> Result<(), Denial> {
        if !self.judges_requests() {
            return Ok(());
        }
        let host = request.place();
        let asked = self.ask_now(Call::Request(request));
        asked.map_err(|refusal| refusal.denial(host))
    }

    /// [`Self::connection`] for who may wait.
    ///
    /// # Errors
    /// The script denies it, or failed.
    pub fn connection_now(&self, connection: Connection) -> Result<(), Denial> {
        if !self.judges_connections() {
            return Ok(());
        }
        let host = connection.place();
        let asked = self.ask_now(Call::Connection(connection));
        asked.map_err(|refusal| refusal.denial(host))
    }

    async fn ask(&self, call: Call) -> Result<(), Refusal> {
        let gone = || Refusal::failed("the host has no thread for it");
        let worker = self.worker().ok_or_else(gone)?;
        let (answer, answered) = oneshot::channel();
        let sent = worker.send(Job { call, answer }).await;
        sent.map_err(|_| gone())?;
        answered.await.unwrap_or_else(|_| Err(gone()))
    }

    /// A host that had no thread for it may have one later.
    fn worker(&self) -> Option<mpsc::Sender<Job>> {
        let mut kept = (self.0.worker.lock()).unwrap_or_else(PoisonError::into_inner);
        if kept.is_none() {
            *kept = worker(&self.0.program);
        }
        kept.clone()
    }

    fn ask_now(&self, call: Call) -> Result<(), Refusal> {
        let program = &self.0.program;
        let ran = on_a_thread(|| program.run(call));
        ran.unwrap_or_else(|why| Err(Refusal::failed(&why)))
    }
}

/// A thread that runs a script as often as it is asked to, one call after the other, as long
/// as the script is there.
fn worker(program: &Arc<Program>) -> Option<mpsc::Sender<Job>> {
    let (sender, mut jobs) = mpsc::channel::<Job>(WAITING);
    let program = Arc::clone(program);
    let run = move || {
        while let Some(Job { call, answer }) = jobs.blocking_recv() {
            // Whoever asked may have gone away meanwhile.
            if !answer.is_closed() {
                let _ = answer.send(program.run(call));
            }
        }
    };
    let named = thread::Builder::new().name("policy-script".to_owned());
    named.stack_size(STACK).spawn(run).ok()?;
    Some(sender)
}

/// Runs something on a stack that is known to be large enough.
fn on_a_thread<T: Send>(run: impl FnOnce() -> T + Send) -> Result<T, String> {
    thread::scope(|scope| {
        let named = thread::Builder::new().name("policy-script".to_owned());
        let thread = named.stack_size(STACK).spawn_scoped(scope, run);
        let thread = thread.map_err(|error| error.to_string())?;
        thread.join().map_err(|_| "it broke".to_owned())
    })
}

impl PartialEq for Script {
    fn eq(&self, other: &Self) -> bool {
        self.source() == other.source()
    }
}

impl Eq for Script {}

impl fmt::Debug for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Script").field(&self.source()).finish()
    }
}

#[cfg(test)]
mod tests;
