//! Entries of a guest's directories.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use flashpan_protocol::file::{Entry, FileStat};

use crate::api::{FileInfo, FileMode, Timestamp};
use crate::error::Result;
use crate::pump::broken;

/// Most entries of a directory that are listed: a guest can have any number.
pub(crate) const LISTING_MAX: usize = 256 * 1024;

/// Longest name, in bytes.
const NAME_MAX: usize = 255;

/// An entry of a directory in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FileEntry {
    /// Its name, without the directory. Never `.`, `..` or anything with a
    /// slash, whatever the guest says. It is for programs: a person's terminal
    /// may obey what is in it.
    pub name: OsString,
    /// What has the name.
    pub stat: FileStat,
}

impl FileEntry {
    /// Takes an entry as a guest sends it.
    pub(crate) fn from_guest(Entry { name, stat }: Entry) -> Result<Self> {
        let name = name.into_vec();
        let fits = (1..=NAME_MAX).contains(&name.len())
            && !name.iter().any(|b| matches!(b, b'/' | 0))
            && name != b"."
            && name != b"..";
        if !fits {
            return Err(broken("it listed what is no name of a file".to_owned()));
        }
        let name = OsString::from_vec(name);
        Ok(Self { name, stat })
    }

    /// It as the interface has it.
    #[must_use]
    pub fn info(&self) -> FileInfo {
        let FileStat {
            mode,
            size,
            modified,
            modified_ns,
            ..
        } = self.stat;
        FileInfo {
            name: self.name.to_string_lossy().into_owned(),
            size,
            mode: FileMode::from_unix(mode),
            mod_time: Timestamp::from_unix(modified, modified_ns).unwrap_or_default(),
            is_dir: self.stat.is_dir(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &[u8]) -> Result<FileEntry> {
        FileEntry::from_guest(Entry {
            name: name.to_vec().into(),
            stat: FileStat {
                mode: 0o040_755,
                size: 7,
                modified: 1,
                ..FileStat::default()
            },
        })
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for bad in [&b""[..], b".", b"..", b"a/b", b"/", b"a\0", &[b'x'; 256]] {
            entry(bad).unwrap_err();
        }
        for good in [&b"..."[..], b"\xff\n", &[b'x'; 255]] {
            entry(good).unwrap();
        }
    }

    #[test]
    fn the_interface_has_text_and_its_own_modes() {
        let info = entry(b"a\xff").unwrap().info();
        assert_eq!(info.name, "a\u{fffd}");
        assert_eq!((info.size, info.is_dir), (7, true));
        assert_eq!(info.mode, FileMode(FileMode::DIR | 0o755));
        assert_eq!(info.mod_time.unix_seconds(), 1);
    }
}
