//! Fetching a pinned file with curl: whole and as pinned, or not at all.
//!
//! curl writes to a pipe, not to the file: so the bytes are counted, hashed and
//! bounded as they come, and a full disk is our error and not curl's. What has
//! arrived stays beside the target (`.part`), and the next attempt goes on there.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::cancel::Cancel;
use crate::key::hex;
use crate::process::{Output, StreamError, stream};
use crate::source::{PACKAGE, WRITTEN_FOR};
use crate::upstream::Upstream;

/// How long curl may take to reach a server.
const CONNECT: Duration = Duration::from_secs(30);
/// Slower than this for `stall` is a connection that is dead.
const SLOWEST_BYTES_PER_SECOND: u32 = 1000;
/// How long nothing, or next to nothing, may come.
pub(crate) const STALL: Duration = Duration::from_secs(30);
/// No tarball of Linux is longer: those of 6.12 have 150 MB.
const MAX_BYTES: u64 = 1 << 30;
/// A connection that breaks is taken up again this often, if it brought anything.
const MAX_ATTEMPTS: u32 = 8;

/// How much of a download is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transfer {
    /// Bytes, those of earlier attempts included.
    pub done: u64,
    /// Bytes of the whole, where the server says so.
    pub total: Option<u64>,
}

/// Why the source could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// curl cannot be run.
    #[error("cannot run curl: {0}")]
    Start(io::Error),
    /// curl gave up.
    #[error(
        "cannot download {url}: {reason}\n  Without a download: apt-get install {PACKAGE}, or \
         --source with a tree or tarball of Linux {WRITTEN_FOR}. FLASHPAN_KERNEL_MIRROR names \
         another directory to fetch from{}",
        kept(*.arrived)
    )]
    Failed {
        /// What was fetched.
        url: String,
        /// What curl said.
        reason: String,
        /// Bytes that are kept for the next attempt.
        arrived: u64,
    },
    /// Something else came.
    #[error(
        "what came from {url} is not what it should be and was removed: its SHA-256 is {got}, not {wanted}"
    )]
    Mismatch {
        /// What was fetched.
        url: String,
        /// Digest of what came.
        got: String,
        /// The pinned one.
        wanted: String,
    },
    /// More came than any tarball has.
    #[error("what comes from {0} is longer than {MAX_BYTES} bytes: not a kernel; removed")]
    TooLong(String),
    /// The file could not be written.
    #[error("cannot {action} {}: {source}", .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// [`Cancel::cancel`] was called.
    #[error("the download was cancelled")]
    Cancelled,
}

fn kept(arrived: u64) -> String {
    match arrived {
        0 => String::new(),
        bytes => format!(". The {bytes} bytes that have come are kept for the next attempt"),
    }
}

fn io<'a>(action: &'static str, path: &'a Path) -> impl Fn(io::Error) -> DownloadError + 'a {
    move |source| DownloadError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

/// Fetches `upstream` to `target`. The caller holds the lock of the target.
/// `stall` is how long a connection may bring nothing.
pub(crate) fn fetch(
    upstream: &Upstream,
    target: &Path,
    stall: Duration,
    cancel: &Cancel,
    progress: &mut dyn FnMut(Transfer),
) -> Result<(), DownloadError> {
    if let Some(directory) = target.parent() {
        fs::create_dir_all(directory).map_err(io("create", directory))?;
    }
    let mut partial = Partial::open(target)?;
    let (mut attempts, mut again) = (0, true);
    loop {
        let from = partial.length;
        // It may be whole: the last attempt ended between writing and renaming.
        if from == 0 || partial.digest() != upstream.sha256 {
            attempts += 1;
            let failure = transfer(upstream, &mut partial, stall, cancel, progress)?;
            let gained = partial.length > from;
            match failure {
                None => (),
                Some(Failure::Broken(_)) if gained && attempts < MAX_ATTEMPTS => continue,
                // The server cannot resume, or has something shorter.
                Some(Failure::NoResume(_)) if again && from > 0 => {
                    again = false;
                    partial.restart()?;
                    continue;
                }
                Some(failure) => {
                    return Err(DownloadError::Failed {
                        url: upstream.url(),
                        reason: failure.reason(),
                        arrived: partial.length,
                    });
                }
            }
        }
        let got = partial.digest();
        if got == upstream.sha256 {
            return partial.publish(target);
        }
        // What an earlier attempt left may be of another file.
        if again && from > 0 {
            again = false;
            partial.restart()?;
            continue;
        }
        partial.remove()?;
        return Err(DownloadError::Mismatch {
            url: upstream.url(),
            got,
            wanted: upstream.sha256.clone(),
        });
    }
}

/// A file that is not whole yet, and the digest of what is there.
struct Partial {
    path: PathBuf,
    file: File,
    hash: Sha256,
    length: u64,
}

impl Partial {
    fn open(target: &Path) -> Result<Self, DownloadError> {
        let mut name = target.file_name().unwrap_or_default().to_owned();
        name.push(".part");
        let path = target.with_file_name(name);
        let mut options = File::options();
        let file = options
            .read(true)
            .append(true)
            .create(true)
            .open(&path)
            .map_err(io("open", &path))?;
        let mut partial = Self {
            path,
            file,
            hash: Sha256::new(),
            length: 0,
        };
        let read = partial.read_all();
        read.map_err(io("read", &partial.path))?;
        Ok(partial)
    }

    fn read_all(&mut self) -> io::Result<()> {
        let mut buffer = vec![0; 1 << 20];
        loop {
            let read = self.file.read(&mut buffer)?;
            match buffer.get(..read) {
                Some(part) if !part.is_empty() => self.count(part),
                _ => return Ok(()),
            }
        }
    }

    fn count(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.length = self.length.saturating_add(length);
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), DownloadError> {
        self.file
            .write_all(bytes)
            .map_err(io("write", &self.path))?;
        self.count(bytes);
        Ok(())
    }

    fn digest(&self) -> String {
        hex(&self.hash.clone().finalize())
    }

    fn restart(&mut self) -> Result<(), DownloadError> {
        self.file.set_len(0).map_err(io("empty", &self.path))?;
        self.hash = Sha256::new();
        self.length = 0;
        Ok(())
    }

    fn remove(&self) -> Result<(), DownloadError> {
        fs::remove_file(&self.path).map_err(io("remove", &self.path))
    }

    /// Makes the file durable, then visible.
    fn publish(self, target: &Path) -> Result<(), DownloadError> {
        self.file.sync_all().map_err(io("sync", &self.path))?;
        fs::rename(&self.path, target).map_err(io("publish", target))?;
        match target.parent() {
            Some(directory) => File::open(directory)
                .and_then(|directory| directory.sync_all())
                .map_err(io("sync", directory)),
            None => Ok(()),
        }
    }
}

/// How an attempt ended.
enum Failure {
    /// The connection broke; what came is good.
    Broken(String),
    /// The server does not go on where we are.
    NoResume(String),
    /// Anything else: no network, no such file, no certificate.
    Other(String),
}

impl Failure {
    fn reason(self) -> String {
        match self {
            Self::Broken(reason) | Self::NoResume(reason) | Self::Other(reason) => reason,
        }
    }
}

/// One run of curl, from where `partial` ends; `None` when it was content.
fn transfer(
    upstream: &Upstream,
    partial: &mut Partial,
    stall: Duration,
    cancel: &Cancel,
    progress: &mut dyn FnMut(Transfer),
) -> Result<Option<Failure>, DownloadError> {
    let from = partial.length;
    let mut headers = Headers::default();
    let mut said = None;
    let mut consume = |output: Output<'_>| match output {
        Output::Data(bytes) => {
            partial.append(bytes)?;
            if partial.length > MAX_BYTES {
                partial.remove()?;
                return Err(DownloadError::TooLong(upstream.url()));
            }
            progress(Transfer {
                done: partial.length,
                total: headers.length().and_then(|length| from.checked_add(length)),
            });
            Ok(())
        }
        Output::Line(line) => {
            headers.line(line);
            if let Some(message) = line.strip_prefix("curl: ") {
                said = Some(message.to_owned());
            }
            Ok(())
        }
    };
    let status = match stream(curl(upstream, from, stall), cancel, &mut consume) {
        Ok(status) => status,
        Err(StreamError::Start(error)) => return Err(DownloadError::Start(error)),
        Err(StreamError::Cancelled) => return Err(DownloadError::Cancelled),
        Err(StreamError::Consumer(error)) => return Err(error),
    };
    // The headers come by another way than the content, and may have been later.
    progress(Transfer {
        done: partial.length,
        total: headers.length().and_then(|length| from.checked_add(length)),
    });
    let reason = said.unwrap_or_else(|| format!("curl: {status}"));
    Ok(match status.code() {
        Some(0) => None,
        // A partial file, a stall, an empty answer, failures to send and receive,
        // a broken stream of HTTP/2.
        Some(18 | 28 | 52 | 55 | 56 | 92) => Some(Failure::Broken(reason)),
        // Ranges: not supported, or (22 is any HTTP error) not satisfiable.
        Some(33 | 36) => Some(Failure::NoResume(reason)),
        Some(22) if headers.status == Some(416) => Some(Failure::NoResume(reason)),
        // Certificates: none installed, or none that fits.
        Some(60 | 77) => Some(Failure::Other(format!(
            "{reason} (are the certificates there? apt-get install ca-certificates)"
        ))),
        _ => Some(Failure::Other(reason)),
    })
}

/// curl writes the file to standard output; headers and what went wrong to
/// standard error. It does not read `~/.curlrc`, which could change both;
/// proxies come from the environment.
fn curl(upstream: &Upstream, from: u64, stall: Duration) -> Command {
    let [first, next] = upstream.protocols();
    let mut curl = Command::new("curl");
    curl.env("LC_ALL", "C");
    curl.args(["--disable", "--silent", "--show-error", "--fail"]);
    // What has come is ours at once, not when curl's buffer is full.
    curl.arg("--no-buffer");
    curl.args(["--location", "--proto", first, "--proto-redir", next]);
    curl.args(["--max-redirs", "5", "--netrc-optional", "--globoff"]);
    curl.args(["--dump-header", "/dev/stderr"]);
    let seconds = |time: Duration| time.as_secs().max(1).to_string();
    curl.args(["--connect-timeout", &seconds(CONNECT)]);
    curl.args(["--speed-limit", &SLOWEST_BYTES_PER_SECOND.to_string()]);
    curl.args(["--speed-time", &seconds(stall)]);
    if from > 0 {
        curl.args(["--continue-at", &from.to_string()]);
    }
    curl.args(["--url", &upstream.url()]);
    curl
}

/// What the headers of the last response say.
#[derive(Debug, Default)]
struct Headers {
    status: Option<u32>,
    length: Option<u64>,
}

impl Headers {
    /// A line of them, or anything else.
    fn line(&mut self, line: &str) {
        if line.starts_with("HTTP/") {
            // After a redirection or a proxy's answer.
            let status = line.split_whitespace().nth(1);
            self.status = status.and_then(|status| status.parse().ok());
            self.length = None;
        } else if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            self.length = value.trim().parse().ok();
        }
    }

    /// Bytes that this response brings.
    fn length(&self) -> Option<u64> {
        self.length
            .filter(|_| matches!(self.status, Some(200 | 206)))
    }
}

#[cfg(test)]
pub(crate) mod tests;
