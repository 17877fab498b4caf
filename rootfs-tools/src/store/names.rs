//! What users call images: names and digests.

use std::borrow::Cow;

use super::Error;
use super::index::{ImageInfo, Images};
use crate::reference::{self, Reference};

/// Digits of a digest that name an image at least.
const PREFIX_MIN: usize = 4;

/// The image of that name, or that has that digest.
pub(super) fn find<'a>(images: &'a Images, name: &str) -> Result<&'a ImageInfo, Error> {
    let found = all_names(images, name)?;
    let first = found.into_iter().next();
    first.ok_or_else(|| Error::NotFound(name.to_owned()))
}

/// The image of that name, or what has that digest: one image, under all its
/// names. Never empty.
pub(super) fn all_names<'a>(images: &'a Images, name: &str) -> Result<Vec<&'a ImageInfo>, Error> {
    if let Ok(reference) = name.parse::<Reference>()
        && let Some(image) = images.get(&reference.to_string())
    {
        return Ok(vec![image]);
    }
    let found: Vec<&ImageInfo> = match Digits::parse(name) {
        Some(digits) => images
            .values()
            .filter(|image| digits.are_of(image))
            .collect(),
        None => Vec::new(),
    };
    let first = found
        .first()
        .ok_or_else(|| Error::NotFound(name.to_owned()))?;
    // Several names of one image are no matter.
    if found.iter().all(|image| image.id == first.id) {
        return Ok(found);
    }
    Err(Error::Ambiguous {
        prefix: name.to_owned(),
        names: found.iter().map(|image| image.name.clone()).collect(),
    })
}

/// An image by its digest, or the beginning of that.
struct Digits<'a> {
    /// Only in this repository.
    repository: Option<Reference>,
    /// With its algorithm.
    digest: Cow<'a, str>,
}

impl<'a> Digits<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let (repository, digest) = match text.split_once('@') {
            Some((repository, digest)) => (Some(repository.parse().ok()?), digest),
            None => (None, text),
        };
        let hex = digest.rsplit(':').next().unwrap_or(digest);
        let is_prefix =
            hex.len() >= PREFIX_MIN && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let digest = match digest.contains(':') {
            true => digest.into(),
            false => format!("sha256:{digest}").into(),
        };
        is_prefix.then_some(Self { repository, digest })
    }

    fn are_of(&self, image: &ImageInfo) -> bool {
        let begins = |digest: &str| digest.starts_with(&*self.digest);
        let of_registry = [&image.index, &image.manifest];
        let by_registry = of_registry
            .into_iter()
            .flatten()
            .any(|digest| begins(digest));
        let Some(repository) = &self.repository else {
            return by_registry || begins(&image.id);
        };
        let Ok(name) = image.name.parse::<Reference>() else {
            return false;
        };
        let is_there = (name.registry(), name.repository())
            == (repository.registry(), repository.repository());
        // What it was pulled by counts as well.
        is_there && (by_registry || begins(name.version()))
    }
}

/// The full form of a name that a user gives to an image.
pub(super) fn tag_name(name: &str) -> Result<String, Error> {
    let reference: Reference = name.parse()?;
    if reference.tag().is_none() {
        return Err(Error::Reference(reference::Error {
            text: name.to_owned(),
            why: "a digest cannot be given to an image; name a tag".to_owned(),
        }));
    }
    Ok(reference.to_string())
}
