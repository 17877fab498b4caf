//! Images from registries (OCI distribution 1.1, and what docker made of it
//! before there was one).
//!
//! ```text
//!  Reference ── Client::resolve ──► Resolved: manifest, config, layers
//!                                      │
//!                  Client::fetch_config, fetch_blob, fetch_all ──► files
//! ```
//!
//! - [`Options`]: platform, insecure registries, certificate authorities,
//!   mirrors, proxies, limits, deadlines, retries.
//! - [`Credentials`]: what docker and podman have stored, helpers included.
//! - [`Error`]: what went wrong, in one line for people.
//!
//! Nothing that a registry says is believed: every document and blob has a
//! limit, every wait a deadline, and everything that is named by a digest is
//! checked against it, blobs while they stream. The types of documents are
//! those of [`crate::oci`].
//!
//! All futures can be dropped at any time. They run on a tokio runtime with I/O
//! and time enabled, and start no tasks but those of HTTP connections; writing
//! and hashing happens in the task that fetches, so that callers who want
//! layers hashed by several threads fetch them from several tasks.

mod auth;
mod blob;
mod credentials;
mod dns;
mod endpoint;
mod error;
pub(crate) mod manifest;
mod options;
mod proxy;
mod resolve;
mod retry;
mod secret;
mod session;
mod tls;
mod transport;
mod verify;

use std::fs::File;
use std::sync::Arc;

use futures_util::stream::{self, StreamExt, TryStreamExt};
use oci_spec::image::{Descriptor, Digest, ImageConfiguration, ImageManifest};

use crate::reference::Reference;
use auth::Grants;
use transport::Transport;

pub use credentials::{Credentials, Login};
pub(crate) use error::clean;
pub use error::{Error, Tls};
pub use options::{Deadlines, Limits, Notice, Notify, Options, Proxies, Retry};
pub use secret::Secret;
pub use verify::{Verifier, sha256};

/// How many layers are fetched at once, unless somebody wants another number.
/// Docker's is 3 as well.
pub const PARALLEL: usize = 3;

/// A client of registries. Clones share connections and tokens.
#[derive(Debug, Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    options: Arc<Options>,
    transport: Transport,
    grants: Grants,
}

/// An image that a name stands for, for one platform.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// The name.
    pub reference: Reference,
    /// The digest of the index that the name stands for, if it is one.
    pub index_digest: Option<Digest>,
    /// The digest of the manifest: the image's identity.
    pub manifest_digest: Digest,
    /// The manifest, as it is in the registry.
    pub manifest_bytes: Vec<u8>,
    /// The manifest.
    pub manifest: ImageManifest,
}

impl Resolved {
    /// The image's configuration; see [`Client::fetch_config`].
    #[must_use]
    pub fn config(&self) -> &Descriptor {
        self.manifest.config()
    }

    /// The layers, the lowest first. Two can be the same blob.
    #[must_use]
    pub fn layers(&self) -> &[Descriptor] {
        self.manifest.layers()
    }

    /// Bytes of all layers, as they are in the registry.
    #[must_use]
    pub fn size(&self) -> u64 {
        let sizes = self.layers().iter().map(Descriptor::size);
        sizes.fold(0, u64::saturating_add)
    }
}

/// How far the download of a blob has got.
#[derive(Debug, Clone, Copy)]
pub struct Progress<'a> {
    /// Which blob.
    pub digest: &'a Digest,
    /// Bytes that are there. It can go back, to zero: when content turns out to
    /// be wrong, or a registry starts from the beginning.
    pub done: u64,
    /// Bytes in all.
    pub total: u64,
}

/// A blob to fetch, and the file for it.
#[derive(Debug)]
pub struct Download<'a> {
    /// The blob, from [`Resolved::layers`].
    pub blob: &'a Descriptor,
    /// Open for reading and writing; see [`Client::fetch_blob`].
    pub file: &'a mut File,
}

impl Client {
    /// A client that has not talked to anybody yet.
    ///
    /// # Errors
    ///
    /// The options make no sense, or a file of certificates cannot be used.
    pub fn new(options: Options) -> Result<Self, Error> {
        let options = Arc::new(options.checked()?);
        Ok(Self {
            inner: Arc::new(Inner {
                transport: Transport::new(options.clone())?,
                grants: Grants::default(),
                options,
            }),
        })
    }

    /// The options, registries in their one spelling.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.inner.options
    }

    /// Finds out what a name stands for: fetches its manifest, choosing by
    /// platform where there are several, and checks that it is an image.
    ///
    /// # Errors
    ///
    /// See [`Error`]; above all, there is no such image or no access to it.
    pub async fn resolve(&self, image: &Reference) -> Result<Resolved, Error> {
        self.inner.resolve(image).await
    }

    /// Fetches the configuration of an image: its bytes as they are in the
    /// registry, checked against their digest, and what they mean.
    ///
    /// # Errors
    ///
    /// See [`Error`]. [`Error::NoPlatform`] if the image, named without an index,
    /// is for another platform.
    pub async fn fetch_config(
        &self,
        image: &Resolved,
    ) -> Result<(Vec<u8>, ImageConfiguration), Error> {
        self.inner.fetch_config(image).await
    }

    /// Fetches a blob of an image's repository into a file that is open for
    /// reading and writing. What the file holds is taken for the beginning of
    /// the blob, left by a download that was interrupted: it is hashed, and only
    /// the rest is asked for, if the registry can do that. At the end the file
    /// has as many bytes as the manifest says, with the right digest.
    ///
    /// Nothing is synced. Nobody else may write the file meanwhile.
    ///
    /// # Errors
    ///
    /// See [`Error`]. Content that turned out to be wrong has been cut off, so
    /// that the file can be used again, as after dropping the future.
    pub async fn fetch_blob(
        &self,
        image: &Reference,
        blob: &Descriptor,
        file: &mut File,
        progress: &mut (dyn FnMut(Progress<'_>) + Send),
    ) -> Result<(), Error> {
        self.inner.fetch_blob(image, blob, file, progress).await
    }

    /// Fetches several blobs, `parallel` at a time (at least 1; see [`PARALLEL`]).
    ///
    /// # Errors
    ///
    /// Those of the first that fails; the others are given up, and their files
    /// can be used again.
    pub async fn fetch_all(
        &self,
        image: &Reference,
        downloads: Vec<Download<'_>>,
        parallel: usize,
        progress: &(dyn Fn(Progress<'_>) + Send + Sync),
    ) -> Result<(), Error> {
        let fetches = downloads.into_iter().map(|download| async move {
            let mut report = |it: Progress<'_>| progress(it);
            self.fetch_blob(image, download.blob, download.file, &mut report)
                .await
        });
        // Collected first: the compiler cannot see otherwise that they are Send.
        let fetches: Vec<_> = fetches.collect();
        stream::iter(fetches)
            .buffer_unordered(parallel.max(1))
            .try_collect::<()>()
            .await
    }
}
