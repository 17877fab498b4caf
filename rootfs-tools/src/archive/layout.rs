//! An OCI image layout (image specification 1.1, `image-layout.md`): a
//! directory or a tar with `oci-layout`, `index.json` and `blobs/sha256/…`.

use std::collections::HashSet;

use super::{Error, Image, Layer, Origin, Piece};
use crate::image_config::CONFIG_MAX;
use crate::manifest::{self, Blob, Document, Entry, MANIFEST_MAX, Platform};

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

/// Files of a layout by their names.
pub(super) trait Files {
    /// The regular file of that name; `None` if there is none.
    fn find(&self, name: &str) -> std::io::Result<Option<Piece>>;
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
        other: None,
    };
    match walk.document(INDEX, &json)? {
        Document::Index(entries) => walk.named(&entries)?,
        Document::Manifest(_) => {
            return Err(origin.damaged(format!("its {INDEX} is a manifest and not an index")));
        }
    }
    match walk.other {
        // Nothing fits, and that is why.
        Some(error) if walk.images.is_empty() => Err(error),
        _ => Ok(walk.images),
    }
}

struct Walk<'a> {
    origin: &'a Origin,
    files: &'a dyn Files,
    platform: &'a Platform,
    /// Documents that were read.
    seen: HashSet<(String, Vec<String>)>,
    images: Vec<Image>,
    /// Why something was left out.
    other: Option<Error>,
}

impl Walk<'_> {
    fn document(&self, name: &str, json: &[u8]) -> Result<Document, Error> {
        Document::parse(json).map_err(|source| Error::Manifest {
            archive: self.origin.0.clone(),
            blob: name.to_owned(),
            source,
        })
    }

    /// Entries at the top: each is an image by its own name, in one or several
    /// platforms.
    fn named(&mut self, entries: &[Entry]) -> Result<(), Error> {
        for entry in entries {
            let names: Vec<String> = NAMES
                .iter()
                .filter_map(|key| entry.annotations.get(*key).cloned())
                .take(1)
                .collect();
            match &entry.platform {
                Some(platform) if !self.platform.accepts(platform) => {
                    let error = manifest::for_platform(std::slice::from_ref(entry), self.platform);
                    self.leave_out(error.err());
                }
                _ => self.blob(&entry.blob, &names, DEPTH)?,
            }
        }
        Ok(())
    }

    fn leave_out(&mut self, error: Option<manifest::Error>) {
        if let (None, Some(source)) = (&self.other, error) {
            self.other = Some(Error::Manifest {
                archive: self.origin.0.clone(),
                blob: INDEX.to_owned(),
                source,
            });
        }
    }

    fn blob(&mut self, blob: &Blob, names: &[String], depth: usize) -> Result<(), Error> {
        let (origin, digest) = (self.origin, blob.digest.as_str());
        if !self.seen.insert((digest.to_owned(), names.to_vec())) {
            return Ok(());
        }
        if depth == 0 || self.seen.len() > DOCUMENTS_MAX {
            return Err(origin.damaged("its indexes go on without end".to_owned()));
        }
        let json = self.small(blob, MANIFEST_MAX)?;
        match self.document(digest, &json)? {
            Document::Index(entries) => {
                match manifest::for_platform(&entries, self.platform) {
                    // One platform, one image: the best.
                    Ok(fitting) => {
                        for entry in fitting.into_iter().take(1) {
                            self.blob(&entry.blob, names, depth.saturating_sub(1))?;
                        }
                    }
                    Err(error) => self.leave_out(Some(error)),
                }
                Ok(())
            }
            Document::Manifest(manifest) => {
                let config = self.small(&manifest.config, CONFIG_MAX)?;
                let layers = manifest.layers.iter().map(|layer| {
                    let name = path(&layer.digest);
                    let piece = find(origin, self.files, &name)?;
                    self.check_size(layer, &piece)?;
                    Ok(Layer {
                        piece,
                        digest: Some(layer.digest.clone()),
                    })
                });
                let layers = layers.collect::<Result<_, _>>()?;
                self.images.push(Image {
                    names: names.to_vec(),
                    config,
                    manifest: Some(json),
                    layers,
                });
                Ok(())
            }
        }
    }

    /// The bytes of a blob, checked against its digest.
    fn small(&self, blob: &Blob, max: usize) -> Result<Vec<u8>, Error> {
        let name = path(&blob.digest);
        let piece = find(self.origin, self.files, &name)?;
        self.check_size(blob, &piece)?;
        let bytes = piece
            .read(max)
            .map_err(|source| self.origin.member(&name, source))?;
        self.origin.verify(&name, &bytes, Some(&blob.digest))?;
        Ok(bytes)
    }

    fn check_size(&self, blob: &Blob, piece: &Piece) -> Result<(), Error> {
        if piece.length == blob.size {
            return Ok(());
        }
        Err(self.origin.damaged(format!(
            "its blob {} has {} bytes and should have {}",
            blob.digest, piece.length, blob.size
        )))
    }
}

fn path(digest: &str) -> String {
    format!("blobs/{}", digest.replacen(':', "/", 1))
}

fn find(origin: &Origin, files: &dyn Files, name: &str) -> Result<Piece, Error> {
    let found = files
        .find(name)
        .map_err(|source| origin.member(name, source))?;
    found.ok_or_else(|| origin.damaged(format!("{name} is missing in it")))
}
