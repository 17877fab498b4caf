//! Which proxy leads to which address.
//!
//! Chosen here and not by the HTTP client: an error has to name the proxy that
//! was asked, and one that cannot be used must never mean that none is.

use std::fmt;
use std::net::IpAddr;

use reqwest::Url;

use super::error::Error;
use super::options::Proxies;

/// What to do about a proxy that lets nobody through whom it does not know.
pub(super) const LOGIN: &str = "the proxy wants a user and a password, or other ones; they are part of its URL, as in \
     http://USER:PASSWORD@HOST:PORT";

/// Is that what the HTTP client says of such a proxy? Its errors have no type
/// that could be asked.
pub(super) fn wants_login(text: &str) -> bool {
    [
        "proxy authorization required",
        "credentials not accepted",
        "does not support user/pass authentication",
    ]
    .iter()
    .any(|it| text.contains(it))
}

/// Is that what the HTTP client says of a SOCKS proxy to which there is no
/// connection?
pub(super) fn is_away(text: &str) -> bool {
    text == "SOCKS error: failed to create underlying connection"
}

/// Is that what the HTTP client says of a proxy that makes no connection?
pub(super) fn refuses(text: &str) -> bool {
    text == "tunnel error: unsuccessful"
}

/// The proxies of [`Proxies`], checked.
#[derive(Debug, Clone)]
pub(super) struct Routes {
    http: Option<Route>,
    https: Option<Route>,
    direct: Vec<Direct>,
}

/// A proxy. Shown without the user and password in its URL.
#[derive(Clone)]
pub(super) struct Route {
    url: Url,
    /// The variable that names it.
    variable: &'static str,
}

/// What is reached without a proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Direct {
    All,
    /// Addresses of which so many first bits are these.
    Network(IpAddr, u8),
    /// A domain, and perhaps itself; on one port, or on all.
    Domain {
        name: String,
        itself: bool,
        port: Option<u16>,
    },
    /// An address on one port.
    Address(IpAddr, u16),
}

impl Routes {
    pub(super) fn new(proxies: &Proxies) -> Result<Self, Error> {
        let route = |name, variable, url: &Option<String>| {
            let route = url.as_deref().map(|url| Route::new(name, variable, url));
            route.transpose()
        };
        let all = route("all", "ALL_PROXY", &proxies.all)?;
        let http = route("HTTP", "HTTP_PROXY", &proxies.http)?;
        let https = route("HTTPS", "HTTPS_PROXY", &proxies.https)?;
        // As Go does, and with it docker and podman: never for this host itself.
        let own = "localhost,127.0.0.0/8,::1";
        let none = proxies.none.as_deref().unwrap_or_default();
        let direct = own.split(',').chain(none.split(','));
        Ok(Self {
            http: http.or_else(|| all.clone()),
            https: https.or(all),
            direct: direct.filter_map(Direct::new).collect(),
        })
    }

    /// The proxy for this address, if there is one.
    pub(super) fn of(&self, url: &Url) -> Option<&Route> {
        let route = match url.scheme() {
            "http" => self.http.as_ref(),
            _ => self.https.as_ref(),
        }?;
        let host = url.host_str()?.trim_matches(['[', ']']);
        let port = url.port_or_known_default();
        let direct = self.direct.iter().any(|it| it.has(host, port));
        (!direct).then_some(route)
    }
}

impl Route {
    /// The errors do not repeat the URL, which can have a password in it.
    fn new(name: &str, variable: &'static str, text: &str) -> Result<Self, Error> {
        let wrong = |what: &str| Error::Options {
            why: format!("the proxy for {name} ({variable}) {what}"),
        };
        let with_scheme = match text.contains("://") {
            true => text.to_owned(),
            false => format!("http://{text}"),
        };
        let mut url = Url::parse(&with_scheme).map_err(|_| wrong("is no URL that can be used"))?;
        match url.scheme() {
            "http" | "https" => {}
            "socks5" | "socks5h" if url.port().is_none() => {
                url.set_port(Some(1080))
                    .map_err(|()| wrong("is no URL that can be used"))?;
            }
            "socks5" | "socks5h" => {}
            _ => {
                return Err(wrong(
                    "is of an unknown kind; it has to begin with http://, https://, socks5:// or \
                     socks5h://",
                ));
            }
        }
        match url.host_str() {
            Some(host) if !host.is_empty() => Ok(Self { url, variable }),
            _ => Err(wrong("names no host")),
        }
    }

    /// With user and password.
    pub(super) fn url(&self) -> &Url {
        &self.url
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = self.url.host_str().unwrap_or_default();
        write!(f, "the proxy {}://{host}", self.url.scheme())?;
        if let Some(port) = self.url.port() {
            write!(f, ":{port}")?;
        }
        write!(f, " ({})", self.variable)
    }
}

impl fmt::Debug for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Direct {
    /// The forms of Go: a name is also its domain's, one that begins with a dot
    /// or `*.` only that, and either can have a port, as an address can.
    fn new(text: &str) -> Option<Self> {
        let text = text.trim().to_ascii_lowercase();
        if text == "*" {
            return Some(Self::All);
        }
        if let Some((address, bits)) = text.split_once('/') {
            return Some(Self::Network(address.parse().ok()?, bits.parse().ok()?));
        }
        let (host, port) = match text.parse::<IpAddr>() {
            Ok(address) => return Some(Self::Network(address, 128)),
            Err(_) => match text.rsplit_once(':') {
                Some((host, port)) if port.parse::<u16>().is_ok() => (host, port.parse().ok()),
                _ => (text.as_str(), None),
            },
        };
        let host = host.trim_matches(['[', ']']);
        if let Ok(address) = host.parse::<IpAddr>() {
            return Some(port.map_or(Self::Network(address, 128), |port| {
                Self::Address(address, port)
            }));
        }
        let name = host.strip_prefix('*').unwrap_or(host);
        let (name, itself) = match name.strip_prefix('.') {
            Some(name) => (name, false),
            None => (name, true),
        };
        (!name.is_empty()).then(|| Self::Domain {
            name: name.to_owned(),
            itself,
            port,
        })
    }

    fn has(&self, host: &str, port: Option<u16>) -> bool {
        let address = host.parse::<IpAddr>().ok();
        match self {
            Self::All => true,
            Self::Network(network, bits) => {
                address.is_some_and(|address| within(address, *network, *bits))
            }
            Self::Address(named, only) => address == Some(*named) && port == Some(*only),
            Self::Domain {
                name,
                itself,
                port: only,
            } => {
                let below = || {
                    host.strip_suffix(name.as_str())
                        .is_some_and(|it| it.ends_with('.'))
                };
                (only.is_none() || *only == port) && (*itself && host == name || below())
            }
        }
    }
}

/// Are the first bits of the two the same? More bits than there are mean all.
fn within(address: IpAddr, network: IpAddr, bits: u8) -> bool {
    let shift = |size: u32| size.saturating_sub(u32::from(bits));
    match (address, network) {
        (IpAddr::V4(one), IpAddr::V4(other)) => {
            let differ = one.to_bits() ^ other.to_bits();
            differ.checked_shr(shift(32)).unwrap_or(0) == 0
        }
        (IpAddr::V6(one), IpAddr::V6(other)) => {
            let differ = one.to_bits() ^ other.to_bits();
            differ.checked_shr(shift(128)).unwrap_or(0) == 0
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routes(proxies: &Proxies) -> Routes {
        Routes::new(proxies).unwrap_or_else(|error| panic!("{error}"))
    }

    fn shown(routes: &Routes, url: &str) -> String {
        let route = routes.of(&Url::parse(url).unwrap());
        route.map_or_else(|| "none".to_owned(), ToString::to_string)
    }

    #[test]
    fn each_scheme_has_its_proxy_and_else_that_of_all() {
        let all = routes(&Proxies {
            http: Some("me:hunter2@one:3128".to_owned()),
            all: Some("socks5://two".to_owned()),
            ..Proxies::default()
        });
        assert_eq!(
            shown(&all, "http://a.example/"),
            "the proxy http://one:3128 (HTTP_PROXY)"
        );
        assert_eq!(
            shown(&all, "https://a.example/"),
            "the proxy socks5://two:1080 (ALL_PROXY)"
        );
        assert!(!format!("{all:?}").contains("hunter2"));
    }

    #[test]
    fn what_is_named_is_reached_without() {
        let some = routes(&Proxies {
            all: Some("http://p".to_owned()),
            none: Some(
                "a.example, .b.example,*.c.example,d.example:5000,10.0.0.0/8,192.0.2.7,\
                 192.0.2.8:5000,2001:db8::/32,[2001:dba::1]:5000,,/"
                    .to_owned(),
            ),
            ..Proxies::default()
        });
        for (host, direct) in [
            ("localhost", true),
            ("127.1.2.3:5000", true),
            ("[::1]:5000", true),
            ("a.example", true),
            ("A.example:5000", true),
            ("x.a.example", true),
            ("xa.example", false),
            ("b.example", false),
            ("x.b.example", true),
            ("x.c.example", true),
            ("c.example", false),
            ("d.example:5000", true),
            ("d.example", false),
            ("10.9.8.7", true),
            ("11.9.8.7", false),
            ("192.0.2.7:81", true),
            ("192.0.2.8:5000", true),
            ("192.0.2.8", false),
            ("[2001:db8::5]", true),
            ("[2001:db9::5]", false),
            ("[2001:dba::1]:5000", true),
            ("[2001:dba::1]", false),
        ] {
            let found = shown(&some, &format!("https://{host}/"));
            assert_eq!(found == "none", direct, "{host}: {found}");
        }
        let none = routes(&Proxies {
            all: Some("http://p".to_owned()),
            none: Some("*".to_owned()),
            ..Proxies::default()
        });
        assert_eq!(shown(&none, "https://a.example/"), "none");
    }

    /// Or else everything would go without one.
    #[test]
    fn a_proxy_of_an_unknown_kind_is_an_error() {
        for (url, says) in [
            ("sock5://me:hunter2@p:1", "has to begin with http://"),
            ("ftp://p", "has to begin with http://"),
            ("http://me:hunter2@", "is no URL"),
            ("socks5://", "is no URL"),
        ] {
            let error = Routes::new(&Proxies {
                all: Some(url.to_owned()),
                ..Proxies::default()
            });
            let error = error.unwrap_err().to_string();
            assert!(error.contains("(ALL_PROXY)"), "{error}");
            assert!(error.contains(says), "{url}: {error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
