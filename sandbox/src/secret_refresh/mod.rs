//! Secrets whose values come from files and commands: how they are read, and read again
//! while the VM runs.
//!
//! * `source` – one value, read;
//! * `route` – what leads to a file;
//! * `told` – what is told of it.

mod route;
mod source;
mod told;

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use flashpan_network::edit::Secrets;
use tokio::sync::oneshot;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until, timeout};
use zeroize::Zeroizing;

use self::route::{Fate, Route};
use self::told::{Pace, Told};
use crate::api::SecretValue;
use crate::launch::SecretSource;
use crate::secret_event::{SecretActivity, SecretState};
use crate::shared::Shared;
use crate::state::{Changes, Watches};

/// How long a file or command may take when it is read again.
const READ_WITHIN: Duration = Duration::from_secs(30);

/// Where nothing tells of changes, but for what is in memory.
const NOT_WATCHED: [&str; 3] = ["/dev", "/proc", "/sys"];
const WATCHED: &str = "/dev/shm";

/// What is read again.
#[derive(Debug, Clone, Default)]
pub(crate) struct Refresh {
    /// By the names of the secrets. Files are read again when they change.
    pub(crate) sources: BTreeMap<String, SecretSource>,
    /// Names of secrets whose values were given otherwise: they stay until the source
    /// changes.
    pub(crate) given: BTreeSet<String>,
    /// How often commands are run again; never if it is not there.
    pub(crate) every: Option<Duration>,
}

/// Keeps values as their sources have them, until it is dropped.
pub(crate) async fn refresh(of: Refresh, secrets: Arc<Secrets>, shared: Weak<Shared>) {
    refresh_at(Pace::default(), of, secrets, shared).await;
}

async fn refresh_at(pace: Pace, of: Refresh, secrets: Arc<Secrets>, shared: Weak<Shared>) {
    let (mut files, mut commands) = (Vec::new(), Vec::new());
    for (name, source) in of.sources {
        let mut kept = Kept {
            is_given: of.given.contains(&name),
            name,
            source,
            last: None,
            reading: None,
            told: Told::default(),
            secrets: Arc::clone(&secrets),
            shared: Weak::clone(&shared),
        };
        match &kept.source {
            SecretSource::File(path) => {
                if let Some(path) = followed(path) {
                    kept.source = SecretSource::File(path);
                    files.push((kept, Route::default()));
                }
            }
            SecretSource::Command(_) => commands.push(kept),
            SecretSource::Env(_) => {}
        }
    }
    tokio::join!(follow(files, pace), repeat(commands, of.every, pace));
}

/// The path of a file that can be followed: one that is not there may be at any time, but
/// a pipe has its value once.
fn followed(path: &Path) -> Option<PathBuf> {
    let path = std::path::absolute(path).ok()?;
    let is_other = std::fs::metadata(&path).is_ok_and(|of| !of.is_file());
    let is_silent = !path.starts_with(WATCHED) && NOT_WATCHED.iter().any(|of| path.starts_with(of));
    (!is_other && !is_silent).then_some(path)
}

/// A value that is kept as its source has it.
struct Kept {
    name: String,
    source: SecretSource,
    /// Whether the value that the VM has is not the source's, until that changes.
    is_given: bool,
    /// What the source had when it was last read.
    last: Option<SecretValue>,
    /// One that was read for too long, and is still.
    reading: Option<oneshot::Receiver<io::Result<SecretValue>>>,
    told: Told,
    secrets: Arc<Secrets>,
    shared: Weak<Shared>,
}

impl Kept {
    /// Reads it on a thread of its own: one that waits for ever is left behind, and holds up
    /// no other. There is no more than one.
    async fn read(&mut self) -> io::Result<SecretValue> {
        if let SecretSource::File(path) = &self.source
            && !std::fs::metadata(path)?.is_file()
        {
            // A pipe may never have anything to say.
            return Err(io::Error::other("it is no regular file any more"));
        }
        if let Some(before) = &mut self.reading {
            // What it has read may be of long ago.
            match timeout(READ_WITHIN, before).await {
                Ok(_) => self.reading = None,
                Err(_) => return Err(io::ErrorKind::TimedOut.into()),
            }
        }
        let (done, mut read) = oneshot::channel();
        let source = self.source.clone();
        let named = thread::Builder::new().name("secret".to_owned());
        named.spawn(move || drop(done.send(source.read())))?;
        match timeout(READ_WITHIN, &mut read).await {
            Ok(read) => read.unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into())),
            Err(_) => {
                self.reading = Some(read);
                Err(io::ErrorKind::TimedOut.into())
            }
        }
    }

    /// Reads it, and gives the secret its value if that is another than before.
    async fn again(&mut self) {
        match self.read().await {
            Ok(value) if self.is_given => {
                self.is_given = false;
                self.last = Some(value);
                self.told.right();
            }
            Ok(value) if self.last.as_ref() == Some(&value) => self.told.right(),
            Ok(value) if self.secrets.has(&self.name, value.expose()) => {
                self.last = Some(value);
                self.told.right();
            }
            Ok(value) => {
                let text = Zeroizing::new(value.expose().to_owned());
                match self.secrets.refresh(&self.name, text) {
                    Ok(is_another) => {
                        self.last = Some(value);
                        match is_another {
                            true => self.told.refreshed(),
                            false => self.told.right(),
                        }
                    }
                    Err(error) => self.told.wrong(error.to_string()),
                }
            }
            Err(error) => self.wrong(&error.to_string()),
        }
    }

    /// Something is wrong with the source.
    fn wrong(&mut self, why: &str) {
        self.told.wrong(match &self.source {
            SecretSource::File(path) => format!("{}: {why}", path.display()),
            // It may have secrets in it.
            _ => format!("its command: {why}"),
        });
    }

    /// Tells of it what is to be told now.
    fn tell(&mut self, pace: &Pace) {
        let Some((state, why)) = self.told.take(pace) else {
            return;
        };
        if let Some(shared) = self.shared.upgrade() {
            let secret = self.name.clone();
            if let (SecretState::Kept, Some(why)) = (state, &why) {
                shared.warn(format!("the secret {secret} keeps its value: {why}"));
            }
            let told = SecretActivity { secret, state, why };
            shared.events.secret(told);
        }
    }
}

/// Waits until something is to be told of these.
async fn due(all: impl Iterator<Item = &Kept>, pace: &Pace) {
    at(all.filter_map(|kept| kept.told.due(pace)).min()).await;
}

/// Reads files again when they have been written or replaced.
async fn follow(mut files: Vec<(Kept, Route)>, pace: Pace) {
    if files.is_empty() {
        return;
    }
    loop {
        let Err(error) = watch(&mut files, &pace).await;
        for (file, route) in &mut files {
            *route = Route::default();
            file.wrong(&format!("it cannot be watched: {error}"));
        }
        let Some(again) = Instant::now().checked_add(pace.retry) else {
            return;
        };
        // What is wrong is told meanwhile.
        while Instant::now() < again {
            tokio::select! {
                () = due(files.iter().map(|(file, _)| file), &pace) => {}
                () = sleep_until(again) => {}
            }
            files.iter_mut().for_each(|(file, _)| file.tell(&pace));
        }
    }
}

/// [`follow`] as long as files can be watched. Why not any more.
async fn watch(files: &mut [(Kept, Route)], pace: &Pace) -> io::Result<Infallible> {
    let mut watches = Watches::of_each()?;
    // What has changed before it was watched nobody tells.
    let mut changes = Changes {
        lost: true,
        ..Changes::default()
    };
    loop {
        let mut again = None;
        for (file, route) in files.iter_mut() {
            if let Err(error) = file.look(route, &mut watches, &changes).await {
                *route = Route::default();
                file.again().await;
                file.wrong(&format!("it cannot be watched: {error}"));
            }
            // Nothing is told of it, so it is looked at every now and then.
            if route.watches().is_empty() {
                again = Instant::now().checked_add(pace.retry);
            }
        }
        let all = files.iter().flat_map(|(_, route)| route.watches());
        watches.keep(&all.copied().collect());
        changes = loop {
            files.iter_mut().for_each(|(file, _)| file.tell(pace));
            tokio::select! {
                changes = watches.changes() => break changes?,
                () = due(files.iter().map(|(file, _)| file), pace) => {}
                () = at(again) => break Changes { lost: true, ..Changes::default() },
            }
        };
    }
}

/// Waits until then, or for ever.
async fn at(when: Option<Instant>) {
    match when {
        Some(when) => sleep_until(when).await,
        None => std::future::pending().await,
    }
}

impl Kept {
    /// Reads a file again if it is another after these changes, and whole.
    async fn look(
        &mut self,
        route: &mut Route,
        watches: &mut Watches,
        changes: &Changes,
    ) -> io::Result<()> {
        let SecretSource::File(path) = &self.source else {
            return Ok(());
        };
        let fates = changes.known.iter().map(|change| route.fate(change));
        let fate = match changes.lost {
            true => Fate::Whole,
            false => fates.max().unwrap_or(Fate::Same),
        };
        if fate == Fate::Same {
            return Ok(());
        }
        let now = Route::to(path, watches)?;
        let is_new = now != *route;
        let is_whole = fate == Fate::Whole || now.is_whole_after(route);
        *route = now;
        if !route.is_there() {
            self.wrong("it is not there");
            self.is_given = false;
        } else if is_whole || (fate == Fate::Attributes && (is_new || self.told.is_wrong())) {
            self.again().await;
        }
        Ok(())
    }
}

/// Runs commands again every now and then, one after the other.
async fn repeat(mut commands: Vec<Kept>, every: Option<Duration>, pace: Pace) {
    let Some(every) = every.filter(|every| !every.is_zero() && !commands.is_empty()) else {
        return;
    };
    let Some(first) = Instant::now().checked_add(every) else {
        return;
    };
    let mut ticks = interval_at(first, every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                for command in &mut commands {
                    command.again().await;
                }
            }
            () = due(commands.iter(), &pace) => {}
        }
        commands.iter_mut().for_each(|command| command.tell(&pace));
    }
}

#[cfg(test)]
mod tests;
