//! What goes wrong with registries.
//!
//! Every message is one line: what was tried, on what, and what to do.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use oci_spec::image::Digest;

use crate::platform::Platform;

/// Why something could not be had from a registry. Texts from registries are
/// cut short and have no control characters; secrets are never in them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The registry does not know the repository, tag or digest.
    #[error(
        "no such image {image}: {host} does not know it (or shows it only after a login); check \
         the spelling and the tag"
    )]
    NoSuchImage {
        /// The image.
        image: String,
        /// Who was asked.
        host: String,
    },
    /// The registry knows the image and not this part of it.
    #[error("{what} is missing from {host}, although its manifest names it; the image is damaged")]
    Missing {
        /// Which blob of which image.
        what: String,
        /// Who was asked.
        host: String,
    },
    /// The image is not made for the platform that is asked for.
    #[error("{image} has nothing for {wanted}; it has {}", list(available))]
    NoPlatform {
        /// The image.
        image: String,
        /// What was asked for.
        wanted: Platform,
        /// What there is.
        available: Vec<Platform>,
    },
    /// The registry wants credentials, or other ones (401, 403).
    #[error("{host} does not let us have {image}: {why}")]
    Unauthorised {
        /// The image.
        image: String,
        /// Who was asked: the registry, or the token server it sends us to.
        host: String,
        /// What we had, and what to do.
        why: String,
    },
    /// The registry counts our requests and has had enough (429).
    #[error(
        "{host} limits how often it can be asked{}; log in to be allowed more, or try later",
        after(wait)
    )]
    RateLimited {
        /// Who was asked.
        host: String,
        /// How long it wants us to wait.
        wait: Option<Duration>,
    },
    /// An answer that means nothing good.
    #[error("{host} answered the request for {what} with {status}{}", said(text))]
    Status {
        /// What was asked for.
        what: String,
        /// Who was asked.
        host: String,
        /// The status of HTTP.
        status: u16,
        /// What else it said.
        text: String,
    },
    /// There is no trust.
    #[error("no secure connection to {host}: {why}")]
    Tls {
        /// Who was asked.
        host: String,
        /// Why, and what to do.
        why: Tls,
    },
    /// The name of the registry cannot be resolved.
    #[error("cannot find the address of {host}: {why}")]
    Name {
        /// Who was to be asked.
        host: String,
        /// Why.
        why: String,
    },
    /// No connection.
    #[error("cannot connect to {host}: {why}")]
    Connect {
        /// Who was to be asked.
        host: String,
        /// Why.
        why: String,
    },
    /// The connection broke.
    #[error("the connection to {host} broke in the middle of {what}: {why}")]
    Broken {
        /// What was asked for.
        what: String,
        /// Who was asked.
        host: String,
        /// How.
        why: String,
    },
    /// The registry takes too long.
    #[error("{host} took longer than {:.1} s {doing} {what}; is it reachable?", limit.as_secs_f32())]
    TimedOut {
        /// What was asked for.
        what: String,
        /// Who was asked.
        host: String,
        /// What it was doing: `to connect for`, `to answer for`, `in the middle of`.
        doing: &'static str,
        /// The deadline.
        limit: Duration,
    },
    /// Something comes all the time, and too little.
    #[error(
        "{host} sends {what} too slowly: {got} bytes in {:.1} s, at least {least} are expected; try \
         later or elsewhere",
        window.as_secs_f32()
    )]
    Slow {
        /// What was asked for.
        what: String,
        /// Who was asked.
        host: String,
        /// Bytes that came.
        got: u64,
        /// Bytes that had to come.
        least: u64,
        /// In this time.
        window: Duration,
    },
    /// The registry sends us somewhere where we do not go.
    #[error("{host} sends the request for {what} to {to}, {why}")]
    Redirect {
        /// What was asked for.
        what: String,
        /// Who was asked.
        host: String,
        /// Where to; without the query, which may hold a signature.
        to: String,
        /// Why not.
        why: &'static str,
    },
    /// The content is not what its digest says.
    #[error("{what} from {host} is not what was asked for: its digest is {found}, not {wanted}")]
    Digest {
        /// What was asked for.
        what: String,
        /// Who was asked.
        host: String,
        /// The digest that was asked for.
        wanted: Box<Digest>,
        /// The digest of what came.
        found: String,
    },
    /// Fewer bytes than the manifest says, again and again.
    #[error("{what} from {host} ends after {got} of {size} bytes")]
    Truncated {
        /// What was asked for.
        what: String,
        /// Who was asked.
        host: String,
        /// Bytes that came.
        got: u64,
        /// Bytes according to the manifest.
        size: u64,
    },
    /// Another number of bytes than the manifest says.
    #[error("{what} from {host} has {} bytes, and its manifest says {size}", count(*got, *size))]
    Size {
        /// What was asked for.
        what: String,
        /// Who was asked.
        host: String,
        /// Bytes that it has, if it said so.
        got: Option<u64>,
        /// Bytes according to the manifest.
        size: u64,
    },
    /// More than we take.
    #[error("{what} is larger than can be taken: {size} bytes, the limit is {limit}")]
    TooLarge {
        /// What was asked for.
        what: String,
        /// How large it says it is, or `more`.
        size: String,
        /// The limit of [`super::Limits`].
        limit: u64,
    },
    /// More layers than we take.
    #[error("{image} has {layers} layers; the limit is {limit}")]
    TooManyLayers {
        /// The image.
        image: String,
        /// How many.
        layers: usize,
        /// The limit of [`super::Limits`].
        limit: usize,
    },
    /// Not something that can be run.
    #[error("{what} cannot be used: {why} (media type `{media_type}`)")]
    MediaType {
        /// The image, or the part of it.
        what: String,
        /// The type.
        media_type: String,
        /// What is the matter with it.
        why: &'static str,
    },
    /// A layer whose content registries do not have.
    #[error(
        "layer {digest} of {image} is not distributed by registries, and {host} does not have it; \
         images with such layers (of Windows, mostly) cannot be used"
    )]
    Foreign {
        /// The image.
        image: String,
        /// The layer.
        digest: Box<Digest>,
        /// Who was asked.
        host: String,
    },
    /// An answer that makes no sense.
    #[error("{what} from {host} makes no sense: {why}")]
    Malformed {
        /// What was asked for.
        what: String,
        /// Who was asked.
        host: String,
        /// Why.
        why: String,
    },
    /// The blob cannot be written.
    #[error("cannot {what} the file of blob {digest}: {source}")]
    File {
        /// What was tried: a verb.
        what: &'static str,
        /// Which blob.
        digest: Box<Digest>,
        /// Why.
        source: io::Error,
    },
    /// A file with certificates cannot be used.
    #[error("cannot use the certificates in {path}: {why}")]
    Certificates {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The options make no sense.
    #[error("{why}")]
    Options {
        /// Why.
        why: String,
    },
}

/// Why there is no trust in a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Tls {
    /// Nobody whom we trust vouches for it.
    UnknownAuthority,
    /// There is nobody whom we trust, for this reason.
    NoAuthorities(String),
    /// It does not speak TLS.
    PlainHttp,
    /// The certificate is for another host.
    WrongName,
    /// The certificate has expired or is not valid yet.
    Expired,
    /// Something else.
    Other(String),
}

impl fmt::Display for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UnknownAuthority => {
                "its certificate is signed by no authority that we trust; add the authority's \
                 certificate to the host's, or name its file (extra CA)"
            }
            Self::NoAuthorities(why) => {
                return write!(
                    f,
                    "no authority is trusted, as the host's certificates (or those of \
                     SSL_CERT_FILE and SSL_CERT_DIR) cannot be used: {why}"
                );
            }
            Self::PlainHttp => {
                "it speaks plain HTTP; if that is meant to be, name the registry insecure"
            }
            Self::WrongName => "its certificate is for another host name",
            Self::Expired => "its certificate has expired or is not valid yet; is the clock right?",
            Self::Other(why) => why,
        })
    }
}

fn list(available: &[Platform]) -> String {
    if available.is_empty() {
        return "no images at all".to_owned();
    }
    let names: Vec<_> = available.iter().take(20).map(Platform::to_string).collect();
    names.join(", ")
}

fn after(wait: &Option<Duration>) -> String {
    wait.map_or_else(String::new, |wait| {
        format!(" and asks to wait {} s", wait.as_secs())
    })
}

fn said(text: &str) -> String {
    if text.is_empty() {
        String::new()
    } else {
        format!(": {text}")
    }
}

fn count(got: Option<u64>, size: u64) -> String {
    got.map_or_else(|| format!("more than {size}"), |got| got.to_string())
}

/// A text from outside, fit for a message: one line, not long, no control
/// characters, nothing that turns the direction of text around or is not seen.
pub(crate) fn clean(text: &str) -> String {
    const MOST: usize = 200;
    let unseen = |c: char| {
        matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}')
    };
    let words: Vec<_> = text
        .split(|c: char| c.is_whitespace() || c.is_control() || unseen(c))
        .filter(|word| !word.is_empty())
        .collect();
    let line = words.join(" ");
    if line.chars().count() > MOST {
        line.chars().take(MOST).chain("…".chars()).collect()
    } else {
        line
    }
}

/// Whether it may work another time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Again {
    /// No.
    Never,
    /// Yes, after a while that is ours to choose, or this one.
    After(Option<Duration>),
}

/// An error of one attempt.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: Error,
    pub(super) again: Again,
}

impl Failure {
    /// It may work another time.
    pub(super) fn passing(error: Error) -> Self {
        Self {
            error,
            again: Again::After(None),
        }
    }
}

/// It will not work another time.
impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self {
            error,
            again: Again::Never,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::clean;

    #[test]
    fn texts_from_outside_do_nothing_to_a_terminal() {
        assert_eq!(
            clean("a \x1b[31m\r\nb\u{9b}c\u{202e}d\u{200b}e"),
            "a [31m b c d e"
        );
        assert_eq!(clean(&"x".repeat(5000)).chars().count(), 201);
        assert_eq!(clean("linux/arm64/v8"), "linux/arm64/v8");
    }
}
