//! What is known of a VM by the task that drives it, and by everybody who has a handle to
//! it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use flashpan_network::Gateway;
use flashpan_network::edit::Secrets;
use flashpan_protocol::control::MAX_DISKS;
use flashpan_protocol::phase::Phase;
use tokio::sync::watch;

use crate::console::Tail;
use crate::disk::{DiskRole, FullDisk};
use crate::events::Hub;
use crate::exit::GuestWord;
use crate::logs::OutputLog;
use crate::timeline::{Timeline, now_ns};

/// Most warnings of a guest that are kept.
const MAX_WARNINGS: usize = 64;

/// What the task and the handles share.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    timeline: Mutex<Timeline>,
    console: Mutex<Tail>,
    warnings: Mutex<VecDeque<String>>,
    guest_word: Mutex<Option<GuestWord>>,
    /// What happens to programs.
    pub(crate) events: Hub,
    /// What the VM's own command writes.
    pub(crate) output: OutputLog,
    /// What decides where the guest's flows go, if it has a network.
    gateway: OnceLock<Arc<Gateway>>,
    /// What is put into the guest's requests, which can be changed.
    secrets: OnceLock<Arc<Secrets>>,
    /// What the disks are for, in the order in which the VMM has them.
    disks: OnceLock<Vec<DiskRole>>,
    /// Whether somebody listens to the guest's PID 1.
    listening: watch::Sender<bool>,
    /// The limit of the VM's life, once it is reached.
    time_up: watch::Sender<Option<Duration>>,
    /// Whether there is a card, which nobody slows down.
    fast_card: AtomicBool,
    /// Whether the VM stands still, or is about to.
    paused: AtomicBool,
}

impl Shared {
    pub(crate) fn timeline(&self) -> MutexGuard<'_, Timeline> {
        lock(&self.timeline)
    }

    /// Keeps what decides where flows go. Once.
    pub(crate) fn set_gateway(&self, gateway: Arc<Gateway>) {
        let _ = self.gateway.set(gateway);
    }

    /// Keeps what is put into requests. Once.
    pub(crate) fn set_secrets(&self, secrets: Arc<Secrets>) {
        let _ = self.secrets.set(secrets);
    }

    /// There is a card, which nobody slows down.
    pub(crate) fn set_fast_card(&self) {
        self.fast_card.store(true, Ordering::Relaxed);
    }

    /// Whether there is a card that nobody slows down.
    pub(crate) fn has_fast_card(&self) -> bool {
        self.fast_card.load(Ordering::Relaxed)
    }

    /// What is put into requests, if there is a network.
    pub(crate) fn secrets(&self) -> Option<&Arc<Secrets>> {
        self.secrets.get()
    }

    /// What decides where flows go, if there is a network.
    pub(crate) fn gateway(&self) -> Option<&Arc<Gateway>> {
        self.gateway.get()
    }

    pub(crate) fn mark(&self, phase: Phase) {
        self.timeline().mark(phase, now_ns());
    }

    /// More of the console.
    pub(crate) fn add_console(&self, bytes: &[u8]) {
        lock(&self.console).push(bytes);
    }

    /// What PID 1 said of the end. Once.
    pub(crate) fn take_word(&self) -> Option<GuestWord> {
        lock(&self.guest_word).take()
    }

    pub(crate) fn console(&self) -> Vec<u8> {
        lock(&self.console).bytes()
    }

    /// Keeps a warning of the guest; the oldest make room.
    pub(crate) fn warn(&self, warning: String) {
        let mut warnings = lock(&self.warnings);
        if warnings.len() == MAX_WARNINGS {
            warnings.pop_front();
        }
        warnings.push_back(warning);
    }

    /// Keeps what PID 1 says of the end; the first word counts.
    pub(crate) fn note(&self, word: GuestWord) {
        lock(&self.guest_word).get_or_insert(word);
    }

    /// From now until the guard is dropped there may be more from PID 1.
    pub(crate) fn listen(self: &Arc<Self>) -> Listening {
        self.listening.send_replace(true);
        Listening(Arc::clone(self))
    }

    /// Waits until everything that PID 1 said has been heard.
    pub(crate) async fn heard_all(&self) {
        // It fails only if the sender is gone, which `self` holds.
        let _ = self.listening.subscribe().wait_for(|on| !on).await;
    }

    /// The VM has run for as long as it may.
    pub(crate) fn set_time_up(&self, after: Duration) {
        self.time_up.send_replace(Some(after));
    }

    /// The limit of the VM's life, if it is reached.
    pub(crate) fn time_up(&self) -> Option<Duration> {
        *self.time_up.borrow()
    }

    /// Waits until the limit of the VM's life is reached, for ever if there is none.
    pub(crate) async fn until_time_is_up(&self) -> Duration {
        let mut time_up = self.time_up.subscribe();
        match time_up.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(after)) => *after,
            // `wait_for` fails only if the sender is gone, which `self` holds.
            Ok(None) | Err(_) => std::future::pending().await,
        }
    }

    /// Whether the VM stands still, or is about to.
    pub(crate) fn is_paused(&self) -> bool {
        self.paused.load(Ordering::SeqCst)
    }

    /// Notes that the VM is to stand still, or to go on; whether that is news.
    pub(crate) fn set_paused(&self, paused: bool) -> bool {
        self.paused.swap(paused, Ordering::SeqCst) != paused
    }

    /// Says what the disks are for, before the VMM starts.
    pub(crate) fn set_disks(&self, roles: Vec<DiskRole>) {
        // A builder boots once.
        let _ = self.disks.set(roles);
    }

    /// What the VMM has said of full disks. Disks that there are not are none.
    pub(crate) fn full_disks(&self) -> Vec<FullDisk> {
        let roles = self.disks.get().map(Vec::as_slice).unwrap_or_default();
        let timeline = self.timeline();
        let stats = timeline.stats().into_iter();
        let full = stats.flat_map(|stats| &stats.full_disks).take(MAX_DISKS);
        let full = full.filter_map(|full| {
            let role = *roles.get(usize::from(full.disk))?;
            let failures = full.failures;
            Some(FullDisk { role, failures })
        });
        full.collect()
    }

    pub(crate) fn take_warnings(&self) -> Vec<String> {
        lock(&self.warnings).drain(..).collect()
    }
}

/// See [`Shared::listen`].
#[derive(Debug)]
pub(crate) struct Listening(Arc<Shared>);

impl Drop for Listening {
    fn drop(&mut self) {
        self.0.listening.send_replace(false);
    }
}

/// Nothing panics while holding these locks; should it ever, the data is still
/// whole, since every change to it is one assignment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
