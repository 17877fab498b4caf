//! Images from registries.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::stream::{self, StreamExt, TryStreamExt};
use oci_spec::image::Descriptor;
use tokio::sync::oneshot;

use super::lock::{self, Work};
use super::{
    Cancel, Conversion, Error, Event, Gc, Held, Image, ImageInfo, LayerInfo, Source, Store, failed,
    now, roots, tag_name,
};
use crate::archive::Piece;
use crate::image_config::{ImageConfig, is_sha256};
use crate::reference::Reference;
use crate::registry::{self, Client, PARALLEL, Resolved};
use crate::room;

/// How to pull.
#[derive(Clone, Debug, Default)]
pub struct PullOptions {
    /// Check every blob that is there, and make the root image again.
    pub force: bool,
    /// A second name for the image.
    pub tag: Option<String>,
    /// How the root image is made.
    pub conversion: Conversion,
}

/// An image that was pulled.
#[derive(Clone, Debug)]
pub struct Pulled {
    /// The image.
    pub image: Image,
    /// Whether anything had to be done: `false` if the store had it as the
    /// registry has it.
    pub changed: bool,
    /// The second name in full, if one was asked for.
    pub tag: Option<String>,
}

/// Who is told of events, from whichever thread has them.
pub type Listener = Arc<dyn Fn(Event) + Send + Sync>;

/// A pull: what all of its steps need.
struct Pull<'a> {
    store: &'a Store,
    client: &'a Client,
    name: String,
    resolved: Resolved,
    options: &'a PullOptions,
    events: &'a Listener,
}

impl Store {
    /// Brings an image up to what its registry has: blobs that are missing are
    /// downloaded, several at a time, and the root image is made if need be.
    ///
    /// Of several processes that pull the same thing one does the work and the
    /// others wait for it. The future can be dropped; what was downloaded is
    /// then resumed by the next pull. It needs a tokio runtime with I/O and time
    /// enabled, and starts threads for what blocks.
    ///
    /// # Errors
    ///
    /// The registry does not give the image, it is none that can be used, or
    /// the store cannot be written. An image that had the name keeps it.
    pub async fn pull(
        &self,
        client: &Client,
        reference: &Reference,
        options: &PullOptions,
        events: &Listener,
    ) -> Result<Pulled, Error> {
        let tag = options.tag.as_deref().map(tag_name).transpose()?;
        match self.pull_now(client, reference, options, events).await {
            Ok((image, changed)) => {
                if let Some(tag) = &tag {
                    self.tag(&image.info.name, tag, events.as_ref())?;
                }
                Ok(Pulled {
                    image,
                    changed,
                    tag,
                })
            }
            // What there is, the next pull goes on with.
            Err(error) if is_passing(&error) => Err(error),
            Err(error) => {
                // Blobs that no image came of are of no use. What else there is
                // to say has been said by the error.
                let store = self.clone();
                let _ = blocking(move || store.gc(&Gc::unreferenced())).await;
                Err(error)
            }
        }
    }

    async fn pull_now(
        &self,
        client: &Client,
        reference: &Reference,
        options: &PullOptions,
        events: &Listener,
    ) -> Result<(Image, bool), Error> {
        let cancel = &options.conversion.cancel;
        let resolved = unless(cancel, async { Ok(client.resolve(reference).await?) }).await?;
        let name = reference.to_string();
        if !options.force
            && let Some(image) = self.current(&name, &resolved)?
        {
            return Ok((image, false));
        }
        let pull = Pull {
            store: self,
            client,
            name,
            resolved,
            options,
            events,
        };
        Ok((pull.run().await?, true))
    }

    /// The image as it is in the store, if that is what the registry has.
    fn current(&self, name: &str, resolved: &Resolved) -> Result<Option<Image>, Error> {
        let images = self.index.read()?;
        let Some(info) = images.get(name) else {
            return Ok(None);
        };
        if info.manifest.as_deref() != Some(resolved.manifest_digest.as_ref()) {
            return Ok(None);
        }
        let manifest = resolved.manifest_digest.as_ref();
        let length = resolved.manifest_bytes.len();
        match (self.root(info), self.load(info.clone())) {
            (Ok(_root), Ok(mut image)) if self.document(name, manifest, length).is_ok() => {
                // The registry may have more platforms by now, and this one as
                // it was.
                if image.info.index != index_of(resolved) {
                    image.info.index = index_of(resolved);
                    self.add([image.info.clone()], &|_| {})?;
                }
                Ok(Some(image))
            }
            // It is there by name only: pulled again, all is well.
            _ => Ok(None),
        }
    }
}

impl Pull<'_> {
    async fn run(self) -> Result<Image, Error> {
        let cancel = &self.options.conversion.cancel;
        let config = async { Ok(self.client.fetch_config(&self.resolved).await?) };
        let (bytes, _) = unless(cancel, config).await?;
        let config = ImageConfig::parse(&bytes).map_err(|source| Error::Config {
            name: self.name.clone(),
            source,
        })?;
        let layers = self.resolved.layers();
        check(&self.name, &config, layers.len())?;
        self.check_digests()?;
        let sizes = layers.iter().map(Descriptor::size);
        roots::check_packed(&self.name, sizes, &self.options.conversion)?;
        let root_name = roots::name(&config.diff_ids);
        // Layers are in use until the image is there: nobody removes them.
        let (root, layers_in_use) = match self.root_of_same_layers(&root_name)? {
            Some(root) if !self.options.force => (root, Vec::new()),
            there => {
                // What is made again has to be ours alone.
                drop(there);
                self.make_root(&config, &root_name).await?
            }
        };
        let store = self.store.clone();
        let manifest = self.resolved.manifest_bytes.clone();
        let events = Arc::clone(self.events);
        let index = index_of(&self.resolved);
        let infos = config.diff_ids.iter().zip(layers);
        let infos = infos.map(|(diff_id, layer)| LayerInfo {
            diff_id: diff_id.clone(),
            digest: Some(layer.digest().to_string()),
            size: layer.size(),
            media_type: layer.media_type().to_string(),
        });
        let (name, infos) = (self.name.clone(), infos.collect());
        blocking(move || {
            let (id, _config) = store.put(&bytes)?;
            let (manifest, _manifest) = store.put(&manifest)?;
            let info = ImageInfo {
                name,
                source: Source::Registry,
                id,
                manifest: Some(manifest),
                index,
                platform: config.platform(),
                layers: infos,
                root: root_name,
                size: root.size().map_err(failed("look at", &root.path))?,
                created: config.created.clone(),
                added: now(),
            };
            store.add([info.clone()], events.as_ref())?;
            drop(layers_in_use);
            Ok(Image { info, config })
        })
        .await
    }

    /// The root image, if the store made it of just these layers. That the
    /// configuration claims to have their contents is not enough: who cannot
    /// name the layers would get to see another image's files.
    fn root_of_same_layers(&self, root_name: &str) -> Result<Option<Held>, Error> {
        let digests = || self.resolved.layers().iter().map(Descriptor::digest);
        let same = |info: &ImageInfo| {
            let theirs = info.layers.iter().map(|layer| layer.digest.as_deref());
            info.root == root_name && theirs.eq(digests().map(|digest| Some(digest.as_ref())))
        };
        if !self.store.index.read()?.values().any(same) {
            return Ok(None);
        }
        let path = self.store.directory.join("roots").join(root_name);
        Held::open(&path).map_err(failed("open the root image", &path))
    }

    /// Names of files are made of digests.
    fn check_digests(&self) -> Result<(), Error> {
        let layers = self.resolved.layers().iter().map(Descriptor::digest);
        let mut digests = layers.chain([&self.resolved.manifest_digest]);
        match digests.find(|digest| !is_sha256(digest.as_ref())) {
            None => Ok(()),
            Some(other) => Err(Error::Digest {
                name: self.name.clone(),
                digest: other.to_string(),
            }),
        }
    }

    /// Gets all layers and makes the root image of them.
    async fn make_root(
        &self,
        config: &ImageConfig,
        root_name: &str,
    ) -> Result<(Held, Vec<Held>), Error> {
        let layers = self.resolved.layers();
        let distinct: BTreeMap<String, &Descriptor> = layers
            .iter()
            .map(|layer| (layer.digest().to_string(), layer))
            .collect();
        self.check_room(&distinct)?;
        let sizes = distinct.values().map(|layer| layer.size());
        (self.events)(Event::Layers {
            bytes: sizes.fold(0, u64::saturating_add),
        });
        let fetches: Vec<_> = distinct
            .into_iter()
            .map(|(digest, layer)| async move {
                let held = self.layer(&digest, layer).await?;
                Ok::<_, Error>((digest, held))
            })
            .collect();
        let fetched = stream::iter(fetches)
            .buffer_unordered(PARALLEL)
            .try_collect();
        let cancel = &self.options.conversion.cancel;
        let fetched: BTreeMap<String, Held> = match unless(cancel, fetched).await {
            Ok(fetched) => fetched,
            Err(error) => {
                if !is_passing(&error) {
                    self.discard_partial();
                }
                return Err(error);
            }
        };
        let mut pieces = Vec::new();
        for layer in layers {
            let digest = layer.digest().to_string();
            let Some(held) = fetched.get(&digest) else {
                continue;
            };
            let reading = |source| failed("read", held.path())(source);
            let file = held.file.try_clone().map_err(reading)?;
            let piece = Piece::whole(file).map_err(reading)?;
            pieces.push(roots::Packed::blob(digest, piece));
        }
        let (store, events) = (self.store.clone(), Arc::clone(self.events));
        let (name, root_name) = (self.name.clone(), root_name.to_owned());
        let (force, conversion) = (self.options.force, self.options.conversion.clone());
        let diff_ids = config.diff_ids.clone();
        blocking(move || {
            let events = &*events;
            let mut made = false;
            let root = store.root_or_make(&root_name, &name, force, events, |out| {
                made = true;
                store.convert(&name, &pieces, &diff_ids, &conversion, out, events)
            })?;
            if !made {
                for (layer, diff_id) in pieces.iter().zip(&diff_ids) {
                    store.verify_layer(&name, layer, diff_id, &conversion)?;
                }
            }
            Ok((root, fetched.into_values().collect()))
        })
        .await
    }

    /// Checks that there is room for what has yet to be downloaded.
    fn check_room(&self, layers: &BTreeMap<String, &Descriptor>) -> Result<(), Error> {
        let length = |path: PathBuf| fs::metadata(path).map_or(0, |there| there.len());
        let missing = layers.iter().map(|(digest, layer)| {
            let there = length(self.store.blob(digest)).max(length(self.store.work_path(digest)));
            layer.size().saturating_sub(there)
        });
        let missing = missing.fold(0, u64::saturating_add);
        let directory = self.store.work();
        room::check(&directory, missing).map_err(|room::TooFew { needed, free }| Error::NoRoom {
            name: self.name.clone(),
            directory: directory.clone(),
            needed,
            free,
        })
    }

    /// Removes what was downloaded of layers, unless another process goes on
    /// with it: no image will come of it.
    fn discard_partial(&self) {
        for layer in self.resolved.layers() {
            let path = self.store.work_path(layer.digest().as_ref());
            // What cannot be removed, `gc` finds.
            let _ = lock::remove(&path, false);
        }
    }

    /// A layer, downloaded if it is not there.
    async fn layer(&self, digest: &str, layer: &Descriptor) -> Result<Held, Error> {
        let path = self.store.blob(digest);
        let mut work = match self.take(digest, layer.size()).await? {
            Taken::Done(held) => {
                (self.events)(Event::Exists {
                    digest: digest.to_owned(),
                    size: layer.size(),
                });
                return Ok(held);
            }
            Taken::Work(work) => work,
        };
        // Whatever ends this, the next pull goes on from there.
        work.keep_partial(true);
        let mut progress = |now: registry::Progress<'_>| {
            (self.events)(Event::Downloading {
                digest: digest.to_owned(),
                done: now.done,
                size: now.total,
            });
        };
        let reference = &self.resolved.reference;
        let fetched = self
            .client
            .fetch_blob(reference, layer, &mut work.file, &mut progress)
            .await;
        if let Err(error) = fetched.map_err(Error::from) {
            work.keep_partial(is_passing(&error));
            return Err(error);
        }
        let store = self.store.clone();
        let held = blocking(move || {
            let _guard = store.index.shared()?;
            let writing = failed("put the layer in place at", &path);
            work.publish(&path).map_err(writing)
        })
        .await?;
        (self.events)(Event::Downloaded {
            digest: digest.to_owned(),
            size: layer.size(),
        });
        Ok(held)
    }

    /// The right to download a layer, or the layer if it is there.
    async fn take(&self, digest: &str, size: u64) -> Result<Taken, Error> {
        let (store, events) = (self.store.clone(), Arc::clone(self.events));
        let digest = digest.to_owned();
        blocking(move || {
            let path = store.blob(&digest);
            let find = || -> Result<Option<Held>, Error> {
                let reading = |source| failed("read the layer", &path)(source);
                let Some(held) = Held::open(&path).map_err(reading)? else {
                    return Ok(None);
                };
                // What a disk gives back may not be what was written. Layers
                // are only read to make a root image, which takes far longer.
                let whole = held.size().map_err(reading)? == size;
                let sound = whole && held.verify(&digest).map_err(reading)?;
                Ok(sound.then_some(held))
            };
            if let Some(held) = find()? {
                return Ok(Taken::Done(held));
            }
            let work = store.work_path(&digest);
            let mut waiting = || {
                (events)(Event::Waiting {
                    what: format!("layer {digest}"),
                });
            };
            let work = Work::take(&work, &mut waiting).map_err(failed("write", &work))?;
            Ok(match find()? {
                Some(held) => Taken::Done(held),
                None => Taken::Work(work),
            })
        })
        .await
    }
}

enum Taken {
    Done(Held),
    Work(Work),
}

/// The digest of the index that a manifest is of, if there is one.
fn index_of(resolved: &Resolved) -> Option<String> {
    resolved.index_digest.as_ref().map(ToString::to_string)
}

/// May what was downloaded so far be of use another time? Not if the registry
/// gives something else than it promises, or the disk is full.
fn is_passing(error: &Error) -> bool {
    use registry::Error as E;
    match error {
        Error::Cancelled => true,
        Error::Registry(error) => matches!(
            error,
            E::Broken { .. }
                | E::Connect { .. }
                | E::Name { .. }
                | E::TimedOut { .. }
                | E::Slow { .. }
                | E::RateLimited { .. }
        ),
        _ => false,
    }
}

/// Drops the work when it is cancelled.
async fn unless<T>(
    cancel: &Cancel,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    tokio::select! {
        done = work => done,
        () = cancel.cancelled() => Err(Error::Cancelled),
    }
}

/// Runs what blocks on a thread of its own, which is not waited for when the
/// future is dropped: it may be waiting for a lock.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let (sender, done) = oneshot::channel();
    std::thread::Builder::new()
        .name("image".to_owned())
        .spawn(move || drop(sender.send(work())))
        .map_err(Error::Thread)?;
    // A thread that panics has said why.
    done.await.map_err(|_| Error::Cancelled)?
}

/// Checks that an image is one that can be converted.
pub(super) fn check(name: &str, config: &ImageConfig, layers: usize) -> Result<(), Error> {
    let name = || name.to_owned();
    if !config.os.is_empty() && config.os != "linux" {
        return Err(Error::OperatingSystem {
            name: name(),
            os: config.os.clone(),
        });
    }
    if config.diff_ids.len() != layers {
        return Err(Error::LayerCount {
            name: name(),
            layers,
            diff_ids: config.diff_ids.len(),
        });
    }
    Ok(())
}
