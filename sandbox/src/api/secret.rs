//! Secrets that go into requests on the host and never into the guest.

use std::fmt;
use std::io;

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
    /// added to the hosts that the guest may reach.
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
    fn the_wire_form_has_it() {
        let json = r#"{"value":"v","placeholder":"PLACEHOLDER","hosts":[]}"#;
        let secret: Secret = serde_json::from_str(json).unwrap();
        assert_eq!(secret.value.expose(), "v");
        assert_eq!(serde_json::to_string(&secret).unwrap(), json);
        let null: Secret = serde_json::from_str(r#"{"value":"v","hosts":null}"#).unwrap();
        assert!(null.hosts.is_empty());
    }
}
