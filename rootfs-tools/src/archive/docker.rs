//! What `docker save` writes: `manifest.json`, which lists for each image its
//! names, the file with its configuration and the files with its layers.

use serde::Deserialize;

use super::piece::Piece;
use super::{Error, Image, Layer, MANIFEST_MAX, Origin, Tar};
use crate::image_config::{CONFIG_MAX, LAYERS_MAX, is_sha256};
use crate::registry::clean;

/// The file with the list of images.
pub(super) const MANIFEST: &str = "manifest.json";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// The images of an archive with such a file.
pub(super) fn images(origin: &Origin, tar: &Tar, list: &Piece) -> Result<Vec<Image>, Error> {
    let json = list
        .read(MANIFEST_MAX)
        .map_err(|source| origin.member(MANIFEST, source))?;
    let listed: Vec<Listed> = serde_json::from_slice(&json).map_err(|source| {
        let why = clean(&source.to_string());
        origin.damaged(format!("its {MANIFEST} cannot be understood: {why}"))
    })?;
    let mut images = Vec::new();
    let mut left = CONFIGS_MAX;
    for listed in listed {
        let image = image(origin, tar, listed)?;
        // Each name is an image of the store with the whole configuration.
        let kept = image.config.len().saturating_mul(image.names.len().max(1));
        left = left.checked_sub(kept).ok_or_else(|| {
            origin.damaged(format!(
                "the configurations of its images have more than {CONFIGS_MAX} bytes in all"
            ))
        })?;
        images.push(image);
    }
    Ok(images)
}

/// Bytes of the configurations of all images, under each of their names: they are
/// in memory together, and one can be listed many times.
const CONFIGS_MAX: usize = 64 << 20;

fn image(origin: &Origin, tar: &Tar, listed: Listed) -> Result<Image, Error> {
    let find = |name: &str| {
        tar.file(origin, name)?.ok_or_else(|| {
            let name: String = name.chars().take(200).collect();
            origin.damaged(format!("its {MANIFEST} names {name:?}, which is not in it"))
        })
    };
    if listed.layers.len() > LAYERS_MAX {
        let count = listed.layers.len();
        return Err(origin.damaged(format!(
            "it has an image with {count} layers; at most {LAYERS_MAX} are taken"
        )));
    }
    let config = find(&listed.config)?;
    let bytes = config
        .read(CONFIG_MAX)
        .map_err(|source| origin.member(&listed.config, source))?;
    origin.verify(
        &listed.config,
        &bytes,
        named_digest(&listed.config).as_deref(),
    )?;
    let layers = listed.layers.iter().map(|name| {
        Ok(Layer {
            piece: find(name)?,
            custody: tar.custody,
            digest: named_digest(name),
            media_type: String::new(),
        })
    });
    Ok(Image {
        names: listed.repo_tags.unwrap_or_default(),
        layers: layers.collect::<Result<_, _>>()?,
        config: bytes,
        manifest: None,
        index: None,
    })
}

/// The digest that a name promises: `blobs/sha256/HEX`, or `HEX.json` and
/// `HEX.tar`. Older archives have layers under names that promise nothing.
fn named_digest(name: &str) -> Option<String> {
    let last = name.rsplit('/').next()?;
    let hex = match name.strip_prefix("blobs/sha256/") {
        Some(hex) => hex,
        None if name == last => last.strip_suffix(".json")?,
        None => return None,
    };
    let digest = format!("sha256:{hex}");
    is_sha256(&digest).then_some(digest)
}
