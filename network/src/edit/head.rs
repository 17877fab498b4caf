//! Heads of requests and responses: their headers, and the path and query of a URL.

use std::collections::BTreeMap;

use http::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue, TE, TRAILER,
    TRANSFER_ENCODING, UPGRADE,
};
use http::request::Parts;
use http::uri::PathAndQuery;

/// Headers by name, as the JSON interface writes them.
pub type Headers = BTreeMap<String, Vec<String>>;

/// Headers that say where a message goes and where it ends. No rule and no callback
/// changes them.
const FRAMING: [HeaderName; 8] = [
    HOST,
    CONTENT_LENGTH,
    TRANSFER_ENCODING,
    CONNECTION,
    TE,
    TRAILER,
    UPGRADE,
    EXPECT,
];

/// Whether a header can be changed.
pub(super) fn is_free(name: &HeaderName) -> bool {
    !FRAMING.contains(name)
}

/// Sets headers, and then deletes some.
pub(super) fn change(
    headers: &mut HeaderMap,
    set: &[(HeaderName, HeaderValue)],
    delete: &[HeaderName],
) {
    for (name, value) in set.iter().filter(|(name, _)| is_free(name)) {
        headers.insert(name.clone(), value.clone());
    }
    for name in delete.iter().filter(|name| is_free(name)) {
        headers.remove(name);
    }
}

/// Puts these headers in place of all that can be changed. None if they are no headers.
pub(super) fn replace(headers: &HeaderMap, by: &Headers) -> Option<HeaderMap> {
    let mut all = HeaderMap::new();
    for (name, value) in headers.iter().filter(|(name, _)| !is_free(name)) {
        all.try_append(name.clone(), value.clone()).ok()?;
    }
    for (name, values) in by {
        let name = HeaderName::from_bytes(name.trim().as_bytes()).ok()?;
        for value in values {
            let value = HeaderValue::from_str(value).ok()?;
            if is_free(&name) {
                all.try_append(name.clone(), value).ok()?;
            }
        }
    }
    Some(all)
}

/// Headers as callbacks see them: without `Host`, names as in `Content-Type`.
pub(super) fn seen(headers: &HeaderMap) -> Headers {
    let mut all = Headers::new();
    for (name, value) in headers.iter().filter(|(name, _)| *name != HOST) {
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        all.entry(written(name)).or_default().push(value);
    }
    all
}

/// A name with each word's first letter in upper case.
fn written(name: &HeaderName) -> String {
    let mut is_first = true;
    let letters = name.as_str().chars().map(|letter| {
        let letter = match is_first {
            true => letter.to_ascii_uppercase(),
            false => letter,
        };
        is_first = letter == '-';
        letter
    });
    letters.collect()
}

/// How long the headers are, in HTTP/1.1.
pub(super) fn len(headers: &HeaderMap) -> usize {
    let lines = headers.iter();
    lines
        .map(|(name, value)| name.as_str().len() + value.len() + 4)
        .sum()
}

/// The path of a request.
pub(super) fn path(parts: &Parts) -> &str {
    parts.uri.path()
}

/// The query of a request.
pub(super) fn query(parts: &Parts) -> &str {
    parts.uri.query().unwrap_or_default()
}

/// Gives a request another path and query, which are encoded. None if they are no part of
/// a URL.
pub(super) fn set_target(parts: &mut Parts, path: &str, query: &str) -> Option<()> {
    let target = match query {
        "" => PathAndQuery::try_from(path),
        _ => PathAndQuery::try_from(format!("{path}?{query}")),
    };
    let mut uri = parts.uri.clone().into_parts();
    uri.path_and_query = Some(target.ok()?);
    parts.uri = uri.try_into().ok()?;
    Some(())
}
