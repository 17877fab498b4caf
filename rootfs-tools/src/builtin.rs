//! The built-in root file system: the host's static busybox and the few files
//! that programs expect, for `run` without an image.
//!
//! Busybox comes from the host rather than with flashpan, so that its updates
//! are the distribution's business.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sha2::{Digest, Sha256};

use crate::cache::{self, Cache, Cached};
use crate::child;
use crate::directory::{Event, hex};
use crate::tree::{Content, InodeId, Metadata, Node, Tree};
use crate::{erofs, tree};

mod elf;

/// Where Debian's `busybox-static` (and others' packages) put it.
const CANDIDATES: [&str; 2] = ["/bin/busybox", "/usr/bin/busybox"];
/// Far above any busybox; keeps a mistake from filling the memory.
const BUSYBOX_MAX: u64 = 64 << 20;
/// Changes whenever the tree made of the same busybox does.
const VERSION: u32 = 1;
/// Directories where busybox may install applets.
const APPLET_DIRECTORIES: [&str; 4] = ["bin", "sbin", "usr/bin", "usr/sbin"];

/// Directories and their permissions, parents first.
const DIRECTORIES: [(&str, u16); 32] = [
    ("bin", 0o755),
    ("dev", 0o755),
    ("etc", 0o755),
    ("home", 0o755),
    ("lib", 0o755),
    ("media", 0o755),
    ("mnt", 0o755),
    ("opt", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("sbin", 0o755),
    ("srv", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("usr", 0o755),
    ("usr/bin", 0o755),
    ("usr/lib", 0o755),
    ("usr/local", 0o755),
    ("usr/local/bin", 0o755),
    ("usr/local/lib", 0o755),
    ("usr/local/sbin", 0o755),
    ("usr/local/share", 0o755),
    ("usr/sbin", 0o755),
    ("usr/share", 0o755),
    ("var", 0o755),
    ("var/cache", 0o755),
    ("var/lib", 0o755),
    ("var/log", 0o755),
    ("var/mail", 0o1777),
    ("var/spool", 0o755),
    ("var/tmp", 0o1777),
];

/// Symbolic links and their targets.
const LINKS: [(&str, &str); 3] = [
    ("etc/mtab", "/proc/mounts"),
    ("var/lock", "/run/lock"),
    ("var/run", "/run"),
];

/// Files and their contents, all with permissions 0644.
const FILES: [(&str, &str); 9] = [
    (
        "etc/passwd",
        "root:*:0:0:root:/root:/bin/sh\n\
         daemon:*:1:1:daemon:/usr/sbin:/bin/false\n\
         nobody:*:65534:65534:nobody:/nonexistent:/bin/false\n",
    ),
    (
        "etc/group",
        "root:*:0:\ndaemon:*:1:\nbin:*:2:\nsys:*:3:\nadm:*:4:\ntty:*:5:\ndisk:*:6:\n\
         mail:*:8:\nkmem:*:15:\nusers:*:100:\nnogroup:*:65534:\n",
    ),
    (
        "etc/hosts",
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n",
    ),
    ("etc/hostname", "flashpan\n"),
    (
        "etc/os-release",
        "NAME=\"flashpan built-in\"\nPRETTY_NAME=\"flashpan built-in\"\nID=flashpan\n",
    ),
    (
        "etc/nsswitch.conf",
        "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nservices: files\n",
    ),
    (
        "etc/profile",
        "export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n\
         export PAGER=less\nPS1='\\u@\\h:\\w\\$ '\numask 022\n",
    ),
    ("etc/shells", "/bin/sh\n"),
    // A place for what the guest's network is told to use.
    ("etc/resolv.conf", ""),
];

/// Why the built-in root file system could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no static busybox.
    #[error(
        "the built-in root file system needs a static busybox, but {reason}; \
         install one: apt-get install busybox-static"
    )]
    NoBusybox {
        /// What was found instead.
        reason: String,
    },
    /// Busybox did not say which applets it has.
    #[error(
        "cannot list the applets of {path}: {reason}; install another: apt-get install busybox-static"
    )]
    Applets {
        /// The busybox.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// An applet's name cannot be stored.
    #[error("cannot put the built-in root file system together: {0}")]
    Tree(#[from] tree::Error),
    /// The image could not be written.
    #[error("cannot make the built-in root file system: {0}")]
    Image(#[from] erofs::Error),
    /// The cache cannot be used.
    #[error(transparent)]
    Cache(#[from] cache::Error),
}

/// The image of the built-in root file system from `cache`, made now if the
/// host's busybox is not the one that it was made of.
///
/// # Errors
///
/// There is no static busybox, or the cache cannot be written.
pub fn image(cache: &Cache, event: &mut dyn FnMut(Event)) -> Result<Cached, Error> {
    let (path, file) = find_busybox()?;
    let group = cache.group("roots", "builtin", "erofs")?;
    let key = fingerprint(&path, &file).map_err(|error| unusable(&path, &error))?;
    if let Some(cached) = group.find(&key)? {
        return Ok(cached);
    }
    let build = group.lock(&mut || event(Event::Waiting))?;
    if let Some(cached) = group.find(&key)? {
        return Ok(cached);
    }
    let tree = tree_of(&path, file)?;
    let copied = &mut |progress| event(Event::Copied(progress));
    erofs::write(&tree, &erofs::Options::default(), &build.file, copied)?;
    Ok(build.publish(&key)?)
}

/// Whether [`image`] would find what it needs; the busybox that it would take.
///
/// # Errors
/// As [`image`], but for the cache.
pub fn check() -> Result<PathBuf, Error> {
    let (path, file) = find_busybox()?;
    tree_of(&path, file)?;
    Ok(path)
}

/// The built-in root file system made of the static busybox at `path`.
///
/// # Errors
///
/// It is not a static x86-64 program, or does not list its applets.
pub fn tree(path: &Path) -> Result<Tree, Error> {
    let file = File::open(path).map_err(|error| unusable(path, &error))?;
    tree_of(path, file)
}

fn tree_of(path: &Path, file: File) -> Result<Tree, Error> {
    let mut program = Vec::new();
    file.take(BUSYBOX_MAX)
        .read_to_end(&mut program)
        .map_err(|error| unusable(path, &error))?;
    if program.len() >= usize::try_from(BUSYBOX_MAX).unwrap_or(usize::MAX) {
        return Err(Error::NoBusybox {
            reason: format!("{} is larger than {BUSYBOX_MAX} bytes", path.display()),
        });
    }
    elf::check_static(&program).map_err(|reason| Error::NoBusybox {
        reason: format!("{} is {reason}", path.display()),
    })?;
    assemble(program, &applets(path)?)
}

/// Puts the tree together; `applets` are paths relative to the root.
fn assemble(program: Vec<u8>, applets: &[String]) -> Result<Tree, Error> {
    let mut tree = Tree::new(Metadata::root_owned(0o755));
    for (path, permissions) in DIRECTORIES {
        add(&mut tree, path, permissions, Node::Directory)?;
    }
    for (path, target) in LINKS {
        add(&mut tree, path, 0o777, Node::Symlink(target.into()))?;
    }
    for (path, text) in FILES {
        add(
            &mut tree,
            path,
            0o644,
            Node::Regular(Content::Bytes(text.into())),
        )?;
    }
    let program = Node::Regular(Content::Bytes(program));
    let busybox = add(&mut tree, "bin/busybox", 0o755, program)?;
    for applet in applets {
        let (parent, name) = split(&tree, applet)?;
        // Applets that are in two directories are the rule's exceptions.
        if tree.lookup(parent, name).is_none() {
            tree.link(parent, name, busybox)?;
        }
    }
    Ok(tree)
}

fn add(tree: &mut Tree, path: &str, permissions: u16, node: Node) -> Result<InodeId, Error> {
    let (parent, name) = split(tree, path)?;
    Ok(tree.add(parent, name, Metadata::root_owned(permissions), node)?)
}

/// The directory of a path, which has to exist, and the name in it.
fn split<'a>(tree: &Tree, path: &'a str) -> Result<(InodeId, &'a [u8]), tree::Error> {
    let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
    let mut parent = tree.root();
    for part in directory.split('/').filter(|part| !part.is_empty()) {
        parent = tree
            .lookup(parent, part.as_bytes())
            .ok_or_else(|| tree::Error::NotADirectory(path.to_owned()))?;
    }
    Ok((parent, name.as_bytes()))
}

/// The first candidate that exists.
fn find_busybox() -> Result<(PathBuf, File), Error> {
    for path in CANDIDATES.map(PathBuf::from) {
        match File::open(&path) {
            Ok(file) => return Ok((path, file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(unusable(&path, &error)),
        }
    }
    Err(Error::NoBusybox {
        reason: format!("neither {} exists", CANDIDATES.join(" nor ")),
    })
}

fn unusable(path: &Path, error: &io::Error) -> Error {
    Error::NoBusybox {
        reason: format!("{} cannot be read: {error}", path.display()),
    }
}

/// What tells one busybox from another without reading it.
fn fingerprint(path: &Path, file: &File) -> io::Result<String> {
    let metadata = file.metadata()?;
    let mut hash = Sha256::new();
    hash.update(format!(
        "flashpan built-in {VERSION} {} ",
        erofs::FORMAT_VERSION
    ));
    hash.update(path.as_os_str().as_encoded_bytes());
    for number in [
        metadata.mtime(),
        metadata.mtime_nsec(),
        metadata.ctime(),
        metadata.ctime_nsec(),
    ] {
        hash.update(number.to_le_bytes());
    }
    hash.update(metadata.ino().to_le_bytes());
    hash.update(metadata.len().to_le_bytes());
    Ok(hex(&hash.finalize()))
}

/// What `busybox --list-full` prints, as far as it is where applets belong.
fn applets(path: &Path) -> Result<Vec<String>, Error> {
    let failed = |reason| Error::Applets {
        path: path.to_owned(),
        reason,
    };
    let mut command = Command::new(path);
    command.arg("--list-full").env_clear().stdin(Stdio::null());
    let output = child::output(&mut command).map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        return Err(failed(format!("--list-full failed, {}", output.status)));
    }
    let text = String::from_utf8(output.stdout)
        .map_err(|_| failed("--list-full printed bytes that are not UTF-8".into()))?;
    let applets: Vec<_> = text
        .lines()
        .map(|line| line.trim_start_matches('/'))
        .filter(|line| {
            line.rsplit_once('/').is_some_and(|(directory, name)| {
                APPLET_DIRECTORIES.contains(&directory) && name != "busybox"
            })
        })
        .map(str::to_owned)
        .collect();
    if !applets.iter().any(|applet| applet == "bin/sh") {
        return Err(failed("--list-full names no bin/sh".into()));
    }
    Ok(applets)
}

#[cfg(test)]
mod tests;
