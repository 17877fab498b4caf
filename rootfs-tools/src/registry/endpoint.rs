//! Where an image is asked for: its registry's mirrors, then the registry.

use reqwest::Url;

use super::error::Error;
use super::options::Options;
use crate::reference::{DEFAULT_REGISTRY, Reference};

/// Where the registry of docker.io is.
const DOCKER_HUB: &str = "registry-1.docker.io";

/// A server that may have an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// `HOST[:PORT]`, as users and their credentials name it.
    pub(super) registry: String,
    /// The repository of the image there.
    pub(super) repository: String,
    /// Is another to be asked if it fails?
    pub(super) mirror: bool,
    /// The root of its URLs.
    base: Url,
}

impl Endpoint {
    /// In the order in which they are to be asked; the last one is no mirror.
    pub(super) fn of(image: &Reference, options: &Options) -> Result<Vec<Self>, Error> {
        let mirrors = options.mirrors.get(image.registry());
        let mut list = Vec::new();
        for mirror in mirrors.into_iter().flatten() {
            let (host, prefix) = match mirror.split_once('/') {
                Some((host, prefix)) => (host, format!("{prefix}/")),
                None => (mirror.as_str(), String::new()),
            };
            let repository = format!("{prefix}{}", image.repository());
            list.push(Self::new(host, host, repository, true, options)?);
        }
        let registry = image.registry();
        let host = match registry {
            DEFAULT_REGISTRY => DOCKER_HUB,
            other => other,
        };
        let repository = image.repository().to_owned();
        list.push(Self::new(registry, host, repository, false, options)?);
        Ok(list)
    }

    fn new(
        registry: &str,
        host: &str,
        repository: String,
        mirror: bool,
        options: &Options,
    ) -> Result<Self, Error> {
        let scheme = if options.is_insecure(registry) {
            "http"
        } else {
            "https"
        };
        let base = Url::parse(&format!("{scheme}://{host}/")).map_err(|error| Error::Options {
            why: format!("{host} is no address of a registry: {error}"),
        })?;
        Ok(Self {
            registry: registry.to_owned(),
            repository,
            mirror,
            base,
        })
    }

    /// The URL of a manifest, by tag or digest.
    pub(super) fn manifest(&self, version: &str) -> Url {
        self.url("manifests", version)
    }

    /// The URL of a blob.
    pub(super) fn blob(&self, digest: &str) -> Url {
        self.url("blobs", digest)
    }

    /// Is it who it says? Whoever is on the way can answer in plain HTTP.
    pub(super) fn is_authenticated(&self) -> bool {
        self.base.scheme() == "https"
    }

    /// Is this address at the same host? On whatever port: those who have it are
    /// told apart by certificates, or not at all.
    pub(super) fn is_host_of(&self, url: &Url) -> bool {
        self.base.host() == url.host()
    }

    /// All parts are checked: repository, tag and digest have no character that
    /// would mean something in a URL.
    fn url(&self, kind: &str, version: &str) -> Url {
        let mut url = self.base.clone();
        url.set_path(&format!("/v2/{}/{kind}/{version}", self.repository));
        url
    }
}
