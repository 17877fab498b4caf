//! What changes in the directories of VMs: one inotify instance for all that a process
//! follows, as a user may have few of them (`fs.inotify.max_user_instances`, 128). It is
//! there as long as something is followed, and so is the thread that reads it: readers
//! may be of several event loops, or none.

use std::collections::{BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify::{self, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;
use tokio::sync::Notify;

/// How much of what happened is read at a time.
const BUFFER: usize = 16 * 1024;

/// Most changes that wait for who is told each of them. Of more it is told that there were.
const WAITING: usize = 1024;

/// The instance of this process, as long as somebody follows something.
static SHARED: Mutex<Weak<Instance>> = Mutex::new(Weak::new());

/// Numbers of those who follow.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// Who follows one thing or several.
#[derive(Debug)]
pub(crate) struct Watches {
    instance: Arc<Instance>,
    number: u64,
    follower: Arc<Follower>,
    own: BTreeSet<i32>,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    /// The number of what was followed.
    pub(crate) watch: i32,
    pub(crate) what: ReadFlags,
    /// What it was in a directory, if that was followed.
    pub(crate) name: Option<OsString>,
}

/// What has changed since this was last asked.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// In their order.
    pub(crate) known: Vec<Change>,
    /// Whether there were more.
    pub(crate) lost: bool,
}

/// Who is told.
#[derive(Debug, Default)]
struct Follower {
    changed: Notify,
    /// For who wants to know what it was.
    changes: Option<Mutex<Changes>>,
}

impl Follower {
    fn tell(&self, change: &Change) {
        if let Some(changes) = &self.changes {
            let mut changes = locked(changes);
            match changes.known.len() < WAITING {
                true => changes.known.push(change.clone()),
                false => changes.lost = true,
            }
        }
        self.changed.notify_one();
    }

    /// Something has changed of which nobody knows what it was.
    fn tell_lost(&self) {
        if let Some(changes) = &self.changes {
            locked(changes).lost = true;
        }
        self.changed.notify_one();
    }
}

#[derive(Debug)]
struct Instance {
    inotify: Arc<OwnedFd>,
    followed: Arc<Mutex<Followed>>,
    /// Closed with the instance: then its thread ends.
    _alive: UnixStream,
}

/// Who is told of a change, by its watch. Two paths of one file have one watch, and
/// whoever follows it may be told of more than was asked for.
#[derive(Debug, Default)]
struct Followed {
    by_watch: HashMap<i32, HashMap<u64, Arc<Follower>>>,
    /// Why nobody will be told any more.
    broken: Option<io::ErrorKind>,
}

impl Watches {
    pub(crate) fn new() -> io::Result<Self> {
        Self::of(Follower::default())
    }

    /// For who asks what it was that has changed: [`Self::changes`].
    pub(crate) fn of_each() -> io::Result<Self> {
        Self::of(Follower {
            changes: Some(Mutex::default()),
            ..Follower::default()
        })
    }

    fn of(follower: Follower) -> io::Result<Self> {
        Ok(Self {
            instance: Instance::shared()?,
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            follower: Arc::new(follower),
            own: BTreeSet::new(),
        })
    }

    /// Follows this as well from now on; its number.
    pub(crate) fn add(&mut self, path: &Path, what: WatchFlags) -> io::Result<i32> {
        // Under this lock nothing is told, and so nothing is told to nobody.
        let mut followed = locked(&self.instance.followed);
        let what = what | WatchFlags::MASK_ADD;
        let watch = inotify::add_watch(&*self.instance.inotify, path, what)?;
        let who = followed.by_watch.entry(watch).or_default();
        who.insert(self.number, Arc::clone(&self.follower));
        drop(followed);
        self.own.insert(watch);
        Ok(watch)
    }

    /// Follows what has this number no more.
    pub(crate) fn remove(&mut self, watch: i32) {
        if self.own.remove(&watch) {
            self.instance.forget(watch, self.number);
        }
    }

    /// Waits until something may have changed since this was last waited for. Cancel
    /// safe.
    pub(crate) async fn changed(&mut self) -> io::Result<()> {
        let broken = || locked(&self.instance.followed).broken;
        if broken().is_none() {
            self.follower.changed.notified().await;
        }
        broken().map_or(Ok(()), |kind| Err(kind.into()))
    }

    /// As [`Self::changed`], and what it was: of what was made by [`Self::of_each`]. May be
    /// nothing. Others may have asked to be told of more.
    pub(crate) async fn changes(&mut self) -> io::Result<Changes> {
        self.changed().await?;
        let changes = self.follower.changes.as_ref();
        Ok(changes.map_or_else(Changes::default, |of| std::mem::take(&mut *locked(of))))
    }

    /// Follows nothing any more but what has these numbers.
    pub(crate) fn keep(&mut self, watches: &BTreeSet<i32>) {
        let others: Vec<i32> = self.own.difference(watches).copied().collect();
        others.into_iter().for_each(|watch| self.remove(watch));
    }
}

impl Drop for Watches {
    fn drop(&mut self) {
        for watch in &self.own {
            self.instance.forget(*watch, self.number);
        }
    }
}

impl Instance {
    fn shared() -> io::Result<Arc<Self>> {
        let mut shared = locked(&SHARED);
        if let Some(instance) = shared.upgrade()
            && locked(&instance.followed).broken.is_none()
        {
            return Ok(instance);
        }
        let instance = Arc::new(Self::begin()?);
        *shared = Arc::downgrade(&instance);
        Ok(instance)
    }

    fn begin() -> io::Result<Self> {
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let inotify = Arc::new(inotify::init(flags)?);
        let followed = Arc::default();
        let (alive, end) = UnixStream::pair()?;
        let (events, tell) = (Arc::clone(&inotify), Arc::clone(&followed));
        thread::Builder::new()
            .name("watches".to_owned())
            .spawn(move || {
                if let Err(error) = pass_on(&events, &end, &tell) {
                    let mut followed = locked(&tell);
                    followed.broken = Some(error.kind());
                    followed.tell_all();
                }
            })?;
        Ok(Self {
            inotify,
            followed,
            _alive: alive,
        })
    }

    fn forget(&self, watch: i32, number: u64) {
        let mut followed = locked(&self.followed);
        let Some(who) = followed.by_watch.get_mut(&watch) else {
            return;
        };
        who.remove(&number);
        if who.is_empty() {
            followed.by_watch.remove(&watch);
            // One whose file is gone is gone as well.
            let _ = inotify::remove_watch(&*self.inotify, watch);
        }
    }
}

impl Followed {
    fn tell(&self, change: &Change) {
        let who = self.by_watch.get(&change.watch);
        let who = who.into_iter().flat_map(HashMap::values);
        who.for_each(|one| one.tell(change));
    }

    fn tell_all(&self) {
        let who = self.by_watch.values().flat_map(HashMap::values);
        who.for_each(|one| one.tell_lost());
    }
}

/// Tells what happens to who follows it, until `end` is closed.
fn pass_on(inotify: &OwnedFd, end: &UnixStream, followed: &Mutex<Followed>) -> io::Result<()> {
    let mut buffer = vec![MaybeUninit::uninit(); BUFFER];
    loop {
        let mut fds = [
            PollFd::new(inotify, PollFlags::IN),
            PollFd::new(end, PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno.into()),
        }
        let [_, end] = &fds;
        if !end.revents().is_empty() {
            return Ok(());
        }
        let mut reader = Reader::new(inotify, &mut buffer);
        loop {
            let change = match reader.next() {
                Ok(event) => Change {
                    watch: event.wd(),
                    what: event.events(),
                    name: (event.file_name())
                        .map(|name| OsStr::from_bytes(name.to_bytes()).to_owned()),
                },
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            let mut followed = locked(followed);
            if change.what.contains(ReadFlags::QUEUE_OVERFLOW) {
                // Of whom it was is lost.
                followed.tell_all();
                continue;
            }
            followed.tell(&change);
            if change.what.contains(ReadFlags::IGNORED) {
                // The file is gone, and its number is not given again soon.
                followed.by_watch.remove(&change.watch);
            }
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change to what these hold is whole at once.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    async fn changes(watches: &mut Watches) {
        timeout(LONG, watches.changed()).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn two_who_follow_one_file_are_both_told_and_one_goes_without_the_other() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        fs::write(&file, "").unwrap();
        // Each time one change, and no more.
        let change = || {
            let mut file = fs::OpenOptions::new().append(true).open(&file).unwrap();
            file.write_all(b"1").unwrap();
        };
        let (mut one, mut other) = (Watches::new().unwrap(), Watches::new().unwrap());
        let modify = WatchFlags::MODIFY;
        let watch = one.add(&file, modify).unwrap();
        // What one asks for does not replace what the other did.
        assert_eq!(other.add(&file, WatchFlags::DELETE_SELF).unwrap(), watch);
        change();
        changes(&mut one).await;
        changes(&mut other).await;
        other.remove(watch);
        change();
        changes(&mut one).await;
        assert_eq!(other.add(&file, modify).unwrap(), watch);
        drop(other);
        change();
        changes(&mut one).await;
        // A file that goes is a change, and one that comes is another.
        let mut next = Watches::new().unwrap();
        fs::remove_file(&file).unwrap();
        changes(&mut one).await;
        fs::write(&file, "").unwrap();
        next.add(&file, modify).unwrap();
        change();
        changes(&mut next).await;
    }

    #[test]
    fn what_is_followed_outlives_the_event_loop_that_began() {
        let dir = tempfile::tempdir().unwrap();
        let begin = || {
            let runtime = tokio::runtime::Builder::new_current_thread();
            { runtime }.enable_all().build().unwrap()
        };
        let first = begin();
        let mut watches = first.block_on(async { Watches::new().unwrap() });
        drop(first);
        watches.add(dir.path(), WatchFlags::CREATE).unwrap();
        fs::write(dir.path().join("f"), "").unwrap();
        begin().block_on(changes(&mut watches));
    }
}
