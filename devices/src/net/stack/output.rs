//! Frames on their way to the guest.

use std::collections::VecDeque;
use std::num::NonZeroUsize;

use smoltcp::phy::{
    Checksum, ChecksumCapabilities, DeviceCapabilities, Medium, PacketMeta, RxToken, TxToken,
};
use smoltcp::time::Instant;
use smoltcp::wire::{
    ETHERNET_HEADER_LEN, EthernetAddress, EthernetFrame, EthernetProtocol, IPV4_HEADER_LEN,
    IPV6_HEADER_LEN, IpAddress, IpProtocol, IpVersion, Ipv4Packet, Ipv6Packet, TCP_HEADER_LEN,
    TcpPacket, checksum,
};

use crate::net::header::{Header, PartialChecksum, Segmentation};

/// Frames that may wait for the guest. More are not made: what they would carry
/// stays in the buffers of its flow.
const MAX_FRAMES: usize = 64;

/// Frames whose memory is kept for the next ones.
const MAX_SPARE: usize = 16;

/// The longest packet that is made, with its IP header: its length has 16 bits.
const MAX_PACKET: usize = 65_535;

/// Where in a TCP header its checksum is.
const TCP_CHECKSUM: u16 = 16;

/// What the guest's driver can take besides plain frames.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offload {
    /// Frames whose checksum is not made yet (`GUEST_CSUM`).
    pub checksum: bool,
    /// TCP over IPv4 in frames of up to 64 KiB (`GUEST_TSO4`); needs `checksum`.
    pub tso4: bool,
    /// The same over IPv6 (`GUEST_TSO6`).
    pub tso6: bool,
}

impl Offload {
    /// Whether segments of TCP may be longer than the link takes.
    fn long(self, version: IpVersion) -> bool {
        let offered = match version {
            IpVersion::Ipv4 => self.tso4,
            IpVersion::Ipv6 => self.tso6,
        };
        self.checksum && offered
    }
}

/// An Ethernet frame for the guest.
#[derive(Debug)]
pub struct Frame {
    /// What the ring's header says of it.
    pub header: Header,
    /// From the address of its receiver on, without check sequence.
    pub bytes: Vec<u8>,
}

/// The frames that wait for the guest, in order.
#[derive(Debug)]
pub(super) struct Output {
    frames: VecDeque<Frame>,
    spare: Vec<Vec<u8>>,
    gateway: EthernetAddress,
    offload: Offload,
    mtu: usize,
}

impl Output {
    pub(super) fn new(gateway: EthernetAddress, offload: Offload, mtu: usize) -> Self {
        Self {
            frames: VecDeque::new(),
            spare: Vec::new(),
            gateway,
            offload,
            mtu,
        }
    }

    /// Whether one more frame may be made.
    pub(super) fn has_room(&self) -> bool {
        self.frames.len() < MAX_FRAMES
    }

    pub(super) fn front(&self) -> Option<&Frame> {
        self.frames.front()
    }

    /// The first frame is done with.
    pub(super) fn pop(&mut self) {
        if let Some(frame) = self.frames.pop_front()
            && self.spare.len() < MAX_SPARE
        {
            self.spare.push(frame.bytes);
        }
    }

    /// Adds a frame of `len` bytes to `to`, without its Ethernet header, which
    /// `fill` writes; the checksums are all made.
    pub(super) fn push<R>(
        &mut self,
        to: EthernetAddress,
        protocol: EthernetProtocol,
        len: usize,
        fill: impl FnOnce(&mut [u8]) -> R,
    ) -> R {
        let mut bytes = self.spare.pop().unwrap_or_default();
        bytes.resize(ETHERNET_HEADER_LEN.saturating_add(len), 0);
        let mut frame = EthernetFrame::new_unchecked(&mut bytes);
        frame.set_dst_addr(to);
        frame.set_src_addr(self.gateway);
        frame.set_ethertype(protocol);
        let result = fill(frame.payload_mut());
        self.frames.push_back(Frame {
            header: Header::default(),
            bytes,
        });
        result
    }

    /// The most that a segment of TCP may carry on the link.
    pub(super) fn most_segment(&self, version: IpVersion) -> u16 {
        let header = match version {
            IpVersion::Ipv4 => IPV4_HEADER_LEN,
            IpVersion::Ipv6 => IPV6_HEADER_LEN,
        };
        let most = self.mtu.saturating_sub(header + TCP_HEADER_LEN);
        u16::try_from(most).unwrap_or(u16::MAX)
    }

    /// What the stack may make of its flows of this version.
    pub(super) fn capabilities(&self, version: IpVersion) -> DeviceCapabilities {
        let mut sums = ChecksumCapabilities::ignored();
        // Of TCP both ways: the guest leaves it to its card, and for the guest it
        // is made or left out here.
        sums.ipv4 = Checksum::Both;
        sums.tcp = Checksum::None;
        let longest = |offered: bool| offered.then_some(MAX_PACKET).and_then(NonZeroUsize::new);
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.checksum = sums;
        capabilities.segmentation.tcpv4 = longest(self.offload.long(IpVersion::Ipv4));
        capabilities.segmentation.tcpv6 = longest(self.offload.long(IpVersion::Ipv6));
        // Of IPv6, smoltcp drops what is longer than the link takes although it is to be cut,
        // and believes it sent. `finish` puts right what the guest is told of the link, and
        // has it cut into segments of the link.
        capabilities.max_transmission_unit = match version {
            IpVersion::Ipv6 if self.offload.long(version) => MAX_PACKET,
            _ => self.mtu,
        };
        capabilities
    }
}

/// What smoltcp takes for a device: one packet from a host of the guest's side,
/// or none, and the frames to it.
#[derive(Debug)]
pub(super) struct Phy<'a> {
    pub(super) packet: Option<&'a [u8]>,
    /// The link address of that host.
    pub(super) peer: EthernetAddress,
    pub(super) output: &'a mut Output,
    pub(super) version: IpVersion,
    /// What that host takes in a segment.
    pub(super) segment: u16,
    /// Whether one frame more than may wait can be made.
    pub(super) urgent: bool,
}

#[derive(Debug)]
pub(super) struct Received<'a>(&'a [u8]);

#[derive(Debug)]
pub(super) struct Sending<'a> {
    peer: EthernetAddress,
    output: &'a mut Output,
    segment: u16,
}

impl smoltcp::phy::Device for Phy<'_> {
    type RxToken<'t>
        = Received<'t>
    where
        Self: 't;
    type TxToken<'t>
        = Sending<'t>
    where
        Self: 't;

    fn receive(&mut self, timestamp: Instant) -> Option<(Received<'_>, Sending<'_>)> {
        let packet = self.packet.take()?;
        let sending = self.transmit(timestamp)?;
        Some((Received(packet), sending))
    }

    fn transmit(&mut self, _timestamp: Instant) -> Option<Sending<'_>> {
        (self.output.has_room() || self.urgent).then_some(Sending {
            peer: self.peer,
            output: self.output,
            segment: self.segment,
        })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        self.output.capabilities(self.version)
    }
}

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let (offload, mtu, segment) = (self.output.offload, self.output.mtu, self.segment);
        // The version of the packet is known only afterwards.
        let protocol = EthernetProtocol::Unknown(0);
        let (result, header) = self.output.push(self.peer, protocol, len, |packet| {
            let result = f(packet);
            (result, finish(packet, offload, mtu, segment))
        });
        if let Some(frame) = self.output.frames.back_mut() {
            frame.header = header;
            let version = frame.bytes.get(ETHERNET_HEADER_LEN).map(|first| first >> 4);
            EthernetFrame::new_unchecked(&mut frame.bytes).set_ethertype(match version {
                Some(6) => EthernetProtocol::Ipv6,
                _ => EthernetProtocol::Ipv4,
            });
        }
        result
    }

    /// Segments of IPv6 would come without.
    fn set_meta(&mut self, _meta: PacketMeta) {}
}

/// Makes the checksum of a TCP packet, or as much of it as the guest wants, which takes
/// `segment` bytes in a segment.
fn finish(packet: &mut [u8], offload: Offload, mtu: usize, segment: u16) -> Header {
    let len = packet.len();
    let Some((source, destination, ip_len)) = tcp_link(packet) else {
        return Header::default();
    };
    let Some(segment_bytes) = packet.get_mut(ip_len..) else {
        return Header::default();
    };
    let tcp_len = segment_bytes.len();
    limit_segments(segment_bytes, mtu.saturating_sub(ip_len));
    let mut tcp = TcpPacket::new_unchecked(segment_bytes);
    if !offload.checksum {
        tcp.fill_checksum(&source, &destination);
        return Header::default();
    }
    let pseudo = checksum::pseudo_header(
        &source,
        &destination,
        IpProtocol::Tcp,
        u32::try_from(tcp_len).unwrap_or(u32::MAX),
    );
    tcp.set_checksum(pseudo);
    let tcp_header = usize::from(tcp.header_len()).max(TCP_HEADER_LEN);
    let from_frame = |len: usize| u16::try_from(ETHERNET_HEADER_LEN.saturating_add(len));
    let (Ok(start), Ok(header_len)) = (
        from_frame(ip_len),
        from_frame(ip_len.saturating_add(tcp_header)),
    ) else {
        return Header::default();
    };
    Header {
        checksum: Some(PartialChecksum {
            start,
            offset: TCP_CHECKSUM,
        }),
        segmentation: (len > mtu).then_some(Segmentation {
            ipv6: matches!(source, IpAddress::Ipv6(_)),
            header_len,
            segment,
        }),
    }
}

/// Lets a SYN promise no longer segments than fit into so many bytes, with their header.
/// Nothing happens to others.
fn limit_segments(segment: &mut [u8], room: usize) {
    let is_syn = TcpPacket::new_unchecked(&*segment).syn();
    // The option is the first that smoltcp writes.
    if is_syn
        && let Some(option) = segment.get_mut(TCP_HEADER_LEN..TCP_HEADER_LEN + 4)
        && let [2, 4, high, low] = option
    {
        let most = u16::try_from(room.saturating_sub(TCP_HEADER_LEN)).unwrap_or(u16::MAX);
        let said = u16::from_be_bytes([*high, *low]).min(most);
        [*high, *low] = said.to_be_bytes();
    }
}

/// The link of a TCP packet that was made here, and where TCP begins.
fn tcp_link(packet: &[u8]) -> Option<(IpAddress, IpAddress, usize)> {
    match IpVersion::of_packet(packet).ok()? {
        IpVersion::Ipv4 => {
            let ip = Ipv4Packet::new_checked(packet).ok()?;
            let tcp = ip.next_header() == IpProtocol::Tcp;
            tcp.then(|| {
                (
                    ip.src_addr().into(),
                    ip.dst_addr().into(),
                    usize::from(ip.header_len()),
                )
            })
        }
        IpVersion::Ipv6 => {
            let ip = Ipv6Packet::new_checked(packet).ok()?;
            let tcp = ip.next_header() == IpProtocol::Tcp;
            tcp.then(|| (ip.src_addr().into(), ip.dst_addr().into(), ip.header_len()))
        }
    }
}
