//! A VM that is being made.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::api::ID_PREFIX;
use crate::state::error::{StateError, failed};
use crate::state::lock::LifeLock;
use crate::state::record::{self, Record, VERSION, check_name};
use crate::state::{MAKING, Result, Vm, Vms, random};

/// How long programs may take to end unless somebody says otherwise.
const GRACE: Duration = Duration::from_secs(10);

/// How often another id is tried when one is taken.
const ATTEMPTS: u32 = 16;

/// A VM that is in no list yet. Dropped, it is removed again.
#[derive(Debug)]
pub struct NewVm {
    vms: Vms,
    id: String,
    directory: PathBuf,
    /// While it is held, nobody takes this directory for one that was left.
    lock: Option<LifeLock>,
    published: bool,
}

impl NewVm {
    /// The caller has the lock of the list.
    pub(super) fn begin(vms: &Vms) -> Result<Self> {
        for _ in 0..ATTEMPTS {
            let id = format!("{ID_PREFIX}{:08x}", random()?);
            let directory = vms.list.join(format!("{MAKING}{id}"));
            if vms.directory(&id).exists() {
                continue;
            }
            match DirBuilder::new().mode(0o700).create(&directory) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(failed("make the directory", &directory)(error)),
            }
            let file = directory.join("lock");
            let lock = LifeLock::create(&file).map_err(|error| {
                let _ = fs::remove_dir_all(&directory);
                failed("make", &file)(error)
            })?;
            return Ok(Self {
                vms: vms.clone(),
                id,
                directory,
                lock: Some(lock),
                published: false,
            });
        }
        Err(failed("find an id for a VM in", &vms.list)(
            io::Error::from(io::ErrorKind::AlreadyExists),
        ))
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its directory for now, to put files in that it shall begin with.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Puts it in the list. Version, id and time of the record are set here.
    ///
    /// # Errors
    /// [`StateError::Name`], [`StateError::NameTaken`], or it cannot be written;
    /// nothing is left of it then.
    pub fn publish(mut self, mut record: Record) -> Result<Vm> {
        record.version = VERSION;
        record.id.clone_from(&self.id);
        record.created_at = std::time::SystemTime::now().into();
        if let Some(name) = &record.name {
            check_name(name)?;
        }
        record::write(&self.directory.join("vm.json"), &record)?;
        let list = self.vms.lock()?;
        // Now nobody sweeps, and under its own name it must not look as if it ran.
        self.lock = None;
        if let Some(name) = &record.name {
            self.vms.take_name(name, &self.id)?;
        }
        let place = self.vms.directory(&self.id);
        if let Err(error) = rename_new(&self.directory, &place) {
            if let Some(name) = &record.name {
                self.vms.drop_name(name);
            }
            return Err(failed("make", &place)(error));
        }
        self.published = true;
        record::sync_parent(&place).map_err(failed("write", &self.vms.list))?;
        drop(list);
        Vm::load(&self.id, place)
    }
}

impl Drop for NewVm {
    fn drop(&mut self) {
        if !self.published {
            // What cannot be removed, the next sweep finds.
            let _ = fs::remove_dir_all(&self.directory);
        }
    }
}

/// Renames a directory to where there is nothing.
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(()),
        // A file system that cannot: rename(2) replaces no directory with files in it.
        Err(rustix::io::Errno::INVAL) => fs::rename(from, to),
        Err(errno) => Err(errno.into()),
    }
}

impl Record {
    /// The record of a VM to be made from `launch`.
    #[must_use]
    pub fn new(launch: serde_json::Value) -> Self {
        Self {
            version: VERSION,
            id: String::new(),
            name: None,
            created_at: crate::api::Timestamp::default(),
            image: None,
            remove: false,
            publish: super::Publish::default(),
            grace_ms: None,
            programs: super::Programs::default(),
            launch,
        }
    }

    /// How long its programs may take to end unless whoever stops it says otherwise.
    #[must_use]
    pub fn grace(&self) -> Duration {
        self.grace_ms.map_or(GRACE, Duration::from_millis)
    }

    /// The record as one of this user's VMs.
    pub(crate) fn check(&self, id: &str, path: &Path) -> Result<()> {
        let why = match &self.name {
            _ if self.id != id => "it is that of another VM",
            Some(name) if check_name(name).is_err() => "its name cannot be one",
            _ => return Ok(()),
        };
        Err(StateError::Damaged {
            path: path.to_owned(),
            why: why.to_owned(),
        })
    }
}
