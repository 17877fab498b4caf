//! A VM in the hands of its supervisor.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use flashpan_protocol::supervisor::{Activity, MAX_DOCUMENT};
use nix::fcntl::posix_fallocate;

use crate::attach::{SOCKET, open_directory, through};
use crate::forward::ForwardBinding;
use crate::state::error::failed;
use crate::state::lock::{LifeLock, Mark};
use crate::state::record::{self, CommandEnd, ExitRecord, Record, Run, VERSION};
use crate::state::{Result, Vm, Vms, gone};

/// What only a supervisor may do with a VM. Dropped without [`Claim::end`], the VM
/// has crashed.
#[derive(Debug)]
pub(crate) struct Claim {
    vms: Vms,
    vm: Vm,
    run: Mutex<Run>,
    /// `None` once it was let go.
    life: Mutex<Option<LifeLock>>,
    /// Room for the last document, on a disk that may be full when it is written.
    room: Option<File>,
    /// Who it is that runs the VM, for as long as it does.
    mark: Mutex<Option<Mark>>,
}

impl Vms {
    /// Takes the life of a VM in hand, whose command somebody else runs if it is
    /// `attended`, and listens on its socket: whoever sees that the VM has a supervisor
    /// can speak to it.
    ///
    /// # Errors
    /// [`crate::state::StateError::Status`] if it runs.
    pub(crate) fn claim(&self, id: &str, attended: bool) -> Result<(Claim, UnixListener)> {
        let lock = self.lock()?;
        let vm = self.load(id)?;
        let file = vm.directory().join("lock");
        let mut listener = None;
        let life = LifeLock::take(&file, || {
            listener = Some(listen(vm.directory())?);
            Ok(())
        })
        .map_err(failed("lock", &file))?;
        let (Some(life), Some(listener)) = (life, listener) else {
            // Looked at again: it may have been started since.
            return Err(self.load(id)?.unsuitable("it has been started already"));
        };
        drop(lock);
        let directory = vm.directory().to_owned();
        // Without it the VM runs as well; one that hangs is then harder to end.
        let mark = Mark::leave(&directory).ok();
        let run_file = directory.join("run.json");
        // Nobody else writes it any more.
        let last: Option<Run> = record::read(&run_file)?;
        let number = last.map_or(0, |run| run.number).saturating_add(1);
        let run = Run {
            version: VERSION,
            number,
            started_at: std::time::SystemTime::now().into(),
            attended,
            command: None,
            ports: Vec::new(),
        };
        let room = keep_room(&room_file(&directory)).ok();
        record::write(&run_file, &run)?;
        let exit = directory.join("exit.json");
        fs::remove_file(&exit)
            .or_else(gone)
            .map_err(failed("remove", &exit))?;
        // Now what is there is of this run.
        life.say(Activity::Starting)
            .map_err(failed("write", &file))?;
        let claim = Claim {
            vms: self.clone(),
            vm,
            run: Mutex::new(run),
            life: Mutex::new(Some(life)),
            room,
            mark: Mutex::new(mark),
        };
        Ok((claim, listener))
    }
}

/// Listens in a VM's directory, where only its supervisor does. The caller has the lock
/// of the list, and no supervisor has the VM's life.
fn listen(directory: &Path) -> io::Result<UnixListener> {
    fs::remove_file(directory.join(SOCKET)).or_else(gone)?;
    let listener = UnixListener::bind(through(&open_directory(directory)?))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

impl Claim {
    pub(crate) fn record(&self) -> &Record {
        self.vm.record()
    }

    pub(crate) fn directory(&self) -> &Path {
        self.vm.directory()
    }

    pub(crate) fn run(&self) -> u64 {
        self.last_run().number
    }

    fn last_run(&self) -> MutexGuard<'_, Run> {
        self.run.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes down where ports of the guest are reachable.
    pub(crate) fn published(&self, ports: &[ForwardBinding]) -> Result<()> {
        let mut run = self.last_run();
        run.ports = ports.to_vec();
        record::write(&self.directory().join("run.json"), &*run)
    }

    /// Writes down how the VM's command ended.
    pub(crate) fn command_ended(&self, command: CommandEnd) -> Result<()> {
        let mut run = self.last_run();
        run.command = Some(command);
        record::write(&self.directory().join("run.json"), &*run)
    }

    /// Says what the VM does, to who lists VMs, until its life was let go of: what is
    /// being written then is waited for. Blocks as long as the disk does.
    pub(crate) fn say(&self, activity: Activity) {
        if let Some(life) = &*self.life.lock().unwrap_or_else(PoisonError::into_inner) {
            // One byte in place: it fails only with the disk itself.
            let _ = life.say(activity);
        }
    }

    /// The VM has ended so, and is as if it had never been touched, or gone. After
    /// this it may be started again.
    pub(crate) fn end(&self, exit: &ExitRecord, remove: bool) -> Result<()> {
        let ended = match remove {
            true => self.remove(),
            false => self.write_exit(exit),
        };
        if !remove {
            let _ = fs::remove_file(self.directory().join(SOCKET));
        }
        // Whoever takes the VM in hand next has the life first, and then finds no mark.
        drop(
            self.mark
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take(),
        );
        let life = self
            .life
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(life) = life {
            // Closing the file does the same, unless somebody has a copy.
            let _ = life.release();
        }
        ended
    }

    fn remove(&self) -> Result<()> {
        let lock = self.vms.lock()?;
        let buried = self.vms.bury(self.vm.id())?;
        drop(lock);
        fs::remove_dir_all(&buried)
            .or_else(gone)
            .map_err(failed("remove", &buried))
    }

    fn write_exit(&self, exit: &ExitRecord) -> Result<()> {
        let (room, path) = (
            room_file(self.directory()),
            self.directory().join("exit.json"),
        );
        let document = exit.document();
        let written = self.room.as_ref().map(|file| {
            let length = u64::try_from(document.len()).unwrap_or(u64::MAX);
            file.write_all_at(document.as_bytes(), 0)?;
            file.set_len(length)?;
            file.sync_all()?;
            fs::rename(&room, &path)?;
            record::sync_parent(&path)
        });
        match written {
            Some(Ok(())) => Ok(()),
            Some(Err(_)) | None => record::write(&path, exit),
        }
    }
}

fn room_file(directory: &Path) -> PathBuf {
    directory.join("exit.json.new")
}

/// A file with as much room as a document of an end takes.
fn keep_room(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    let length = i64::try_from(MAX_DOCUMENT).unwrap_or(0);
    posix_fallocate(&file, 0, length)?;
    Ok(file)
}
