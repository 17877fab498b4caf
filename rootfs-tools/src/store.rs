//! The store of images: content-addressed, shared by all processes of a user.
//!
//! ```text
//!  images/                 0700
//!    index.json            names and what they stand for; replaced as a whole
//!    lock                  who changes the index or removes files holds it
//!    blobs/sha256/DIGEST   manifests, configurations, layers as they were packed
//!    roots/CHAIN-N.erofs   root images, by the chain of their layers' digests
//!    work/                 what is being made; see `lock`
//! ```
//!
//! Everything that is visible is whole: it was written in `work/`, synced and
//! renamed. Who makes a blob or a root image holds a lock on its work file, so
//! that of all processes that want it one makes it and the others wait for it.
//! Who uses a file holds a lock on it, so that [`Store::gc`] and
//! [`Store::remove`] let it be. A process that is killed leaves at most a work
//! file without a lock: the next download of that blob goes on from it, and
//! [`Store::gc`] removes it.
//!
//! Two images with the same layers share one root image, and images that share
//! layers share their blobs. Layers are kept while an image names them; the root
//! image does not need them, and [`Gc::layers`] gives their room back.

mod cancel;
mod gc;
mod import;
mod index;
mod lock;
mod names;
mod pull;
mod roots;

use std::collections::HashSet;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use sha2::{Digest, Sha256};

use crate::cache::{self, Cache};
use crate::directory::{self, hex};
use crate::image_config::{self, ImageConfig};
use crate::reference;
use crate::{archive, layers, registry};
use index::{Guard, Images, Index};
use lock::Work;
use names::{all_names, find, tag_name};

pub use cancel::Cancel;
pub use gc::{Collected, Gc};
pub use import::{ImportOptions, Input};
pub use index::{ImageInfo, LayerInfo, Source};
pub use lock::Held;
pub use pull::{Listener, PullOptions, Pulled};
pub use roots::Conversion;

/// Why the store cannot do something.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The cache directory cannot be found.
    #[error(transparent)]
    Cache(#[from] cache::Error),
    /// A file operation failed.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was tried: a verb and what comes between it and the path.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The list of images is not what was written.
    #[error(
        "the list of images {} cannot be understood: {why}; remove it, and pull or import the \
         images again", path.display()
    )]
    CorruptIndex {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The list of images would be longer than what is read of one.
    #[error(
        "the list of images {} would have {bytes} bytes, and at most {} can be read; remove images \
         that are not needed first", path.display(), index::SIZE_MAX
    )]
    LongIndex {
        /// The file.
        path: PathBuf,
        /// How long it would be.
        bytes: usize,
    },
    /// A blob is not what its name says.
    #[error(
        "{} is not what its name says (its digest is {actual}); remove it, and pull or import \
         the image again", path.display()
    )]
    CorruptBlob {
        /// The file.
        path: PathBuf,
        /// Its digest.
        actual: String,
    },
    /// A file of an image is gone.
    #[error("{} of the image {name} is missing; pull or import it again", path.display())]
    Missing {
        /// The image.
        name: String,
        /// The file.
        path: PathBuf,
    },
    /// There is no such image.
    #[error("image not found: {0:?}")]
    NotFound(String),
    /// The beginning of an identity that several images have.
    #[error("{prefix:?} is the beginning of several images: {}; write more of it", some(.names))]
    Ambiguous {
        /// What was asked for.
        prefix: String,
        /// The images.
        names: Vec<String>,
    },
    /// A running VM uses it.
    #[error(
        "image {0} is used by a running VM; end it first, or remove the image with -f: its files \
         then stay until `flashpan image gc` finds them unused"
    )]
    InUse(String),
    /// A root image is not what its layers make, and cannot be replaced.
    #[error(
        "the root image of {0} is damaged, and a running VM uses it; end that first, then pull the \
         image again with --force"
    )]
    DamagedInUse(String),
    /// An image that was named by a digest has several names.
    #[error(
        "image {digest} has several names: {}; say which of them to remove, or remove all with -f",
        .names.join(", ")
    )]
    SeveralNames {
        /// What was asked for.
        digest: String,
        /// The names.
        names: Vec<String>,
    },
    /// An archive has no name for its image, and the user gave none.
    #[error("{0} has no name for its image; give one: flashpan image import NAME {0}")]
    Nameless(String),
    /// An archive has several images, and one name was given.
    #[error(
        "{archive} has several images ({}); give the name of one of them, or none to import all",
        some(.names)
    )]
    Several {
        /// The archive.
        archive: String,
        /// The names of its images.
        names: Vec<String>,
    },
    /// Manifest and configuration contradict each other.
    #[error("the image {name} lists {layers} layers and {diff_ids} digests for them")]
    LayerCount {
        /// The image.
        name: String,
        /// In its manifest.
        layers: usize,
        /// In its configuration.
        diff_ids: usize,
    },
    /// A blob is not what the archive promises.
    #[error("layer {expected} of {name} is damaged: its digest is {actual}; make or copy it again")]
    Layer {
        /// The image.
        name: String,
        /// The digest that it should have.
        expected: String,
        /// The one that it has.
        actual: String,
    },
    /// It is not for Linux.
    #[error("the image {name} is for {os}; flashpan runs images for linux")]
    OperatingSystem {
        /// The image.
        name: String,
        /// The operating system.
        os: String,
    },
    /// A name is not one.
    #[error(transparent)]
    Reference(#[from] reference::Error),
    /// The archive cannot be used.
    #[error(transparent)]
    Archive(archive::Error),
    /// The configuration cannot be used.
    #[error("cannot use the image {name}: {source}")]
    Config {
        /// The image.
        name: String,
        /// Why.
        source: image_config::Error,
    },
    /// A blob is named by a digest of another kind.
    #[error("the image {name} names a blob {digest:?}; only SHA-256 digests are understood")]
    Digest {
        /// The image.
        name: String,
        /// The digest.
        digest: String,
    },
    /// The registry does not give it.
    #[error(transparent)]
    Registry(#[from] registry::Error),
    /// The layers make no root image.
    #[error("cannot make a root image of {name}: {source}")]
    Convert {
        /// The image.
        name: String,
        /// Why.
        source: layers::Error,
    },
    /// There is certainly no room for the layers, or for what they unpack to.
    #[error(
        "cannot make a root image of {name}: its layers take {needed} bytes at least, and {} has \
         {free} bytes free; make room, e.g. with `flashpan image gc --layers`", directory.display()
    )]
    NoRoom {
        /// The image.
        name: String,
        /// Where they are unpacked.
        directory: PathBuf,
        /// Bytes that they need at least.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// The directory makes no root image.
    #[error(transparent)]
    Directory(#[from] directory::Error),
    /// No thread for what blocks.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
    /// Whoever asked for it does not want it any more.
    #[error("it was cancelled")]
    Cancelled,
}

/// The first of many names.
fn some(names: &[String]) -> String {
    const MOST: usize = 20;
    let shown: Vec<&str> = names.iter().take(MOST).map(String::as_str).collect();
    match names.len().saturating_sub(MOST) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

impl From<archive::Error> for Error {
    fn from(error: archive::Error) -> Self {
        match error {
            archive::Error::Cancelled => Self::Cancelled,
            error => Self::Archive(error),
        }
    }
}

/// Makes the error of an operation on a path.
fn failed<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Error + 'a {
    move |source| Error::Io {
        what,
        path: path.to_owned(),
        source,
    }
}

/// What happens while an image is pulled or imported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Another process makes the same thing; waiting for it.
    Waiting {
        /// What is waited for, e.g. `layer sha256:…`.
        what: String,
    },
    /// An archive is unpacked; bytes so far.
    Unpacking(u64),
    /// Layers are wanted, of so many bytes in all as they are packed.
    Layers {
        /// Those that are there already included.
        bytes: u64,
    },
    /// A layer is there already.
    Exists {
        /// Its digest.
        digest: String,
        /// Its size in bytes.
        size: u64,
    },
    /// A layer is being downloaded.
    Downloading {
        /// Its digest.
        digest: String,
        /// Bytes that are there.
        done: u64,
        /// Its size in bytes.
        size: u64,
    },
    /// A layer is complete and its digest right.
    Downloaded {
        /// Its digest.
        digest: String,
        /// Its size in bytes.
        size: u64,
    },
    /// The root image is being made.
    Converting {
        /// Steps that are done.
        done: u64,
        /// All steps.
        total: u64,
    },
    /// The last name of this image stands for another one now. Only
    /// [`Store::gc`] can do anything about its files.
    Nameless(Box<ImageInfo>),
}

/// Who is told of events, from whichever thread has them.
pub type Events<'a> = &'a (dyn Fn(Event) + Send + Sync);

/// An image of the store, resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// What the store knows of it.
    pub info: ImageInfo,
    /// Its configuration.
    pub config: ImageConfig,
}

/// The store.
#[derive(Clone, Debug)]
pub struct Store {
    directory: PathBuf,
    index: Index,
}

impl Store {
    /// The store in the user's cache; made if there is none.
    ///
    /// # Errors
    ///
    /// The directories cannot be made.
    pub fn user() -> Result<Self, Error> {
        Self::open(&Cache::user()?)
    }

    /// The store in a cache; made if there is none.
    ///
    /// # Errors
    ///
    /// The directories cannot be made.
    pub fn open(cache: &Cache) -> Result<Self, Error> {
        let directory = cache.path().join("images");
        let mut builder = fs::DirBuilder::new();
        // Images can hold what only their owner may read.
        builder.recursive(true).mode(0o700);
        for folder in ["blobs/sha256", "roots", "work"] {
            let path = directory.join(folder);
            builder
                .create(&path)
                .map_err(failed("make the directory", &path))?;
        }
        let index = Index::new(&directory);
        Ok(Self { directory, index })
    }

    /// Its directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.directory
    }

    /// All images, by name.
    ///
    /// # Errors
    ///
    /// The list cannot be read.
    pub fn list(&self) -> Result<Vec<ImageInfo>, Error> {
        Ok(self.index.read()?.into_values().collect())
    }

    /// The image of that name, in whichever spelling; or whose configuration,
    /// manifest or index has a digest that begins with these digits (at least
    /// four); or, as `NAME@sha256:DIGITS`, one in that repository whose manifest
    /// or index has.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`], [`Error::Ambiguous`], or its files are damaged.
    pub fn get(&self, name: &str) -> Result<Image, Error> {
        let images = self.index.read()?;
        let info = find(&images, name)?.clone();
        self.load(info)
    }

    fn load(&self, info: ImageInfo) -> Result<Image, Error> {
        let json = self.document(&info.name, &info.id, image_config::CONFIG_MAX)?;
        let config = ImageConfig::parse(&json).map_err(|source| Error::Config {
            name: info.name.clone(),
            source,
        })?;
        Ok(Image { info, config })
    }

    /// The bytes of a small blob, checked.
    fn document(&self, name: &str, digest: &str, max: usize) -> Result<Vec<u8>, Error> {
        let path = self.blob(digest);
        let held = Held::open(&path).map_err(failed("open", &path))?;
        let Some(held) = held else {
            let name = name.to_owned();
            return Err(Error::Missing { name, path });
        };
        let piece = archive::Piece::whole(held.file).map_err(failed("read", &path))?;
        let bytes = piece.read(max).map_err(failed("read", &path))?;
        let actual = sha256(&bytes);
        if actual == digest {
            Ok(bytes)
        } else {
            Err(Error::CorruptBlob { path, actual })
        }
    }

    /// The root image, open, and in use until it is dropped: nobody removes it.
    ///
    /// # Errors
    ///
    /// [`Error::Missing`] if it is gone.
    pub fn root(&self, image: &ImageInfo) -> Result<Held, Error> {
        let path = self.root_path(image);
        match Held::open(&path).map_err(failed("open the root image", &path))? {
            Some(held) => Ok(held),
            None => Err(Error::Missing {
                name: image.name.clone(),
                path,
            }),
        }
    }

    /// Where the root image is.
    #[must_use]
    pub fn root_path(&self, image: &ImageInfo) -> PathBuf {
        self.directory.join("roots").join(&image.root)
    }

    /// Gives an image a second name; an image that had it loses it, which is told
    /// if it has no other ([`Event::Nameless`]).
    ///
    /// # Errors
    ///
    /// There is no such image, or the name is none.
    pub fn tag(&self, image: &str, name: &str, events: Events<'_>) -> Result<ImageInfo, Error> {
        let name = tag_name(name)?;
        let guard = self.index.exclusive()?;
        let images = self.index.read()?;
        let mut info = find(&images, image)?.clone();
        if info.name != name {
            info.name.clone_from(&name);
            info.source = Source::Tag;
            info.added = now();
            self.name(&guard, images, [info.clone()], events)?;
        }
        Ok(info)
    }

    /// Takes an image's name away, or all of them if it is named by a digest, and
    /// with its last name everything that no other image needs; the full names
    /// that it had.
    ///
    /// # Errors
    ///
    /// There is no such image; or, without `force`, it is named by a digest and
    /// has several names, or it has no other name and a running VM uses it.
    pub fn remove(&self, image: &str, force: bool) -> Result<Vec<String>, Error> {
        let guard = self.index.exclusive()?;
        let mut images = self.index.read()?;
        let named: Vec<ImageInfo> = all_names(&images, image)?.into_iter().cloned().collect();
        let names: Vec<String> = named.iter().map(|info| info.name.clone()).collect();
        if names.len() > 1 && !force {
            return Err(Error::SeveralNames {
                digest: image.to_owned(),
                names,
            });
        }
        for name in &names {
            images.remove(name);
        }
        for info in named.iter().filter(|_| !force) {
            let last = images.values().all(|other| other.root != info.root);
            let path = self.root_path(info);
            if last && lock::in_use(&path).map_err(failed("look at", &path))? {
                return Err(Error::InUse(info.name.clone()));
            }
        }
        self.index.write(&guard, images)?;
        self.collect(&guard, &Gc::unreferenced())?;
        Ok(names)
    }

    /// Adds images, or makes their names stand for them from now on. Their files
    /// have to be held.
    fn add(
        &self,
        infos: impl IntoIterator<Item = ImageInfo>,
        events: Events<'_>,
    ) -> Result<(), Error> {
        let guard = self.index.exclusive()?;
        let images = self.index.read()?;
        self.name(&guard, images, infos, events)
    }

    /// Lists images, and tells which have no name because of that.
    fn name(
        &self,
        guard: &Guard,
        mut images: Images,
        infos: impl IntoIterator<Item = ImageInfo>,
        events: Events<'_>,
    ) -> Result<(), Error> {
        let named = infos.into_iter();
        let replaced: Vec<ImageInfo> = named
            .filter_map(|info| images.insert(info.name.clone(), info))
            .collect();
        let ids: HashSet<String> = images.values().map(|image| image.id.clone()).collect();
        self.index.write(guard, images)?;
        for image in replaced {
            if !ids.contains(&image.id) {
                events(Event::Nameless(Box::new(image)));
            }
        }
        Ok(())
    }

    fn blob(&self, digest: &str) -> PathBuf {
        let hex = digest.strip_prefix("sha256:").unwrap_or(digest);
        self.directory.join("blobs/sha256").join(hex)
    }

    /// The work file of a blob.
    fn work_path(&self, digest: &str) -> PathBuf {
        let hex = digest.strip_prefix("sha256:").unwrap_or(digest);
        self.work().join(hex)
    }

    fn work(&self) -> PathBuf {
        self.directory.join("work")
    }

    /// Puts a small blob into the store.
    fn put(&self, bytes: &[u8]) -> Result<(String, Held), Error> {
        let digest = sha256(bytes);
        let path = self.blob(&digest);
        let writing = |source| failed("write", &path)(source);
        // A damaged one is replaced.
        let find = || match Held::open(&path)? {
            Some(held) => Ok(held.verify(&digest)?.then_some(held)),
            None => Ok(None),
        };
        if let Some(held) = find().map_err(writing)? {
            return Ok((digest, held));
        }
        let work = self.work_path(&digest);
        let mut work = Work::take(&work, &mut || {}).map_err(writing)?;
        // Whoever had it before us may have made it.
        if let Some(held) = find().map_err(writing)? {
            return Ok((digest, held));
        }
        work.file.set_len(0).map_err(writing)?;
        work.file.write_all(bytes).map_err(writing)?;
        let _guard = self.index.shared()?;
        let held = work.publish(&path).map_err(writing)?;
        Ok((digest, held))
    }
}

fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

/// Seconds since 1970.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests;
