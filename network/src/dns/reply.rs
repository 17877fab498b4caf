//! The message that a guest gets.

use hickory_resolver::proto::op::{Edns, Message, ResponseCode};
use hickory_resolver::proto::rr::Record;
use hickory_resolver::proto::rr::rdata::opt::EdnsOption;

use super::question::Head;

/// The longest datagram that is taken here.
const PAYLOAD: u16 = 1232;

/// The option that says why (RFC 8914).
const EXTENDED_ERROR: u16 = 15;

/// The longest text in it: the answer fits into a datagram with the longest name.
const MAX_TEXT: usize = 160;

/// Why, by the numbers of RFC 8914.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    Other = 0,
    Blocked = 15,
    Prohibited = 18,
    NotSupported = 21,
    NoReachableAuthority = 22,
    NetworkError = 23,
}

/// The answer to a question, encoded. None if it cannot be.
pub(super) fn encoded(
    head: &Head,
    code: ResponseCode,
    answers: Vec<Record>,
    why: Option<(Reason, &str)>,
) -> Option<Vec<u8>> {
    let mut message = Message::error_msg(head.id, head.op_code, code);
    message.metadata.recursion_desired = head.recursion_desired;
    message.metadata.recursion_available = true;
    message.add_queries(head.query.clone());
    message.add_answers(answers);
    if head.is_extended {
        let mut edns = Edns::new();
        edns.set_max_payload(PAYLOAD);
        if let Some((reason, text)) = why {
            let text = text.get(..text.floor_char_boundary(MAX_TEXT));
            let number = (reason as u16).to_be_bytes();
            let data = [&number, text.unwrap_or_default().as_bytes()].concat();
            let option = EdnsOption::Unknown(EXTENDED_ERROR, data);
            edns.options_mut().insert(option);
        }
        message.set_edns(edns);
    }
    let encoded = message.to_vec().ok()?;
    if encoded.len() <= usize::from(head.room) {
        return Some(encoded);
    }
    // All or nothing: a part of a set of addresses is taken for all of them.
    let encoded = message.truncate().to_vec().ok()?;
    (encoded.len() <= usize::from(head.room)).then_some(encoded)
}
