//! Where the kernel source comes from, and what identifies it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::key::hex;
use crate::tools::MissingTool;

/// The series of Linux that [`crate::BASE`] is written for. Others build too,
/// where all that is asked for exists in them.
pub const WRITTEN_FOR: &str = "6.12";

/// Debian's package of that series.
const PACKAGE: &str = "linux-source-6.12";

/// Where it puts its tarball.
const DISTRIBUTION: &str = "/usr/src";

/// A source that kernels are built from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Absolute path of the directory or tarball.
    pub path: PathBuf,
    /// Which of the two it is.
    pub kind: SourceKind,
    /// `sha256:…` of a tarball; `tree:…` of a directory, from the names, modes,
    /// sizes and times of its files and the targets of its links: an edited file
    /// makes another kernel.
    pub identity: String,
}

/// Directory or tarball.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceKind {
    /// An unpacked, clean source tree.
    Directory,
    /// A tarball that `tar` and an unpacker read.
    Tarball(Compression),
}

/// How a tarball is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// `.tar`
    None,
    /// `.tar.gz`
    Gzip,
    /// `.tar.bz2`
    Bzip2,
    /// `.tar.xz`
    Xz,
    /// `.tar.zst`
    Zstd,
}

/// Why there is no source to build from.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// Nothing given and nothing installed.
    #[error(
        "no kernel source: apt-get install {PACKAGE}, or give a source tree or \
         tarball of Linux {WRITTEN_FOR} with --source{}",
        .others.first().map_or_else(String::new, |other| format!(" ({} is there)", other.display()))
    )]
    NotFound {
        /// Sources of other versions that are installed.
        others: Vec<PathBuf>,
    },
    /// The given path cannot be read.
    #[error("cannot read the kernel source {path}: {source}")]
    Read {
        /// The path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Neither a tarball nor a kernel tree.
    #[error(
        "{0} is no kernel source: neither a .tar[.xz|.zst|.gz|.bz2] nor a directory with a kernel's Makefile"
    )]
    NotSource(PathBuf),
    /// It is not what it was when the build began.
    #[error(
        "the kernel source {0} changed while the kernel was built from it, so nobody can say what \
         it was built from; build it again"
    )]
    Changed(PathBuf),
    /// Somebody has configured or built in the tree itself.
    #[error(
        "the source tree {0} has been built in; kernels are built outside it: run `make mrproper` there"
    )]
    NotClean(PathBuf),
}

impl Source {
    /// The source at `explicit`, or else the distribution's for [`WRITTEN_FOR`].
    /// Hashes of tarballs are remembered in the file `memory`.
    pub(crate) fn find(explicit: Option<&Path>, memory: &Path) -> Result<Self, SourceError> {
        match explicit {
            Some(path) => Self::open(path, memory),
            None => Self::open(&installed(Path::new(DISTRIBUTION))?, memory),
        }
    }

    fn open(path: &Path, memory: &Path) -> Result<Self, SourceError> {
        let read = |source| SourceError::Read {
            path: path.to_owned(),
            source,
        };
        let path = path.canonicalize().map_err(read)?;
        let metadata = path.metadata().map_err(read)?;
        let (kind, identity) = if metadata.is_dir() {
            check_tree(&path)?;
            (
                SourceKind::Directory,
                format!("tree:{}", tree_digest(&path).map_err(read)?),
            )
        } else {
            let compression =
                Compression::of(&path).ok_or_else(|| SourceError::NotSource(path.clone()))?;
            let digest = tarball_digest(&path, &metadata, memory).map_err(read)?;
            (SourceKind::Tarball(compression), format!("sha256:{digest}"))
        };
        Ok(Self {
            path,
            kind,
            identity,
        })
    }

    /// Makes sure that it is still what it was when it was found.
    pub(crate) fn verify(&self, memory: &Path) -> Result<(), SourceError> {
        match Self::open(&self.path, memory) {
            Ok(now) if now == *self => Ok(()),
            Ok(_) | Err(_) => Err(SourceError::Changed(self.path.clone())),
        }
    }

    /// The distribution's package, as something to install.
    pub(crate) fn missing_package() -> MissingTool {
        MissingTool {
            what: format!("the source of Linux {WRITTEN_FOR}"),
            package: PACKAGE,
        }
    }

    /// What unpacks the tarball of that package.
    pub(crate) const fn package_unpacker() -> Option<(&'static str, &'static str)> {
        Compression::Xz.unpacker()
    }

    /// The program that `tar` runs to unpack, and its Debian package.
    pub(crate) const fn unpacker(&self) -> Option<(&'static str, &'static str)> {
        match self.kind {
            SourceKind::Tarball(compression) => compression.unpacker(),
            SourceKind::Directory => None,
        }
    }
}

impl Compression {
    fn of(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?;
        let by_end = [
            (".tar", Self::None),
            (".tar.gz", Self::Gzip),
            (".tar.bz2", Self::Bzip2),
            (".tar.xz", Self::Xz),
            (".tar.zst", Self::Zstd),
        ];
        by_end
            .into_iter()
            .find(|(end, _)| name.ends_with(end))
            .map(|(_, kind)| kind)
    }

    const fn unpacker(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::None => None,
            Self::Gzip => Some(("gzip", "gzip")),
            Self::Bzip2 => Some(("bzip2", "bzip2")),
            Self::Xz => Some(("xz", "xz-utils")),
            Self::Zstd => Some(("zstd", "zstd")),
        }
    }
}

/// The tarball that the distribution's package put into `directory`.
fn installed(directory: &Path) -> Result<PathBuf, SourceError> {
    let wanted = format!("{PACKAGE}.tar");
    let (mut found, mut others) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if Compression::of(&entry.path()).is_none() || !name.starts_with("linux-source-") {
            continue;
        }
        if name.starts_with(&wanted) {
            found.push(entry.path());
        } else {
            others.push(entry.path());
        }
    }
    found.sort();
    others.sort();
    found.pop().ok_or(SourceError::NotFound { others })
}

/// Refuses what is not a kernel tree, and one that kbuild would refuse.
fn check_tree(tree: &Path) -> Result<(), SourceError> {
    if version(tree).is_none() || !tree.join("Kconfig").is_file() {
        return Err(SourceError::NotSource(tree.to_owned()));
    }
    if tree.join(".config").exists() || tree.join("include/config").exists() {
        return Err(SourceError::NotClean(tree.to_owned()));
    }
    Ok(())
}

/// `6.12.117`, out of the first lines of a tree's Makefile.
pub(crate) fn version(tree: &Path) -> Option<String> {
    let makefile = fs::read_to_string(tree.join("Makefile")).ok()?;
    let field = |name: &str| {
        let mut lines = makefile
            .lines()
            .take(10)
            .filter_map(|line| line.split_once('='));
        lines
            .find(|(key, _)| key.trim() == name)
            .map(|(_, value)| value.trim().to_owned())
    };
    let (major, minor) = (field("VERSION")?, field("PATCHLEVEL")?);
    let sublevel = field("SUBLEVEL")
        .filter(|level| !level.is_empty())
        .unwrap_or("0".into());
    let extra = field("EXTRAVERSION").unwrap_or_default();
    let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (number(&major) && number(&minor)).then(|| format!("{major}.{minor}.{sublevel}{extra}"))
}

/// Digest of the names, modes, sizes, times and link targets below a directory.
/// 90,000 files take a third of a second; reading them all would take twenty.
/// The time of the last change of an inode is what no tool sets back.
fn tree_digest(tree: &Path) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut directories = vec![tree.to_owned()];
    while let Some(directory) = directories.pop() {
        let mut entries = fs::read_dir(&directory)?.collect::<io::Result<Vec<_>>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let metadata = entry.metadata()?;
            if metadata.is_dir() {
                // What git keeps there changes without the source changing.
                if entry.file_name() != ".git" {
                    directories.push(entry.path());
                }
                continue;
            }
            let path = entry.path();
            hash.update(
                path.strip_prefix(tree)
                    .unwrap_or(&path)
                    .as_os_str()
                    .as_encoded_bytes(),
            );
            hash.update([0]);
            hash.update(metadata.len().to_le_bytes());
            hash.update(metadata.mtime().to_le_bytes());
            hash.update(metadata.mtime_nsec().to_le_bytes());
            hash.update(metadata.ctime().to_le_bytes());
            hash.update(metadata.ctime_nsec().to_le_bytes());
            hash.update(metadata.mode().to_le_bytes());
            if metadata.is_symlink() {
                hash.update(fs::read_link(&path)?.as_os_str().as_encoded_bytes());
            }
            hash.update([0]);
        }
    }
    Ok(hex(&hash.finalize()))
}

/// What is remembered of a tarball.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Remembered {
    bytes: u64,
    mtime_s: i64,
    mtime_ns: i64,
    #[serde(default)]
    ctime_s: i64,
    #[serde(default)]
    ctime_ns: i64,
    inode: u64,
    sha256: String,
}

/// SHA-256 of a tarball, from memory while length, times and inode are the same.
fn tarball_digest(path: &Path, metadata: &fs::Metadata, memory: &Path) -> io::Result<String> {
    let key = path.to_string_lossy().into_owned();
    // A memory that is lost or broken costs one more hashing.
    let text = fs::read_to_string(memory).unwrap_or_default();
    let mut all: BTreeMap<String, Remembered> = serde_json::from_str(&text).unwrap_or_default();
    let mut now = Remembered {
        bytes: metadata.len(),
        mtime_s: metadata.mtime(),
        mtime_ns: metadata.mtime_nsec(),
        ctime_s: metadata.ctime(),
        ctime_ns: metadata.ctime_nsec(),
        inode: metadata.ino(),
        sha256: String::new(),
    };
    if let Some(earlier) = all.get(&key) {
        now.sha256.clone_from(&earlier.sha256);
        if now == *earlier {
            return Ok(now.sha256);
        }
    }
    now.sha256 = file_digest(path)?;
    let sha256 = now.sha256.clone();
    all.insert(key, now);
    if let (Some(directory), Ok(text)) = (memory.parent(), serde_json::to_string_pretty(&all)) {
        // Best effort: a cache that cannot be written fails where it matters.
        let temporary = memory.with_extension(format!("tmp{}", std::process::id()));
        let written = fs::create_dir_all(directory)
            .and_then(|()| fs::write(&temporary, text))
            .and_then(|()| fs::rename(&temporary, memory));
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
        }
    }
    Ok(sha256)
}

/// SHA-256 of a file's contents.
pub(crate) fn file_digest(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut buffer)?;
        match buffer.get(..read) {
            Some(part) if !part.is_empty() => hash.update(part),
            _ => return Ok(hex(&hash.finalize())),
        }
    }
}

#[cfg(test)]
mod tests;
