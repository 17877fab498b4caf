//! Manifests and indexes of images: what blobs there are, and which image is
//! for which platform.
//!
//! OCI image specification 1.1 (`manifest.md`, `image-index.md`) and docker's
//! schema 2, which differ in media types only.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::image_config::{LAYERS_MAX, is_sha256};

/// Longest manifest or index that is read, in bytes; what registries accept.
pub const MANIFEST_MAX: usize = 4 << 20;

/// Largest blob that is believed in, in bytes: what an EROFS image can hold.
pub const BLOB_MAX: u64 = 16 << 40;

/// Why a manifest cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is longer than [`MANIFEST_MAX`].
    #[error("the manifest has {0} bytes; at most {MANIFEST_MAX} are read")]
    TooLong(usize),
    /// It is not the JSON that it should be.
    #[error("the manifest cannot be understood: {0}")]
    Json(#[from] serde_json::Error),
    /// Neither a manifest nor an index of a kind that is known.
    #[error("the manifest is of the type {0:?}; OCI images and docker's schema 2 are understood")]
    MediaType(String),
    /// More layers than [`LAYERS_MAX`].
    #[error("the image has {0} layers; at most {LAYERS_MAX} are taken")]
    Layers(usize),
    /// A digest is not one.
    #[error("the manifest names a blob {0:?}, which is not a SHA-256 digest")]
    Digest(String),
    /// A size that nothing has.
    #[error("the manifest says that blob {digest} has {size} bytes")]
    Size {
        /// The blob.
        digest: String,
        /// Its size, as it is written.
        size: String,
    },
    /// Something in the image is no file system layer.
    #[error(
        "the image has a layer of the type {0:?}, which is no file system: tar, gzip and zstd \
         layers are understood"
    )]
    Layer(String),
    /// The index has nothing for the platform.
    #[error("there is no image for {wanted}; there are images for {}", list(there))]
    NoPlatform {
        /// What was asked for.
        wanted: String,
        /// What there is.
        there: Vec<String>,
    },
    /// A platform is not written as one.
    #[error("{0:?} is not a platform; write e.g. linux/amd64 or linux/arm64/v8")]
    Platform(String),
}

fn list(names: &[String]) -> String {
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    }
}

/// How the tar of a layer is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// Not at all.
    Plain,
    /// gzip.
    Gzip,
    /// Zstandard.
    Zstd,
}

/// A blob by what it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blob {
    /// `sha256:` and 64 hexadecimal digits.
    pub digest: String,
    /// Bytes.
    pub size: u64,
    /// Its type.
    #[serde(rename = "mediaType")]
    pub media_type: String,
}

/// The manifest of one image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The configuration.
    pub config: Blob,
    /// The layers, the lowest first.
    pub layers: Vec<Blob>,
}

/// One image of an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The manifest, or an index below this one.
    pub blob: Blob,
    /// What it runs on.
    pub platform: Option<Platform>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
}

/// What a document turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Document {
    /// One image.
    Manifest(Manifest),
    /// Several, for different platforms or under different names.
    Index(Vec<Entry>),
}

/// What an image runs on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Platform {
    /// Operating system: `linux`.
    pub os: String,
    /// CPU architecture by Go's names: `amd64`.
    pub architecture: String,
    /// Such as `v8`; may be empty.
    pub variant: String,
}

impl Default for Platform {
    /// What guests are: `linux/amd64`.
    fn default() -> Self {
        Self {
            os: "linux".to_owned(),
            architecture: "amd64".to_owned(),
            variant: String::new(),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match self.variant.as_str() {
            "" => Ok(()),
            variant => write!(f, "/{variant}"),
        }
    }
}

impl FromStr for Platform {
    type Err = Error;

    /// `os/architecture[/variant]`, or the architecture alone.
    fn from_str(text: &str) -> Result<Self, Error> {
        let parts: Vec<&str> = text.split('/').collect();
        let (os, architecture, variant) = match parts.as_slice() {
            [architecture] => ("linux", *architecture, ""),
            [os, architecture] => (*os, *architecture, ""),
            [os, architecture, variant] => (*os, *architecture, *variant),
            _ => return Err(Error::Platform(text.to_owned())),
        };
        let word = |word: &str| {
            !word.is_empty()
                && word
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
        };
        if !word(os) || !word(architecture) || !(variant.is_empty() || word(variant)) {
            return Err(Error::Platform(text.to_owned()));
        }
        let (architecture, variant) = match (architecture, variant) {
            ("x86_64" | "x86-64", variant) => ("amd64", variant),
            ("aarch64", "") => ("arm64", "v8"),
            ("aarch64", variant) => ("arm64", variant),
            same => same,
        };
        Ok(Self {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.to_owned(),
        })
    }
}

impl Platform {
    /// Does an image for `other` serve who asked for this one?
    #[must_use]
    pub fn accepts(&self, other: &Self) -> bool {
        // arm64 without a variant is v8, which is what most images leave out.
        let variant = |p: &Self| match (p.architecture.as_str(), p.variant.as_str()) {
            ("arm64", "v8") | ("amd64", "v1") => String::new(),
            (_, variant) => variant.to_owned(),
        };
        self.os == other.os
            && self.architecture == other.architecture
            && (self.variant.is_empty() || variant(self) == variant(other))
    }
}

impl Document {
    /// Reads a manifest or an index.
    ///
    /// # Errors
    ///
    /// It is too long, is something else, or says impossible things.
    pub fn parse(json: &[u8]) -> Result<Self, Error> {
        if json.len() > MANIFEST_MAX {
            return Err(Error::TooLong(json.len()));
        }
        let raw: Raw = serde_json::from_slice(json)?;
        match (raw.config, raw.layers, raw.manifests) {
            (Some(config), Some(layers), None) => {
                if layers.len() > LAYERS_MAX {
                    return Err(Error::Layers(layers.len()));
                }
                let layers: Result<Vec<_>, _> = layers.into_iter().map(RawBlob::check).collect();
                let (config, layers) = (config.check()?, layers?);
                for layer in &layers {
                    packing(&layer.media_type)?;
                }
                Ok(Self::Manifest(Manifest { config, layers }))
            }
            (None, None, Some(manifests)) => {
                let entries = manifests.into_iter().map(|mut entry| {
                    let platform = entry.platform.take().map(RawPlatform::into_platform);
                    let annotations = entry.annotations.take().unwrap_or_default();
                    Ok(Entry {
                        blob: entry.check()?,
                        platform,
                        annotations,
                    })
                });
                entries.collect::<Result<_, _>>().map(Self::Index)
            }
            _ => {
                let kind = raw.media_type.unwrap_or_else(|| match raw.schema_version {
                    Some(version) => format!("schema {version}"),
                    None => String::new(),
                });
                Err(Error::MediaType(kind.chars().take(200).collect()))
            }
        }
    }
}

/// The entries of an index that are images for `platform`, the best first.
///
/// # Errors
///
/// [`Error::NoPlatform`] if there is none.
pub fn for_platform<'a>(
    entries: &'a [Entry],
    platform: &Platform,
) -> Result<Vec<&'a Entry>, Error> {
    let mut fitting: Vec<&Entry> = entries
        .iter()
        .filter(|entry| match &entry.platform {
            Some(there) => platform.accepts(there),
            None => false,
        })
        .collect();
    fitting.sort_by_key(|entry| entry.platform.as_ref() != Some(platform));
    if fitting.is_empty() {
        let mut there: Vec<String> = entries
            .iter()
            .filter_map(|entry| entry.platform.as_ref())
            // Attestations, which are no images.
            .filter(|platform| platform.os != "unknown")
            .map(|platform| platform.to_string().chars().take(50).collect())
            .take(50)
            .collect();
        there.dedup();
        return Err(Error::NoPlatform {
            wanted: platform.to_string(),
            there,
        });
    }
    Ok(fitting)
}

/// How a layer of this media type is packed.
///
/// # Errors
///
/// [`Error::Layer`] if it is no layer of a file system.
pub fn packing(media_type: &str) -> Result<Packing, Error> {
    match media_type {
        "application/vnd.oci.image.layer.v1.tar"
        | "application/vnd.oci.image.layer.nondistributable.v1.tar"
        | "application/vnd.docker.image.rootfs.diff.tar" => Ok(Packing::Plain),
        "application/vnd.oci.image.layer.v1.tar+gzip"
        | "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
        | "application/vnd.docker.image.rootfs.diff.tar.gzip"
        | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" => Ok(Packing::Gzip),
        "application/vnd.oci.image.layer.v1.tar+zstd"
        | "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"
        | "application/vnd.docker.image.rootfs.diff.tar.zstd" => Ok(Packing::Zstd),
        other => Err(Error::Layer(other.chars().take(200).collect())),
    }
}

#[derive(Deserialize)]
struct Raw {
    #[serde(rename = "schemaVersion")]
    schema_version: Option<serde_json::Number>,
    #[serde(rename = "mediaType")]
    media_type: Option<String>,
    config: Option<RawBlob>,
    layers: Option<Vec<RawBlob>>,
    manifests: Option<Vec<RawBlob>>,
}

#[derive(Deserialize)]
struct RawBlob {
    #[serde(default, rename = "mediaType")]
    media_type: String,
    digest: String,
    size: serde_json::Number,
    platform: Option<RawPlatform>,
    annotations: Option<BTreeMap<String, String>>,
}

impl RawBlob {
    fn check(self) -> Result<Blob, Error> {
        if !is_sha256(&self.digest) {
            return Err(Error::Digest(self.digest.chars().take(100).collect()));
        }
        let size = self.size.as_u64().filter(|size| *size <= BLOB_MAX);
        let Some(size) = size else {
            return Err(Error::Size {
                digest: self.digest,
                size: self.size.to_string(),
            });
        };
        Ok(Blob {
            digest: self.digest,
            size,
            media_type: self.media_type,
        })
    }
}

#[derive(Deserialize)]
struct RawPlatform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    variant: Option<String>,
}

impl RawPlatform {
    fn into_platform(self) -> Platform {
        Platform {
            os: self.os,
            architecture: self.architecture,
            variant: self.variant.unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(digit: char) -> String {
        format!("sha256:{}", digit.to_string().repeat(64))
    }

    fn manifest(size: &str, layer: &str) -> String {
        format!(
            r#"{{"schemaVersion": 2, "config": {{"mediaType": "x", "digest": "{}", "size": 2}},
                "layers": [{{"mediaType": "{layer}", "digest": "{}", "size": {size}}}]}}"#,
            digest('a'),
            digest('b')
        )
    }

    const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

    #[test]
    fn a_manifest() {
        let Document::Manifest(found) = Document::parse(manifest("7", GZIP).as_bytes()).unwrap()
        else {
            panic!("no manifest")
        };
        assert_eq!(found.config.digest, digest('a'));
        assert_eq!((found.layers.len(), found.layers[0].size), (1, 7));
        assert_eq!(packing(&found.layers[0].media_type).unwrap(), Packing::Gzip);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let refused = |json: &str| Document::parse(json.as_bytes()).unwrap_err();
        for size in [
            "-1",
            "9223372036854775807",
            "18446744073709551615",
            "1e30",
            "1.5",
        ] {
            let error = refused(&manifest(size, GZIP));
            assert!(matches!(error, Error::Size { .. }), "{size}: {error:?}");
        }
        assert!(matches!(
            refused(&manifest("1", "text/plain")),
            Error::Layer(_)
        ));
        assert!(matches!(refused("{}"), Error::MediaType(_)));
        assert!(matches!(
            refused(r#"{"schemaVersion": 1}"#),
            Error::MediaType(_)
        ));
        assert!(matches!(refused("x"), Error::Json(_)));
        let odd = manifest("1", GZIP).replace(&digest('a'), "sha256:../../x");
        assert!(matches!(refused(&odd), Error::Digest(_)));
        let many = format!(
            r#"{{"config": {{"digest": "{0}", "size": 1}}, "layers": [{1}]}}"#,
            digest('a'),
            vec![format!(r#"{{"digest": "{}", "size": 1}}"#, digest('b')); LAYERS_MAX + 1]
                .join(",")
        );
        assert!(matches!(refused(&many), Error::Layers(_)));
    }

    fn index(platforms: &[&str]) -> Vec<Entry> {
        let entries: Vec<String> = platforms
            .iter()
            .map(|name| {
                let parts: Vec<&str> = name.split('/').collect();
                let variant = parts.get(2).map_or("null".into(), |v| format!("{v:?}"));
                format!(
                    r#"{{"digest": "{}", "size": 1, "platform": {{"os": "{}", "architecture": "{}",
                        "variant": {variant}}}}}"#,
                    digest('c'),
                    parts[0],
                    parts[1]
                )
            })
            .collect();
        let json = format!(r#"{{"manifests": [{}]}}"#, entries.join(","));
        match Document::parse(json.as_bytes()).unwrap() {
            Document::Index(entries) => entries,
            Document::Manifest(_) => panic!("no index"),
        }
    }

    #[test]
    fn the_image_for_the_platform_is_chosen() {
        let entries = index(&[
            "linux/arm/v7",
            "linux/arm64/v8",
            "unknown/unknown",
            "linux/amd64",
        ]);
        let chosen = |text: &str| {
            let platform: Platform = text.parse().unwrap();
            let fitting = for_platform(&entries, &platform)?;
            Ok::<_, Error>(fitting[0].platform.clone().unwrap().to_string())
        };
        assert_eq!(chosen("linux/amd64").unwrap(), "linux/amd64");
        assert_eq!(chosen("amd64").unwrap(), "linux/amd64");
        assert_eq!(chosen("x86_64").unwrap(), "linux/amd64");
        assert_eq!(chosen("linux/arm64").unwrap(), "linux/arm64/v8");
        assert_eq!(
            chosen("linux/s390x").unwrap_err().to_string(),
            "there is no image for linux/s390x; there are images for linux/arm/v7, \
             linux/arm64/v8, linux/amd64"
        );
        assert!(chosen("linux/arm/v6").is_err());
    }

    #[test]
    fn platforms_are_words() {
        for text in ["", "/", "linux/", "a/b/c/d", "linux/amd 64", "linux/../x"] {
            assert!(text.parse::<Platform>().is_err(), "{text}");
        }
    }
}
