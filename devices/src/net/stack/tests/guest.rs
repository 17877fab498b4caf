//! A guest with a TCP/IP stack of its own, on the other end of the link.

use std::collections::VecDeque;
use std::io::Read;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::sync::LazyLock;

use flashpan_protocol::network::{Link, Protocol, Tuple};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer};
use smoltcp::time::Instant;
use smoltcp::wire::{
    EthernetAddress, HardwareAddress, IpAddress, IpCidr, Ipv4Packet, Ipv6Packet, TcpPacket,
};

use crate::net::NetEvent;
use crate::net::header::Header;
use crate::net::stack::{Offload, Stack};

/// As every guest has it.
pub(super) static LINK: LazyLock<Link> = LazyLock::new(|| Link::standard(1500));

/// More rounds than anything here needs.
const MAX_ROUNDS: usize = 200_000;

/// The card of the guest.
#[derive(Debug, Default)]
pub(super) struct Card {
    pub(super) received: VecDeque<Vec<u8>>,
    pub(super) sent: VecDeque<Vec<u8>>,
}

/// The guest and the stack that it is connected to.
pub(super) struct Wire {
    pub(super) stack: Stack,
    pub(super) card: Card,
    interface: Interface,
    sockets: SocketSet<'static>,
    /// The guest takes frames.
    pub(super) listening: bool,
    /// Headers of the frames that it took.
    pub(super) headers: Vec<(Header, usize)>,
    pub(super) events: VecDeque<NetEvent>,
    next_port: u16,
}

impl Wire {
    pub(super) fn new(offload: Offload) -> Self {
        let mut card = Card::default();
        let mac = HardwareAddress::Ethernet(EthernetAddress(LINK.guest_mac));
        let mut interface = Interface::new(Config::new(mac), &mut card, Instant::now_for_test());
        interface.update_ip_addrs(|own| {
            own.push(IpCidr::new(LINK.guest4.into(), 30)).unwrap();
            let six = IpAddress::Ipv6(LINK.guest6);
            own.push(IpCidr::new(six, 64)).unwrap();
        });
        let routes = interface.routes_mut();
        routes.add_default_ipv4_route(LINK.gateway4).unwrap();
        routes.add_default_ipv6_route(LINK.gateway6).unwrap();
        Self {
            stack: Stack::new(*LINK, offload).unwrap(),
            card,
            interface,
            sockets: SocketSet::new(Vec::new()),
            listening: true,
            headers: Vec::new(),
            events: VecDeque::new(),
            next_port: 40_000,
        }
    }

    /// Begins a connection.
    pub(super) fn connect(&mut self, to: &str) -> SocketHandle {
        let to: SocketAddr = to.parse().unwrap();
        let memory = || SocketBuffer::new(vec![0; 256 * 1024]);
        let mut socket = Socket::new(memory(), memory());
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        self.next_port += 1;
        socket
            .connect(self.interface.context(), to, self.next_port)
            .unwrap();
        self.sockets.add(socket)
    }

    /// A program that listens on all addresses.
    pub(super) fn listen(&mut self, port: u16) -> SocketHandle {
        let memory = || SocketBuffer::new(vec![0; 256 * 1024]);
        let mut socket = Socket::new(memory(), memory());
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        socket.listen(port).unwrap();
        self.sockets.add(socket)
    }

    pub(super) fn socket(&mut self, handle: SocketHandle) -> &mut Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// Lets everything happen that can happen now.
    pub(super) fn settle(&mut self) {
        for _ in 0..MAX_ROUNDS {
            if !self.round() {
                return;
            }
        }
        panic!("the link does not come to rest");
    }

    /// True if something moved.
    fn round(&mut self) -> bool {
        let now = Instant::now_for_test();
        let before = *self.stack.metrics();
        let events = self.events.len();
        self.interface.poll(now, &mut self.card, &mut self.sockets);
        while self.stack.wants_input()
            && let Some(frame) = self.card.sent.pop_front()
        {
            self.stack.input(&frame);
        }
        self.stack.poll();
        self.stack.run();
        while self.listening
            && let Some(frame) = self.stack.frame()
        {
            let mut bytes = frame.bytes.clone();
            self.headers.push((frame.header, bytes.len()));
            complete(&mut bytes, frame.header);
            self.card.received.push_back(bytes);
            self.stack.frame_done();
        }
        self.events.extend(self.stack.events());
        let left = !self.card.received.is_empty()
            || (!self.card.sent.is_empty() && self.stack.wants_input());
        left || before != *self.stack.metrics() || events != self.events.len()
    }

    /// The next event, which must be that a flow is asked for.
    pub(super) fn asked(&mut self) -> (u64, Protocol, Tuple, OwnedFd) {
        self.settle();
        match self.events.pop_front() {
            Some(NetEvent::Asked {
                id,
                protocol,
                tuple,
                socket,
            }) => (id, protocol, tuple, socket),
            other => panic!("{other:?} where a flow should be asked for"),
        }
    }

    /// A connection that was made, from both of its ends.
    pub(super) fn connected(&mut self, to: &str) -> (u64, SocketHandle, UnixStream) {
        let handle = self.connect(to);
        let (id, protocol, tuple, socket) = self.asked();
        assert_eq!(protocol, Protocol::Tcp);
        assert_eq!(tuple.destination, to.parse().unwrap());
        self.stack.accept(id);
        self.settle();
        assert!(self.socket(handle).may_send());
        let stream = UnixStream::from(socket);
        stream.set_nonblocking(true).unwrap();
        (id, handle, stream)
    }

    /// A conversation that the guest began with `payload`, from the host's side.
    pub(super) fn conversation(&mut self, frame: Vec<u8>) -> (u64, UnixDatagram) {
        self.card.sent.push_back(frame);
        let (id, protocol, _, socket) = self.asked();
        assert_eq!(protocol, Protocol::Udp);
        self.stack.accept(id);
        self.settle();
        let socket = UnixDatagram::from(socket);
        socket.set_nonblocking(true).unwrap();
        (id, socket)
    }

    /// What the guest has received on a connection, taken out.
    pub(super) fn take(&mut self, handle: SocketHandle) -> Vec<u8> {
        let socket = self.socket(handle);
        let mut all = Vec::new();
        while socket.can_recv() {
            socket
                .recv(|data| {
                    all.extend_from_slice(data);
                    (data.len(), ())
                })
                .unwrap();
        }
        all
    }
}

/// What is there to be read without waiting.
pub(super) fn read_now(stream: &mut UnixStream) -> Vec<u8> {
    let mut all = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        all.extend_from_slice(&buffer[..count]);
    }
    all
}

/// Makes the checksum that was left to the driver, of a frame however long, and holds
/// what the device said of it against what it is.
fn complete(bytes: &mut [u8], header: Header) {
    let Some(partial) = header.checksum else {
        assert!(header.segmentation.is_none());
        return;
    };
    let start = usize::from(partial.start);
    assert_eq!(partial.offset, 16);
    let (from, to) = if bytes[14] >> 4 == 4 {
        let ip = Ipv4Packet::new_checked(&bytes[14..]).unwrap();
        (ip.src_addr().into(), ip.dst_addr().into())
    } else {
        let ip = Ipv6Packet::new_checked(&bytes[14..]).unwrap();
        (ip.src_addr().into(), ip.dst_addr().into())
    };
    let left = u16::from_be_bytes([bytes[start + 16], bytes[start + 17]]);
    let len = u32::try_from(bytes.len() - start).unwrap();
    let tcp = smoltcp::wire::IpProtocol::Tcp;
    let pseudo = smoltcp::wire::checksum::pseudo_header(&from, &to, tcp, len);
    assert_eq!(left, pseudo, "the sum of the pseudo header");
    let mut segment = TcpPacket::new_checked(&mut bytes[start..]).unwrap();
    segment.fill_checksum(&from, &to);
    if let Some(cut) = header.segmentation {
        let headers = start + usize::from(segment.header_len());
        assert_eq!(usize::from(cut.header_len), headers);
        assert!(cut.segment <= 1460 && cut.segment > 1000, "{cut:?}");
    }
}

pub(super) trait Now {
    fn now_for_test() -> Instant;
}

impl Now for Instant {
    fn now_for_test() -> Instant {
        static START: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
        let start = START.get_or_init(std::time::Instant::now);
        Instant::from_micros(i64::try_from(start.elapsed().as_micros()).unwrap())
    }
}

pub(super) struct Received(Vec<u8>);
pub(super) struct Sent<'a>(&'a mut VecDeque<Vec<u8>>);

impl Device for Card {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sent<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received, Sent<'_>)> {
        let frame = self.received.pop_front()?;
        Some((Received(frame), Sent(&mut self.sent)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sent<'_>> {
        (self.sent.len() < 64).then_some(Sent(&mut self.sent))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        // It checks what it gets, and leaves its own sums to the card.
        capabilities.checksum.tcp = Checksum::Rx;
        capabilities
    }
}

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Sent<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.push_back(frame);
        result
    }
}
