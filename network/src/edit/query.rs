//! Queries and paths of URLs, as the JSON interface means them.

use std::collections::BTreeMap;

use super::forms::{Decoded, percent};

/// The parameters of a query, by name; the values of one in their order.
pub(super) type Parameters = BTreeMap<Vec<u8>, Vec<Vec<u8>>>;

/// Reads a query: `+` is a blank, and what has a `;` or is not encoded properly is passed
/// over.
pub(super) fn parse(query: &str) -> Parameters {
    let mut parameters = Parameters::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        if pair.contains(';') {
            continue;
        }
        if let (Some(name), Some(value)) = (decode(name), decode(value)) {
            parameters.entry(name).or_default().push(value);
        }
    }
    parameters
}

/// Writes a query, in the order of the names.
pub(super) fn write(parameters: &Parameters) -> String {
    let mut query = String::new();
    for (name, values) in parameters {
        for value in values {
            if !query.is_empty() {
                query.push('&');
            }
            query.push_str(&encode(name));
            query.push('=');
            query.push_str(&encode(value));
        }
    }
    query
}

fn decode(text: &str) -> Option<Vec<u8>> {
    let text = text.replace('+', " ");
    let decoded = Decoded::of(text.as_bytes()).bytes;
    // Each encoding makes three bytes one. What is left of `%` is none.
    let encodings = text.matches('%').count();
    (text.len() - decoded.len() == encodings * 2).then_some(decoded)
}

fn encode(text: &[u8]) -> String {
    let encoded = percent(text, "-._~ ", true);
    String::from_utf8_lossy(&encoded).replace(' ', "+")
}

/// A path of a URL from one that is not encoded.
pub(super) fn encode_path(path: &str) -> String {
    let encoded = percent(path.as_bytes(), "-._~!$&'()*+,;=:@/", true);
    String::from_utf8_lossy(&encoded).into_owned()
}

/// A path of a URL with its encodings undone; `/` if it is empty.
pub(super) fn decode_path(path: &str) -> Vec<u8> {
    match path {
        "" => b"/".to_vec(),
        _ => Decoded::of(path.as_bytes()).bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_written_in_the_order_of_names() {
        for (query, written) in [
            ("b=2&a=1&b=1", "a=1&b=2&b=1"),
            ("a", "a="),
            ("a=b=c", "a=b%3Dc"),
            ("x=%20+%2B&&", "x=++%2B"),
            ("a=1;b=2&c=%zz&d=%4&e=5", "e=5"),
            ("%C3%A4=~-._", "%C3%A4=~-._"),
            ("", ""),
        ] {
            assert_eq!(write(&parse(query)), written, "{query}");
        }
    }

    #[test]
    fn a_path_is_encoded_where_it_has_to_be() {
        for (path, encoded) in [
            ("/", "/"),
            ("/a b?c#d", "/a%20b%3Fc%23d"),
            ("/%41", "/%2541"),
            ("/ä;x=1", "/%C3%A4;x=1"),
        ] {
            assert_eq!(encode_path(path), encoded);
            assert_eq!(decode_path(encoded), path.as_bytes());
        }
        assert_eq!(decode_path(""), b"/");
    }
}
