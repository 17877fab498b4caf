//! What a guest's message asks.

use std::net::IpAddr;

use hickory_resolver::proto::op::{Message, OpCode, Query, ResponseCode};
use hickory_resolver::proto::rr;

use super::Transport;
use crate::host::Name;

/// The header of a message, in bytes.
const HEADER: usize = 12;

/// The longest question that is looked at. One name, and options, are far less.
pub(super) const MAX_QUESTION: usize = 4096;

/// The shortest datagram that everybody takes.
const MIN_PAYLOAD: u16 = 512;

/// The longest datagram that is sent: it passes in one packet everywhere.
const MAX_PAYLOAD: u16 = 1232;

/// What the answer has to have of the question.
#[derive(Debug, Clone)]
pub(super) struct Head {
    pub(super) id: u16,
    pub(super) op_code: OpCode,
    pub(super) recursion_desired: bool,
    /// The question, with its letters as the guest wrote them.
    pub(super) query: Option<Query>,
    /// Whether it knows of extensions (RFC 6891).
    pub(super) is_extended: bool,
    /// How long the answer may be.
    pub(super) room: u16,
}

/// What a message is.
#[derive(Debug)]
pub(super) enum Read {
    /// Not a question.
    Nothing,
    /// One that is answered with an error.
    Wrong(Head, ResponseCode),
    /// One for this.
    Question(Head, Query),
}

/// Reads a message of a guest.
pub(super) fn read(message: &[u8], transport: Transport) -> Read {
    let Some((header, _)) = message.split_first_chunk::<HEADER>() else {
        return Read::Nothing;
    };
    let [id0, id1, flags, _, qd0, qd1, an0, an1, ns0, ns1, ..] = *header;
    let is_response = flags & 0x80 != 0;
    if is_response {
        return Read::Nothing;
    }
    let mut head = Head {
        id: u16::from_be_bytes([id0, id1]),
        op_code: OpCode::from_u8(flags >> 3 & 0x0f),
        recursion_desired: flags & 1 != 0,
        query: None,
        is_extended: false,
        room: match transport {
            Transport::Udp => MIN_PAYLOAD,
            Transport::Tcp => u16::MAX,
        },
    };
    if head.op_code != OpCode::Query {
        return Read::Wrong(head, ResponseCode::NotImp);
    }
    let counts = [[qd0, qd1], [an0, an1], [ns0, ns1]].map(u16::from_be_bytes);
    if counts != [1, 0, 0] || message.len() > MAX_QUESTION {
        return Read::Wrong(head, ResponseCode::FormErr);
    }
    let Ok(message) = Message::from_vec(message) else {
        return Read::Wrong(head, ResponseCode::FormErr);
    };
    let Some(query) = message.queries.into_iter().next() else {
        return Read::Wrong(head, ResponseCode::FormErr);
    };
    head.query = Some(query.clone());
    if let Some(edns) = message.edns {
        head.is_extended = true;
        if transport == Transport::Udp {
            head.room = edns.max_payload().clamp(MIN_PAYLOAD, MAX_PAYLOAD);
        }
        if edns.version() != 0 {
            return Read::Wrong(head, ResponseCode::BADVERS);
        }
    }
    Read::Question(head, query)
}

/// The name of a host, if it is one. Names may have any bytes, dots too, and must not be
/// taken for what they look like.
pub(super) fn host(name: &rr::Name) -> Option<Name> {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let labels: Option<Vec<&str>> = name
        .iter()
        .map(|label| {
            let is_plain = !label.is_empty() && label.iter().all(is_plain);
            is_plain.then(|| str::from_utf8(label).ok()).flatten()
        })
        .collect();
    labels?.join(".").parse().ok()
}

/// The address that a name of the reverse tree means.
pub(super) fn reverse(name: &rr::Name) -> Option<IpAddr> {
    let network = name.parse_arpa_name().ok()?;
    (network.prefix_len() == network.max_prefix_len()).then(|| network.addr())
}
