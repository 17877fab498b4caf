//! Secrets that go into requests on the host and never into the guest.

use std::fmt;
use std::io;

use flashpan_network::policy::Pattern;
use rustix::rand::{GetRandomFlags, getrandom};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

use super::lenient;

/// What generated placeholders begin with; 32 lower-case hexadecimal digits
/// follow.
pub const SECRET_PLACEHOLDER_PREFIX: &str = "SANDBOX_SECRET_";

/// A text that nobody may see: cleared from memory when dropped, not shown by
/// `Debug`, without `Display`.
///
/// [`Serialize`] writes it, because the configuration that a client sends has to
/// contain it. Whoever stores or shows a configuration uses
/// [`crate::api::Config::redacted`].
#[derive(Clone, Default, PartialEq, Eq)]
pub struct SecretValue(Zeroizing<String>);

impl SecretValue {
    /// Keeps a text secret from now on.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The text, for the one who needs it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether there is nothing to hide.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for SecretValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

impl From<String> for SecretValue {
    fn from(text: String) -> Self {
        Self::new(text)
    }
}

impl Serialize for SecretValue {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.expose())
    }
}

impl<'de> Deserialize<'de> for SecretValue {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from).map(Self::new)
    }
}

/// A secret: the guest has a placeholder, and the host puts the value in its
/// place in requests to certain hosts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Secret {
    /// The value. Not empty, and without line breaks and NUL, which no header of
    /// a request can carry.
    #[serde(default, deserialize_with = "lenient::null")]
    #[cfg_attr(test, schemars(with = "String"))]
    pub value: SecretValue,
    /// What the guest has in place of the value; empty: a random one that begins
    /// with `SANDBOX_SECRET_`. 8 to 1024 printable ASCII characters without
    /// blanks; no placeholder may contain another or the value.
    #[serde(
        default,
        deserialize_with = "lenient::null",
        skip_serializing_if = "lenient::is_default"
    )]
    pub placeholder: String,
    /// Patterns of the hosts that may receive the value, at least one. They are
    /// added to the hosts that the guest may reach; one that names no port on ports 443 and
    /// 80, where requests and answers are looked into.
    #[serde(default, deserialize_with = "lenient::list")]
    pub hosts: Vec<String>,
    /// The places of a request in which the value comes, and no others: `headers`,
    /// `header:NAME` (of these headers only), `basic` (credentials), `query`, `path`, `body`.
    /// Empty: `headers`, `basic` and `query`.
    #[serde(
        default,
        deserialize_with = "lenient::list",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub places: Vec<String>,
    /// Whether the value may be sent in the clear as well, to whoever answers. Default
    /// false.
    #[serde(
        default,
        deserialize_with = "lenient::null",
        skip_serializing_if = "lenient::is_default"
    )]
    pub plain_http: bool,
}

impl Secret {
    /// A secret for hosts that match these patterns.
    pub fn new<I>(value: impl Into<SecretValue>, hosts: I) -> Self
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        Self {
            value: value.into(),
            placeholder: String::new(),
            hosts: hosts.into_iter().map(Into::into).collect(),
            places: Vec::new(),
            plain_http: false,
        }
    }

    /// The patterns of the hosts that the guest may reach for it. One that names no port means
    /// those of HTTP: on any other a host could give the value to the guest unseen.
    #[must_use]
    pub fn reachable_hosts(&self) -> Vec<String> {
        self.hosts.iter().flat_map(|host| reachable(host)).collect()
    }

    /// A placeholder that nobody can guess: [`SECRET_PLACEHOLDER_PREFIX`] and 128 random
    /// bits.
    ///
    /// # Errors
    /// There are no random numbers.
    pub fn random_placeholder() -> io::Result<String> {
        let mut bytes = [0; 16];
        // So few come in one piece (getrandom(2)).
        getrandom(&mut bytes, GetRandomFlags::empty())?;
        let mut placeholder = SECRET_PLACEHOLDER_PREFIX.to_owned();
        for byte in bytes {
            placeholder.push_str(&format!("{byte:02x}"));
        }
        Ok(placeholder)
    }

    /// The same without its value.
    #[must_use]
    pub fn redacted(&self) -> Self {
        Self {
            value: SecretValue::default(),
            placeholder: self.placeholder.clone(),
            hosts: self.hosts.clone(),
            places: self.places.clone(),
            plain_http: self.plain_http,
        }
    }
}

/// The patterns by which a host of a secret can be reached.
fn reachable(host: &str) -> Vec<String> {
    let has_no_port = host
        .parse()
        .is_ok_and(|pattern: Pattern| !pattern.has_ports());
    if !has_no_port {
        return vec![host.to_owned()];
    }
    let (protocol, bare) = match host.strip_prefix("tcp:") {
        Some(bare) => ("tcp:", bare),
        None => ("", host),
    };
    let with = |port| match bare.contains(':') && !bare.starts_with('[') {
        // An address or network of IPv6.
        true => format!("{protocol}[{bare}]:{port}"),
        false => format!("{protocol}{bare}:{port}"),
    };
    [443, 80].map(with).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_not_shown() {
        let secret = Secret::new("hunter2".to_owned(), ["api.example.com"]);
        let shown = format!("{secret:?} {secret:#?}");
        assert!(!shown.contains("hunter2"), "{shown}");
        assert!(shown.contains("api.example.com"));
        let redacted = serde_json::to_string(&secret.redacted()).unwrap();
        assert_eq!(redacted, r#"{"value":"","hosts":["api.example.com"]}"#);
    }

    #[test]
    fn a_host_without_a_port_is_reached_where_it_is_looked_into() {
        let reached = |host: &str| Secret::new("v".to_owned(), [host]).reachable_hosts();
        for (host, reachable) in [
            ("a.test", ["a.test:443", "a.test:80"]),
            ("*.a.test", ["*.a.test:443", "*.a.test:80"]),
            ("tcp:a.test", ["tcp:a.test:443", "tcp:a.test:80"]),
            ("192.0.2.0/24", ["192.0.2.0/24:443", "192.0.2.0/24:80"]),
            ("2001:db8::1", ["[2001:db8::1]:443", "[2001:db8::1]:80"]),
            ("[2001:db8::1]", ["[2001:db8::1]:443", "[2001:db8::1]:80"]),
            (
                "2001:db8::/32",
                ["[2001:db8::/32]:443", "[2001:db8::/32]:80"],
            ),
        ] {
            assert_eq!(reached(host), reachable);
            for pattern in reachable {
                assert!(pattern.parse::<Pattern>().unwrap().has_ports(), "{pattern}");
            }
        }
        assert_eq!(reached("a.test:8443"), ["a.test:8443"]);
        assert_eq!(reached("a.test:8000-8443"), ["a.test:8000-8443"]);
    }

    #[test]
    fn the_wire_form_has_it() {
        let json = r#"{"value":"v","placeholder":"PLACEHOLDER","hosts":[]}"#;
        let secret: Secret = serde_json::from_str(json).unwrap();
        assert_eq!(secret.value.expose(), "v");
        assert_eq!(serde_json::to_string(&secret).unwrap(), json);
        let null: Secret = serde_json::from_str(r#"{"value":"v","hosts":null}"#).unwrap();
        assert!(null.hosts.is_empty());
    }
}
