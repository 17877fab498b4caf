//! Trees that go in and out.

use flashpan_protocol::file::{Entry, TreeEntry, TreeInRequest};

use super::*;

fn receive(path: impl AsRef<Path>, contents: bool) -> FileRequest {
    let (uid, gid) = (nix::unistd::getuid(), nix::unistd::getgid());
    FileRequest::TreeIn(TreeInRequest {
        path: bytes(path),
        contents,
        owner: Some((uid.as_raw(), gid.as_raw())),
    })
}

fn entry(name: &str, mode: u32, target: &str) -> FileInput {
    FileInput::Entry(TreeEntry {
        name: Bytes::from(name.as_bytes()),
        stat: FileStat {
            mode,
            uid: 77,
            gid: 77,
            modified: 1000,
            modified_ns: 5,
            ..FileStat::default()
        },
        target: Bytes::from(target.as_bytes()),
    })
}

fn directory(name: &str) -> FileInput {
    entry(name, 0o040_750, "")
}

fn file(name: &str) -> FileInput {
    entry(name, 0o100_640, "")
}

fn data(content: &[u8]) -> FileInput {
    FileInput::Data(content.to_vec())
}

/// Sends all of it and returns the answer.
fn sent(
    request: FileRequest,
    frames: impl IntoIterator<Item = FileInput>,
) -> Result<Answer, (FileFailureKind, String)> {
    let mut session = Session::start(request);
    for frame in frames {
        session.send(&frame);
    }
    session.finish()
}

/// What comes out, as text.
fn out(path: impl AsRef<Path>) -> Vec<String> {
    let mut session = Session::start(FileRequest::TreeOut {
        path: bytes(path),
        follow: false,
    });
    let mut all = Vec::new();
    loop {
        all.push(match session.next().unwrap() {
            FileOutput::Entry(TreeEntry { name, stat, target }) => {
                let (name, target) = (text(&name), text(&target));
                format!("{name} {:o} {target}", stat.mode)
            }
            FileOutput::Data(content) => text(&content),
            FileOutput::Close => "close".to_owned(),
            FileOutput::Skipped(Entry { name, .. }) => format!("no {}", text(&name)),
            FileOutput::Done => break,
            FileOutput::Failed(failure) => panic!("{failure:?}"),
            other => panic!("{other:?}"),
        });
    }
    session.finish_closed();
    all
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

impl Session {
    fn finish_closed(mut self) {
        assert_eq!(self.next(), None);
        self.abandon();
    }
}

#[test]
fn a_tree_goes_in_with_modes_times_and_links() {
    let here = Directory::new();
    let frames = [
        directory("tree"),
        file("one"),
        data(b"1"),
        data(b"2"),
        FileInput::Close,
        entry("link", 0o120_777, "/anywhere"),
        directory("inner"),
        file("empty"),
        FileInput::Close,
        FileInput::Close,
        FileInput::Close,
        FileInput::End,
    ];
    sent(receive(&here.0, false), frames.clone()).unwrap();
    assert_eq!(here.names(), ["tree"]);
    assert_eq!(fs::read(here.path("tree/one")).unwrap(), b"12");
    let link = fs::read_link(here.path("tree/link")).unwrap();
    assert_eq!(link, Path::new("/anywhere"));
    for (path, mode) in [("tree", 0o750), ("tree/inner", 0o750), ("tree/one", 0o640)] {
        let meta = here.path(path).symlink_metadata().unwrap();
        assert_eq!(meta.mode() & 0o7777, mode, "{path}");
        assert_eq!((meta.mtime(), meta.mtime_nsec()), (1000, 5), "{path}");
        assert_eq!(meta.uid(), nix::unistd::getuid().as_raw());
    }
    // What is in it, into what is there.
    sent(receive(here.path("tree/inner/."), true), frames).unwrap();
    assert_eq!(fs::read(here.path("tree/inner/one")).unwrap(), b"12");
}

#[test]
fn a_tree_out_of_order_is_put_in_order_and_may_have_hard_links() {
    let here = Directory::new();
    let link = |name: &str, path: &str| FileInput::HardLink {
        name: Bytes::from(name.as_bytes()),
        path: Bytes::from(path.as_bytes()),
    };
    let enter = |name: &str| match directory(name) {
        FileInput::Entry(entry) => FileInput::Enter(entry),
        other => other,
    };
    let frames = [
        directory("tree"),
        enter("late"),
        file("one"),
        data(b"1"),
        FileInput::Close,
        link("two", "late/one"),
        FileInput::Close,
        entry("late", 0o040_711, ""),
        FileInput::Close,
        enter("late"),
        link("three", "late/two"),
        FileInput::Close,
        FileInput::Close,
        FileInput::End,
    ];
    sent(receive(&here.0, false), frames).unwrap();
    let late = here.path("tree/late").metadata().unwrap();
    assert_eq!((late.mode() & 0o7777, late.mtime()), (0o711, 1000));
    let one = here.path("tree/late/one").metadata().unwrap();
    assert_eq!(one.nlink(), 3);
    for name in ["tree/late/two", "tree/late/three"] {
        assert_eq!(here.path(name).metadata().unwrap().ino(), one.ino());
    }
    let frames = [directory("tree"), link("x", "late/none")];
    let (kind, text) = sent(receive(&here.0, false), frames).unwrap_err();
    assert_eq!(kind, FileFailureKind::NotFound);
    assert!(
        text.starts_with("x: it is a hard link, and the file is not there"),
        "{text}"
    );
}

#[test]
fn a_tree_comes_out_whole() {
    let here = Directory::new();
    fs::create_dir_all(here.path("tree/inner")).unwrap();
    fs::write(here.path("tree/inner/file"), "content").unwrap();
    fs::set_permissions(here.path("tree/inner"), PermissionsExt::from_mode(0o751)).unwrap();
    let frames = out(here.path("tree"));
    let expected = [
        "root 40755 ",
        "inner 40751 ",
        "file 100644 ",
        "content",
        "close",
        "close",
        "close",
    ];
    assert_eq!(frames, expected);
    symlink("inner", here.path("tree/link")).unwrap();
    assert_eq!(out(here.path("tree/link")), ["root 120777 inner"]);
    mkfifo(&here.path("tree/inner/fifo"), Mode::S_IRWXU).unwrap();
    assert!(out(here.path("tree")).contains(&"no fifo".to_owned()));
    assert_eq!(out(here.path("tree/inner/file"))[1..], ["content", "close"]);
}

#[test]
fn a_failure_names_the_file() {
    let here = Directory::new();
    fs::create_dir_all(here.path("tree/a/file")).unwrap();
    let frames = [directory("tree"), directory("a"), file("file")];
    let (kind, message) = sent(receive(&here.0, false), frames).unwrap_err();
    assert_eq!(kind, FileFailureKind::IsADirectory);
    assert!(message.starts_with("a/file: "), "{message}");
    // A long way down, its end.
    let name = "d".repeat(200);
    let frames = [directory("tree"), directory(&name), directory(&name)];
    fs::create_dir(here.path(&format!("tree/{name}"))).unwrap();
    fs::write(here.path(&format!("tree/{name}/{name}")), "").unwrap();
    let (kind, message) = sent(receive(&here.0, false), frames).unwrap_err();
    assert_eq!(kind, FileFailureKind::Exists);
    assert!(
        message.starts_with("…ddd") && message.len() < 300,
        "{message}"
    );
}

#[test]
fn a_place_that_is_none_is_told_while_the_tree_is_still_sent() {
    let frames = [directory("tree"), file("file")]
        .into_iter()
        .chain(std::iter::repeat_n(data(&[0; MAX_DATA]), 64));
    let answer = sent(receive("/no/such/place", false), frames);
    assert_eq!(kind(answer), FileFailureKind::NotFound);
    let relative = sent(receive("relative", false), [file("x")]);
    assert_eq!(kind(relative), FileFailureKind::BadRequest);
    let mut session = Session::start(FileRequest::TreeOut {
        path: bytes("/no/such/place"),
        follow: true,
    });
    let Some(FileOutput::Failed(failure)) = session.next() else {
        panic!("there is something");
    };
    assert_eq!(failure.kind, FileFailureKind::NotFound);
    session.abandon();
}

#[test]
fn frames_that_no_supervisor_sends_end_the_connection() {
    let here = Directory::new();
    for frames in [
        vec![data(b"x")],
        vec![FileInput::End],
        vec![directory("tree"), FileInput::End],
        vec![directory("tree"), data(b"x")],
        vec![directory("tree"), directory("../x")],
        vec![directory("tree"), FileInput::Close, FileInput::Close],
        vec![entry("x", 0o010_644, "")],
        vec![entry("..", 0o040_755, "")],
    ] {
        let mut session = Session::start(receive(&here.0, false));
        for frame in &frames {
            session.send(frame);
        }
        assert_eq!(session.next(), None, "{frames:?}");
        session.abandon();
    }
}

#[test]
fn a_supervisor_that_goes_away_leaves_whole_files_only() {
    let here = Directory::new();
    let mut session = Session::start(receive(&here.0, false));
    for frame in [
        directory("tree"),
        file("whole"),
        data(b"whole"),
        FileInput::Close,
        file("half"),
    ] {
        session.send(&frame);
    }
    for _ in 0..64 {
        session.send(&data(&[0; MAX_DATA]));
    }
    session.abandon();
    let left: Vec<_> = fs::read_dir(here.path("tree")).unwrap().collect();
    assert_eq!(left.len(), 1);
    assert_eq!(fs::read(here.path("tree/whole")).unwrap(), b"whole");
    // One that reads a tree and has enough.
    fs::write(here.path("long"), vec![b'x'; 8 << 20]).unwrap();
    let mut session = Session::start(FileRequest::TreeOut {
        path: bytes(here.path("long")),
        follow: false,
    });
    assert!(session.next().is_some());
    session.abandon();
}
