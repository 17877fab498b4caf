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
const UNSIZED: usize = 16 << 20;

/// Longest file that is read before its length is written: those of /sys say that
/// they have 4096 bytes, and most have fewer.
const SMALL: u64 = 64 * 1024;

/// Most bytes of a file that are zeros because it became shorter: there is no end to the
/// length that a guest can say, and zeros cost it nothing.
const FILLED: u64 = 16 << 20;

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
    /// [`CopyOptions::limit`] counts the bytes of the archive, names and padding
    /// included. A file of more than 64 KiB that becomes shorter while it is read is
    /// filled with at most 16 MiB of zeros and is in [`Copied::shrunk`]; one of fewer has
    /// the length that was read. Of one that grows, what it had at first is taken.
    ///
    /// No name in it leads out of the directory where it is unpacked. But it can
    /// have links that lead anywhere, programs with the rights of root, and contents
    /// of the guest's choice.
    ///
    /// # Errors
    /// See [above](#files-of-the-guest); [`Error::CopyTooLong`],
    /// [`Error::CopyTooMany`], [`Error::File`] for a path in the archive of more than
    /// 4095 bytes and a file that lost more than 16 MiB, and [`Error::Host`] if `to` cannot be written to.
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
        let limit = options.limit.unwrap_or(u64::MAX);
        let mut left = limit;
        let mut packer = Packer::new(from, root);
        let mut step = FileOutput::Entry(first);
        loop {
            let last = step == FileOutput::Done;
            packer.take(step)?;
            let length = u64::try_from(packer.archive.len()).unwrap_or(u64::MAX);
            let length = length.saturating_add(packer.zeros);
            // Before a byte of it is written: there may be no end to the zeros.
            left = left.checked_sub(length).ok_or_else(|| Error::CopyTooLong {
                path: from.to_owned(),
                limit,
            })?;
            let failed = Error::host("write the archive");
            to.write_all(&packer.archive).await.map_err(failed)?;
            packer.archive.clear();
            write_zeros(to, std::mem::take(&mut packer.zeros)).await?;
            if last {
                to.flush().await.map_err(Error::host("write the archive"))?;
                return Ok(packer.copied);
            }
            step = link.output.next_within(ANSWER_WITHIN).await?;
            budget.take(&step, &link)?;
        }
    }
}

/// Writes so many zeros, and lets the limits of time see in between.
async fn write_zeros(to: &mut (impl AsyncWrite + Unpin + ?Sized), mut left: u64) -> Result<()> {
    let zeros = [0; 4096];
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(usize::MAX);
        let now = zeros.get(..most).unwrap_or(&zeros);
        let failed = Error::host("write the archive");
        to.write_all(now).await.map_err(failed)?;
        left = left.saturating_sub(u64::try_from(now.len()).unwrap_or(u64::MAX));
        tokio::task::consume_budget().await;
    }
    Ok(())
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
    /// So many zeros follow.
    zeros: u64,
}

/// The file whose content comes.
enum Content {
    /// So many bytes of so many are to come.
    Sized { path: Vec<u8>, left: u64, size: u64 },
    /// Its length is known when it has ended, and this was in it.
    Whole {
        entry: TreeEntry,
        content: Vec<u8>,
        most: usize,
    },
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
            zeros: 0,
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
        let path = self.path_of(&entry.name);
        if path.len() > MAX_PATH {
            return Err(self.failed(&path, "its path in the archive has more than 4095 bytes"));
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
                size @ 0..=SMALL => Content::Whole {
                    entry,
                    content: Vec::new(),
                    most: match size {
                        0 => UNSIZED,
                        size => usize::try_from(size).unwrap_or(0),
                    },
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
            Some(Content::Whole {
                entry,
                content,
                most,
            }) => {
                if content.len().saturating_add(bytes.len()) > *most {
                    if entry.stat.size > 0 {
                        return Err(broken("it sent more of a file than it had said".to_owned()));
                    }
                    let path = [self.path.as_slice(), entry.name.as_slice()].concat();
                    let why = "it says that it is empty, and has more than 16 MiB";
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
            Some(Content::Sized { path, left, size }) => {
                if left > FILLED {
                    let why = "it became shorter while it was read, by more than 16 MiB";
                    return Err(self.failed(&path, why));
                }
                if left > 0 {
                    let below = self.below_root(&path);
                    self.copied.shrink(&below);
                }
                let padding = u64::try_from(padding(size)).unwrap_or(0);
                self.zeros = left.saturating_add(padding);
            }
            Some(Content::Whole { entry, content, .. }) => {
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
            let zeros = usize::try_from(std::mem::take(&mut packer.zeros)).unwrap();
            packer.archive.resize(packer.archive.len() + zeros, 0);
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
                [vec![file(b"t", 0)], vec![data(&[0; 1 << 19]); 33]].concat(),
                "has more than 16 MiB",
            ),
        ] {
            let text = pack("/top", steps).unwrap_err().to_string();
            assert!(text.contains(says), "{says}: {text}");
        }
    }

    #[test]
    fn a_path_that_is_too_long_is_refused_and_named() {
        let long = [b'n'; MAX_NAME];
        // With slashes, 4096 bytes before the last name.
        let mut steps = vec![directory(b"top")];
        steps.extend(std::iter::repeat_n(directory(&long), 16));
        let error = pack("/top", steps).unwrap_err();
        assert!(matches!(error, Error::File { .. }), "{error}");
        assert!(
            error.to_string().contains("more than 4095 bytes"),
            "{error}"
        );
        let target = vec![b't'; MAX_PATH + 1];
        let error = pack("/top", vec![entry(b"t", 0o120_777, 0, &target)]).unwrap_err();
        assert!(error.to_string().contains("a link to nowhere"), "{error}");
    }

    #[test]
    fn a_small_file_has_the_length_that_was_read_and_a_large_one_is_filled_with_zeros() {
        let mut packer = Packer::new(Path::new("/t"), Root::of_guest(Path::new("/t")).unwrap());
        for step in [file(b"t", 4096), data(b"short"), FileOutput::Close] {
            packer.take(step).unwrap();
        }
        assert_eq!(packer.archive.len(), 1024);
        assert_eq!(packer.archive.get(124..135), Some(&b"00000000005"[..]));
        assert_eq!((packer.zeros, packer.copied.shrunk_count), (0, 0));

        let size = SMALL + 1;
        let mut packer = Packer::new(Path::new("/t"), Root::of_guest(Path::new("/t")).unwrap());
        for step in [file(b"t", size), data(b"short"), FileOutput::Close] {
            packer.take(step).unwrap();
        }
        assert_eq!(packer.archive.len(), 512 + 5);
        assert_eq!(packer.zeros, size - 5 + 511);
        assert_eq!(packer.copied.shrunk_count, 1);
    }

    #[test]
    fn a_file_that_lost_more_than_16_mib_is_named_and_not_filled() {
        let close = || FileOutput::Close;
        let most = 16 << 20;
        let within = |size| vec![directory(b"t"), directory(b"d"), file(b"x", size), close()];
        for (from, steps, says) in [
            ("/top/.", within(u64::MAX), "/top/./d/x in the guest: "),
            ("/top", within(most + 1), "/top/d/x in the guest: "),
            (
                "/top",
                vec![file(b"t", 1 << 60), close()],
                "/top in the guest: ",
            ),
        ] {
            let error = pack(from, steps).unwrap_err();
            let text = format!("{says}it became shorter while it was read, by more than 16 MiB");
            assert_eq!(error.to_string(), text);
        }
        let mut steps = within(most);
        steps.extend([close(), close(), FileOutput::Done]);
        assert_eq!(pack("/top", steps).unwrap(), ["top/", "top/d/", "top/d/x"]);
    }
}
