//! The head of a request of HTTP/1: whether there is one way to read it, and where its body
//! ends (RFC 9112).

use http::Uri;

use super::MAX_HEADERS;

/// The longest method.
const MAX_METHOD: usize = 64;

/// What is wrong with a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It is not one of HTTP/1.
    Unknown,
    /// It could be read in more than one way, or in none.
    Ambiguous,
    /// There is too much of it.
    TooLarge,
}

impl Fault {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Ambiguous => "ambiguous",
            Self::TooLarge => "large",
        }
    }

    pub(crate) fn of_word(word: &str) -> Self {
        match word {
            "unknown" => Self::Unknown,
            "large" => Self::TooLarge,
            _ => Self::Ambiguous,
        }
    }
}

/// What follows a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// So many bytes.
    Length(u64),
    /// Chunks.
    Chunked,
    /// Another protocol, if the server agrees.
    Upgrade,
}

/// What follows a head, of which `part` is there, up to the end of a line if `is_line`;
/// none while there is no telling.
pub(crate) fn read_head(part: &[u8], is_line: bool) -> Result<Option<Framing>, Fault> {
    let first = part.split(|byte| *byte == b'\n').next().unwrap_or(part);
    if first.len() + 1 >= part.len() {
        read_beginning(first)?;
    }
    if !is_line {
        return Ok(None);
    }
    let line = part.strip_suffix(b"\r\n");
    let is_first = first.len() + 1 == part.len();
    match (line, is_first) {
        (None, true) => Err(Fault::Unknown),
        (None, false) => Err(Fault::Ambiguous),
        (Some(line), true) => read_request_line(line).map(|_| None),
        (Some(lines), false) if lines.ends_with(b"\r\n") => read_whole(lines).map(Some),
        (Some(_), false) => Ok(None),
    }
}

/// A request begins with a method; what does not need not be waited for.
fn read_beginning(line: &[u8]) -> Result<(), Fault> {
    let method = line.split(|byte| *byte == b' ').next().unwrap_or(line);
    // Before the line is whole, it may end in a carriage return.
    let method = method.strip_suffix(b"\r").unwrap_or(method);
    match method.len() <= MAX_METHOD && method.iter().copied().all(is_token) {
        true => Ok(()),
        false => Err(Fault::Unknown),
    }
}

/// Whether it is one of HTTP/1.1.
fn read_request_line(line: &[u8]) -> Result<bool, Fault> {
    let mut words = line.split(|byte| *byte == b' ');
    let parts = (words.next(), words.next(), words.next(), words.next());
    let (Some(method), Some(target), Some(version), None) = parts else {
        return Err(Fault::Unknown);
    };
    let is_target = |byte: u8| byte > 0x20 && byte != 0x7f;
    let is_sound = !method.is_empty()
        && method.iter().copied().all(is_token)
        && !target.is_empty()
        && target.iter().copied().all(is_target);
    match version {
        b"HTTP/1.1" if is_sound => Ok(true),
        b"HTTP/1.0" if is_sound => Ok(false),
        _ => Err(Fault::Unknown),
    }
}

/// All lines, each with its end.
fn read_whole(lines: &[u8]) -> Result<Framing, Fault> {
    let lines = lines.strip_suffix(b"\r\n").unwrap_or(lines);
    let mut lines = lines.split(|byte| *byte == b'\n').map(|line| {
        // The last one has lost its end.
        line.strip_suffix(b"\r").unwrap_or(line)
    });
    let line = lines.next().unwrap_or_default();
    let is_http11 = read_request_line(line)?;
    // What nobody can read as one is not left to whoever comes next.
    let target = line.split(|byte| *byte == b' ').nth(1).unwrap_or_default();
    Uri::try_from(target).map_err(|_| Fault::Ambiguous)?;
    let mut length = None;
    let mut is_chunked = false;
    let mut is_websocket = false;
    let mut hosts = 0;
    for (count, line) in lines.enumerate() {
        if count == MAX_HEADERS {
            return Err(Fault::TooLarge);
        }
        let (name, value) = read_header(line).ok_or(Fault::Ambiguous)?;
        let is = |other: &str| name.eq_ignore_ascii_case(other.as_bytes());
        if is("content-length") {
            let once = length.replace(read_length(value).ok_or(Fault::Ambiguous)?);
            if once.is_some() {
                return Err(Fault::Ambiguous);
            }
        } else if is("transfer-encoding") {
            // What else there may be is nothing that a request comes with.
            if is_chunked || !is_http11 || !value.eq_ignore_ascii_case(b"chunked") {
                return Err(Fault::Ambiguous);
            }
            is_chunked = true;
        } else if is("upgrade") {
            is_websocket |= value.eq_ignore_ascii_case(b"websocket");
        } else if is("host") {
            hosts += 1;
        }
    }
    if hosts > 1 {
        return Err(Fault::Ambiguous);
    }
    match (length, is_chunked) {
        (Some(_), true) => Err(Fault::Ambiguous),
        // Where the other protocol would begin is not for a body to say.
        (Some(1..), false) | (None, true) if is_websocket => Err(Fault::Ambiguous),
        (None, true) => Ok(Framing::Chunked),
        (_, false) if is_websocket => Ok(Framing::Upgrade),
        (length, false) => Ok(Framing::Length(length.unwrap_or(0))),
    }
}

/// Whether trailers, of which these lines are there, are whole; none if they are no
/// trailers.
pub(crate) fn read_trailers(part: &[u8]) -> Option<bool> {
    let lines = part.strip_suffix(b"\r\n")?;
    if lines.is_empty() {
        return Some(true);
    }
    let last = lines.rsplit(|byte| *byte == b'\n').next()?;
    if last.is_empty() {
        return Some(true);
    }
    read_header(last).map(|_| false)
}

/// A name and a value, without blanks around it. A line that continues the one before it is
/// none.
fn read_header(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    let (name, value) = line.split_at(colon);
    let value = value.strip_prefix(b":")?;
    let is_value = |byte: u8| byte == b'\t' || (byte >= 0x20 && byte != 0x7f);
    let is_sound = !name.is_empty()
        && name.iter().copied().all(is_token)
        && value.iter().copied().all(is_value);
    is_sound.then(|| (name, value.trim_ascii()))
}

fn read_length(value: &[u8]) -> Option<u64> {
    let is_number = (1..=18).contains(&value.len()) && value.iter().all(u8::is_ascii_digit);
    let digits = std::str::from_utf8(value).ok()?;
    is_number.then(|| digits.parse().ok())?
}

/// RFC 9110 §5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}
