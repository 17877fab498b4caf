//! Files of a guest in a listing.

use serde::{Deserialize, Serialize};

use super::timestamp::Timestamp;

/// A file of a directory in the guest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct FileInfo {
    /// Its name, without the directory.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// Its type and permissions, as [`FileMode`] has them.
    pub mode: FileMode,
    /// When its content changed last.
    pub mod_time: Timestamp,
    /// Whether it is a directory.
    pub is_dir: bool,
}

/// Type and permissions of a file as the interface has them: the nine bits of
/// permissions as Unix has them, the rest as Go's `fs.FileMode`.
///
/// In JSON it is a number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FileMode(pub u32);

impl FileMode {
    /// A directory.
    pub const DIR: u32 = 1 << 31;
    /// A symbolic link.
    pub const SYMLINK: u32 = 1 << 27;
    /// A device.
    pub const DEVICE: u32 = 1 << 26;
    /// A FIFO.
    pub const NAMED_PIPE: u32 = 1 << 25;
    /// A socket.
    pub const SOCKET: u32 = 1 << 24;
    /// Runs as its owner.
    pub const SETUID: u32 = 1 << 23;
    /// Runs as its group.
    pub const SETGID: u32 = 1 << 22;
    /// With [`Self::DEVICE`]: a character device.
    pub const CHAR_DEVICE: u32 = 1 << 21;
    /// The sticky bit.
    pub const STICKY: u32 = 1 << 20;
    /// Neither of these nor a regular file.
    pub const IRREGULAR: u32 = 1 << 19;

    /// From the `st_mode` of `stat(2)`.
    #[must_use]
    pub fn from_unix(mode: u32) -> Self {
        let kind = match mode & libc::S_IFMT {
            libc::S_IFREG => 0,
            libc::S_IFDIR => Self::DIR,
            libc::S_IFLNK => Self::SYMLINK,
            libc::S_IFBLK => Self::DEVICE,
            libc::S_IFCHR => Self::DEVICE | Self::CHAR_DEVICE,
            libc::S_IFIFO => Self::NAMED_PIPE,
            libc::S_IFSOCK => Self::SOCKET,
            _ => Self::IRREGULAR,
        };
        let special = [
            (libc::S_ISUID, Self::SETUID),
            (libc::S_ISGID, Self::SETGID),
            (libc::S_ISVTX, Self::STICKY),
        ];
        let special = special.iter().filter(|(unix, _)| mode & unix != 0);
        Self(special.fold(kind | (mode & 0o777), |all, (_, bit)| all | bit))
    }

    /// The permissions: nine bits.
    #[must_use]
    pub fn permissions(self) -> u32 {
        self.0 & 0o777
    }

    /// Whether it is a directory.
    #[must_use]
    pub fn is_dir(self) -> bool {
        self.0 & Self::DIR != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_of_unix_become_those_of_the_interface() {
        for (unix, mode) in [
            (0o100_644, 0o644),
            (0o040_755, 0x8000_01ed),
            (0o120_777, 0x0800_01ff),
            (0o104_755, 0x0080_01ed),
            (0o102_755, 0x0040_01ed),
            (0o041_777, 0x8010_01ff),
            (0o020_666, 0x0420_01b6),
            (0o060_660, 0x0400_01b0),
            (0o010_600, 0x0200_0180),
            (0o140_700, 0x0100_01c0),
            (0o600, 0x0008_0180),
        ] {
            assert_eq!(FileMode::from_unix(unix), FileMode(mode), "{unix:o}");
        }
        assert!(FileMode::from_unix(0o040_700).is_dir());
        assert_eq!(FileMode::from_unix(0o104_755).permissions(), 0o755);
    }

    #[test]
    fn json_has_every_field() {
        let file = FileInfo {
            name: "a".to_owned(),
            ..FileInfo::default()
        };
        let json = concat!(
            r#"{"name":"a","size":0,"mode":0,"#,
            r#""mod_time":"0001-01-01T00:00:00Z","is_dir":false}"#
        );
        assert_eq!(serde_json::to_string(&file).unwrap(), json);
        assert_eq!(serde_json::from_str::<FileInfo>(json).unwrap(), file);
    }
}
