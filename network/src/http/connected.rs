//! A connection to a host, with what it is judged by.

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;

/// A connection to a host, and the address that it was allowed for: the policy may come to
/// deny that one.
#[derive(Debug)]
pub struct Connected {
    stream: TcpStream,
    address: IpAddr,
    /// One of those connections that there may be at once.
    room: Option<OwnedSemaphorePermit>,
}

impl Connected {
    /// A connection that nobody counts, allowed for this address.
    #[must_use]
    pub fn new(stream: TcpStream, address: IpAddr) -> Self {
        Self {
            stream,
            address,
            room: None,
        }
    }

    /// Counted for as long as it lasts.
    pub(crate) fn counted(mut self, room: OwnedSemaphorePermit) -> Self {
        self.room = Some(room);
        self
    }

    /// The address that it was allowed for.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// The connection alone, not counted any more.
    #[must_use]
    pub fn into_stream(self) -> TcpStream {
        self.stream
    }
}

impl AsyncRead for Connected {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connected {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
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
        Pin::new(&mut self.stream).poll_write_vectored(cx, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
