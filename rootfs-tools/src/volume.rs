//! Named volumes: ext4 disks that outlive the VMs that use them.
//!
//! A volume is one file, `NAME.ext4`, in the directory of volumes: user data, so
//! under the state directory and not in the cache. Every operation locks the file
//! as a VM does ([`crate::disk::open`]): a volume that is in use cannot be removed
//! or resized, and one that is written to cannot be copied. What is being made
//! has a name with a dot until it is whole, and is locked; whatever a killed
//! process left under such a name goes with the next operation that makes one.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::cache::Cache;
use crate::disk::{self, OpenError};
use crate::e2fsprogs;
use crate::sparse::{At, Copier, CopyError};

/// Longest name; `.NAME.ext4.new` has to fit 255 bytes.
const NAME_MAX: usize = 200;
/// Ending of a volume's file.
const EXTENSION: &str = "ext4";

/// Why something cannot be done with a volume.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no directory for volumes.
    #[error("cannot find the state directory: neither XDG_STATE_HOME nor HOME is an absolute path")]
    NoHome,
    /// The name cannot be one.
    #[error(
        "invalid volume name: {0:?}; want letters, digits, `_`, `.` and `-`, beginning with a \
         letter or digit, at most {NAME_MAX}"
    )]
    Name(String),
    /// There is no name.
    #[error("invalid volume name: name cannot be empty")]
    Nameless,
    /// There is no such volume.
    #[error("named volume not found: {0}")]
    NotFound(String),
    /// There is one already.
    #[error("named volume already exists: {0}")]
    Exists(String),
    /// Source and destination are the same.
    #[error("copy named volume: source and destination must be different")]
    SameName,
    /// A VM or another command has it.
    #[error("volume {0} is in use; wait until the VM or command that has it has ended")]
    InUse(String),
    /// It cannot be opened as a disk.
    #[error(transparent)]
    Open(OpenError),
    /// Its file system could not be made.
    #[error(transparent)]
    Disk(#[from] disk::Error),
    /// A program of e2fsprogs is missing or failed.
    #[error(transparent)]
    Tool(#[from] e2fsprogs::Error),
    /// A file operation failed.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

fn failed<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Error + 'a {
    move |source| Error::Io {
        what,
        path: path.to_owned(),
        source,
    }
}

/// A volume as it is listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// Its file.
    pub path: PathBuf,
    /// Size of the disk in bytes.
    pub size: u64,
    /// Bytes that it takes on the host.
    pub used: u64,
}

/// A directory of volumes.
#[derive(Clone, Debug)]
pub struct Volumes {
    directory: PathBuf,
}

impl Volumes {
    /// The user's: `$XDG_STATE_HOME/flashpan/volumes`, or below
    /// `~/.local/state`.
    ///
    /// # Errors
    ///
    /// Neither is known.
    pub fn user() -> Result<Self, Error> {
        let absolute = |name| {
            std::env::var_os(name)
                .map(PathBuf::from)
                .filter(|path| path.is_absolute())
        };
        let base = absolute("XDG_STATE_HOME")
            .or_else(|| absolute("HOME").map(|home| home.join(".local/state")))
            .ok_or(Error::NoHome)?;
        Ok(Self::at(base.join("flashpan/volumes")))
    }

    /// Those in `directory`, which is made when it is needed.
    #[must_use]
    pub fn at(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
        }
    }

    /// The directory, whether it exists or not.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The file of a volume, whether it exists or not.
    ///
    /// # Errors
    ///
    /// The name cannot be one.
    pub fn path(&self, name: &str) -> Result<PathBuf, Error> {
        Ok(self.directory.join(format!("{}.{EXTENSION}", check(name)?)))
    }

    /// Makes an empty volume, with a UUID of its own, of `size` bytes ([`disk::SIZE_MIN`] to
    /// [`disk::SIZE_MAX`], a multiple of [`disk::BLOCK_SIZE`]).
    ///
    /// # Errors
    ///
    /// There is one of that name, or it cannot be made.
    pub fn create(&self, name: &str, size: u64, cache: &Cache) -> Result<Volume, Error> {
        let path = self.path(name)?;
        if path.exists() {
            return Err(Error::Exists(name.to_owned()));
        }
        let new = self.begin(name).map_err(taken)?;
        disk::create(&new.file, size, cache)?;
        e2fsprogs::renew_uuid(&new.file, &new.path)?;
        new.finish(&path, name)?;
        self.describe(name)
    }

    /// All volumes, by name.
    ///
    /// # Errors
    ///
    /// The directory cannot be read.
    pub fn list(&self) -> Result<Vec<Volume>, Error> {
        let reading = |source| failed("read the directory of volumes", &self.directory)(source);
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(reading(error)),
        };
        let mut volumes = Vec::new();
        for entry in entries {
            let file = entry.map_err(reading)?.file_name();
            let name = file.to_str().and_then(|file| file.strip_suffix(".ext4"));
            let Some(name) = name.filter(|name| check(name).is_ok()) else {
                continue;
            };
            match self.describe(name) {
                Ok(volume) => volumes.push(volume),
                // Removed since.
                Err(Error::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        volumes.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(volumes)
    }

    /// One volume.
    ///
    /// # Errors
    ///
    /// There is none of that name.
    pub fn describe(&self, name: &str) -> Result<Volume, Error> {
        let path = self.path(name)?;
        let metadata = match fs::metadata(&path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::NotFound(name.to_owned()));
            }
            Err(error) => return Err(failed("look at the volume", &path)(error)),
        };
        if !metadata.is_file() {
            return Err(Error::NotFound(name.to_owned()));
        }
        Ok(Volume {
            name: name.to_owned(),
            size: metadata.len(),
            used: metadata.blocks().saturating_mul(512),
            path,
        })
    }

    /// Opens a volume for a VM, locked; see [`disk::open`].
    ///
    /// # Errors
    ///
    /// There is none of that name, it is in use, or damaged.
    pub fn open(&self, name: &str, read_only: bool) -> Result<File, Error> {
        let path = self.path(name)?;
        loop {
            let file = match disk::open(&path, read_only) {
                Ok(file) => file,
                Err(OpenError::Open { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                    return Err(Error::NotFound(name.to_owned()));
                }
                Err(OpenError::InUse { .. }) => return Err(Error::InUse(name.to_owned())),
                Err(error) => return Err(Error::Open(error)),
            };
            // Removed or replaced between opening and locking?
            let ours = file.metadata().map_err(failed("look at", &path))?.ino();
            match fs::metadata(&path) {
                Ok(there) if there.ino() == ours => return Ok(file),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(Error::NotFound(name.to_owned()));
                }
                Err(error) => return Err(failed("look at", &path)(error)),
            }
        }
    }

    /// Removes a volume and everything in it.
    ///
    /// # Errors
    ///
    /// There is none of that name, or it is in use.
    pub fn remove(&self, name: &str) -> Result<(), Error> {
        let path = self.path(name)?;
        // Held until it is gone. A damaged one can be removed, too.
        let _lock = match self.open(name, false) {
            Err(Error::Open(OpenError::Content(_) | OpenError::NotExt4 { .. })) => None,
            opened => Some(opened?),
        };
        fs::remove_file(&path).map_err(failed("remove the volume", &path))
    }

    /// Makes a copy of a volume: with the same content and a UUID of its own, as
    /// one that looks for a file system by its UUID has to find just one.
    ///
    /// # Errors
    ///
    /// There is no `from`, a VM writes to it, it is damaged, there is a `to`, or
    /// e2fsprogs is not installed.
    pub fn copy(&self, from: &str, to: &str) -> Result<Volume, Error> {
        if check(from)? == check(to)? {
            return Err(Error::SameName);
        }
        let source = self.open(from, true).or_else(|error| match error {
            // The copy recovers when it gets its UUID.
            Error::Open(OpenError::NeedsRecovery { .. }) => self.open(from, false),
            error => Err(error),
        })?;
        let path = self.path(to)?;
        if path.exists() {
            return Err(Error::Exists(to.to_owned()));
        }
        let new = self.begin(to).map_err(taken)?;
        new.fill_from(&source, &path)?;
        e2fsprogs::renew_uuid(&new.file, &new.path)?;
        new.finish(&path, to)?;
        self.describe(to)
    }

    /// Makes a volume larger or smaller. It is done on a copy, which takes the
    /// volume's place when it is whole.
    ///
    /// # Errors
    ///
    /// There is none of that name, it is in use, `size` is out of range or too
    /// small for what is in it, or e2fsprogs is not installed.
    pub fn resize(&self, name: &str, size: u64) -> Result<Volume, Error> {
        let path = self.path(name)?;
        let file = self.open(name, false)?;
        let old = self.describe(name)?.size;
        if !(disk::SIZE_MIN..=disk::SIZE_MAX).contains(&size)
            || !size.is_multiple_of(disk::BLOCK_SIZE)
        {
            return Err(disk::Error::Size(size).into());
        }
        if size != old {
            let new = self.begin(name)?;
            new.fill_from(&file, &path)?;
            e2fsprogs::check(&new.file, &new.path)?;
            if size > old {
                new.set_len(size)?;
            }
            e2fsprogs::resize(&new.file, &new.path, size)?;
            if size < old {
                new.set_len(size)?;
            }
            new.replace(&path)?;
        }
        self.describe(name)
    }

    /// Removes what killed processes left: unfinished files that nobody has.
    fn sweep(&self) {
        let entries = fs::read_dir(&self.directory)
            .into_iter()
            .flatten()
            .flatten();
        for path in entries.map(|entry| entry.path()) {
            let name = path.file_name().and_then(|name| name.to_str());
            let unfinished =
                name.is_some_and(|name| name.starts_with('.') && name.ends_with(".ext4.new"));
            if unfinished
                && let Ok(file) = File::open(&path)
                && disk::lock(&file, &path, false).is_ok()
            {
                let _ = fs::remove_file(&path);
            }
        }
    }

    /// Starts a file that becomes a volume when it is whole.
    fn begin(&self, name: &str) -> Result<Partial, Error> {
        let mut builder = DirBuilder::new();
        let made = builder.recursive(true).mode(0o700).create(&self.directory);
        made.map_err(failed("make the directory of volumes", &self.directory))?;
        self.sweep();
        let path = self.directory.join(format!(".{name}.{EXTENSION}.new"));
        let making = |source| failed("make", &path)(source);
        loop {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&path)
                .map_err(making)?;
            disk::lock(&file, &path, false).map_err(|_| Error::InUse(name.to_owned()))?;
            // Whoever had the lock before may have given the file its name.
            let ours = file.metadata().map_err(making)?.ino();
            if fs::metadata(&path).is_ok_and(|there| there.ino() == ours) {
                file.set_len(0).map_err(making)?;
                return Ok(Partial {
                    file,
                    path: path.clone(),
                    done: false,
                });
            }
        }
    }
}

/// A volume that is being made, locked. It is removed unless it is finished.
struct Partial {
    file: File,
    path: PathBuf,
    done: bool,
}

impl Partial {
    fn set_len(&self, size: u64) -> Result<(), Error> {
        self.file
            .set_len(size)
            .map_err(failed("set the size of", &self.path))
    }

    fn fill_from(&self, source: &File, source_path: &Path) -> Result<(), Error> {
        if rustix::fs::ioctl_ficlone(&self.file, source).is_ok() {
            return Ok(());
        }
        let size = source
            .metadata()
            .map_err(failed("look at", source_path))?
            .len();
        self.set_len(size)?;
        Copier::new()
            .copy(At::start(source), At::start(&self.file), size, &mut |_| {})
            .map_err(|error| match error {
                CopyError::Write(source) => failed("write", &self.path)(source),
                CopyError::Read(source) => failed("read", source_path)(source),
                CopyError::Short => {
                    failed("read", source_path)(io::ErrorKind::UnexpectedEof.into())
                }
            })
    }

    /// Gives it a name that nothing else has.
    fn finish(mut self, path: &Path, name: &str) -> Result<(), Error> {
        self.sync()?;
        match renameat_with(CWD, &self.path, CWD, path, RenameFlags::NOREPLACE) {
            Ok(()) => {}
            Err(rustix::io::Errno::EXIST) => return Err(Error::Exists(name.to_owned())),
            // A file system that cannot do it in one step.
            Err(rustix::io::Errno::INVAL) => match fs::hard_link(&self.path, path) {
                Ok(()) => {
                    let _ = fs::remove_file(&self.path);
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    return Err(Error::Exists(name.to_owned()));
                }
                Err(error) => return Err(failed("name", path)(error)),
            },
            Err(error) => return Err(failed("name", path)(error.into())),
        }
        self.done = true;
        sync_directory(path)
    }

    /// Takes the place of the volume at `path`, whose lock the caller has.
    fn replace(mut self, path: &Path) -> Result<(), Error> {
        self.sync()?;
        fs::rename(&self.path, path).map_err(failed("replace", path))?;
        self.done = true;
        sync_directory(path)
    }

    fn sync(&self) -> Result<(), Error> {
        self.file.sync_all().map_err(failed("write", &self.path))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.done {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn sync_directory(path: &Path) -> Result<(), Error> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(failed("write the directory", directory))
}

/// Somebody else is making the volume that was to be new.
fn taken(error: Error) -> Error {
    match error {
        Error::InUse(name) => Error::Exists(name),
        error => error,
    }
}

fn check(name: &str) -> Result<&str, Error> {
    if name.is_empty() {
        return Err(Error::Nameless);
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    let name_is = name.len() <= NAME_MAX
        && name.bytes().all(allowed)
        && name
            .bytes()
            .next()
            .is_some_and(|b| b.is_ascii_alphanumeric());
    if name_is {
        Ok(name)
    } else {
        Err(Error::Name(name.to_owned()))
    }
}

#[cfg(test)]
mod tests;
