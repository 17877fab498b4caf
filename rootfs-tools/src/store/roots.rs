//! Root images by the layers that they are made of.

use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest, Sha256};

use super::lock::Work;
use super::{Cancel, Error, Event, Events, Held, Store, failed};
use crate::archive::Piece;
use crate::compression::Compression;
use crate::directory::hex;
use crate::erofs::FORMAT_VERSION;
use crate::layers::{self, Custody};
use crate::room;

/// The name of the root image of these layers: the OCI chain identity (image
/// specification 1.1, `config.md`, "Layer ChainID").
pub(super) fn name(diff_ids: &[String]) -> String {
    let mut chain = String::new();
    for diff_id in diff_ids {
        chain = match chain.as_str() {
            "" => diff_id.clone(),
            below => super::sha256(format!("{below} {diff_id}").as_bytes()),
        };
    }
    let hex = match chain.strip_prefix("sha256:") {
        Some(hex) => hex.to_owned(),
        // Of no layers at all.
        None => hex(&Sha256::digest([])),
    };
    format!("{hex}-{FORMAT_VERSION}.erofs")
}

/// A layer as it is packed.
#[derive(Clone, Debug)]
pub(super) struct Packed {
    /// What messages call it.
    pub(super) name: String,
    /// Its bytes.
    pub(super) piece: Piece,
    /// Whose the file with them is.
    pub(super) custody: Custody,
}

impl Packed {
    /// A blob of this store, which nobody writes once it is in its place.
    pub(super) fn blob(digest: String, piece: Piece) -> Self {
        Self {
            name: digest,
            piece,
            custody: Custody::Own,
        }
    }

    fn layer(&self, image: &str) -> Result<layers::Layer, Error> {
        let Piece {
            file,
            offset,
            length,
        } = &self.piece;
        layers::Layer::new(self.name.clone(), Arc::clone(file), *offset, *length)
            .map(|layer| layer.in_custody(self.custody))
            .map_err(failed("read a layer of", Path::new(image)))
    }
}

impl Store {
    /// The root image of that name, made by `make` if nobody has made it, or
    /// `again`. Made again, it takes the place of one that is there only if that
    /// is damaged and nobody uses it: whoever uses one has its file locked, and
    /// that file has to be the one that is looked at.
    pub(super) fn root_or_make(
        &self,
        name: &str,
        image: &str,
        again: bool,
        events: Events<'_>,
        make: impl FnOnce(&File) -> Result<(), Error>,
    ) -> Result<Held, Error> {
        let path = self.directory.join("roots").join(name);
        let find = || Held::open(&path).map_err(failed("open the root image", &path));
        if !again && let Some(held) = find()? {
            return Ok(held);
        }
        let work = self.work().join(name);
        let mut waiting = || {
            events(Event::Waiting {
                what: format!("the root image of {image}"),
            });
        };
        let work = Work::take(&work, &mut waiting).map_err(failed("write", &work))?;
        // Whoever had it before us may have made it.
        if !again && let Some(held) = find()? {
            return Ok(held);
        }
        // What a killed maker left is of no use.
        work.file
            .set_len(0)
            .map_err(failed("write", &work.path.clone()))?;
        make(&work.file)?;
        let _guard = self.index.shared()?;
        // Locked until the new one is in its place.
        let mut _old = None;
        if let Some(there) = find()? {
            if is_same(&there.file, &work.file).map_err(failed("compare", &path))? {
                return Ok(there);
            }
            match there.file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    return Err(Error::DamagedInUse(image.to_owned()));
                }
                Err(TryLockError::Error(error)) => return Err(failed("lock", &path)(error)),
            }
            _old = Some(there);
        }
        // Whoever has opened the old one waits for its lock, and then finds that
        // it is gone.
        work.publish(&path)
            .map_err(failed("put the root image in place at", &path))
    }

    /// Writes the root image of these layers.
    pub(super) fn convert(
        &self,
        image: &str,
        layers: &[Packed],
        diff_ids: &[String],
        conversion: &Conversion,
        out: &File,
        events: Events<'_>,
    ) -> Result<(), Error> {
        let layers = layers.iter().map(|layer| layer.layer(image));
        let layers: Vec<layers::Layer> = layers.collect::<Result<_, _>>()?;
        let expected: Vec<layers::DiffId> = diff_ids.iter().filter_map(|id| bytes(id)).collect();
        let work = self.work();
        // What is packed unpacks to no less. Of a plain tar, zeros need no room.
        let packed = layers
            .iter()
            .filter(|layer| layer.compression != Compression::None);
        let packed = packed.fold(0, |sum: u64, layer| sum.saturating_add(layer.length));
        room::check(&work, packed).map_err(|room::TooFew { needed, free }| Error::NoRoom {
            name: image.to_owned(),
            directory: work.clone(),
            needed,
            free,
        })?;
        let mut options = layers::Options::new(&work, conversion.cancel.flag());
        options.limits = conversion.limits.clone();
        let progress = Meter::new(&layers, events);
        layers::convert(&layers, &expected, &options, out, &|now| progress.on(&now))
            .map(drop)
            .map_err(|source| failed_conversion(image, source))
    }

    /// Checks that a layer has this `diff_id`, for whom there is no image to make.
    pub(super) fn verify_layer(
        &self,
        image: &str,
        layer: &Packed,
        diff_id: &str,
        conversion: &Conversion,
    ) -> Result<(), Error> {
        let work = self.work();
        let mut options = layers::Options::new(&work, conversion.cancel.flag());
        options.limits = conversion.limits.clone();
        let expected = bytes(diff_id).ok_or_else(|| Error::Digest {
            name: image.to_owned(),
            digest: diff_id.to_owned(),
        })?;
        layers::verify(&layer.layer(image)?, &expected, &options)
            .map_err(|source| failed_conversion(image, source))
    }
}

/// Have two files the same content?
fn is_same(a: &File, b: &File) -> io::Result<bool> {
    let length = a.metadata()?.len();
    if length != b.metadata()?.len() {
        return Ok(false);
    }
    let (mut from_a, mut from_b) = (vec![0; STEP], vec![0; STEP]);
    let mut offset = 0;
    while offset < length {
        let left = usize::try_from(length - offset).unwrap_or(STEP).min(STEP);
        let (from_a, from_b) = (from_a.get_mut(..left), from_b.get_mut(..left));
        let (Some(from_a), Some(from_b)) = (from_a, from_b) else {
            break;
        };
        a.read_exact_at(from_a, offset)?;
        b.read_exact_at(from_b, offset)?;
        if from_a != from_b {
            return Ok(false);
        }
        offset += u64::try_from(left).unwrap_or(u64::MAX);
    }
    Ok(true)
}

/// Bytes that are compared at a time.
const STEP: usize = 1 << 20;

/// How root images are made from layers.
#[derive(Clone, Debug, Default)]
pub struct Conversion {
    /// What layers may ask for.
    pub limits: layers::Limits,
    /// Ends it.
    pub cancel: Cancel,
}

/// Checks what all layers have together before they are got or read.
pub(super) fn check_packed(
    image: &str,
    sizes: impl IntoIterator<Item = u64>,
    conversion: &Conversion,
) -> Result<(), Error> {
    let checked = conversion.limits.check_packed(sizes);
    checked.map_err(|source| failed_conversion(image, source))
}

fn failed_conversion(image: &str, source: layers::Error) -> Error {
    match source {
        layers::Error::Cancelled => Error::Cancelled,
        source => Error::Convert {
            name: image.to_owned(),
            source,
        },
    }
}

/// The bytes of a digest.
fn bytes(digest: &str) -> Option<layers::DiffId> {
    let hex = digest.strip_prefix("sha256:")?;
    let mut bytes = [0; 32];
    for (index, byte) in bytes.iter_mut().enumerate() {
        let at = index.checked_mul(2)?;
        *byte = u8::from_str_radix(hex.get(at..at.checked_add(2)?)?, 16).ok()?;
    }
    Some(bytes)
}

/// Makes one measure of the progress of several layers and of the image: the
/// first half is reading layers, the second is writing the image.
struct Meter<'a> {
    events: Events<'a>,
    /// Bytes read of each layer.
    read: Vec<AtomicU64>,
    total: u64,
}

/// Steps of each half.
const HALF: u64 = 1000;

impl<'a> Meter<'a> {
    fn new(layers: &[layers::Layer], events: Events<'a>) -> Self {
        Self {
            events,
            read: layers.iter().map(|_| AtomicU64::new(0)).collect(),
            total: layers
                .iter()
                .fold(0, |total, layer| total.saturating_add(layer.length)),
        }
    }

    fn on(&self, now: &layers::Progress) {
        let share = |done: u64, total: u64| done.saturating_mul(HALF) / total.max(1);
        let done = match now {
            layers::Progress::Unpacking { layer, done, .. } => {
                if let Some(read) = self.read.get(*layer) {
                    read.store(*done, Ordering::Relaxed);
                }
                let read = self.read.iter().map(|read| read.load(Ordering::Relaxed));
                share(read.fold(0, u64::saturating_add), self.total)
            }
            layers::Progress::Writing(now) => HALF + share(now.done, now.total),
        };
        (self.events)(Event::Converting {
            done,
            total: 2 * HALF,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_that_of_the_chain_in_order() {
        let a = super::super::sha256(b"a");
        let b = super::super::sha256(b"b");
        let one = name(std::slice::from_ref(&a));
        assert_eq!(
            one,
            format!("{}-{FORMAT_VERSION}.erofs", &a["sha256:".len()..])
        );
        let chain = super::super::sha256(format!("{a} {b}").as_bytes());
        let two = name(&[a.clone(), b.clone()]);
        assert_eq!(
            two,
            format!("{}-{FORMAT_VERSION}.erofs", &chain["sha256:".len()..])
        );
        assert_ne!(two, name(&[b, a]));
        assert_eq!(
            name(&[]).len(),
            64 + format!("-{FORMAT_VERSION}.erofs").len()
        );
    }
}
