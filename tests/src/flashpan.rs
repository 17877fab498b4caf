//! A run of our program, with its input, its output, and a limit on its time.

use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{Home, autopsy, fixtures};

/// Long enough for any single boot, even emulated and beside 19 others.
const PATIENCE: Duration = Duration::from_secs(180);

/// A command line of `flashpan` that is about to be run.
#[derive(Debug)]
pub struct Flashpan {
    command: Command,
    input: Vec<u8>,
    hold_input: bool,
    patience: Duration,
}

impl Flashpan {
    /// `flashpan` with these arguments.
    pub fn new<S: AsRef<OsStr>>(home: &Home, arguments: impl IntoIterator<Item = S>) -> Self {
        Self::program(home, fixtures::flashpan(), arguments)
    }

    /// Another program, which starts `flashpan` in its turn.
    pub fn program<S: AsRef<OsStr>>(
        home: &Home,
        program: impl AsRef<OsStr>,
        arguments: impl IntoIterator<Item = S>,
    ) -> Self {
        let mut command = Command::new(program);
        command.args(arguments).envs(home.environment());
        Self {
            command,
            input: Vec::new(),
            hold_input: false,
            patience: PATIENCE,
        }
    }

    /// `flashpan run` with these options, and a command for the guest.
    pub fn run<S: AsRef<OsStr>, C: AsRef<OsStr>>(
        home: &Home,
        options: impl IntoIterator<Item = S>,
        command: impl IntoIterator<Item = C>,
    ) -> Self {
        let mut words = vec![OsString::from("run")];
        words.extend(options.into_iter().map(|word| word.as_ref().to_owned()));
        words.push("--".into());
        words.extend(command.into_iter().map(|word| word.as_ref().to_owned()));
        Self::new(home, words)
    }

    /// `flashpan run` with a script for the shell of the built-in root.
    #[must_use]
    pub fn script(home: &Home, script: &str) -> Self {
        const NO_OPTIONS: [&str; 0] = [];
        Self::run(home, NO_OPTIONS, ["sh", "-c", script])
    }

    /// Gives it this on standard input, and then the end of it.
    #[must_use]
    pub fn input(mut self, bytes: Vec<u8>) -> Self {
        self.input = bytes;
        self
    }

    /// Keeps standard input open until [`Running::close_input`].
    #[must_use]
    pub fn hold_input(mut self) -> Self {
        self.hold_input = true;
        self
    }

    /// Sets an environment variable of the program itself.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// How long it may take before the test fails.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Starts it.
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    pub fn start(mut self) -> Running {
        let mut child = self
            .command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // As started from a shell: what is meant for it is not for us.
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {:?}: {error}", self.command));
        let mut stdin = child.stdin.take().expect("piped");
        let input = self.input;
        let held = if self.hold_input {
            Some(stdin)
        } else {
            // A program that does not read its input is none of our business.
            thread::spawn(move || drop(stdin.write_all(&input)));
            None
        };
        let stdout = Output::collect(child.stdout.take().expect("piped"));
        let stderr = Output::collect(child.stderr.take().expect("piped"));
        let words = format!("{:?}", self.command);
        Running {
            child,
            words,
            stdin: held,
            stdout,
            stderr,
            begun: Instant::now(),
            patience: self.patience,
        }
    }

    /// Runs it to its end.
    ///
    /// # Panics
    /// If it cannot be started, or takes too long.
    #[must_use]
    pub fn finish(self) -> Finished {
        self.start().finish()
    }
}

/// Output as it comes, collected by a thread.
#[derive(Debug)]
struct Output {
    pieces: mpsc::Receiver<Vec<u8>>,
    bytes: Vec<u8>,
}

impl Output {
    fn collect(mut from: impl Read + Send + 'static) -> Self {
        let (sender, pieces) = mpsc::channel();
        thread::spawn(move || {
            let mut buffer = vec![0; 64 << 10];
            while let Ok(length @ 1..) = from.read(&mut buffer) {
                if sender
                    .send(buffer.get(..length).unwrap_or_default().to_vec())
                    .is_err()
                {
                    return;
                }
            }
        });
        Self {
            pieces,
            bytes: Vec::new(),
        }
    }

    /// Waits for more; whether there was any in time.
    fn wait(&mut self, patience: Duration) -> bool {
        let piece = self.pieces.recv_timeout(patience);
        piece.map(|piece| self.bytes.extend(piece)).is_ok()
    }

    /// The rest, once the program has ended: whoever holds its output open
    /// longer than this is a process that it left behind.
    fn all(mut self) -> Vec<u8> {
        loop {
            match self.pieces.recv_timeout(Duration::from_secs(10)) {
                Ok(piece) => self.bytes.extend(piece),
                Err(mpsc::RecvTimeoutError::Disconnected) => return self.bytes,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    let so_far = String::from_utf8_lossy(&self.bytes);
                    panic!("flashpan has ended and its output is held open; so far: {so_far:?}")
                }
            }
        }
    }
}

/// A run of `flashpan` that has not ended.
#[derive(Debug)]
pub struct Running {
    child: Child,
    words: String,
    stdin: Option<ChildStdin>,
    stdout: Output,
    stderr: Output,
    begun: Instant,
    patience: Duration,
}

impl Running {
    /// Sends it a signal.
    ///
    /// # Panics
    /// If there is no such process.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("cannot signal flashpan");
    }

    /// Ends standard input that was held open.
    pub fn close_input(&mut self) {
        self.stdin = None;
    }

    /// Waits until standard output is at least this, from its beginning.
    ///
    /// # Panics
    /// If it takes too long or is something else.
    #[track_caller]
    pub fn wait_for_stdout(&mut self, text: &str) {
        while !self.stdout.bytes.starts_with(text.as_bytes()) {
            let so_far = String::from_utf8_lossy(&self.stdout.bytes).into_owned();
            assert!(
                self.stdout.wait(self.patience),
                "waited for {text:?}, saw {so_far:?}"
            );
        }
    }

    /// Waits until standard output has this line, and returns all of it so far.
    ///
    /// # Panics
    /// If it takes too long.
    #[track_caller]
    pub fn wait_for_line(&mut self, line: &str) -> String {
        loop {
            let so_far = String::from_utf8_lossy(&self.stdout.bytes).into_owned();
            if so_far.lines().any(|said| said == line) {
                return so_far;
            }
            assert!(
                self.stdout.wait(self.patience),
                "waited for {line:?}, saw {so_far:?}"
            );
        }
    }

    /// Waits until this is somewhere on standard error.
    ///
    /// # Panics
    /// If it takes too long.
    #[track_caller]
    pub fn wait_for_stderr(&mut self, text: &str) {
        while !String::from_utf8_lossy(&self.stderr.bytes).contains(text) {
            let so_far = String::from_utf8_lossy(&self.stderr.bytes).into_owned();
            assert!(
                self.stderr.wait(self.patience),
                "waited for {text:?}, saw {so_far:?}"
            );
        }
    }

    /// Its process id.
    ///
    /// # Panics
    /// If it has one that is none.
    #[must_use]
    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("a pid"))
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// If it takes too long: it is killed, and its output is in the message.
    #[must_use]
    pub fn finish(self) -> Finished {
        let pid = self.pid();
        let (sender, ended) = mpsc::channel();
        let mut child = self.child;
        thread::spawn(move || sender.send(child.wait()));
        let left = self.patience.saturating_sub(self.begun.elapsed());
        let (status, late) = match ended.recv_timeout(left) {
            Ok(status) => (status, None),
            Err(_) => {
                let doing = autopsy(pid.as_raw());
                let _ = kill(pid, Signal::SIGKILL);
                (ended.recv().expect("the waiter ended"), Some(doing))
            }
        };
        let status = status.expect("cannot wait for flashpan");
        let elapsed = self.begun.elapsed();
        let stdout = self.stdout.all();
        let stderr = String::from_utf8_lossy(&self.stderr.all()).into_owned();
        let finished = Finished {
            words: self.words,
            status: status.code(),
            stdout,
            stderr,
            elapsed,
        };
        if let Some(doing) = late {
            panic!(
                "it takes longer than {:?}\n{finished}\n{doing}",
                self.patience
            );
        }
        finished
    }
}

/// A run of `flashpan` that has ended.
#[derive(Debug)]
pub struct Finished {
    words: String,
    /// The exit status; none if a signal ended it.
    pub status: Option<i32>,
    /// Everything it wrote to standard output.
    pub stdout: Vec<u8>,
    /// Everything it wrote to standard error.
    pub stderr: String,
    /// From its start to its end.
    pub elapsed: Duration,
}

impl Finished {
    /// Fails unless it ended with this status.
    ///
    /// # Panics
    /// If so, with its output.
    #[track_caller]
    pub fn expect_status(&self, status: i32) -> &Self {
        assert_eq!(self.status, Some(status), "the exit status\n{self}");
        self
    }

    /// Fails unless standard output is exactly this.
    ///
    /// # Panics
    /// If so, with its output.
    #[track_caller]
    pub fn expect_stdout(&self, text: &str) -> &Self {
        assert_eq!(self.text(), text, "standard output\n{self}");
        self
    }

    /// Fails unless standard error is one line with all of these words in it.
    ///
    /// # Panics
    /// If so, with its output.
    #[track_caller]
    pub fn expect_complaint(&self, words: &[&str]) -> &Self {
        let lines: Vec<_> = self
            .stderr
            .lines()
            .filter(|line| !line.trim().is_empty())
            .collect();
        assert_eq!(lines.len(), 1, "one line of complaint\n{self}");
        let has_all = words.iter().all(|word| self.stderr.contains(word));
        assert!(has_all, "a complaint with {words:?}\n{self}");
        self
    }

    /// Standard output as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

impl std::fmt::Display for Finished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // What matters most is at the end.
        let cut = |text: &str| {
            let count = text.chars().count();
            let end: String = text.chars().skip(count.saturating_sub(2000)).collect();
            match count > 4000 {
                true => text.chars().take(2000).collect::<String>() + "\n[...]\n" + &end,
                false => text.to_owned(),
            }
        };
        writeln!(
            f,
            "{} after {:?}: {:?}",
            self.words, self.elapsed, self.status
        )?;
        writeln!(f, "--- standard output\n{}", cut(&self.text()))?;
        writeln!(f, "--- standard error\n{}", cut(&self.stderr))
    }
}
