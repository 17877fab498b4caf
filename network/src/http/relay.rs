//! Bytes that are passed on as they are.

use std::io;

use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional_with_sizes};

use crate::counted::Counted;
use crate::policy::Denial;

/// What passes at once, in each direction.
const BUFFER: usize = 32 * 1024;

/// Passes on what comes until both sides have ended, or it is denied. An error is an end that
/// neither side may take for one in order.
pub(crate) async fn relay<A, B>(
    guest: &mut Counted<A>,
    host: &mut B,
    denied: impl Future<Output = Denial>,
) -> Result<io::Result<()>, Denial>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    tokio::select! {
        biased;
        denial = denied => Err(denial),
        passed = copy_bidirectional_with_sizes(guest, host, BUFFER, BUFFER) => Ok(passed.map(drop)),
    }
}
