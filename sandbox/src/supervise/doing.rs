//! What a VM does, and the note of it for who lists VMs: a byte on a disk, which may be
//! slow or stand still. Nobody who has something to tell or to ask waits for that.

use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use flashpan_protocol::supervisor::Activity;
use tokio::sync::watch;
use tokio::time::timeout;

/// How long a note may take when somebody waits for it.
const NOTED_WITHIN: Duration = Duration::from_secs(5);

/// What a VM does now.
#[derive(Debug)]
pub(super) struct Doing {
    now: Arc<Mutex<Activity>>,
    /// That there is something to note; one such word is enough for all.
    wake: SyncSender<()>,
    noted: watch::Receiver<Activity>,
}

impl Doing {
    /// It starts, which is noted already; what else it does `note` is told, in a thread
    /// of its own, and the last of it in any case.
    pub(super) fn starting(note: impl FnMut(Activity) + Send + 'static) -> io::Result<Self> {
        let now = Arc::new(Mutex::new(Activity::Starting));
        let (wake, woken) = sync_channel(1);
        let (teller, noted) = watch::channel(Activity::Starting);
        let look = Arc::clone(&now);
        thread::Builder::new()
            .name("status".to_owned())
            .spawn(move || keep_noted(&look, &woken, &teller, note))?;
        Ok(Self { now, wake, noted })
    }

    pub(super) fn now(&self) -> Activity {
        read(&self.now)
    }

    /// It does something else, which `tell` is told before anything that comes after. A
    /// VM that shuts down does nothing else any more.
    pub(super) fn change(&self, to: Activity, tell: impl FnOnce()) {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        if *now == Activity::Stopping || *now == to {
            return;
        }
        *now = to;
        tell();
        drop(now);
        // If there is no room it will be looked at anyway.
        let _ = self.wake.try_send(());
    }

    /// Waits until what it does now is noted, unless that takes long. Cancel safe.
    pub(super) async fn noted(&self) {
        let mut noted = self.noted.clone();
        let all = noted.wait_for(|noted| *noted == self.now());
        let _ = timeout(NOTED_WITHIN, all).await;
    }
}

fn read(now: &Mutex<Activity>) -> Activity {
    *now.lock().unwrap_or_else(PoisonError::into_inner)
}

fn keep_noted(
    now: &Mutex<Activity>,
    woken: &Receiver<()>,
    noted: &watch::Sender<Activity>,
    mut note: impl FnMut(Activity),
) {
    // The word is taken before the look: what comes after that is another word.
    while woken.recv().is_ok() {
        let now = read(now);
        note(now);
        noted.send_replace(now);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_note_that_takes_long_holds_up_nobody() {
        let (begun, begins) = mpsc::channel();
        let (go_on, goes_on) = mpsc::channel();
        let doing = Doing::starting(move |activity| {
            begun.send(activity).unwrap();
            goes_on.recv().unwrap();
        });
        let doing = Arc::new(doing.unwrap());
        doing.change(Activity::Running, || {});
        assert_eq!(begins.recv_timeout(LONG), Ok(Activity::Running));
        // The disk stands still now.
        let (done, is_done) = mpsc::channel();
        let others = Arc::clone(&doing);
        thread::spawn(move || {
            let mut told = Vec::new();
            for activity in [Activity::Paused, Activity::Running, Activity::Stopping] {
                others.change(activity, || told.push(activity));
                assert_eq!(others.now(), activity);
            }
            // The last word of all.
            others.change(Activity::Running, || told.push(Activity::Running));
            done.send(told).unwrap();
        });
        let told = is_done.recv_timeout(LONG).unwrap();
        assert_eq!(
            told,
            [Activity::Paused, Activity::Running, Activity::Stopping]
        );
        go_on.send(()).unwrap();
        go_on.send(()).unwrap();
        doing.noted().await;
        // Only what it does in the end has to be noted.
        assert_eq!(begins.recv_timeout(LONG), Ok(Activity::Stopping));
        assert_eq!(*doing.noted.borrow(), Activity::Stopping);
        // It ends with its VM.
        drop(doing);
        assert_eq!(begins.recv(), Err(mpsc::RecvError));
    }
}
