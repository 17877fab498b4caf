//! Headers that are of one connection, and end with it.

use http::header::{
    CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, HOST, HeaderMap,
    HeaderName, HeaderValue, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER,
    TRANSFER_ENCODING, UPGRADE,
};

/// RFC 9110 §7.6.1, and what is sent by those who have not read it.
const OF_ONE_CONNECTION: [HeaderName; 10] = [
    CONNECTION,
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRANSFER_ENCODING,
    UPGRADE,
    HeaderName::from_static("http2-settings"),
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("proxy-authentication-info"),
];

/// What no connection can have for itself: what frames a message, says how to read it, and
/// whom it is for.
const STAY: [HeaderName; 6] = [
    CONTENT_ENCODING,
    CONTENT_LENGTH,
    CONTENT_TYPE,
    HOST,
    HeaderName::from_static("grpc-encoding"),
    TRAILER,
];

/// What tells a server to take a method for another.
const OVERRIDES: [&str; 6] = [
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    "x-original-url",
    "x-original-uri",
    "x-rewrite-url",
];

/// Takes these out, also as servers write them that turn `-` into `_`.
pub(crate) fn remove_overrides(headers: &mut HeaderMap) {
    let is_one = |name: &&HeaderName| {
        let name = name.as_str().replace('_', "-");
        OVERRIDES.contains(&name.as_str())
    };
    let names: Vec<HeaderName> = headers.keys().filter(is_one).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}

/// Makes one header of cookies that HTTP/2 has in several (RFC 9113 §8.2.3).
pub(crate) fn join_cookies(headers: &mut HeaderMap) {
    let cookies: Vec<&[u8]> = headers
        .get_all(COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    if cookies.len() > 1
        && let Ok(mut joined) = HeaderValue::from_bytes(&cookies.join(&b"; "[..]))
    {
        joined.set_sensitive(true);
        headers.insert(COOKIE, joined);
    }
}

/// Another coding of a message than `chunked`, which its bytes would have without saying so
/// when the header is gone.
pub(crate) fn transfer_coding(headers: &HeaderMap) -> Option<String> {
    let values = headers.get_all(TRANSFER_ENCODING).iter();
    let texts: Vec<_> = values
        .map(|value| String::from_utf8_lossy(value.as_bytes()))
        .collect();
    let text = texts.join(",");
    let is_other = !text.is_empty() && !text.trim().eq_ignore_ascii_case("chunked");
    is_other.then(|| crate::host::shown(&text))
}

/// Takes out what is of this connection alone: what is known to be, and what it says is.
/// What frames a message, and whom it is for, it cannot say that of.
pub(crate) fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| HeaderName::try_from(name.trim()).ok())
        .filter(|name| !STAY.contains(name))
        .collect();
    for name in named.iter().chain(&OF_ONE_CONNECTION) {
        headers.remove(name);
    }
}

/// Whether a header has this among the words of its list.
pub(crate) fn has_word(headers: &HeaderMap, name: &HeaderName, word: &str) -> bool {
    let values = headers.get_all(name).iter();
    let mut words = values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    words.any(|of| of.trim().eq_ignore_ascii_case(word))
}

/// Whether a connection is to become one of WebSocket, and nothing else.
pub(crate) fn is_websocket(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(UPGRADE).iter();
    let only = match (values.next(), values.next()) {
        (Some(only), None) => only,
        _ => return false,
    };
    only.as_bytes().eq_ignore_ascii_case(b"websocket") && has_word(headers, &CONNECTION, "upgrade")
}

/// Takes out of trailers what must not be there (RFC 9110 §6.5.1): what says how a message
/// is framed, whom it is for, or who sends it.
pub(crate) fn strip_trailers(trailers: &mut HeaderMap) {
    strip(trailers);
    for name in [
        "authorization",
        "cache-control",
        "content-encoding",
        "content-length",
        "content-range",
        "content-type",
        "cookie",
        "expect",
        "host",
        "max-forwards",
        "range",
        "set-cookie",
        "trailer",
    ] {
        trailers.remove(name);
    }
}
