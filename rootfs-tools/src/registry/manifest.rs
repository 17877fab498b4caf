//! Manifests and indexes: what is in an answer, and whether it can be used.

use oci_spec::image::{Descriptor, Digest, ImageIndex, ImageManifest, MediaType};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::error::Error;
use super::options::Limits;
use crate::platform::{DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST};
use crate::reference::is_supported;

const DOCKER_SCHEMA_1: &str = "application/vnd.docker.distribution.manifest.v1+json";
const DOCKER_SCHEMA_1_SIGNED: &str = "application/vnd.docker.distribution.manifest.v1+prettyjws";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// What we take, in the header of a request.
pub(super) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.docker.distribution.manifest.v2+json";

/// A document, understood.
#[derive(Debug)]
pub(crate) enum Document {
    Image(Box<ImageManifest>),
    Index(Box<ImageIndex>),
}

/// What a document says of itself, and the fields that tell the kinds apart.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Outline {
    schema_version: Option<u32>,
    media_type: Option<String>,
    manifests: Option<IgnoredAny>,
    config: Option<IgnoredAny>,
    layers: Option<IgnoredAny>,
    fs_layers: Option<IgnoredAny>,
}

/// Understands a document that came with a media type (`Content-Type`; registries
/// that serve files have none that says anything).
pub(crate) fn parse(
    bytes: &[u8],
    content_type: Option<&str>,
    what: &str,
    host: &str,
) -> Result<Document, Error> {
    let malformed = |why: String| Error::Malformed {
        what: what.to_owned(),
        host: host.to_owned(),
        why,
    };
    let unusable = |media_type: &str, why| Error::MediaType {
        what: what.to_owned(),
        media_type: super::error::clean(media_type),
        why,
    };
    let sent = content_type
        .map(|text| text.split(';').next().unwrap_or_default().trim())
        .filter(|text| text.starts_with("application/vnd."));
    let json = |error: serde_json::Error| malformed(super::error::clean(&error.to_string()));
    let outline: Outline = match serde_json::from_slice(bytes) {
        Ok(outline) => outline,
        Err(error) => {
            return Err(match (sent, content_type) {
                // Signed manifests of schema 1 are JSON; a page for people is not.
                (None, Some(other)) if !other.contains("json") => {
                    unusable(other, "what the registry sent is no manifest")
                }
                _ => json(error),
            });
        }
    };
    let media_type = match (sent, outline.media_type.as_deref()) {
        (Some(sent), Some(said)) if sent != said => {
            return Err(malformed(format!(
                "it came as `{}` and calls itself `{}`",
                super::error::clean(sent),
                super::error::clean(said)
            )));
        }
        (sent, said) => sent.or(said),
    };
    let old = outline.fs_layers.is_some() || outline.schema_version == Some(1);
    let media_type = match media_type {
        Some(media_type) => media_type,
        None if old => DOCKER_SCHEMA_1,
        None if outline.manifests.is_some() => OCI_INDEX,
        None => OCI_MANIFEST,
    };
    // A document that reads as both would be something else to another tool
    // under the same digest.
    let both =
        outline.manifests.is_some() && (outline.config.is_some() || outline.layers.is_some());
    match media_type {
        DOCKER_SCHEMA_1 | DOCKER_SCHEMA_1_SIGNED => Err(unusable(
            media_type,
            "it is an image in the old format of docker; build or push it again with any current tool",
        )),
        _ if both || old => Err(malformed(
            "it could be read as documents of several kinds".to_owned(),
        )),
        OCI_INDEX | DOCKER_LIST => serde_json::from_slice(bytes)
            .map(|index| Document::Index(Box::new(index)))
            .map_err(json),
        OCI_MANIFEST | DOCKER_MANIFEST => serde_json::from_slice(bytes)
            .map(|manifest| Document::Image(Box::new(manifest)))
            .map_err(json),
        other => Err(unusable(other, "it is no container image that we know")),
    }
}

/// Checks that a manifest is of an image whose parts can be fetched.
pub(crate) fn check(
    manifest: &ImageManifest,
    image: &str,
    host: &str,
    limits: &Limits,
) -> Result<(), Error> {
    let config = manifest.config();
    if !matches!(config.media_type(), MediaType::ImageConfig)
        && config.media_type().as_ref() != DOCKER_CONFIG
    {
        return Err(Error::MediaType {
            what: image.to_owned(),
            media_type: super::error::clean(config.media_type().as_ref()),
            why: "it is an artifact and no container image, by the type of its configuration",
        });
    }
    let layers = manifest.layers();
    if layers.len() > limits.layers {
        return Err(Error::TooManyLayers {
            image: image.to_owned(),
            layers: layers.len(),
            limit: limits.layers,
        });
    }
    check_part(config, "the configuration", image, host, limits.config)?;
    for layer in layers {
        check_part(layer, "layer", image, host, limits.blob)?;
        if !is_layer(layer.media_type().as_ref()) {
            return Err(Error::MediaType {
                what: format!("layer {} of {image}", layer.digest()),
                media_type: super::error::clean(layer.media_type().as_ref()),
                why: "it is no layer that we know how to unpack",
            });
        }
    }
    Ok(())
}

/// Checks what a manifest or index says of something that it names.
pub(super) fn check_part(
    part: &Descriptor,
    kind: &str,
    image: &str,
    host: &str,
    limit: u64,
) -> Result<(), Error> {
    let digest = part.digest();
    if !is_supported(digest) {
        return Err(Error::Malformed {
            what: format!("the manifest of {image}"),
            host: host.to_owned(),
            why: format!(
                "content cannot be checked by the digest `{}`",
                super::error::clean(digest.as_ref())
            ),
        });
    }
    if part.size() > limit {
        return Err(Error::TooLarge {
            what: format!("{kind} {digest} of {image}"),
            size: part.size().to_string(),
            limit,
        });
    }
    Ok(())
}

/// Is it an archive that makes up a file system?
fn is_layer(media_type: &str) -> bool {
    matches!(
        media_type,
        "application/vnd.oci.image.layer.v1.tar"
            | "application/vnd.oci.image.layer.v1.tar+gzip"
            | "application/vnd.oci.image.layer.v1.tar+zstd"
            | "application/vnd.docker.image.rootfs.diff.tar"
            | "application/vnd.docker.image.rootfs.diff.tar.gzip"
            | "application/vnd.docker.image.rootfs.diff.tar.zstd"
    ) || is_foreign(media_type)
}

/// Is it a layer that its makers do not want to be in registries?
pub(super) fn is_foreign(media_type: &str) -> bool {
    matches!(
        media_type,
        "application/vnd.oci.image.layer.nondistributable.v1.tar"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
    )
}

/// The name of a document or blob in messages.
pub(super) fn named(kind: &str, digest: &Digest, image: &str) -> String {
    format!("{kind} {digest} of {image}")
}

#[cfg(test)]
mod tests;
