//! Names of VMs: symbolic links whose text is an id.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::state::error::{StateError, failed};
use crate::state::record::{self, Record, check_name, is_id};
use crate::state::{Result, Vms};

impl Vms {
    /// The id of the VM that has this name.
    pub(super) fn owner_of_name(&self, name: &str) -> Result<Option<String>> {
        if check_name(name).is_err() {
            return Ok(None);
        }
        let Some(id) = target(&self.names.join(name)) else {
            return Ok(None);
        };
        let path = self.directory(&id).join("vm.json");
        Ok(match record::read::<Record>(&path) {
            Ok(Some(record)) if record.name.as_deref() == Some(name) => Some(id),
            // Whoever removes a damaged VM may call it by its name.
            Err(StateError::Damaged { .. } | StateError::Newer { .. }) => Some(id),
            Err(error) => return Err(error),
            Ok(_) => None,
        })
    }

    /// `Ok` if a VM may get that name now.
    ///
    /// # Errors
    /// [`StateError::Name`], [`StateError::NameTaken`].
    pub fn check_free(&self, name: &str) -> Result<()> {
        check_name(name)?;
        self.check_owner()?;
        match self.owner_of_name(name)? {
            Some(id) => Err(StateError::NameTaken {
                name: name.to_owned(),
                id,
            }),
            None => Ok(()),
        }
    }

    /// Gives a name to a VM. The caller has the lock of the list, and says in the VM's
    /// record that it has the name: until then the link is stale.
    pub(super) fn take_name(&self, name: &str, id: &str) -> Result<()> {
        let path = self.names.join(name);
        let naming = |source: io::Error| failed("make", &path)(source);
        for _ in 0..2 {
            match symlink(id, &path) {
                Ok(()) => return record::sync_parent(&path).map_err(naming),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(naming(error)),
            }
            if let Some(owner) = self.owner_of_name(name)? {
                return Err(StateError::NameTaken {
                    name: name.to_owned(),
                    id: owner,
                });
            }
            fs::remove_file(&path).map_err(failed("remove", &path))?;
        }
        Err(naming(io::ErrorKind::AlreadyExists.into()))
    }

    /// Removes a name that no VM calls itself by any more. What stays is stale.
    pub(super) fn drop_name(&self, name: &str) {
        let _ = fs::remove_file(self.names.join(name));
    }

    /// Removes all names of a VM.
    pub(super) fn drop_names_of(&self, id: &str) {
        self.each_name(|path, owner| {
            if owner == Some(id) {
                let _ = fs::remove_file(path);
            }
        });
    }

    /// Removes names of VMs that there are not.
    pub(super) fn sweep_names(&self) {
        self.each_name(|path, owner| {
            let there = owner.is_some_and(|id| self.directory(id).is_dir());
            if !there {
                let _ = fs::remove_file(path);
            }
        });
    }

    fn each_name(&self, mut act: impl FnMut(&Path, Option<&str>)) {
        for entry in fs::read_dir(&self.names).into_iter().flatten().flatten() {
            let is_link = entry.file_type().is_ok_and(|kind| kind.is_symlink());
            if is_link {
                let path = entry.path();
                act(&path, target(&path).as_deref());
            }
        }
    }
}

fn target(path: &Path) -> Option<String> {
    let target = fs::read_link(path).ok()?;
    let id = target.to_str()?;
    is_id(id).then(|| id.to_owned())
}
