//! Paths of requests: in one form, and patterns of them.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::host::shown;

/// The longest pattern, in bytes.
const MAX: usize = 1024;

/// Why a text is no pattern of paths.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0:?} is no pattern of paths: it begins with `/`, and has no query, `..` or `//`")]
pub struct PathError(String);

/// A pattern of paths: `*` is anything in one segment, `**` as a segment is any number of
/// segments, none among them. `/repos/**` so means `/repos` and all below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathPattern {
    text: String,
    segments: Vec<Segment>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Segment {
    Any,
    /// What is between the stars.
    Pieces(Vec<String>),
}

impl PathPattern {
    /// Whether it means this path, which has been through [`normal`].
    #[must_use]
    pub fn matches(&self, path: &str) -> bool {
        let path = path.strip_prefix('/').unwrap_or(path);
        let segments: Vec<&str> = path.split('/').collect();
        matches(&self.segments, &segments)
    }
}

impl FromStr for PathPattern {
    type Err = PathError;

    fn from_str(text: &str) -> Result<Self, PathError> {
        let wrong = || PathError(shown(text));
        let rest = text.strip_prefix('/').ok_or_else(wrong)?;
        if text.len() > MAX || normal(text).as_deref() != Some(text) {
            return Err(wrong());
        }
        let segments = rest.split('/').map(|segment| match segment {
            "**" => Segment::Any,
            _ => Segment::Pieces(segment.split('*').map(str::to_owned).collect()),
        });
        Ok(Self {
            text: text.to_owned(),
            segments: segments.collect(),
        })
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Greedy with one way back, which is enough for stars: no input takes longer than the
/// product of both lengths.
fn matches(pattern: &[Segment], path: &[&str]) -> bool {
    let (mut at, mut next) = (0, 0);
    let mut back = None;
    loop {
        match (pattern.get(at), path.get(next)) {
            (Some(Segment::Any), _) => {
                at += 1;
                back = Some((at, next));
                continue;
            }
            (Some(Segment::Pieces(pieces)), Some(segment)) if is_segment(pieces, segment) => {
                at += 1;
                next += 1;
                continue;
            }
            (None, None) => return true,
            _ => {}
        }
        match back {
            Some((after, from)) if from < path.len() => {
                back = Some((after, from + 1));
                (at, next) = (after, from + 1);
            }
            _ => return false,
        }
    }
}

fn is_segment(pieces: &[String], segment: &str) -> bool {
    match pieces {
        [only] => only == segment,
        _ => super::pattern::matches_pieces(pieces, segment),
    }
}

/// The one form of a path, as it is judged and as it is sent; none if it could be read as
/// another path than the one it seems to be.
///
/// What is percent-encoded without need is decoded, other encodings are in upper case.
/// Segments that are `.` are left out, and those that are `..` with the one before them, as
/// clients do (RFC 3986 §5.2.4), and some, `apt` among them, do not. A path with one of them
/// percent-encoded, with more `..` than there is to leave out, an empty segment that is not the
/// last, a backslash, a `;`, an encoded slash, backslash or NUL, or anything that is not
/// printable ASCII has no form.
#[must_use]
pub fn normal(path: &str) -> Option<String> {
    let mut plain = String::with_capacity(path.len());
    let mut bytes = path.bytes();
    // Where dots were that are none to a server which looks for them before it decodes.
    let mut hidden = Vec::new();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let digits = [bytes.next()?, bytes.next()?];
                let value = u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?;
                if !digits.iter().all(u8::is_ascii_hexdigit) {
                    return None;
                }
                match value {
                    0 | b'/' | b'\\' => return None,
                    b'.' => {
                        hidden.push(plain.len());
                        plain.push('.');
                    }
                    _ if value.is_ascii_alphanumeric() || b"-._~".contains(&value) => {
                        plain.push(char::from(value));
                    }
                    _ => plain.push_str(&format!("%{value:02X}")),
                }
            }
            // Some servers drop what follows a `;` in a segment.
            b'\\' | b'?' | b'#' | b';' => return None,
            _ if byte.is_ascii_graphic() => plain.push(char::from(byte)),
            _ => return None,
        }
    }
    let mut kept: Vec<&str> = Vec::new();
    let mut rest = plain.strip_prefix('/')?;
    let mut begins = 1;
    loop {
        let (segment, after) = match rest.split_once('/') {
            Some((segment, after)) => (segment, Some(after)),
            None => (rest, None),
        };
        let ends = begins + segment.len();
        let is_dots = matches!(segment, "." | "..");
        if is_dots && hidden.iter().any(|at| (begins..ends).contains(at)) {
            return None;
        }
        match segment {
            "." => {}
            ".." => drop(kept.pop()?),
            "" if after.is_some() => return None,
            _ => kept.push(segment),
        }
        let Some(after) = after else {
            if is_dots {
                // They stand for a directory.
                kept.push("");
            }
            break;
        };
        (rest, begins) = (after, ends + 1);
    }
    Some(format!("/{}", kept.join("/")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_path_has_one_form_or_none() {
        for (path, form) in [
            ("/", "/"),
            ("/a/b", "/a/b"),
            ("/a/b/", "/a/b/"),
            ("/%61%2Db", "/a-b"),
            ("/a%20b%c3%a4", "/a%20b%C3%A4"),
            ("/a%3bx", "/a%3Bx"),
            ("/~user/a@b:c", "/~user/a@b:c"),
            ("/*", "/*"),
            ("/a%2eb", "/a.b"),
            // As `apt` asks for what is in a flat repository.
            ("/debian/./Packages.gz", "/debian/Packages.gz"),
            ("/./a", "/a"),
            ("/a/.", "/a/"),
            ("/.", "/"),
            ("/api/../admin", "/admin"),
            ("/a/b/../../c", "/c"),
            ("/a/..", "/"),
            ("/a/b/..", "/a/"),
            ("/a/.b/..c/...", "/a/.b/..c/..."),
        ] {
            assert_eq!(normal(path).as_deref(), Some(form), "{path}");
        }
        for path in [
            "",
            "a",
            "*",
            "//admin",
            "/a//b",
            "/..",
            "/../admin",
            "/a/../../admin",
            "/a//../b",
            "/a/%2e/b",
            "/a/%2e",
            "/%2e/a",
            "/api/%2e%2e/admin",
            "/api/.%2E/admin",
            "/api/%2e./admin",
            "/api/..%2fadmin",
            "/api/..;/admin",
            "/;x/admin",
            "/admin;x=1/secret",
            "/a%2fb",
            "/a%5cb",
            "/\\admin",
            "/admin%00",
            "/a%",
            "/a%2",
            "/a%zz",
            "/a%+1",
            "/a b",
            "/a?b",
            "/a#b",
            "/ä",
            "/a\r\n",
        ] {
            assert_eq!(normal(path), None, "{path}");
        }
    }

    #[test]
    fn patterns() {
        for (pattern, path, is_match) in [
            ("/", "/", true),
            ("/", "/a", false),
            ("/a", "/a", true),
            ("/a", "/A", false),
            ("/a/*", "/a/b", true),
            ("/a/*", "/a/b/c", false),
            ("/a/*", "/a", false),
            ("/a/**", "/a", true),
            ("/a/**", "/a/", true),
            ("/a/**", "/a/b/c", true),
            ("/a/**", "/ab", false),
            ("/**", "/", true),
            ("/**", "/a/b", true),
            ("/**/git-receive-pack", "/o/r.git/git-receive-pack", true),
            ("/**/git-receive-pack", "/git-receive-pack", true),
            ("/**/git-receive-pack", "/o/git-receive-pack/x", false),
            ("/**/a/**/b", "/a/x/a/b/b", true),
            ("/**/a/**/b", "/x/b/a", false),
            ("/v*/x", "/v12/x", true),
            ("/v*/x", "/v/x", true),
            ("/v*/x", "/v1/2/x", false),
            ("/*.*", "/a.b", true),
            ("/*.*", "/ab", false),
        ] {
            let parsed: PathPattern = pattern.parse().unwrap();
            assert_eq!(parsed.matches(path), is_match, "{pattern} {path}");
        }
        for pattern in [
            "", "a", "/a?b", "/a/../b", "/a/./b", "/a//b", "/a b", "/%2F",
        ] {
            assert!(pattern.parse::<PathPattern>().is_err(), "{pattern}");
        }
    }

    /// Stars upon stars do not take for ever.
    #[test]
    fn a_match_is_bounded() {
        let pattern = format!("/{}b", "**/a/".repeat(100));
        let path = format!("/{}", "a/".repeat(2000));
        assert!(!pattern.parse::<PathPattern>().unwrap().matches(&path));
    }
}
