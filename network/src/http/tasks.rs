//! What runs for one connection of a guest, and ends with it.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use hyper::rt::Executor;
use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinSet};

tokio::task_local! {
    /// What ends that in which a request is answered: its stream in HTTP/2, and else its
    /// connection.
    static END: Arc<Notify>;
}

/// The tasks of a connection. Dropped, it ends them.
#[derive(Debug, Default)]
pub(crate) struct Tasks(Arc<Mutex<JoinSet<()>>>);

/// Who begins tasks. What has one does not keep the others.
#[derive(Debug, Clone)]
pub(crate) struct Spawner(Weak<Mutex<JoinSet<()>>>);

impl Tasks {
    pub(crate) fn spawner(&self) -> Spawner {
        Spawner(Arc::downgrade(&self.0))
    }
}

impl Spawner {
    /// Begins with a task, unless those of its connection have ended.
    pub(crate) fn spawn(
        &self,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> Option<AbortHandle> {
        let tasks = self.0.upgrade()?;
        let mut tasks = tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        Some(tasks.spawn(task))
    }
}

/// Each task that hyper begins with, one for a stream, can be ended by [`end`].
impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Spawner {
    fn execute(&self, task: F) {
        self.spawn(async {
            let _ = endable(task).await;
        });
    }
}

/// Runs something until it is ended; none if it was.
pub(crate) async fn endable<T>(task: impl Future<Output = T>) -> Option<T> {
    let end = Arc::new(Notify::new());
    tokio::select! {
        biased;
        () = end.notified() => None,
        done = END.scope(Arc::clone(&end), task) => Some(done),
    }
}

/// What ends that in which it is asked for, if that is [`endable`].
pub(crate) fn end() -> Option<Arc<Notify>> {
    END.try_with(Arc::clone).ok()
}
