//! What the walk makes: a fingerprint, or a tree with a fingerprint.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustix::fs::{FileType, Stat};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use super::source::{HostFile, Root};
use super::walk::{Found, Step, walk};
use super::{Error, Options};
use crate::erofs;
use crate::tree::{Content, InodeId, Metadata, Node, Timestamp, Tree};

/// Time stamps of files come from a clock that ticks this often or more often
/// (100 Hz), so that two writes within a tick look like one.
const CLOCK_TICK: Duration = Duration::from_millis(10);
/// How far the clock that stamps files may be ahead of ours: that of a file
/// server may.
const CLOCK_SKEW: Duration = Duration::from_mins(1);
/// The most that Linux returns of one attribute or of the names of all.
const XATTR_MAX: usize = 64 << 10;

/// Collects what tells one state of a directory from another: of everything in
/// it name, type, mode, owner, size, mtime, ctime, inode, device, link target.
pub(super) struct Fingerprint {
    hash: Sha256,
    started: SystemTime,
    /// Something may have changed since without showing it.
    unclear: bool,
}

impl Fingerprint {
    fn new(options: &Options) -> Self {
        let mut hash = Sha256::new();
        hash.update(b"flashpan directory");
        hash.update(erofs::FORMAT_VERSION.to_le_bytes());
        hash.update([u8::from(options.cross_file_systems)]);
        Self {
            hash,
            started: SystemTime::now(),
            unclear: false,
        }
    }

    /// The fingerprint of `root` as it is now, without making a tree.
    /// `left_out` hears of each directory whose contents do not count.
    pub(super) fn of(
        root: &Path,
        options: &Options,
        left_out: &mut dyn FnMut(&Path),
    ) -> Result<String, Error> {
        let mut fingerprint = Self::new(options);
        walk(root, options.cross_file_systems, &mut |step| {
            fingerprint.add(&step);
            if let Step::LeftOut(path) = step {
                left_out(path);
            }
            Ok(())
        })?;
        Ok(fingerprint.finish())
    }

    fn add(&mut self, step: &Step<'_>) {
        let found = match step {
            Step::Found(found) => found,
            Step::Leave => return self.hash.update([0]),
            Step::LeftOut(_) => return self.hash.update([2]),
        };
        let stat = found.stat;
        // The size of a directory says how its file system stores it.
        let size = if found.kind() == FileType::Directory {
            0
        } else {
            stat.st_size
        };
        self.hash.update([1]);
        self.hash.update(found.name.to_bytes_with_nul());
        self.hash.update(stat.st_mode.to_le_bytes());
        self.hash.update(stat.st_uid.to_le_bytes());
        self.hash.update(stat.st_gid.to_le_bytes());
        for number in [size, stat.st_mtime, stat.st_ctime] {
            self.hash.update(number.to_le_bytes());
        }
        for number in [
            stat.st_mtime_nsec,
            stat.st_ctime_nsec,
            stat.st_ino,
            stat.st_rdev,
        ] {
            self.hash.update(number.to_le_bytes());
        }
        self.hash.update(found.target.unwrap_or_default());
        self.hash.update([0]);
        // Of times in the far future, which say nothing, none may hide one that
        // does.
        let changed = timestamp(stat.st_ctime, stat.st_ctime_nsec);
        self.unclear |= may_change_unseen(changed, self.started);
    }

    /// The fingerprint as hexadecimal digits.
    ///
    /// A file that changed within the last tick of a clock may change again
    /// without showing it. Such a state gets a fingerprint that no other has:
    /// its image is used, but never taken for that of a later state.
    fn finish(mut self) -> String {
        if self.unclear {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            self.hash
                .update(now.unwrap_or_default().as_nanos().to_le_bytes());
            self.hash.update(std::process::id().to_le_bytes());
        }
        hex(&self.hash.finalize())
    }
}

/// Whether a file with this change time may have changed again at `now` without
/// another change time. One that is further in the future than clocks differ is
/// from before a clock was set back: what changes now gets another.
pub(super) fn may_change_unseen(changed: Timestamp, now: SystemTime) -> bool {
    let nanoseconds = |duration: Duration| i128::try_from(duration.as_nanos()).unwrap_or(i128::MAX);
    let now = match now.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => nanoseconds(after),
        Err(before) => -nanoseconds(before.duration()),
    };
    let changed = i128::from(changed.seconds) * 1_000_000_000 + i128::from(changed.nanoseconds);
    let unclear = now - nanoseconds(CLOCK_TICK)..=now + nanoseconds(CLOCK_SKEW);
    unclear.contains(&changed)
}

/// A directory as a tree, and the fingerprint of the state that it shows.
#[derive(Debug)]
pub struct Scan {
    /// The tree; contents are opened when the image is written.
    pub tree: Tree,
    /// Which state of the directory this is.
    pub fingerprint: String,
}

impl Scan {
    /// Walks `root`.
    ///
    /// # Errors
    ///
    /// Something cannot be read, or has a name or attribute that cannot be stored.
    pub fn new(root: &Path, options: &Options) -> Result<Self, Error> {
        let mut fingerprint = Fingerprint::new(options);
        let mut builder = Builder {
            tree: Tree::new(Metadata::default()),
            root: Root::open(root).map_err(Error::reading(root))?,
            inside: Vec::new(),
            path: PathBuf::new(),
            links: HashMap::new(),
            buffers: [vec![0; XATTR_MAX], vec![0; XATTR_MAX]],
        };
        walk(root, options.cross_file_systems, &mut |step| {
            fingerprint.add(&step);
            match step {
                Step::Found(found) => builder.add(&found),
                Step::LeftOut(_) => Ok(()),
                Step::Leave => {
                    builder.inside.pop();
                    builder.path.pop();
                    Ok(())
                }
            }
        })?;
        Ok(Self {
            tree: builder.tree,
            fingerprint: fingerprint.finish(),
        })
    }
}

/// Puts what the walk finds into a tree.
struct Builder {
    tree: Tree,
    root: Arc<Root>,
    /// Directories that the walk is in.
    inside: Vec<InodeId>,
    /// Path of the innermost below the root.
    path: PathBuf,
    /// Inodes that have more than one name, by device and inode number.
    links: HashMap<(u64, u64), InodeId>,
    /// For the names and the value of extended attributes.
    buffers: [Vec<u8>; 2],
}

impl Builder {
    fn add(&mut self, found: &Found<'_>) -> Result<(), Error> {
        let stat = found.stat;
        let Some(parent) = self.inside.last().copied() else {
            let metadata = self.metadata(found)?;
            let root = self.tree.root();
            if let Some(inode) = self.tree.get_mut(root) {
                inode.metadata = metadata;
            }
            self.inside.push(root);
            return Ok(());
        };
        let name = found.name.to_bytes();
        let unfit = |source| Error::Unfit {
            path: found.path.to_owned(),
            source,
        };
        let identity = (stat.st_dev, stat.st_ino);
        if let Some(known) = self.links.get(&identity) {
            return self.tree.link(parent, name, *known).map_err(unfit);
        }
        let (major, minor) = (
            rustix::fs::major(stat.st_rdev),
            rustix::fs::minor(stat.st_rdev),
        );
        let node = match found.kind() {
            FileType::Directory => Node::Directory,
            FileType::Symlink => Node::Symlink(found.target.unwrap_or_default().to_owned()),
            FileType::CharacterDevice => Node::CharDevice { major, minor },
            FileType::BlockDevice => Node::BlockDevice { major, minor },
            FileType::Fifo => Node::Fifo,
            FileType::Socket => Node::Socket,
            FileType::RegularFile | FileType::Unknown => {
                let path = self.path.join(OsStr::from_bytes(name));
                let file = HostFile::new(&self.root, path, stat);
                Node::Regular(Content::Source(Box::new(file)))
            }
        };
        let metadata = self.metadata(found)?;
        let id = self.tree.add(parent, name, metadata, node).map_err(unfit)?;
        if found.kind() == FileType::Directory {
            self.inside.push(id);
            self.path.push(OsStr::from_bytes(name));
        } else if stat.st_nlink > 1 {
            self.links.insert(identity, id);
        }
        Ok(())
    }

    fn metadata(&mut self, found: &Found<'_>) -> Result<Metadata, Error> {
        let stat: &Stat = found.stat;
        Ok(Metadata {
            permissions: u16::try_from(stat.st_mode & 0o7777).unwrap_or(0),
            uid: stat.st_uid,
            gid: stat.st_gid,
            modified: timestamp(stat.st_mtime, stat.st_mtime_nsec),
            xattrs: self.xattrs(found).map_err(Error::reading(found.path))?,
        })
    }

    /// Extended attributes that belong to the file. Those that EROFS has no
    /// place for belong to the file system that it is on, and SELinux labels to
    /// the policy of the host: both stay behind.
    fn xattrs(&mut self, found: &Found<'_>) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, Errno> {
        // There is no llistxattrat before Linux 6.13. The directory's entry in
        // /proc leads to itself, whatever was renamed meanwhile.
        let mut path = format!("/proc/self/fd/{}/", found.directory.as_raw_fd()).into_bytes();
        path.extend_from_slice(found.name.to_bytes());
        let [names, value] = &mut self.buffers;
        let length = match rustix::fs::llistxattr(&*path, &mut **names) {
            Ok(length) => length,
            Err(Errno::OPNOTSUPP) => 0,
            Err(error) => return Err(error),
        };
        let mut xattrs = BTreeMap::new();
        for name in names
            .get(..length)
            .unwrap_or_default()
            .split(|byte| *byte == 0)
        {
            if !erofs::xattr_storable(name) || name == b"security.selinux" {
                continue;
            }
            match rustix::fs::lgetxattr(&*path, name, &mut **value) {
                Ok(length) => {
                    let value = value.get(..length).unwrap_or_default();
                    xattrs.insert(name.to_owned(), value.to_owned());
                }
                // Removed since it was listed.
                Err(Errno::NODATA) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(xattrs)
    }
}

fn timestamp(seconds: i64, nanoseconds: u64) -> Timestamp {
    Timestamp {
        seconds,
        nanoseconds: u32::try_from(nanoseconds).unwrap_or(0),
    }
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
