//! A VM as it is on disk.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use flashpan_protocol::supervisor::Activity;
use serde::Serialize;

use crate::state::error::{StateError, failed};
use crate::state::lock::{self, Holder};
use crate::state::record::{self, ExitRecord, Record, Run, Status};
use crate::state::{Result, own};

/// How often a VM is looked at again that is started or ends meanwhile.
const LOOKS: u32 = 100;

/// A VM as it was when it was looked at.
#[derive(Debug, Clone, Serialize)]
pub struct Vm {
    #[serde(flatten)]
    record: Record,
    status: Status,
    directory: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    run: Option<Run>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit: Option<ExitRecord>,
}

/// What a supervisor says that its VM does. One that has not said anything has just
/// begun.
pub(super) fn status_of(activity: Option<Activity>) -> Status {
    activity.map_or(Status::Starting, Status::of)
}

impl Vm {
    pub(super) fn load(id: &str, directory: PathBuf) -> Result<Self> {
        let unknown = || StateError::NotFound(id.to_owned());
        match fs::symlink_metadata(&directory) {
            Ok(metadata) if metadata.is_dir() => own(&directory, &metadata)?,
            Ok(_) => return Err(unknown()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(unknown()),
            Err(error) => return Err(failed("look at", &directory)(error)),
        }
        let path = directory.join("vm.json");
        let Some(record) = record::read::<Record>(&path)? else {
            return Err(match directory.is_dir() {
                true => StateError::Damaged {
                    path,
                    why: "it is missing".to_owned(),
                },
                false => unknown(),
            });
        };
        record.check(id, &path)?;
        let (status, run, exit) = look(&directory)?;
        Ok(Self {
            record,
            status,
            directory,
            run,
            exit,
        })
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.record.id
    }

    /// Its name, if it has one.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.record.name.as_deref()
    }

    /// What it is.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// What it did when it was looked at.
    #[must_use]
    pub fn status(&self) -> Status {
        self.status
    }

    /// When it was last started, if ever. Not known for a moment when it begins to start
    /// again: then this is `None` as well.
    #[must_use]
    pub fn run(&self) -> Option<&Run> {
        self.run.as_ref()
    }

    /// How its last run ended, if it has and that is known.
    #[must_use]
    pub fn exit(&self) -> Option<&ExitRecord> {
        self.exit.as_ref()
    }

    /// Where its files are.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Bytes that its directory takes on the host's disk.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn disk_bytes(&self) -> Result<u64> {
        let reading = |source: io::Error| failed("read", &self.directory)(source);
        let mut sum = 0_u64;
        for entry in fs::read_dir(&self.directory).map_err(reading)? {
            match entry.map_err(reading)?.metadata() {
                Ok(metadata) => sum = sum.saturating_add(metadata.blocks().saturating_mul(512)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(reading(error)),
            }
        }
        Ok(sum)
    }

    /// `Ok` if it runs, or at least boots.
    ///
    /// # Errors
    /// [`StateError::Status`].
    pub fn must_live(&self) -> Result<()> {
        let advice = match self.status {
            status if status.is_alive() => return Ok(()),
            _ => "start it with `flashpan start`",
        };
        Err(self.unsuitable(advice))
    }

    /// That it is in no state for something.
    pub(crate) fn unsuitable(&self, advice: &'static str) -> StateError {
        StateError::Status {
            id: self.id().to_owned(),
            status: self.status,
            advice,
        }
    }
}

fn look(directory: &Path) -> Result<(Status, Option<Run>, Option<ExitRecord>)> {
    look_between(directory, || {})
}

/// What a VM does. The order of the looks makes it true whatever a supervisor does
/// meanwhile: with the lock it says that a run begins, then writes `run.json`, and only
/// then says what the VM does; it writes `exit.json` before it lets go. `between` is
/// what happens after the first look.
pub(super) fn look_between(
    directory: &Path,
    between: impl FnOnce(),
) -> Result<(Status, Option<Run>, Option<ExitRecord>)> {
    let (run_file, file) = (directory.join("run.json"), directory.join("lock"));
    let mut before: Option<Run> = record::read(&run_file)?;
    between();
    for _ in 0..LOOKS {
        let (holder, activity) = lock::look(&file).map_err(failed("look at", &file))?;
        if holder == Holder::Supervisor {
            let run = match activity {
                // What was read before may be of the run before.
                Some(_) => record::read(&run_file)?,
                None => None,
            };
            return Ok((status_of(activity), run, None));
        }
        let exit: Option<ExitRecord> = record::read(&directory.join("exit.json"))?;
        let after: Option<Run> = record::read(&run_file)?;
        if before == after {
            let number = after.as_ref().map(|run| run.number);
            let exit = exit.filter(|exit| Some(exit.run) == number);
            let status = match (&after, &exit) {
                (None, _) => Status::Created,
                (Some(_), Some(_)) => Status::Stopped,
                (Some(_), None) => Status::Crashed,
            };
            return Ok((status, after, exit));
        }
        before = after;
    }
    Ok((Status::Starting, None, None))
}

/// How the last run in a directory ended, if that is written down.
pub(crate) fn last_exit(directory: &Path) -> Result<Option<ExitRecord>> {
    let run: Option<Run> = record::read(&directory.join("run.json"))?;
    let exit: Option<ExitRecord> = record::read(&directory.join("exit.json"))?;
    Ok(exit.filter(|exit| run.is_some_and(|run| run.number == exit.run)))
}
