//! The content of a directory.
//!
//! A directory is a sequence of blocks. Each starts with an array of 12-byte
//! entries (nid, offset of the name in the block, file type) that the names
//! follow; an entry and its name are in the same block. Names are sorted by
//! their bytes through the whole directory, `.` and `..` among them, because
//! the kernel looks names up by binary search. A name ends where the next
//! starts; the last of a block ends at the first NUL or the end of the block.
//! All blocks but the last are padded with zeros.

use super::format::BLOCK_LEN;

/// Bytes of an entry without its name.
const DIRENT: usize = 12;

/// Values of the kernel's `FT_*`, by which an entry tells the type of its inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FileType {
    Regular = 1,
    Directory = 2,
    CharDevice = 3,
    BlockDevice = 4,
    Fifo = 5,
    Socket = 6,
    Symlink = 7,
}

/// An entry to be written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dirent<'a> {
    pub(super) name: &'a [u8],
    pub(super) nid: u64,
    pub(super) kind: FileType,
}

/// Splits sorted names at the block boundaries: the lengths of the runs.
fn runs<'a>(names: impl Iterator<Item = &'a [u8]>) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for name in names {
        let more = DIRENT + name.len();
        match runs.last_mut() {
            Some(run) if run.bytes + more <= BLOCK_LEN => {
                run.entries += 1;
                run.bytes += more;
            }
            _ => runs.push(Run {
                entries: 1,
                bytes: more,
            }),
        }
    }
    runs
}

/// What one block holds.
struct Run {
    entries: usize,
    bytes: usize,
}

/// Size in bytes of a directory with these entries (without `.` and `..`).
pub(super) fn size<'a>(names: impl Iterator<Item = &'a [u8]>) -> usize {
    let mut names: Vec<&[u8]> = names.chain([&b"."[..], b".."]).collect();
    names.sort_unstable();
    let runs = runs(names.into_iter());
    let last = runs.last().map_or(0, |run| run.bytes);
    runs.len().saturating_sub(1) * BLOCK_LEN + last
}

/// The bytes of a directory; `entries` has `.` and `..`, in any order.
pub(super) fn encode(entries: &mut [Dirent<'_>]) -> Vec<u8> {
    entries.sort_unstable_by_key(|entry| entry.name);
    let mut out = Vec::new();
    let mut rest = &*entries;
    for run in runs(entries.iter().map(|entry| entry.name)) {
        // The padding of the block before.
        out.resize(out.len().next_multiple_of(BLOCK_LEN), 0);
        let (block, after) = rest.split_at(run.entries.min(rest.len()));
        rest = after;
        let mut name_at = block.len() * DIRENT;
        for entry in block {
            out.extend(entry.nid.to_le_bytes());
            // Below 4096, as the run ends before the block does.
            out.extend(u16::try_from(name_at).unwrap_or(u16::MAX).to_le_bytes());
            out.extend([entry.kind as u8, 0]);
            name_at += entry.name.len();
        }
        for entry in block {
            out.extend(entry.name);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &[u8], nid: u64) -> Dirent<'_> {
        let kind = FileType::Regular;
        Dirent { name, nid, kind }
    }

    #[test]
    fn an_empty_directory_has_the_two_dots() {
        let mut entries = [entry(b"..", 0x55), entry(b".", 0x66)];
        let want = [
            [0x66, 0, 0, 0, 0, 0, 0, 0, 24, 0, 1, 0],
            [0x55, 0, 0, 0, 0, 0, 0, 0, 25, 0, 1, 0],
        ];
        let bytes = encode(&mut entries);
        assert_eq!(bytes, [&want.concat()[..], b"..."].concat());
        assert_eq!(bytes.len(), size([].into_iter()));
    }

    #[test]
    fn names_below_a_dot_sort_before_it() {
        let names = [&b"-"[..], b"!", b"a", b"\xff", b"..."];
        let mut entries: Vec<_> = names.iter().map(|name| entry(name, 1)).collect();
        entries.extend([entry(b".", 1), entry(b"..", 1)]);
        let bytes = encode(&mut entries);
        assert!(bytes.ends_with(b"!-......a\xff"), "{bytes:?}");
    }

    #[test]
    fn a_name_that_does_not_fit_starts_a_block() {
        // 27 for the dots; 15 × 267 = 4005 leave 64 bytes.
        let long: Vec<Vec<u8>> = (b'a'..b'p').map(|letter| vec![letter; 255]).collect();
        for (last, want) in [(52, 4096), (53, 4096 + 12 + 53)] {
            let last = vec![b'z'; last];
            let names = || long.iter().chain([&last]).map(|name| &**name);
            assert_eq!(size(names()), want);
            let mut entries: Vec<_> = names().map(|name| entry(name, 1)).collect();
            entries.extend([entry(b".", 1), entry(b"..", 1)]);
            assert_eq!(encode(&mut entries).len(), want);
        }
    }
}
