//! What a guest still sends of a request that is refused already.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http_body::Body;
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep, sleep_until};

/// How long nothing may come of it until it is cut off.
const SILENT_WITHIN: Duration = Duration::from_millis(250);

/// How long it may take until it is cut off.
const WITHIN: Duration = Duration::from_secs(5);

/// The body of a request that nobody takes. In HTTP/2 a stream whose answer has ended while the
/// guest still sends is reset (RFC 9113 §8.1), and some clients take that for a broken one,
/// answer and all. So the end of the answer, not the answer, waits for the end of the request.
pub(crate) struct Unread {
    body: Incoming,
    /// When it is cut off; none before it was waited for.
    limit: Option<Limit>,
}

struct Limit {
    silence: Pin<Box<Sleep>>,
    end: Instant,
}

impl Unread {
    /// None, if all of it is there.
    pub(crate) fn new(body: Incoming) -> Option<Self> {
        let is_over = body.is_end_stream();
        (!is_over).then_some(Self { body, limit: None })
    }

    /// Ready when the guest has ended it, or was given its time.
    pub(crate) fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let now = Instant::now();
        let limit = self.limit.get_or_insert_with(|| Limit {
            silence: Box::pin(sleep_until(now + SILENT_WITHIN)),
            end: now + WITHIN,
        });
        while let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            if !matches!(frame, Some(Ok(_))) || now >= limit.end {
                return Poll::Ready(());
            }
            let until = limit.end.min(now + SILENT_WITHIN);
            limit.silence.as_mut().reset(until);
        }
        ready!(limit.silence.as_mut().poll(cx));
        Poll::Ready(())
    }
}
