//! Images from archives and directories.

use std::fs::File;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::roots::Conversion;
use super::{
    Error, Event, Events, Image, ImageInfo, LayerInfo, Source, Store, now, roots, sha256, tag_name,
};
use crate::archive::{self, Contents};
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
            max_unpacked: options.conversion.limits.total,
            spool: self.work(),
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
                let imported = chosen
                    .into_iter()
                    .map(|(names, image)| self.import_image(&names, &image, options, events));
                let imported: Result<Vec<_>, _> = imported.collect();
                Ok(imported?.into_iter().flatten().collect())
            }
            Contents::Root(layer) => {
                let name = wanted.ok_or(Error::Nameless(archive_name))?;
                let image = root_tar(layer)?;
                self.import_image(&[name], &image, options, events)
            }
            Contents::Directory(path) => {
                let name = wanted.ok_or(Error::Nameless(archive_name))?;
                self.import_directory(name, &path, events)
                    .map(|image| vec![image])
            }
        }
    }

    /// Imports one image under these names.
    fn import_image(
        &self,
        names: &[String],
        image: &archive::Image,
        options: &ImportOptions,
        events: Events<'_>,
    ) -> Result<Vec<Image>, Error> {
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
        let root = roots::name(&config.diff_ids);
        let held = self.root_or_make(&root, &name, false, events, |out| {
            for layer in &image.layers {
                verify(&name, layer)?;
            }
            let inputs = config.diff_ids.iter().zip(&image.layers);
            let inputs: Vec<_> = inputs
                .map(|(id, layer)| (id.clone(), layer.piece.clone()))
                .collect();
            let conversion = &options.conversion;
            self.convert(&name, &inputs, &config.diff_ids, conversion, out, events)
        })?;
        let (id, _config) = self.put(&image.config)?;
        let manifest = image.manifest.as_deref().map(|json| self.put(json));
        let manifest = manifest.transpose()?;
        let size = held.size().map_err(super::failed("look at", &held.path))?;
        let info = ImageInfo {
            name,
            source: Source::Import,
            id,
            manifest: manifest.as_ref().map(|(digest, _)| digest.clone()),
            index: None,
            platform: config.platform(),
            layers: infos,
            root,
            size,
            created: config.created.clone(),
            added: now(),
        };
        let mut imported = Vec::new();
        for name in names {
            let info = ImageInfo {
                name: name.clone(),
                ..info.clone()
            };
            self.add(info.clone())?;
            imported.push(Image {
                info,
                config: config.clone(),
            });
        }
        Ok(imported)
    }

    /// Imports a directory as it is now.
    fn import_directory(
        &self,
        name: String,
        path: &Path,
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
            };
            let options = crate::erofs::Options::default();
            crate::erofs::write(&scan.tree, &options, out, &mut progress).map_err(|source| {
                let root = path.to_owned();
                Error::Directory(directory::Error::Image { root, source })
            })?;
            Ok(())
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
        self.add(info.clone())?;
        Ok(Image { info, config })
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

/// Layers that are packed have a digest of their own; that of their contents is
/// checked while they are converted.
fn verify(image: &str, layer: &archive::Layer) -> Result<(), Error> {
    let Some(expected) = &layer.digest else {
        return Ok(());
    };
    let actual = layer
        .piece
        .digest(&mut |_| {})
        .map_err(|source| archive::Error::Member {
            archive: image.to_owned(),
            member: format!("layer {expected}"),
            source,
        })?;
    if actual == *expected {
        return Ok(());
    }
    Err(Error::Layer {
        name: image.to_owned(),
        expected: expected.clone(),
        actual,
    })
}

/// The tar of a root file system as an image of one layer.
fn root_tar(layer: archive::Layer) -> Result<archive::Image, Error> {
    let diff_id = layer
        .piece
        .digest(&mut |_| {})
        .map_err(|source| archive::Error::Member {
            archive: "the archive".to_owned(),
            member: "it".to_owned(),
            source,
        })?;
    Ok(archive::Image {
        names: Vec::new(),
        config: plain_config(&diff_id),
        manifest: None,
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
