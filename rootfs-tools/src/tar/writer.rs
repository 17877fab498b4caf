//! The headers of an archive that is written: ustar, and PAX records for what
//! does not fit.

use super::header::BLOCK;
use crate::tree::Timestamp;

/// What ends an archive: two blocks of zeros.
pub const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

/// Largest numbers of fields of eight and of twelve bytes: octal digits and a NUL.
const SHORT_MAX: u64 = 0o7_777_777;
const LONG_MAX: u64 = 0o77_777_777_777;

/// What a [`Member`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberKind<'a> {
    /// A regular file with so many bytes of content, which follow its header.
    Regular(u64),
    /// A directory.
    Directory,
    /// A symbolic link with its target.
    Symlink(&'a [u8]),
}

/// A file, directory or symbolic link that goes into an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member<'a> {
    /// Its path, without NUL. That of a directory ends in a slash in the archive
    /// whether it does here or not.
    pub path: &'a [u8],
    /// What it is.
    pub kind: MemberKind<'a>,
    /// The low 12 bits of the mode.
    pub permissions: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of the last change.
    pub modified: Timestamp,
}

impl Member<'_> {
    /// Appends its header to an archive. Of a regular file, the content comes
    /// next, and then [`padding`].
    pub fn write(&self, archive: &mut Vec<u8>) {
        let mut path = self.path.to_vec();
        if self.kind == MemberKind::Directory && !path.ends_with(b"/") {
            path.push(b'/');
        }
        let (kind, size, link) = match self.kind {
            MemberKind::Regular(size) => (b'0', size, &[][..]),
            MemberKind::Directory => (b'5', 0, &[][..]),
            MemberKind::Symlink(target) => (b'2', 0, target),
        };
        let records = self.records(&path, size, link);
        if !records.is_empty() {
            let length = u64::try_from(records.len()).unwrap_or(u64::MAX);
            let mut block = Block::new(b"PaxHeader", b'x', length);
            block.number(100, 8, 0o644);
            block.finish(archive);
            archive.extend_from_slice(&records);
            archive.resize(archive.len() + padding(length), 0);
        }
        let mut block = Block::new(&path, kind, size);
        block.number(100, 8, u64::from(self.permissions & 0o7777));
        block.number(108, 8, u64::from(self.uid));
        block.number(116, 8, u64::from(self.gid));
        block.number(136, 12, u64::try_from(self.modified.seconds).unwrap_or(0));
        block.bytes(157, 100, link);
        block.finish(archive);
    }

    /// PAX records for what the fields of a header have no room for.
    fn records(&self, path: &[u8], size: u64, link: &[u8]) -> Vec<u8> {
        let mut records = Vec::new();
        let is_long = |name: &[u8]| name.len() > 100;
        let is_binary = |name: &[u8]| std::str::from_utf8(name).is_err();
        if [path, link]
            .iter()
            .any(|name| is_long(name) && is_binary(name))
        {
            // Otherwise they would have to be UTF-8 (POSIX.1-2008, pax).
            record(&mut records, "hdrcharset", b"BINARY");
        }
        if is_long(path) {
            record(&mut records, "path", path);
        }
        if is_long(link) {
            record(&mut records, "linkpath", link);
        }
        if size > LONG_MAX {
            record(&mut records, "size", size.to_string().as_bytes());
        }
        for (key, id) in [("uid", self.uid), ("gid", self.gid)] {
            if u64::from(id) > SHORT_MAX {
                record(&mut records, key, id.to_string().as_bytes());
            }
        }
        let Timestamp {
            seconds,
            nanoseconds,
        } = self.modified;
        let fits = u64::try_from(seconds).is_ok_and(|seconds| seconds <= LONG_MAX);
        if !fits || nanoseconds != 0 {
            record(&mut records, "mtime", time(self.modified).as_bytes());
        }
        records
    }
}

/// How many zeros follow content of this length.
#[must_use]
pub fn padding(length: u64) -> usize {
    let block = u64::try_from(BLOCK).unwrap_or(u64::MAX);
    let over = usize::try_from(length % block).unwrap_or(0);
    (BLOCK - over) % BLOCK
}

/// Appends `"LENGTH KEY=VALUE\n"`, where the length counts its own digits.
fn record(records: &mut Vec<u8>, key: &str, value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest;
    // Each digit more can make it longer once.
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(format!("{length} {key}=").as_bytes());
    records.extend_from_slice(value);
    records.push(b'\n');
}

/// Seconds with a sign and a fraction.
fn time(time: Timestamp) -> String {
    let (seconds, nanoseconds) = (time.seconds, time.nanoseconds.min(999_999_999));
    match (seconds < 0, nanoseconds) {
        (_, 0) => seconds.to_string(),
        (false, _) => format!("{seconds}.{nanoseconds:09}"),
        // The fraction counts away from zero, as the seconds do.
        (true, _) => {
            let seconds = (seconds + 1).unsigned_abs();
            format!("-{seconds}.{:09}", 1_000_000_000 - nanoseconds)
        }
    }
}

/// A header that is being made.
struct Block([u8; BLOCK]);

impl Block {
    fn new(path: &[u8], kind: u8, size: u64) -> Self {
        let mut block = Self([0; BLOCK]);
        block.bytes(0, 100, path);
        block.number(124, 12, size);
        block.bytes(156, 1, &[kind]);
        block.bytes(257, 8, b"ustar\x0000");
        for (offset, length) in [(100, 8), (108, 8), (116, 8), (136, 12), (329, 8), (337, 8)] {
            block.number(offset, length, 0);
        }
        block
    }

    /// As many of the bytes as fit; a record has the rest.
    fn bytes(&mut self, offset: usize, length: usize, bytes: &[u8]) {
        let bytes = bytes.get(..length).unwrap_or(bytes);
        if let Some(field) = self.0.get_mut(offset..offset + bytes.len()) {
            field.copy_from_slice(bytes);
        }
    }

    /// Octal digits and a NUL; 0 for what does not fit, which a record has.
    fn number(&mut self, offset: usize, length: usize, number: u64) {
        let most = if length == 12 { LONG_MAX } else { SHORT_MAX };
        let number = if number > most { 0 } else { number };
        let digits = format!("{number:0width$o}", width = length - 1);
        self.bytes(offset, length, digits.as_bytes());
    }

    fn finish(mut self, archive: &mut Vec<u8>) {
        // The sum takes its own field as spaces.
        self.bytes(148, 8, b"        ");
        let sum: u32 = self.0.iter().map(|byte| u32::from(*byte)).sum();
        self.bytes(148, 8, format!("{sum:06o}\0 ").as_bytes());
        archive.extend_from_slice(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::super::{Entry, Error, Event, Kind, Reader};
    use super::*;

    fn read(archive: &[u8]) -> Vec<(Entry, Vec<u8>)> {
        let mut found: Vec<(Entry, Vec<u8>)> = Vec::new();
        let mut reader = Reader::new(1 << 20);
        let pushed = reader.push::<Error>(archive, &mut |event| {
            match event {
                Event::Entry(entry) => found.push((entry, Vec::new())),
                Event::Data(bytes) => found.last_mut().unwrap().1.extend_from_slice(bytes),
            }
            Ok(())
        });
        pushed.unwrap();
        reader.finish().unwrap();
        found
    }

    fn member<'a>(path: &'a [u8], kind: MemberKind<'a>) -> Member<'a> {
        Member {
            path,
            kind,
            permissions: 0o4751,
            uid: 1000,
            gid: 100,
            modified: Timestamp {
                seconds: 1_700_000_000,
                nanoseconds: 0,
            },
        }
    }

    #[test]
    fn what_is_written_is_read_as_it_was() {
        let long = [&[b'a'; 200][..], b"/", &[b'b'; 255]].concat();
        let binary = [&[0xff; 120][..], b"\n=x"].concat();
        let times = [
            (0, 0),
            (7, 5),
            (-1, 0),
            (-2, 750_000_000),
            (-1, 1),
            (1 << 40, 9),
        ];
        for path in [
            &b"a"[..],
            &[b'n'; 99],
            &[b'n'; 100],
            &[b'n'; 101],
            &long,
            &binary,
        ] {
            for (seconds, nanoseconds) in times {
                for (uid, gid) in [(0, 1), (0o7_777_777, 0o10_000_000), (u32::MAX, 5)] {
                    let modified = Timestamp {
                        seconds,
                        nanoseconds,
                    };
                    let common = |kind| Member {
                        uid,
                        gid,
                        modified,
                        ..member(path, kind)
                    };
                    let mut archive = Vec::new();
                    common(MemberKind::Symlink(&long)).write(&mut archive);
                    common(MemberKind::Directory).write(&mut archive);
                    common(MemberKind::Regular(3)).write(&mut archive);
                    archive.extend_from_slice(b"xyz");
                    archive.resize(archive.len() + padding(3), 0);
                    archive.extend_from_slice(&END);
                    let found = read(&archive);
                    let kinds: Vec<_> = found.iter().map(|(entry, _)| entry.kind.clone()).collect();
                    let link = Kind::Symlink(long.clone());
                    assert_eq!(kinds, [link, Kind::Directory, Kind::Regular]);
                    for (entry, _) in &found {
                        assert_eq!(entry.path.strip_suffix(b"/").unwrap_or(&entry.path), path);
                        assert_eq!((entry.uid, entry.gid), (uid, gid));
                        assert_eq!(entry.modified, modified);
                        assert_eq!(entry.permissions, 0o4751);
                    }
                    assert!(found[1].0.path.ends_with(b"/"));
                    assert_eq!(found[2].1, b"xyz");
                }
            }
        }
    }

    #[test]
    fn a_file_of_any_size_can_be_said() {
        for size in [LONG_MAX, LONG_MAX + 1, u64::try_from(i64::MAX).unwrap()] {
            let mut archive = Vec::new();
            member(b"big", MemberKind::Regular(size)).write(&mut archive);
            let mut found = None;
            let pushed = Reader::new(1000).push::<Error>(&archive, &mut |event| {
                if let Event::Entry(entry) = event {
                    found = Some(entry.size);
                }
                Ok(())
            });
            pushed.unwrap();
            assert_eq!(found, Some(size));
        }
    }

    #[test]
    fn content_is_filled_up_to_a_block() {
        for (length, zeros) in [(0, 0), (1, 511), (511, 1), (512, 0), (513, 511)] {
            assert_eq!(padding(length), zeros, "{length}");
        }
    }

    #[test]
    fn the_length_of_a_record_counts_itself() {
        for length in [
            1, 85, 86, 87, 88, 89, 90, 91, 92, 93, 985, 986, 987, 988, 989,
        ] {
            let mut records = Vec::new();
            record(&mut records, "path", &vec![b'x'; length]);
            let text = String::from_utf8(records).unwrap();
            let (said, _) = text.split_once(' ').unwrap();
            assert_eq!(said, text.len().to_string());
        }
    }

    #[test]
    fn the_tar_of_this_machine_reads_it() {
        let mut archive = Vec::new();
        let long = [&[b'a'; 150][..], b"/file"].concat();
        member(&[b'a'; 150], MemberKind::Directory).write(&mut archive);
        member(&long, MemberKind::Regular(600)).write(&mut archive);
        archive.extend_from_slice(&[b'x'; 600]);
        archive.resize(archive.len() + padding(600), 0);
        member(b"link", MemberKind::Symlink(b"to where")).write(&mut archive);
        archive.extend_from_slice(&END);
        let mut tar = Command::new("tar")
            .args(["--utc", "--numeric-owner", "-tvf", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        tar.stdin.take().unwrap().write_all(&archive).unwrap();
        let output = tar.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<_> = text
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        let directory = "a".repeat(150);
        assert_eq!(
            lines,
            [
                format!("drwsr-x--x 1000/100 0 2023-11-14 22:13 {directory}/"),
                format!("-rwsr-x--x 1000/100 600 2023-11-14 22:13 {directory}/file"),
                "lrwsr-x--x 1000/100 0 2023-11-14 22:13 link -> to where".to_owned(),
            ]
        );
    }
}
