//! Giving back what no image needs.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::index::Guard;
use super::lock::{self, Removed};
use super::{Error, Store, failed};

/// What to give back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gc {
    /// Also layers of images that are there: their root images do not need them.
    pub layers: bool,
    /// Only say what would be removed.
    pub dry_run: bool,
    /// Leave downloads that were interrupted to be resumed.
    keep_partial: bool,
}

impl Gc {
    /// Everything that is unreferenced, and what killed processes left.
    #[must_use]
    pub fn all() -> Self {
        Self::default()
    }

    /// What is unreferenced, after something went away.
    pub(super) fn unreferenced() -> Self {
        Self {
            keep_partial: true,
            ..Self::default()
        }
    }

    /// The same with layers that only images name.
    #[must_use]
    pub fn with_layers(mut self, layers: bool) -> Self {
        self.layers = layers;
        self
    }

    /// The same without removing anything.
    #[must_use]
    pub fn with_dry_run(mut self, dry_run: bool) -> Self {
        self.dry_run = dry_run;
        self
    }
}

/// What was given back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Files that were removed, in no order.
    pub files: Vec<PathBuf>,
    /// Bytes of disk that they took.
    pub bytes: u64,
    /// Unreferenced files that are in use, and stay.
    pub in_use: usize,
}

impl Store {
    /// Removes every blob and root image that no image needs, and what killed
    /// processes left half-made. What somebody uses stays.
    ///
    /// # Errors
    ///
    /// The list of images cannot be read (then nothing is removed), or a file
    /// cannot be removed.
    pub fn gc(&self, what: &Gc) -> Result<Collected, Error> {
        let guard = self.index.exclusive()?;
        self.collect(&guard, what)
    }

    pub(super) fn collect(&self, _guard: &Guard, what: &Gc) -> Result<Collected, Error> {
        let images = self.index.read()?;
        let mut blobs = HashSet::new();
        let mut roots = HashSet::new();
        for image in images.values() {
            blobs.extend(image.documents().map(|digest| self.blob(digest)));
            roots.insert(self.root_path(image));
            if !what.layers {
                let digests = image
                    .layers
                    .iter()
                    .filter_map(|layer| layer.digest.as_deref());
                blobs.extend(digests.map(|digest| self.blob(digest)));
            }
        }
        let mut collected = Collected::default();
        let none = HashSet::new();
        let mut folders = vec![("blobs/sha256", &blobs), ("roots", &roots)];
        if !what.keep_partial {
            folders.push(("work", &none));
        }
        for (folder, keep) in folders {
            let folder = self.directory.join(folder);
            self.sweep(&folder, keep, what.dry_run, &mut collected)?;
        }
        // An index that was not renamed: its writer had our lock.
        let new = self.directory.join("index.json.new");
        if new.exists() {
            remove(&new, what.dry_run, &mut collected)?;
        }
        Ok(collected)
    }

    fn sweep(
        &self,
        folder: &Path,
        keep: &HashSet<PathBuf>,
        dry_run: bool,
        collected: &mut Collected,
    ) -> Result<(), Error> {
        let entries = fs::read_dir(folder).map_err(failed("list", folder))?;
        for entry in entries {
            let path = entry.map_err(failed("list", folder))?.path();
            if !keep.contains(&path) {
                remove(&path, dry_run, collected)?;
            }
        }
        Ok(())
    }
}

fn remove(path: &Path, dry_run: bool, collected: &mut Collected) -> Result<(), Error> {
    match lock::remove(path, dry_run).map_err(failed("remove", path))? {
        Removed::Yes(bytes) => {
            collected.bytes = collected.bytes.saturating_add(bytes);
            collected.files.push(path.to_owned());
        }
        Removed::InUse => collected.in_use = collected.in_use.saturating_add(1),
    }
    Ok(())
}
