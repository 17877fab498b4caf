//! The connection to the guest of one flow.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use flashpan_protocol::forward::{
    CHUNK_PREFIX, FORWARD_PORT, ForwardAnswer, ForwardFailureKind, ForwardStart, MAX_FORWARD_FRAME,
    Transport,
};
use flashpan_protocol::frame;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

use crate::error::{Error, Result};
use crate::forward::State;
use crate::pump::broken;
use crate::text::one_line;

/// How long a guest may take to connect: longer than it gives itself.
pub(crate) const CONNECT_WITHIN: Duration = Duration::from_secs(30);

/// Longest text of a guest that a message quotes, in characters.
const QUOTED: usize = 300;

/// What is read ahead of a guest's chunks.
const READ_AHEAD: usize = 32 * 1024;

/// A flow that is open in the guest.
#[derive(Debug)]
pub(crate) struct ForwardLink {
    pub(crate) chunks: ChunkReader,
    pub(crate) writer: OwnedWriteHalf,
}

/// Chunks from the guest.
#[derive(Debug)]
pub(crate) struct ChunkReader(BufReader<OwnedReadHalf>);

impl ForwardLink {
    /// Connects to a port of the guest.
    pub(crate) async fn open(state: &State, transport: Transport, port: u16) -> Result<Self> {
        let start = ForwardStart {
            transport,
            address: state.guest_address,
            port,
        };
        let request = frame::encode(&start, MAX_FORWARD_FRAME)?;
        let target = SocketAddr::new(start.address, port);
        let connecting = async {
            let (reader, writer, _written) = state.dialer.dial(FORWARD_PORT, &request).await?;
            // If the request was not taken, there is an answer that says why.
            let mut reader = BufReader::with_capacity(READ_AHEAD, reader);
            match answer(&mut reader).await? {
                ForwardAnswer::Connected => Ok(Self {
                    chunks: ChunkReader(reader),
                    writer,
                }),
                ForwardAnswer::Failed(failure) => Err(Error::Forward {
                    target,
                    transport,
                    kind: failure.kind,
                    errno: failure.errno,
                    message: one_line(&failure.message, QUOTED),
                }),
            }
        };
        let late = |_| Error::Timeout {
            what: "connect to the port",
            after: CONNECT_WITHIN,
        };
        timeout(CONNECT_WITHIN, connecting).await.map_err(late)?
    }

    /// The error of a flow that the guest has not ended but lost.
    pub(crate) fn lost(state: &State, transport: Transport, port: u16) -> Error {
        Error::Forward {
            target: SocketAddr::new(state.guest_address, port),
            transport,
            kind: ForwardFailureKind::Other,
            errno: 0,
            message: "the connection was reset".to_owned(),
        }
    }
}

async fn answer(reader: &mut BufReader<OwnedReadHalf>) -> Result<ForwardAnswer> {
    let mute = |_| broken("it ended a forwarded connection without a word".to_owned());
    let length = reader.read_u32_le().await.map_err(mute)?;
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if length > MAX_FORWARD_FRAME {
        return Err(broken(format!("an answer of {length} bytes")));
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).await.map_err(mute)?;
    frame::from_bytes(&body).map_err(|error| broken(error.to_string()))
}

impl ChunkReader {
    /// Reads the next chunk into `buffer`, which has room for any; `None` if the
    /// guest has closed.
    pub(crate) async fn next<'a>(&mut self, buffer: &'a mut [u8]) -> io::Result<Option<&'a [u8]>> {
        let mut prefix = [0; CHUNK_PREFIX];
        if self.0.read(&mut prefix[..1]).await? == 0 {
            return Ok(None);
        }
        self.0.read_exact(&mut prefix[1..]).await?;
        let length = usize::from(u16::from_le_bytes(prefix));
        let Some(content) = buffer.get_mut(..length) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        self.0.read_exact(content).await?;
        Ok(Some(content))
    }

    /// Waits until the guest closes.
    pub(crate) async fn closed(&mut self) {
        let mut byte = [0];
        while matches!(self.0.read(&mut byte).await, Ok(1..)) {}
    }
}

/// Sends a chunk: the content is in `buffer` from [`CHUNK_PREFIX`] on.
pub(crate) async fn send_chunk(
    writer: &mut OwnedWriteHalf,
    buffer: &mut [u8],
    length: usize,
) -> io::Result<()> {
    let end = length.saturating_add(CHUNK_PREFIX);
    if let (Ok(length), Some(prefix)) = (u16::try_from(length), buffer.first_chunk_mut()) {
        *prefix = length.to_le_bytes();
    }
    writer
        .write_all(buffer.get(..end).unwrap_or_default())
        .await
}
