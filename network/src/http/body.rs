//! Bodies as they pass, counted, and changed where somebody wants that.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::task::AbortHandle;
use tokio::time::{Sleep, timeout};

use super::editor::Transform;
use super::gate::{Gate, Opener};
use super::headers;
use super::ongoing::Ongoing;
use super::pool::Lease;
use super::unread::Unread;
use crate::meter::Meter;
use crate::policy::{Code, Denial};
use crate::report::Outcome;

/// What a body breaks with.
pub(crate) type BodyError = Box<dyn std::error::Error + Send + Sync>;

type Polled = Poll<Option<Result<Frame<Bytes>, BodyError>>>;

/// How long is waited for all of a body whose length is to be known.
const AHEAD_WITHIN: Duration = Duration::from_secs(1);

/// How much of it is kept: what was short may have become long.
const MAX_AHEAD: usize = 256 * 1024;

/// How long is waited for what follows, where it may not be told how much was kept back.
const FOLLOWS_WITHIN: Duration = Duration::from_millis(5);

/// What of a body that was decoded is passed on at once, and a piece of what that makes.
const FRAME: usize = 16 * 1024;

/// A body from elsewhere.
pub(crate) struct Passing {
    body: Incoming,
    /// What was read, and changed, before anybody asked for it.
    ahead: Bytes,
    /// What was read, and not changed yet.
    unchanged: Bytes,
    transform: Option<Box<dyn Transform>>,
    /// Those that came, while what was left is passed on.
    trailers: Option<HeaderMap>,
    is_over: bool,
    /// What was changed and is given out when it is known what follows, or then.
    held: Option<(Bytes, Pin<Box<Sleep>>)>,
    /// What it breaks off with, after what came before.
    error: Option<BodyError>,
    scrubbed: u64,
    /// Why it was broken off here.
    broken: Option<String>,
}

impl Passing {
    pub(crate) fn new(body: Incoming, transform: Option<Box<dyn Transform>>) -> Self {
        Self {
            body,
            ahead: Bytes::new(),
            unchanged: Bytes::new(),
            transform,
            trailers: None,
            is_over: false,
            held: None,
            error: None,
            scrubbed: 0,
            broken: None,
        }
    }

    /// Reads all of it, and changes it, so that it has a length again: not every host takes a
    /// body without one. If that takes too long, or becomes too
    /// much, the rest is passed on as it comes.
    pub(crate) async fn read_ahead(&mut self) -> Result<(), BodyError> {
        let mut ahead = Vec::new();
        let read = async {
            while !self.is_over && ahead.len() <= MAX_AHEAD {
                match poll_fn(|cx| self.poll_frame(cx)).await {
                    Some(frame) => ahead.extend(frame?.into_data().unwrap_or_default()),
                    None => break,
                }
            }
            Ok(())
        };
        let read = timeout(AHEAD_WITHIN, read).await;
        self.ahead = ahead.into();
        read.unwrap_or(Ok(()))
    }

    /// A body that there is none of, whatever comes.
    pub(crate) fn none(body: Incoming) -> Self {
        Self {
            is_over: true,
            ..Self::new(body, None)
        }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Polled {
        if !self.ahead.is_empty() {
            let ahead = std::mem::take(&mut self.ahead);
            return Poll::Ready(Some(Ok(Frame::data(ahead))));
        }
        loop {
            if let Some(error) = self.error.take() {
                return Poll::Ready(Some(Err(error)));
            }
            if self.is_over {
                return Poll::Ready(
                    self.trailers
                        .take()
                        .map(|trailers| Ok(Frame::trailers(trailers))),
                );
            }
            if !self.unchanged.is_empty() {
                let Some(data) = self.push()? else {
                    continue;
                };
                let keeps_back = self.transform.as_ref().is_some_and(|of| of.keeps_back());
                if !keeps_back || !self.unchanged.is_empty() {
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                self.held = Some((data, Box::pin(tokio::time::sleep(FOLLOWS_WITHIN))));
            }
            if self.held.is_some() {
                let data = ready!(self.poll_held(cx))?;
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
            let frame = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => frame,
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                None => match self.finish()? {
                    Some(last) => return Poll::Ready(Some(Ok(last))),
                    None => continue,
                },
            };
            match frame.into_data() {
                Ok(data) if self.transform.is_none() => {
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Ok(data) => self.unchanged = data,
                Err(frame) => {
                    if let Some(last) = self.end(frame.into_trailers().unwrap_or_default())? {
                        return Poll::Ready(Some(Ok(last)));
                    }
                }
            }
        }
    }

    /// Changes what was read, until there is enough for a frame.
    fn push(&mut self) -> io::Result<Option<Bytes>> {
        let mut changed = Vec::new();
        while let Some(transform) = &mut self.transform
            && !self.unchanged.is_empty()
            && changed.len() < FRAME
        {
            let piece = self.unchanged.len().min(transform.piece());
            let piece = self.unchanged.split_to(piece);
            let pushed = transform.push(&piece, &mut changed);
            self.scrubbed = transform.scrubbed();
            pushed.inspect_err(|error| self.broken = Some(error.to_string()))?;
        }
        Ok((!changed.is_empty()).then(|| changed.into()))
    }

    /// Gives out what was changed: at once, or after it is known what follows. A transform that
    /// keeps back what could be the begin of a secret would else tell of that: to whoever counts
    /// frames, the end of a body would come in one of its own.
    fn poll_held(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bytes, BodyError>> {
        let next = match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(next) => next,
            Poll::Pending => {
                if let Some((_, late)) = &mut self.held {
                    ready!(late.as_mut().poll(cx));
                }
                return Poll::Ready(Ok(self.take_held()));
            }
        };
        let data = self.take_held();
        let last = match next {
            None => self.finish()?,
            Some(Err(error)) => {
                // What came before it is passed on first.
                self.error = Some(error.into());
                None
            }
            Some(Ok(frame)) => match frame.into_data() {
                Ok(more) => {
                    self.unchanged = more;
                    None
                }
                Err(frame) => self.end(frame.into_trailers().unwrap_or_default())?,
            },
        };
        let last = last.and_then(|frame| frame.into_data().ok());
        Poll::Ready(Ok(match last {
            Some(last) => [data, last].concat().into(),
            None => data,
        }))
    }

    fn take_held(&mut self) -> Bytes {
        self.held.take().map(|(data, _)| data).unwrap_or_default()
    }

    /// The last of it, before these trailers.
    fn end(&mut self, mut trailers: HeaderMap) -> io::Result<Option<Frame<Bytes>>> {
        headers::strip_trailers(&mut trailers);
        if let Some(transform) = &mut self.transform {
            let passed = transform.trailers(&mut trailers);
            passed.inspect_err(|error| self.broken = Some(error.to_string()))?;
        }
        self.trailers = (!trailers.is_empty()).then_some(trailers);
        self.finish()
    }

    fn finish(&mut self) -> io::Result<Option<Frame<Bytes>>> {
        self.is_over = true;
        let Some(mut transform) = self.transform.take() else {
            return Ok(None);
        };
        let mut last = Vec::new();
        let finished = transform.finish(&mut last);
        self.scrubbed = transform.scrubbed();
        finished.inspect_err(|error| self.broken = Some(error.to_string()))?;
        Ok((!last.is_empty()).then(|| Frame::data(last.into())))
    }

    fn is_end_stream(&self) -> bool {
        match (&self.transform, self.is_over) {
            (_, true) => self.ahead.is_empty() && self.trailers.is_none(),
            (None, false) => self.body.is_end_stream(),
            (Some(_), false) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.transform {
            // With trailers it has no length.
            _ if self.is_over && self.trailers.is_some() => SizeHint::default(),
            _ if self.is_over => {
                SizeHint::with_exact(self.ahead.len().try_into().unwrap_or(u64::MAX))
            }
            Some(transform) if !transform.keeps_length() => SizeHint::default(),
            _ => self.body.size_hint(),
        }
    }
}

/// The body of a request, which can be taken back while it is on its way.
#[derive(Clone)]
pub(crate) struct Upload(Arc<Mutex<Held>>);

struct Held {
    /// None: it was taken back, or is over.
    passing: Option<Passing>,
    /// Who takes it.
    waker: Option<Waker>,
}

impl Upload {
    /// Takes it back: whoever has taken a part of it sees that it was broken off.
    pub(crate) fn cut(&self) -> Option<Incoming> {
        let mut held = self.held();
        if let Some(waker) = held.waker.take() {
            waker.wake();
        }
        held.passing.take().map(|passing| passing.body)
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The body of a request, on its way to a host.
pub(crate) struct Outgoing {
    /// None: there is none.
    upload: Option<Upload>,
    gate: Option<Gate>,
    sent: Arc<AtomicU64>,
    is_done: Arc<AtomicBool>,
}

impl Outgoing {
    pub(crate) fn new(passing: Passing, gate: Option<Gate>, sent: Arc<AtomicU64>) -> Self {
        let is_done = passing.is_end_stream();
        let held = Held {
            passing: Some(passing),
            waker: None,
        };
        Self {
            upload: (!is_done).then(|| Upload(Arc::new(Mutex::new(held)))),
            gate,
            sent,
            is_done: Arc::new(AtomicBool::new(is_done)),
        }
    }

    /// None at all.
    pub(crate) fn empty() -> Self {
        Self {
            upload: None,
            gate: None,
            sent: Arc::default(),
            is_done: Arc::new(AtomicBool::new(true)),
        }
    }

    /// Tells whether all of it was sent.
    pub(crate) fn done(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.is_done)
    }

    /// What takes it back.
    pub(crate) fn upload(&self) -> Option<Upload> {
        self.upload.clone()
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled {
        let this = &mut *self;
        let Some(upload) = &this.upload else {
            return Poll::Ready(None);
        };
        let mut held = upload.held();
        let held = &mut *held;
        let Some(passing) = &mut held.passing else {
            return Poll::Ready(Some(Err("the request may not be any more".into())));
        };
        match &mut held.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        if let Some(gate) = &mut this.gate {
            ready!(gate.poll(cx))?;
            this.gate = None;
        }
        let frame = ready!(passing.poll_frame(cx));
        if let Some(Ok(frame)) = &frame {
            count(&this.sent, frame);
        }
        if frame.is_none() || passing.is_end_stream() {
            this.is_done.store(true, Ordering::Release);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.upload.as_ref().is_none_or(|upload| {
            let held = upload.held();
            held.passing.as_ref().is_some_and(Passing::is_end_stream)
        })
    }

    fn size_hint(&self) -> SizeHint {
        match &self.upload {
            Some(upload) => {
                let held = upload.held();
                let passing = held.passing.as_ref();
                passing.map_or_else(SizeHint::default, Passing::size_hint)
            }
            None => SizeHint::with_exact(0),
        }
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        // Nobody takes any more of it, whoever could still take it back.
        if let Some(upload) = &self.upload {
            upload.held().passing = None;
        }
    }
}

fn count(counter: &AtomicU64, frame: &Frame<Bytes>) {
    let len = frame.data_ref().map_or(0, Bytes::len);
    counter.fetch_add(len.try_into().unwrap_or(u64::MAX), Ordering::Relaxed);
}

/// The body of a response, on its way to the guest. When it is dropped, the request is over.
pub(crate) struct Reply {
    content: Content,
    meter: Option<Meter>,
    /// The connection that it comes from, when it may be used again.
    lease: Option<Lease>,
    /// Who keeps the body of the request from being broken off.
    _opener: Option<Arc<Opener>>,
    /// The body of the request, if nobody takes it. The answer does not end before it.
    unread: Option<Unread>,
    watched: Option<Watched>,
}

/// A request that is ended when it may not be any more.
pub(crate) struct Watched {
    pub(crate) ongoing: Arc<Ongoing>,
    /// Who ends it.
    pub(crate) watch: Option<AbortHandle>,
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(watch) = &self.watch {
            watch.abort();
        }
    }
}

enum Content {
    Whole(Option<Bytes>),
    Passing(Box<Passing>),
}

impl Reply {
    pub(crate) fn whole(bytes: Bytes, meter: Option<Meter>) -> Self {
        Self {
            content: Content::Whole((!bytes.is_empty()).then_some(bytes)),
            meter,
            lease: None,
            _opener: None,
            unread: None,
            watched: None,
        }
    }

    /// The same, with a request whose body nobody takes.
    pub(crate) fn beside(mut self, request: Option<Incoming>) -> Self {
        self.unread = request.and_then(Unread::new);
        self
    }

    /// The same, of a request that may have to end before it is over.
    pub(crate) fn watched(mut self, watched: Watched) -> Self {
        self.watched = Some(watched);
        self
    }

    pub(crate) fn passing(
        passing: Box<Passing>,
        meter: Meter,
        lease: Option<Lease>,
        opener: Option<Arc<Opener>>,
    ) -> Self {
        Self {
            content: Content::Passing(passing),
            meter: Some(meter),
            lease,
            _opener: opener,
            unread: None,
            watched: None,
        }
    }

    fn give_back(&mut self) {
        if let Some(lease) = self.lease.take() {
            lease.give_back();
        }
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled {
        let this = &mut *self;
        let frame = match &mut this.content {
            Content::Whole(bytes) => {
                let frame = bytes.take().map(|bytes| Ok(Frame::data(bytes)));
                if frame.is_none()
                    && let Some(unread) = &mut this.unread
                {
                    // All of the answer is out: it is told of.
                    this.meter = None;
                    ready!(unread.poll_over(cx));
                    this.unread = None;
                }
                frame
            }
            Content::Passing(passing) => {
                let frame = ready!(passing.poll_frame(cx));
                if let Some(meter) = &mut this.meter {
                    meter.scrubbed = passing.scrubbed;
                    if let Some(Err(_)) = &frame {
                        let host = meter.report.host.clone();
                        let why = passing.broken.take();
                        let (code, rule) = match why {
                            Some(why) => (Code::Rule, why),
                            None => (Code::Connect, "it broke its response off".to_owned()),
                        };
                        let rule = Some(rule);
                        meter.report.outcome = Outcome::Refused(Denial { code, host, rule });
                    }
                }
                frame
            }
        };
        match (&frame, &this.meter) {
            (Some(Ok(frame)), Some(meter)) => count(&meter.received, frame),
            (None, _) => this.give_back(),
            _ => {}
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Whole(bytes) => bytes.is_none() && self.unread.is_none(),
            Content::Passing(passing) => passing.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Whole(bytes) => {
                let len = bytes.as_ref().map_or(0, Bytes::len);
                SizeHint::with_exact(len.try_into().unwrap_or(u64::MAX))
            }
            Content::Passing(passing) => passing.size_hint(),
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        // Whoever takes a body need not ask for the end of one that is known to have ended.
        if self.is_end_stream() {
            return self.give_back();
        }
        // What ends it may be the connection to the host, which was ended for the same reason.
        let denial = self.watched.as_ref().and_then(|of| of.ongoing.denial());
        if let (Some(denial), Some(meter)) = (denial, &mut self.meter) {
            meter.report.outcome = Outcome::Refused(denial);
        }
    }
}
