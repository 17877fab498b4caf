//! The network card: its addresses and routes, by rtnetlink (rtnetlink(7)).
//!
//! The guest's link has one other host, its gateway, and all addresses are known
//! beforehand: there is nothing to wait for and nobody to ask.

use std::net::IpAddr;

use flashpan_protocol::network::Link;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

use crate::failure::Failure;
use crate::network;

/// The name that the kernel gives the first network card.
const CARD: &str = "eth0";

const NLMSG_ERROR: u16 = 2;
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;

/// `NLM_F_REQUEST` and `NLM_F_ACK`: to change what is there.
const CHANGE: u16 = 1 | 4;
/// The same with `NLM_F_EXCL` and `NLM_F_CREATE`: to make what is not.
const MAKE: u16 = CHANGE | 0x200 | 0x400;

const IFF_UP: u32 = 1;
/// Nobody else can have the address: it need not be looked for (`IFA_F_NODAD`).
const IFA_F_NODAD: u8 = 2;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;

const RT_TABLE_MAIN: u8 = 254;
const RTPROT_BOOT: u8 = 3;
const RTN_UNICAST: u8 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;

/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;

/// Gives the card its addresses and routes, and raises it.
pub(crate) fn set_up(link: &Link) -> Result<(), Failure> {
    let failed = |what: &str| {
        let what = format!("{what} of the network card ({CARD})");
        move |errno: Errno| Failure::system(what, errno)
    };
    let netlink = Netlink::open().map_err(failed("open a netlink socket for the set-up"))?;
    let card = network::card(CARD).map_err(failed("find the number"))?;
    let ask = |message, what| netlink.ask(message).map_err(failed(what));
    ask(raise(card), "change the state")?;
    ask(
        address(card, link.guest4.into(), link.prefix4),
        "set the IPv4 address",
    )?;
    ask(route(card, link.gateway4.into()), "set the IPv4 route")?;
    if !link.has_ipv6() {
        return Ok(());
    }
    ask(
        address(card, link.guest6.into(), link.prefix6),
        "set the IPv6 address",
    )?;
    ask(route(card, link.gateway6.into()), "set the IPv6 route")
}

struct Netlink {
    socket: std::os::fd::OwnedFd,
}

impl Netlink {
    fn open() -> nix::Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        Ok(Self { socket })
    }

    /// Asks the kernel for something, which answers at once.
    fn ask(&self, message: Message) -> nix::Result<()> {
        use std::os::fd::AsRawFd;

        let fd = self.socket.as_raw_fd();
        let kernel = NetlinkAddr::new(0, 0);
        sendto(fd, &message.finish(), &kernel, MsgFlags::empty())?;
        let mut answer = [0; 256];
        let len = recv(fd, &mut answer, MsgFlags::empty())?;
        let answer = answer.get(..len).unwrap_or_default();
        // struct nlmsgerr: a negative error number, 0 if all went well.
        let kind = answer.get(4..6).and_then(|bytes| bytes.try_into().ok());
        let error = answer.get(HEADER..HEADER + 4);
        let error = error.and_then(|bytes| bytes.try_into().ok());
        match (kind.map(u16::from_ne_bytes), error.map(i32::from_ne_bytes)) {
            (Some(NLMSG_ERROR), Some(0)) => Ok(()),
            (Some(NLMSG_ERROR), Some(error)) => Err(Errno::from_raw(error.saturating_neg())),
            _ => Err(Errno::EBADMSG),
        }
    }
}

/// A message to the kernel.
struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// One that begins with `body`, a structure of its own by its kind.
    fn new(kind: u16, flags: u16, body: &[u8]) -> Self {
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.resize(HEADER, 0);
        bytes.extend(body);
        Self { bytes }
    }

    /// Adds `struct rtattr` and its value; all here are whole words long.
    fn with(mut self, attribute: u16, value: &[u8]) -> Self {
        let len = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.bytes.extend(len.to_ne_bytes());
        self.bytes.extend(attribute.to_ne_bytes());
        self.bytes.extend(value);
        self
    }

    fn finish(mut self) -> Vec<u8> {
        let len = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        for (to, from) in self.bytes.iter_mut().zip(len.to_ne_bytes()) {
            *to = from;
        }
        self.bytes
    }
}

fn family(address: IpAddr) -> (u8, Vec<u8>) {
    match address {
        IpAddr::V4(address) => (2, address.octets().to_vec()),
        IpAddr::V6(address) => (10, address.octets().to_vec()),
    }
}

/// `struct ifinfomsg`.
fn raise(card: u32) -> Message {
    let mut body = vec![0; 4];
    body.extend(card.to_ne_bytes());
    body.extend(IFF_UP.to_ne_bytes());
    body.extend(IFF_UP.to_ne_bytes());
    Message::new(RTM_NEWLINK, CHANGE, &body)
}

/// `struct ifaddrmsg`.
fn address(card: u32, address: IpAddr, prefix: u8) -> Message {
    let (family, address) = family(address);
    let mut body = vec![family, prefix, IFA_F_NODAD, 0];
    body.extend(card.to_ne_bytes());
    Message::new(RTM_NEWADDR, MAKE, &body)
        .with(IFA_LOCAL, &address)
        .with(IFA_ADDRESS, &address)
}

/// `struct rtmsg`: to everywhere.
fn route(card: u32, gateway: IpAddr) -> Message {
    let (family, gateway) = family(gateway);
    let body = [
        family,
        0,
        0,
        0,
        RT_TABLE_MAIN,
        RTPROT_BOOT,
        0,
        RTN_UNICAST,
        0,
        0,
        0,
        0,
    ];
    Message::new(RTM_NEWROUTE, MAKE, &body)
        .with(RTA_GATEWAY, &gateway)
        .with(RTA_OIF, &card.to_ne_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_has_its_length_and_its_attributes() {
        let bytes = address(7, "198.18.0.2".parse().unwrap(), 30).finish();
        assert_eq!(bytes.len(), 16 + 8 + 8 + 8);
        assert_eq!(bytes[..4], 40_u32.to_ne_bytes());
        assert_eq!(bytes[4..6], 20_u16.to_ne_bytes());
        assert_eq!(bytes[16..20], [2, 30, 2, 0]);
        assert_eq!(bytes[20..24], 7_u32.to_ne_bytes());
        assert_eq!(bytes[24..28], [8, 0, 2, 0]);
        assert_eq!(bytes[28..32], [198, 18, 0, 2]);
    }

    /// The kernel takes the messages as they are: without such a card it says so.
    #[test]
    fn the_kernel_understands() {
        let netlink = Netlink::open().unwrap();
        let gateway = "fdf1:a5f1:a5f1::1".parse().unwrap();
        for message in [raise(u32::MAX >> 1), route(u32::MAX >> 1, gateway)] {
            let errno = netlink.ask(message).unwrap_err();
            assert!(matches!(errno, Errno::ENODEV | Errno::EPERM), "{errno:?}");
        }
    }
}
