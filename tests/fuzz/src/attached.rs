//! What a client of a VM hears: from the VM's supervisor, and through it from its
//! guest. The same runs over the corpus in `sandbox/tests/fuzz_corpus.rs`.
//!
//! A supervisor that says what the fuzzer wants takes the place of the real one;
//! everything behind its socket is the real thing.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use flashpan::state::{Record, Vm, Vms};
use flashpan::{CopyOptions, ExecOptions, ReadOptions, Sandbox, WatchOptions};
use flashpan_protocol::frame::{self, Decoder};
use flashpan_protocol::supervisor::{Answer, MAX_ANSWER, MAX_REQUEST, Request, VERSION};
use nix::fcntl::{FcntlArg, fcntl};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Notify;

/// Most that is asked of one guest or supervisor: what it sends has an end, and so
/// has what is made of it.
const WITHIN: Duration = Duration::from_secs(24 * 60 * 60);

/// Bytes that a copy may take here.
const COPY_LIMIT: u64 = 20_000;

/// A VM that seems to run, and a place for what comes out of it.
struct Scene {
    base: tempfile::TempDir,
    vm: Vm,
    _lock: File,
}

impl Scene {
    fn new() -> Self {
        let base = tempfile::tempdir_in("/dev/shm").unwrap();
        let vms = Vms::at(base.path().join("state"));
        let vm = vms
            .create()
            .unwrap()
            .publish(Record::new(().into()))
            .unwrap();
        let lock = vm.directory().join("lock");
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .open(lock)
            .unwrap();
        lock.write_all(b"r").unwrap();
        let exclusive = nix::libc::flock {
            l_type: i16::try_from(nix::libc::F_WRLCK).unwrap(),
            l_whence: i16::try_from(nix::libc::SEEK_SET).unwrap(),
            l_start: 0,
            l_len: 0,
            l_pid: 0,
        };
        fcntl(&lock, FcntlArg::F_OFD_SETLK(&exclusive)).unwrap();
        let vm = vms.find(vm.id()).unwrap();
        let outside = base.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("sentinel"), "nobody writes here").unwrap();
        let place = base.path().join("place");
        fs::create_dir(&place).unwrap();
        symlink(&outside, place.join("link-out")).unwrap();
        symlink(outside.join("sentinel"), place.join("link-to-sentinel")).unwrap();
        Self {
            base,
            vm,
            _lock: lock,
        }
    }

    fn place(&self) -> PathBuf {
        self.base.path().join("place")
    }

    /// Everything that changes of what lies beside the place but by reading.
    fn outside(&self) -> BTreeMap<PathBuf, (u64, u64, i64, i64)> {
        let outside = self.base.path().join("outside");
        let entries = fs::read_dir(&outside).unwrap();
        let paths = entries.map(|entry| entry.unwrap().path());
        let of = |path: PathBuf| {
            let meta = path.symlink_metadata().unwrap();
            (
                path,
                (meta.ino(), meta.nlink(), meta.ctime(), meta.ctime_nsec()),
            )
        };
        paths.chain([outside.clone()]).map(of).collect()
    }
}

/// What is said on each connection, one after the other.
struct Script(Vec<u8>);

impl Script {
    /// A connection's part: pieces of a byte that says what they are, two bytes of
    /// length, and content. Nothing more to say is the end of the connection.
    fn part(&mut self) -> Vec<u8> {
        let mut said = Vec::new();
        while let [kind, low, high, ..] = *self.0 {
            let length = usize::from(u16::from_le_bytes([low, high]));
            let end = self.0.len().min(length.saturating_add(3));
            let content: Vec<u8> = self.0.drain(..end).skip(3).collect();
            // A message, or bytes as they are.
            if kind & 1 == 0 {
                said.extend(u32::try_from(content.len()).unwrap().to_le_bytes());
            }
            said.extend(content);
            if kind & 2 != 0 {
                break;
            }
        }
        said
    }
}

/// The first byte says what the client wants, the second how the supervisor
/// behaves, and the rest what is heard. Nothing is touched beside the place for
/// what is copied, no path or name leads elsewhere, and a complaint is one line.
pub fn attached(data: &[u8]) {
    let [wanted, manners, rest @ ..] = data else {
        return;
    };
    let scene = Scene::new();
    let before = scene.outside();
    let supervisor = Rc::new(Supervisor {
        manners: *manners,
        ends: matches!(wanted % 12, 4 | 5),
        ended: Notify::new(),
        script: RefCell::new(Script(rest.to_vec())),
    });
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    // Time passes when nothing else happens: nobody here is waited for.
    let runtime = runtime.enable_all().start_paused(true).build().unwrap();
    let tasks = tokio::task::LocalSet::new();
    tasks.block_on(&runtime, async {
        let socket = scene.vm.directory().join("control.sock");
        let listener = UnixListener::bind(socket).unwrap();
        let server = tokio::task::spawn_local(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::task::spawn_local(Rc::clone(&supervisor).serve(stream));
            }
        });
        let wanting = tokio::time::timeout(WITHIN, want(&scene, *wanted));
        wanting.await.expect("an end");
        server.abort();
    });
    drop(runtime);
    assert_eq!(scene.outside(), before, "what lies beside the place");
}

/// What takes the place of the real one.
struct Supervisor {
    manners: u8,
    /// Whether the VM ends with the connection to its guest. No time passes while a
    /// thread writes a copy, so nobody can wait for the news.
    ends: bool,
    ended: Notify,
    script: RefCell<Script>,
}

impl Supervisor {
    /// One connection.
    async fn serve(self: Rc<Self>, mut stream: UnixStream) {
        let mut decoder = Decoder::new(MAX_REQUEST);
        let mut requests = Vec::new();
        let mut buffer = vec![0; 4096];
        while requests.len() < 2 {
            match stream.read(&mut buffer).await {
                Ok(length @ 1..) => decoder.extend(&buffer[..length]),
                _ => return,
            }
            while let Some(request) = decoder.next_message::<Request>().unwrap() {
                requests.push(request);
            }
        }
        let waits = requests[1] == Request::Wait;
        let dials = matches!(requests[1], Request::Dial { .. });
        let mut said = Vec::new();
        if waits || self.manners & 1 == 0 {
            let hello = Answer::Hello { version: VERSION };
            said.extend(frame::encode(&hello, MAX_ANSWER).unwrap());
        }
        if dials && self.manners & 2 == 0 {
            said.extend(frame::encode(&Answer::Accepted, MAX_ANSWER).unwrap());
        }
        if !waits || self.manners & 4 != 0 {
            said.extend(self.script.borrow_mut().part());
        }
        // A client that has heard enough does not take all of it.
        let _ = stream.write_all(&said).await;
        if waits && self.manners & 4 == 0 {
            self.ended.notified().await;
        }
        let _ = stream.shutdown().await;
        if dials && self.ends {
            self.ended.notify_one();
        }
        // What the client says is taken, until it closes.
        while matches!(stream.read(&mut buffer).await, Ok(1..)) {}
    }
}

/// Wants something of the VM, and looks at what comes.
async fn want(scene: &Scene, wanted: u8) {
    let sandbox = match Sandbox::attach(&scene.vm).await {
        Ok(sandbox) => sandbox,
        Err(error) => return one_line(&error),
    };
    let done = match wanted % 12 {
        0 => changes(&sandbox).await,
        1 => entries(&sandbox).await,
        2 => sandbox.stat("/x").await.map(drop),
        3 => content(&sandbox).await,
        4 | 5 => copy_out(scene, &sandbox, wanted).await,
        6 => programs(&sandbox).await,
        7 => sandbox.activity().await.map(drop),
        8 => sandbox.usage().await.map(drop),
        9 => sandbox.spawn(ExecOptions::argv(["x"])).await.map(drop),
        10 => sandbox.wait_for_command().await.map(drop),
        _ => output(&sandbox).await,
    };
    if let Err(error) = done {
        one_line(&error);
    }
    if let Some(exit) = sandbox.exit() {
        one_line(&exit.reason);
    }
}

async fn changes(sandbox: &Sandbox) -> flashpan::Result<()> {
    let mut watch = sandbox.watch("/x", WatchOptions::new()).await?;
    while let Some(change) = watch.next().await? {
        let moved = change.kind == flashpan::ChangeKind::Moved;
        assert_eq!(change.to.is_some(), moved);
        for path in [Some(change.path), change.to].into_iter().flatten() {
            let inner = |part| matches!(part, Component::Normal(_));
            assert!(path.components().all(inner), "{path:?}");
        }
    }
    Ok(())
}

async fn entries(sandbox: &Sandbox) -> flashpan::Result<()> {
    for entry in sandbox.read_directory("/x").await? {
        let name = Path::new(&entry.name);
        let mut parts = name.components();
        let only = parts
            .next()
            .is_some_and(|part| matches!(part, Component::Normal(_)));
        assert!(only && parts.next().is_none(), "{name:?}");
        let _ = entry.info();
    }
    Ok(())
}

async fn content(sandbox: &Sandbox) -> flashpan::Result<()> {
    let options = ReadOptions::new().length(1000);
    let mut reader = sandbox.open_file("/x", options).await?;
    let mut length = 0;
    while let Some(chunk) = reader.next_chunk().await? {
        length += chunk.len();
        assert!(length <= 1000, "more than was asked for");
    }
    Ok(())
}

async fn copy_out(scene: &Scene, sandbox: &Sandbox, wanted: u8) -> flashpan::Result<()> {
    let (from, to) = match wanted / 12 % 3 {
        0 => ("/x", scene.place()),
        1 => ("/x/.", scene.place()),
        _ => ("/x", scene.place().join("new")),
    };
    let options = CopyOptions::new().limit(COPY_LIMIT);
    let copied = sandbox.copy_out(from, to, options).await;
    let mut left = vec![scene.place()];
    let (mut bytes, mut count) = (0, 0);
    while let Some(path) = left.pop() {
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            let metadata = entry.metadata().unwrap();
            count += 1;
            if metadata.is_file() {
                bytes += metadata.len();
                assert_eq!(metadata.mode() & 0o7000, 0, "{:?}", entry.path());
            }
            if metadata.is_dir() {
                left.push(entry.path());
            }
        }
    }
    assert!(bytes <= COPY_LIMIT, "{bytes} bytes");
    let copied = copied?;
    assert!(copied.bytes <= COPY_LIMIT && bytes <= copied.bytes);
    // What was there, and of what came what was not replaced by more of it.
    assert!(count <= copied.entries + 2, "{count} of {copied:?}");
    assert!(u64::try_from(copied.skipped.len()).unwrap() <= copied.skipped_count);
    Ok(())
}

async fn programs(sandbox: &Sandbox) -> flashpan::Result<()> {
    let programs = sandbox.programs().await?;
    assert!(programs.is_sorted_by_key(|program| program.pid));
    for program in programs {
        one_line(&program.command);
        assert!(program.command.chars().count() <= 1025);
        assert!(program.state.is_ascii_alphabetic());
    }
    Ok(())
}

async fn output(sandbox: &Sandbox) -> flashpan::Result<()> {
    let process = sandbox.exec(ExecOptions::argv(["x"])).await?;
    let collected = process.collect(500).await?;
    assert!(collected.stdout.len() <= 500 && collected.stderr.len() <= 500);
    Ok(())
}

fn one_line(error: &impl Display) {
    let text = error.to_string();
    assert!(!text.contains(char::is_control), "{text:?}");
    assert!(text.chars().count() < 2000, "{text}");
}
