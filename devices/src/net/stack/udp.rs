//! A conversation by UDP: datagrams of one tuple, one for one on a socket pair.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::time::Duration;

use event_manager::EventSet;
use flashpan_protocol::network::Tuple;
use smoltcp::wire::EthernetAddress;
use vm_memory::VolatileSlice;

use super::answer;
use super::output::Output;
use crate::sock;

/// How long a conversation lasts in which nothing is said (RFC 4787 §4.3 wants two
/// minutes).
const IDLE: Duration = Duration::from_secs(120);

/// The same for questions to a name server, which are answered at once or never.
const IDLE_DNS: Duration = Duration::from_secs(15);

const DNS: u16 = 53;

/// Datagrams that wait for a flow to be accepted. More are dropped.
pub(super) const MAX_WAITING: usize = 4;

/// Datagrams taken from the host before others have their turn.
const PER_TURN: usize = 16;

/// The longest datagram there is.
const MAX_DATAGRAM: usize = 65_535;

/// A conversation that was accepted.
#[derive(Debug)]
pub(super) struct UdpFlow {
    pub(super) socket: OwnedFd,
    /// What the socket is watched for.
    pub(super) watched: Option<EventSet>,
    readable: bool,
    /// The host has closed its end.
    hung_up: bool,
}

/// How a turn ended.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Turn {
    /// Datagrams given to the guest.
    pub(super) delivered: u64,
    /// Datagrams that do not fit on the link.
    pub(super) too_long: u64,
    /// There may be more.
    pub(super) more: bool,
}

/// How long a conversation with this destination may be silent.
pub(super) fn patience(tuple: &Tuple) -> Duration {
    if tuple.destination.port() == DNS {
        IDLE_DNS
    } else {
        IDLE
    }
}

impl UdpFlow {
    /// A conversation whose first datagrams are these.
    pub(super) fn new(socket: OwnedFd, waiting: VecDeque<Vec<u8>>) -> Self {
        let flow = Self {
            socket,
            watched: None,
            readable: true,
            hung_up: false,
        };
        for datagram in waiting {
            flow.datagram(&datagram);
        }
        flow
    }

    /// What the socket has to be watched for.
    pub(super) fn interest(&self) -> Option<EventSet> {
        (!self.hung_up).then_some(if self.readable {
            EventSet::empty()
        } else {
            EventSet::IN
        })
    }

    /// The socket has something to read, if only that the host has closed its end.
    pub(super) fn ready(&mut self, gone: bool) {
        self.readable = true;
        self.hung_up |= gone;
    }

    /// A datagram of the guest; false if the host did not take it, and it is lost.
    pub(super) fn datagram(&self, payload: &[u8]) -> bool {
        sock::send_halves(&self.socket, (payload, &[])).is_ok()
    }

    /// Gives datagrams of the host to the guest. An error: the host has left.
    pub(super) fn pump(
        &mut self,
        output: &mut Output,
        peer: EthernetAddress,
        tuple: &Tuple,
        scratch: &mut Vec<u8>,
        mtu: usize,
    ) -> io::Result<Turn> {
        let mut turn = Turn::default();
        scratch.resize(MAX_DATAGRAM, 0);
        for _ in 0..PER_TURN {
            if !self.readable {
                return Ok(turn);
            }
            if !output.has_room() {
                break;
            }
            let slice = VolatileSlice::from(scratch.as_mut_slice());
            let count = match sock::receive(&self.socket, &[slice]) {
                // An empty datagram looks like the end.
                Ok(0) if self.hung_up => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.readable = false;
                    return Ok(turn);
                }
                Err(error) => return Err(error),
            };
            let payload = scratch.get(..count).unwrap_or_default();
            let (source, destination) = (tuple.destination, tuple.source);
            if answer::udp(output, peer, source, destination, payload, mtu) {
                turn.delivered += 1;
            } else {
                turn.too_long += 1;
            }
        }
        turn.more = true;
        Ok(turn)
    }
}
