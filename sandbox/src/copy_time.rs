//! The limits of time that a copy has.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::copy::CopyOptions;
use crate::error::{Error, Result};
use crate::sandbox::Sandbox;

/// The time that a copy has.
pub(crate) struct Time<'a> {
    sandbox: &'a Sandbox,
    /// How long, and until when; `None` if there is no limit, or one beyond the clock.
    own: Option<(Duration, Instant)>,
}

impl<'a> Time<'a> {
    /// From now on.
    pub(crate) fn of(sandbox: &'a Sandbox, options: CopyOptions) -> Self {
        let until = |after| Some((after, Instant::now().checked_add(after)?));
        Self {
            sandbox,
            own: options.timeout.and_then(until),
        }
    }

    /// Does something unless the time is up before it is done.
    pub(crate) async fn limit<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let own = async {
            match self.own {
                Some((after, until)) => {
                    sleep_until(until).await;
                    after
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // The limits first: a guest that always has more to send is always ready.
            biased;
            after = self.sandbox.time_is_up() => Err(Error::VmTimeout { after }),
            after = own => Err(Error::Timeout { what: "finish the copy", after }),
            done = work => done,
        }
    }
}
