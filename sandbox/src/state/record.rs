//! What is on disk of a VM, as JSON documents that are written by rename.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use flashpan_protocol::agent::ExitStatus;
use flashpan_protocol::supervisor::{Activity, MAX_DOCUMENT};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::api::Timestamp;
use crate::exit::{Exit, ExitReason};
use crate::forward::{BoundPorts, ForwardBinding, ForwardOptions};
use crate::forward_spec::Forward;
use crate::state::error::{StateError, failed};
use crate::state::programs::Programs;
use crate::text::one_line;

/// Version of the documents; it grows when a field changes its meaning.
pub(crate) const VERSION: u32 = 1;

/// Longest document that is read.
const DOCUMENT_MAX: u64 = 16 << 20;

/// Longest name of a VM.
pub const NAME_MAX: usize = 128;

/// Digits of an id after its prefix.
const ID_DIGITS: usize = 8;

/// Longest message of an end, in characters.
const MESSAGE_MAX: usize = 400;

/// What a VM does, or is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Status {
    /// It was made and never started.
    Created,
    /// It boots.
    Starting,
    /// It runs.
    Running,
    /// It runs and stands still.
    Paused,
    /// It shuts down.
    Stopping,
    /// It has ended, and how is known.
    Stopped,
    /// Its supervisor ended without a word, and the VM with it.
    Crashed,
}

impl Status {
    pub(crate) fn of(activity: Activity) -> Self {
        match activity {
            Activity::Starting => Self::Starting,
            Activity::Running => Self::Running,
            Activity::Paused => Self::Paused,
            Activity::Stopping => Self::Stopping,
        }
    }

    /// Whether there is a supervisor.
    #[must_use]
    pub fn is_alive(self) -> bool {
        matches!(
            self,
            Self::Starting | Self::Running | Self::Paused | Self::Stopping
        )
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Created => "created",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Crashed => "crashed",
        })
    }
}

/// `vm.json`: what a VM is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Version of this form.
    pub version: u32,
    /// The VM's id.
    pub id: String,
    /// Its name, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// The container image that its root is of, as its maker wrote it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Whether it is removed when it ends, and ends with its command.
    #[serde(default)]
    pub remove: bool,
    /// Ports of the guest that are reachable while it runs.
    #[serde(default, skip_serializing_if = "Publish::is_empty")]
    pub publish: Publish,
    /// How long its programs may take to end when it is stopped, in milliseconds,
    /// unless whoever stops it says otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_ms: Option<u64>,
    /// Its command and what its programs have in common.
    #[serde(default)]
    pub programs: Programs,
    /// What it is made from, as whoever launches it wrote it. Never a secret.
    #[serde(default)]
    pub launch: serde_json::Value,
}

/// Ports of a guest that are reachable from its host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Publish {
    /// Which.
    pub ports: Vec<Forward>,
    /// On which addresses of the host, but for those that have their own; 127.0.0.1 if
    /// there are none.
    pub addresses: Vec<IpAddr>,
}

impl Publish {
    /// Holds them, before there is a VM:
    /// [`Sandbox::forward_bound`](crate::Sandbox::forward_bound) makes them lead into
    /// one.
    ///
    /// # Errors
    /// As [`BoundPorts::bind`].
    pub fn bind(&self) -> crate::error::Result<BoundPorts> {
        BoundPorts::bind(&self.ports, self.options())
    }

    /// Whether they can be held at all, whoever has ports of the host now.
    ///
    /// # Errors
    /// As [`BoundPorts::check`].
    pub fn check(&self) -> crate::error::Result<()> {
        BoundPorts::check(&self.ports, &self.options())
    }

    fn options(&self) -> ForwardOptions {
        let listen = self.addresses.iter();
        listen.fold(ForwardOptions::new(), |all, address| all.address(*address))
    }

    /// Whether no port is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ports.is_empty()
    }
}

/// `run.json`: the last time a VM was started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Version of this form.
    pub version: u32,
    /// Which time it is, from 1 on.
    pub number: u64,
    /// When.
    pub started_at: Timestamp,
    /// Whether somebody else runs the VM's command, whose end is then not known here.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub attended: bool,
    /// How the VM's command ended, which the VM outlives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<CommandEnd>,
    /// Where ports of the guest are reachable, with the real ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<ForwardBinding>,
}

/// `exit.json`: how a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// Version of this form.
    pub version: u32,
    /// The [`Run::number`] that ended.
    pub run: u64,
    /// When.
    pub ended_at: Timestamp,
    /// Why; absent if the VM did not come up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<ExitReason>,
    /// The same, or why it did not come up, on one line.
    pub message: String,
    /// Whether its disks were written and unmounted.
    pub orderly: bool,
    /// Whether its time was up.
    #[serde(default)]
    pub timed_out: bool,
    /// How its command ended, if it has one that did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<CommandEnd>,
}

/// How the command of a VM ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandEnd {
    /// Its status as a shell has it.
    pub code: u8,
    /// The signal that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
}

impl From<ExitStatus> for CommandEnd {
    fn from(status: ExitStatus) -> Self {
        Self {
            code: status.shell_code(),
            signal: match status {
                ExitStatus::Signal(signal) => Some(signal),
                ExitStatus::Code(_) => None,
            },
        }
    }
}

impl ExitRecord {
    pub(crate) fn new(run: u64, ended: Result<&Exit, &str>, command: Option<CommandEnd>) -> Self {
        let reason = ended.ok().map(|exit| exit.reason.clone());
        let message = match ended {
            Ok(exit) => exit.reason.to_string(),
            Err(why) => why.to_owned(),
        };
        Self {
            version: VERSION,
            run,
            ended_at: std::time::SystemTime::now().into(),
            orderly: reason.as_ref().is_some_and(ExitReason::is_orderly),
            timed_out: matches!(reason, Some(ExitReason::TimedOut { .. })),
            reason,
            message: one_line(&message, MESSAGE_MAX),
            command,
        }
    }

    /// The document; never longer than what is kept free for it.
    pub(crate) fn document(&self) -> String {
        let whole = serde_json::to_string(self).unwrap_or_default();
        if !whole.is_empty() && whole.len() <= MAX_DOCUMENT {
            return whole;
        }
        // The message says the same in few words.
        let short = Self {
            reason: None,
            ..self.clone()
        };
        serde_json::to_string(&short).unwrap_or_default()
    }
}

/// Is it the id of a VM?
pub(crate) fn is_id(text: &str) -> bool {
    text.strip_prefix(crate::api::ID_PREFIX)
        .is_some_and(|digits| digits.len() == ID_DIGITS && is_hex(digits))
}

pub(crate) fn is_hex(text: &str) -> bool {
    let digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    !text.is_empty() && text.bytes().all(digit)
}

/// Checks a name. What looks like an id, or the start of one, could not be told from
/// it.
pub(crate) fn check_name(name: &str) -> Result<(), StateError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    let first = name.bytes().next();
    let id_like = name
        .strip_prefix(crate::api::ID_PREFIX)
        .is_some_and(|rest| rest.is_empty() || is_hex(rest));
    let good = name.len() <= NAME_MAX
        && name.bytes().all(allowed)
        && first.is_some_and(|byte| byte.is_ascii_alphanumeric())
        && !id_like;
    match good {
        true => Ok(()),
        false => Err(StateError::Name(name.chars().take(NAME_MAX + 1).collect())),
    }
}

/// Reads a document; `None` if there is none.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, StateError> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let damaged = |why: String| StateError::Damaged {
        path: path.to_owned(),
        why: one_line(&why, MESSAGE_MAX),
    };
    match fs::metadata(path) {
        Ok(metadata) if metadata.len() > DOCUMENT_MAX => {
            return Err(damaged(format!("it has {} bytes", metadata.len())));
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("read", path)(error)),
    }
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("read", path)(error)),
    };
    let Versioned { version } =
        serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
    if version > VERSION {
        return Err(StateError::Newer {
            path: path.to_owned(),
            found: version,
            known: VERSION,
        });
    }
    let document = serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
    Ok(Some(document))
}

/// Writes a document in one step: it is as it was, or as it is to be, whenever this
/// process is killed.
pub(crate) fn write<T: Serialize>(path: &Path, document: &T) -> Result<(), StateError> {
    let writing = |source| failed("write", path)(source);
    let mut text =
        serde_json::to_vec_pretty(document).map_err(|error| writing(io::Error::other(error)))?;
    text.push(b'\n');
    let new = path.with_extension("json.new");
    let written = (|| {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&new, path)
    })();
    if let Err(error) = written {
        let _ = fs::remove_file(&new);
        return Err(writing(error));
    }
    sync_parent(path).map_err(writing)
}

/// Makes the names in the directory of `path` as lasting as the files.
pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_from_ids() {
        for good in [
            "web", "a", "0-A_b.c", "vm", "vm-x", "vm_1", "deadbeef", "vm-web-1",
        ] {
            check_name(good).unwrap();
        }
        let long = "x".repeat(NAME_MAX + 1);
        for bad in [
            "",
            ".",
            "..",
            "-a",
            ".a",
            "a/b",
            "a b",
            "a\0",
            "ä",
            "vm-",
            "vm-1",
            "vm-0123abcd",
            &long,
        ] {
            assert!(matches!(check_name(bad), Err(StateError::Name(_))), "{bad}");
        }
        assert!(is_id("vm-0123abcd"));
        for no in ["vm-0123abc", "vm-0123ABCD", "0123abcd", "vm-0123abcde"] {
            assert!(!is_id(no), "{no}");
        }
    }

    #[test]
    fn an_end_always_fits_the_room_that_is_kept_for_it() {
        let exit = Exit {
            reason: ExitReason::VmmDied {
                status: "\u{1F4A5}".repeat(300),
                stderr: Some("\u{1}".repeat(3000)),
            },
            console: Vec::new(),
            stats: None,
        };
        let record = ExitRecord::new(1, Ok(&exit), None);
        assert!(record.document().len() <= MAX_DOCUMENT);
        let exit = Exit {
            reason: ExitReason::PowerOff,
            ..exit
        };
        let command = Some(CommandEnd::from(ExitStatus::Signal(9)));
        let record = ExitRecord::new(1, Ok(&exit), command);
        let again: ExitRecord = serde_json::from_str(&record.document()).unwrap();
        assert_eq!(again, record);
        assert!(again.orderly);
    }

    #[test]
    fn a_document_of_a_newer_version_or_none_is_said_to_be_that() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run.json");
        assert_eq!(read::<Run>(&path).unwrap(), None);
        fs::write(&path, r#"{"version": 7, "number": "no number"}"#).unwrap();
        let newer = read::<Run>(&path).unwrap_err();
        assert!(
            matches!(newer, StateError::Newer { found: 7, .. }),
            "{newer}"
        );
        for text in ["", "{", "[]", r#"{"version":1}"#] {
            fs::write(&path, text).unwrap();
            let damaged = read::<Run>(&path).unwrap_err();
            assert!(matches!(damaged, StateError::Damaged { .. }), "{damaged}");
        }
    }
}
