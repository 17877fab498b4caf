//! What a program in the guest, or a broken supervisor, can do to make it hard.

use std::sync::atomic::AtomicBool;

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use super::*;

#[test]
fn fifos_devices_and_sockets_are_neither_read_nor_replaced() {
    let here = Directory::new();
    let fifo = here.path("fifo");
    mkfifo(&fifo, Mode::S_IRWXU).unwrap();
    let socket = here.path("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    for path in [&fifo, &socket, Path::new("/dev/zero")] {
        assert_eq!(kind(read(path)), FileFailureKind::NotRegular, "{path:?}");
        let write = write(write_request(path), b"x");
        assert_eq!(kind(write), FileFailureKind::NotRegular, "{path:?}");
    }
    // Behind a link: not read, but the link is replaced and the FIFO stays.
    let link = here.path("link");
    symlink("fifo", &link).unwrap();
    assert_eq!(kind(read(&link)), FileFailureKind::NotRegular);
    write(write_request(&link), b"x").unwrap();
    assert_eq!(fs::read(&link).unwrap(), b"x");
    assert_eq!(here.names(), ["fifo", "link", "socket"]);
}

#[test]
fn directories_are_neither_read_nor_replaced() {
    let here = Directory::new();
    assert_eq!(kind(read(&here.0)), FileFailureKind::IsADirectory);
    let write = write(write_request(&here.0), b"x");
    assert_eq!(kind(write), FileFailureKind::IsADirectory);
    fs::write(here.path("file"), "").unwrap();
    let list = list(here.path("file"));
    assert_eq!(kind(list), FileFailureKind::NotADirectory);
}

#[test]
fn an_owner_that_nobody_can_be_is_refused() {
    let here = Directory::new();
    let request = || write_request(here.path("file"));
    for request in [
        WriteRequest {
            uid: Some(u32::MAX),
            ..request()
        },
        WriteRequest {
            gid: Some(u32::MAX),
            ..request()
        },
    ] {
        assert_eq!(kind(write(request, b"x")), FileFailureKind::BadRequest);
    }
    assert!(here.names().is_empty());
}

#[test]
fn a_loop_of_links_ends() {
    let here = Directory::new();
    symlink("two", here.path("one")).unwrap();
    symlink("one", here.path("two")).unwrap();
    symlink(".", here.path("self")).unwrap();
    assert_eq!(kind(read(here.path("one"))), FileFailureKind::Other);
    assert_eq!(kind(list(here.path("one/x"))), FileFailureKind::Other);
    let request = WriteRequest {
        parents: true,
        ..write_request(here.path("one/x/y"))
    };
    assert_eq!(kind(write(request, b"")), FileFailureKind::Other);
    write(write_request(here.path("self/self/file")), b"x").unwrap();
    remove(here.path("self/one"), true).unwrap();
    assert_eq!(here.names(), ["file", "self", "two"]);
}

#[test]
fn open_files_of_a_process_are_no_paths() {
    for path in ["/proc/self/fd/0", "/proc/self/cwd", "/proc/self/root/tmp"] {
        assert_eq!(kind(stat(path, true)), FileFailureKind::Other, "{path}");
    }
}

#[test]
fn a_file_that_is_deleted_while_it_is_read_is_read_to_its_end() {
    let here = Directory::new();
    let file = here.path("file");
    let content = vec![b'x'; 4 << 20];
    fs::write(&file, &content).unwrap();
    let path = bytes(&file);
    let mut session = Session::start(FileRequest::Read {
        path,
        offset: 0,
        length: None,
    });
    let Some(FileOutput::Info(_)) = session.next() else {
        panic!("no answer");
    };
    fs::remove_file(&file).unwrap();
    assert!(session.finish().unwrap().data == content);
}

#[test]
fn a_directory_that_is_deleted_under_a_write_fails_it() {
    let here = Directory::new();
    fs::create_dir(here.path("inner")).unwrap();
    let file = write_request(here.path("inner/file"));
    let mut session = Session::start(FileRequest::Write(file));
    // The temporary file is there once the first data was taken, of which
    // there is more than the socket holds.
    for _ in 0..64 {
        session.send(&FileInput::Data(vec![0; MAX_DATA]));
    }
    fs::remove_dir_all(here.path("inner")).unwrap();
    session.send(&FileInput::End);
    assert_eq!(kind(session.finish()), FileFailureKind::NotFound);
    assert!(here.names().is_empty());
}

#[test]
fn a_failure_reaches_a_supervisor_that_is_still_sending() {
    let mut session = Session::start(FileRequest::Write(write_request("/no/such/place")));
    for _ in 0..64 {
        session.send(&FileInput::Data(vec![0; MAX_DATA]));
    }
    assert_eq!(kind(session.finish()), FileFailureKind::NotFound);
}

#[test]
fn messages_out_of_order_end_the_connection_and_write_nothing() {
    let here = Directory::new();
    let request = || FileRequest::Write(write_request(here.path("file")));
    let mut session = Session::start(request());
    session.send(&FileInput::Start(request()));
    assert_eq!(session.next(), None);
    session.abandon();

    let mut session = Session::start(request());
    session.stream.write_all(&u32::MAX.to_le_bytes()).unwrap();
    assert_eq!(session.next(), None);
    session.abandon();
    assert!(here.names().is_empty());
}

#[test]
fn memory_stays_small_however_long_a_file_is() {
    const NAME: &str = "files::tests::hostile::memory_stays_small_however_long_a_file_is";
    const ALONE: &str = "GUEST_INIT_TEST_ALONE";
    const LENGTH: usize = 200 << 20;
    // In a process without other tests, whose memory would count.
    if std::env::var_os(ALONE).is_none() {
        let mut alone = std::process::Command::new(std::env::current_exe().unwrap());
        let output = alone
            .args(["--exact", NAME])
            .env(ALONE, "1")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && text.contains("1 passed"),
            "{text}"
        );
        return;
    }
    let here = Directory::new();
    let file = here.path("file");
    let before = resident();
    let mut session = Session::start(FileRequest::Write(write_request(&file)));
    let piece = FileInput::Data(vec![b'x'; MAX_DATA]);
    let frame = frame::encode(&piece, MAX_FILE_FRAME).unwrap();
    for _ in 0..LENGTH / MAX_DATA {
        session.stream.write_all(&frame).unwrap();
    }
    session.send(&FileInput::End);
    session.finish().unwrap();
    assert_eq!(file.metadata().unwrap().len(), LENGTH as u64);

    let path = bytes(&file);
    let mut session = Session::start(FileRequest::Read {
        path,
        offset: 0,
        length: None,
    });
    let mut length = 0;
    loop {
        match session.next().unwrap() {
            FileOutput::Data(data) => length += data.len(),
            FileOutput::Info(_) => {}
            FileOutput::Done => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(length, LENGTH);
    session.abandon();
    let grown = resident().saturating_sub(before);
    assert!(grown < 4 << 20, "{grown} bytes more");
}

/// The most memory that this process has had so far.
fn resident() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let words: Vec<&str> = line.unwrap().split_whitespace().collect();
    words[1].parse::<usize>().unwrap() * 1024
}

fn connect(agent: &mut Agent) -> UnixStream {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(PATIENCE)).unwrap();
    theirs.set_nonblocking(true).unwrap();
    agent.connect_files(theirs.into());
    ours
}

/// Its disks are about to be frozen: a write would leave its temporary file there.
#[test]
fn nothing_is_begun_when_the_vm_ends() {
    let (_poller, mut agent) = agent();
    agent.kill_all_files();
    let mut late = connect(&mut agent);
    let answer = Decoder::new(MAX_FILE_FRAME).read_message::<FileOutput>(&mut late);
    let Some(FileOutput::Failed(failure)) = answer.unwrap() else {
        panic!("it was not turned down");
    };
    assert!(failure.message.contains("shutting down"), "{failure:?}");
    assert!(agent.is_idle());
}

#[test]
fn a_supervisor_that_does_not_read_holds_up_nobody_else() {
    let here = Directory::new();
    let file = here.path("file");
    fs::write(&file, vec![b'x'; 8 << 20]).unwrap();
    let (poller, mut agent) = agent();
    let read = |stream: &mut UnixStream| {
        let request = FileInput::Start(FileRequest::Read {
            path: bytes(&file),
            offset: 0,
            length: None,
        });
        frame::write(stream, &request, MAX_FILE_FRAME).unwrap();
    };
    let mut lazy: Vec<UnixStream> = (0..FILES_MAX - 1).map(|_| connect(&mut agent)).collect();
    lazy.iter_mut().for_each(read);
    let mut busy = connect(&mut agent);
    // One too many is told so, whatever the others do.
    let mut last = connect(&mut agent);
    let refused = Decoder::new(MAX_FILE_FRAME).read_message::<FileOutput>(&mut last);
    let Some(FileOutput::Failed(failure)) = refused.unwrap() else {
        panic!("it was not turned down");
    };
    assert_eq!(failure.kind, FileFailureKind::Resources);
    assert!(failure.message.contains("32 files"), "{failure:?}");
    read(&mut busy);
    let mut decoder = Decoder::new(MAX_FILE_FRAME);
    while decoder.read_message::<FileOutput>(&mut busy).unwrap() != Some(FileOutput::Done) {}
    // The end of the VM ends them all.
    assert!(!agent.is_idle());
    agent.kill_all_files();
    run_until_idle(&poller, &mut agent);
    drop(lazy);
}

#[test]
fn a_removal_ends_with_its_connection() {
    let here = Directory::new();
    let tree = here.path("tree");
    fs::create_dir(&tree).unwrap();
    for n in 0..200 {
        fs::write(tree.join(n.to_string()), "").unwrap();
    }
    let (stream, guest) = UnixStream::pair().unwrap();
    let request = FileInput::Start(FileRequest::Remove {
        path: bytes(&tree),
        recursive: true,
    });
    frame::write(&mut &stream, &request, MAX_FILE_FRAME).unwrap();
    // Gone before the agent even reads the request.
    drop(stream);
    guest.set_nonblocking(true).unwrap();
    serve(guest.into());
    assert_eq!(fs::read_dir(&tree).unwrap().count(), 200);
}

/// Whoever looks twice at a path can be led elsewhere by a program that puts a
/// link in the place of a directory in between.
#[test]
fn a_removal_is_not_led_elsewhere_by_a_link_that_appears_meanwhile() {
    const PAIRS: usize = 16;
    let here = Directory::new();
    let (outside, tree, aside) = (here.path("outside"), here.path("tree"), here.path("aside"));
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("kept"), "").unwrap();
    let ended = AtomicBool::new(false);
    let round = || {
        let _ = fs::create_dir_all(&aside);
        for n in 0..PAIRS {
            let n = n.to_string();
            // Swapped already, some of them.
            let _ = symlink(&outside, aside.join(&n));
            let _ = fs::create_dir_all(tree.join(&n));
            let _ = fs::write(tree.join(&n).join("file"), "");
        }
        // It may end in any way, but not outside.
        let _ = remove(&tree, true);
        let kept = outside.join("kept").exists();
        let _ = (fs::remove_dir_all(&aside), fs::remove_dir_all(&tree));
        kept
    };
    let (kept, swaps) = std::thread::scope(|scope| {
        let program = scope.spawn(|| {
            let mut swaps = 0_usize;
            while !ended.load(Ordering::Relaxed) {
                for n in 0..PAIRS {
                    let (one, two) = (tree.join(n.to_string()), aside.join(n.to_string()));
                    let flags = RenameFlags::RENAME_EXCHANGE;
                    // The other side may have removed it.
                    let swapped = renameat2(AT_FDCWD, &one, AT_FDCWD, &two, flags);
                    swaps += usize::from(swapped.is_ok());
                }
            }
            swaps
        });
        // Nothing here panics: the program would never hear of the end.
        let kept = (0..50).all(|_| round());
        ended.store(true, Ordering::Relaxed);
        (kept, program.join().unwrap())
    });
    assert!(kept, "it removed what a link led to");
    assert!(swaps > 0, "nothing was in the way");
}
