//! What was allowed, and has to end when it may not be any more.

use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use hyper::body::Incoming;
use tokio::sync::{Notify, watch};

use super::body::Upload;
use crate::policy::{Denial, Policy};

/// Why something may not be any more, as soon as that is so.
pub(crate) async fn revoked(
    mut changes: watch::Receiver<Arc<Policy>>,
    may_be: impl Fn(&Policy) -> Result<(), Denial>,
) -> Denial {
    loop {
        if changes.changed().await.is_err() {
            // It will never change again.
            return std::future::pending().await;
        }
        let now = Arc::clone(&changes.borrow_and_update());
        if let Err(denial) = may_be(&now) {
            return denial;
        }
    }
}

/// Whether a request may be that goes to this address, if it is known yet.
pub(crate) type MayBe = Box<dyn Fn(&Policy, Option<IpAddr>) -> Result<(), Denial> + Send + Sync>;

/// A request under way, from when it was allowed until its response is over.
pub(crate) struct Ongoing {
    policy: watch::Receiver<Arc<Policy>>,
    may_be: MayBe,
    way: Mutex<Way>,
    denial: OnceLock<Denial>,
}

/// Where it goes.
#[derive(Default)]
struct Way {
    address: Option<IpAddr>,
    /// What ends the connection that it goes on, if it is alone there.
    alone: Option<Arc<Notify>>,
    upload: Option<Upload>,
}

impl Ongoing {
    pub(crate) fn new(policy: watch::Receiver<Arc<Policy>>, may_be: MayBe) -> Self {
        Self {
            policy,
            may_be,
            way: Mutex::default(),
            denial: OnceLock::new(),
        }
    }

    /// It has this body.
    pub(crate) fn uploads(&self, upload: Option<Upload>) {
        self.way().upload = upload;
    }

    /// It goes to this address, on a connection which is ended by `alone` if nothing else is
    /// on it.
    ///
    /// # Errors
    /// It may not.
    pub(crate) fn goes_to(
        &self,
        address: IpAddr,
        alone: Option<Arc<Notify>>,
    ) -> Result<(), Denial> {
        {
            let mut way = self.way();
            (way.address, way.alone) = (Some(address), alone);
        }
        // What has changed since it was decided is not seen again by whoever waits for changes.
        let now = Arc::clone(&self.policy.borrow());
        self.may_be(&now)
    }

    /// Waits until it may not be any more. Why not.
    pub(crate) async fn revoked(&self) -> Denial {
        let denial = revoked(self.policy.clone(), |policy| self.may_be(policy)).await;
        self.denial.get_or_init(|| denial).clone()
    }

    /// Ends it on its way to the host; what is left of its body.
    pub(crate) fn end(&self) -> Option<Incoming> {
        let (upload, alone) = {
            let mut way = self.way();
            (way.upload.take(), way.alone.take())
        };
        if let Some(alone) = alone {
            alone.notify_one();
        }
        upload.and_then(|upload| upload.cut())
    }

    /// Why it has ended before its time, if it may not be any more.
    pub(crate) fn denial(&self) -> Option<Denial> {
        let known = self.denial.get().cloned();
        let now = Arc::clone(&self.policy.borrow());
        known.or_else(|| self.may_be(&now).err())
    }

    fn may_be(&self, policy: &Policy) -> Result<(), Denial> {
        let address = self.way().address;
        (self.may_be)(policy, address)
    }

    fn way(&self) -> MutexGuard<'_, Way> {
        self.way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Ongoing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ongoing").finish_non_exhaustive()
    }
}
