//! Secrets: what they are, and where they are kept.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use flashpan_protocol::network::Protocol;
use http::header::HeaderName;
use thiserror::Error;
use zeroize::Zeroizing;

use super::forms::forms;
use super::places::Places;
use super::replace::{Replacement, Table};
use crate::host::{Host, shown};
use crate::policy::Pattern;

/// The longest value, in bytes.
const MAX_VALUE: usize = 64 << 10;
/// How long placeholders are, in bytes.
const PLACEHOLDER: std::ops::RangeInclusive<usize> = 8..=1024;
/// How many values that a secret had before are remembered.
const MAX_FORMER: usize = 16;
/// How many searches through responses are kept ready.
const MAX_READY: usize = 64;

/// A secret: the guest has a placeholder, in whose place the value comes in requests to
/// certain hosts, and nowhere else.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    /// Its name.
    pub name: String,
    /// The value. It is cleared from memory when nobody needs it any more.
    pub value: Zeroizing<String>,
    /// What the guest has.
    pub placeholder: String,
    /// The hosts that get the value.
    pub hosts: Vec<Pattern>,
    /// The headers that it is for; none: all.
    pub headers: Option<Vec<HeaderName>>,
    /// The places that it is for.
    pub places: Places,
    /// Whether it may be sent in the clear as well.
    pub plain_http: bool,
}

impl Secret {
    /// A secret for these hosts, in TLS, in [`Places::default`].
    #[must_use]
    pub fn new(
        name: impl Into<String>,
        value: Zeroizing<String>,
        placeholder: impl Into<String>,
        hosts: Vec<Pattern>,
    ) -> Self {
        Self {
            name: name.into(),
            value,
            placeholder: placeholder.into(),
            hosts,
            headers: None,
            places: Places::default(),
            plain_http: false,
        }
    }

    fn is_for(&self, host: &Host, port: u16) -> bool {
        let is_for = |pattern: &Pattern| pattern.matches(Protocol::Tcp, host, port);
        self.hosts.iter().any(is_for)
    }
}

impl fmt::Debug for Secret {
    /// Everything but the value.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret")
            .field("name", &self.name)
            .field("placeholder", &self.placeholder)
            .field("hosts", &self.hosts)
            .field("headers", &self.headers)
            .field("places", &self.places)
            .field("plain_http", &self.plain_http)
            .finish_non_exhaustive()
    }
}

/// Why secrets make no sense. No value is in it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SecretError {
    /// There are two of that name.
    #[error("the secret {0:?} is there twice")]
    Twice(String),
    /// There is none of that name.
    #[error("there is no secret {0:?}")]
    Unknown(String),
    /// The value is empty.
    #[error("the value of the secret {0:?} is empty")]
    Empty(String),
    /// The value is too long.
    #[error("the value of the secret {0:?} is longer than 64 KiB")]
    Long(String),
    /// The value cannot be in a header.
    #[error("the value of the secret {0:?} has a line break, NUL or other control character")]
    Control(String),
    /// It is for no host.
    #[error("the secret {0:?} is for no host: name those that may have it")]
    NoHosts(String),
    /// It is for all hosts.
    #[error(
        "the secret {name:?} is for {pattern:?}, which is every host: name those that may have it"
    )]
    EveryHost {
        /// Its name.
        name: String,
        /// The pattern.
        pattern: String,
    },
    /// It is for a host by UDP.
    #[error(
        "the secret {name:?} is for {pattern:?}, and no request is sent by UDP: name the host without `udp:`"
    )]
    Udp {
        /// Its name.
        name: String,
        /// The pattern.
        pattern: String,
    },
    /// The placeholder is none.
    #[error(
        "the placeholder of the secret {0:?} is none: 8 to 1024 printable ASCII characters without blanks"
    )]
    Placeholder(String),
    /// What is one of them could be the other.
    #[error("the placeholder of the secret {0:?} contains, or is in, that of {1:?}")]
    Overlap(String, String),
    /// What is taken out would come in.
    #[error("the placeholder of the secret {0:?} contains, or is in, the value of {1:?}")]
    PlaceholderOfValue(String, String),
}

/// A secret that is kept.
#[derive(Clone)]
struct Entry {
    secret: Secret,
    /// Whether nobody may have it any more.
    is_revoked: bool,
    /// The values before this one, which a host may still know and send back.
    former: Vec<Zeroizing<String>>,
}

impl Entry {
    /// Gives it a value, and remembers the last.
    fn replace(&mut self, value: Zeroizing<String>) {
        let former = std::mem::replace(&mut self.secret.value, value);
        if former.is_empty() {
            return;
        }
        self.former.retain(|known| *known != former);
        if self.former.len() == MAX_FORMER {
            self.former.remove(0);
        }
        self.former.push(former);
    }
}

/// Secrets as they are at one time. A request has those of when it began.
pub(super) struct Set {
    entries: Vec<Entry>,
    /// Placeholders as they are.
    pub(super) placeholders: Arc<Table>,
    /// Placeholders in all forms, each kept as it is.
    pub(super) disguises: Arc<Table>,
    /// Searches for values, by whose they are.
    ready: Mutex<Vec<(Vec<bool>, Arc<Table>)>>,
}

impl Set {
    fn new(entries: Vec<Entry>) -> Self {
        let keep = |owner: usize, text: &[u8]| Replacement {
            find: Zeroizing::new(text.to_vec()),
            with: Zeroizing::new(text.to_vec()),
            owner,
        };
        let placeholders = || {
            let entries = entries.iter().enumerate();
            entries.map(|(owner, entry)| (owner, entry.secret.placeholder.as_bytes()))
        };
        let plain = placeholders().map(|(owner, text)| keep(owner, text));
        let disguises = placeholders().flat_map(|(owner, text)| {
            let forms = forms(text).into_iter();
            forms.map(move |form| keep(owner, &form))
        });
        Self {
            placeholders: Table::new(plain.collect()),
            disguises: Table::new(disguises.collect()),
            ready: Mutex::new(Vec::new()),
            entries,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) fn get(&self, owner: usize) -> Option<&Secret> {
        self.entries.get(owner).map(|entry| &entry.secret)
    }

    /// All of them, in the order of their numbers.
    pub(super) fn all(&self) -> impl Iterator<Item = &Secret> {
        self.entries.iter().map(|entry| &entry.secret)
    }

    /// Which of them are for this host.
    pub(super) fn bound(&self, host: &Host, port: u16) -> Vec<bool> {
        let entries = self.entries.iter();
        entries
            .map(|entry| !entry.is_revoked && entry.secret.is_for(host, port))
            .collect()
    }

    /// Whose values are taken out of what this host answers: those that are for it, and
    /// those that were.
    pub(super) fn scrubbed(&self, host: &Host, port: u16) -> Vec<bool> {
        let entries = self.entries.iter();
        entries
            .map(|entry| entry.secret.is_for(host, port))
            .collect()
    }

    /// What takes the values of these secrets out of a response.
    pub(super) fn scrubber(&self, bound: &[bool]) -> Arc<Table> {
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, table)) = ready.iter().find(|(of, _)| of == bound) {
            return Arc::clone(table);
        }
        let mut all = Vec::new();
        let entries = self.entries.iter().zip(bound).enumerate();
        for (owner, (entry, _)) in entries.filter(|(_, (_, is_bound))| **is_bound) {
            let values = std::iter::once(&entry.secret.value).chain(&entry.former);
            let forms = values.flat_map(|value| forms_of(value));
            all.extend(forms.map(|find| Replacement {
                find,
                with: Zeroizing::new(entry.secret.placeholder.clone().into_bytes()),
                owner,
            }));
        }
        let table = Table::new(all);
        if ready.len() >= MAX_READY {
            ready.clear();
        }
        ready.push((bound.to_vec(), Arc::clone(&table)));
        table
    }

    /// The names of these secrets.
    pub(super) fn names(&self, owners: impl IntoIterator<Item = usize>) -> Vec<String> {
        let secrets = owners.into_iter().filter_map(|owner| self.get(owner));
        secrets.map(|secret| secret.name.clone()).collect()
    }
}

fn forms_of(value: &str) -> Vec<super::forms::Bytes> {
    forms(value.as_bytes())
}

impl fmt::Debug for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.all()).finish()
    }
}

/// The secrets of a guest. They can be changed at any time; what is changed holds for
/// requests that begin after it.
#[derive(Debug)]
pub struct Secrets(RwLock<Arc<Set>>);

impl Secrets {
    /// Keeps secrets.
    ///
    /// # Errors
    /// One makes no sense, or two of them make none together.
    pub fn new(secrets: Vec<Secret>) -> Result<Self, SecretError> {
        check(&secrets.iter().collect::<Vec<_>>())?;
        let entries = secrets.into_iter().map(|secret| Entry {
            secret,
            is_revoked: false,
            former: Vec::new(),
        });
        Ok(Self(RwLock::new(Arc::new(Set::new(entries.collect())))))
    }

    /// Gives a secret another value. The last ones before it, 16 of them, are still taken out
    /// of responses.
    ///
    /// # Errors
    /// There is no such secret, or the value makes no sense. Then nothing has changed.
    pub fn set(&self, name: &str, value: Zeroizing<String>) -> Result<(), SecretError> {
        self.change(name, |entry| {
            if entry.secret.value != value {
                entry.replace(value);
            }
            entry.is_revoked = false;
        })
    }

    /// [`Self::set`] by nobody in particular: what was revoked stays so, and the value is
    /// not kept. Whether the secret has another value now.
    ///
    /// # Errors
    /// As of [`Self::set`].
    pub fn refresh(&self, name: &str, value: Zeroizing<String>) -> Result<bool, SecretError> {
        let mut is_another = false;
        self.change(name, |entry| {
            is_another = !entry.is_revoked && entry.secret.value != value;
            if is_another {
                entry.replace(value);
            }
        })?;
        Ok(is_another)
    }

    /// Whether a secret has this value now.
    #[must_use]
    pub fn has(&self, name: &str, value: &str) -> bool {
        let set = self.now();
        let has = |entry: &Entry| {
            entry.secret.name == name && !entry.is_revoked && entry.secret.value.as_str() == value
        };
        set.entries.iter().any(has)
    }

    /// Takes a secret's value away. Its placeholder is nobody's to have then: a request with
    /// it is refused. The value is still taken out of responses.
    ///
    /// # Errors
    /// There is no such secret.
    pub fn revoke(&self, name: &str) -> Result<(), SecretError> {
        self.change(name, |entry| {
            // It may be valid still, and be somewhere where a request put it.
            entry.replace(Zeroizing::default());
            entry.is_revoked = true;
        })
    }

    fn change(&self, name: &str, change: impl FnOnce(&mut Entry)) -> Result<(), SecretError> {
        let mut set = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let mut entries = set.entries.clone();
        let entry = entries.iter_mut().find(|entry| entry.secret.name == name);
        change(entry.ok_or_else(|| SecretError::Unknown(shown(name)))?);
        let kept = entries.iter().filter(|entry| !entry.is_revoked);
        check(&kept.map(|entry| &entry.secret).collect::<Vec<_>>())?;
        *set = Arc::new(Set::new(entries));
        Ok(())
    }

    /// The secrets as they are now.
    pub(super) fn now(&self) -> Arc<Set> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Whether these secrets make sense, each and together.
fn check(secrets: &[&Secret]) -> Result<(), SecretError> {
    for secret in secrets {
        check_one(secret)?;
    }
    for (number, secret) in secrets.iter().enumerate() {
        for (other_number, other) in secrets.iter().enumerate() {
            check_two(secret, other, number == other_number)?;
        }
    }
    Ok(())
}

fn check_one(secret: &Secret) -> Result<(), SecretError> {
    let name = || shown(&secret.name);
    let value = secret.value.as_str();
    if value.is_empty() {
        return Err(SecretError::Empty(name()));
    }
    if value.len() > MAX_VALUE {
        return Err(SecretError::Long(name()));
    }
    let is_control = |character: char| character.is_ascii_control() && character != '\t';
    if value.contains(is_control) {
        return Err(SecretError::Control(name()));
    }
    if secret.hosts.is_empty() {
        return Err(SecretError::NoHosts(name()));
    }
    if let Some(pattern) = secret.hosts.iter().find(|of| of.is_every_host()) {
        return Err(SecretError::EveryHost {
            name: name(),
            pattern: shown(pattern.as_str()),
        });
    }
    let is_udp = |of: &&Pattern| of.protocol() == Protocol::Udp;
    if let Some(pattern) = secret.hosts.iter().find(is_udp) {
        return Err(SecretError::Udp {
            name: name(),
            pattern: shown(pattern.as_str()),
        });
    }
    let placeholder = secret.placeholder.as_str();
    let is_plain = placeholder.bytes().all(|byte| byte.is_ascii_graphic());
    if !is_plain || !PLACEHOLDER.contains(&placeholder.len()) {
        return Err(SecretError::Placeholder(name()));
    }
    Ok(())
}

fn check_two(secret: &Secret, other: &Secret, is_same: bool) -> Result<(), SecretError> {
    let names = || (shown(&secret.name), shown(&other.name));
    let placeholder = secret.placeholder.as_str();
    let overlaps = |text: &str| placeholder.contains(text) || text.contains(placeholder);
    if overlaps(&other.value) {
        let (name, other) = names();
        return Err(SecretError::PlaceholderOfValue(name, other));
    }
    if is_same {
        return Ok(());
    }
    if secret.name == other.name {
        return Err(SecretError::Twice(names().0));
    }
    if overlaps(&other.placeholder) {
        let (name, other) = names();
        return Err(SecretError::Overlap(name, other));
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A secret of this name for these hosts.
    pub(in super::super) fn secret(name: &str, value: &str, hosts: &[&str]) -> Secret {
        let hosts = hosts.iter().map(|host| host.parse().unwrap()).collect();
        let value = Zeroizing::new(value.to_owned());
        Secret::new(name, value, format!("PLACEHOLDER_{name}_"), hosts)
    }

    #[test]
    fn what_makes_no_sense_is_refused_at_set_up() {
        let with = |change: &dyn Fn(&mut Secret)| {
            let mut secret = secret("KEY", "hunter22", &["a.test"]);
            change(&mut secret);
            let other = self::secret("OTHER", "swordfish", &["a.test"]);
            let refused = Secrets::new(vec![other, secret]);
            refused.err().map(|error| error.to_string())
        };
        assert_eq!(with(&|_| {}), None);
        let hosts = |secret: &mut Secret, host: &str| secret.hosts = vec![host.parse().unwrap()];
        let value = |secret: &mut Secret, text: &str| secret.value = text.to_owned().into();
        type Change<'a> = &'a dyn Fn(&mut Secret);
        let changes: [(&str, Change<'_>); 20] = [
            ("is empty", &|s| value(s, "")),
            ("64 KiB", &|s| value(s, &"x".repeat(65_537))),
            ("control", &|s| value(s, "hunter\r\nX: 22")),
            ("control", &|s| value(s, "hunter\n22")),
            ("control", &|s| value(s, "hunter\x0022")),
            ("for no host", &|s| s.hosts.clear()),
            ("every host", &|s| hosts(s, "*")),
            ("every host", &|s| hosts(s, "*:443")),
            ("every host", &|s| hosts(s, "*.*")),
            ("every host", &|s| hosts(s, "tcp:**:443")),
            ("every host", &|s| hosts(s, "0.0.0.0/0")),
            ("every host", &|s| hosts(s, "[::/0]:443")),
            ("by UDP", &|s| hosts(s, "udp:a.test:443")),
            ("8 to 1024", &|s| s.placeholder = "short".to_owned()),
            ("8 to 1024", &|s| s.placeholder = "with blank".to_owned()),
            ("8 to 1024", &|s| s.placeholder = "PLACEHÖLDER".to_owned()),
            ("is in, that of", &|s| {
                s.placeholder = "x_PLACEHOLDER_OTHER_x".to_owned();
            }),
            ("value of \"OTHER\"", &|s| {
                s.placeholder = "my_swordfish".to_owned();
            }),
            ("value of \"KEY\"", &|s| {
                value(s, "see PLACEHOLDER_OTHER_ there");
            }),
            ("there twice", &|s| s.name = "OTHER".to_owned()),
        ];
        for (text, change) in changes {
            let error = with(change).expect(text);
            assert!(error.contains(text), "{error:?} {text:?}");
            assert!(!error.contains("hunter"), "an error shows a value");
        }
    }

    #[test]
    fn no_value_is_shown() {
        let secrets = Secrets::new(vec![secret("KEY", "hunter22", &["a.test"])]).unwrap();
        let set = secrets.now();
        let table = set.scrubber(&[true]);
        for shown in [
            format!("{secrets:#?}"),
            format!("{table:?}"),
            format!("{:?}", set.get(0)),
        ] {
            assert!(!shown.contains("hunter"), "a value is shown");
        }
        assert!(format!("{secrets:?}").contains("a.test"));
    }

    #[test]
    fn what_is_not_there_cannot_be_changed() {
        let secrets = Secrets::new(vec![secret("KEY", "hunter22", &["a.test"])]).unwrap();
        let value = |text: &str| Zeroizing::new(text.to_owned());
        let unknown = SecretError::Unknown("NONE".to_owned());
        assert_eq!(secrets.set("NONE", value("x")), Err(unknown.clone()));
        assert_eq!(secrets.revoke("NONE"), Err(unknown));
        let empty = SecretError::Empty("KEY".to_owned());
        assert_eq!(secrets.set("KEY", value("")), Err(empty));
        assert!(*secrets.now().get(0).unwrap().value == "hunter22");
        // One that was taken away can be given again.
        secrets.revoke("KEY").unwrap();
        assert!(secrets.now().get(0).unwrap().value.is_empty());
        secrets.set("KEY", value("swordfish")).unwrap();
        assert!(*secrets.now().get(0).unwrap().value == "swordfish");
    }
}
