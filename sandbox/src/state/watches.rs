//! What changes in the directories of VMs: one inotify instance for all that a process
//! follows, as a user may have few of them (`fs.inotify.max_user_instances`, 128). It is
//! there as long as something is followed, and so is the thread that reads it: readers
//! may be of several event loops, or none.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
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

/// The instance of this process, as long as somebody follows something.
static SHARED: Mutex<Weak<Instance>> = Mutex::new(Weak::new());

/// Numbers of those who follow.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// Who follows one thing or several.
#[derive(Debug)]
pub(crate) struct Watches {
    instance: Arc<Instance>,
    number: u64,
    changed: Arc<Notify>,
    own: BTreeSet<i32>,
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
    by_watch: HashMap<i32, HashMap<u64, Arc<Notify>>>,
    /// Why nobody will be told any more.
    broken: Option<io::ErrorKind>,
}

impl Watches {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            instance: Instance::shared()?,
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            changed: Arc::default(),
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
        who.insert(self.number, Arc::clone(&self.changed));
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
            self.changed.notified().await;
        }
        broken().map_or(Ok(()), |kind| Err(kind.into()))
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
    fn tell(&self, watch: i32) {
        let who = self.by_watch.get(&watch);
        who.into_iter()
            .flat_map(HashMap::values)
            .for_each(|one| one.notify_one());
    }

    fn tell_all(&self) {
        self.by_watch.keys().for_each(|watch| self.tell(*watch));
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
            let (watch, what) = match reader.next() {
                Ok(event) => (event.wd(), event.events()),
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            let mut followed = locked(followed);
            if what.contains(ReadFlags::QUEUE_OVERFLOW) {
                // Of whom it was is lost.
                followed.tell_all();
                continue;
            }
            followed.tell(watch);
            if what.contains(ReadFlags::IGNORED) {
                // The file is gone, and its number is not given again soon.
                followed.by_watch.remove(&watch);
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
