//! From a name to a manifest, and the configuration that it names.

use oci_spec::image::{Descriptor, Digest, ImageConfiguration};
use reqwest::StatusCode;

use super::endpoint::Endpoint;
use super::error::{Error, Failure, clean};
use super::manifest::{self, Document, named};
use super::options::Notice;
use super::retry::Attempts;
use super::session::{Session, Wish};
use super::transport::Answer;
use super::verify::{Verifier, sha256};
use super::{Inner, Resolved};
use crate::platform::Platform;
use crate::reference::Reference;

/// Indexes in indexes in the index that a name stands for.
const DEEPEST: usize = 3;

/// A manifest or index, checked against the digest that it was asked for by.
struct Fetched {
    bytes: Vec<u8>,
    digest: Digest,
    document: Document,
    host: String,
}

impl Inner {
    /// Asks mirrors, then the registry.
    pub(super) async fn resolve(&self, image: &Reference) -> Result<Resolved, Error> {
        let short = image.short();
        let mut last = None;
        for endpoint in Endpoint::of(image, &self.options)? {
            let session = self.session(&endpoint, &short);
            match session.resolve(image).await {
                Ok(resolved) => return Ok(resolved),
                Err(error) => last = Some(self.passed_over(&endpoint, error)),
            }
        }
        Err(last.unwrap_or_else(no_endpoint))
    }

    pub(super) async fn fetch_config(
        &self,
        image: &Resolved,
    ) -> Result<(Vec<u8>, ImageConfiguration), Error> {
        let short = image.reference.short();
        let mut last = None;
        for endpoint in Endpoint::of(&image.reference, &self.options)? {
            let session = self.session(&endpoint, &short);
            match session.config(image.config()).await {
                Ok((bytes, config)) => {
                    self.check_platform(&short, &config)?;
                    return Ok((bytes, config));
                }
                Err(error) => last = Some(self.passed_over(&endpoint, error)),
            }
        }
        Err(last.unwrap_or_else(no_endpoint))
    }

    pub(super) fn session<'a>(&'a self, endpoint: &'a Endpoint, image: &'a str) -> Session<'a> {
        Session {
            inner: self,
            endpoint,
            image,
        }
    }

    /// Tells of a mirror's error; the registry's is for the caller.
    pub(super) fn passed_over(&self, endpoint: &Endpoint, error: Error) -> Error {
        if endpoint.mirror {
            self.options.tell(&Notice::Mirror {
                mirror: endpoint.registry.clone(),
                why: error.to_string(),
            });
        }
        error
    }

    /// An image that was not chosen from an index may be for anything.
    fn check_platform(&self, image: &str, config: &ImageConfiguration) -> Result<(), Error> {
        let wanted = &self.options.platform;
        let (os, architecture) = (config.os().to_string(), config.architecture().to_string());
        // Some tools say nothing, and mean what they ran on.
        if os.is_empty() || architecture.is_empty() {
            return Ok(());
        }
        let is = Platform::new(&os, &architecture, config.variant().as_deref());
        if wanted.suits(&is).is_some() {
            return Ok(());
        }
        Err(Error::NoPlatform {
            image: image.to_owned(),
            wanted: wanted.clone(),
            available: vec![is],
        })
    }
}

pub(super) fn no_endpoint() -> Error {
    Error::Options {
        why: "there is no registry to ask".to_owned(),
    }
}

impl Session<'_> {
    async fn resolve(&self, image: &Reference) -> Result<Resolved, Error> {
        let options = &self.inner.options;
        let digest = image.digest();
        let what = match &digest {
            Some(digest) => named("manifest", digest, self.image),
            None => format!("the manifest of {}", self.image),
        };
        let mut fetched = self
            .fetch(image.version(), digest.as_ref(), None, &what)
            .await?;
        let mut index_digest = None;
        for _ in 0..=DEEPEST {
            let index = match fetched.document {
                Document::Image(manifest) => {
                    manifest::check(&manifest, self.image, &fetched.host, &options.limits)?;
                    return Ok(Resolved {
                        reference: image.clone(),
                        index_digest,
                        manifest_digest: fetched.digest,
                        manifest_bytes: fetched.bytes,
                        manifest: *manifest,
                    });
                }
                Document::Index(index) => index,
            };
            index_digest.get_or_insert(fetched.digest);
            let chosen = options
                .platform
                .select(&index)
                .map_err(|none| Error::NoPlatform {
                    image: self.image.to_owned(),
                    wanted: options.platform.clone(),
                    available: none.available,
                })?;
            let limit = options.limits.manifest;
            manifest::check_part(chosen, "manifest", self.image, &fetched.host, limit)?;
            let what = named("manifest", chosen.digest(), self.image);
            let (digest, size) = (chosen.digest(), chosen.size());
            fetched = self
                .fetch(digest.as_ref(), Some(digest), Some(size), &what)
                .await?;
        }
        Err(Error::Malformed {
            what: format!("the index of {}", self.image),
            host: self.endpoint.registry.clone(),
            why: format!("it leads to indexes more than {DEEPEST} deep"),
        })
    }

    /// Fetches a manifest or index by tag or digest.
    async fn fetch(
        &self,
        version: &str,
        digest: Option<&Digest>,
        size: Option<u64>,
        what: &str,
    ) -> Result<Fetched, Error> {
        let wish = Wish {
            url: self.endpoint.manifest(version),
            what,
            accept: Some(manifest::ACCEPT),
            from: 0,
        };
        let mut attempts = Attempts::new(&self.inner.options, self.endpoint.mirror);
        loop {
            match self.fetch_once(&wish, digest, size).await {
                Ok(fetched) => return Ok(fetched),
                Err(failure) => attempts.wait(self.no_such_image(failure)).await?,
            }
        }
    }

    async fn fetch_once(
        &self,
        wish: &Wish<'_>,
        digest: Option<&Digest>,
        size: Option<u64>,
    ) -> Result<Fetched, Failure> {
        let what = wish.what;
        let mut answer = self.get(wish).await?;
        if answer.response.status() != StatusCode::OK {
            return Err(self.inner.transport.status(answer, what).await);
        }
        let header = |name: &str| {
            let value = answer.response.headers().get(name)?;
            Some(value.to_str().ok()?.to_owned())
        };
        let content_type = header("content-type");
        let promised = header("docker-content-digest");
        let limit = self.inner.options.limits.manifest;
        let bytes = self
            .inner
            .transport
            .document(&mut answer, what, limit)
            .await?;
        let host = answer.host;
        check_size(&bytes, size, what, &host)?;
        let digest = match digest {
            Some(digest) => {
                check_digest(&bytes, digest, what, &host)?;
                digest.clone()
            }
            None => sha256(&bytes),
        };
        // Who says that this is something else has sent the wrong thing.
        if let Some(promised) = promised.and_then(|text| text.parse::<Digest>().ok()) {
            check_digest(&bytes, &promised, what, &host)?;
        }
        let document = manifest::parse(&bytes, content_type.as_deref(), what, &host)?;
        Ok(Fetched {
            bytes,
            digest,
            document,
            host,
        })
    }

    async fn config(&self, config: &Descriptor) -> Result<(Vec<u8>, ImageConfiguration), Error> {
        let digest = config.digest();
        let what = named("configuration", digest, self.image);
        let wish = Wish {
            url: self.endpoint.blob(digest.as_ref()),
            what: &what,
            accept: None,
            from: 0,
        };
        let mut attempts = Attempts::new(&self.inner.options, self.endpoint.mirror);
        loop {
            match self.config_once(&wish, config).await {
                Ok(found) => return Ok(found),
                Err(failure) => attempts.wait(self.missing(failure, &what)).await?,
            }
        }
    }

    async fn config_once(
        &self,
        wish: &Wish<'_>,
        config: &Descriptor,
    ) -> Result<(Vec<u8>, ImageConfiguration), Failure> {
        let what = wish.what;
        let mut answer: Answer = self.get(wish).await?;
        if answer.response.status() != StatusCode::OK {
            return Err(self.inner.transport.status(answer, what).await);
        }
        let transport = &self.inner.transport;
        let limit = self.inner.options.limits.config;
        let bytes = transport.document(&mut answer, what, limit).await?;
        check_size(&bytes, Some(config.size()), what, &answer.host)?;
        check_digest(&bytes, config.digest(), what, &answer.host)?;
        let parsed = serde_json::from_slice(&bytes).map_err(|error| Error::Malformed {
            what: what.to_owned(),
            host: answer.host,
            why: clean(&error.to_string()),
        })?;
        Ok((bytes, parsed))
    }

    /// The error that `status` is if 404 means that part of an image is not there.
    pub(super) fn missing(&self, failure: Failure, what: &str) -> Failure {
        match failure.error {
            Error::Status { status: 404, .. } => Error::Missing {
                what: what.to_owned(),
                host: self.endpoint.registry.clone(),
            }
            .into(),
            error => Failure { error, ..failure },
        }
    }
}

fn check_size(bytes: &[u8], size: Option<u64>, what: &str, host: &str) -> Result<(), Error> {
    let got = bytes.len() as u64;
    match size {
        Some(size) if size != got => Err(Error::Size {
            what: what.to_owned(),
            host: host.to_owned(),
            got: Some(got),
            size,
        }),
        _ => Ok(()),
    }
}

/// Of digests by algorithms that we do not know, nothing can be said.
fn check_digest(bytes: &[u8], digest: &Digest, what: &str, host: &str) -> Result<(), Error> {
    match Verifier::digest_like(digest, bytes) {
        Some(found) if found != digest.as_ref() => Err(Error::Digest {
            what: what.to_owned(),
            host: host.to_owned(),
            wanted: Box::new(digest.clone()),
            found,
        }),
        _ => Ok(()),
    }
}
