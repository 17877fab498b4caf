//! Bytes that are passed on as they are.

use std::io;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional_with_sizes};
use tokio::sync::watch;

use crate::counted::Counted;
use crate::policy::{Denial, Policy};

/// What passes at once, in each direction.
const BUFFER: usize = 32 * 1024;

/// Passes on what comes until both sides have ended, or may not go on any more. An error is
/// an end that neither side may take for one in order.
pub(crate) async fn relay<A, B>(
    guest: &mut Counted<A>,
    host: &mut B,
    policy: &mut watch::Receiver<Arc<Policy>>,
    may_be: impl Fn(&Policy) -> Result<(), Denial>,
) -> Result<io::Result<()>, Denial>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let denied = async {
        loop {
            if policy.changed().await.is_err() {
                // It will never change again.
                return std::future::pending().await;
            }
            let now = Arc::clone(&policy.borrow_and_update());
            if let Err(denial) = may_be(&now) {
                return denial;
            }
        }
    };
    tokio::select! {
        passed = copy_bidirectional_with_sizes(guest, host, BUFFER, BUFFER) => Ok(passed.map(drop)),
        denial = denied => Err(denial),
    }
}
