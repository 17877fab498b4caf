//! The container image that a root comes from: found in the store, or pulled.

use std::sync::Arc;

use flashpan_protocol::agent::FsType;
use flashpan_rootfs::image_config::RunConfig;
use flashpan_rootfs::platform::Platform;
use flashpan_rootfs::reference::Reference;
use flashpan_rootfs::registry::{self, Client};
use flashpan_rootfs::store::{
    Cancel, Conversion, Error as StoreError, Held, Image, Listener, PullOptions, Store,
};

use super::error::LaunchError;
use super::options::{ImageSource, PullPolicy, RegistryOptions};
use super::progress::{Event, Progress};
use crate::config::Root;

/// The architecture of guests, as images call it.
const NATIVE: &str = "amd64";

/// An image to make a root of.
pub(super) struct Wanted {
    /// As the user wrote it.
    name: String,
    store: Store,
    found: Found,
}

enum Found {
    There(Box<Image>, Held),
    ToPull(Reference, Box<Client>),
}

impl Wanted {
    /// Looks for it in the store, and checks all that can be checked of a pull
    /// without asking anybody.
    pub(super) fn new(
        name: &str,
        source: &ImageSource,
        progress: &Arc<dyn Progress>,
    ) -> Result<Self, LaunchError> {
        let store = Store::user()?;
        let there = match source.pull {
            PullPolicy::Always => None,
            PullPolicy::Missing | PullPolicy::Never => find(&store, name, source)?,
        };
        let found = match there {
            Some((image, root)) => Found::There(Box::new(image), root),
            None => {
                let reference = name.parse()?;
                let client = client(&source.registries, &source.platform, progress)?;
                Found::ToPull(reference, Box::new(client))
            }
        };
        Ok(Self {
            name: name.to_owned(),
            store,
            found,
        })
    }

    /// Whether [`Self::pull`] has anything to do.
    pub(super) fn is_to_pull(&self) -> bool {
        matches!(self.found, Found::ToPull(..))
    }

    /// Pulls it if need be.
    pub(super) async fn pull(
        &mut self,
        progress: &Arc<dyn Progress>,
        cancel: &Cancel,
    ) -> Result<(), LaunchError> {
        let Found::ToPull(reference, client) = &self.found else {
            return Ok(());
        };
        let options = PullOptions {
            conversion: Conversion {
                cancel: cancel.clone(),
                ..Conversion::default()
            },
            ..PullOptions::default()
        };
        // What is left of it when the future is dropped ends as well.
        let given_up = OnDrop(cancel);
        let (name, progress) = (reference.short(), Arc::clone(progress));
        let listener: Listener = Arc::new(move |event| {
            let name = name.clone();
            progress.on(Event::Image { name, event });
        });
        let pulled = self
            .store
            .pull(client, reference, &options, &listener)
            .await?;
        std::mem::forget(given_up);
        let root = self.store.root(&pulled.image.info)?;
        self.found = Found::There(Box::new(pulled.image), root);
        Ok(())
    }

    /// Its root, which nobody removes while it is open, its digest, and how its programs want
    /// to be run. `None` if it has not been pulled.
    pub(super) fn root(self) -> Result<Option<(Root, String, RunConfig)>, LaunchError> {
        let Found::There(image, held) = self.found else {
            return Ok(None);
        };
        if image.config.architecture != NATIVE {
            return Err(LaunchError::ImageForeign {
                name: self.name,
                is_for: image.info.platform,
                native: NATIVE,
            });
        }
        // The VMM gets the same open file, and with it the lock.
        let duplicate = held.file().try_clone();
        let file = duplicate.map_err(|source| LaunchError::Duplicate {
            path: held.path().to_owned(),
            source,
        })?;
        let root = Root::opened(held.path(), Arc::new(file), FsType::Erofs);
        Ok(Some((root, image.info.id, image.config.run)))
    }
}

/// Cancels unless it is forgotten.
struct OnDrop<'a>(&'a Cancel);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// The image of that name in the store, whole and for this platform; `None` if it
/// has to be pulled.
fn find(
    store: &Store,
    name: &str,
    source: &ImageSource,
) -> Result<Option<(Image, Held)>, LaunchError> {
    let never = source.pull == PullPolicy::Never;
    let there = store.get(name).and_then(|image| {
        let root = store.root(&image.info)?;
        Ok((image, root))
    });
    match there {
        Ok((image, root)) if suits(&source.platform, &image) => Ok(Some((image, root))),
        Ok((image, _)) if never => Err(LaunchError::ImageFor {
            name: name.to_owned(),
            is_for: image.info.platform,
            wanted: source.platform.to_string(),
        }),
        Err(error @ (StoreError::NotFound(_) | StoreError::Missing { .. })) if never => {
            Err(LaunchError::ImageMissing(Box::new(error)))
        }
        // Not there, or not as it should be.
        Ok(_) | Err(StoreError::NotFound(_) | StoreError::Missing { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Is the image for this platform?
fn suits(platform: &Platform, image: &Image) -> bool {
    let is_for = image.info.platform.parse::<Platform>();
    is_for.is_ok_and(|is_for| platform.suits(&is_for).is_some())
}

/// A client for images of this platform, which tells what goes wrong and is got
/// over. Proxies and credentials are the environment's.
fn client(
    registries: &RegistryOptions,
    platform: &Platform,
    progress: &Arc<dyn Progress>,
) -> Result<Client, LaunchError> {
    let mut options = registry::Options::from_environment();
    options.platform = platform.clone();
    options.insecure.clone_from(&registries.insecure);
    options.ca_files.clone_from(&registries.ca_files);
    options.mirrors.clone_from(&registries.mirrors);
    let progress = Arc::clone(progress);
    options.notify = Some(Arc::new(move |notice| {
        progress.on(Event::Note(notice.to_string()));
    }));
    Ok(Client::new(options)?)
}
