//! Trees of the guest as tar archives.

use std::path::Path;

use flashpan_protocol::agent::Bytes;
use flashpan_protocol::file::{
    FileFailureKind, FileOutput, MAX_NAME, MAX_PATH, MAX_TREE_DEPTH, TreeEntry,
};
use flashpan_rootfs::tar::{END, Member, MemberKind, padding};
use flashpan_rootfs::tree::Timestamp;
use tokio::io::{AsyncWrite, AsyncWriteExt};

use crate::copy::{Budget, Copied, CopyOptions, Outgoing, Root, path_from};
use crate::copy_time::Time;
use crate::error::{Error, Result};
use crate::file_link::ANSWER_WITHIN;
use crate::pump::broken;
use crate::sandbox::Sandbox;

/// Most bytes that are kept of a file that said it had none, as those of /proc do:
/// its length comes before its content.
const UNSIZED: usize = 1 << 20;

impl Sandbox {
    /// Writes a file of the guest, or a directory with all that is in it, as a tar
    /// archive: POSIX's, with records only for what has no room without. Nothing of
    /// it is kept but what is on the way, and no more is taken out of the guest than
    /// `to` takes.
    ///
    /// The first entry has the last name of `from`, and all others are below it; of
    /// a path that ends in `/.`, and of the root, it is `./`. Owners and all
    /// permissions are as in the guest, whatever [`CopyOptions::archive`] says.
    /// `to` is flushed and not closed.
    ///
    /// No name in it leads out of the directory where it is unpacked. But it can
    /// have links that lead anywhere, programs with the rights of root, and contents
    /// of the guest's choice.
    ///
    /// # Errors
    /// See [above](#files-of-the-guest); [`Error::CopyTooLong`],
    /// [`Error::CopyTooMany`], and [`Error::Host`] if `to` cannot be written to.
    /// What `to` got is no whole archive then.
    pub async fn tar_out(
        &self,
        from: impl AsRef<Path>,
        to: &mut (impl AsyncWrite + Unpin + ?Sized),
        options: CopyOptions,
    ) -> Result<Copied> {
        let time = Time::of(self, options);
        time.limit(self.pack(from.as_ref(), to, options)).await
    }

    async fn pack(
        &self,
        from: &Path,
        to: &mut (impl AsyncWrite + Unpin + ?Sized),
        options: CopyOptions,
    ) -> Result<Copied> {
        let Outgoing {
            root,
            mut link,
            first,
        } = self.begin_out(from, options).await?;
        let mut budget = Budget::new(from, options);
        let mut packer = Packer::new(from, root);
        let mut step = FileOutput::Entry(first);
        loop {
            let last = step == FileOutput::Done;
            packer.take(step)?;
            let failed = Error::host("write the archive");
            to.write_all(&packer.archive).await.map_err(failed)?;
            packer.archive.clear();
            if last {
                to.flush().await.map_err(Error::host("write the archive"))?;
                return Ok(packer.copied);
            }
            step = link.output.next_within(ANSWER_WITHIN).await?;
            budget.take(&step, &link)?;
        }
    }
}

/// Makes an archive of what a guest sends, of which nothing is trusted.
struct Packer<'a> {
    from: &'a Path,
    /// Until it has come.
    root: Option<Root>,
    /// The path of the directory that is open, with a slash, and where the name of
    /// each open directory begins in it.
    path: Vec<u8>,
    levels: Vec<usize>,
    file: Option<Content>,
    is_finished: bool,
    copied: Copied,
    /// What was made of the last step.
    archive: Vec<u8>,
}

/// The file whose content comes.
enum Content {
    /// So many bytes of so many are to come.
    Sized { path: Vec<u8>, left: u64, size: u64 },
    /// It has said that it is empty, and this was in it.
    Unsized { entry: TreeEntry, content: Vec<u8> },
}

impl<'a> Packer<'a> {
    fn new(from: &'a Path, root: Root) -> Self {
        Self {
            from,
            root: Some(root),
            path: Vec::new(),
            levels: Vec::new(),
            file: None,
            is_finished: false,
            copied: Copied::default(),
            archive: Vec::new(),
        }
    }

    fn take(&mut self, step: FileOutput) -> Result<()> {
        match step {
            FileOutput::Entry(entry) => self.entry(entry),
            FileOutput::Data(bytes) => self.data(&bytes),
            FileOutput::Close => self.close(),
            FileOutput::Skipped(entry) => {
                check_name(&entry.name)?;
                let path = self.path_of(&entry.name);
                self.copied.skip(self.below_root(&path).as_slice());
                Ok(())
            }
            FileOutput::Done if self.is_finished => {
                self.archive.extend_from_slice(&END);
                Ok(())
            }
            _ => Err(broken("it did not send all of a tree".to_owned())),
        }
    }

    fn entry(&mut self, mut entry: TreeEntry) -> Result<()> {
        if self.is_finished || self.file.is_some() {
            return Err(broken("it sent an entry where none can be".to_owned()));
        }
        match self.root.take() {
            // It is called what the caller calls it.
            Some(root) if root.contents => entry.name = Bytes::from(b"."),
            Some(root) => entry.name = Bytes::from(root.name),
            None if self.levels.is_empty() => {
                return Err(broken("it sent an entry where none can be".to_owned()));
            }
            None => check_name(&entry.name)?,
        }
        self.copied.entries = self.copied.entries.saturating_add(1);
        if entry.stat.is_dir() {
            if self.levels.len() >= MAX_TREE_DEPTH {
                return Err(broken("it sent more than 256 levels".to_owned()));
            }
            self.header(&entry, MemberKind::Directory);
            self.levels.push(self.path.len());
            self.path.extend_from_slice(&entry.name);
            self.path.push(b'/');
        } else if entry.stat.is_symlink() {
            let target = entry.target.as_slice();
            if target.is_empty() || target.len() > MAX_PATH || target.contains(&0) {
                return Err(broken("it sent a link to nowhere".to_owned()));
            }
            let member = MemberKind::Symlink(target);
            self.header(&entry, member);
            self.is_finished = self.levels.is_empty();
        } else if entry.stat.is_file() {
            self.file = Some(match entry.stat.size {
                0 => Content::Unsized {
                    entry,
                    content: Vec::new(),
                },
                size => {
                    self.header(&entry, MemberKind::Regular(size));
                    Content::Sized {
                        path: self.path_of(&entry.name),
                        left: size,
                        size,
                    }
                }
            });
        } else {
            return Err(broken(
                "it sent an entry of a kind that is not copied".to_owned(),
            ));
        }
        Ok(())
    }

    fn data(&mut self, bytes: &[u8]) -> Result<()> {
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        match &mut self.file {
            None => return Err(broken("it sent content without a file".to_owned())),
            Some(Content::Sized { left, .. }) => {
                *left = left
                    .checked_sub(length)
                    .ok_or_else(|| broken("it sent more of a file than it had said".to_owned()))?;
                self.archive.extend_from_slice(bytes);
            }
            Some(Content::Unsized { entry, content }) => {
                if content.len().saturating_add(bytes.len()) > UNSIZED {
                    let path = [self.path.as_slice(), entry.name.as_slice()].concat();
                    let why = "it says that it is empty, and has more than 1 MiB";
                    return Err(self.failed(&path, why));
                }
                content.extend_from_slice(bytes);
            }
        }
        self.copied.content(bytes.len());
        Ok(())
    }

    fn close(&mut self) -> Result<()> {
        match self.file.take() {
            Some(Content::Sized {
                path, left: 1.., ..
            }) => {
                return Err(self.failed(&path, "it became shorter while it was read"));
            }
            Some(Content::Sized { size, .. }) => self.pad(size),
            Some(Content::Unsized { entry, content }) => {
                let size = u64::try_from(content.len()).unwrap_or(u64::MAX);
                self.header(&entry, MemberKind::Regular(size));
                self.archive.extend_from_slice(&content);
                self.pad(size);
            }
            None => {
                let Some(begin) = self.levels.pop() else {
                    return Err(broken("it sent an end where nothing is open".to_owned()));
                };
                self.path.truncate(begin);
            }
        }
        self.is_finished = self.levels.is_empty();
        Ok(())
    }

    fn header(&mut self, entry: &TreeEntry, kind: MemberKind<'_>) {
        let stat = &entry.stat;
        let member = Member {
            path: &self.path_of(&entry.name),
            kind,
            permissions: u16::try_from(stat.permissions()).unwrap_or(0),
            uid: stat.uid,
            gid: stat.gid,
            modified: Timestamp {
                seconds: stat.modified,
                nanoseconds: match stat.modified_ns {
                    valid @ 0..=999_999_999 => valid,
                    _ => 0,
                },
            },
        };
        member.write(&mut self.archive);
    }

    fn pad(&mut self, size: u64) {
        let length = self.archive.len().saturating_add(padding(size));
        self.archive.resize(length, 0);
    }

    fn path_of(&self, name: &[u8]) -> Vec<u8> {
        [self.path.as_slice(), name].concat()
    }

    /// Without the name of the root.
    fn below_root(&self, path: &[u8]) -> Vec<u8> {
        let root = match self.levels.get(1) {
            Some(second) => *second,
            None => self.path.len(),
        };
        path.get(root..).unwrap_or_default().to_vec()
    }

    /// A file of the guest of which there is no archive.
    fn failed(&self, path: &[u8], why: &str) -> Error {
        let below = self.below_root(path);
        Error::File {
            path: match self.levels.is_empty() {
                true => self.from.to_owned(),
                false => self.from.join(path_from(&below)),
            },
            kind: FileFailureKind::Other,
            errno: 0,
            message: why.to_owned(),
        }
    }
}

/// A name is one, and leads nowhere else.
fn check_name(name: &[u8]) -> Result<()> {
    let fits = (1..=MAX_NAME).contains(&name.len())
        && !name.iter().any(|byte| matches!(byte, b'/' | 0))
        && name != b"."
        && name != b"..";
    match fits {
        true => Ok(()),
        false => Err(broken("it sent what is no name of a file".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use flashpan_protocol::file::{Entry, FileStat};

    use super::*;

    fn entry(name: &[u8], mode: u32, size: u64, target: &[u8]) -> FileOutput {
        FileOutput::Entry(TreeEntry {
            name: Bytes::from(name),
            stat: stat(mode, size),
            target: Bytes::from(target),
        })
    }

    fn stat(mode: u32, size: u64) -> FileStat {
        FileStat {
            mode,
            uid: 1,
            gid: 2,
            size,
            modified: 3,
            modified_ns: 0,
        }
    }

    fn directory(name: &[u8]) -> FileOutput {
        entry(name, 0o040_755, 4096, b"")
    }

    fn file(name: &[u8], size: u64) -> FileOutput {
        entry(name, 0o100_644, size, b"")
    }

    fn data(bytes: &[u8]) -> FileOutput {
        FileOutput::Data(bytes.to_vec())
    }

    /// The paths in the archive, or why there is none.
    fn pack(from: &str, steps: Vec<FileOutput>) -> Result<Vec<String>> {
        use flashpan_rootfs::tar::{Event, Reader};
        let mut packer = Packer::new(Path::new(from), Root::of_guest(Path::new(from))?);
        for step in steps {
            packer.take(step)?;
        }
        let mut paths = Vec::new();
        let mut reader = Reader::new(1 << 20);
        let read = reader.push::<flashpan_rootfs::tar::Error>(&packer.archive, &mut |event| {
            if let Event::Entry(entry) = event {
                paths.push(String::from_utf8(entry.path).unwrap());
            }
            Ok(())
        });
        read.unwrap();
        reader.finish().unwrap();
        assert!(packer.archive.ends_with(&END));
        Ok(paths)
    }

    #[test]
    fn the_top_entry_has_the_name_that_the_caller_gave() {
        let close = || FileOutput::Close;
        for (from, paths) in [
            ("/etc", &["etc/", "etc/x", "etc/d/", "etc/d/y"]),
            ("/etc/", &["etc/", "etc/x", "etc/d/", "etc/d/y"]),
            ("/etc/.", &["./", "./x", "./d/", "./d/y"]),
            ("/", &["./", "./x", "./d/", "./d/y"]),
        ] {
            let steps = vec![
                directory(b"../../what/the/guest/says"),
                file(b"x", 0),
                // As in /proc.
                data(b"content"),
                close(),
                directory(b"d"),
                entry(b"y", 0o120_777, 0, b"/to"),
                close(),
                close(),
                FileOutput::Done,
            ];
            assert_eq!(pack(from, steps).unwrap(), paths, "{from}");
        }
    }

    #[test]
    fn a_guest_that_sends_what_is_no_tree_is_refused() {
        let close = || FileOutput::Close;
        let skipped = |name: &[u8]| {
            FileOutput::Skipped(Entry {
                name: Bytes::from(name),
                stat: stat(0o010_644, 0),
            })
        };
        let long = [b'n'; 256];
        for name in [&b""[..], b".", b"..", b"a/b", b"/", b"a\0b", &long] {
            for step in [directory(name), file(name, 0), skipped(name)] {
                let error = pack("/top", vec![directory(b"top"), step]).unwrap_err();
                let text = error.to_string();
                assert!(
                    text.contains("what is no name of a file"),
                    "{name:?}: {text}"
                );
            }
        }
        for (steps, says) in [
            (vec![directory(b"t"), FileOutput::Done], "did not send all"),
            (vec![directory(b"t"), data(b"x")], "content without a file"),
            (vec![file(b"t", 1), file(b"u", 1)], "where none can be"),
            (vec![file(b"t", 1), data(b"xy")], "more of a file"),
            (vec![file(b"t", 2), data(b"x"), close()], "became shorter"),
            (vec![directory(b"t"), close(), close()], "nothing is open"),
            (
                vec![directory(b"t"), close(), file(b"u", 0)],
                "where none can be",
            ),
            (vec![entry(b"t", 0o120_777, 0, b"")], "a link to nowhere"),
            (
                vec![entry(b"t", 0o120_777, 0, b"a\0b")],
                "a link to nowhere",
            ),
            (vec![entry(b"t", 0o010_644, 0, b"")], "a kind that is not"),
            (vec![directory(b"t"); MAX_TREE_DEPTH + 1], "256 levels"),
            (
                [vec![file(b"t", 0)], vec![data(&[0; 1 << 19]); 3]].concat(),
                "has more than 1 MiB",
            ),
        ] {
            let text = pack("/top", steps).unwrap_err().to_string();
            assert!(text.contains(says), "{says}: {text}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_file_names_it() {
        let steps = vec![
            directory(b"t"),
            directory(b"d"),
            file(b"x", 2),
            FileOutput::Close,
        ];
        let error = pack("/top/.", steps).unwrap_err().to_string();
        assert_eq!(
            error,
            "/top/./d/x in the guest: it became shorter while it was read"
        );
        let alone = pack("/top", vec![file(b"t", 2), FileOutput::Close]);
        assert_eq!(
            alone.unwrap_err().to_string(),
            "/top in the guest: it became shorter while it was read"
        );
    }
}
