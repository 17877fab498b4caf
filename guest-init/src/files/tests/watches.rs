//! Changes that are watched.

use std::collections::VecDeque;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use flashpan_protocol::file::{Change, ChangeKind};

use super::*;

/// There are only so many watches in a process; one test takes them all.
static WATCHES: RwLock<()> = RwLock::new(());

fn some_watches() -> RwLockReadGuard<'static, ()> {
    WATCHES.read().unwrap_or_else(PoisonError::into_inner)
}

struct Watching {
    session: Session,
    waiting: VecDeque<Change>,
    _some: RwLockReadGuard<'static, ()>,
}

fn request(path: impl AsRef<Path>, recursive: bool, most: u32) -> FileRequest {
    FileRequest::Watch {
        path: bytes(path),
        recursive,
        most,
    }
}

impl Watching {
    fn start(here: &Directory, recursive: bool) -> Self {
        let some = some_watches();
        let mut session = Session::start(request(&here.0, recursive, 1000));
        match session.next() {
            Some(FileOutput::Info(stat)) => assert!(stat.is_dir()),
            other => panic!("{other:?}"),
        }
        Self {
            session,
            waiting: VecDeque::new(),
            _some: some,
        }
    }

    fn next(&mut self) -> Option<Change> {
        while self.waiting.is_empty() {
            match self.session.next() {
                Some(FileOutput::Changes(changes)) => self.waiting.extend(changes),
                Some(FileOutput::Done) => return None,
                other => panic!("{other:?}"),
            }
        }
        self.waiting.pop_front()
    }

    /// The next change as text.
    fn text(&mut self) -> String {
        let Some(change) = self.next() else {
            return "end".to_owned();
        };
        let sign = match change.kind {
            ChangeKind::Created => "+",
            ChangeKind::Modified => "=",
            ChangeKind::Removed => "-",
            ChangeKind::Moved => ">",
            ChangeKind::Attributes => "*",
            ChangeKind::Overflow => "!",
        };
        let slash = if change.directory { "/" } else { "" };
        let (path, to) = (
            String::from_utf8_lossy(&change.path),
            String::from_utf8_lossy(&change.to),
        );
        match to.is_empty() {
            true => format!("{sign}{path}{slash}"),
            false => format!("{sign}{path}{slash} {to}"),
        }
    }

    fn expect(&mut self, texts: &[&str]) {
        for text in texts {
            assert_eq!(self.text(), *text, "of {texts:?}");
        }
    }
}

#[test]
fn every_kind_of_change_is_told() {
    let here = Directory::new();
    fs::create_dir(here.path("inner")).unwrap();
    let mut watching = Watching::start(&here, true);
    fs::write(here.path("inner/file"), "x").unwrap();
    watching.expect(&["+inner/file", "=inner/file"]);
    fs::set_permissions(here.path("inner/file"), PermissionsExt::from_mode(0o600)).unwrap();
    watching.expect(&["*inner/file"]);
    fs::rename(here.path("inner/file"), here.path("moved")).unwrap();
    watching.expect(&[">inner/file moved"]);
    fs::remove_file(here.path("moved")).unwrap();
    watching.expect(&["-moved"]);
    fs::remove_dir(here.path("inner")).unwrap();
    watching.expect(&["-inner/"]);
    // Names are bytes.
    let odd = PathBuf::from(std::ffi::OsString::from_vec(b"\xff\n".to_vec()));
    fs::write(here.0.join(&odd), "").unwrap();
    assert_eq!(watching.next().unwrap().path, bytes(&odd));
    watching.session.abandon();
}

#[test]
fn directories_that_are_made_are_watched_and_so_is_what_is_in_them_already() {
    let here = Directory::new();
    let mut watching = Watching::start(&here, true);
    fs::create_dir_all(here.path("a/b/c")).unwrap();
    fs::write(here.path("a/b/c/file"), "x").unwrap();
    // Told by whatever was faster, perhaps twice, but told.
    let mut wanted = vec!["+a/", "+a/b/", "+a/b/c/", "+a/b/c/file"];
    while !wanted.is_empty() {
        let told = watching.text();
        wanted.retain(|wanted| *wanted != told);
    }
    fs::write(here.path("mark"), "").unwrap();
    while watching.text() != "+mark" {}
    fs::write(here.path("a/b/c/late"), "").unwrap();
    watching.expect(&["+a/b/c/late"]);
    // By its new name after a move, and not at all after one elsewhere.
    fs::rename(here.path("a/b"), here.path("z")).unwrap();
    fs::write(here.path("z/c/later"), "").unwrap();
    watching.expect(&[">a/b/ z", "+z/c/later"]);
    let elsewhere = Directory::new();
    fs::rename(here.path("z"), elsewhere.path("z")).unwrap();
    watching.expect(&["-z/"]);
    fs::write(elsewhere.path("z/c/unseen"), "").unwrap();
    fs::rename(elsewhere.path("z"), here.path("y")).unwrap();
    watching.expect(&["+y/", "+y/c/"]);
    let mut files = [
        watching.text(),
        watching.text(),
        watching.text(),
        watching.text(),
    ];
    files.sort();
    assert_eq!(
        files,
        ["+y/c/file", "+y/c/late", "+y/c/later", "+y/c/unseen"]
    );
    watching.session.abandon();
}

#[test]
fn without_recursion_only_the_directory_itself_is_watched() {
    let here = Directory::new();
    fs::create_dir(here.path("inner")).unwrap();
    let mut watching = Watching::start(&here, false);
    fs::write(here.path("inner/file"), "x").unwrap();
    fs::create_dir(here.path("new")).unwrap();
    fs::write(here.path("new/file"), "x").unwrap();
    fs::write(here.path("mark"), "").unwrap();
    watching.expect(&["+new/", "+mark"]);
    watching.session.abandon();
}

#[test]
fn a_link_leads_to_the_directory_and_out_of_it_to_nothing() {
    let (here, other) = (Directory::new(), Directory::new());
    symlink(&other.0, here.path("out")).unwrap();
    symlink(".", here.path("loop")).unwrap();
    let mut watching = Watching::start(&here, true);
    fs::write(other.path("unseen"), "").unwrap();
    symlink(&other.0, here.path("again")).unwrap();
    fs::write(other.path("unseen"), "x").unwrap();
    fs::write(here.path("mark"), "").unwrap();
    watching.expect(&["+again", "+mark"]);
    watching.session.abandon();
    // Itself a link, it is followed.
    let link = Directory(other.path("way"));
    symlink(&here.0, &link.0).unwrap();
    let mut watching = Watching::start(&link, true);
    fs::remove_file(here.path("mark")).unwrap();
    watching.expect(&["-mark"]);
    watching.session.abandon();
    fs::remove_file(&link.0).unwrap();
    std::mem::forget(link);
}

#[test]
fn the_end_of_the_directory_is_the_end() {
    for moved in [false, true] {
        let here = Directory::new();
        let inner = Directory(here.path("inner"));
        fs::create_dir(&inner.0).unwrap();
        let mut watching = Watching::start(&inner, true);
        // Still there for this, which makes it be looked up again.
        fs::create_dir(inner.path("one")).unwrap();
        watching.expect(&["+one/"]);
        fs::remove_dir(inner.path("one")).unwrap();
        watching.expect(&["-one/"]);
        match moved {
            true => fs::rename(&inner.0, here.path("moved")).unwrap(),
            false => fs::remove_dir(&inner.0).unwrap(),
        }
        watching.expect(&["-/", "end"]);
        watching.session.abandon();
    }
}

#[test]
fn more_directories_than_are_allowed_are_an_error_at_once_and_later() {
    let _some = some_watches();
    let here = Directory::new();
    for name in ["a", "b", "c"] {
        fs::create_dir(here.path(name)).unwrap();
    }
    let refused = Session::start(request(&here.0, true, 3)).finish();
    assert_eq!(kind(refused), FileFailureKind::TooMany);
    let mut session = Session::start(request(&here.0, true, 4));
    assert!(matches!(session.next(), Some(FileOutput::Info(_))));
    fs::create_dir(here.path("d")).unwrap();
    loop {
        match session.next() {
            Some(FileOutput::Changes(_)) => {}
            Some(FileOutput::Failed(failure)) => {
                break assert_eq!(failure.kind, FileFailureKind::TooMany);
            }
            other => panic!("{other:?}"),
        }
    }
    session.abandon();
    let file = here.path("file");
    fs::write(&file, "").unwrap();
    let refused = Session::start(request(&file, true, 4)).finish();
    assert_eq!(kind(refused), FileFailureKind::NotADirectory);
}

#[test]
fn changes_that_nobody_takes_are_told_to_be_lost() {
    let here = Directory::new();
    let mut watching = Watching::start(&here, true);
    let long = "n".repeat(200);
    let queue = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
    let queue: usize = queue.trim().parse().unwrap();
    // The socket holds some, the kernel's queue the rest, and then there is no
    // more room.
    fs::create_dir(here.path("made")).unwrap();
    for _ in 0..2 * queue {
        fs::write(here.path(&long), "").unwrap();
        fs::remove_file(here.path(&long)).unwrap();
    }
    fs::create_dir(here.path("lost")).unwrap();
    while watching.next().unwrap().kind != ChangeKind::Overflow {}
    // What was made unseen is watched all the same.
    fs::write(here.path("mark"), "").unwrap();
    while watching.text() != "+mark" {}
    fs::write(here.path("lost/file"), "").unwrap();
    watching.expect(&["+lost/file"]);
    watching.session.abandon();
}

#[test]
fn watches_leave_room_for_other_operations_and_end_with_the_guest() {
    let _all = WATCHES.write().unwrap_or_else(PoisonError::into_inner);
    let here = Directory::new();
    let (poller, mut agent) = agent();
    let mut streams = Vec::new();
    let mut failures = 0;
    for _ in 0..17 {
        let (stream, guest) = UnixStream::pair().unwrap();
        guest.set_nonblocking(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        agent.connect_files(guest.into());
        let start = FileInput::Start(request(&here.0, true, 10));
        let mut stream = stream;
        frame::write(&mut stream, &start, MAX_FILE_FRAME).unwrap();
        let mut decoder = Decoder::new(MAX_FILE_FRAME);
        match decoder.read_message(&mut stream).unwrap() {
            Some(FileOutput::Info(_)) => {}
            Some(FileOutput::Failed(failure)) => {
                assert_eq!(failure.kind, FileFailureKind::Resources);
                failures += 1;
            }
            other => panic!("{other:?}"),
        }
        streams.push(stream);
    }
    assert_eq!(failures, 1);
    agent.cancel_all(PATIENCE);
    run_until_idle(&poller, &mut agent);
}
