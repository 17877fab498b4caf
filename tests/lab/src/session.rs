//! The host's side of a run: passes input, output, signals and the exit status.

use std::env;
use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{SigSet, Signal};

use crate::packages::say;
use crate::qemu::Machine;
use crate::terminal::{self, Raw};
use crate::wire::{self, Kind, Start};
use crate::{Options, SCRATCH, status};

/// The agent answers within this time of the start, or the lab does not boot.
const BOOT: Duration = Duration::from_secs(120);
/// How often the lab is asked whether it lives, and how long it may be silent.
const PING_EVERY: Duration = Duration::from_secs(20);
const SILENCE: Duration = Duration::from_secs(120);
/// What an ended command is given to leave the scratch disk clean.
const CLEAN_UP: Duration = Duration::from_secs(15);

enum Event {
    Frame(Kind, Vec<u8>),
    /// The port was closed or made no sense: the lab is gone.
    Gone(io::Error),
    Signal(Signal),
    /// Nobody reads our standard output or error any more.
    NoReader,
}

/// The port for those who send.
#[derive(Clone)]
struct Sender(Arc<Mutex<UnixStream>>);

impl Sender {
    fn send(&self, kind: Kind, payload: &[u8]) -> io::Result<()> {
        let mut port = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        wire::send(&mut *port, kind, payload)
    }
}

/// Why the end is near, though the command has not ended by itself.
enum Ending {
    TimedOut,
    Killed,
}

pub(crate) fn run(machine: Machine, options: &Options) -> Result<u8> {
    let (sender, events) = mpsc::channel();
    let signals = SigSet::from_iter([
        Signal::SIGINT,
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGQUIT,
        Signal::SIGWINCH,
    ]);
    // Before the first thread: all inherit the mask, and only one waits. After
    // QEMU: it would inherit the mask too.
    signals.thread_block()?;
    machine.watch_console(options.console)?;
    let raw = if options.terminal {
        Raw::enter()?
    } else {
        None
    };

    let blocked = Arc::new(AtomicBool::new(false));
    let (credit, granted) = mpsc::channel();
    spawn_signals(signals, sender.clone());
    spawn_output(
        machine.port.try_clone()?,
        sender,
        credit,
        Arc::clone(&blocked),
    );
    // A lab that takes nothing any more is noticed by its silence.
    machine
        .port
        .set_write_timeout(Some(Duration::from_secs(5)))?;
    let port = Sender(Arc::new(Mutex::new(machine.port.try_clone()?)));
    let session = Session {
        machine,
        port,
        options,
        begun: Instant::now(),
        blocked,
    };
    let result = session.serve(&events, granted);
    drop(raw);
    result
}

struct Session<'a> {
    machine: Machine,
    port: Sender,
    options: &'a Options,
    begun: Instant,
    /// Our own standard output or error takes nothing at the moment.
    blocked: Arc<AtomicBool>,
}

impl Session<'_> {
    fn serve(&self, events: &mpsc::Receiver<Event>, granted: mpsc::Receiver<u32>) -> Result<u8> {
        let mut granted = Some(granted);
        let mut started = false;
        let mut interrupted = false;
        let mut ending: Option<(Ending, Instant)> = None;
        let mut heard = Instant::now();
        let mut pinged = Instant::now();
        let timeout = self.options.timeout.map(|timeout| self.begun + timeout);
        loop {
            // What to do if nothing comes in time.
            let now = Instant::now();
            if let Some((ending, deadline)) = &ending {
                if now >= *deadline {
                    return Ok(self.end(ending));
                }
            } else if timeout.is_some_and(|timeout| now >= timeout) {
                say(&format!(
                    "timed out after {} s; {}",
                    self.begun.elapsed().as_secs(),
                    if started {
                        "killing the command"
                    } else {
                        "the lab has not even booted"
                    },
                ));
                let grace = if started { CLEAN_UP } else { Duration::ZERO };
                self.signal(Signal::SIGKILL);
                ending = Some((Ending::TimedOut, now + grace));
                continue;
            }
            if self.blocked.load(Ordering::SeqCst) {
                heard = now;
            }
            if !started && now >= self.begun + BOOT {
                bail!(
                    "the lab does not boot; {}",
                    self.machine.last_console_lines()
                );
            }
            if now >= heard + SILENCE {
                bail!("the lab hangs; {}", self.machine.last_console_lines());
            }
            if started && now >= pinged + PING_EVERY {
                pinged = now;
                self.send(Kind::Ping, &[]);
            }

            let next = [
                Some(now + Duration::from_secs(1)),
                timeout,
                ending.as_ref().map(|e| e.1),
            ];
            let wait = next.into_iter().flatten().min().unwrap_or(now);
            let event = match events.recv_timeout(wait.saturating_duration_since(now)) {
                Ok(event) => event,
                Err(mpsc::RecvTimeoutError::Timeout) => continue,
                Err(mpsc::RecvTimeoutError::Disconnected) => bail!("no thread is left"),
            };
            match event {
                Event::Frame(kind, payload) => {
                    heard = Instant::now();
                    match (kind, payload.as_slice()) {
                        (Kind::Hello, _) => {
                            started = true;
                            self.start(granted.take())?;
                        }
                        (Kind::Note, text) => say(&String::from_utf8_lossy(text)),
                        (Kind::Exit, &[code]) => {
                            return Ok(ending.map_or(code, |(ending, _)| self.end(&ending)));
                        }
                        (Kind::Pong, _) => {}
                        _ => bail!("the lab's agent sent an unexpected {kind:?}"),
                    }
                }
                Event::Gone(error) => {
                    bail!(
                        "the lab died ({error}); {}",
                        self.machine.last_console_lines()
                    )
                }
                // As it would be told by its pipe, were it here.
                Event::NoReader => self.signal(Signal::SIGPIPE),
                Event::Signal(Signal::SIGWINCH) => {
                    let (rows, columns) = terminal::size();
                    if self.options.terminal && started {
                        let ([r0, r1], [c0, c1]) = (rows.to_le_bytes(), columns.to_le_bytes());
                        self.send(Kind::Resize, &[r0, r1, c0, c1]);
                    }
                }
                Event::Signal(signal) if interrupted || !started => {
                    say(&format!("{signal}: killing the lab"));
                    return Ok(self.end(&Ending::Killed));
                }
                Event::Signal(signal) => {
                    interrupted = true;
                    say(&format!(
                        "{signal} goes to the command; a second one kills the lab"
                    ));
                    self.signal(signal);
                }
            }
        }
    }

    fn end(&self, ending: &Ending) -> u8 {
        match ending {
            Ending::TimedOut => status::TIMED_OUT,
            Ending::Killed => 130,
        }
    }

    fn start(&self, granted: Option<mpsc::Receiver<u32>>) -> Result<()> {
        let seconds = self.begun.elapsed().as_secs_f64();
        say(&format!("up after {seconds:.1} s"));
        let start = Start {
            terminal: self.options.terminal.then(terminal::size),
            repeat: self.options.repeat,
            directory: env::current_dir().context("there is no current directory")?,
            environment: environment(),
            command: self.options.command.clone(),
        };
        self.port.send(Kind::Start, &start.encode())?;
        if let Some(granted) = granted {
            let port = self.port.clone();
            thread::spawn(move || feed(&port, &granted));
        }
        Ok(())
    }

    fn signal(&self, signal: Signal) {
        self.send(Kind::Signal, &[u8::try_from(signal as i32).unwrap_or(0)]);
    }

    /// A lab that does not take it is found out by its silence.
    fn send(&self, kind: Kind, payload: &[u8]) {
        let _ = self.port.send(kind, payload);
    }
}

/// Our environment, with everything that needs FIFOs, sockets or extended
/// attributes on the scratch disk, as the 9p share has none of them.
fn environment() -> Vec<(OsString, OsString)> {
    let moved = [
        ("XDG_CACHE_HOME", "cache"),
        ("XDG_STATE_HOME", "state"),
        ("XDG_RUNTIME_DIR", "run"),
        ("TMPDIR", "tmp"),
        ("FLASHPAN_LAB", ""),
    ];
    let is_ours = |name: &OsString| !moved.iter().any(|(moved, _)| name == moved);
    let mut all: Vec<_> = env::vars_os().filter(|(name, _)| is_ours(name)).collect();
    all.extend(moved.iter().map(|(name, place)| {
        let place = format!("{SCRATCH}/{place}");
        (
            OsString::from(name),
            OsString::from(place.trim_end_matches('/')),
        )
    }));
    all
}

fn spawn_signals(signals: SigSet, events: mpsc::Sender<Event>) {
    thread::spawn(move || {
        while let Ok(signal) = signals.wait() {
            if events.send(Event::Signal(signal)).is_err() {
                return;
            }
        }
    });
}

/// Writes what the lab sends as output where it belongs, and hands on the rest.
fn spawn_output(
    mut port: UnixStream,
    events: mpsc::Sender<Event>,
    credit: mpsc::Sender<u32>,
    blocked: Arc<AtomicBool>,
) {
    let write = move |mut to: Box<dyn Write>, payload: &[u8]| {
        blocked.store(true, Ordering::SeqCst);
        let result = to.write_all(payload).and_then(|()| to.flush());
        blocked.store(false, Ordering::SeqCst);
        result
    };
    thread::spawn(move || {
        loop {
            let event = match wire::receive(&mut port) {
                Ok(Some((kind @ (Kind::Stdout | Kind::Stderr), payload))) => {
                    let to: Box<dyn Write> = match kind {
                        Kind::Stdout => Box::new(io::stdout()),
                        _ => Box::new(io::stderr()),
                    };
                    match write(to, &payload) {
                        Ok(()) => continue,
                        Err(_) => Event::NoReader,
                    }
                }
                Ok(Some((Kind::Credit, payload))) => {
                    let bytes = payload.try_into().map(u32::from_le_bytes).unwrap_or(0);
                    // Nobody reads standard input any more.
                    let _ = credit.send(bytes);
                    continue;
                }
                Ok(Some((kind, payload))) => Event::Frame(kind, payload),
                Ok(None) => Event::Gone(io::ErrorKind::UnexpectedEof.into()),
                Err(error) => Event::Gone(error),
            };
            let last = matches!(event, Event::Gone(_));
            if events.send(event).is_err() || last {
                return;
            }
        }
    });
}

/// Sends our standard input, as much as the command takes.
fn feed(port: &Sender, granted: &mpsc::Receiver<u32>) {
    let mut buffer = vec![0; 32 << 10];
    let mut credit: usize = 0;
    loop {
        while credit == 0 {
            let Ok(more) = granted.recv() else { return };
            credit += usize::try_from(more).unwrap_or(0);
        }
        let room = buffer.len().min(credit);
        let Some(space) = buffer.get_mut(..room) else {
            return;
        };
        let length = match io::stdin().read(space) {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // Standard input that cannot be read ends here.
            Err(_) => 0,
        };
        credit -= length;
        let bytes = buffer.get(..length).unwrap_or_default();
        if port.send(Kind::Stdin, bytes).is_err() || length == 0 {
            return;
        }
    }
}
