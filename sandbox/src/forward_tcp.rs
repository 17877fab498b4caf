//! Forwarded TCP connections.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use flashpan_protocol::forward::{CHUNK_PREFIX, MAX_CHUNK, Transport};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{KeepAlive, TcpKeepCount, TcpKeepIdle, TcpKeepInterval};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::forward::{ForwardBinding, State};
use crate::forward_card::Broken;
use crate::forward_link::{ChunkReader, ForwardLink, send_chunk};

/// Most bytes that are read at a time.
const READ_MAX: usize = 32 * 1024;

/// How long no connection is accepted after the kernel could not.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// After how many seconds of silence a client is asked whether it is there, how many
/// seconds later again, and how often before it is taken for gone.
const KEEP_IDLE: u32 = 60;
const KEEP_INTERVAL: u32 = 15;
const KEEP_COUNT: u32 = 4;

/// Accepts connections for as long as it is not dropped.
pub(crate) async fn serve(listener: TcpListener, binding: ForwardBinding, state: Arc<State>) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &state) => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let (client, address, room) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                let error = crate::Error::host("accept a connection")(error);
                state.failed(&binding, None, error);
                // Out of descriptors, say; it stays in the backlog.
                tokio::time::sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        let (binding, state) = (binding.clone(), Arc::clone(&state));
        connections.spawn(async move {
            let _room = room;
            let _counted = state.count();
            let failed = connection(Client::new(client), &binding, &state).await;
            if let Err(error) = failed {
                state.failed(&binding, Some(address), error);
            }
        });
    }
}

/// The next connection, when there is room for one. Cancel safe.
async fn accept(
    listener: &TcpListener,
    state: &State,
) -> io::Result<(TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit)> {
    let room = Arc::clone(&state.room).acquire_owned().await;
    let room = room.map_err(io::Error::other)?;
    let (client, address) = listener.accept().await?;
    Ok((client, address, room))
}

/// A client whose connection is reset when it is dropped, unless it has ended
/// in order.
struct Client {
    stream: TcpStream,
    in_order: bool,
}

impl Client {
    fn new(stream: TcpStream) -> Self {
        // Whoever wants to gather small pieces has done so before.
        let _ = stream.set_nodelay(true);
        // A connection without is as good until its client vanishes.
        let _ = keep_alive(&stream);
        Self {
            stream,
            in_order: false,
        }
    }
}

/// Lets the kernel find out within two minutes that the client is gone without a
/// word: its connection would keep its place among those of the guest for ever.
fn keep_alive(stream: &TcpStream) -> nix::Result<()> {
    setsockopt(stream, TcpKeepIdle, &KEEP_IDLE)?;
    setsockopt(stream, TcpKeepInterval, &KEEP_INTERVAL)?;
    setsockopt(stream, TcpKeepCount, &KEEP_COUNT)?;
    setsockopt(stream, KeepAlive, &true)
}

impl Drop for Client {
    fn drop(&mut self) {
        if !self.in_order {
            let _ = self.stream.set_zero_linger();
        }
    }
}

async fn connection(
    mut client: Client,
    binding: &ForwardBinding,
    state: &State,
) -> crate::Result<()> {
    let port = binding.remote_port;
    let by_card = match &state.card {
        Some(card) => card.open(&state.dialer, port).await,
        None => None,
    };
    if let Some(link) = by_card {
        return match link.relay(&mut client.stream).await {
            Ok(()) => {
                client.in_order = true;
                Ok(())
            }
            Err(Broken::Client) => Ok(()),
            Err(Broken::Guest) => Err(ForwardLink::lost(state, Transport::Tcp, port)),
        };
    }
    let mut link = ForwardLink::open(state, Transport::Tcp, port).await?;
    let (from_client, to_client) = client.stream.split();
    let ended = tokio::try_join!(
        to_guest(from_client, &mut link.writer),
        from_guest(&mut link.chunks, to_client),
    );
    match ended {
        Ok(_) => {
            // What the guest still has for its program would be lost.
            link.chunks.closed().await;
            client.in_order = true;
            Ok(())
        }
        Err(Broken::Client) => Ok(()),
        Err(Broken::Guest) => Err(ForwardLink::lost(state, Transport::Tcp, port)),
    }
}

async fn to_guest(mut client: ReadHalf<'_>, guest: &mut OwnedWriteHalf) -> Result<(), Broken> {
    let mut buffer = vec![0; CHUNK_PREFIX + READ_MAX];
    loop {
        let content = buffer.get_mut(CHUNK_PREFIX..).unwrap_or_default();
        let read = client.read(content).await.map_err(|_| Broken::Client)?;
        // An empty one is the end.
        let sent = send_chunk(guest, &mut buffer, read).await;
        sent.map_err(|_| Broken::Guest)?;
        if read == 0 {
            return Ok(());
        }
    }
}

async fn from_guest(guest: &mut ChunkReader, mut client: WriteHalf<'_>) -> Result<(), Broken> {
    let mut buffer = vec![0; MAX_CHUNK];
    loop {
        let next = guest.next(&mut buffer).await.map_err(|_| Broken::Guest)?;
        let sent = match next.ok_or(Broken::Guest)? {
            [] => client.shutdown().await,
            content => client.write_all(content).await,
        };
        sent.map_err(|_| Broken::Client)?;
        if next == Some(&[]) {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests;
