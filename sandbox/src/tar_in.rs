//! Tar archives as trees of the guest.

use std::collections::VecDeque;
use std::path::Path;
use std::time::SystemTime;

use flashpan_protocol::agent::{Bytes, MAX_DATA};
use flashpan_protocol::file::{
    FileFailureKind, FileInput, FileRequest, FileStat, MAX_FILE_FRAME, MAX_NAME, MAX_PATH,
    MAX_TREE_DEPTH, TreeEntry, TreeInRequest,
};
use flashpan_protocol::frame;
use flashpan_rootfs::tar::{self, Event, Kind, Reader, Segment};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::copy::{Copied, CopyOptions};
use crate::copy_time::Time;
use crate::error::{Error, Result};
use crate::file_link::{ANSWER_WITHIN, FileLink, FileSender, guest_path};
use crate::sandbox::Sandbox;
use crate::text::one_line;

/// Longest extended header of an archive: those of Linux's paths and attributes fit.
const HEADER_MAX: u64 = 1 << 20;

/// Types of inodes, in a mode.
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;

/// Content of a hole.
static ZEROS: [u8; 32 * 1024] = [0; 32 * 1024];

impl Sandbox {
    /// Unpacks a tar archive into a directory of the guest, which has to be there:
    /// v7, ustar, GNU's and POSIX's, not compressed. Nothing of it is kept but what
    /// is on the way, and no more is read than the guest takes; `from` is read to
    /// its end.
    ///
    /// Directories, files and symbolic links are taken, with the owners that the
    /// archive has, as numbers, unless [`CopyOptions::owner`] says otherwise, and
    /// all permissions. Extended attributes are not kept. A directory that an entry
    /// is in and that has none itself is made with mode 755; what is there already
    /// is replaced or filled as [below](#trees-of-files).
    ///
    /// Nothing is written outside of the directory: absolute names and names with
    /// `..` are refused, and no symbolic link below it is followed, whether it comes
    /// from the archive or was there. Hard links, devices and FIFOs are refused too.
    ///
    /// # Errors
    /// See [above](#files-of-the-guest); [`Error::Archive`] for what the archive is
    /// not taken for, and [`Error::Host`] if `from` cannot be read. What came
    /// before in the archive may be there then.
    pub async fn tar_in(
        &self,
        from: &mut (impl AsyncRead + Unpin + ?Sized),
        to: impl AsRef<Path>,
        options: CopyOptions,
    ) -> Result<Copied> {
        let time = Time::of(self, options);
        time.limit(self.unpack(from, to.as_ref(), options)).await
    }

    async fn unpack(
        &self,
        from: &mut (impl AsyncRead + Unpin + ?Sized),
        to: &Path,
        options: CopyOptions,
    ) -> Result<Copied> {
        let request = FileRequest::TreeIn(TreeInRequest {
            path: guest_path(to)?,
            contents: true,
            owner: options.owner_given(),
        });
        self.check_directory(to).await?;
        let FileLink {
            mut input,
            mut output,
        } = FileLink::start(self, to, request).await?;
        // An answer before the end is a failure.
        let (copied, answer) = tokio::select! {
            biased;
            early = output.next() => return Err(output.unexpected(&early?)),
            sent = send(from, &mut input) => {
                (sent?, output.next_within(ANSWER_WITHIN).await?)
            }
        };
        output.done(&answer)?;
        Ok(copied)
    }

    /// `Ok` if there is a directory: a tree that is sent makes one where none is.
    async fn check_directory(&self, path: &Path) -> Result<()> {
        let why = match self.stat(path).await {
            Ok(stat) if stat.is_dir() => return Ok(()),
            Ok(_) => (FileFailureKind::NotADirectory, "it is not a directory"),
            Err(Error::File {
                kind: FileFailureKind::NotFound,
                ..
            }) => (
                FileFailureKind::NotFound,
                "there is no such file or directory",
            ),
            Err(error) => return Err(error),
        };
        let (kind, message) = why;
        Err(Error::File {
            path: path.to_owned(),
            kind,
            errno: 0,
            message: format!("{message}; an archive is unpacked into a directory that is there"),
        })
    }
}

/// Sends the archive as a tree.
async fn send(
    from: &mut (impl AsyncRead + Unpin + ?Sized),
    input: &mut FileSender,
) -> Result<Copied> {
    let mut buffer = vec![0; MAX_DATA];
    let mut reader = Reader::new(HEADER_MAX);
    let mut unpacker = Unpacker::new()?;
    let mut is_empty = true;
    loop {
        let read = from.read(&mut buffer).await;
        let n = read.map_err(Error::host("read the archive"))?;
        if n == 0 {
            break;
        }
        is_empty = false;
        let bytes = buffer.get(..n).unwrap_or_default();
        reader.push(bytes, &mut |event| unpacker.take(event))?;
        unpacker.drain(input).await?;
    }
    if is_empty {
        return Err(Error::archive("there is none: not one byte came"));
    }
    reader.finish()?;
    if !reader.is_ended() {
        return Err(Error::archive(
            "it ends without the zeros that an archive ends with: who wrote it may have failed",
        ));
    }
    unpacker.finish()?;
    unpacker.drain(input).await?;
    input.end().await?;
    Ok(unpacker.copied)
}

impl From<tar::Error> for Error {
    fn from(error: tar::Error) -> Self {
        Self::archive(error.to_string())
    }
}

/// Turns entries, which have paths, into a tree, which has none.
struct Unpacker {
    /// Names of the directories that are open, below the one that all goes to.
    open: Vec<Vec<u8>>,
    file: Option<Content>,
    copied: Copied,
    queue: VecDeque<Piece>,
    /// When directories were made that the archive does not have.
    now: i64,
}

/// Something to send.
enum Piece {
    Frame(Vec<u8>),
    /// So many zeros of a hole; there is no bound to how many.
    Zeros(u64),
}

/// The file whose content comes.
struct Content {
    at: u64,
    size: u64,
    /// The pieces that are stored and have not come yet.
    segments: VecDeque<Segment>,
}

impl Unpacker {
    fn new() -> Result<Self> {
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        let mut unpacker = Self {
            open: Vec::new(),
            file: None,
            copied: Copied::default(),
            queue: VecDeque::new(),
            now: i64::try_from(now.as_secs()).unwrap_or(i64::MAX),
        };
        unpacker.made_up(b"root")?;
        Ok(unpacker)
    }

    fn take(&mut self, event: Event<'_>) -> Result<()> {
        match event {
            Event::Entry(entry) => {
                self.end_file()?;
                self.entry(entry)
            }
            Event::Data(bytes) => self.data(bytes),
        }
    }

    /// After the last entry.
    fn finish(&mut self) -> Result<()> {
        self.end_file()?;
        self.enter(&[])?;
        self.frame(&FileInput::Close)
    }

    fn entry(&mut self, entry: tar::Entry) -> Result<()> {
        let refused = |why: &str| {
            let path = one_line(&String::from_utf8_lossy(&entry.path), 300);
            Err(Error::archive(format!("{path}: {why}")))
        };
        if entry.path.starts_with(b"/") {
            return refused("its name is an absolute path; take out the first slash");
        }
        let names = entry.path.split(|byte| *byte == b'/');
        let mut names: Vec<&[u8]> = names.filter(|name| !matches!(*name, b"" | b".")).collect();
        if names.contains(&b"..".as_slice()) {
            return refused("its name has `..`, which leads out");
        }
        if names
            .iter()
            .any(|name| name.len() > MAX_NAME || name.contains(&0))
        {
            return refused("its name is none: 255 bytes without NUL are the most");
        }
        let (mode, target): (u32, &[u8]) = match &entry.kind {
            Kind::Regular => (REGULAR, b""),
            Kind::Directory => (DIRECTORY, b""),
            Kind::Symlink(target) => (SYMLINK, target),
            Kind::HardLink(_) => {
                return refused(
                    "hard links are not supported; make the archive without, as \
                     `tar --hard-dereference` does",
                );
            }
            Kind::CharDevice(..) | Kind::BlockDevice(..) => {
                return refused("devices are not supported; leave it out");
            }
            Kind::Fifo => return refused("FIFOs are not supported; leave it out"),
        };
        let is_link = mode == SYMLINK;
        let fits = (1..=MAX_PATH).contains(&target.len()) && !target.contains(&0);
        if is_link && !fits {
            return refused("where the link points is no path of at most 4095 bytes");
        }
        let Some(name) = names.pop() else {
            return match entry.kind {
                // The directory itself, which is there.
                Kind::Directory => Ok(()),
                _ => refused("it is not a directory, and has the name of one"),
            };
        };
        // With the one that all goes to.
        if names.len().saturating_add(1) > MAX_TREE_DEPTH - usize::from(mode == DIRECTORY) {
            return refused("its directories are nested too deep: 256 levels are the most");
        }
        self.enter(&names)?;
        self.copied.entries = self.copied.entries.saturating_add(1);
        self.frame(&FileInput::Entry(TreeEntry {
            name: Bytes::from(name),
            stat: FileStat {
                mode: mode | u32::from(entry.permissions),
                uid: entry.uid,
                gid: entry.gid,
                size: entry.size,
                modified: entry.modified.seconds,
                modified_ns: entry.modified.nanoseconds,
            },
            target: Bytes::from(target),
        }))?;
        match entry.kind {
            Kind::Directory => self.open.push(name.to_vec()),
            Kind::Regular => {
                let whole = Segment {
                    offset: 0,
                    length: entry.size,
                };
                self.file = Some(Content {
                    at: 0,
                    size: entry.size,
                    segments: entry.sparse.unwrap_or_else(|| vec![whole]).into(),
                });
            }
            _ => {}
        }
        Ok(())
    }

    /// Goes to the directory that these names lead to, ending what is open besides.
    fn enter(&mut self, names: &[&[u8]]) -> Result<()> {
        let pairs = self.open.iter().zip(names);
        let common = pairs.take_while(|(open, name)| open == *name).count();
        while self.open.len() > common {
            self.open.pop();
            self.frame(&FileInput::Close)?;
        }
        for name in names.get(common..).unwrap_or_default() {
            self.made_up(name)?;
            self.open.push(name.to_vec());
        }
        Ok(())
    }

    /// Begins a directory of which the archive says nothing; or it did before, and
    /// the directory is there.
    fn made_up(&mut self, name: &[u8]) -> Result<()> {
        self.frame(&FileInput::Entry(TreeEntry {
            name: Bytes::from(name),
            stat: FileStat {
                mode: DIRECTORY | 0o755,
                uid: 0,
                gid: 0,
                size: 0,
                modified: self.now,
                modified_ns: 0,
            },
            target: Bytes::default(),
        }))
    }

    fn data(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let Some(file) = &mut self.file else {
                return Err(Error::archive("there is content without a file"));
            };
            let Some(segment) = file.segments.front_mut() else {
                return Err(Error::archive("there is more content than in the file"));
            };
            let hole = segment.offset.saturating_sub(file.at);
            let left = usize::try_from(segment.length).unwrap_or(usize::MAX);
            let (now, later) = bytes.split_at(bytes.len().min(left));
            let length = u64::try_from(now.len()).unwrap_or(u64::MAX);
            file.at = segment.offset.saturating_add(length);
            segment.offset = file.at;
            segment.length = segment.length.saturating_sub(length);
            if segment.length == 0 {
                file.segments.pop_front();
            }
            bytes = later;
            self.zeros(hole);
            if !now.is_empty() {
                self.copied.content(now.len());
                self.frame(&FileInput::Data(now.to_vec()))?;
            }
        }
        Ok(())
    }

    fn end_file(&mut self) -> Result<()> {
        let Some(file) = self.file.take() else {
            return Ok(());
        };
        self.zeros(file.size.saturating_sub(file.at));
        self.frame(&FileInput::Close)
    }

    fn zeros(&mut self, length: u64) {
        if length > 0 {
            self.copied.bytes = self.copied.bytes.saturating_add(length);
            self.queue.push_back(Piece::Zeros(length));
        }
    }

    fn frame(&mut self, message: &FileInput) -> Result<()> {
        let frame = frame::encode(message, MAX_FILE_FRAME)?;
        self.queue.push_back(Piece::Frame(frame));
        Ok(())
    }

    /// Sends what was made.
    async fn drain(&mut self, input: &mut FileSender) -> Result<()> {
        while let Some(piece) = self.queue.pop_front() {
            match piece {
                Piece::Frame(frame) => input.frame(&frame).await?,
                Piece::Zeros(mut left) => {
                    while left > 0 {
                        let most = usize::try_from(left).unwrap_or(usize::MAX);
                        let zeros = ZEROS.get(..most).unwrap_or(&ZEROS);
                        input.data(zeros).await?;
                        left = left.saturating_sub(u64::try_from(zeros.len()).unwrap_or(0));
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use flashpan_rootfs::tar::{Entry, Member, MemberKind};
    use flashpan_rootfs::tree::Timestamp;

    use super::*;

    fn entry(path: &str, kind: Kind, size: u64) -> Entry {
        Entry {
            path: path.as_bytes().to_vec(),
            kind,
            permissions: 0o644,
            uid: 1,
            gid: 2,
            modified: Timestamp::default(),
            xattrs: Vec::new(),
            size,
            position: 0,
            stored: size,
            sparse: None,
        }
    }

    /// What is sent of a tree that these entries are, without the root: `+name`,
    /// `=content`, `0length` of a hole, and `-` for an end.
    fn sent(events: Vec<Event<'_>>) -> Result<Vec<String>> {
        let mut unpacker = Unpacker::new()?;
        for event in events {
            unpacker.take(event)?;
        }
        unpacker.finish()?;
        let mut decoder = frame::Decoder::new(MAX_FILE_FRAME);
        let mut words = Vec::new();
        for piece in unpacker.queue {
            let frame = match piece {
                Piece::Zeros(length) => {
                    words.push(format!("0{length}"));
                    continue;
                }
                Piece::Frame(frame) => frame,
            };
            decoder.extend(&frame);
            words.push(match decoder.next_message().unwrap().unwrap() {
                FileInput::Entry(entry) => format!("+{}", String::from_utf8_lossy(&entry.name)),
                FileInput::Data(bytes) => format!("={}", String::from_utf8_lossy(&bytes)),
                FileInput::Close => "-".to_owned(),
                other => panic!("{other:?}"),
            });
        }
        assert_eq!(words.first().map(String::as_str), Some("+root"));
        assert_eq!(words.pop().as_deref(), Some("-"));
        Ok(words.split_off(1))
    }

    #[test]
    fn entries_with_paths_become_a_tree_with_names() {
        let directory = |path| Event::Entry(entry(path, Kind::Directory, 0));
        let link = |path| Event::Entry(entry(path, Kind::Symlink(b"/to".to_vec()), 0));
        for (events, words) in [
            (vec![], ""),
            (vec![directory("./")], ""),
            (vec![directory("a/"), link("a/b"), link("c")], "+a +b - +c"),
            // What the archive does not have, and what it comes back to.
            (vec![link("a/b/c"), link("a/d")], "+a +b +c - +d -"),
            (
                vec![link("a/b"), link("c"), link("./a//d")],
                "+a +b - +c +a +d -",
            ),
            (
                vec![
                    Event::Entry(entry("a/f", Kind::Regular, 3)),
                    Event::Data(b"x"),
                    Event::Data(b"yz"),
                    Event::Entry(entry("g", Kind::Regular, 0)),
                ],
                "+a +f =x =yz - - +g -",
            ),
        ] {
            assert_eq!(sent(events).unwrap().join(" "), words);
        }
    }

    #[test]
    fn holes_are_zeros_that_are_not_kept() {
        let segment = |offset, length| Segment { offset, length };
        let sparse = |size, map| Entry {
            sparse: Some(map),
            ..entry("f", Kind::Regular, size)
        };
        let map = vec![
            segment(10, 2),
            segment(12, 1),
            segment(20, 3),
            segment(40, 0),
        ];
        let events = vec![
            Event::Entry(sparse(1 << 50, map)),
            Event::Data(b"abcd"),
            Event::Data(b"ef"),
        ];
        let end = (1_u64 << 50) - 23;
        let words = sent(events).unwrap().join(" ");
        assert_eq!(words, format!("+f 010 =ab =c 07 =d =ef 0{end} -"));
        let words = sent(vec![Event::Entry(sparse(5, Vec::new()))]).unwrap();
        assert_eq!(words, ["+f", "05", "-"]);
    }

    #[test]
    fn what_leads_out_or_is_no_file_is_refused() {
        let long = format!("a/{}", "n".repeat(256));
        let deep = "d/".repeat(256);
        let link = |target: &[u8]| Kind::Symlink(target.to_vec());
        for (path, kind, says) in [
            ("/etc/passwd", Kind::Regular, "is an absolute path"),
            ("..", Kind::Directory, "leads out"),
            ("a/../../b", Kind::Regular, "leads out"),
            ("a/..", link(b"x"), "leads out"),
            (".", Kind::Regular, "has the name of one"),
            (&long, Kind::Regular, "255 bytes"),
            (&deep, Kind::Directory, "nested too deep"),
            (&format!("{deep}f"), Kind::Regular, "nested too deep"),
            ("l", link(b""), "where the link points"),
            ("l", link(&[b'x'; 4096]), "where the link points"),
            ("h", Kind::HardLink(b"l".to_vec()), "hard links are not"),
            ("c", Kind::CharDevice(1, 3), "devices are not"),
            ("b", Kind::BlockDevice(1, 3), "devices are not"),
            ("p", Kind::Fifo, "FIFOs are not"),
        ] {
            let error = sent(vec![Event::Entry(entry(path, kind, 0))]).unwrap_err();
            let text = error.to_string();
            assert!(text.contains(says), "{path}: {text}");
            assert!(text.starts_with("cannot unpack the archive: "), "{text}");
        }
        let most = &deep[2..];
        assert!(sent(vec![Event::Entry(entry(most, Kind::Directory, 0))]).is_ok());
    }

    #[test]
    fn an_archive_is_unpacked_whatever_pieces_it_comes_in() {
        let mut archive = Vec::new();
        for (path, kind) in [
            (&b"d"[..], MemberKind::Directory),
            (b"d/f", MemberKind::Regular(3)),
        ] {
            let member = Member {
                path,
                kind,
                permissions: 0o644,
                uid: 0,
                gid: 0,
                modified: Timestamp::default(),
            };
            member.write(&mut archive);
        }
        archive.extend_from_slice(b"xyz");
        archive.resize(archive.len() + tar::padding(3), 0);
        for size in [1, 7, 512, 4096] {
            let mut reader = Reader::new(HEADER_MAX);
            let mut unpacker = Unpacker::new().unwrap();
            for piece in archive.chunks(size) {
                reader
                    .push(piece, &mut |event| unpacker.take(event))
                    .unwrap();
            }
            reader.finish().unwrap();
            unpacker.finish().unwrap();
            assert_eq!((unpacker.copied.entries, unpacker.copied.bytes), (2, 3));
        }
    }
}
