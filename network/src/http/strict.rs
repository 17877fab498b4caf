//! HTTP/1 as a guest sends it, looked at before anything takes it: what two readers could
//! understand in two ways does not pass.
//!
//! The parser behind this is made to be lenient where most clients need it to be: of
//! `Content-Length` and `Transfer-Encoding` it takes one and forgets the other, a line may
//! end without a carriage return. What it makes of such a request is not what a server
//! would that never sees it. So heads are kept here until they are whole, and given on only
//! if there is one way to read them; bodies are followed to know where the next head begins.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use super::MAX_HEAD;
use super::head::{Fault, Framing, read_head};

/// What is read at once.
const BUFFER: usize = 16 * 1024;

/// The longest line with the size of a chunk: 16 digits.
const MAX_SIZE_LINE: usize = 16;

/// The longest trailers.
const MAX_TRAILERS: usize = 16 * 1024;

/// What both ends of the parser know of a connection.
#[derive(Debug)]
pub(crate) struct Switch {
    /// What nobody else can know: a request with this as its path says what was wrong.
    nonce: String,
    after_upgrade: Mutex<AfterUpgrade>,
}

#[derive(Debug, Default)]
struct AfterUpgrade {
    decided: Option<bool>,
    waker: Option<Waker>,
}

impl Switch {
    pub(crate) fn new(nonce: [u8; 16]) -> Self {
        Self {
            nonce: nonce.iter().map(|byte| format!("{byte:02x}")).collect(),
            after_upgrade: Mutex::default(),
        }
    }

    /// What was wrong, if this is no request of a guest.
    pub(crate) fn fault(&self, path: &str) -> Option<Fault> {
        let path = path.strip_prefix('/')?;
        let (nonce, fault) = path.split_once('/')?;
        (nonce == self.nonce).then(|| Fault::of_word(fault))
    }

    /// Says what follows a request for another protocol: that protocol, or requests.
    pub(crate) fn decide(&self, is_upgraded: bool) {
        let mut after = self.lock();
        after.decided = Some(is_upgraded);
        if let Some(waker) = after.waker.take() {
            waker.wake();
        }
    }

    fn poll_decided(&self, cx: &mut Context<'_>) -> Poll<bool> {
        let mut after = self.lock();
        match after.decided.take() {
            Some(is_upgraded) => Poll::Ready(is_upgraded),
            None => {
                after.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, AfterUpgrade> {
        self.after_upgrade
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// A stream of a guest that gives nothing that could be read in two ways.
#[derive(Debug)]
pub(crate) struct Strict<S> {
    stream: S,
    switch: Arc<Switch>,
    state: State,
    /// What was read and not looked at.
    input: Vec<u8>,
    /// Where in it.
    at: usize,
    /// The part of a head, of a line or of trailers that is there.
    part: Vec<u8>,
    /// What was looked at and not given on.
    output: Vec<u8>,
    given: usize,
    /// After a request that was refused: until when it is listened to, and how much of it.
    rest: Option<(Pin<Box<Sleep>>, usize)>,
}

/// Who sends what is refused may see the answer only when all of it is taken: so long it is,
/// and so much.
const REST_WITHIN: Duration = Duration::from_secs(5);
const MAX_REST: usize = 4 * 1024 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Head,
    /// So many bytes of a body.
    Length(u64),
    /// The size of a chunk.
    Size,
    /// So many bytes of a chunk.
    Chunk(u64),
    /// The end of line after a chunk.
    ChunkEnd,
    Trailers,
    /// A request for another protocol was made.
    Upgrade,
    /// It is another protocol.
    Opaque,
    /// Nothing more is given on.
    Refused,
}

impl State {
    /// The state after so many bytes of a body, which has at least as many.
    fn after(self, passed: u64) -> Self {
        match self {
            Self::Length(left) if left == passed => Self::Head,
            Self::Length(left) => Self::Length(left.saturating_sub(passed)),
            Self::Chunk(left) if left == passed => Self::ChunkEnd,
            Self::Chunk(left) => Self::Chunk(left.saturating_sub(passed)),
            other => other,
        }
    }
}

impl<S> Strict<S> {
    pub(crate) fn new(stream: S, switch: Arc<Switch>) -> Self {
        Self {
            stream,
            switch,
            state: State::Head,
            input: Vec::new(),
            at: 0,
            part: Vec::new(),
            output: Vec::new(),
            given: 0,
            rest: None,
        }
    }

    /// Gives what may be given. Whether there was anything.
    fn give(&mut self, buf: &mut ReadBuf<'_>) -> bool {
        let left = self.output.get(self.given..).unwrap_or_default();
        if left.is_empty() {
            return false;
        }
        let now = left.get(..left.len().min(buf.remaining()));
        let now = now.unwrap_or_default();
        buf.put_slice(now);
        self.given += now.len();
        if self.given == self.output.len() {
            self.output.clear();
            self.given = 0;
        }
        true
    }

    /// Looks at what was read, until it is used up or somebody has to decide.
    fn look(&mut self) -> io::Result<()> {
        while let Some(rest) = self.input.get(self.at..)
            && !rest.is_empty()
            && self.state != State::Upgrade
        {
            match self.state {
                State::Length(left) | State::Chunk(left) => {
                    self.state = self.state.after(self.pass(left));
                }
                State::Opaque => drop(self.pass(u64::MAX)),
                State::Refused => self.at = self.input.len(),
                State::Head => self.look_at_head(),
                State::Size | State::ChunkEnd | State::Trailers => self.look_at_line()?,
                State::Upgrade => {}
            }
        }
        if self.at == self.input.len() {
            self.input.clear();
            self.at = 0;
        }
        Ok(())
    }

    /// Passes on up to so many bytes. How many it were.
    fn pass(&mut self, most: u64) -> u64 {
        let rest = self.input.get(self.at..).unwrap_or_default();
        let len = rest.len().min(usize::try_from(most).unwrap_or(usize::MAX));
        self.output
            .extend_from_slice(rest.get(..len).unwrap_or_default());
        self.at += len;
        len.try_into().unwrap_or(u64::MAX)
    }

    /// Takes bytes up to and with the next line feed. Whether there was one.
    fn take_line(&mut self) -> bool {
        let rest = self.input.get(self.at..).unwrap_or_default();
        let end = rest.iter().position(|byte| *byte == b'\n');
        let len = end.map_or(rest.len(), |end| end + 1);
        self.part
            .extend_from_slice(rest.get(..len).unwrap_or_default());
        self.at += len;
        end.is_some()
    }

    fn look_at_head(&mut self) {
        let is_line = self.take_line();
        // An empty line before a request is nothing (RFC 9112 §2.2).
        if self.part == b"\r\n" {
            self.part.clear();
            return;
        }
        let head = match read_head(&self.part, is_line) {
            Ok(None) if self.part.len() > MAX_HEAD => Err(Fault::TooLarge),
            Ok(None) => return,
            Ok(Some(framing)) => Ok(framing),
            Err(fault) => Err(fault),
        };
        match head {
            Ok(framing) => {
                self.output.append(&mut self.part);
                self.state = match framing {
                    Framing::Length(0) => State::Head,
                    Framing::Length(len) => State::Length(len),
                    Framing::Chunked => State::Size,
                    Framing::Upgrade => State::Upgrade,
                };
            }
            Err(fault) => {
                self.part.clear();
                let (nonce, word) = (&self.switch.nonce, fault.word());
                let told = format!("GET /{nonce}/{word} HTTP/1.1\r\nhost: none\r\n\r\n");
                self.output.extend_from_slice(told.as_bytes());
                self.state = State::Refused;
            }
        }
    }

    /// What is between chunks.
    fn look_at_line(&mut self) -> io::Result<()> {
        let wrong = || io::Error::from(io::ErrorKind::InvalidData);
        let is_line = self.take_line();
        let most = match self.state {
            State::Trailers => MAX_TRAILERS,
            _ => MAX_SIZE_LINE + 2,
        };
        if self.part.len() > most {
            return Err(wrong());
        }
        if !is_line {
            return Ok(());
        }
        let line = match self.state {
            State::Trailers => self.part.as_slice(),
            _ => self.part.strip_suffix(b"\r\n").ok_or_else(wrong)?,
        };
        self.state = match self.state {
            State::ChunkEnd if line.is_empty() => State::Size,
            State::Size => {
                let is_size = !line.is_empty() && line.iter().all(u8::is_ascii_hexdigit);
                let digits = std::str::from_utf8(line).map_err(|_| wrong())?;
                match u64::from_str_radix(digits, 16) {
                    Ok(0) if is_size => State::Trailers,
                    Ok(len) if is_size => State::Chunk(len),
                    _ => return Err(wrong()),
                }
            }
            State::Trailers => match super::head::read_trailers(line) {
                Some(true) => State::Head,
                Some(false) => return Ok(()),
                None => return Err(wrong()),
            },
            _ => return Err(wrong()),
        };
        self.output.append(&mut self.part);
        Ok(())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Strict<S> {
    /// Takes what the guest still sends, to nowhere.
    fn poll_rest(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let begin = || (Box::pin(tokio::time::sleep(REST_WITHIN)), MAX_REST);
        let (late, left) = self.rest.get_or_insert_with(begin);
        loop {
            if late.as_mut().poll(cx).is_ready() {
                return Poll::Ready(());
            }
            let mut space = [0; BUFFER];
            let mut space = ReadBuf::new(&mut space);
            let read = ready!(Pin::new(&mut self.stream).poll_read(cx, &mut space));
            let len = space.filled().len();
            if read.is_err() || len == 0 || len > *left {
                return Poll::Ready(());
            }
            *left -= len;
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Strict<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            if this.give(buf) {
                return Poll::Ready(Ok(()));
            }
            if this.state == State::Upgrade {
                this.state = match ready!(this.switch.poll_decided(cx)) {
                    true => State::Opaque,
                    false => State::Head,
                };
            }
            this.look()?;
            if !this.output.is_empty() || this.state == State::Upgrade {
                continue;
            }
            // Bodies that are not in chunks need not be copied to be followed.
            let direct = match this.state {
                State::Opaque => Some(u64::MAX),
                State::Length(left) | State::Chunk(left) => Some(left),
                _ => None,
            };
            if let Some(left) = direct {
                let most = usize::try_from(left).unwrap_or(usize::MAX);
                let space = buf.initialize_unfilled_to(most.min(buf.remaining()));
                let mut space = ReadBuf::new(space);
                ready!(Pin::new(&mut this.stream).poll_read(cx, &mut space))?;
                let len = space.filled().len();
                buf.advance(len);
                this.state = this.state.after(len.try_into().unwrap_or(u64::MAX));
                return Poll::Ready(Ok(()));
            }
            let mut space = [0; BUFFER];
            let mut space = ReadBuf::new(&mut space);
            ready!(Pin::new(&mut this.stream).poll_read(cx, &mut space))?;
            if space.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            this.input.extend_from_slice(space.filled());
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Strict<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.rest.is_none() {
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
        }
        if self.state == State::Refused {
            ready!(self.poll_rest(cx));
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Gives one piece at a time.
    async fn read(pieces: &[&[u8]]) -> (Vec<u8>, Option<io::ErrorKind>) {
        let (mut guest, side) = tokio::io::duplex(1 << 16);
        let switch = Arc::new(Switch::new([7; 16]));
        let mut strict = Strict::new(side, switch);
        let write = async move {
            for piece in pieces {
                guest.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
        };
        let mut output = Vec::new();
        let read = strict.read_to_end(&mut output);
        let ((), ended) = tokio::join!(write, read);
        (output, ended.err().map(|error| error.kind()))
    }

    /// Requests, whole and in parts, and what is none.
    fn part() -> impl Strategy<Value = Vec<u8>> {
        let fixed = [
            "GET / HTTP/1.1\r\n",
            "POST /a?b HTTP/1.1\r\n",
            "GET / HTTP/1.0\r\n",
            "Host: a.test\r\n",
            "Content-Length: 5\r\n",
            "Content-Length: 0\r\n",
            "Transfer-Encoding: chunked\r\n",
            "X: y\r\n",
            "\r\n",
            "\n",
            "\r",
            " ",
            "hello",
            "5\r\nhello\r\n",
            "0\r\n\r\n",
            "0\r\nX: y\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            "GET / HTTP/1.1\r\n\r\n",
        ];
        prop_oneof![
            9 => prop::sample::select(fixed.to_vec()).prop_map(|text| text.as_bytes().to_vec()),
            1 => prop::collection::vec(any::<u8>(), 0..4),
        ]
    }

    proptest! {
        /// In whatever pieces bytes come, what is given on is the same; and it is what came,
        /// up to what is wrong.
        #[test]
        fn pieces_do_not_matter(
            parts in prop::collection::vec(part(), 1..12),
            cuts in prop::collection::vec(0..200_usize, 0..6),
        ) {
            let bytes = parts.concat();
            let mut cuts: Vec<_> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let pieces: Vec<_> = cuts.windows(2).map(|cut| &bytes[cut[0]..cut[1]]).collect();
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let (whole, whole_ended) = runtime.block_on(read(&[&bytes]));
            let (cut, cut_ended) = runtime.block_on(read(&pieces));
            prop_assert_eq!(whole_ended, cut_ended);
            if whole_ended.is_none() {
                prop_assert_eq!(&whole, &cut);
            }
            // Lines that are nothing were left out before requests.
            let told = b"GET /0707";
            let end = whole.windows(told.len()).position(|at| at == told);
            let plain = &whole[..end.unwrap_or(whole.len())];
            let mut rest = bytes.as_slice();
            for byte in plain {
                while rest.starts_with(b"\r\n") && rest[0] != *byte {
                    rest = &rest[2..];
                }
                prop_assert_eq!(rest.first(), Some(byte));
                rest = &rest[1..];
            }
        }
    }
}
