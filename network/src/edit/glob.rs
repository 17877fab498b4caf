//! Patterns of paths, as Go's `path.Match` reads them: what clients of the JSON interface
//! write.

use std::str;

use thiserror::Error;

use crate::host::shown;

/// The longest pattern, in bytes.
const MAX: usize = 4096;

/// Why a text is no pattern of paths.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "{0:?} is no pattern of paths: a class `[…]` has to end, and a backslash or `-` to be followed by a character"
)]
pub struct GlobError(String);

/// A pattern of paths: `*` is any run of characters but `/`, `?` any one of them, `[a-z]`
/// and `[^a-z]` are classes, and a backslash takes a meaning away.
///
/// ```
/// use flashpan_network::edit::Glob;
///
/// let glob: Glob = "/v[0-9]/*/messages".parse()?;
/// assert!(glob.matches(b"/v1/threads/messages"));
/// assert!(!glob.matches(b"/v1/a/b/messages"));
/// # Ok::<(), flashpan_network::edit::GlobError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glob(Vec<Chunk>);

/// What is between two stars.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Chunk {
    /// Whether there is a star before it.
    star: bool,
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Byte(u8),
    /// `?`
    Any,
    Class {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
}

impl Glob {
    /// Whether it means this path. No path takes longer than the product of its length and
    /// that of the pattern.
    #[must_use]
    pub fn matches(&self, path: &[u8]) -> bool {
        let mut rest = path;
        for (index, chunk) in self.0.iter().enumerate() {
            let is_last = index + 1 == self.0.len();
            if chunk.star && chunk.parts.is_empty() {
                // A star at the end.
                return !rest.contains(&b'/');
            }
            let mut start = rest;
            loop {
                // The first place is as good as any, unless the end has to be met.
                let after = chunk.eat(start);
                if let Some(after) = after.filter(|after| !is_last || after.is_empty()) {
                    rest = after;
                    break;
                }
                match start {
                    [byte, more @ ..] if chunk.star && *byte != b'/' => start = more,
                    _ => return false,
                }
            }
        }
        rest.is_empty()
    }
}

impl Chunk {
    /// What is left of a path that begins with it.
    fn eat<'a>(&self, path: &'a [u8]) -> Option<&'a [u8]> {
        let mut rest = path;
        for part in &self.parts {
            let (first, after) = rest.split_first()?;
            rest = match part {
                Part::Byte(byte) => (first == byte).then_some(after)?,
                Part::Any if *first == b'/' => return None,
                Part::Any => character(rest).1,
                Part::Class { negated, ranges } => {
                    let (character, after) = character(rest);
                    let is_in = |(low, high): &(char, char)| (*low..=*high).contains(&character);
                    (ranges.iter().any(is_in) != *negated).then_some(after)?
                }
            };
        }
        Some(rest)
    }
}

/// The first character, and what follows. A byte that is none counts as the replacement
/// character.
fn character(bytes: &[u8]) -> (char, &[u8]) {
    for len in 1..=4.min(bytes.len()) {
        let (first, after) = bytes.split_at_checked(len).unwrap_or((bytes, &[]));
        if let Some(character) = str::from_utf8(first).ok().and_then(|s| s.chars().next()) {
            return (character, after);
        }
    }
    let after = bytes.get(1..).unwrap_or_default();
    (char::REPLACEMENT_CHARACTER, after)
}

impl str::FromStr for Glob {
    type Err = GlobError;

    fn from_str(text: &str) -> Result<Self, GlobError> {
        let wrong = || GlobError(shown(text));
        if text.len() > MAX {
            return Err(wrong());
        }
        let mut chunks = vec![Chunk::default()];
        let mut rest = text.chars().peekable();
        while let Some(first) = rest.next() {
            let literal = match first {
                '*' => {
                    // Stars next to each other are one.
                    match chunks.last_mut() {
                        Some(last) if last.parts.is_empty() => last.star = true,
                        _ => chunks.push(Chunk {
                            star: true,
                            ..Chunk::default()
                        }),
                    }
                    continue;
                }
                '\\' => rest.next().ok_or_else(wrong)?,
                other => other,
            };
            let parts = match chunks.last_mut() {
                Some(last) => &mut last.parts,
                None => return Err(wrong()),
            };
            match first {
                '?' => parts.push(Part::Any),
                '[' => {
                    let negated = rest.next_if_eq(&'^').is_some();
                    let mut ranges = Vec::new();
                    while ranges.is_empty() || rest.next_if_eq(&']').is_none() {
                        let low = of_class(&mut rest).ok_or_else(wrong)?;
                        let high = match rest.next_if_eq(&'-') {
                            Some(_) => of_class(&mut rest).ok_or_else(wrong)?,
                            None => low,
                        };
                        ranges.push((low, high));
                    }
                    parts.push(Part::Class { negated, ranges });
                }
                _ => {
                    let mut bytes = [0; 4];
                    let bytes = literal.encode_utf8(&mut bytes).bytes();
                    parts.extend(bytes.map(Part::Byte));
                }
            }
        }
        Ok(Self(chunks))
    }
}

/// A character of a class.
fn of_class(rest: &mut impl Iterator<Item = char>) -> Option<char> {
    match rest.next()? {
        '-' | ']' => None,
        '\\' => rest.next(),
        other => Some(other),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    /// The table of Go's own test, and paths.
    #[test]
    fn patterns_mean_what_they_mean_in_go() {
        for (pattern, path, is_match) in [
            ("abc", "abc", true),
            ("*", "abc", true),
            ("*c", "abc", true),
            ("a*", "a", true),
            ("a*", "abc", true),
            ("a*", "ab/c", false),
            ("a*/b", "abc/b", true),
            ("a*/b", "a/c/b", false),
            ("a*b*c*d*e*/f", "axbxcxdxe/f", true),
            ("a*b*c*d*e*/f", "axbxcxdxexxx/f", true),
            ("a*b*c*d*e*/f", "axbxcxdxe/xxx/f", false),
            ("a*b*c*d*e*/f", "axbxcxdxexxx/fff", false),
            ("a*b?c*x", "abxbbxdbxebxczzx", true),
            ("a*b?c*x", "abxbbxdbxebxczzy", false),
            ("ab[c]", "abc", true),
            ("ab[b-d]", "abc", true),
            ("ab[e-g]", "abc", false),
            ("ab[^c]", "abc", false),
            ("ab[^b-d]", "abc", false),
            ("ab[^e-g]", "abc", true),
            ("a\\*b", "a*b", true),
            ("a\\*b", "ab", false),
            ("a?b", "a☺b", true),
            ("a[^a]b", "a☺b", true),
            ("a???b", "a☺b", false),
            ("a[^a][^a][^a]b", "a☺b", false),
            ("[a-ζ]*", "α", true),
            ("*[a-ζ]", "A", false),
            ("a?b", "a/b", false),
            ("a*b", "a/b", false),
            ("[\\]a]", "]", true),
            ("[\\-]", "-", true),
            ("[x\\-]", "x", true),
            ("[x\\-]", "-", true),
            ("[x\\-]", "z", false),
            ("[\\-x]", "a", false),
            ("*x", "xxx", true),
            ("", "", true),
            ("", "/", false),
            ("/", "/", true),
            ("/v1/*", "/v1/", true),
            ("/v1/*", "/v1/a", true),
            ("/v1/*", "/v1/a/b", false),
            ("/v1/**", "/v1/a/b", false),
            ("/**", "/a", true),
            ("/*/b", "/a/b", true),
            ("/a b", "/a b", true),
            ("/A", "/a", false),
            ("*/*", "/", true),
            ("*a", "ba/a", false),
            ("a[^x]b", "a/b", true),
        ] {
            let glob: Glob = pattern.parse().unwrap();
            assert_eq!(glob.matches(path.as_bytes()), is_match, "{pattern} {path}");
        }
        let any: Glob = "/?x".parse().unwrap();
        assert!(any.matches(b"/\xffx"));
    }

    #[test]
    fn what_is_no_pattern() {
        for pattern in [
            "[]a]",
            "[-]",
            "[x-]",
            "[-x]",
            "[a-b-c]",
            "[",
            "[^",
            "[^bc",
            "a[",
            "a\\",
            "[a\\",
            &"a".repeat(4097),
        ] {
            assert!(pattern.parse::<Glob>().is_err(), "{pattern}");
        }
    }

    #[test]
    fn a_match_is_bounded() {
        let glob: Glob = format!("{}b", "*a".repeat(1000)).parse().unwrap();
        let path = "a".repeat(100_000);
        let begun = Instant::now();
        assert!(!glob.matches(path.as_bytes()));
        assert!(begun.elapsed() < Duration::from_secs(10));
    }
}
