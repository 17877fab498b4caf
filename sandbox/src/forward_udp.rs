//! Forwarded datagrams: for each client a flow of its own, so that answers find
//! their way back.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use flashpan_protocol::forward::{CHUNK_PREFIX, MAX_CHUNK, Transport};
use tokio::net::UdpSocket;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::error::Result;
use crate::forward::{Counted, ForwardBinding, State};
use crate::forward_link::{ForwardLink, send_chunk};

/// Datagrams of a client that wait for the guest.
const WAITING: usize = 64;

/// Bytes of all that wait, of one port.
const WAITING_BYTES: usize = 4 * 1024 * 1024;

/// A datagram as a chunk, with its place in front, and the memory it takes.
struct Datagram {
    chunk: Vec<u8>,
    _memory: OwnedSemaphorePermit,
}

/// Takes datagrams for as long as it is not dropped.
pub(crate) async fn serve(socket: UdpSocket, binding: ForwardBinding, state: Arc<State>) {
    let socket = Arc::new(socket);
    let memory = Arc::new(Semaphore::new(WAITING_BYTES));
    let mut clients: HashMap<SocketAddr, mpsc::Sender<Datagram>> = HashMap::new();
    let mut flows = JoinSet::new();
    let mut buffer = vec![0; CHUNK_PREFIX + MAX_CHUNK];
    loop {
        let content = buffer.get_mut(CHUNK_PREFIX..).unwrap_or_default();
        let (length, client) = tokio::select! {
            received = socket.recv_from(content) => match received {
                Ok(received) => received,
                // News of a datagram that did not arrive somewhere.
                Err(_) => continue,
            },
            Some(ended) = flows.join_next() => {
                // It may have come back meanwhile.
                if let Ok(client) = ended
                    && clients.get(&client).is_some_and(mpsc::Sender::is_closed)
                {
                    clients.remove(&client);
                }
                continue;
            }
        };
        let size = length.saturating_add(CHUNK_PREFIX);
        let permits = u32::try_from(size).unwrap_or(u32::MAX);
        let Ok(memory) = Arc::clone(&memory).try_acquire_many_owned(permits) else {
            state.dropped();
            continue;
        };
        let datagram = Datagram {
            chunk: buffer.get(..size).unwrap_or_default().to_vec(),
            _memory: memory,
        };
        if clients.get(&client).is_none_or(mpsc::Sender::is_closed) {
            let Ok(room) = Arc::clone(&state.room).try_acquire_owned() else {
                state.dropped();
                continue;
            };
            let (sender, datagrams) = mpsc::channel(WAITING);
            clients.insert(client, sender);
            let (socket, binding) = (Arc::clone(&socket), binding.clone());
            let (state, counted) = (Arc::clone(&state), state.count());
            flows.spawn(async move {
                let ended = flow(&socket, client, datagrams, &binding, &state).await;
                if let Err(error) = ended {
                    state.failed(&binding, Some(client), error);
                }
                drop::<(OwnedSemaphorePermit, Counted)>((room, counted));
                client
            });
        }
        let sent = clients.get(&client).map(|flow| flow.try_send(datagram));
        if !matches!(sent, Some(Ok(()))) {
            state.dropped();
        }
    }
}

/// Serves a client until it, and the guest, have said nothing for a while.
async fn flow(
    socket: &UdpSocket,
    client: SocketAddr,
    mut datagrams: mpsc::Receiver<Datagram>,
    binding: &ForwardBinding,
    state: &State,
) -> Result<()> {
    let port = binding.remote_port;
    let ForwardLink {
        mut chunks,
        mut writer,
    } = ForwardLink::open(state, Transport::Udp, port).await?;
    // Either side can be busy without the other.
    let heard = tokio::sync::watch::channel(Instant::now());
    let (heard, mut silence) = heard;
    let to_guest = async {
        while let Some(mut datagram) = datagrams.recv().await {
            heard.send_replace(Instant::now());
            let length = datagram.chunk.len().saturating_sub(CHUNK_PREFIX);
            if send_chunk(&mut writer, &mut datagram.chunk, length)
                .await
                .is_err()
            {
                return;
            }
        }
    };
    let from_guest = async {
        let mut buffer = vec![0; MAX_CHUNK];
        while let Ok(Some(datagram)) = chunks.next(&mut buffer).await {
            heard.send_replace(Instant::now());
            // What cannot be sent is lost, as datagrams are.
            let _ = socket.send_to(datagram, client).await;
        }
    };
    let idle = async {
        loop {
            let since = *silence.borrow_and_update();
            match since.checked_add(state.udp_idle) {
                Some(until) => sleep_until(until).await,
                None => std::future::pending().await,
            }
            if !silence.has_changed().unwrap_or(false) {
                return;
            }
        }
    };
    tokio::select! {
        () = to_guest => Err(ForwardLink::lost(state, Transport::Udp, port)),
        () = from_guest => Err(ForwardLink::lost(state, Transport::Udp, port)),
        () = idle => Ok(()),
    }
}
