//! The kernels that are built: find, list, remove.
//!
//! `kernels/<hash>/` holds `vmlinux`, `config`, `System.map` and `meta.json`;
//! `kernels/.locks/` one lock per hash; `kernels/.scratch/` what is being built. `sources/` holds what was downloaded.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::fragment::{Fragment, merged};
use crate::kernel::Kernel;
use crate::lock::Lock;
use crate::publish::remove_tree;

/// Fewest digits of a hash that name a kernel.
const MIN_PREFIX: usize = 4;

/// A directory of built kernels. Any number of processes may use it at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cache {
    kernels: PathBuf,
    downloads: PathBuf,
}

impl Cache {
    /// The user's cache: `$XDG_CACHE_HOME/flashpan`, or `~/.cache/flashpan`.
    ///
    /// # Errors
    /// [`Error::NoCacheDirectory`] when neither variable holds an absolute path.
    pub fn user() -> Result<Self, Error> {
        let root = user_root(|name| std::env::var_os(name)).ok_or(Error::NoCacheDirectory)?;
        Ok(Self::at(&root))
    }

    /// The cache in `root`, flashpan's cache directory; made when first written to.
    pub fn at(root: &Path) -> Self {
        Self {
            kernels: root.join("kernels"),
            downloads: root.join("sources"),
        }
    }

    /// All kernels, the newest first. What is no whole kernel is left out.
    ///
    /// # Errors
    /// The directory exists and cannot be listed.
    pub fn list(&self) -> Result<Vec<Kernel>, Error> {
        let entries = match fs::read_dir(&self.kernels) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(Error::io("list", &self.kernels))?,
        };
        let mut kernels: Vec<_> = entries
            .flatten()
            .filter_map(|entry| Kernel::read(&entry.path()))
            .collect();
        kernels
            .sort_by(|a, b| (b.info.built_at, &b.info.hash).cmp(&(a.info.built_at, &a.info.hash)));
        Ok(kernels)
    }

    /// The kernel to boot. `None` is the default: the newest with this version's
    /// base configuration and no fragment, whatever source and compiler made it,
    /// so that neither is needed to run. A name (`base+netfilter`, or
    /// `netfilter`) is the newest of that name, and one made from this version's
    /// fragments before others; else it is the beginning of a hash.
    ///
    /// # Errors
    /// [`Error::NotBuilt`], [`Error::NotFound`] or [`Error::Ambiguous`].
    pub fn find(&self, wanted: Option<&str>) -> Result<Kernel, Error> {
        let Some(wanted) = wanted else {
            let request = merged(&[])?.digest();
            let is_default = |kernel: &Kernel| {
                kernel.info.fragments.is_empty() && kernel.info.request_sha256 == request
            };
            return self
                .list()?
                .into_iter()
                .find(is_default)
                .ok_or(Error::NotBuilt);
        };
        let kernels = self.list()?;
        let name = full_name(wanted);
        let current = current_request(&name);
        let named = |kernel: &&Kernel| kernel.info.name == name;
        let best = kernels
            .iter()
            .filter(named)
            .find(|kernel| Some(&kernel.info.request_sha256) == current.as_ref())
            .or_else(|| kernels.iter().find(named));
        match best {
            Some(kernel) => Ok(kernel.clone()),
            None => self.by_prefix(kernels, wanted),
        }
    }

    /// Removes a kernel, named as for [`Self::find`]. A VM that runs it keeps the
    /// file that it has open.
    ///
    /// # Errors
    /// As for [`Self::find`], or the files cannot be removed.
    pub fn remove(&self, wanted: &str) -> Result<Kernel, Error> {
        let kernel = self.find(Some(wanted))?;
        // So that nobody takes it for what a killed removal has left. Whoever
        // holds it checks or waits, and leaves kernels alone.
        let path = self.lock(&kernel.info.hash);
        let _lock = Lock::try_take(&path).map_err(Error::io("lock", &path))?;
        // Out of sight first: a half-removed kernel must not be found.
        let doomed = self.kernels.join(format!(".old-{}", kernel.info.hash));
        remove_tree(&doomed)?;
        fs::rename(&kernel.directory, &doomed).map_err(Error::io("remove", &kernel.directory))?;
        remove_tree(&doomed)?;
        Ok(kernel)
    }

    /// The kernel with this hash.
    pub(crate) fn get(&self, hash: &str) -> Option<Kernel> {
        Kernel::read(&self.directory(hash))
    }

    /// Where the kernel with this hash is or will be.
    pub(crate) fn directory(&self, hash: &str) -> PathBuf {
        self.kernels.join(hash)
    }

    /// The directory of all kernels.
    pub(crate) fn kernels(&self) -> &Path {
        &self.kernels
    }

    pub(crate) fn lock(&self, hash: &str) -> PathBuf {
        self.kernels.join(".locks").join(hash)
    }

    pub(crate) fn scratch(&self) -> PathBuf {
        self.kernels.join(".scratch")
    }

    pub(crate) fn log(&self, hash: &str) -> PathBuf {
        self.kernels.join(".logs").join(format!("{hash}.log"))
    }

    /// Where downloaded tarballs are.
    pub(crate) fn downloads(&self) -> &Path {
        &self.downloads
    }

    /// Remembered hashes of tarballs.
    pub(crate) fn digests(&self) -> PathBuf {
        self.kernels.join(".sources.json")
    }

    fn by_prefix(&self, kernels: Vec<Kernel>, wanted: &str) -> Result<Kernel, Error> {
        let names: Vec<_> = kernels
            .iter()
            .map(|kernel| kernel.info.name.clone())
            .collect();
        let mut fitting: Vec<_> = kernels
            .into_iter()
            .filter(|kernel| wanted.len() >= MIN_PREFIX && kernel.info.hash.starts_with(wanted))
            .collect();
        match fitting.pop() {
            Some(kernel) if fitting.is_empty() => Ok(kernel),
            Some(kernel) => {
                fitting.push(kernel);
                let candidates = fitting.into_iter().map(|kernel| kernel.info.hash).collect();
                Err(Error::Ambiguous {
                    wanted: wanted.to_owned(),
                    candidates,
                })
            }
            None => Err(Error::NotFound {
                wanted: wanted.to_owned(),
                directory: self.kernels.clone(),
                known: known(names),
            }),
        }
    }
}

/// `netfilter` is short for `base+netfilter`.
fn full_name(wanted: &str) -> String {
    if wanted == "base" || wanted.starts_with("base+") {
        wanted.to_owned()
    } else {
        format!("base+{wanted}")
    }
}

/// Digest of the requests behind a name, if all of it comes with flashpan.
fn current_request(name: &str) -> Option<String> {
    let fragments = name.split('+').skip(1).map(Fragment::resolve);
    Some(
        merged(&fragments.collect::<Result<Vec<_>, _>>().ok()?)
            .ok()?
            .digest(),
    )
}

fn known(mut names: Vec<String>) -> String {
    names.sort();
    names.dedup();
    match names.as_slice() {
        [] => "is none".to_owned(),
        [one] => format!("is {one}"),
        more => format!("are {}", more.join(", ")),
    }
}

/// flashpan's cache directory. Relative paths in the variables are ignored, as the
/// XDG base directory specification asks.
fn user_root(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let absolute = |name| {
        variable(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let cache = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
    Some(cache.join("flashpan"))
}

#[cfg(test)]
mod tests;
