//! VMs with a life of their own: what is on disk of them.
//!
//! `$XDG_STATE_HOME/flashpan/vms/ID/` has everything of a VM, `names/NAME` is a
//! symbolic link whose text is an id. Every change is one system call that happens or
//! does not, in an order in which each state in between is one that the next command
//! understands:
//!
//! * A VM is made in `.new-ID`, whose lock its maker holds, and renamed. A directory of
//!   that kind without a holder was left by a killed command.
//! * It gets its name before it is there, and loses it after it is gone: a link that
//!   leads nowhere, or to a VM that calls itself otherwise, is stale.
//! * It is removed by renaming it to `.rm-ID-N`, and then file by file.
//! * A supervisor takes the lock of the life, writes `run.json` with the next number,
//!   removes `exit.json` and says that the VM starts; at the end it writes `exit.json` with that number and lets go
//!   of the lock. So a free lock with a `run.json` that has no `exit.json` of its number
//!   is a crash.
//!
//! What was left is swept by the next command that changes something.

mod claim;
mod error;
mod event_log;
mod event_reader;
mod follow;
mod lock;
mod log_file;
mod logged_event;
mod names;
mod new;
mod programs;
pub(crate) mod record;
#[cfg(test)]
mod tests;
mod vm;
mod watches;

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::rand::{GetRandomFlags, getrandom};

pub use error::StateError;
pub use event_reader::EventReader;
pub use follow::{ListWatch, LogReader, LogStream};
pub use logged_event::{LoggedEvent, LoggedKind};
pub use new::NewVm;
pub use programs::{NotText, Programs};
pub use record::{CommandEnd, ExitRecord, NAME_MAX, Publish, Record, Run, Status};
pub use vm::Vm;

pub(crate) use claim::Claim;
pub(crate) use event_log::EventLog;
pub(crate) use lock::{marked, wait_until_free};
pub(crate) use log_file::LogFile;
pub(crate) use vm::last_exit;
pub(crate) use watches::{Change, Changes, Watches};

use error::failed;
use lock::{Holder, ListLock};
use record::is_id;

/// Most ids that an ambiguous one is said to stand for.
pub const AMBIGUOUS_LISTED: usize = 8;

/// How the names of directories begin that are being made.
const MAKING: &str = ".new-";

/// How the names of directories begin that are being removed.
const REMOVING: &str = ".rm-";

type Result<T, E = StateError> = std::result::Result<T, E>;

/// The VMs of a user, or those in some other directory.
#[derive(Debug, Clone)]
pub struct Vms {
    base: PathBuf,
    list: PathBuf,
    names: PathBuf,
}

/// What [`Vms::list`] found.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Listing {
    /// VMs, the newest first.
    pub vms: Vec<Vm>,
    /// Ids of VMs whose files cannot be understood, and why.
    pub damaged: Vec<(String, StateError)>,
}

impl Vms {
    /// Those of this user: in `$XDG_STATE_HOME/flashpan`, or below `~/.local/state`.
    ///
    /// # Errors
    /// [`StateError::NoHome`].
    pub fn user() -> Result<Self> {
        let absolute = |name| {
            std::env::var_os(name)
                .map(PathBuf::from)
                .filter(|path| path.is_absolute())
        };
        let base = absolute("XDG_STATE_HOME")
            .or_else(|| absolute("HOME").map(|home| home.join(".local/state")))
            .ok_or(StateError::NoHome)?;
        Ok(Self::at(base.join("flashpan")))
    }

    /// Those in `base`, which is made when it is needed.
    #[must_use]
    pub fn at(base: impl Into<PathBuf>) -> Self {
        let base = base.into();
        Self {
            list: base.join("vms"),
            names: base.join("names"),
            base,
        }
    }

    /// The directory that everything is in.
    #[must_use]
    pub fn base(&self) -> &Path {
        &self.base
    }

    /// The directory of a VM, whether there is such a VM or not.
    #[must_use]
    pub fn directory(&self, id: &str) -> PathBuf {
        self.list.join(id)
    }

    /// All VMs, the newest first.
    ///
    /// # Errors
    /// The directory cannot be read, or is another user's.
    pub fn list(&self) -> Result<Listing> {
        let mut listing = Listing::default();
        for id in self.ids()? {
            match self.load(&id) {
                Ok(vm) => listing.vms.push(vm),
                // Removed meanwhile.
                Err(StateError::NotFound(_)) => {}
                Err(error) => listing.damaged.push((id, error)),
            }
        }
        let key = |vm: &Vm| {
            (
                std::cmp::Reverse(vm.record().created_at),
                vm.id().to_owned(),
            )
        };
        listing.vms.sort_by_key(key);
        Ok(listing)
    }

    /// Tells from now on when VMs are made or removed.
    ///
    /// # Errors
    /// The list cannot be made or watched.
    pub fn watch(&self) -> Result<ListWatch> {
        drop(self.lock()?);
        ListWatch::on(&self.list)
    }

    /// The VM that `text` names: its id, its name, or the beginning of its id with or
    /// without `vm-`.
    ///
    /// # Errors
    /// [`StateError::NotFound`], [`StateError::Ambiguous`], or its files cannot be
    /// read.
    pub fn find(&self, text: &str) -> Result<Vm> {
        self.load(&self.resolve(text)?)
    }

    /// The id of the VM that `text` names, also if its files are damaged.
    ///
    /// # Errors
    /// As [`Vms::find`].
    pub fn resolve(&self, text: &str) -> Result<String> {
        let unknown = || StateError::NotFound(text.chars().take(NAME_MAX + 1).collect());
        self.check_owner()?;
        if is_id(text) && self.directory(text).is_dir() {
            return Ok(text.to_owned());
        }
        if let Some(id) = self.owner_of_name(text)? {
            return Ok(id);
        }
        let begins = |id: &String| {
            let digits = id.strip_prefix(crate::api::ID_PREFIX).unwrap_or_default();
            id.starts_with(text) || (!text.is_empty() && digits.starts_with(text))
        };
        // The prefix alone is the beginning of all and means none.
        let vague = crate::api::ID_PREFIX.starts_with(text);
        let mut ids: Vec<_> = match vague {
            true => Vec::new(),
            false => self.ids()?.into_iter().filter(begins).collect(),
        };
        match (ids.pop(), ids.is_empty()) {
            (None, _) => Err(unknown()),
            (Some(only), true) => Ok(only),
            (Some(last), false) => {
                ids.push(last);
                ids.sort();
                ids.truncate(AMBIGUOUS_LISTED);
                Err(StateError::Ambiguous {
                    text: text.to_owned(),
                    ids,
                })
            }
        }
    }

    fn load(&self, id: &str) -> Result<Vm> {
        Vm::load(id, self.directory(id))
    }

    /// Starts to make a VM: [`NewVm::publish`] finishes it.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn create(&self) -> Result<NewVm> {
        let lock = self.lock()?;
        let buried = self.sweep();
        let new = NewVm::begin(self);
        drop(lock);
        discard(&buried);
        new
    }

    /// Gives a VM, running or not, another name.
    ///
    /// # Errors
    /// [`StateError::Name`], [`StateError::NameTaken`], [`StateError::NotFound`], or it
    /// cannot be written.
    pub fn rename(&self, id: &str, name: &str) -> Result<()> {
        record::check_name(name)?;
        let _lock = self.lock()?;
        let vm = self.load(id)?;
        let mut record = vm.record().clone();
        if record.name.as_deref() == Some(name) {
            return Ok(());
        }
        self.take_name(name, id)?;
        let old = record.name.replace(name.to_owned());
        record::write(&vm.directory().join("vm.json"), &record)?;
        if let Some(old) = old {
            self.drop_name(&old);
        }
        Ok(())
    }

    /// Removes a VM that does not run, with its disk and its logs.
    ///
    /// # Errors
    /// [`StateError::Status`] if it runs, [`StateError::NotFound`], or it cannot be
    /// removed.
    pub fn remove(&self, id: &str) -> Result<()> {
        let lock = self.lock()?;
        let directory = self.directory(id);
        if !directory.is_dir() {
            return Err(StateError::NotFound(id.to_owned()));
        }
        let file = directory.join("lock");
        let (holder, activity) = lock::look(&file).map_err(failed("look at", &file))?;
        if holder == Holder::Supervisor {
            return Err(StateError::Status {
                id: id.to_owned(),
                status: vm::status_of(activity),
                advice: "stop it first, or use `flashpan rm -f`",
            });
        }
        let buried = self.bury(id)?;
        drop(lock);
        fs::remove_dir_all(&buried)
            .or_else(gone)
            .map_err(failed("remove", &buried))
    }

    /// Waits until a VM has no supervisor, also if its files cannot be understood;
    /// whether that was `within` this time. Blocks.
    ///
    /// # Errors
    /// Its lock cannot be looked at.
    pub fn wait_until_ended(&self, id: &str, within: Duration) -> Result<bool> {
        let file = self.directory(id).join("lock");
        lock::wait_until_free(&file, within).map_err(failed("wait for", &file))
    }

    /// Removes all VMs that have stopped or crashed; their ids, and what could not be
    /// removed.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn prune(&self) -> Result<(Vec<String>, Vec<StateError>)> {
        let (mut removed, mut failures) = (Vec::new(), Vec::new());
        let listing = self.list()?;
        for vm in listing.vms.iter().rev() {
            if !matches!(vm.status(), Status::Stopped | Status::Crashed) {
                continue;
            }
            match self.remove(vm.id()) {
                Ok(()) => removed.push(vm.id().to_owned()),
                // Started or removed meanwhile.
                Err(StateError::Status { .. } | StateError::NotFound(_)) => {}
                Err(error) => failures.push(error),
            }
        }
        failures.extend(listing.damaged.into_iter().map(|(_, error)| error));
        if self.list.is_dir() {
            let lock = self.lock()?;
            let buried = self.sweep();
            drop(lock);
            discard(&buried);
        }
        Ok((removed, failures))
    }

    /// Takes a VM out of the list; where it is now. The caller has the lock of the
    /// list.
    fn bury(&self, id: &str) -> Result<PathBuf> {
        let directory = self.directory(id);
        let grave = self.list.join(format!("{REMOVING}{id}-{:08x}", random()?));
        fs::rename(&directory, &grave).map_err(failed("remove", &directory))?;
        self.drop_names_of(id);
        Ok(grave)
    }

    /// Takes what killed commands left out of the way; what is to be deleted. The
    /// caller has the lock of the list, without which nobody begins to make or to
    /// remove a VM.
    fn sweep(&self) -> Vec<PathBuf> {
        let mut buried = Vec::new();
        for entry in fs::read_dir(&self.list).into_iter().flatten().flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            let Some(name) = name.to_str() else { continue };
            if name.starts_with(REMOVING) {
                buried.push(path);
            } else if name.starts_with(MAKING)
                && lock::look(&path.join("lock")).is_ok_and(|(holder, _)| holder == Holder::Nobody)
                && let Ok(number) = random()
            {
                let grave = self.list.join(format!("{REMOVING}{name}-{number:08x}"));
                if fs::rename(&path, &grave).is_ok() {
                    buried.push(grave);
                }
            }
        }
        self.sweep_names();
        buried
    }

    /// Ids of all VMs.
    fn ids(&self) -> Result<Vec<String>> {
        let reading = |source: io::Error| failed("read", &self.list)(source);
        self.check_owner()?;
        let entries = match fs::read_dir(&self.list) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(reading(error)),
        };
        let mut ids = Vec::new();
        for entry in entries {
            let name = entry.map_err(reading)?.file_name();
            if let Some(name) = name.to_str().filter(|name| is_id(name)) {
                ids.push(name.to_owned());
            }
        }
        Ok(ids)
    }

    /// Makes the directories and takes the lock of the list.
    fn lock(&self) -> Result<ListLock> {
        for directory in [&self.list, &self.names] {
            let made = DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(directory);
            made.map_err(failed("make the directory", directory))?;
        }
        self.check_owner()?;
        ListLock::take(&self.list)
    }

    fn check_owner(&self) -> Result<()> {
        match fs::metadata(&self.list) {
            Ok(metadata) => own(&self.list, &metadata),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(failed("look at", &self.list)(error)),
        }
    }
}

/// `Ok` if that is of this user.
fn own(path: &Path, metadata: &fs::Metadata) -> Result<()> {
    let own = nix::unistd::geteuid().as_raw();
    match metadata.uid() {
        owner if owner == own => Ok(()),
        owner => Err(StateError::Owner {
            path: path.to_owned(),
            owner,
            own,
        }),
    }
}

/// Deletes directories that no list has any more. What cannot be deleted, the next
/// sweep finds.
fn discard(buried: &[PathBuf]) {
    for path in buried {
        let _ = fs::remove_dir_all(path);
    }
}

/// Somebody else has removed it.
fn gone(error: io::Error) -> io::Result<()> {
    match error.kind() {
        io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    }
}

fn random() -> Result<u32> {
    let mut bytes = [0; 4];
    let place = Path::new("random numbers");
    let got = getrandom(&mut bytes, GetRandomFlags::empty()).map_err(failed("get", place))?;
    match got == bytes.len() {
        true => Ok(u32::from_be_bytes(bytes)),
        false => Err(failed("get", place)(io::Error::from(
            io::ErrorKind::UnexpectedEof,
        ))),
    }
}
