//! The fake agent on file connections: it works on the files of this machine,
//! but for paths that begin with `/fake/`, which say what it does instead. Trees and
//! watches are left to the real agent.

use std::fs;
use std::io::Write;
use std::net::Shutdown;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use flashpan_guest_init::serve::{Service, serve};
use flashpan_protocol::agent::MAX_DATA;
use flashpan_protocol::file::{
    Change, ChangeKind, Entry, FileFailure, FileFailureKind, FileInput, FileOutput, FileRequest,
    FileStat, MAX_FILE_FRAME, TreeEntry, TreeInRequest, WriteRequest,
};
use flashpan_protocol::frame::{self, Decoder};

struct Link {
    stream: UnixStream,
    decoder: Decoder,
}

impl Link {
    fn say(&mut self, message: &FileOutput) -> bool {
        // What is longer than allowed is for the other side to refuse.
        let frame = frame::encode(message, 2 * MAX_FILE_FRAME).unwrap();
        self.stream.write_all(&frame).is_ok()
    }

    fn hear(&mut self) -> Option<FileInput> {
        self.decoder.read_message(&mut self.stream).ok().flatten()
    }
}

/// One operation.
pub(crate) fn agent(stream: UnixStream) {
    let decoder = Decoder::new(MAX_FILE_FRAME);
    let mut link = Link { stream, decoder };
    let Some(FileInput::Start(request)) = link.hear() else {
        panic!("no Start")
    };
    let path = match &request {
        FileRequest::Write(WriteRequest { path, .. })
        | FileRequest::Read { path, .. }
        | FileRequest::List { path }
        | FileRequest::Stat { path, .. }
        | FileRequest::MakeDirectory { path, .. }
        | FileRequest::Remove { path, .. }
        | FileRequest::Rename { from: path, .. }
        | FileRequest::TreeIn(TreeInRequest { path, .. })
        | FileRequest::TreeOut { path, .. }
        | FileRequest::Watch { path, .. } => path.as_slice(),
    };
    if let Some(trick) = path.strip_prefix(b"/fake/") {
        return play(&mut link, std::str::from_utf8(trick).unwrap());
    }
    if matches!(
        request,
        FileRequest::TreeIn(_) | FileRequest::TreeOut { .. } | FileRequest::Watch { .. }
    ) {
        return really(&mut link, request);
    }
    let answer = match perform(&mut link, &request) {
        Some(Ok(())) => FileOutput::Done,
        Some(Err(error)) => failure(&error),
        None => return,
    };
    link.say(&answer);
}

/// Has the real agent do it.
fn really(link: &mut Link, request: FileRequest) {
    let (mut agent, socket) = UnixStream::pair().unwrap();
    let serving = std::thread::spawn(move || serve(Service::File, socket.into()).unwrap());
    frame::write(&mut agent, &FileInput::Start(request), MAX_FILE_FRAME).unwrap();
    let mut answers = agent.try_clone().unwrap();
    let mut stream = link.stream.try_clone().unwrap();
    let answering = std::thread::spawn(move || {
        let _ = std::io::copy(&mut answers, &mut stream);
        let _ = stream.shutdown(Shutdown::Both);
        let _ = answers.shutdown(Shutdown::Both);
    });
    while let Some(message) = link.hear() {
        if frame::write(&mut agent, &message, MAX_FILE_FRAME).is_err() {
            break;
        }
    }
    let _ = agent.shutdown(Shutdown::Both);
    answering.join().unwrap();
    serving.join().unwrap();
}

fn failure(error: &std::io::Error) -> FileOutput {
    let kind = match error.kind() {
        std::io::ErrorKind::NotFound => FileFailureKind::NotFound,
        std::io::ErrorKind::AlreadyExists => FileFailureKind::Exists,
        std::io::ErrorKind::DirectoryNotEmpty => FileFailureKind::NotEmpty,
        _ => FileFailureKind::Other,
    };
    FileOutput::Failed(FileFailure {
        kind,
        errno: error.raw_os_error().unwrap(),
        message: error.to_string(),
    })
}

fn describe(meta: &fs::Metadata) -> FileStat {
    FileStat {
        mode: meta.mode(),
        uid: meta.uid(),
        gid: meta.gid(),
        size: meta.len(),
        modified: meta.mtime(),
        modified_ns: u32::try_from(meta.mtime_nsec()).unwrap(),
    }
}

/// `None` if the supervisor went away.
fn perform(link: &mut Link, request: &FileRequest) -> Option<std::io::Result<()>> {
    let at = |path: &[u8]| Path::new(std::ffi::OsStr::from_bytes(path)).to_owned();
    match request {
        FileRequest::Write(request) => return write(link, request, &at(&request.path)),
        FileRequest::Read {
            path,
            offset,
            length,
        } => {
            let path = at(path);
            let content = match fs::read(&path) {
                Ok(content) => content,
                Err(error) => return Some(Err(error)),
            };
            match path.metadata() {
                Ok(meta) => link.say(&FileOutput::Info(describe(&meta))),
                Err(error) => return Some(Err(error)),
            };
            let from = usize::try_from(*offset).unwrap().min(content.len());
            let most = length.map_or(usize::MAX, |length| usize::try_from(length).unwrap());
            let part = &content[from..][..most.min(content.len() - from)];
            for piece in part.chunks(MAX_DATA) {
                if !link.say(&FileOutput::Data(piece.to_vec())) {
                    return None;
                }
            }
        }
        FileRequest::List { path } => match fs::read_dir(at(path)) {
            Ok(list) => {
                for entry in list.map(Result::unwrap) {
                    // Processes of this machine come and go.
                    let Ok(meta) = entry.metadata() else { continue };
                    let stat = describe(&meta);
                    let name = entry.file_name().into_vec().into();
                    // One at a time: every frame has to be heard.
                    link.say(&FileOutput::Entries(vec![Entry { name, stat }]));
                }
            }
            Err(error) => return Some(Err(error)),
        },
        FileRequest::Stat { path, follow } => {
            let path = at(path);
            let meta = match follow {
                true => path.metadata(),
                false => path.symlink_metadata(),
            };
            match meta {
                Ok(meta) => link.say(&FileOutput::Info(describe(&meta))),
                Err(error) => return Some(Err(error)),
            };
        }
        FileRequest::MakeDirectory {
            path,
            mode,
            parents,
        } => {
            let path = at(path);
            let made = match parents {
                true => fs::create_dir_all(&path),
                false => fs::create_dir(&path),
            };
            let permissions = PermissionsExt::from_mode(*mode);
            return Some(made.and_then(|()| fs::set_permissions(path, permissions)));
        }
        FileRequest::Remove { path, recursive } => {
            let path = at(path);
            return Some(match (path.is_dir(), recursive) {
                (true, true) => fs::remove_dir_all(path),
                (true, false) => fs::remove_dir(path),
                (false, _) => fs::remove_file(path),
            });
        }
        FileRequest::Rename { from, to } => return Some(fs::rename(at(from), at(to))),
        FileRequest::TreeIn(_) | FileRequest::TreeOut { .. } | FileRequest::Watch { .. } => {
            unreachable!("left to the real agent")
        }
    }
    Some(Ok(()))
}

fn write(link: &mut Link, request: &WriteRequest, path: &PathBuf) -> Option<std::io::Result<()>> {
    let above = path.parent().unwrap();
    if request.parents {
        fs::create_dir_all(above).unwrap();
    } else if let Err(error) = above.metadata() {
        return Some(Err(error));
    }
    let mut content = Vec::new();
    loop {
        match link.hear() {
            Some(FileInput::Data(bytes)) => {
                assert!((1..=MAX_DATA).contains(&bytes.len()));
                content.extend(bytes);
            }
            Some(FileInput::End) => break,
            Some(other) => panic!("{other:?} in a write"),
            None => {
                fs::write(path.with_extension("abandoned"), "cancelled").unwrap();
                return None;
            }
        }
    }
    fs::write(path, content).unwrap();
    let mode = request.mode.unwrap_or(0o644);
    Some(fs::set_permissions(path, PermissionsExt::from_mode(mode)))
}

/// What a broken or hostile guest does.
fn play(link: &mut Link, trick: &str) {
    let stat = FileStat::default();
    let info = FileOutput::Info(stat);
    match trick.split_once(':').unwrap_or((trick, "")) {
        ("silent", _) => drop(link.say(&info)),
        // Writes until nobody listens, and notes it in a file.
        ("flood", note) => {
            link.say(&info);
            while link.say(&FileOutput::Data(vec![b'x'; MAX_DATA])) {}
            fs::write(note, "cancelled").unwrap();
        }
        ("cut", _) => {
            link.say(&info);
            link.say(&FileOutput::Data(b"half".to_vec()));
        }
        ("too-long-data", _) => {
            link.say(&info);
            link.say(&FileOutput::Data(vec![0; MAX_DATA + 1]));
            link.say(&FileOutput::Done);
        }
        ("too-long-frame", _) => {
            link.say(&info);
            link.say(&FileOutput::Data(vec![0; MAX_FILE_FRAME]));
        }
        ("more-than-asked", _) => {
            link.say(&info);
            link.say(&FileOutput::Data(b"abc".to_vec()));
            link.say(&FileOutput::Data(b"def".to_vec()));
            link.say(&FileOutput::Done);
        }
        ("endless-nothing", _) => {
            link.say(&info);
            while link.say(&FileOutput::Data(Vec::new())) {}
        }
        ("endless-empty-listing", _) => while link.say(&FileOutput::Entries(Vec::new())) {},
        ("done-at-once", _) => drop(link.say(&FileOutput::Done)),
        ("name", name) => {
            let name = name.replace('|', "/").into_bytes().into();
            link.say(&FileOutput::Entries(vec![Entry { name, stat }]));
            link.say(&FileOutput::Done);
        }
        ("endless-listing", _) => {
            let name = b"x".to_vec().into();
            let entries = FileOutput::Entries(vec![Entry { name, stat }; 512]);
            while link.say(&entries) {}
        }
        // Takes what it is sent and never says a word.
        ("deaf", _) => {}
        ("tree", name) => tree(link, name),
        ("changes", path) => {
            link.say(&info);
            let path = path.as_bytes().to_vec().into();
            link.say(&FileOutput::Changes(vec![Change {
                kind: ChangeKind::Created,
                path,
                to: Vec::new().into(),
                directory: false,
            }]));
        }
        ("escape", _) => {
            link.say(&FileOutput::Failed(FileFailure {
                kind: FileFailureKind::NoSpace,
                errno: 28,
                message: "write it:\n\x1b[31m full".to_owned(),
            }));
            // The rest of what is written is read by nobody.
        }
        other => panic!("no such trick {other:?}"),
    }
    // Until the supervisor has enough.
    while !matches!(trick, "cut") && link.hear().is_some() {}
}

/// A tree that should not be written as it is sent.
fn tree(link: &mut Link, trick: &str) {
    let entry = |name: &str, mode: u32, target: &str| {
        FileOutput::Entry(TreeEntry {
            name: name.as_bytes().to_vec().into(),
            stat: FileStat {
                mode,
                ..FileStat::default()
            },
            target: target.as_bytes().to_vec().into(),
        })
    };
    let directory = |name: &str| entry(name, 0o040_755, "");
    let file = |name: &str| entry(name, 0o104_755, "");
    let hollow = |name: &str, size: u64| match file(name) {
        FileOutput::Entry(mut entry) => {
            entry.stat.size = size;
            FileOutput::Entry(entry)
        }
        other => other,
    };
    let data = || FileOutput::Data(b"poison".to_vec());
    let (close, done) = (FileOutput::Close, FileOutput::Done);
    let frames = match trick {
        "dots" => vec![directory("t"), directory("..")],
        "slash" => vec![directory("t"), file("../outside")],
        "absolute" => vec![directory("t"), file("/outside")],
        "through" => vec![
            directory("t"),
            entry("l", 0o120_777, "../.."),
            directory("l"),
        ],
        "over" => vec![
            directory("t"),
            entry("l", 0o120_777, "../../outside"),
            file("l"),
            data(),
            close.clone(),
            close,
            done,
        ],
        "root-name" => vec![file("../../outside"), data(), close, done],
        "root-link" => vec![entry("l", 0o120_777, "outside"), done],
        "special" => vec![file("program"), data(), close, done],
        "half" => vec![
            directory("t"),
            file("whole"),
            close,
            file("half"),
            data(),
            done,
        ],
        "cut" => vec![directory("t"), file("half"), data()],
        // Much, it says, and has nothing.
        "hollow" => vec![
            directory("t"),
            hollow("big", 1 << 60),
            close.clone(),
            close,
            done,
        ],
        "shrunk" => vec![
            directory("t"),
            hollow("big", 1 << 20),
            close.clone(),
            close,
            done,
        ],
        "no-root" => vec![done],
        "no-entry" => vec![data()],
        "endless" | "endless-nothing" => vec![file("endless")],
        "endless-entries" | "endless-skipped" | "stalled" => vec![directory("t")],
        other => panic!("no such tree {other:?}"),
    };
    for frame in frames {
        link.say(&frame);
    }
    match trick {
        "endless" => while link.say(&FileOutput::Data(vec![0; MAX_DATA])) {},
        "endless-nothing" => while link.say(&FileOutput::Data(Vec::new())) {},
        "endless-entries" => while link.say(&directory("same")) && link.say(&FileOutput::Close) {},
        "endless-skipped" => {
            let skipped = FileOutput::Skipped(Entry {
                name: b"fifo".to_vec().into(),
                stat: FileStat::default(),
            });
            while link.say(&skipped) {}
        }
        "cut" => drop(link.stream.shutdown(Shutdown::Both)),
        _ => {}
    }
}
