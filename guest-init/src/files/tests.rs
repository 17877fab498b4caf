//! What a supervisor gets on a file connection, from the real agent, over a
//! socket pair instead of vsock.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use flashpan_protocol::agent::{Bytes, MAX_DATA};
use flashpan_protocol::file::{
    FileFailureKind, FileInput, FileOutput, FileRequest, FileStat, MAX_ENTRIES, MAX_FILE_FRAME,
    WriteRequest,
};
use flashpan_protocol::frame::{self, Decoder};
use nix::sys::epoll::EpollEvent;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use super::FILES_MAX;
use crate::agent::Agent;
use crate::anchors::Anchors;
use crate::poller::Poller;
use crate::spawn::Privileges;
use crate::testing::unique;

mod hostile;
mod privileged;
mod trees;
mod watches;

/// No test takes this long unless something hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// A directory that goes with the test.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        loop {
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            let path = std::env::temp_dir().join(format!("files-{}-{count}", unique()));
            // Tests in namespaces of their own share the name of this process.
            match fs::create_dir(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                made => {
                    made.unwrap();
                    return Self(path);
                }
            }
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(&self.0)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The supervisor's end of a connection, and the agent that serves it.
struct Session {
    stream: UnixStream,
    decoder: Decoder,
    agent: JoinHandle<()>,
}

/// Everything that an operation gave back.
#[derive(Debug, Default)]
struct Answer {
    stat: Option<FileStat>,
    data: Vec<u8>,
    entries: BTreeMap<Vec<u8>, FileStat>,
    /// How many frames of entries there were.
    frames: usize,
}

impl Session {
    fn start(request: FileRequest) -> Self {
        let (stream, guest) = UnixStream::pair().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        guest.set_nonblocking(true).unwrap();
        let agent = std::thread::spawn(move || serve(guest.into()));
        let mut session = Self {
            stream,
            decoder: Decoder::new(MAX_FILE_FRAME),
            agent,
        };
        session.send(&FileInput::Start(request));
        session
    }

    fn send(&mut self, message: &FileInput) {
        frame::write(&mut self.stream, message, MAX_FILE_FRAME).unwrap();
    }

    fn next(&mut self) -> Option<FileOutput> {
        self.decoder.read_message(&mut self.stream).unwrap()
    }

    /// Reads to the last frame and waits for the agent.
    fn finish(mut self) -> Result<Answer, (FileFailureKind, String)> {
        let mut answer = Answer::default();
        let result = loop {
            match self
                .next()
                .expect("the connection ended without a last frame")
            {
                FileOutput::Info(stat) => answer.stat = Some(stat),
                FileOutput::Data(data) => {
                    assert!((1..=MAX_DATA).contains(&data.len()));
                    answer.data.extend(data);
                }
                FileOutput::Entries(entries) => {
                    assert!((1..=MAX_ENTRIES).contains(&entries.len()));
                    answer.frames += 1;
                    for entry in entries {
                        let twice = answer.entries.insert(entry.name.into_vec(), entry.stat);
                        assert_eq!(twice, None, "listed twice");
                    }
                }
                FileOutput::Done => break Ok(answer),
                FileOutput::Failed(failure) => break Err((failure.kind, failure.message)),
                other => panic!("{other:?}"),
            }
        };
        if result.is_ok() {
            assert_eq!(self.next(), None, "a frame after the last");
        }
        drop(self.stream);
        self.agent.join().unwrap();
        result
    }

    /// Closes the connection and waits until the agent has nothing to do.
    fn abandon(self) {
        drop(self.stream);
        self.agent.join().unwrap();
    }
}

fn agent() -> (Poller, Agent) {
    let (poller, anchors) = (Poller::new().unwrap(), Anchors::take().unwrap());
    let agent = Agent::new(&poller, anchors, None, None, Privileges::Keep);
    (poller, agent)
}

/// The agent's loop for one connection; returns when the agent has dropped it.
fn serve(socket: OwnedFd) {
    let (poller, mut agent) = agent();
    agent.connect_files(socket);
    run_until_idle(&poller, &mut agent);
}

fn run_until_idle(poller: &Poller, agent: &mut Agent) {
    let mut events = [EpollEvent::empty(); 16];
    while !agent.is_idle() {
        let deadline = Instant::now() + PATIENCE;
        let count = poller.wait(&mut events, Some(deadline)).unwrap();
        assert!(count > 0, "an operation hangs");
        for event in &events[..count] {
            agent.handle(event.data(), event.events());
        }
    }
}

fn bytes(path: impl AsRef<Path>) -> Bytes {
    Bytes::from(path.as_ref().as_os_str().as_bytes())
}

fn write_request(path: impl AsRef<Path>) -> WriteRequest {
    WriteRequest {
        path: bytes(path),
        mode: None,
        uid: None,
        gid: None,
        parents: false,
    }
}

fn write(request: WriteRequest, content: &[u8]) -> Result<(), (FileFailureKind, String)> {
    let mut session = Session::start(FileRequest::Write(request));
    for piece in content.chunks(MAX_DATA) {
        session.send(&FileInput::Data(piece.to_vec()));
    }
    session.send(&FileInput::End);
    session.finish().map(drop)
}

fn read(path: impl AsRef<Path>) -> Result<Vec<u8>, (FileFailureKind, String)> {
    read_part(path, 0, None).map(|answer| answer.data)
}

fn read_part(
    path: impl AsRef<Path>,
    offset: u64,
    length: Option<u64>,
) -> Result<Answer, (FileFailureKind, String)> {
    let path = bytes(path);
    Session::start(FileRequest::Read {
        path,
        offset,
        length,
    })
    .finish()
}

fn list(path: impl AsRef<Path>) -> Result<Answer, (FileFailureKind, String)> {
    let path = bytes(path);
    Session::start(FileRequest::List { path }).finish()
}

fn stat(path: impl AsRef<Path>, follow: bool) -> Result<FileStat, (FileFailureKind, String)> {
    let path = bytes(path);
    let answer = Session::start(FileRequest::Stat { path, follow }).finish();
    answer.map(|answer| answer.stat.unwrap())
}

fn mkdir(
    path: impl AsRef<Path>,
    mode: u32,
    parents: bool,
) -> Result<(), (FileFailureKind, String)> {
    let path = bytes(path);
    Session::start(FileRequest::MakeDirectory {
        path,
        mode,
        parents,
    })
    .finish()
    .map(drop)
}

fn remove(path: impl AsRef<Path>, recursive: bool) -> Result<(), (FileFailureKind, String)> {
    let path = bytes(path);
    let session = Session::start(FileRequest::Remove { path, recursive });
    session.finish().map(drop)
}

fn rename(from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<(), (FileFailureKind, String)> {
    let (from, to) = (bytes(from), bytes(to));
    let session = Session::start(FileRequest::Rename { from, to });
    session.finish().map(drop)
}

fn kind<T: std::fmt::Debug>(result: Result<T, (FileFailureKind, String)>) -> FileFailureKind {
    result.unwrap_err().0
}

#[test]
fn what_is_written_is_there_with_its_mode_and_comes_back() {
    let here = Directory::new();
    let file = here.path("file");
    let content: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
    let request = WriteRequest {
        mode: Some(0o4751),
        ..write_request(&file)
    };
    write(request, &content).unwrap();
    assert!(fs::read(&file).unwrap() == content);
    assert_eq!(file.metadata().unwrap().mode() & 0o7777, 0o4751);
    assert!(read(&file).unwrap() == content);
    assert_eq!(here.names(), ["file"], "something else was left there");
    // An empty one.
    write(write_request(here.path("empty")), b"").unwrap();
    assert_eq!(read(here.path("empty")).unwrap(), b"");
    assert_eq!(
        here.path("empty").metadata().unwrap().mode() & 0o7777,
        0o644
    );
}

#[test]
fn a_file_that_is_replaced_keeps_its_mode_and_whoever_has_it_open_keeps_the_old_one() {
    let here = Directory::new();
    let file = here.path("file");
    fs::write(&file, "old").unwrap();
    fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
    let mut open = fs::File::open(&file).unwrap();
    write(write_request(&file), b"new").unwrap();
    assert_eq!(fs::read(&file).unwrap(), b"new");
    assert_eq!(file.metadata().unwrap().mode() & 0o7777, 0o600);
    let mut old = String::new();
    open.read_to_string(&mut old).unwrap();
    assert_eq!(old, "old");
}

#[test]
fn a_write_that_is_given_up_leaves_nothing() {
    let here = Directory::new();
    let file = here.path("file");
    fs::write(&file, "old").unwrap();
    let mut session = Session::start(FileRequest::Write(write_request(&file)));
    session.send(&FileInput::Data(vec![b'x'; MAX_DATA]));
    session.abandon();
    assert_eq!(fs::read(&file).unwrap(), b"old");
    assert_eq!(here.names(), ["file"]);
}

#[test]
fn missing_directories_are_made_on_request_only() {
    let here = Directory::new();
    let file = here.path("a//b/./c/file");
    assert_eq!(
        kind(write(write_request(&file), b"x")),
        FileFailureKind::NotFound
    );
    assert!(here.names().is_empty());
    let request = WriteRequest {
        parents: true,
        ..write_request(&file)
    };
    write(request, b"x").unwrap();
    assert_eq!(fs::read(here.path("a/b/c/file")).unwrap(), b"x");
    assert_eq!(here.path("a/b").metadata().unwrap().mode() & 0o777, 0o755);
    let request = WriteRequest {
        parents: true,
        ..write_request(here.path("a/b/c/file/more"))
    };
    assert_eq!(kind(write(request, b"x")), FileFailureKind::NotADirectory);
}

#[test]
fn a_part_of_a_file_is_read() {
    let here = Directory::new();
    let file = here.path("file");
    fs::write(&file, "0123456789").unwrap();
    for (offset, length, part) in [
        (0, Some(3), "012"),
        (7, None, "789"),
        (7, Some(100), "789"),
        (4, Some(2), "45"),
        (0, Some(0), ""),
        (10, None, ""),
        (1 << 40, None, ""),
    ] {
        let answer = read_part(&file, offset, length).unwrap();
        assert_eq!(answer.data, part.as_bytes(), "{offset} {length:?}");
        assert_eq!(answer.stat.unwrap().size, 10);
    }
    assert_eq!(
        kind(read_part(&file, u64::MAX, None)),
        FileFailureKind::Other
    );
}

#[test]
fn files_of_proc_are_read_to_their_end() {
    let mounts = read("/proc/version").unwrap();
    assert_eq!(mounts, fs::read("/proc/version").unwrap());
    assert_eq!(stat("/proc/version", true).unwrap().size, 0);
    // Longer than one read gives.
    assert!(read("/proc/kallsyms").unwrap().len() > MAX_DATA);
}

#[test]
fn a_listing_has_every_name_and_what_it_stands_for() {
    let here = Directory::new();
    let odd = std::ffi::OsString::from_vec(b"n\xff\n".to_vec());
    fs::write(here.0.join(&odd), "12345").unwrap();
    fs::create_dir(here.path("directory")).unwrap();
    symlink("/nowhere", here.path("link")).unwrap();
    let entries = list(&here.0).unwrap().entries;
    assert_eq!(entries.len(), 3);
    assert_eq!(entries[odd.as_bytes()].size, 5);
    assert_eq!(entries[&b"directory"[..]].mode & libc_type(), 0o040_000);
    assert_eq!(entries[&b"link"[..]].mode & libc_type(), 0o120_000);
    // An empty one, through a link.
    symlink("directory", here.path("to")).unwrap();
    assert!(list(here.path("to")).unwrap().entries.is_empty());
}

fn libc_type() -> u32 {
    nix::libc::S_IFMT
}

#[test]
fn a_long_listing_comes_in_bounded_frames() {
    let here = Directory::new();
    for n in 0..1500 {
        fs::write(here.path(&format!("{n:0>200}")), "").unwrap();
    }
    let answer = list(&here.0).unwrap();
    assert_eq!(answer.entries.len(), 1500);
    assert!(
        answer.frames >= 1500 * 200 / (MAX_DATA / 2),
        "{}",
        answer.frames
    );
}

#[test]
fn a_link_is_described_or_what_it_points_to() {
    let here = Directory::new();
    let (file, link) = (here.path("file"), here.path("link"));
    fs::write(&file, "123").unwrap();
    symlink("file", &link).unwrap();
    let meta = file.metadata().unwrap();
    let expected = FileStat {
        mode: meta.mode(),
        uid: meta.uid(),
        gid: meta.gid(),
        size: 3,
        modified: meta.mtime(),
        modified_ns: u32::try_from(meta.mtime_nsec()).unwrap(),
    };
    assert_eq!(stat(&link, true).unwrap(), expected);
    assert_eq!(stat(&link, false).unwrap().mode & libc_type(), 0o120_000);
    assert_eq!(stat("/", true).unwrap().mode & libc_type(), 0o040_000);
    assert_eq!(
        kind(stat(here.path("none"), true)),
        FileFailureKind::NotFound
    );
}

#[test]
fn directories_are_made_with_exactly_their_mode() {
    let here = Directory::new();
    mkdir(here.path("one/"), 0o1777, false).unwrap();
    assert_eq!(here.path("one").metadata().unwrap().mode() & 0o7777, 0o1777);
    assert_eq!(
        kind(mkdir(here.path("one"), 0o755, false)),
        FileFailureKind::Exists
    );
    assert_eq!(
        kind(mkdir(here.path("a/b"), 0o755, false)),
        FileFailureKind::NotFound
    );
    mkdir(here.path("a/b"), 0o700, true).unwrap();
    mkdir(here.path("a/b"), 0o755, true).unwrap();
    assert_eq!(here.path("a/b").metadata().unwrap().mode() & 0o7777, 0o700);
    fs::write(here.path("file"), "").unwrap();
    let file = mkdir(here.path("file"), 0o755, true);
    assert_eq!(kind(file), FileFailureKind::NotADirectory);
}

#[test]
fn a_tree_is_removed_on_request_only_and_links_are_not_followed() {
    let here = Directory::new();
    let tree = here.path("tree");
    let mut deep = tree.clone();
    for n in 0..50 {
        deep.push(n.to_string());
    }
    fs::create_dir_all(&deep).unwrap();
    for n in 0..100 {
        fs::create_dir(tree.join(format!("d{n}"))).unwrap();
        fs::write(tree.join(format!("d{n}/file")), "").unwrap();
    }
    fs::create_dir(here.path("outside")).unwrap();
    fs::write(here.path("outside/file"), "kept").unwrap();
    symlink("../outside", tree.join("link")).unwrap();
    mkfifo(&tree.join("fifo"), Mode::S_IRWXU).unwrap();
    assert_eq!(kind(remove(&tree, false)), FileFailureKind::NotEmpty);
    remove(&tree, true).unwrap();
    assert_eq!(here.names(), ["outside"]);
    assert_eq!(fs::read(here.path("outside/file")).unwrap(), b"kept");
    assert_eq!(kind(remove(&tree, true)), FileFailureKind::NotFound);
    // A link to a directory, an empty directory.
    symlink("outside", here.path("link")).unwrap();
    remove(here.path("link"), true).unwrap();
    fs::create_dir(here.path("empty")).unwrap();
    remove(here.path("empty"), false).unwrap();
    assert_eq!(here.names(), ["outside"]);
    assert!(here.path("outside/file").exists());
}

#[test]
fn a_renaming_replaces_a_file_but_no_full_directory() {
    let here = Directory::new();
    let (from, to) = (here.path("from"), here.path("to"));
    fs::write(&from, "new").unwrap();
    fs::write(&to, "old").unwrap();
    rename(&from, &to).unwrap();
    assert_eq!(fs::read(&to).unwrap(), b"new");
    assert_eq!(kind(rename(&from, &to)), FileFailureKind::NotFound);
    fs::create_dir_all(here.path("full/inner")).unwrap();
    fs::create_dir(here.path("other")).unwrap();
    let full = rename(here.path("other"), here.path("full"));
    assert_eq!(kind(full), FileFailureKind::NotEmpty);
    assert_eq!(
        kind(rename(&to, here.path("other"))),
        FileFailureKind::IsADirectory
    );
}

#[test]
fn paths_that_name_nothing_are_refused() {
    for path in ["", "relative", "/a\0b", &format!("/{}", "x/".repeat(2048))] {
        assert_eq!(
            kind(stat(path, true)),
            FileFailureKind::BadRequest,
            "{path:?}"
        );
        assert_eq!(
            kind(remove(path, true)),
            FileFailureKind::BadRequest,
            "{path:?}"
        );
    }
    for path in ["/", "//", "/tmp/.", "/tmp/.."] {
        assert_eq!(
            kind(remove(path, true)),
            FileFailureKind::BadRequest,
            "{path:?}"
        );
        assert_eq!(
            kind(mkdir(path, 0, true)),
            FileFailureKind::BadRequest,
            "{path:?}"
        );
        let write = write(write_request(path), b"");
        assert_eq!(kind(write), FileFailureKind::BadRequest, "{path:?}");
    }
    let long = format!("/{}", "x".repeat(300));
    assert_eq!(kind(stat(long, true)), FileFailureKind::BadRequest);
}
