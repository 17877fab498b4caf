//! The report of one flow: what passed is counted while it does, and told when it ends,
//! however it ends.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::gateway::Route;
use crate::host::Host;
use crate::policy::Denial;
use crate::report::{Outcome, Report, Reporter};

/// Bytes that have passed.
#[derive(Debug, Default)]
pub(crate) struct Passed {
    pub(crate) sent: AtomicU64,
    pub(crate) received: AtomicU64,
}

/// Tells of a flow when it is dropped.
#[derive(Debug)]
pub(crate) struct Telling {
    reporter: Reporter,
    report: Option<Report>,
    begun: Instant,
    passed: Arc<Passed>,
}

impl Telling {
    /// Of what begins now.
    pub(crate) fn new(reporter: &Reporter, report: Report) -> Self {
        Self {
            reporter: reporter.clone(),
            report: Some(report),
            begun: Instant::now(),
            passed: Arc::default(),
        }
    }

    /// It was refused, or failed.
    pub(crate) fn refused(&mut self, denial: Denial) {
        if let Some(report) = &mut self.report {
            report.outcome = Outcome::Refused(denial);
        }
    }

    /// It may be, and leads there.
    pub(crate) fn allowed(&mut self, route: &Route, port: u16) {
        let (host, basis) = match route {
            Route::Direct { host, basis, .. } => (host.clone(), basis),
            Route::Named { name, basis } => (Host::Name(name.clone()), basis),
            Route::Names | Route::Http { .. } => return,
        };
        if let Some(report) = &mut self.report {
            report.host = format!("{host}:{port}");
            report.outcome = Outcome::Allowed(basis.clone());
        }
    }

    /// What has passed so far, to be counted on.
    pub(crate) fn passed(&self) -> &Arc<Passed> {
        &self.passed
    }
}

impl Drop for Telling {
    fn drop(&mut self) {
        if let Some(mut report) = self.report.take() {
            report.duration = self.begun.elapsed();
            report.sent = self.passed.sent.load(Ordering::Relaxed);
            report.received = self.passed.received.load(Ordering::Relaxed);
            self.reporter.tell(report);
        }
    }
}

/// The guest's end of a stream, with what passes counted: what is read from it the guest
/// has sent.
#[derive(Debug)]
pub(crate) struct Counted<S> {
    stream: S,
    passed: Arc<Passed>,
}

impl<S> Counted<S> {
    pub(crate) fn new(stream: S, passed: &Arc<Passed>) -> Self {
        Self {
            stream,
            passed: Arc::clone(passed),
        }
    }
}

fn add(count: &AtomicU64, bytes: usize) {
    count.fetch_add(u64::try_from(bytes).unwrap_or(u64::MAX), Ordering::Relaxed);
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        add(
            &self.passed.sent,
            buffer.filled().len().saturating_sub(before),
        );
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes))?;
        add(&self.passed.received, written);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, buffers))?;
        add(&self.passed.received, written);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
