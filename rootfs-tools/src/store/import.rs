//! Images from archives and directories.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::roots::Conversion;
use super::{
    Cancel, Error, Event, Events, Held, Image, ImageInfo, LayerInfo, Source, Store, now, roots,
    sha256, tag_name,
};
use crate::archive::{self, Contents, Piece};
use crate::directory::{self, Scan};
use crate::image_config::ImageConfig;
use crate::platform::Platform;
use crate::reference::Reference;

/// Where an import comes from.
#[derive(Debug)]
pub enum Input {
    /// A file or a directory.
    Path(PathBuf),
    /// An open file or pipe, such as standard input.
    File {
        /// The file.
        file: File,
        /// What it is called in messages.
        name: String,
    },
}

impl Input {
    fn name(&self) -> String {
        match self {
            Self::Path(path) => path.display().to_string(),
            Self::File { name, .. } => name.clone(),
        }
    }
}

/// How to import.
#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    /// The name that the image gets, or of several images which one; all of
    /// them under the names that they have otherwise.
    pub name: Option<String>,
    /// Of an archive for several platforms, which one.
    pub platform: Platform,
    /// How the root image is made.
    pub conversion: Conversion,
}

impl Store {
    /// Imports all images of an archive, or one; see [`crate::archive`] for what
    /// is understood.
    ///
    /// # Errors
    ///
    /// The archive cannot be used, or the store cannot be written. Images that
    /// were imported before the error stay; of the others nothing does.
    pub fn import(
        &self,
        input: Input,
        options: &ImportOptions,
        events: Events<'_>,
    ) -> Result<Vec<Image>, Error> {
        let wanted = options.name.as_deref().map(tag_name).transpose()?;
        let archive_name = input.name();
        let reading = archive::Options {
            platform: options.platform.clone(),
            limits: options.conversion.limits.clone(),
            spool: self.work(),
            cancel: options.conversion.cancel.clone(),
        };
        let mut unpacking = |bytes| events(Event::Unpacking(bytes));
        let contents = match input {
            Input::Path(path) => archive::open(&path, &reading, &mut unpacking)?,
            Input::File { file, name } => {
                archive::open_file(file, &name, &reading, &mut unpacking)?
            }
        };
        match contents {
            Contents::Images(images) => {
                let chosen = choose(images, wanted, &archive_name)?;
                self.import_images(&chosen, options, events)
            }
            Contents::Root(layer) => {
                let name = wanted.ok_or(Error::Nameless(archive_name))?;
                let image = root_tar(layer, &options.conversion.cancel)?;
                self.import_images(&[(vec![name], image)], options, events)
            }
            Contents::Directory(path) => {
                let name = wanted.ok_or(Error::Nameless(archive_name))?;
                self.import_directory(name, &path, &options.conversion.cancel, events)
                    .map(|image| vec![image])
            }
        }
    }

    /// Imports images, each under its names. The list of images is written when
    /// all are there, or earlier if they have too many files to hold.
    fn import_images(
        &self,
        images: &[(Vec<String>, archive::Image)],
        options: &ImportOptions,
        events: Events<'_>,
    ) -> Result<Vec<Image>, Error> {
        let mut imported = Vec::new();
        let mut batch = Batch::default();
        let mut verified = Verified::default();
        let mut all = || {
            for (names, image) in images {
                let new = self.import_image(names, image, options, events, &mut verified)?;
                let ready = batch.take(new);
                imported.extend(ready.iter().cloned());
                if batch.held.len() >= HELD_MAX {
                    self.list_images(&mut batch, events)?;
                }
            }
            Ok(())
        };
        let result = all();
        // Those before an error stay.
        let listed = self.list_images(&mut batch, events);
        result.and(listed).map(|()| imported)
    }

    fn list_images(&self, batch: &mut Batch, events: Events<'_>) -> Result<(), Error> {
        let Batch { infos, held } = std::mem::take(batch);
        let listed = match infos.is_empty() {
            true => Ok(()),
            false => self.add(infos, events),
        };
        drop(held);
        listed
    }

    /// Imports one image under these names.
    fn import_image(
        &self,
        names: &[String],
        image: &archive::Image,
        options: &ImportOptions,
        events: Events<'_>,
        verified: &mut Verified,
    ) -> Result<Imported, Error> {
        let name = names.first().cloned().unwrap_or_default();
        let config = ImageConfig::parse(&image.config).map_err(|source| Error::Config {
            name: name.clone(),
            source,
        })?;
        super::pull::check(&name, &config, image.layers.len())?;
        let infos = config.diff_ids.iter().zip(&image.layers);
        let infos = infos.map(|(diff_id, layer)| LayerInfo {
            diff_id: diff_id.clone(),
            digest: layer.digest.clone(),
            size: layer.piece.length,
            media_type: layer.media_type.clone(),
        });
        let infos: Vec<LayerInfo> = infos.collect();
        let conversion = &options.conversion;
        let sizes = image.layers.iter().map(|layer| layer.piece.length);
        roots::check_packed(&name, sizes, conversion)?;
        for layer in &image.layers {
            verified.digest(&name, layer, &conversion.cancel)?;
        }
        let layers = config.diff_ids.iter().zip(&image.layers);
        let layers: Vec<_> = layers
            .map(|(id, layer)| roots::Packed {
                name: id.clone(),
                piece: layer.piece.clone(),
                custody: layer.custody,
            })
            .collect();
        let root = roots::name(&config.diff_ids);
        let mut made = false;
        let held = self.root_or_make(&root, &name, false, events, |out| {
            made = true;
            self.convert(&name, &layers, &config.diff_ids, conversion, out, events)
        })?;
        // A configuration can name any layers. Who has not got them must not get
        // the root image that this store made of somebody else's: its programs
        // would run on files that were never theirs.
        if !made {
            for (layer, diff_id) in layers.iter().zip(&config.diff_ids) {
                verified.once(&layer.piece, diff_id, || {
                    self.verify_layer(&name, layer, diff_id, conversion)
                })?;
            }
        }
        let (id, stored_config) = self.put(&image.config)?;
        let manifest = image.manifest.as_deref().map(|json| self.put(json));
        let manifest = manifest.transpose()?;
        let size = held.size().map_err(super::failed("look at", &held.path))?;
        let info = ImageInfo {
            name,
            source: Source::Import,
            id,
            manifest: manifest.as_ref().map(|(digest, _)| digest.clone()),
            index: image.index.clone(),
            platform: config.platform(),
            layers: infos,
            root,
            size,
            created: config.created.clone(),
            added: now(),
        };
        let images = names.iter().map(|name| Image {
            info: ImageInfo {
                name: name.clone(),
                ..info.clone()
            },
            config: config.clone(),
        });
        let manifest = manifest.map(|(_, held)| held);
        Ok(Imported {
            images: images.collect(),
            held: [held, stored_config].into_iter().chain(manifest).collect(),
        })
    }

    /// Imports a directory as it is now.
    fn import_directory(
        &self,
        name: String,
        path: &Path,
        cancel: &Cancel,
        events: Events<'_>,
    ) -> Result<Image, Error> {
        let scan = Scan::new(path, &directory::Options::default())?;
        // There is no tar to have a digest. What stands for it has to differ
        // whenever the files do.
        let what = format!("directory {} {}", path.display(), scan.fingerprint);
        let diff_id = sha256(what.as_bytes());
        let root = roots::name(std::slice::from_ref(&diff_id));
        let held = self.root_or_make(&root, &name, false, events, |out| {
            let mut progress = |progress: crate::erofs::Progress| {
                events(Event::Converting {
                    done: progress.done,
                    total: progress.total,
                });
                cancel.is_cancelled()
            };
            let options = crate::erofs::Options::default();
            let written = crate::erofs::write_unless(&scan.tree, &options, out, &mut progress);
            let written = written.map_err(|source| {
                let root = path.to_owned();
                Error::Directory(directory::Error::Image { root, source })
            })?;
            written.map(drop).ok_or(Error::Cancelled)
        })?;
        let json = plain_config(&diff_id);
        let config = ImageConfig::parse(&json).map_err(|source| Error::Config {
            name: name.clone(),
            source,
        })?;
        let (id, _config) = self.put(&json)?;
        let size = held.size().map_err(super::failed("look at", &held.path))?;
        let info = ImageInfo {
            name,
            source: Source::Import,
            id,
            manifest: None,
            index: None,
            platform: config.platform(),
            layers: vec![LayerInfo {
                diff_id,
                digest: None,
                size,
                media_type: String::new(),
            }],
            root,
            size,
            created: None,
            added: now(),
        };
        self.add([info.clone()], events)?;
        Ok(Image { info, config })
    }
}

/// An image that is in the store but for the list of images.
struct Imported {
    /// It, under each of its names.
    images: Vec<Image>,
    /// Its files.
    held: Vec<Held>,
}

/// What is to be listed next, and the files that nobody may remove until then.
#[derive(Default)]
struct Batch {
    infos: Vec<ImageInfo>,
    held: BTreeMap<PathBuf, Held>,
}

impl Batch {
    fn take(&mut self, new: Imported) -> Vec<Image> {
        let infos = new.images.iter().map(|image| image.info.clone());
        self.infos.extend(infos);
        let held = new.held.into_iter();
        self.held.extend(held.map(|held| (held.path.clone(), held)));
        new.images
    }
}

/// Files that are held at once at most: fewer than a process may open.
const HELD_MAX: usize = 256;

/// What was found to have its digest in this import: images of an archive can
/// have the same layers, thousands of times.
#[derive(Default)]
struct Verified(HashSet<(u64, u64, u64, u64, String)>);

impl Verified {
    /// Layers that are packed have a digest of their own.
    fn digest(
        &mut self,
        image: &str,
        layer: &archive::Layer,
        cancel: &Cancel,
    ) -> Result<(), Error> {
        match &layer.digest {
            None => Ok(()),
            Some(expected) => self.once(&layer.piece, &format!("packed {expected}"), || {
                verify(image, layer, expected, cancel)
            }),
        }
    }

    /// Verifies a piece to have something, unless it was verified before.
    fn once(
        &mut self,
        piece: &Piece,
        what: &str,
        verify: impl FnOnce() -> Result<(), Error>,
    ) -> Result<(), Error> {
        let file = piece.file.metadata();
        let file = file.map_err(super::failed("look at", Path::new("the archive")))?;
        let key = (
            file.dev(),
            file.ino(),
            piece.offset,
            piece.length,
            what.to_owned(),
        );
        if !self.0.contains(&key) {
            verify()?;
            self.0.insert(key);
        }
        Ok(())
    }
}

/// Which images to import, under which names.
fn choose(
    images: Vec<archive::Image>,
    wanted: Option<String>,
    archive: &str,
) -> Result<Vec<(Vec<String>, archive::Image)>, Error> {
    let full = |name: &String| name.parse::<Reference>().map(|name| name.to_string());
    let named = images.into_iter().map(|image| {
        // A name that is none is no reason not to take the image under another.
        let names: Vec<String> = image.names.iter().flat_map(full).collect();
        (names, image)
    });
    let mut named: Vec<_> = named.collect();
    let Some(wanted) = wanted else {
        if named.iter().any(|(names, _)| names.is_empty()) {
            return Err(Error::Nameless(archive.to_owned()));
        }
        return Ok(named);
    };
    if named.len() > 1 {
        let names: Vec<String> = named.iter().flat_map(|(names, _)| names.clone()).collect();
        named.retain(|(names, _)| names.contains(&wanted));
        named.truncate(1);
        if named.is_empty() {
            let archive = archive.to_owned();
            return Err(Error::Several { archive, names });
        }
    }
    for (names, _) in &mut named {
        *names = vec![wanted.clone()];
    }
    Ok(named)
}

/// Checks the digest that the archive promises.
fn verify(
    image: &str,
    layer: &archive::Layer,
    expected: &str,
    cancel: &Cancel,
) -> Result<(), Error> {
    let actual = layer.piece.digest_unless(cancel);
    let actual = actual.map_err(|source| archive::Error::Member {
        archive: image.to_owned(),
        member: format!("layer {expected}"),
        source,
    })?;
    let actual = actual.ok_or(Error::Cancelled)?;
    if actual == *expected {
        return Ok(());
    }
    Err(Error::Layer {
        name: image.to_owned(),
        expected: expected.to_owned(),
        actual,
    })
}

/// The tar of a root file system as an image of one layer.
fn root_tar(layer: archive::Layer, cancel: &Cancel) -> Result<archive::Image, Error> {
    let diff_id = layer.piece.digest_unless(cancel);
    let diff_id = diff_id.map_err(|source| archive::Error::Member {
        archive: "the archive".to_owned(),
        member: "it".to_owned(),
        source,
    })?;
    let diff_id = diff_id.ok_or(Error::Cancelled)?;
    Ok(archive::Image {
        names: Vec::new(),
        config: plain_config(&diff_id),
        manifest: None,
        index: None,
        layers: vec![layer],
    })
}

/// The configuration of an image that has none.
fn plain_config(diff_id: &str) -> Vec<u8> {
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
    });
    config.to_string().into_bytes()
}
