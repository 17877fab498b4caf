//! Names of images in registries, in docker's rules.
//!
//! ```text
//!  [HOST[:PORT]/]PATH[:TAG][@DIGEST]
//! ```
//!
//! What is left out is filled in as docker fills it in, so that every spelling
//! of a name gives one [`Reference`] and one [canonical](Reference::canonical)
//! text: `alpine` is `docker.io/library/alpine:latest`.
//!
//! The grammar is that of the distribution project's `reference` package. Two
//! things are normalised that docker leaves as they are, because they mean the
//! same: upper case in host names, and spellings of IPv6 addresses. A digest
//! says everything that a tag could say, so that a tag beside one is dropped.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use oci_spec::image::{Digest, DigestAlgorithm};

/// The registry of names that name none.
pub const DEFAULT_REGISTRY: &str = "docker.io";
/// The tag of names that name none.
pub const DEFAULT_TAG: &str = "latest";
/// An older name of [`DEFAULT_REGISTRY`].
const LEGACY_REGISTRY: &str = "index.docker.io";
/// Where docker.io keeps images whose path has one component.
const OFFICIAL: &str = "library";

/// The longest registry or repository (distribution: `RepositoryNameTotalLengthMax`).
const NAME_MAX: usize = 255;
/// The longest tag (OCI distribution 1.1, "Pulling manifests").
const TAG_MAX: usize = 128;

/// Why a text names no image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not the name of an image: {why}")]
pub struct Error {
    /// What was to be a name; shortened if it is very long.
    pub text: String,
    /// What is wrong with it, and what to do where that is known.
    pub why: String,
}

/// The name of an image in a registry, with everything filled in.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    version: Version,
}

/// Which image of a repository.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Version {
    Tag(String),
    /// A valid digest; kept as text, which orders.
    Digest(String),
}

impl Reference {
    /// The registry: host in lower case, and port where one was given.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The path in the registry.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, unless the image is named by digest.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        match &self.version {
            Version::Tag(tag) => Some(tag),
            Version::Digest(_) => None,
        }
    }

    /// The digest, if the image is named by one.
    #[must_use]
    pub fn digest(&self) -> Option<Digest> {
        match &self.version {
            Version::Tag(_) => None,
            // It was valid when the reference was made.
            Version::Digest(digest) => digest.parse().ok(),
        }
    }

    /// The tag or the digest: the last part of a manifest's URL.
    #[must_use]
    pub fn version(&self) -> &str {
        match &self.version {
            Version::Tag(text) | Version::Digest(text) => text,
        }
    }

    /// The same repository, and the image in it that has this digest.
    #[must_use]
    pub fn with_digest(&self, digest: &Digest) -> Self {
        Self {
            registry: self.registry.clone(),
            repository: self.repository.clone(),
            version: Version::Digest(digest.to_string()),
        }
    }

    /// The whole name; the same for every spelling: the key of caches.
    #[must_use]
    pub fn canonical(&self) -> String {
        let separator = self.separator();
        let version = self.version();
        format!("{}/{}{separator}{version}", self.registry, self.repository)
    }

    /// The name as people write it, without docker.io and its `library`. It
    /// parses to the same reference.
    #[must_use]
    pub fn short(&self) -> String {
        let canonical = self.canonical();
        let home = canonical
            .strip_prefix(DEFAULT_REGISTRY)
            .and_then(|rest| rest.strip_prefix('/'));
        let official = home
            .and_then(|rest| rest.strip_prefix(OFFICIAL))
            .and_then(|rest| rest.strip_prefix('/'));
        // `docker.io/library/a/b` is not `a/b`, and `docker.io/a.b/c` not `a.b/c`.
        let means_this = |text: &&str| text.parse().as_ref() == Ok(self);
        official
            .filter(means_this)
            .or(home.filter(means_this))
            .unwrap_or(&canonical)
            .to_owned()
    }

    fn separator(&self) -> char {
        match self.version {
            Version::Tag(_) => ':',
            Version::Digest(_) => '@',
        }
    }
}

/// The [canonical](Reference::canonical) text.
impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.canonical())
    }
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        parse(text).map_err(|why| Error {
            text: brief_of(text, NAME_MAX),
            why,
        })
    }
}

fn parse(text: &str) -> Result<Reference, String> {
    if text.is_empty() {
        return Err("it is empty".to_owned());
    }
    if let Some((scheme, rest)) = text.split_once("://") {
        return Err(format!("leave out `{scheme}://` (`{}`)", brief(rest)));
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(check_digest(digest)?)),
        None => (text, None),
    };
    let (registry, rest) = split_registry(rest)?;
    let (path, tag) = match rest.split_once(':') {
        Some((path, tag)) => (path, Some(check_tag(tag)?)),
        None => (rest, None),
    };
    check_path(path)?;
    if is_identifier(path) && registry.is_none() && digest.is_none() && tag.is_none() {
        return Err(format!(
            "64 hexadecimal digits alone are a digest; write NAME@sha256:{path}"
        ));
    }
    let registry = registry.unwrap_or_else(|| DEFAULT_REGISTRY.to_owned());
    let repository = if registry == DEFAULT_REGISTRY && !path.contains('/') {
        format!("{OFFICIAL}/{path}")
    } else {
        path.to_owned()
    };
    if repository.len() > NAME_MAX {
        return Err(format!("the path is longer than {NAME_MAX} characters"));
    }
    let version = match (digest, tag) {
        (Some(digest), _) => Version::Digest(digest),
        (None, tag) => Version::Tag(tag.unwrap_or(DEFAULT_TAG).to_owned()),
    };
    Ok(Reference {
        registry,
        repository,
        version,
    })
}

/// A piece of a name for a message.
fn brief(text: &str) -> String {
    brief_of(text, 40)
}

/// The beginning of a text, in one line.
fn brief_of(text: &str, most: usize) -> String {
    let start = text.chars().take(most);
    start.flat_map(char::escape_debug).collect()
}

/// Takes the registry off the front, if there is one: the first of several
/// components is a host if it has a dot, a port or brackets, or is `localhost`.
fn split_registry(text: &str) -> Result<(Option<String>, &str), String> {
    let Some((first, rest)) = text.split_once('/') else {
        return Ok((None, text));
    };
    let is_host = first.contains(['.', ':', '[']) || first.eq_ignore_ascii_case("localhost");
    if !is_host {
        return Ok((None, text));
    }
    let host = check_registry(first)?;
    let host = if host == LEGACY_REGISTRY {
        DEFAULT_REGISTRY.to_owned()
    } else {
        host
    };
    Ok((Some(host), rest))
}

/// Checks `HOST[:PORT]` and gives it in its one spelling. Host names become
/// lower case, IPv6 addresses their canonical text, ports lose leading zeros.
pub(crate) fn check_registry(text: &str) -> Result<String, String> {
    let wrong = |what: &str| format!("`{}` is no registry: {what}", brief(text));
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (address, rest) = rest
            .split_once(']')
            .ok_or_else(|| wrong("the bracket is not closed"))?;
        let address: Ipv6Addr = address
            .parse()
            .map_err(|_| wrong("there is no IPv6 address in the brackets"))?;
        let port = match rest.strip_prefix(':') {
            Some(port) => Some(port),
            None if rest.is_empty() => None,
            None => return Err(wrong("only a port can follow the address")),
        };
        (format!("[{address}]"), port)
    } else {
        let (host, port) = match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        };
        let component = |part: &str| {
            !part.is_empty()
                && !part.starts_with('-')
                && !part.ends_with('-')
                && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
        };
        if !host.split('.').all(component) {
            return Err(wrong(
                "a host name has letters, digits, hyphens and single dots (an IPv6 address goes in [])",
            ));
        }
        (host.to_ascii_lowercase(), port)
    };
    if host.len() > NAME_MAX {
        return Err(wrong("it is too long"));
    }
    let Some(port) = port else { return Ok(host) };
    let digits = !port.is_empty() && port.chars().all(|c| c.is_ascii_digit());
    match port.parse::<u16>() {
        Ok(number) if digits && number != 0 => Ok(format!("{host}:{number}")),
        _ => Err(wrong("a port is a number from 1 to 65535")),
    }
}

/// `path-component := [a-z0-9]+ (separator [a-z0-9]+)*`, the separators being
/// `.`, `_`, `__` and any number of `-`.
pub(crate) fn check_path(path: &str) -> Result<(), String> {
    if path.chars().any(|c| c.is_ascii_uppercase()) {
        return Err(format!(
            "the path has to be in lower case (`{}`)",
            brief(&path.to_ascii_lowercase())
        ));
    }
    for component in path.split('/') {
        check_component(component)?;
    }
    Ok(())
}

fn check_component(component: &str) -> Result<(), String> {
    if component.is_empty() {
        return Err("a part of the path is empty".to_owned());
    }
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if let Some(bad) = component
        .chars()
        .find(|c| !alphanumeric(*c) && !matches!(c, '.' | '_' | '-'))
    {
        return Err(format!("{bad:?} cannot be in a path"));
    }
    let part = brief(component);
    if !component.starts_with(alphanumeric) || !component.ends_with(alphanumeric) {
        return Err(format!(
            "`{part}` has to begin and end with a letter or a digit"
        ));
    }
    let mut separators = component.split(alphanumeric).filter(|s| !s.is_empty());
    if separators.any(|s| !matches!(s, "." | "_" | "__") && !s.chars().all(|c| c == '-')) {
        return Err(format!(
            "`{part}` may have one dot, one or two underscores, or hyphens in a row"
        ));
    }
    Ok(())
}

/// `tag := [A-Za-z0-9_][A-Za-z0-9_.-]{0,127}`.
fn check_tag(tag: &str) -> Result<&str, String> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if !tag.starts_with(word) || !tag.chars().all(|c| word(c) || matches!(c, '.' | '-')) {
        return Err(format!(
            "`{}` is no tag: letters, digits, `_`, `.` and `-`, the first not `.` or `-`",
            brief(tag)
        ));
    }
    if tag.len() > TAG_MAX {
        return Err(format!("the tag is longer than {TAG_MAX} characters"));
    }
    Ok(tag)
}

fn check_digest(text: &str) -> Result<String, String> {
    let digest = text.parse::<Digest>().ok().filter(is_supported);
    let digest = digest.ok_or_else(|| {
        format!(
            "`{}` is no digest: sha256: and 64, or sha512: and 128 hexadecimal digits in lower case",
            brief(text)
        )
    })?;
    Ok(digest.to_string())
}

/// Can content be checked against it?
pub(crate) fn is_supported(digest: &Digest) -> bool {
    matches!(
        digest.algorithm(),
        DigestAlgorithm::Sha256 | DigestAlgorithm::Sha384 | DigestAlgorithm::Sha512
    )
}

/// Does it look like the digest of an image without its algorithm?
fn is_identifier(path: &str) -> bool {
    path.len() == 64 && path.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f'))
}

#[cfg(test)]
mod tests;
