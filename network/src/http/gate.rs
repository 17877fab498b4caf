//! Bodies that wait until their host wants them.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Sleep;

use super::body::BodyError;

/// How long a body is kept back for a host that was asked whether it wants it, and may not
/// know that it was (RFC 9110 §10.1.1). Clients wait as long.
const WAIT_FOR_CONTINUE: Duration = Duration::from_secs(1);

/// Keeps a body back until the host says that it wants it, or is silent.
pub(crate) struct Gate {
    open: oneshot::Receiver<()>,
    is_answered: Arc<AtomicBool>,
    late: Option<Pin<Box<Sleep>>>,
}

/// Who opens a [`Gate`]. When nobody has it any more, the body is not wanted.
#[derive(Debug)]
pub(crate) struct Opener {
    open: Mutex<Option<oneshot::Sender<()>>>,
    is_answered: Arc<AtomicBool>,
}

impl Gate {
    pub(crate) fn new() -> (Arc<Opener>, Self) {
        let (sender, receiver) = oneshot::channel();
        let is_answered = Arc::new(AtomicBool::new(false));
        let opener = Opener {
            open: Mutex::new(Some(sender)),
            is_answered: Arc::clone(&is_answered),
        };
        let gate = Self {
            open: receiver,
            is_answered,
            late: None,
        };
        (Arc::new(opener), gate)
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BodyError>> {
        match Pin::new(&mut self.open).poll(cx) {
            Poll::Ready(Ok(())) => return Poll::Ready(Ok(())),
            Poll::Ready(Err(_)) => return Poll::Ready(Err("the body was not wanted".into())),
            Poll::Pending => {}
        }
        // The host has been asked now.
        let late = || Box::pin(tokio::time::sleep(WAIT_FOR_CONTINUE));
        let is_late = self
            .late
            .get_or_insert_with(late)
            .as_mut()
            .poll(cx)
            .is_ready();
        match is_late && !self.is_answered.load(Ordering::Acquire) {
            true => Poll::Ready(Ok(())),
            false => Poll::Pending,
        }
    }
}

impl Opener {
    /// The host wants it.
    pub(crate) fn open(&self) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = open.take() {
            // Nobody waits: the request is over.
            let _ = open.send(());
        }
    }

    /// The host has answered without it.
    pub(crate) fn answered(&self) {
        self.is_answered.store(true, Ordering::Release);
    }
}
