//! Platforms: what an image is made for, and the choice among several.
//!
//! Names are those of Go (OCI image index, "platform"): `linux/amd64`,
//! `linux/arm64/v8`. Variants of a processor are ordered: a program for `arm/v6`
//! runs on `arm/v7`, one for `amd64/v3` does not run on `amd64`.

use std::fmt;
use std::str::FromStr;

use oci_spec::image::{Descriptor, ImageIndex};

use crate::registry::clean;

pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// An operating system, a processor, and the least that the processor can do.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Platform {
    os: String,
    architecture: String,
    /// As Go names it, and not the default of the architecture.
    variant: Option<String>,
}

/// Why a text is no platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no platform: write OS/ARCHITECTURE or OS/ARCHITECTURE/VARIANT, as in linux/amd64"
)]
pub struct Error(String);

/// No image of an index is for the platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoMatch {
    /// The platforms that there are images for, sorted.
    pub available: Vec<Platform>,
}

impl Default for Platform {
    /// `linux/amd64`: what runs here.
    fn default() -> Self {
        Self::new("linux", "amd64", None)
    }
}

impl Platform {
    /// A platform, in its one spelling.
    #[must_use]
    pub fn new(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        let lower = str::to_ascii_lowercase;
        let (architecture, implied) = match lower(architecture).as_str() {
            "x86_64" | "x86-64" => ("amd64".to_owned(), None),
            "aarch64" => ("arm64".to_owned(), None),
            "i386" | "i686" => ("386".to_owned(), None),
            "armhf" => ("arm".to_owned(), Some("v7")),
            "armel" => ("arm".to_owned(), Some("v6")),
            other => (other.to_owned(), None),
        };
        let variant = variant
            .filter(|variant| !variant.is_empty())
            .map(lower)
            .or(implied.map(str::to_owned))
            .map(|variant| match variant.strip_prefix('v') {
                None if variant.parse::<u8>().is_ok() => format!("v{variant}"),
                _ => variant,
            })
            .filter(|variant| variant != default_variant(&architecture));
        Self {
            os: lower(os),
            architecture,
            variant,
        }
    }

    /// The operating system, as in `GOOS`.
    #[must_use]
    pub fn os(&self) -> &str {
        &self.os
    }

    /// The processor, as in `GOARCH`.
    #[must_use]
    pub fn architecture(&self) -> &str {
        &self.architecture
    }

    /// The variant of the processor, unless it is the architecture's default.
    #[must_use]
    pub fn variant(&self) -> Option<&str> {
        self.variant.as_deref()
    }

    /// What an entry of an index is for; nothing for entries that say none
    /// and for those that are no images (`unknown/unknown`, as attestations are).
    fn of(entry: &Descriptor) -> Option<Self> {
        let platform = entry.platform().as_ref()?;
        let platform = Self::new(
            &platform.os().to_string(),
            &platform.architecture().to_string(),
            platform.variant().as_deref(),
        );
        (platform.os != "unknown").then_some(platform)
    }

    /// How well something for `other` runs here; nothing if it does not.
    /// More is better.
    #[must_use]
    pub fn suits(&self, other: &Self) -> Option<u8> {
        if self.os != other.os || self.architecture != other.architecture {
            return None;
        }
        if self.variant == other.variant {
            return Some(u8::MAX);
        }
        let number = |platform: &Self| {
            let variant = platform.variant();
            let variant = variant.unwrap_or_else(|| default_variant(&platform.architecture));
            variant.strip_prefix('v')?.parse::<u8>().ok()
        };
        let (here, there) = (number(self)?, number(other)?);
        (there < here).then_some(there)
    }

    /// The entry of an index to use on this platform: a manifest, or another
    /// index. One without a platform is taken if there is nothing else.
    ///
    /// # Errors
    ///
    /// None suits; with what there is.
    pub fn select<'a>(&self, index: &'a ImageIndex) -> Result<&'a Descriptor, NoMatch> {
        let entries = || {
            let entries = index.manifests().iter();
            entries.filter(|entry| may_be_image(entry))
        };
        let mut best: Option<(u8, &Descriptor)> = None;
        for entry in entries() {
            let Some(suits) = Self::of(entry).and_then(|other| self.suits(&other)) else {
                continue;
            };
            // The first of equals, as other tools do.
            if best.is_none_or(|(most, _)| suits > most) {
                best = Some((suits, entry));
            }
        }
        if let Some((_, entry)) = best {
            return Ok(entry);
        }
        let mut available: Vec<_> = entries().filter_map(Self::of).collect();
        let mut silent = entries().filter(|entry| entry.platform().is_none());
        if let (true, Some(only), None) = (available.is_empty(), silent.next(), silent.next()) {
            return Ok(only);
        }
        available.sort_by_key(ToString::to_string);
        available.dedup();
        Err(NoMatch { available })
    }
}

/// Indexes also list what goes with images: signatures, lists of packages.
fn may_be_image(entry: &Descriptor) -> bool {
    entry.artifact_type().is_none()
        && matches!(
            entry.media_type().as_ref(),
            OCI_MANIFEST | OCI_INDEX | DOCKER_MANIFEST | DOCKER_LIST
        )
}

/// The variant that is meant where none is given.
fn default_variant(architecture: &str) -> &'static str {
    match architecture {
        "amd64" => "v1",
        "arm" => "v7",
        "arm64" => "v8",
        _ => "",
    }
}

/// Fit for a terminal: an index of a registry or an archive can say anything.
impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let variant = self.variant.iter().map(String::as_str);
        let parts = [self.os.as_str(), &self.architecture].into_iter();
        let parts: Vec<_> = parts.chain(variant).map(clean).collect();
        f.write_str(&parts.join("/"))
    }
}

impl FromStr for Platform {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let parts: Vec<_> = text.split('/').collect();
        let word = |part: &&str| {
            !part.is_empty()
                && part.len() <= 32
                && part
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'))
        };
        match (parts.as_slice(), parts.iter().all(word)) {
            ([os, architecture], true) => Ok(Self::new(os, architecture, None)),
            ([os, architecture, variant], true) => Ok(Self::new(os, architecture, Some(variant))),
            _ => Err(Error(text.chars().take(64).collect())),
        }
    }
}

#[cfg(test)]
mod tests;
