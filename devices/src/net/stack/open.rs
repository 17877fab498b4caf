//! Connections that the host begins, to ports of the guest.
//!
//! They come from the gateway's address, from a port that no other flow of that port of the
//! guest has, and are then flows as all others are. The guest cannot make one: it can only
//! answer the SYN of one, with what acknowledges exactly that.

use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::time::Duration as StdDuration;

use flashpan_protocol::network::{NotOpened, Protocol, Tuple};
use smoltcp::wire::{EthernetAddress, IpVersion};

use super::table::State;
use super::tcp::{Opening, TcpFlow};
use super::{Stack, from_std};
use crate::net::{MAX_FLOWS, NetEvent};

/// How long the guest may take to answer. It is at the other end of a link that loses
/// nothing: who does not answer has a filter that drops what comes, or a queue that is full,
/// for which there is time to ask once more (RFC 6298 §2.1).
pub(super) const ANSWER: StdDuration = StdDuration::from_millis(1500);

/// The gateway's first port for this: none below it is for everybody.
pub(super) const FIRST_PORT: u16 = 1024;

impl Stack {
    /// Connects `stream` to a TCP port of the guest, from the gateway's address to the IPv4
    /// address of the card. [`NetEvent::Opened`] or [`NetEvent::NotOpened`] follows, with
    /// `request`.
    pub fn open(&mut self, request: u64, port: u16, stream: UnixStream) {
        // Whatever comes of it is seen to in the next run.
        self.reactor.wake();
        match self.begin(request, port, stream) {
            Some(id) => self.table.queue(id),
            None => self.events.push(NetEvent::NotOpened {
                request,
                why: NotOpened::NoRoom,
            }),
        }
    }

    fn begin(&mut self, request: u64, port: u16, stream: UnixStream) -> Option<u64> {
        if self.table.is_full() {
            return None;
        }
        let tuple = self.free_tuple(port)?;
        let opening = Opening::new(request, self.now() + from_std(ANSWER));
        let most = self.output.most_segment(IpVersion::Ipv4);
        let interface = self.interfaces.of(IpVersion::Ipv4);
        let flows = self.table.len();
        let flow = TcpFlow::open(interface, &tuple, opening, stream, flows, most)?;
        let peer = EthernetAddress(self.link.guest_mac);
        let state = State::Tcp(Box::new(flow));
        Some(self.table.add(Protocol::Tcp, tuple, peer, state))
    }

    /// A tuple, as the guest has it, that no flow has. Ports of the gateway have their turn
    /// one after the other: the guest may remember the connection that had one last.
    fn free_tuple(&mut self, port: u16) -> Option<Tuple> {
        let source = SocketAddr::new(IpAddr::V4(self.link.guest4), port);
        // There is a port among so many that none of all flows has.
        for _ in 0..=MAX_FLOWS {
            self.last_port = self.last_port.checked_add(1).unwrap_or(0).max(FIRST_PORT);
            let tuple = Tuple {
                source,
                destination: SocketAddr::new(IpAddr::V4(self.link.gateway4), self.last_port),
            };
            if self.table.find(Protocol::Tcp, tuple).is_none() {
                return Some(tuple);
            }
        }
        None
    }
}
