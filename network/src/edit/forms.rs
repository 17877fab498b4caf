//! The forms in which a text is found where something has encoded it.

use std::fmt::Write as _;
use std::ops::Range;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use zeroize::Zeroizing;

/// Bytes that are cleared when nobody needs them any more.
pub(super) type Bytes = Zeroizing<Vec<u8>>;

/// The shortest text that is looked for in other bytes: one that is shorter is found
/// everywhere.
pub(super) const MIN_PLAIN: usize = 4;
/// The shortest text that is looked for in base64, of which less remains for the search.
const MIN_BASE64: usize = 6;

/// A text as it is, and in all forms that are looked for: percent-encoded, escaped in JSON
/// and HTML, in base64 (both alphabets, at all three places in a group) and hexadecimal,
/// each once.
///
/// Base64 mixes the first and last bits with those of what is next to the text, so that
/// of it only what depends on nothing else is looked for: up to four bits of the first
/// and last byte each are not.
pub(super) fn forms(text: &[u8]) -> Vec<Bytes> {
    let mut forms: Vec<Bytes> = Vec::new();
    let mut add = |form: Bytes| {
        if !form.is_empty() && !forms.contains(&form) {
            forms.push(form);
        }
    };
    if text.len() < MIN_PLAIN {
        return Vec::new();
    }
    add(Zeroizing::new(text.to_vec()));
    for is_upper in [true, false] {
        // All that has to be; as `encodeURIComponent`; as in paths; as in forms.
        for kept in ["-._~", "-._~!'()*", "-._~/", "-._*"] {
            add(percent(text, kept, is_upper));
            let is_form = kept == "-._*";
            if is_form && text.contains(&b' ') {
                let mut form = percent(text, "-._* ", is_upper);
                let blanks = form.iter_mut().filter(|byte| **byte == b' ');
                blanks.for_each(|byte| *byte = b'+');
                add(form);
            }
        }
    }
    add(json(text));
    for style in [SLASHES, NUMBERS, NUMBERS_UPPER, GSON, DOT_NET] {
        add(json_as(text, style));
    }
    for style in [
        ("&#34;", "&#39;", "+"),
        ("&quot;", "&#39;", "+"),
        ("&quot;", "&#x27;", "+"),
        // Go's templates.
        ("&#34;", "&#39;", "&#43;"),
    ] {
        add(html(text, style));
    }
    add(hex(text, false));
    add(hex(text, true));
    if text.len() >= MIN_BASE64 {
        for before in 0..3 {
            let mut padded = Zeroizing::new(vec![0; before]);
            padded.extend_from_slice(text);
            let range = (before * 8).div_ceil(6)..padded.len() * 8 / 6;
            for engine in [&STANDARD_NO_PAD, &URL_SAFE_NO_PAD] {
                let encoded = Zeroizing::new(engine.encode(&*padded).into_bytes());
                let part = encoded.get(range.clone()).unwrap_or_default();
                add(Zeroizing::new(part.to_vec()));
            }
        }
    }
    forms
}

/// Percent-encodes all but letters, digits and what is in `kept`.
pub(super) fn percent(text: &[u8], kept: &str, is_upper: bool) -> Bytes {
    let mut out = Zeroizing::new(Vec::with_capacity(text.len() * 3));
    for byte in text {
        if byte.is_ascii_alphanumeric() || kept.as_bytes().contains(byte) {
            out.push(*byte);
        } else {
            out.push(b'%');
            out.extend_from_slice(&digits(*byte, is_upper));
        }
    }
    out
}

/// Percent-encodes all but what means itself everywhere (RFC 3986 §2.3).
pub(super) fn percent_all(text: &[u8]) -> Bytes {
    percent(text, "-._~", true)
}

fn digits(byte: u8, is_upper: bool) -> [u8; 2] {
    let digit = |value: u8| match (value, is_upper) {
        (0..=9, _) => b'0' + value,
        (_, true) => b'A' + (value - 10),
        (_, false) => b'a' + (value - 10),
    };
    [digit(byte >> 4), digit(byte & 15)]
}

fn hex(text: &[u8], is_upper: bool) -> Bytes {
    let digits = text.iter().flat_map(|byte| digits(*byte, is_upper));
    Zeroizing::new(digits.collect())
}

/// What more is escaped in JSON than has to be.
#[derive(Clone, Copy)]
struct JsonStyle {
    /// With a backslash before it.
    marked: &'static str,
    /// By its number.
    numbered: &'static str,
    /// So is all that is not ASCII.
    is_ascii: bool,
    is_upper: bool,
}

const PLAIN: JsonStyle = JsonStyle {
    marked: "\"\\",
    numbered: "",
    is_ascii: false,
    is_upper: false,
};
/// PHP, and all who write for a `<script>`.
const SLASHES: JsonStyle = JsonStyle {
    marked: "\"\\/",
    ..PLAIN
};
/// Python and others that write ASCII; Go, which writes so what means something in HTML.
const NUMBERS: JsonStyle = JsonStyle {
    numbered: "<>&'",
    is_ascii: true,
    ..PLAIN
};
const NUMBERS_UPPER: JsonStyle = JsonStyle {
    is_upper: true,
    ..NUMBERS
};
/// Gson, which counts `=` among these: what ends in it may be base64.
const GSON: JsonStyle = JsonStyle {
    numbered: "<>&'=",
    ..PLAIN
};
/// .NET, which writes almost nothing but letters and digits as it is.
const DOT_NET: JsonStyle = JsonStyle {
    marked: "\\",
    numbered: "<>&'\"+`\u{7f}",
    is_ascii: true,
    is_upper: true,
};

/// What stands for a text in a string of JSON, with no more escaped than has to be.
pub(super) fn json(text: &[u8]) -> Bytes {
    json_as(text, PLAIN)
}

fn json_as(text: &[u8], style: JsonStyle) -> Bytes {
    let mut out = Zeroizing::new(String::with_capacity(text.len() * 6));
    // Values are UTF-8; what is not is not JSON either.
    for character in String::from_utf8_lossy(text).chars() {
        match character {
            _ if style.marked.contains(character) => {
                out.push('\\');
                out.push(character);
            }
            '\t' => out.push_str("\\t"),
            _ if style.numbered.contains(character)
                || (style.is_ascii && !character.is_ascii()) =>
            {
                let mut units = [0; 2];
                for unit in character.encode_utf16(&mut units) {
                    let written = match style.is_upper {
                        true => write!(out, "\\u{unit:04X}"),
                        false => write!(out, "\\u{unit:04x}"),
                    };
                    debug_assert!(written.is_ok(), "a text takes all");
                }
            }
            _ => out.push(character),
        }
    }
    Zeroizing::new(std::mem::take(&mut *out).into_bytes())
}

fn html(text: &[u8], (quote, apostrophe, plus): (&str, &str, &str)) -> Bytes {
    let mut out = Zeroizing::new(Vec::with_capacity(text.len() * 6));
    for byte in text {
        match byte {
            b'&' => out.extend_from_slice(b"&amp;"),
            b'<' => out.extend_from_slice(b"&lt;"),
            b'>' => out.extend_from_slice(b"&gt;"),
            b'"' => out.extend_from_slice(quote.as_bytes()),
            b'\'' => out.extend_from_slice(apostrophe.as_bytes()),
            b'+' => out.extend_from_slice(plus.as_bytes()),
            _ => out.push(*byte),
        }
    }
    out
}

/// A text with its percent-encodings undone, and where each byte comes from. What is no
/// encoding stays.
pub(super) struct Decoded {
    pub(super) bytes: Vec<u8>,
    /// Where each byte begins, and after the last where the text ends.
    starts: Vec<usize>,
}

impl Decoded {
    pub(super) fn of(text: &[u8]) -> Self {
        let (mut bytes, mut starts) = (Vec::with_capacity(text.len()), Vec::new());
        let mut at = 0;
        while let Some(byte) = text.get(at) {
            starts.push(at);
            let value = match byte {
                b'%' => text.get(at + 1..at + 3).and_then(value),
                _ => None,
            };
            bytes.push(value.unwrap_or(*byte));
            at += if value.is_some() { 3 } else { 1 };
        }
        starts.push(text.len());
        Self { bytes, starts }
    }

    /// Where in the text these of the bytes are.
    pub(super) fn origin(&self, range: Range<usize>) -> Range<usize> {
        let start = |at: usize| self.starts.get(at).copied().unwrap_or_default();
        start(range.start)..start(range.end)
    }
}

/// The value of two hexadecimal digits.
fn value(digits: &[u8]) -> Option<u8> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16);
    match digits {
        [high, low] => u8::try_from(digit(high)? * 16 + digit(low)?).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::{STANDARD, URL_SAFE};

    use super::*;

    fn has(text: &str, form: &[u8]) -> bool {
        let finds = |one: &Bytes| {
            form.windows(one.len())
                .any(|window| window == one.as_slice())
        };
        forms(text.as_bytes()).iter().any(finds)
    }

    #[test]
    fn a_text_is_found_in_its_usual_encodings() {
        for (text, form) in [
            ("hunter22", "xhunter22x"),
            ("a&b=c d/", "a%26b%3Dc%20d%2F"),
            ("a&b=c d/", "a%26b%3dc%20d%2f"),
            ("a&b=c d/", "a%26b%3Dc+d%2F"),
            ("a&b=c d/", "a%26b%3Dc%20d/"),
            ("it's(a)!*", "it's(a)!*"),
            ("it's(a) !*", "it's(a)%20!*"),
            ("quote\"\\", r#"quote\"\\"#),
            ("a/b/c", r"a\/b\/c"),
            ("a<b>&c", r"a\u003cb\u003e\u0026c"),
            ("schl\u{fc}ssel", r"schl\u00fcssel"),
            ("schl\u{fc}ssel<", r"schl\u00FCssel\u003C"),
            ("c2VjcmV0PT0=", r"c2VjcmV0PT0\u003d"),
            ("a+b\"c\\", r"a\u002Bb\u0022c\\"),
            ("a+b\"c", "a&#43;b&#34;c"),
            ("a<b>&'\"", "a&lt;b&gt;&amp;&#39;&#34;"),
            ("a<b>&'\"", "a&lt;b&gt;&amp;&#x27;&quot;"),
            ("hunter22", "68756e7465723232"),
            ("hunter2~", "68756E746572327E"),
        ] {
            assert!(has(text, form.as_bytes()), "{text} {form}");
        }
    }

    #[test]
    fn base64_is_found_wherever_it_begins() {
        let text = "sk-l\u{3ff}ive?>_0";
        for before in 0..7 {
            for after in 0..4 {
                let whole = format!("{}{text}{}", "u".repeat(before), ":".repeat(after));
                assert!(has(text, STANDARD.encode(&whole).as_bytes()), "{whole}");
                assert!(has(text, URL_SAFE.encode(&whole).as_bytes()), "{whole}");
            }
        }
    }

    #[test]
    fn short_texts_are_not_looked_for() {
        assert!(forms(b"abc").is_empty());
        // Nor in base64, of which too little would be left.
        assert!(!has("abcd", STANDARD.encode("abcd").as_bytes()));
    }

    #[test]
    fn decoding_knows_where_bytes_come_from() {
        let decoded = Decoded::of(b"a%41%4%zz%2");
        assert_eq!(decoded.bytes, b"aA%4%zz%2");
        assert_eq!(decoded.origin(0..2), 0..4);
        assert_eq!(decoded.origin(1..3), 1..5);
        assert_eq!(decoded.origin(0..9), 0..11);
    }
}
