//! Where the kernel source comes from, and what identifies it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::input;
use crate::key::hex;
use crate::tools::MissingTool;
use crate::upstream::Upstream;

/// The series of Linux that [`crate::BASE`] is written for. Others build too,
/// where all that is asked for exists in them.
pub const WRITTEN_FOR: &str = "6.12";

/// Debian's package of that series.
pub(crate) const PACKAGE: &str = "linux-source-6.12";

/// Where it puts its tarball.
const DISTRIBUTION: &str = "/usr/src";

/// How much of a tree's Makefile is looked at; a kernel's has 70 KiB.
const MAKEFILE_MAX_BYTES: u64 = 1 << 20;

/// Which source to build from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum SourceChoice {
    /// The distribution's package where it is installed, else the upstream tarball.
    #[default]
    Found,
    /// This directory or tarball.
    Path(PathBuf),
    /// The upstream tarball.
    Upstream,
}

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
    /// The upstream tarball, which is not at `path` yet.
    pub(crate) fetch: bool,
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
    /// A tarball of something else.
    #[error(
        "the tarball {0} holds no kernel source: no kernel's Makefile and Kconfig below its top directory"
    )]
    NotInTarball(PathBuf),
    /// Somebody has configured or built in the tree itself.
    #[error(
        "the source tree {0} has been built in; kernels are built outside it: run `make mrproper` there"
    )]
    NotClean(PathBuf),
}

impl Source {
    /// The source that `choice` means. Hashes of tarballs are remembered in the
    /// file `memory`; the upstream tarball is or will be in `downloads`.
    pub(crate) fn find(
        choice: &SourceChoice,
        upstream: &Upstream,
        downloads: &Path,
        memory: &Path,
    ) -> Result<Self, SourceError> {
        match choice {
            SourceChoice::Path(path) => Self::open(path, memory),
            SourceChoice::Upstream => Ok(Self::upstream(upstream, downloads, memory)),
            SourceChoice::Found => match installed(Path::new(DISTRIBUTION)) {
                Some(path) => Self::open(&path, memory),
                None => Ok(Self::upstream(upstream, downloads, memory)),
            },
        }
    }

    /// The pinned tarball: known by its digest before it is there.
    fn upstream(upstream: &Upstream, downloads: &Path, memory: &Path) -> Self {
        let path = downloads.join(upstream.file_name());
        let is_there = path
            .metadata()
            .and_then(|metadata| tarball_digest(&path, &metadata, memory))
            .is_ok_and(|digest| digest == upstream.sha256);
        Self {
            path,
            kind: SourceKind::Tarball(Compression::Xz),
            identity: format!("sha256:{}", upstream.sha256),
            fetch: !is_there,
        }
    }

    /// Why it cannot be used without a network.
    pub(crate) fn not_found() -> SourceError {
        SourceError::NotFound {
            others: others(Path::new(DISTRIBUTION)),
        }
    }

    /// What fetches and unpacks the source that [`SourceChoice::Found`] means, without
    /// reading a tarball that is installed.
    pub(crate) fn programs_to_get(
        upstream: &Upstream,
        downloads: &Path,
        memory: &Path,
    ) -> Vec<(&'static str, &'static str)> {
        let found = installed(Path::new(DISTRIBUTION));
        match found.as_deref().and_then(Compression::of) {
            Some(compression) => programs(SourceKind::Tarball(compression), false),
            None => Self::upstream(upstream, downloads, memory).programs(),
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
            fetch: false,
        })
    }

    /// Makes sure that it is still what it was when it was found.
    pub(crate) fn verify(&self, memory: &Path) -> Result<(), SourceError> {
        match Self::open(&self.path, memory) {
            Ok(now) if now.identity == self.identity => Ok(()),
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
    pub(crate) const fn unpacker_of_package() -> Option<(&'static str, &'static str)> {
        Compression::Xz.unpacker()
    }

    /// The programs that fetch and unpack it, and their Debian packages.
    pub(crate) fn programs(&self) -> Vec<(&'static str, &'static str)> {
        programs(self.kind, self.fetch)
    }
}

fn programs(kind: SourceKind, fetch: bool) -> Vec<(&'static str, &'static str)> {
    let unpacker = match kind {
        SourceKind::Tarball(compression) => compression.unpacker(),
        SourceKind::Directory => None,
    };
    let fetcher = fetch.then_some(("curl", "curl"));
    fetcher.into_iter().chain(unpacker).collect()
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
fn installed(directory: &Path) -> Option<PathBuf> {
    let wanted = format!("{PACKAGE}.tar");
    tarballs(directory).rfind(|path| name_begins(path, &wanted))
}

/// Tarballs of other versions there.
fn others(directory: &Path) -> Vec<PathBuf> {
    let wanted = format!("{PACKAGE}.tar");
    tarballs(directory)
        .filter(|path| !name_begins(path, &wanted))
        .collect()
}

/// All sources of distribution packages, by name.
fn tarballs(directory: &Path) -> impl DoubleEndedIterator<Item = PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut found: Vec<_> = entries
        .map(|entry| entry.path())
        .filter(|path| Compression::of(path).is_some() && name_begins(path, "linux-source-"))
        .collect();
    found.sort();
    found.into_iter()
}

fn name_begins(path: &Path, beginning: &str) -> bool {
    path.file_name()
        .is_some_and(|name| name.to_string_lossy().starts_with(beginning))
}

/// Whether a directory is the top of a kernel tree.
pub(crate) fn is_tree(directory: &Path) -> bool {
    version(directory).is_some() && directory.join("Kconfig").is_file()
}

/// Refuses what is not a kernel tree, and one that kbuild would refuse.
fn check_tree(tree: &Path) -> Result<(), SourceError> {
    if !is_tree(tree) {
        return Err(SourceError::NotSource(tree.to_owned()));
    }
    if tree.join(".config").exists() || tree.join("include/config").exists() {
        return Err(SourceError::NotClean(tree.to_owned()));
    }
    Ok(())
}

/// `6.12.117`, out of the first lines of a tree's Makefile.
pub(crate) fn version(tree: &Path) -> Option<String> {
    let makefile = input::read(&tree.join("Makefile"), MAKEFILE_MAX_BYTES).ok()?;
    // The fields are at its beginning.
    let makefile = String::from_utf8_lossy(&makefile);
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
    let mut file = input::open(path)?;
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
