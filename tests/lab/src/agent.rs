//! The lab's side: PID 1 inside, which runs one command for the host.
//!
//! Being PID 1 it adopts and reaps every orphan, and when the command ends it
//! ends everything else, so that no pipe stays open and the scratch disk can
//! be unmounted.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::reap::{ANY, exit_status, reap};
use crate::terminal;
use crate::wire::{self, Kind, PORT_NAME, STDIN_WINDOW, Start};
use crate::{SCRATCH, status};

/// The port, shared by everything that sends.
#[derive(Clone)]
struct Port(Arc<Mutex<File>>);

impl Port {
    fn send(&self, kind: Kind, payload: &[u8]) -> io::Result<()> {
        let mut file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        wire::send(&mut *file, kind, payload)
    }

    fn note(&self, text: &str) -> io::Result<()> {
        self.send(Kind::Note, text.as_bytes())
    }
}

/// What the thread that listens to the host may do to the running command.
#[derive(Default)]
struct Running {
    /// The process group, 0 when none runs.
    group: AtomicI32,
    terminal: Mutex<Option<File>>,
}

/// Serves the host until the command has ended, and never returns an exit
/// status of its own: the host ends the lab.
///
/// # Errors
/// There is no port, or the host went away or spoke nonsense. The caller's
/// exit is then a kernel panic, which ends the lab.
pub fn serve() -> Result<()> {
    let device = find_port()?;
    let mut reader = File::options().read(true).write(true).open(&device)?;
    let port = Port(Arc::new(Mutex::new(reader.try_clone()?)));
    port.send(Kind::Hello, &[])?;
    let Some((Kind::Start, payload)) = wire::receive(&mut reader)? else {
        bail!("the host did not say what to run");
    };
    let start = Start::decode(&payload).context("the host's start record makes no sense")?;

    let running = Arc::new(Running::default());
    let (stdin, input) = mpsc::channel();
    {
        let (port, running) = (port.clone(), Arc::clone(&running));
        thread::spawn(move || {
            if let Err(error) = listen(&mut reader, &port, &running, &stdin) {
                eprintln!("lab: the host is gone: {error}");
            }
            // Nobody is left to read what we say.
            std::process::exit(1);
        });
    }
    let code = run_all(&start, &port, &running, input)?;
    end_everything();
    port.send(Kind::Exit, &[code])?;
    loop {
        thread::park();
    }
}

fn find_port() -> Result<std::path::PathBuf> {
    for entry in fs::read_dir("/sys/class/virtio-ports").context("no virtio-serial device")? {
        let entry = entry?;
        let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        if name.trim_end() == PORT_NAME {
            return Ok(Path::new("/dev").join(entry.file_name()));
        }
    }
    bail!("no virtio-serial port is called {PORT_NAME}")
}

/// Does what the host asks, until it goes away.
fn listen(
    reader: &mut File,
    port: &Port,
    running: &Running,
    stdin: &mpsc::Sender<Vec<u8>>,
) -> Result<()> {
    while let Some((kind, payload)) = wire::receive(reader)? {
        match (kind, payload.as_slice()) {
            // Bounded by the credit we gave; a command that does not read is no error.
            (Kind::Stdin, _) => drop(stdin.send(payload)),
            (Kind::Signal, &[number]) => {
                let group = running.group.load(Ordering::SeqCst);
                if let (1.., Ok(signal)) = (group, Signal::try_from(i32::from(number))) {
                    // A group that has just ended needs no signal.
                    let _ = kill(Pid::from_raw(-group), signal);
                }
            }
            (Kind::Resize, &[r0, r1, c0, c1]) => {
                let size = (u16::from_le_bytes([r0, r1]), u16::from_le_bytes([c0, c1]));
                if let Some(file) = &*running
                    .terminal
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                {
                    terminal::set_size(file, size)?;
                }
            }
            // When the port is busy, what keeps it busy is answer enough, and
            // waiting for it here would hold up signals.
            (Kind::Ping, _) => {
                if let Ok(mut file) = port.0.try_lock() {
                    wire::send(&mut *file, Kind::Pong, &[])?;
                }
            }
            _ => bail!("an unexpected {kind:?} frame"),
        }
    }
    bail!("the port was closed")
}

fn run_all(
    start: &Start,
    port: &Port,
    running: &Running,
    input: mpsc::Receiver<Vec<u8>>,
) -> Result<u8> {
    let mut input = Some(input);
    for turn in 1..=start.repeat {
        let begun = Instant::now();
        let code = run_once(start, port, running, input.take())?;
        if start.repeat > 1 {
            let (all, seconds) = (start.repeat, begun.elapsed().as_secs_f64());
            port.note(&format!(
                "run {turn} of {all}: status {code} after {seconds:.2} s"
            ))?;
        }
        if code != 0 {
            return Ok(code);
        }
    }
    Ok(0)
}

/// Runs the command and waits until it has ended and its output has been sent.
/// Only the first of several runs gets standard input.
fn run_once(
    start: &Start,
    port: &Port,
    running: &Running,
    input: Option<mpsc::Receiver<Vec<u8>>>,
) -> Result<u8> {
    let Some((program, arguments)) = start.command.split_first() else {
        bail!("no command");
    };
    let mut command = match start.terminal {
        // Only a session leader may have a controlling terminal, and
        // util-linux knows how to take one.
        Some(_) => {
            let mut command = Command::new("setsid");
            command.args(["--ctty", "--"]).arg(program);
            command
        }
        None => {
            let mut command = Command::new(program);
            command.process_group(0);
            command
        }
    };
    command
        .args(arguments)
        .env_clear()
        .envs(start.environment.iter().cloned());
    command.current_dir(&start.directory);

    let mut pumps = Vec::new();
    let mut stdin: Option<File> = None;
    if let Some(size) = start.terminal {
        let (ours, theirs) = terminal::open(size)?;
        let theirs: OwnedFd = theirs.into();
        command
            .stdin(theirs.try_clone()?)
            .stdout(theirs.try_clone()?)
            .stderr(theirs);
        pumps.push(pump(ours.try_clone()?, port.clone(), Kind::Stdout));
        stdin = Some(ours.try_clone()?);
        *running
            .terminal
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(ours);
    } else {
        let (out, out_end) = io::pipe()?;
        let (err, err_end) = io::pipe()?;
        command.stdout(out_end).stderr(err_end);
        pumps.push(pump(out, port.clone(), Kind::Stdout));
        pumps.push(pump(err, port.clone(), Kind::Stderr));
        if input.is_some() {
            let (in_end, ours) = io::pipe()?;
            command.stdin(in_end);
            stdin = Some(File::from(OwnedFd::from(ours)));
        } else {
            command.stdin(Stdio::null());
        }
    }

    let spawned = command.spawn();
    // The command's ends of the pipes must not stay open here.
    drop(command);
    let child = match spawned {
        Ok(child) => child,
        Err(error) => {
            port.note(&complaint(program, &start.directory, &error))?;
            return Ok(match error.kind() {
                io::ErrorKind::NotFound => status::NOT_FOUND,
                _ => status::NOT_EXECUTABLE,
            });
        }
    };
    let pid = i32::try_from(child.id())?;
    running.group.store(pid, Ordering::SeqCst);
    if let (Some(stdin), Some(input)) = (stdin, input) {
        let (port, is_terminal) = (port.clone(), start.terminal.is_some());
        thread::spawn(move || feed(stdin, &input, &port, is_terminal));
    }

    let code = reap_until(Pid::from_raw(pid))?;
    running.group.store(0, Ordering::SeqCst);
    // What the command left running holds the pipes open; the lab is its to use
    // only while it lives.
    let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
    for pump in pumps {
        // A pump that panicked or could not send has lost the host, as we shall.
        let _ = pump.join();
    }
    Ok(code)
}

fn complaint(program: &OsStr, directory: &Path, error: &io::Error) -> String {
    let (program, directory) = (program.display(), directory.display());
    format!("cannot run {program} in {directory}: {error}")
}

/// Copies output to the host until nobody can write any more.
fn pump(mut from: impl Read + Send + 'static, port: Port, kind: Kind) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut buffer = vec![0; 64 << 10];
        loop {
            match from.read(&mut buffer) {
                Ok(length @ 1..) => {
                    if port
                        .send(kind, buffer.get(..length).unwrap_or_default())
                        .is_err()
                    {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A terminal without users reads as an input/output error.
                Ok(0) | Err(_) => return,
            }
        }
    })
}

/// Gives the command its input, and the host credit for what was taken.
fn feed(mut stdin: File, input: &mpsc::Receiver<Vec<u8>>, port: &Port, is_terminal: bool) {
    const END_OF_FILE: &[u8] = b"\x04";
    let mut credit = STDIN_WINDOW;
    loop {
        if port.send(Kind::Credit, &credit.to_le_bytes()).is_err() {
            return;
        }
        let Ok(bytes) = input.recv() else { return };
        if bytes.is_empty() && !is_terminal {
            return;
        }
        // A command that closed its standard input wants no more of it; it is
        // granted nothing further, which stops the host from reading.
        let bytes_or_end = if bytes.is_empty() {
            END_OF_FILE
        } else {
            &bytes
        };
        if stdin.write_all(bytes_or_end).is_err() {
            return;
        }
        credit = u32::try_from(bytes.len()).unwrap_or(0);
    }
}

/// Reaps every process that ends, until it is this one; its exit status.
fn reap_until(pid: Pid) -> Result<u8> {
    loop {
        match reap(ANY) {
            Ok((ended, status)) if ended == pid => return Ok(exit_status(status)),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => bail!("waiting for the command: {error}"),
        }
    }
}

/// Leaves the scratch disk clean.
fn end_everything() {
    while !matches!(reap(ANY), Err(Errno::ECHILD)) {}
    if let Err(error) = nix::mount::umount(SCRATCH) {
        eprintln!("lab: cannot unmount {SCRATCH}: {error}");
        nix::unistd::sync();
    }
}
