//! An OCI image layout (image specification 1.1, `image-layout.md`): a
//! directory or a tar with `oci-layout`, `index.json` and `blobs/sha256/…`.

use std::collections::HashSet;

use oci_spec::image::{Descriptor, ImageIndex};

use super::{Error, Image, Layer, MANIFEST_MAX, Origin, Piece};
use crate::image_config::{CONFIG_MAX, is_sha256};
use crate::layers::Custody;
use crate::platform::Platform;
use crate::registry::Limits;
use crate::registry::manifest::{self, Document};

/// The file that marks a layout.
pub(super) const MARK: &str = "oci-layout";
/// The file with the list of images.
pub(super) const INDEX: &str = "index.json";

/// Annotations with an image's name, the fullest first.
const NAMES: [&str; 2] = [
    "io.containerd.image.name",
    "org.opencontainers.image.ref.name",
];

/// Indexes in indexes.
const DEPTH: usize = 4;
/// Documents that are read at most, so that indexes that name each other cost
/// no more than one after the other would.
const DOCUMENTS_MAX: usize = 4096;

/// Bytes of the manifests and configurations of all images: they are in memory
/// together, and one blob can be listed under many names.
const KEPT_MAX: usize = 64 << 20;

/// Files of a layout by their names.
pub(super) trait Files {
    /// The regular file of that name; `None` if there is none.
    fn find(&self, name: &str) -> std::io::Result<Option<Piece>>;

    /// Whose they are.
    fn custody(&self) -> Custody;
}

/// The images of a layout for `platform`.
pub(super) fn images(
    origin: &Origin,
    files: &dyn Files,
    platform: &Platform,
) -> Result<Vec<Image>, Error> {
    let index = find(origin, files, INDEX)?;
    let json = index
        .read(MANIFEST_MAX)
        .map_err(|source| origin.member(INDEX, source))?;
    let mut walk = Walk {
        origin,
        files,
        platform,
        seen: HashSet::new(),
        images: Vec::new(),
        left_out: None,
        left: KEPT_MAX,
    };
    match walk.document(INDEX, &json)? {
        Document::Index(index) => walk.named(&index)?,
        Document::Image(_) => {
            return Err(origin.damaged(format!("its {INDEX} is a manifest and not an index")));
        }
    }
    match walk.left_out {
        // Nothing fits, and that is why.
        Some(error) if walk.images.is_empty() => Err(error),
        _ => Ok(walk.images),
    }
}

struct Walk<'a> {
    origin: &'a Origin,
    files: &'a dyn Files,
    platform: &'a Platform,
    /// Documents that were read, and the name of the image that they were read for.
    seen: HashSet<(String, Option<String>)>,
    images: Vec<Image>,
    /// Why something was left out.
    left_out: Option<Error>,
    /// Bytes of documents that may still be kept.
    left: usize,
}

impl Walk<'_> {
    fn document(&self, name: &str, json: &[u8]) -> Result<Document, Error> {
        manifest::parse(json, None, name, &self.origin.0).map_err(|source| self.unusable(source))
    }

    fn unusable(&self, source: crate::registry::Error) -> Error {
        Error::Manifest(Box::new(source))
    }

    /// Entries at the top: each is an image by its own name, for one or several
    /// platforms.
    fn named(&mut self, index: &ImageIndex) -> Result<(), Error> {
        // To ask of one entry at a time whether it is for the platform.
        let mut alone = index.clone();
        for entry in index.manifests() {
            let annotations = entry.annotations().as_ref();
            let name = NAMES
                .iter()
                .find_map(|key| annotations.and_then(|all| all.get(*key)));
            // Of images under one name, the one for the platform.
            if entry.platform().is_some() {
                alone.set_manifests(vec![entry.clone()]);
                if let Err(no_match) = self.platform.select(&alone) {
                    self.leave_out(&no_match.available);
                    continue;
                }
            }
            self.blob(entry, name, None, DEPTH)?;
        }
        Ok(())
    }

    fn leave_out(&mut self, available: &[Platform]) {
        if self.left_out.is_none() {
            self.left_out = Some(Error::NoPlatform {
                archive: self.origin.0.clone(),
                wanted: self.platform.to_string(),
                available: available.iter().take(20).map(Platform::to_string).collect(),
            });
        }
    }

    /// An image, or an index that names one; `top` is the first index on the way.
    fn blob(
        &mut self,
        blob: &Descriptor,
        name: Option<&String>,
        top: Option<&String>,
        depth: usize,
    ) -> Result<(), Error> {
        let (origin, digest) = (self.origin, blob.digest().to_string());
        if !self.seen.insert((digest.clone(), name.cloned())) {
            return Ok(());
        }
        if depth == 0 || self.seen.len() > DOCUMENTS_MAX {
            return Err(origin.damaged("its indexes go on without end".to_owned()));
        }
        let json = self.small(blob, MANIFEST_MAX)?;
        match self.document(&digest, &json)? {
            Document::Index(index) => match self.platform.select(&index) {
                // One platform, one image.
                Ok(entry) => {
                    let top = Some(top.unwrap_or(&digest));
                    self.blob(entry, name, top, depth.saturating_sub(1))
                }
                Err(no_match) => {
                    self.leave_out(&no_match.available);
                    Ok(())
                }
            },
            Document::Image(manifest) => {
                manifest::check(&manifest, &digest, &origin.0, &Limits::default())
                    .map_err(|source| self.unusable(source))?;
                let config = self.small(manifest.config(), CONFIG_MAX)?;
                let layers = manifest.layers().iter().map(|layer| {
                    let piece = self.find(layer)?;
                    Ok(Layer {
                        piece,
                        custody: self.files.custody(),
                        digest: Some(layer.digest().to_string()),
                        media_type: layer.media_type().to_string(),
                    })
                });
                let layers = layers.collect::<Result<_, _>>()?;
                let kept = json.len().saturating_add(config.len());
                self.left = self.left.checked_sub(kept).ok_or_else(|| {
                    origin.damaged(format!(
                        "the documents of its images have more than {KEPT_MAX} bytes in all"
                    ))
                })?;
                self.images.push(Image {
                    names: name.cloned().into_iter().collect(),
                    config,
                    manifest: Some(json),
                    index: top.cloned(),
                    layers,
                });
                Ok(())
            }
        }
    }

    /// The bytes of a blob, checked against its digest.
    fn small(&self, blob: &Descriptor, max: usize) -> Result<Vec<u8>, Error> {
        let piece = self.find(blob)?;
        let digest = blob.digest().to_string();
        let bytes = piece
            .read(max)
            .map_err(|source| self.origin.member(&digest, source))?;
        self.origin.verify(&digest, &bytes, Some(&digest))?;
        Ok(bytes)
    }

    /// A blob, of the size that it should have.
    fn find(&self, blob: &Descriptor) -> Result<Piece, Error> {
        let digest = blob.digest().to_string();
        if !is_sha256(&digest) {
            let digest: String = digest.chars().take(100).collect();
            return Err(self.origin.damaged(format!(
                "it names a blob {digest:?}, and only SHA-256 digests are understood"
            )));
        }
        let name = format!("blobs/{}", digest.replacen(':', "/", 1));
        let piece = find(self.origin, self.files, &name)?;
        if piece.length == blob.size() {
            return Ok(piece);
        }
        Err(self.origin.damaged(format!(
            "its blob {digest} has {} bytes and should have {}",
            piece.length,
            blob.size()
        )))
    }
}

fn find(origin: &Origin, files: &dyn Files, name: &str) -> Result<Piece, Error> {
    let found = files
        .find(name)
        .map_err(|source| origin.member(name, source))?;
    found.ok_or_else(|| origin.damaged(format!("{name} is missing in it")))
}
