//! Images in archives: `docker save` tars, OCI layouts, and plain root file
//! systems as a tar or a directory.
//!
//! What it is shows in what is in it, never in its name. A tar may be
//! compressed as a whole (gzip, Zstandard) and may come through a pipe; then it
//! is unpacked into a file without a name first. Layers of a tar that is a file
//! already are read where they lie.
//!
//! Archives are not trusted. Only names near the root are looked at, links are
//! followed inside the archive only, sizes are checked against what is there,
//! and digests of manifests and configurations are verified here; those of
//! layers are verified by whoever reads them all.

mod docker;
mod layout;
mod members;
mod piece;
mod spool;

use std::fs::File;
use std::io::{self, BufReader};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use sha2::{Digest, Sha256};

use crate::compression::{Compression, Decompressor};
use crate::directory::hex;
use crate::layers::{Custody, Limits};
use crate::platform::Platform;
use crate::registry;
use crate::room;
use crate::store::Cancel;
use crate::tar;
use members::{Members, ScanError};
use spool::{Look, SpoolError};

pub use piece::Piece;

/// What has images in a form that is understood, for messages.
const UNDERSTOOD: &str = "a `docker save` tar, an OCI image layout (tar or directory), or a root \
                          file system (tar or directory), each tar also with gzip or zstd";

/// Longest manifest, index or list of images that is read, in bytes; what
/// registries take.
const MANIFEST_MAX: usize = 4 << 20;

/// Directories of which a root file system has at least one.
const ROOT_MARKS: [&[u8]; 8] = [
    b"bin", b"sbin", b"usr", b"lib", b"etc", b"nix", b"opt", b"dev",
];

/// Why an archive cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be opened or read.
    #[error("cannot read {archive}: {source}")]
    Read {
        /// The archive.
        archive: String,
        /// Why.
        source: io::Error,
    },
    /// Something in it cannot be read.
    #[error("cannot read {member} in {archive}: {source}")]
    Member {
        /// The archive.
        archive: String,
        /// What in it.
        member: String,
        /// Why.
        source: io::Error,
    },
    /// It is something else.
    #[error("{archive} holds no image: {why}; understood are {UNDERSTOOD}")]
    NotAnImage {
        /// The archive.
        archive: String,
        /// What it is instead.
        why: String,
    },
    /// It is one, but not a sound one.
    #[error("{archive} is damaged: {what}; make or copy it again")]
    Damaged {
        /// The archive.
        archive: String,
        /// What is wrong.
        what: String,
    },
    /// A manifest or an index in it cannot be used.
    #[error(transparent)]
    Manifest(Box<registry::Error>),
    /// It has images for other platforms only.
    #[error("{archive} has nothing for {wanted}; it has {}", list(available))]
    NoPlatform {
        /// The archive.
        archive: String,
        /// What was asked for.
        wanted: String,
        /// What there is.
        available: Vec<String>,
    },
    /// It is no tar that can be read.
    #[error("cannot read {archive}: {source}; make or copy it again")]
    Tar {
        /// The archive.
        archive: String,
        /// What is wrong.
        source: tar::Error,
    },
    /// It unpacks to more than is allowed.
    #[error("{archive} unpacks to more than the {} MiB that are allowed", max >> 20)]
    TooLarge {
        /// The archive.
        archive: String,
        /// Bytes that are allowed.
        max: u64,
    },
    /// There is no room to unpack it.
    #[error("cannot unpack {archive} to {}: {source}", directory.display())]
    Spool {
        /// The archive.
        archive: String,
        /// Where to.
        directory: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is certainly no room to unpack it.
    #[error(
        "{archive} unpacks to {needed} bytes at least, and {} has {free} bytes free; make room, e.g. \
         with `flashpan image gc --layers`", directory.display()
    )]
    NoRoom {
        /// The archive.
        archive: String,
        /// Where to.
        directory: PathBuf,
        /// Bytes that it needs at least.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// [`Options::cancel`] was cancelled.
    #[error("it was cancelled")]
    Cancelled,
}

fn list(names: &[String]) -> String {
    match names {
        [] => "no images at all".to_owned(),
        names => names.join(", "),
    }
}

/// How to read archives.
#[derive(Clone, Debug)]
pub struct Options {
    /// Of images for several platforms, which one.
    pub platform: Platform,
    /// What it may ask for: `total` of what a compressed archive unpacks to, and
    /// `header`.
    pub limits: Limits,
    /// Where to unpack to; nothing is left there.
    pub spool: PathBuf,
    /// Ends it.
    pub cancel: Cancel,
}

/// What an archive holds.
#[derive(Debug)]
pub enum Contents {
    /// Images; at least one.
    Images(Vec<Image>),
    /// The tar of a root file system.
    Root(Layer),
    /// A directory that is a root file system.
    Directory(PathBuf),
}

/// An image of an archive.
#[derive(Debug)]
pub struct Image {
    /// What it is called there, as it is written there; often none.
    pub names: Vec<String>,
    /// Its configuration document.
    pub config: Vec<u8>,
    /// Its manifest, where the archive has one.
    pub manifest: Option<Vec<u8>>,
    /// Digest of the index that its name stands for, if that is for several
    /// platforms.
    pub index: Option<String>,
    /// Its layers, the lowest first.
    pub layers: Vec<Layer>,
}

/// A layer of an archive.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Its bytes.
    pub piece: Piece,
    /// Whose the file with them is.
    pub custody: Custody,
    /// The digest of the bytes, where the archive promises one.
    pub digest: Option<String>,
    /// What the manifest says that it is; empty if there is none.
    pub media_type: String,
}

/// A name from an archive for messages: not too long, on one line.
fn shown(name: &str) -> String {
    name.chars()
        .take(200)
        .flat_map(char::escape_debug)
        .collect()
}

/// An archive's name for messages.
#[derive(Clone, Debug)]
struct Origin(String);

impl Origin {
    fn read(&self, source: io::Error) -> Error {
        Error::Read {
            archive: self.0.clone(),
            source,
        }
    }

    fn member(&self, member: &str, source: io::Error) -> Error {
        Error::Member {
            archive: self.0.clone(),
            member: shown(member),
            source,
        }
    }

    fn damaged(&self, what: String) -> Error {
        Error::Damaged {
            archive: self.0.clone(),
            what,
        }
    }

    fn not_an_image(&self, why: impl Into<String>) -> Error {
        Error::NotAnImage {
            archive: self.0.clone(),
            why: why.into(),
        }
    }

    fn verify(&self, name: &str, bytes: &[u8], digest: Option<&str>) -> Result<(), Error> {
        let Some(digest) = digest else { return Ok(()) };
        let actual = format!("sha256:{}", hex(&Sha256::digest(bytes)));
        if actual == digest {
            return Ok(());
        }
        let name = shown(name);
        Err(self.damaged(format!(
            "{name} has the digest {actual} and should have {digest}"
        )))
    }
}

/// Looks into the file or directory at `path`.
///
/// `progress` is told the bytes unpacked so far, where something is unpacked.
///
/// # Errors
///
/// It cannot be read, holds no image, or is damaged.
pub fn open(
    path: &Path,
    options: &Options,
    progress: &mut dyn FnMut(u64),
) -> Result<Contents, Error> {
    let origin = Origin(path.display().to_string());
    let kind = std::fs::metadata(path).map_err(|source| origin.read(source))?;
    if kind.is_dir() {
        return directory(&origin, path, options);
    }
    // Not waiting for the writer of a FIFO that has none would read nothing.
    let file = File::open(path).map_err(|source| origin.read(source))?;
    from_file(&origin, file, options, progress)
}

/// Looks into what comes from `file`, which may be a pipe; `name` is for
/// messages.
///
/// # Errors
///
/// As [`open`].
pub fn open_file(
    file: File,
    name: &str,
    options: &Options,
    progress: &mut dyn FnMut(u64),
) -> Result<Contents, Error> {
    from_file(&Origin(name.to_owned()), file, options, progress)
}

fn from_file(
    origin: &Origin,
    mut file: File,
    options: &Options,
    progress: &mut dyn FnMut(u64),
) -> Result<Contents, Error> {
    let reading = |source| origin.read(source);
    let metadata = file.metadata().map_err(reading)?;
    let (piece, custody) = if metadata.is_file() {
        let mut piece = Piece::whole(file.try_clone().map_err(reading)?).map_err(reading)?;
        // Standard input may be a file of which something was read before.
        piece.offset = io::Seek::stream_position(&mut file)
            .map_err(reading)?
            .min(piece.length);
        piece.length = piece.length.saturating_sub(piece.offset);
        (piece, Custody::Foreign)
    } else {
        let piece = spooled(origin, Compression::None, file, options, progress)?;
        (piece, Custody::Own)
    };
    if piece.length == 0 {
        return Err(origin.not_an_image("it is empty"));
    }
    match spool::look(&piece.head::<8>().map_err(reading)?) {
        Look::Foreign(why) => Err(origin.not_an_image(why)),
        Look::Known(Compression::None) => from_tar(origin, piece, custody, options),
        Look::Known(compression) => {
            // Nobody packs what grows by it.
            room::check(&options.spool, piece.length).map_err(
                |room::TooFew { needed, free }| Error::NoRoom {
                    archive: origin.0.clone(),
                    directory: options.spool.clone(),
                    needed,
                    free,
                },
            )?;
            let plain = spooled(origin, compression, piece.reader(), options, progress)?;
            from_tar(origin, plain, Custody::Own, options)
        }
    }
}

/// A file without a name with what `from` unpacks to.
fn spooled(
    origin: &Origin,
    compression: Compression,
    from: impl io::Read,
    options: &Options,
    progress: &mut dyn FnMut(u64),
) -> Result<Piece, Error> {
    let writing = |source| Error::Spool {
        archive: origin.0.clone(),
        directory: options.spool.clone(),
        source,
    };
    let mut to = nameless(&options.spool).map_err(writing)?;
    let from = BufReader::with_capacity(spool::STEP, from);
    let from = Decompressor::new(from, compression);
    let max = options.limits.total;
    let collected = spool::collect(from, &mut to, max, &options.cancel, progress);
    collected.map_err(|error| match error {
        SpoolError::Cancelled => Error::Cancelled,
        SpoolError::Read(source) => match compression {
            Compression::None => origin.read(source),
            _ => origin.damaged(format!("it cannot be unpacked ({source})")),
        },
        SpoolError::Write(source) => writing(source),
        SpoolError::TooLarge => Error::TooLarge {
            archive: origin.0.clone(),
            max,
        },
    })?;
    Piece::whole(to).map_err(writing)
}

/// A file in `directory` that has no name and goes away when it is closed.
pub(crate) fn nameless(directory: &Path) -> io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    match rustix::fs::open(directory, flags, Mode::RUSR | Mode::WUSR) {
        Ok(fd) => Ok(File::from(fd)),
        // Some file systems cannot.
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR) => {
            let path = directory.join(format!("spool.{}", std::process::id()));
            let file = File::options()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path)?;
            std::fs::remove_file(&path)?;
            Ok(file)
        }
        Err(error) => Err(error.into()),
    }
}

/// A tar, and what is where in it.
struct Tar {
    piece: Piece,
    custody: Custody,
    members: Members,
}

impl Tar {
    /// The regular file of that name.
    fn file(&self, origin: &Origin, name: &str) -> Result<Option<Piece>, Error> {
        let found = self.members.file(&self.piece, name);
        found.map_err(|source| origin.member(name, source))
    }
}

fn from_tar(
    origin: &Origin,
    piece: Piece,
    custody: Custody,
    options: &Options,
) -> Result<Contents, Error> {
    let members = Members::scan(&piece, options.limits.header, &options.cancel);
    let members = members.map_err(|error| match error {
        ScanError::Tar(tar::Error::NotTar) => origin.not_an_image("it is no tar archive"),
        ScanError::Tar(source) => Error::Tar {
            archive: origin.0.clone(),
            source,
        },
        ScanError::Io(source) => origin.read(source),
        ScanError::Cancelled => Error::Cancelled,
    })?;
    let tar = Tar {
        piece,
        custody,
        members,
    };
    let members = &tar.members;
    let contents = if let Some(list) = tar.file(origin, docker::MANIFEST)? {
        Contents::Images(docker::images(origin, &tar, &list)?)
    } else if members.has(layout::MARK) && members.has(layout::INDEX) {
        Contents::Images(layout::images(origin, &tar, &options.platform)?)
    } else if members.top().any(|name| ROOT_MARKS.contains(&name)) {
        Contents::Root(Layer {
            piece: tar.piece.clone(),
            custody,
            digest: None,
            media_type: String::new(),
        })
    } else {
        return Err(origin.not_an_image(format!(
            "the tar has {} members, but neither manifest.json, index.json nor the directories \
             of a root file system",
            members.count
        )));
    };
    match contents {
        Contents::Images(images) if images.is_empty() => {
            Err(origin.not_an_image("its list of images is empty"))
        }
        Contents::Images(_) if members.crowded => {
            Err(origin.damaged("it has more members than an archive of images has".to_owned()))
        }
        contents => Ok(contents),
    }
}

fn directory(origin: &Origin, path: &Path, options: &Options) -> Result<Contents, Error> {
    if !path.join(layout::MARK).is_file() {
        let has =
            |mark: &[u8]| std::str::from_utf8(mark).is_ok_and(|mark| path.join(mark).exists());
        if ROOT_MARKS.into_iter().any(has) {
            return Ok(Contents::Directory(path.to_owned()));
        }
        return Err(origin.not_an_image(
            "the directory is no OCI layout and has none of the directories of a root file system",
        ));
    }
    let root = File::open(path).map_err(|source| origin.read(source))?;
    let images = layout::images(origin, &InDirectory(root), &options.platform)?;
    if images.is_empty() {
        return Err(origin.not_an_image("its list of images is empty"));
    }
    Ok(Contents::Images(images))
}

impl layout::Files for Tar {
    fn find(&self, name: &str) -> io::Result<Option<Piece>> {
        self.members.file(&self.piece, name)
    }

    fn custody(&self) -> Custody {
        self.custody
    }
}

struct InDirectory(File);

impl layout::Files for InDirectory {
    fn find(&self, name: &str) -> io::Result<Option<Piece>> {
        // O_NONBLOCK: a FIFO is not waited for. Names are ours, and a link in a
        // layout is its owner's choice: it leads to nothing but a digest check.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        match rustix::fs::openat(self.0.as_fd(), name, flags, Mode::empty()) {
            Ok(fd) => {
                let file = File::from(fd);
                if file.metadata()?.is_file() {
                    Piece::whole(file).map(Some)
                } else {
                    Ok(None)
                }
            }
            Err(rustix::io::Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn custody(&self) -> Custody {
        Custody::Foreign
    }
}

#[cfg(test)]
mod tests;
