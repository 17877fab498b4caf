//! Which images there are, by their names: one JSON file, replaced as a whole.
//!
//! Readers need no lock: they see the file before or after a change. Writers
//! hold the store's lock, which also keeps them and whoever removes files apart.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Error, failed, lock};

/// Version of the format.
const VERSION: u32 = 1;
/// Longest index that is read or written, in bytes.
pub(super) const SIZE_MAX: u64 = 64 << 20;

/// Where an image is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// Pulled from a registry.
    Registry,
    /// Imported from an archive or a directory.
    Import,
    /// Another name for an image that was there.
    Tag,
}

impl Source {
    /// The word that lists show.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Registry => "registry",
            Self::Import => "import",
            Self::Tag => "tag",
        }
    }
}

/// A layer of an image of the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerInfo {
    /// Digest of the unpacked tar.
    pub diff_id: String,
    /// Digest of the blob as it was packed, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Its size in bytes.
    pub size: u64,
    /// Its type; empty if unknown.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
}

/// An image of the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageInfo {
    /// Its name in full: registry, repository, tag or digest.
    pub name: String,
    /// Where it is from.
    pub source: Source,
    /// Digest of its configuration, which is the image's identity.
    pub id: String,
    /// Digest of its manifest, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<String>,
    /// Digest of the index that its name stands for, if that is for several
    /// platforms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<String>,
    /// Such as `linux/amd64`.
    pub platform: String,
    /// Its layers, the lowest first.
    pub layers: Vec<LayerInfo>,
    /// File name of its root image in the store.
    pub root: String,
    /// Bytes of the root image.
    pub size: u64,
    /// When the image was made, as it says itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// When it came into this store, in seconds since 1970.
    pub added: u64,
}

impl ImageInfo {
    /// The digest of what its name stands for: of the index, or else of the
    /// manifest.
    #[must_use]
    pub fn digest(&self) -> Option<&str> {
        self.index.as_deref().or(self.manifest.as_deref())
    }

    /// Digests of all blobs but the layers.
    pub(crate) fn documents(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.id.as_str()).chain(self.manifest.as_deref())
    }
}

#[derive(Serialize, Deserialize)]
struct Document {
    version: u32,
    images: Vec<ImageInfo>,
}

/// The images by their names.
pub(crate) type Images = BTreeMap<String, ImageInfo>;

/// The index file of a store.
#[derive(Clone, Debug)]
pub(crate) struct Index {
    path: PathBuf,
    lock: PathBuf,
    /// How often it was replaced.
    #[cfg(test)]
    pub(crate) writes: std::sync::Arc<std::sync::atomic::AtomicUsize>,
}

/// The store's lock. While it is held exclusively nobody else changes the index
/// or removes files.
#[derive(Debug)]
pub(crate) struct Guard(#[allow(dead_code, reason = "open is locked")] File);

impl Index {
    pub(crate) fn new(directory: &Path) -> Self {
        Self {
            path: directory.join("index.json"),
            lock: directory.join("lock"),
            #[cfg(test)]
            writes: std::sync::Arc::default(),
        }
    }

    fn open_lock(&self) -> Result<File, Error> {
        OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&self.lock)
            .map_err(failed("open the lock", &self.lock))
    }

    /// Keeps others from removing files.
    pub(crate) fn shared(&self) -> Result<Guard, Error> {
        let file = self.open_lock()?;
        let locked = file.lock_shared();
        locked.map_err(failed("take the lock", &self.lock))?;
        Ok(Guard(file))
    }

    /// Keeps others from changing anything.
    pub(crate) fn exclusive(&self) -> Result<Guard, Error> {
        let file = self.open_lock()?;
        file.lock().map_err(failed("take the lock", &self.lock))?;
        Ok(Guard(file))
    }

    /// All images; none where there is no index yet.
    pub(crate) fn read(&self) -> Result<Images, Error> {
        let reading = |source| failed("read the list of images", &self.path)(source);
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Images::new()),
            Err(error) => return Err(reading(error)),
        };
        let mut bytes = Vec::new();
        let mut limited = file.take(SIZE_MAX.saturating_add(1));
        limited.read_to_end(&mut bytes).map_err(reading)?;
        let corrupt = |why: String| Error::CorruptIndex {
            path: self.path.clone(),
            why,
        };
        if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > SIZE_MAX {
            return Err(corrupt(format!("it has more than {SIZE_MAX} bytes")));
        }
        let document: Document =
            serde_json::from_slice(&bytes).map_err(|error| corrupt(error.to_string()))?;
        if document.version != VERSION {
            return Err(corrupt(format!(
                "it has version {}, this flashpan writes version {VERSION}",
                document.version
            )));
        }
        for image in &document.images {
            check(image).map_err(corrupt)?;
        }
        let images = document.images.into_iter();
        Ok(images.map(|image| (image.name.clone(), image)).collect())
    }

    /// Replaces all; the store's lock has to be held.
    pub(crate) fn write(&self, _guard: &Guard, images: Images) -> Result<(), Error> {
        #[cfg(test)]
        self.writes
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let document = Document {
            version: VERSION,
            images: images.into_values().collect(),
        };
        let new = self.path.with_extension("json.new");
        let writing = |source: io::Error| failed("write the list of images", &new)(source);
        let mut json = serde_json::to_vec_pretty(&document).map_err(|e| writing(e.into()))?;
        json.push(b'\n');
        // What cannot be read again would be the end of the store.
        if u64::try_from(json.len()).unwrap_or(u64::MAX) > SIZE_MAX {
            return Err(Error::LongIndex {
                path: self.path.clone(),
                bytes: json.len(),
            });
        }
        let write = || -> io::Result<()> {
            let mut file = OpenOptions::new()
                .create(true)
                .truncate(true)
                .write(true)
                .mode(0o600)
                .open(&new)?;
            file.write_all(&json)?;
            file.sync_all()?;
            fs::rename(&new, &self.path)?;
            lock::sync_parent(&self.path)
        };
        write().map_err(|error| {
            let _ = fs::remove_file(&new);
            writing(error)
        })
    }
}

/// Names of files are made of these, so they have to be what they should be.
fn check(image: &ImageInfo) -> Result<(), String> {
    let digests = image.documents().chain(
        image
            .layers
            .iter()
            .filter_map(|layer| layer.digest.as_deref()),
    );
    for digest in digests {
        if !crate::image_config::is_sha256(digest) {
            return Err(format!("{digest:?} in it is no digest"));
        }
    }
    let is_file_name = !image.root.is_empty()
        && image
            .root
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-'))
        && !image.root.starts_with('.');
    if is_file_name {
        Ok(())
    } else {
        Err(format!("{:?} in it is no name of a root image", image.root))
    }
}
