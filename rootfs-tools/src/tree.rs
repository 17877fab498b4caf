//! A file tree in memory: metadata here, file contents wherever they are.
//!
//! What makes a tree (a walk of a host directory, the flattened layers of a
//! container image) and what writes one ([`crate::erofs`]) meet here. Inodes
//! live in one table and directories hold indices into it, as in a file
//! system: a hard link is two names for one index.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::sync::Arc;

/// The longest name of a directory entry, in bytes.
pub const NAME_MAX: usize = 255;
/// The longest target of a symbolic link, in bytes (`PATH_MAX` without its NUL).
pub const TARGET_MAX: usize = 4095;

/// Why a tree refused a change.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// The name is empty, `.`, `..`, longer than 255 bytes, or has `/` or NUL in it.
    #[error(
        "file name {0:?} cannot be stored: want 1 to 255 bytes without `/` or NUL, not `.` or `..`"
    )]
    Name(String),
    /// The directory has an entry of that name.
    #[error("the directory has an entry {0:?} already")]
    Exists(String),
    /// The parent is not a directory of this tree.
    #[error("cannot put {0:?} into something that is not a directory")]
    NotADirectory(String),
    /// Only files that are not directories have hard links.
    #[error("cannot make {0:?} a hard link to a directory")]
    LinkToDirectory(String),
    /// The target of a symbolic link is empty, too long or has a NUL.
    #[error("symbolic link {name:?} has a target of {length} bytes: want 1 to 4095 without NUL")]
    Target {
        /// Name of the link.
        name: String,
        /// Length of its target.
        length: usize,
    },
    /// More inodes than a tree holds.
    #[error("the tree has more than 4294967295 files")]
    Full,
}

/// Names an inode of one [`Tree`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InodeId(u32);

impl InodeId {
    /// The index into a table with one slot for each inode of the tree.
    pub(crate) fn index(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

/// A point in time: seconds since 1970 and nanoseconds below one second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    /// Seconds since 1970-01-01 00:00 UTC, negative before.
    pub seconds: i64,
    /// 0 to 999,999,999.
    pub nanoseconds: u32,
}

/// What every inode has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// The low 12 bits of the mode: set-user-id, set-group-id, sticky, `rwx` three times.
    pub permissions: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of the last change of the content.
    pub modified: Timestamp,
    /// Extended attributes by full name (`security.capability`).
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Metadata {
    /// Metadata of something that belongs to root, at the epoch, without attributes.
    #[must_use]
    pub fn root_owned(permissions: u16) -> Self {
        Self {
            permissions,
            ..Self::default()
        }
    }
}

/// Why a [`Source`] has no content to give.
#[derive(Debug)]
pub enum SourceError {
    /// It is no longer what it was when the tree was made.
    Changed,
    /// It cannot be opened or looked at.
    Io(io::Error),
}

impl From<io::Error> for SourceError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Something to read a regular file's content from when its turn comes.
pub trait Source: fmt::Debug + Send + Sync {
    /// Bytes that [`Source::open`]'s file has to give.
    fn size(&self) -> u64;

    /// Opens the content; it starts at offset zero.
    ///
    /// # Errors
    ///
    /// It cannot be opened, or is another file than it was.
    fn open(&self) -> Result<File, SourceError>;

    /// Called after the content was read: is it still what was asked for?
    ///
    /// # Errors
    ///
    /// It is not, or that cannot be found out.
    fn verify(&self, _file: &File) -> Result<(), SourceError> {
        Ok(())
    }
}

/// Content of a regular file.
#[derive(Debug)]
pub enum Content {
    /// In memory.
    Bytes(Vec<u8>),
    /// A part of a file that is open already, such as an uncompressed tar.
    Range {
        /// The file; its position is neither used nor kept.
        file: Arc<File>,
        /// Where the content starts.
        offset: u64,
        /// Its length.
        length: u64,
    },
    /// To be opened when it is needed, so that a tree holds no descriptors.
    Source(Box<dyn Source>),
}

impl Content {
    /// Size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => u64::try_from(bytes.len()).unwrap_or(u64::MAX),
            Self::Range { length, .. } => *length,
            Self::Source(source) => source.size(),
        }
    }
}

/// What an inode is.
#[derive(Debug)]
pub enum Node {
    /// A directory; its entries are the tree's business.
    Directory,
    /// A regular file.
    Regular(Content),
    /// A symbolic link and its target, any bytes.
    Symlink(Vec<u8>),
    /// A character device.
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// One inode of a [`Tree`].
#[derive(Debug)]
pub struct Inode {
    /// Owner, mode, times, attributes.
    pub metadata: Metadata,
    node: Node,
    entries: Entries,
}

/// Entries of a directory in the order of their bytes.
pub(crate) type Entries = BTreeMap<Box<[u8]>, InodeId>;

impl Inode {
    /// What it is.
    #[must_use]
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Is it a directory?
    #[must_use]
    pub fn is_directory(&self) -> bool {
        matches!(self.node, Node::Directory)
    }

    /// Names and inodes of a directory's entries in the order of their bytes;
    /// nothing for anything else.
    pub fn entries(&self) -> impl Iterator<Item = (&[u8], InodeId)> {
        self.entries.iter().map(|(name, id)| (&**name, *id))
    }
}

/// A file tree. It always has a root directory.
#[derive(Debug)]
pub struct Tree {
    inodes: Vec<Inode>,
}

impl Tree {
    /// A tree with nothing but a root directory.
    #[must_use]
    pub fn new(root: Metadata) -> Self {
        let root = Inode {
            metadata: root,
            node: Node::Directory,
            entries: Entries::new(),
        };
        Self { inodes: vec![root] }
    }

    /// The root directory.
    #[must_use]
    pub fn root(&self) -> InodeId {
        InodeId(0)
    }

    /// How many inodes were ever added, with those that [`Tree::remove`] took out.
    pub(crate) fn table_len(&self) -> usize {
        self.inodes.len()
    }

    /// An inode; `None` when `id` is of another, larger tree.
    #[must_use]
    pub fn get(&self, id: InodeId) -> Option<&Inode> {
        self.inodes.get(id.index())
    }

    /// An inode whose metadata can be changed.
    pub fn get_mut(&mut self, id: InodeId) -> Option<&mut Inode> {
        self.inodes.get_mut(id.index())
    }

    /// The entry `name` of directory `parent`.
    #[must_use]
    pub fn lookup(&self, parent: InodeId, name: &[u8]) -> Option<InodeId> {
        self.get(parent)?.entries.get(name).copied()
    }

    /// Adds a new inode as entry `name` of directory `parent`.
    ///
    /// # Errors
    ///
    /// The name or a link's target cannot be stored, the name is taken, or
    /// `parent` is not a directory.
    pub fn add(
        &mut self,
        parent: InodeId,
        name: &[u8],
        metadata: Metadata,
        node: Node,
    ) -> Result<InodeId, Error> {
        if let Node::Symlink(target) = &node
            && (target.is_empty() || target.len() > TARGET_MAX || target.contains(&0))
        {
            return Err(Error::Target {
                name: lossy(name),
                length: target.len(),
            });
        }
        let id = InodeId(u32::try_from(self.inodes.len()).map_err(|_| Error::Full)?);
        self.enter(parent, name, id)?;
        self.inodes.push(Inode {
            metadata,
            node,
            entries: Entries::new(),
        });
        Ok(id)
    }

    /// Gives `target` another name: a hard link.
    ///
    /// # Errors
    ///
    /// As [`Tree::add`]; and `target` must not be a directory.
    pub fn link(&mut self, parent: InodeId, name: &[u8], target: InodeId) -> Result<(), Error> {
        if self.get(target).is_none_or(Inode::is_directory) {
            return Err(Error::LinkToDirectory(lossy(name)));
        }
        self.enter(parent, name, target)
    }

    /// Takes entry `name` out of directory `parent`, with everything below it.
    pub fn remove(&mut self, parent: InodeId, name: &[u8]) -> Option<InodeId> {
        self.get_mut(parent)?.entries.remove(name)
    }

    fn enter(&mut self, parent: InodeId, name: &[u8], id: InodeId) -> Result<(), Error> {
        let storable = (1..=NAME_MAX).contains(&name.len())
            && !matches!(name, b"." | b"..")
            && !name.iter().any(|byte| matches!(byte, b'/' | 0));
        if !storable {
            return Err(Error::Name(lossy(name)));
        }
        match self.get_mut(parent) {
            Some(inode) if inode.is_directory() => {
                if inode.entries.contains_key(name) {
                    return Err(Error::Exists(lossy(name)));
                }
                inode.entries.insert(name.into(), id);
                Ok(())
            }
            _ => Err(Error::NotADirectory(lossy(name))),
        }
    }
}

fn lossy(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}

#[cfg(test)]
mod tests;
