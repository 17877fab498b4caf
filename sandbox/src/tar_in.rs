//! Tar archives as trees of the guest.

use std::collections::{HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::path::Path;
use std::time::SystemTime;

use flashpan_protocol::agent::{Bytes, MAX_DATA};
use flashpan_protocol::file::{
    FileFailureKind, FileInput, FileRequest, FileStat, MAX_FILE_FRAME, MAX_NAME, MAX_PATH,
    MAX_TREE_DEPTH, MAX_TREE_ENTRIES, TreeEntry, TreeInRequest,
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

const TOO_DEEP: &str = "its directories are nested too deep: 256 levels are the most";
const NAME_OF_DIRECTORY: &str = "it is not a directory, and has the name of one";

/// Content of a hole.
static ZEROS: [u8; 32 * 1024] = [0; 32 * 1024];

impl Sandbox {
    /// Unpacks a tar archive into a directory of the guest, which has to be there:
    /// v7, ustar, GNU's and POSIX's, not compressed. Nothing of it is kept but what
    /// is on the way and a number for each file, and no more is read than the guest
    /// takes; `from` is read to its end.
    ///
    /// Directories, files and links are taken, with the owners that the archive has, as
    /// numbers, unless [`CopyOptions::owner`] says otherwise, and all permissions.
    /// Extended attributes are not kept. A directory that an entry is in and that has
    /// none itself is made with mode 755; of one that has some, before what is in it or
    /// after, the last one holds. What is there already is replaced or filled as
    /// [below](#trees-of-files). Hard links are to files and symbolic links that come
    /// before them in the archive. There are at most 256 directories in a path.
    ///
    /// Nothing is written outside of the directory: absolute names and names with
    /// `..` are refused, and no symbolic link below it is followed, whether it comes
    /// from the archive or was there. Devices and FIFOs are refused too.
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
    /// The paths that hard links can be to, as numbers that nobody can foresee: two that
    /// have the same one only let a link be to a file that was there before.
    linkable: HashSet<u64>,
    numbers: RandomState,
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

/// The names that a path in an archive is made of, none for the directory that all goes
/// to; or what is wrong with it.
fn names_of(path: &[u8]) -> Result<Vec<&[u8]>, &'static str> {
    if path.starts_with(b"/") {
        return Err("is an absolute path; take out the first slash");
    }
    let names = path.split(|byte| *byte == b'/');
    let names: Vec<&[u8]> = names.filter(|name| !matches!(*name, b"" | b".")).collect();
    if names.contains(&b"..".as_slice()) {
        return Err("has `..`, which leads out");
    }
    let fits = |name: &&[u8]| name.len() <= MAX_NAME && !name.contains(&0);
    match names.iter().all(fits) {
        true => Ok(names),
        false => Err("is none: 255 bytes without NUL are the most"),
    }
}

impl Unpacker {
    fn new() -> Result<Self> {
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        let mut unpacker = Self {
            open: Vec::new(),
            file: None,
            linkable: HashSet::new(),
            numbers: RandomState::new(),
            copied: Copied::default(),
            queue: VecDeque::new(),
            now: i64::try_from(now.as_secs()).unwrap_or(i64::MAX),
        };
        let root = unpacker.made_up(b"root");
        unpacker.frame(&FileInput::Entry(root))?;
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
        let mut names = match names_of(&entry.path) {
            Ok(names) => names,
            Err(why) => return refused(&format!("its name {why}")),
        };
        let (mode, target): (u32, &[u8]) = match &entry.kind {
            Kind::Regular => (REGULAR, b""),
            Kind::Directory => (DIRECTORY, b""),
            Kind::Symlink(target) => (SYMLINK, target),
            Kind::HardLink(to) => {
                let link = match self.hard_link(&names, to) {
                    Ok(link) => link,
                    Err(why) => return refused(&why),
                };
                names.pop();
                self.enter(&names)?;
                self.count()?;
                return self.frame(&link);
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
                _ => refused(NAME_OF_DIRECTORY),
            };
        };
        if names.len().saturating_add(usize::from(mode == DIRECTORY)) > MAX_TREE_DEPTH {
            return refused(TOO_DEEP);
        }
        self.enter(&names)?;
        if mode != DIRECTORY {
            let whole = [names.as_slice(), &[name]].concat();
            self.linkable.insert(self.numbers.hash_one(whole));
        }
        self.count()?;
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

    /// One more: of each a number is kept.
    fn count(&mut self) -> Result<()> {
        self.copied.entries = self.copied.entries.saturating_add(1);
        match self.copied.entries > MAX_TREE_ENTRIES {
            true => Err(Error::archive(
                "there are more than 4194304 files and directories in it",
            )),
            false => Ok(()),
        }
    }

    /// Another name for what came before, or why it is none.
    fn hard_link(&mut self, names: &[&[u8]], to: &[u8]) -> Result<FileInput, String> {
        let Some((name, directories)) = names.split_last() else {
            return Err(NAME_OF_DIRECTORY.to_owned());
        };
        if directories.len() > MAX_TREE_DEPTH {
            return Err(TOO_DEEP.to_owned());
        }
        let target = names_of(to).map_err(|why| format!("what it is a hard link to {why}"))?;
        if !self.linkable.contains(&self.numbers.hash_one(&target)) {
            let to = one_line(&String::from_utf8_lossy(to), 300);
            return Err(format!(
                "it is a hard link to {to}, and no file of that name is before it in the archive"
            ));
        }
        self.linkable.insert(self.numbers.hash_one(names));
        Ok(FileInput::HardLink {
            name: Bytes::from(*name),
            path: Bytes::from(target.join(&b'/')),
        })
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
            // It may be there, and the archive may have an entry for it.
            let directory = self.made_up(name);
            self.frame(&FileInput::Enter(directory))?;
            self.open.push(name.to_vec());
        }
        Ok(())
    }

    /// A directory of which the archive has said nothing.
    fn made_up(&self, name: &[u8]) -> TreeEntry {
        TreeEntry {
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
        }
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
mod tests;
