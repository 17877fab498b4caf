//! Messages of every protocol, as whoever hears them does. The same runs over the
//! corpus in `protocol/tests/fuzz_corpus.rs`.

use std::fmt::Debug;

use flashpan_protocol::frame::{self, Decoder};
use flashpan_protocol::privilege::{CAPABILITY_NAMES, Capabilities};
use flashpan_protocol::{agent, control, file, forward, supervisor};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// All messages up to the first that is none, and what was wrong with that.
type Heard<T> = (Vec<T>, Option<String>);

/// The first byte says who hears the rest, which is a stream of frames and, on its
/// own, the body of one.
pub fn frames(data: &[u8]) {
    let Some((kind, data)) = data.split_first() else {
        return;
    };
    match kind % 13 {
        0 => heard::<supervisor::Request>(data, supervisor::MAX_REQUEST),
        1 => heard::<supervisor::Answer>(data, supervisor::MAX_ANSWER),
        2 => heard::<file::FileInput>(data, file::MAX_FILE_FRAME),
        3 => heard::<file::FileOutput>(data, file::MAX_FILE_FRAME),
        4 => heard::<forward::ForwardStart>(data, forward::MAX_FORWARD_FRAME),
        5 => heard::<forward::ForwardAnswer>(data, forward::MAX_FORWARD_FRAME),
        6 => heard::<agent::ExecInput>(data, agent::MAX_FRAME),
        7 => heard::<agent::ExecOutput>(data, agent::MAX_FRAME),
        8 => heard::<agent::GuestMessage>(data, agent::MAX_FRAME),
        9 => heard::<agent::HostMessage>(data, agent::MAX_FRAME),
        10 => packet::<control::Request>(data),
        11 => packet::<control::Event>(data),
        _ => capabilities(data),
    }
}

/// A stream is heard alike however it comes in pieces, and a message that was heard
/// can be said again and is the same.
fn heard<T: Serialize + DeserializeOwned + Debug + PartialEq>(data: &[u8], max: usize) {
    let whole = in_pieces::<T>(data, usize::MAX, max);
    for step in [1, 3, 1000] {
        assert_eq!(in_pieces(data, step, max), whole, "in pieces of {step}");
    }
    assert_eq!(blocking(data, max), whole, "from a blocking stream");
    let (messages, _) = whole;
    for message in messages {
        said_again(&message, data.len(), max);
    }
    if let Ok(message) = frame::from_bytes::<T>(data) {
        said_again(&message, data.len(), max);
    }
}

/// `T` in no more bytes than it came in: every number has one shortest form.
fn said_again<T: Serialize + DeserializeOwned + Debug + PartialEq>(
    message: &T,
    came_in: usize,
    max: usize,
) {
    let frame = frame::encode(message, max).expect("what was heard can be said");
    let (length, body) = frame.split_at(4);
    assert_eq!(length, u32::try_from(body.len()).unwrap().to_le_bytes());
    assert!(body.len() <= came_in, "{} of {came_in} bytes", body.len());
    assert_eq!(&frame::from_bytes::<T>(body).unwrap(), message);
}

fn in_pieces<T: DeserializeOwned>(data: &[u8], step: usize, max: usize) -> Heard<T> {
    let mut decoder = Decoder::new(max);
    let mut messages = Vec::new();
    for part in data.chunks(step) {
        decoder.extend(part);
        loop {
            match decoder.next_message() {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(error) => return (messages, Some(error.to_string())),
            }
        }
    }
    let cut = frame::FrameError::Truncated.to_string();
    let wrong = (!decoder.is_empty()).then_some(cut);
    (messages, wrong)
}

fn blocking<T: DeserializeOwned>(mut data: &[u8], max: usize) -> Heard<T> {
    let mut decoder = Decoder::new(max);
    let mut messages = Vec::new();
    loop {
        match decoder.read_message(&mut data) {
            Ok(Some(message)) => messages.push(message),
            Ok(None) => return (messages, None),
            Err(error) => return (messages, Some(error.to_string())),
        }
    }
}

/// A packet of the control protocol has no frame around it.
fn packet<T: Serialize + DeserializeOwned + Debug + PartialEq>(data: &[u8]) {
    if let Ok(message) = control::decode::<T>(data) {
        let packet = control::encode(&message).expect("what was heard can be said");
        assert!(packet.len() <= data.len());
        assert_eq!(control::decode::<T>(&packet).unwrap(), message);
    }
}

/// Sets of capabilities and their names are the same thing, and whatever is said of
/// a set holds for its bits.
fn capabilities(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data)
        && let Some(named) = Capabilities::named(text)
    {
        let bare = text.to_ascii_uppercase();
        let bare = bare.strip_prefix("CAP_").unwrap_or(&bare);
        match named == Capabilities::ALL {
            true => assert_eq!(bare, "ALL"),
            false => assert_eq!(named.names().collect::<Vec<_>>(), [bare]),
        }
    }
    let mut numbers = data.as_chunks::<8>().0.iter().copied();
    let mut next = || Capabilities(numbers.next().map_or(0, u64::from_le_bytes));
    let (one, other) = (next(), next());
    let known = Capabilities((1 << CAPABILITY_NAMES.len()) - 1);
    let of_names = one.names().map(|name| Capabilities::named(name).unwrap());
    let again = of_names.fold(Capabilities::NONE, Capabilities::with);
    assert_eq!(again, one.without(Capabilities(!known.0)));
    assert!(!one.without(other).intersects(other));
    assert_eq!(one.without(other).with(one), one);
    assert_eq!(one.with(other).without(other), one.without(other));
    assert_eq!(one.intersects(other), one.without(other) != one);
}
