//! What a supervisor gets on an exec connection, with real programs of this
//! machine, over a socket pair instead of vsock.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use flashpan_protocol::agent::{
    Bytes, Command, ExecInput, ExecOutput, ExecRequest, ExitStatus, GuestMessage, MAX_DATA,
    MAX_FRAME, STDIN_WINDOW, StartFailure, StartFailureKind, TerminalSize,
};
use flashpan_protocol::frame::{self, Decoder};
use flashpan_protocol::privilege::Confinement;
use nix::sys::epoll::EpollEvent;

use crate::agent::Agent;
use crate::anchors::Anchors;
use crate::cgroup::Tree;
use crate::connection::Connection;
use crate::device_tree::DeviceTree;
use crate::poller::Poller;
use crate::spawn::Privileges;

mod ends;
mod privileged;
mod streams;
mod terminals;

/// No test takes this long unless something hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// The supervisor's end of a connection, and the agent that serves it.
struct Session {
    stream: UnixStream,
    decoder: Decoder,
    agent: JoinHandle<()>,
}

/// What the agent has for programs.
type Place = (Option<Tree>, Option<DeviceTree>);

/// Everything that a program gave back.
#[derive(Debug, Default)]
struct Outcome {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    status: Option<ExitStatus>,
    credit: usize,
    stdin_closed: bool,
}

fn request(command: Command) -> ExecRequest {
    ExecRequest {
        command,
        env: Vec::new(),
        working_dir: None,
        make_working_dir: false,
        user: None,
        stdin: false,
        terminal: None,
        linger: false,
        confinement: usual_confinement(),
    }
}

/// Says that programs are to run in namespaces of their own where a test does not
/// say it itself.
const NAMESPACES: &str = "GUEST_INIT_TEST_NAMESPACES";

fn usual_confinement() -> Confinement {
    match std::env::var_os(NAMESPACES) {
        Some(_) => Confinement {
            // A test's agent has no `/dev` for them.
            system_paths: false,
            ..Confinement::CONFINED
        },
        None => Confinement::PRIVILEGED,
    }
}

fn bytes(text: &str) -> Bytes {
    Bytes::from(text.as_bytes().to_vec())
}

fn argv(arguments: &[&str]) -> ExecRequest {
    request(Command::Argv(arguments.iter().map(|a| bytes(a)).collect()))
}

fn shell(line: &str) -> ExecRequest {
    request(Command::Shell(bytes(line)))
}

fn privileges() -> Privileges {
    if nix::unistd::geteuid().is_root() {
        Privileges::Set
    } else {
        Privileges::Keep
    }
}

impl Session {
    fn connect(place: Place) -> Self {
        let (stream, guest) = UnixStream::pair().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        guest.set_nonblocking(true).unwrap();
        let agent = std::thread::spawn(move || serve(place, guest.into()));
        Self {
            stream,
            decoder: Decoder::new(MAX_FRAME),
            agent,
        }
    }

    fn start(request: ExecRequest) -> Self {
        Self::start_in(None, request)
    }

    fn start_in(groups: Option<Tree>, request: ExecRequest) -> Self {
        Self::start_at((groups, None), request)
    }

    fn start_at(place: Place, request: ExecRequest) -> Self {
        let mut session = Self::connect(place);
        session.send(&ExecInput::Start(Box::new(request)));
        session
    }

    fn send(&mut self, message: &ExecInput) {
        frame::write(&mut self.stream, message, MAX_FRAME).unwrap();
    }

    fn next(&mut self) -> Option<ExecOutput> {
        self.decoder.read_message(&mut self.stream).unwrap()
    }

    fn started(&mut self) -> u32 {
        match self.next() {
            Some(ExecOutput::Started { pid }) => pid,
            other => panic!("not started: {other:?}"),
        }
    }

    /// Reads output until `text` was seen.
    fn until(&mut self, text: &str) {
        let mut seen = Vec::new();
        while !String::from_utf8_lossy(&seen).contains(text) {
            match self.next() {
                Some(ExecOutput::Stdout(piece)) => seen.extend(piece),
                Some(ExecOutput::Started { .. } | ExecOutput::StdinCredit(_)) => {}
                other => panic!(
                    "{other:?} before {text:?}; seen: {}",
                    String::from_utf8_lossy(&seen)
                ),
            }
        }
    }

    /// Reads to the end of the connection and waits for the agent.
    fn finish(mut self) -> Outcome {
        let mut outcome = Outcome::default();
        while let Some(message) = self.next() {
            assert_eq!(outcome.status, None, "a frame after the last: {message:?}");
            match message {
                ExecOutput::Started { .. } => {}
                ExecOutput::StartFailed(failure) => panic!("{failure:?}"),
                ExecOutput::Stdout(piece) => outcome.stdout.extend(piece),
                ExecOutput::Stderr(piece) => outcome.stderr.extend(piece),
                ExecOutput::StdinCredit(credit) => outcome.credit += credit as usize,
                ExecOutput::StdinClosed => outcome.stdin_closed = true,
                ExecOutput::Exited(status) => outcome.status = Some(status),
            }
        }
        self.agent.join().unwrap();
        outcome
    }

    fn failure(mut self) -> StartFailure {
        let Some(ExecOutput::StartFailed(failure)) = self.next() else {
            panic!("it was started");
        };
        assert_eq!(self.next(), None, "a frame after the last");
        self.agent.join().unwrap();
        failure
    }
}

/// The agent's loop for one connection; returns when the agent has dropped it.
fn serve(place: Place, socket: OwnedFd) {
    drop(served(place, socket));
}

fn served((groups, devices): Place, socket: OwnedFd) -> Agent {
    let poller = Poller::new().unwrap();
    let anchors = Anchors::take().unwrap();
    let mut agent = Agent::new(&poller, anchors, groups, devices, privileges());
    agent.connect(socket);
    let mut events = [EpollEvent::empty(); 16];
    while !agent.is_idle() {
        let count = poller.wait(&mut events, agent.deadline()).unwrap();
        for event in &events[..count] {
            agent.handle(event.data(), event.events());
        }
        agent.expire(Instant::now());
    }
    agent
}

/// What the supervisor is told of a program by itself.
fn told(request: ExecRequest) -> Vec<GuestMessage> {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let start = ExecInput::Start(Box::new(request));
    frame::write(&mut ours, &start, MAX_FRAME).unwrap();
    let mut agent = served((None, None), theirs.into());
    let (mut boot, theirs) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    let mut connection = Connection::new(&Poller::new().unwrap(), theirs.into(), 0);
    agent.events().send(&mut connection);
    connection.flush();
    drop(connection);
    let mut decoder = Decoder::new(MAX_FRAME);
    std::iter::from_fn(|| decoder.read_message(&mut boot).unwrap()).collect()
}

fn run(request: ExecRequest) -> Outcome {
    Session::start(request).finish()
}

fn stdout(request: ExecRequest) -> String {
    let outcome = run(request);
    assert_eq!(outcome.status, Some(ExitStatus::Code(0)), "{outcome:?}");
    String::from_utf8(outcome.stdout).unwrap()
}

fn start_failure(request: ExecRequest) -> (StartFailureKind, String) {
    let failure = Session::start(request).failure();
    (failure.kind, failure.message)
}

fn exists(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// Whether `pid` is a process that has not ended; a zombie that its new parent
/// has not reaped yet has. A killed process may still be on its way out.
fn lives(pid: u32) -> bool {
    let stat = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let start = Instant::now();
    loop {
        let stat = stat();
        if stat.is_empty() || stat.contains(") Z ") || stat.contains(") X ") {
            return false;
        }
        if stat.contains(") S ") && start.elapsed() > Duration::from_millis(500) {
            return true;
        }
        assert!(start.elapsed() < PATIENCE);
        std::thread::yield_now();
    }
}

#[test]
fn arguments_reach_the_program_unchanged() {
    let odd = ["printf", "%s|", "", "a b", "$HOME", "*", "ü\n"];
    assert_eq!(stdout(argv(&odd)), "|a b|$HOME|*|ü\n|");
}

#[test]
fn a_shell_line_is_run_by_the_shell_and_streams_are_kept_apart() {
    let outcome = run(shell("echo $((6*7)); echo oops >&2; exit 3"));
    assert_eq!(outcome.stdout, b"42\n");
    assert_eq!(outcome.stderr, b"oops\n");
    assert_eq!(outcome.status, Some(ExitStatus::Code(3)));
}

#[test]
fn every_exit_code_passes_and_signals_are_told_from_codes() {
    for code in [0_u8, 1, 42, 127, 137, 255] {
        let outcome = run(shell(&format!("exit {code}")));
        assert_eq!(outcome.status, Some(ExitStatus::Code(code)));
    }
    for signal in [1, 9, 11, 15, 34, 64] {
        let outcome = run(shell(&format!("kill -{signal} $$")));
        assert_eq!(outcome.status, Some(ExitStatus::Signal(signal)));
    }
}

#[test]
#[allow(unsafe_code)] // There is no safe way to ignore a signal.
fn no_signal_is_ignored_or_blocked_whatever_this_process_does() {
    use nix::sys::signal::{SigHandler, Signal, signal};
    // SAFETY: ignoring a signal runs no handler; nothing here expects this one.
    unsafe { signal(Signal::SIGUSR2, SigHandler::SigIgn) }.unwrap();
    let masks = stdout(argv(&["grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status"]));
    for line in masks.lines() {
        assert_eq!(
            line.split_whitespace().last(),
            Some("0000000000000000"),
            "{masks}"
        );
    }
    assert_eq!(masks.lines().count(), 2, "{masks}");
}

#[test]
fn the_environment_is_what_was_asked_for_plus_defaults() {
    let mut asked = argv(&["env"]);
    asked.env = vec![
        (bytes("A"), bytes("1")),
        (bytes("B"), bytes("x=y")),
        (bytes("A"), bytes("2")),
    ];
    let seen = stdout(asked);
    let mut lines: Vec<&str> = seen.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines.len(), 4, "{lines:?}");
    assert_eq!(lines[..2], ["A=2", "B=x=y"]);
    assert!(lines[2].starts_with("HOME=/"), "{lines:?}");
    assert!(lines[3].starts_with("PATH=/usr/local/sbin:"), "{lines:?}");
}

#[test]
fn given_variables_win_over_defaults() {
    let mut asked = argv(&["/usr/bin/env"]);
    asked.env = vec![
        (bytes("PATH"), bytes("/nowhere")),
        (bytes("HOME"), bytes("")),
    ];
    assert_eq!(stdout(asked), "PATH=/nowhere\nHOME=\n");
}

#[test]
fn a_program_that_cannot_be_started_is_told_as_one_that_ended_at_once() {
    for (program, code) in [("no-such-program", 127), ("/etc/passwd", 126)] {
        let told = told(argv(&[program]));
        let [
            GuestMessage::ProgramStarted(started),
            GuestMessage::ProgramEnded(ended),
        ] = told.as_slice()
        else {
            panic!("{told:?}")
        };
        assert_eq!(started.argv, [Bytes::from(program.as_bytes().to_vec())]);
        assert_eq!((started.pid, ended.pid, started.id), (0, 0, ended.id));
        assert_eq!(ended.status, ExitStatus::Code(code));
    }
    // This is no program's failure.
    let mut nobody = argv(&["true"]);
    nobody.user = Some("nobody-of-that-name".to_owned());
    assert_eq!(told(nobody), []);
}

#[test]
fn a_working_directory_that_is_missing_is_made_when_asked_for() {
    let parent = tempfile("made");
    let path = parent.join("a/b");
    let at = |path: &std::path::Path| ExecRequest {
        working_dir: Some(bytes(path.to_str().unwrap())),
        make_working_dir: true,
        ..argv(&["pwd"])
    };
    for _ in 0..2 {
        assert_eq!(stdout(at(&path)), format!("{}\n", path.display()));
    }
    let file = parent.join("file");
    std::fs::write(&file, "").unwrap();
    let failure = start_failure(at(&file.join("x")));
    assert_eq!(failure.0, StartFailureKind::BadRequest);
    assert!(failure.1.contains("working directory"), "{failure:?}");
    std::fs::remove_dir_all(parent).unwrap();
}

#[test]
fn the_working_directory_is_the_root_or_what_was_asked_for() {
    assert_eq!(stdout(argv(&["pwd"])), "/\n");
    let mut asked = argv(&["pwd"]);
    asked.working_dir = Some(bytes("/usr/bin"));
    assert_eq!(stdout(asked), "/usr/bin\n");
}

#[test]
fn failures_to_start_are_told_apart() {
    use StartFailureKind::{BadRequest, NotExecutable, NotFound};
    let directory = tempfile("failures");
    let file = |name: &str, content: &str, executable: bool| {
        use std::os::unix::fs::PermissionsExt;
        let path = directory.join(name);
        std::fs::write(&path, content).unwrap();
        let mode = if executable { 0o755 } else { 0o644 };
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let cases = [
        (
            argv(&["no-such-program"]),
            NotFound,
            "\"no-such-program\" not found in the guest's PATH",
        ),
        (
            argv(&["/no/such/program"]),
            NotFound,
            "\"/no/such/program\" not found in the guest",
        ),
        (argv(&[""]), NotFound, "not found"),
        (argv(&[]), BadRequest, "no command"),
        (argv(&["/usr"]), NotExecutable, "is a directory"),
        (
            argv(&[&file("data", "x", false)]),
            NotExecutable,
            "Permission denied",
        ),
        (
            argv(&[&file("script", "echo hi\n", true)]),
            NotExecutable,
            "exec format error",
        ),
        (
            argv(&[&file("lost", "#!/no/such/shell\n", true)]),
            NotFound,
            "the interpreter",
        ),
        (
            argv(&["echo", "a\0b"]),
            BadRequest,
            "argument 1 has a NUL at byte 1",
        ),
        (
            shell("echo \0"),
            BadRequest,
            "argument 2 has a NUL at byte 5",
        ),
        (
            ExecRequest {
                working_dir: Some(bytes("/no/such/dir")),
                ..argv(&["true"])
            },
            BadRequest,
            "working directory \"/no/such/dir\": No such file",
        ),
        (
            ExecRequest {
                user: Some("no-such-user".into()),
                ..argv(&["true"])
            },
            BadRequest,
            "no user \"no-such-user\"",
        ),
        (
            ExecRequest {
                env: vec![(bytes("A=B"), bytes("c"))],
                ..argv(&["true"])
            },
            BadRequest,
            "\"A=B\" is not a name",
        ),
        (
            ExecRequest {
                env: vec![(bytes("A"), bytes("\0"))],
                ..argv(&["true"])
            },
            BadRequest,
            "environment entry 0 has a NUL",
        ),
        (
            argv(&["true", &"x".repeat(200_000)]),
            BadRequest,
            "too long",
        ),
    ];
    for (asked, kind, message) in cases {
        let shown = format!("{asked:.200?}");
        let failure = start_failure(asked);
        assert_eq!(failure.0, kind, "{failure:?} for {shown}");
        assert!(failure.1.contains(message), "{failure:?} for {shown}");
        assert!(!failure.1.contains('\n'), "more than one line: {failure:?}");
    }
    std::fs::remove_dir_all(directory).unwrap();
}

fn tempfile(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("guest-init-{}-{name}", std::process::id()));
    std::fs::create_dir(&path).unwrap();
    path
}

#[test]
fn the_program_has_three_descriptors_and_a_clean_state() {
    let seen = stdout(argv(&["ls", "/proc/self/fd"]));
    // The fourth is the directory that `ls` itself reads.
    assert_eq!(seen, "0\n1\n2\n3\n");
    let seen = stdout(argv(&["cat", "/proc/self/status"]));
    let field = |name: &str| {
        let line = seen
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap();
        u64::from_str_radix(line.trim(), 16).unwrap()
    };
    assert_eq!(field("SigBlk:"), 0);
    // This test ignores it, as Rust programs do.
    assert_eq!(field("SigIgn:") & (1 << (13 - 1)), 0, "SIGPIPE is ignored");
    assert_eq!(field("NoNewPrivs:"), 0);
    // Leader of its own session and process group.
    let seen = stdout(shell("set -- $(cat /proc/$$/stat); echo $1 $5 $6"));
    let ids: Vec<&str> = seen.split_whitespace().collect();
    assert_eq!((ids[0], ids[0]), (ids[1], ids[2]));
}
