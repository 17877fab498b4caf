//! Secrets whose values come from files and commands: how they are read, and read again
//! while the VM runs.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use flashpan_network::edit::Secrets;
use rustix::fs::inotify::WatchFlags;
use tokio::sync::oneshot;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};
use zeroize::Zeroizing;

use crate::api::SecretValue;
use crate::launch::SecretSource;
use crate::shared::Shared;
use crate::state::Watches;

/// The longest value, in bytes.
const MAX_VALUE: u64 = 64 * 1024;

/// How long a file or command may take when it is read again.
const READ_WITHIN: Duration = Duration::from_secs(30);

impl SecretSource {
    /// The value, as it is there now. It takes as long as the file or command takes.
    ///
    /// # Errors
    /// It cannot be read, is empty, is longer than 64 KiB or is not UTF-8.
    pub fn read(&self) -> io::Result<SecretValue> {
        match self {
            Self::Env(variable) => match std::env::var(variable) {
                Ok(value) if !value.is_empty() => Ok(SecretValue::new(value)),
                Ok(_) | Err(std::env::VarError::NotPresent) => Err(io::Error::other(format!(
                    "environment variable ${variable} is not set"
                ))),
                Err(_) => Err(io::Error::other(format!(
                    "environment variable ${variable} does not hold UTF-8"
                ))),
            },
            Self::File(path) => Self::read_from(File::open(path)?),
            Self::Command(command) => of_command(command),
        }
    }

    /// All that can be read, without the line break at its end.
    ///
    /// # Errors
    /// As of [`Self::read`].
    pub fn read_from(from: impl Read) -> io::Result<SecretValue> {
        let mut text = String::new();
        from.take(MAX_VALUE + 1).read_to_string(&mut text)?;
        if text.ends_with('\n') {
            text.pop();
        }
        if text.ends_with('\r') {
            text.pop();
        }
        let value = SecretValue::new(text);
        match u64::try_from(value.expose().len()) {
            Ok(0) => Err(io::Error::other("there is nothing")),
            Ok(len) if len <= MAX_VALUE => Ok(value),
            _ => Err(io::Error::other("it is longer than 64 KiB")),
        }
    }
}

fn of_command(command: &str) -> io::Result<SecretValue> {
    let mut child = Command::new("/bin/sh")
        .args(["-c", command])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let output = child.stdout.take();
    let value = output.map_or_else(
        || Err(io::ErrorKind::BrokenPipe.into()),
        SecretSource::read_from,
    );
    let status = child.wait()?;
    match status.success() {
        true => value,
        false => Err(io::Error::other(format!("it ended with {status}"))),
    }
}

/// What is read again.
#[derive(Debug, Clone, Default)]
pub(crate) struct Refresh {
    /// By the names of the secrets. Files are read again when they change.
    pub(crate) sources: BTreeMap<String, SecretSource>,
    /// How often commands are run again; never if it is not there.
    pub(crate) every: Option<Duration>,
}

/// Keeps values as their sources have them, until it is dropped.
pub(crate) async fn refresh(of: Refresh, secrets: Arc<Secrets>, shared: Weak<Shared>) {
    let (mut files, mut commands) = (Vec::new(), Vec::new());
    for (name, source) in of.sources {
        let kept = match &source {
            SecretSource::File(path) if path.is_file() => &mut files,
            SecretSource::Command(_) => &mut commands,
            _ => continue,
        };
        kept.push(Kept {
            name,
            source,
            last: None,
            secrets: Arc::clone(&secrets),
            shared: Weak::clone(&shared),
        });
    }
    tokio::join!(follow(files), repeat(commands, of.every));
}

/// A value that is kept as its source has it.
struct Kept {
    name: String,
    source: SecretSource,
    /// What the source had when it was last read.
    last: Option<SecretValue>,
    secrets: Arc<Secrets>,
    shared: Weak<Shared>,
}

impl Kept {
    /// Reads it on a thread of its own: one that waits for ever is left behind, and holds up
    /// no other.
    async fn read(&self) -> io::Result<SecretValue> {
        if let SecretSource::File(path) = &self.source
            && !std::fs::metadata(path)?.is_file()
        {
            // A pipe may never have anything to say.
            return Err(io::Error::other("it is no regular file any more"));
        }
        let (done, read) = oneshot::channel();
        let source = self.source.clone();
        let named = thread::Builder::new().name("secret".to_owned());
        named.spawn(move || drop(done.send(source.read())))?;
        let Ok(read) = timeout(READ_WITHIN, read).await else {
            return Err(io::ErrorKind::TimedOut.into());
        };
        read.unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()))
    }

    /// What it has before anything changes. The value that the VM has may be another: one
    /// that was given at its start.
    async fn begin(&mut self) {
        self.last = self.read().await.ok();
    }

    async fn again(&mut self) {
        match self.read().await {
            Ok(value) if self.last.as_ref() == Some(&value) => {}
            Ok(value) => {
                let text = Zeroizing::new(value.expose().to_owned());
                self.last = Some(value);
                if let Err(error) = self.secrets.refresh(&self.name, text) {
                    self.warn(&error.to_string());
                }
            }
            // It is about to be replaced.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => self.warn(&error.to_string()),
        }
    }

    fn warn(&self, why: &str) {
        if let Some(shared) = self.shared.upgrade() {
            let name = &self.name;
            shared.warn(format!("the secret {name} keeps its value: {why}"));
        }
    }
}

/// Reads files again when they have been written or replaced.
async fn follow(mut files: Vec<Kept>) {
    if files.is_empty() {
        return;
    }
    let watched = watch(&files);
    for file in &mut files {
        file.begin().await;
    }
    let mut watches = match watched {
        Ok(watches) => watches,
        Err(error) => {
            let cannot = |file: &Kept| file.warn(&format!("its file cannot be watched: {error}"));
            return files.iter().for_each(cannot);
        }
    };
    while watches.changed().await.is_ok() {
        for file in &mut files {
            file.again().await;
        }
    }
}

/// The directories of these files, and of what they are links to: whoever replaces a file
/// puts another in its place, or another link.
fn watch(files: &[Kept]) -> io::Result<Watches> {
    let mut watches = Watches::new()?;
    for file in files {
        let SecretSource::File(path) = &file.source else {
            continue;
        };
        let real = path.canonicalize().unwrap_or_else(|_| path.clone());
        for path in [path, &real] {
            watches.add(
                &directory(path),
                WatchFlags::CLOSE_WRITE | WatchFlags::MOVED_TO,
            )?;
        }
    }
    Ok(watches)
}

fn directory(path: &Path) -> PathBuf {
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    parent.map_or_else(|| PathBuf::from("."), Path::to_owned)
}

/// Runs commands again every now and then, one after the other.
async fn repeat(mut commands: Vec<Kept>, every: Option<Duration>) {
    let Some(every) = every.filter(|every| !every.is_zero() && !commands.is_empty()) else {
        return;
    };
    let Some(first) = Instant::now().checked_add(every) else {
        return;
    };
    let mut ticks = interval_at(first, every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        for command in &mut commands {
            command.again().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use flashpan_network::edit::Secret;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn secrets() -> Arc<Secrets> {
        let value = Zeroizing::new("first".to_owned());
        let hosts = vec!["a.test".parse().unwrap()];
        Arc::new(Secrets::new(vec![Secret::new("K", value, "PLACEHOLDER_K", hosts)]).unwrap())
    }

    /// Waits until the secret has this value.
    async fn until(secrets: &Secrets, value: &str) {
        let wait = async {
            while !secrets.has("K", value) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.expect(value);
    }

    fn kept(source: SecretSource, secrets: &Arc<Secrets>, shared: &Arc<Shared>) -> Kept {
        Kept {
            name: "K".to_owned(),
            source,
            last: None,
            secrets: Arc::clone(secrets),
            shared: Arc::downgrade(shared),
        }
    }

    #[tokio::test]
    async fn a_file_that_changes_changes_the_value() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("k");
        std::fs::write(&path, "first\n").unwrap();
        let (secrets, shared) = (secrets(), Arc::default());
        let source = SecretSource::File(path.clone());
        let mut file = kept(source, &secrets, &shared);
        file.begin().await;
        let mut watches = watch(std::slice::from_ref(&file)).unwrap();
        // Written in place, and replaced as editors do it.
        std::fs::write(&path, "second\n").unwrap();
        watches.changed().await.unwrap();
        file.again().await;
        until(&secrets, "second").await;
        let other = directory.path().join("other");
        std::fs::write(&other, "third").unwrap();
        std::fs::rename(&other, &path).unwrap();
        let replaced = async {
            loop {
                watches.changed().await.unwrap();
                file.again().await;
                if secrets.has("K", "third") {
                    return;
                }
            }
        };
        tokio::time::timeout(PATIENCE, replaced).await.unwrap();
        // What is no value changes nothing, and is told.
        std::fs::write(&path, "").unwrap();
        file.again().await;
        assert!(secrets.has("K", "third"));
        std::fs::write(&path, "a\nb\n").unwrap();
        file.again().await;
        assert!(secrets.has("K", "third"));
        let warnings = shared.take_warnings();
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        assert!(
            warnings
                .iter()
                .all(|text| text.contains("the secret K keeps its value"))
        );
        // What was revoked stays so.
        secrets.revoke("K").unwrap();
        std::fs::write(&path, "fourth").unwrap();
        file.again().await;
        assert!(!secrets.has("K", "fourth"));
        // A file that is gone is one that is about to be there.
        std::fs::remove_file(&path).unwrap();
        file.again().await;
        assert!(shared.take_warnings().is_empty());
    }

    #[tokio::test]
    async fn a_pipe_in_the_place_of_a_file_holds_nobody_up() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("k");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let (secrets, shared) = (secrets(), Arc::default());
        let mut file = kept(SecretSource::File(path), &secrets, &shared);
        tokio::time::timeout(PATIENCE, file.again()).await.unwrap();
        assert!(secrets.has("K", "first"));
        let warnings = shared.take_warnings();
        assert!(warnings[0].contains("no regular file"), "{warnings:?}");
    }

    #[tokio::test]
    async fn a_value_that_was_given_stays_until_the_source_changes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("k");
        std::fs::write(&path, "of the file").unwrap();
        let (secrets, shared) = (secrets(), Arc::default());
        let mut file = kept(SecretSource::File(path), &secrets, &shared);
        file.begin().await;
        file.again().await;
        assert!(secrets.has("K", "first"));
    }

    #[tokio::test]
    async fn commands_are_run_again_if_that_is_said() {
        let (secrets, shared) = (secrets(), Arc::<Shared>::default());
        let command = SecretSource::Command("printf again".to_owned());
        let of = Refresh {
            sources: BTreeMap::from([("K".to_owned(), command)]),
            every: Some(Duration::from_millis(1)),
        };
        let task = refresh(of.clone(), Arc::clone(&secrets), Arc::downgrade(&shared));
        let task = tokio::spawn(task);
        until(&secrets, "again").await;
        task.abort();
        // Never otherwise: there is nothing to wait for.
        let of = Refresh { every: None, ..of };
        let done = refresh(of, secrets, Weak::new());
        tokio::time::timeout(PATIENCE, done).await.unwrap();
    }
}
