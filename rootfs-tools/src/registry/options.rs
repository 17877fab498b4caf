//! What a user can choose about registries.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use reqwest::Url;

use super::Error;
use super::credentials::Credentials;
use crate::platform::Platform;
use crate::reference;

/// How to talk to registries. The default knows no credentials, no proxies and
/// no mirrors; [`Options::from_environment`] looks for what the user has.
#[derive(Clone, Default)]
pub struct Options {
    /// What to take from images for several platforms.
    pub platform: Platform,
    /// Registries that are spoken to in plain HTTP, as `HOST:PORT`; `HOST` alone
    /// means all its ports. Redirects and token servers in plain HTTP have to be
    /// at such a host and port as well. No other registry ever is, on loopback neither, and
    /// certificates are always checked.
    pub insecure: Vec<String>,
    /// Files with certificates (PEM) of authorities to trust besides the host's.
    pub ca_files: Vec<PathBuf>,
    /// For a registry (`docker.io`, `quay.io`): where to ask before it, in order,
    /// as `HOST[:PORT][/PREFIX]`.
    pub mirrors: BTreeMap<String, Vec<String>>,
    /// Proxies.
    pub proxies: Proxies,
    /// Who we are.
    pub credentials: Credentials,
    /// How much to take.
    pub limits: Limits,
    /// How long to wait.
    pub deadlines: Deadlines,
    /// How often to try.
    pub retry: Retry,
    /// Who is told of what goes wrong and is got over.
    pub notify: Option<Notify>,
}

/// Called with what happens; from any task that fetches.
pub type Notify = Arc<dyn Fn(&Notice) + Send + Sync>;

/// Something went wrong, and things go on. Its text is one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Notice {
    /// A request failed and is made again after a while.
    #[error("{why}; trying again in {:.1} s ({made} of {most} attempts made)", wait.as_secs_f32())]
    Retry {
        /// What went wrong.
        why: String,
        /// How long until then.
        wait: Duration,
        /// Attempts so far.
        made: u32,
        /// Attempts that are made at most.
        most: u32,
    },
    /// A mirror failed; the next one, or the registry itself, is asked.
    #[error("mirror {mirror}: {why}")]
    Mirror {
        /// Which.
        mirror: String,
        /// What went wrong.
        why: String,
    },
    /// A source of credentials could not be used; going on without it.
    #[error("{why}")]
    Credentials {
        /// Which, and why.
        why: String,
    },
}

/// Bounds on what a registry can make us take, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// A manifest or index. Docker and containerd draw the line at 4 MiB too.
    pub manifest: u64,
    /// The configuration of an image.
    pub config: u64,
    /// A layer, compressed as it is in the registry.
    pub blob: u64,
    /// Layers of an image, a number.
    pub layers: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            manifest: 4 << 20,
            config: 8 << 20,
            blob: 64 << 30,
            layers: 1024,
        }
    }
}

/// Bounds on waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// To resolve a name, connect and agree on keys.
    pub connect: Duration,
    /// To answer a request, and for each piece of a blob after another (a piece
    /// being a kibibyte: who sends less in this time has stopped).
    pub idle: Duration,
    /// For each 16 KiB of a blob: who sends less in this time is too slow ever to
    /// be done, however often something comes.
    pub pace: Duration,
    /// For the whole of a manifest, configuration or token.
    pub document: Duration,
    /// For a credential helper, which may ask its user.
    pub helper: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(15),
            idle: Duration::from_secs(30),
            pace: Duration::from_secs(60),
            document: Duration::from_secs(60),
            helper: Duration::from_secs(60),
        }
    }
}

/// When to try again what may work another time: lost connections, time-outs
/// and statuses 408, 429 and 5xx.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// Attempts in all. A blob that got further than ever before has its count
    /// started anew: it ends, as blobs have sizes.
    pub attempts: u32,
    /// The wait after the first; each one doubles, and up to half is random.
    pub first: Duration,
    /// The longest wait. A registry that wants a longer one (`Retry-After`) is
    /// given up.
    pub longest: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            attempts: 5,
            first: Duration::from_millis(300),
            longest: Duration::from_secs(30),
        }
    }
}

/// Proxies, as URLs (`http://`, `https://`, `socks5://`, `socks5h://`; user and
/// password can be in them). Loopback addresses are never reached through one.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Proxies {
    /// For registries spoken to in plain HTTP.
    pub http: Option<String>,
    /// For all others.
    pub https: Option<String>,
    /// For what the two above say nothing about.
    pub all: Option<String>,
    /// Hosts, `.domains`, addresses and networks (`10.0.0.0/8`) that are reached
    /// without; separated by commas. `*` is all.
    pub none: Option<String>,
}

impl Proxies {
    /// `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`, or the same in
    /// lower case.
    #[must_use]
    pub fn from_environment() -> Self {
        Self::from_variables(&|name| std::env::var_os(name))
    }

    pub(crate) fn from_variables(get: &dyn Fn(&str) -> Option<OsString>) -> Self {
        let get = |name: &str| {
            [name.to_owned(), name.to_ascii_lowercase()]
                .iter()
                .filter_map(|name| get(name)?.into_string().ok())
                .find(|value| !value.is_empty())
        };
        // A CGI program gets HTTP_PROXY from the header `Proxy` of a request.
        let cgi = get("REQUEST_METHOD").is_some();
        Self {
            http: get("HTTP_PROXY").filter(|_| !cgi),
            https: get("HTTPS_PROXY"),
            all: get("ALL_PROXY"),
            none: get("NO_PROXY"),
        }
    }
}

/// Without the URLs, which can have passwords in them.
impl fmt::Debug for Proxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxies")
            .field("http", &self.http.is_some())
            .field("https", &self.https.is_some())
            .field("all", &self.all.is_some())
            .field("none", &self.none)
            .finish()
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("platform", &self.platform)
            .field("insecure", &self.insecure)
            .field("ca_files", &self.ca_files)
            .field("mirrors", &self.mirrors)
            .field("proxies", &self.proxies)
            .field("credentials", &self.credentials)
            .field("limits", &self.limits)
            .field("deadlines", &self.deadlines)
            .field("retry", &self.retry)
            .finish_non_exhaustive()
    }
}

impl Options {
    /// Proxies and credentials that the environment and the user's files name.
    /// The files are read when a registry asks for credentials.
    #[must_use]
    pub fn from_environment() -> Self {
        Self {
            proxies: Proxies::from_environment(),
            credentials: Credentials::from_environment(),
            ..Self::default()
        }
    }

    /// Checks the names of registries and gives them in their one spelling.
    pub(super) fn checked(mut self) -> Result<Self, Error> {
        let check = |what: &str, text: &str| {
            reference::check_registry(text).map_err(|why| Error::Options {
                why: format!("{what}: {why}"),
            })
        };
        for registry in &mut self.insecure {
            *registry = check("insecure registry", registry)?;
        }
        let mut mirrors = BTreeMap::new();
        for (registry, list) in &self.mirrors {
            let list = list.iter().map(|mirror| {
                let (host, prefix) = match mirror.split_once('/') {
                    Some((host, prefix)) => (host, Some(prefix.trim_matches('/'))),
                    None => (mirror.as_str(), None),
                };
                let host = check("mirror", host)?;
                match prefix.filter(|prefix| !prefix.is_empty()) {
                    None => Ok(host),
                    Some(prefix) => match reference::check_path(prefix) {
                        Ok(()) => Ok(format!("{host}/{prefix}")),
                        Err(why) => Err(Error::Options {
                            why: format!("mirror {mirror}: {why}"),
                        }),
                    },
                }
            });
            let list = list.collect::<Result<Vec<_>, Error>>()?;
            mirrors.insert(check("registry with mirrors", registry)?, list);
        }
        self.mirrors = mirrors;
        self.credentials = self.credentials.checked()?;
        Ok(self)
    }

    /// May this `http://` address be spoken to? Its host and port have to be
    /// named insecure; the port that HTTP has by itself is 80.
    pub(super) fn may_be_plain(&self, url: &Url) -> bool {
        let Some(host) = url.host_str() else {
            return false;
        };
        let port = url.port_or_known_default();
        self.insecure.iter().any(|named| match split(named) {
            (name, None) => name == host,
            (name, Some(number)) => name == host && number.parse().ok() == port,
        })
    }

    /// Is `HOST[:PORT]` to be spoken to in plain HTTP?
    pub(super) fn is_insecure(&self, registry: &str) -> bool {
        let (host, _) = split(registry);
        self.insecure.iter().any(|it| it == registry || it == host)
    }

    pub(super) fn tell(&self, notice: &Notice) {
        if let Some(notify) = &self.notify {
            notify(notice);
        }
    }
}

/// `HOST[:PORT]` in its parts; the address of IP version 6 has brackets.
fn split(registry: &str) -> (&str, Option<&str>) {
    match registry.rsplit_once(':') {
        Some((host, port)) if port.chars().all(|c| c.is_ascii_digit()) => (host, Some(port)),
        _ => (registry, None),
    }
}

#[cfg(test)]
mod tests;
