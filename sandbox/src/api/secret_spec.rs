//! Secrets as they are given on a command line.

use std::ffi::OsString;
use std::str::FromStr;

use thiserror::Error;

use super::code::ErrorCode;
use super::secret::{Secret, SecretValue};

/// Longest name that an error shows.
const NAME_SHOWN: usize = 64;

/// Why a text is no secret. No message contains any part of a value.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SecretSpecError {
    /// There is no `@`.
    #[error("missing @hosts (format: NAME=VALUE@host1,host2 or NAME@host1,host2)")]
    MissingHosts,
    /// There is nothing after the last `@`.
    #[error("no hosts specified after @")]
    NoHosts,
    /// There is nothing before the `=`.
    #[error("secret name cannot be empty")]
    EmptyName,
    /// The variable that should hold the value is not set, or empty.
    #[error(
        "environment variable ${0} is not set (hint: use 'sudo -E' to preserve env vars, or pass inline: {0}=VALUE@HOSTS)"
    )]
    NotSet(String),
    /// The same for something that does not look like the name of a variable. It
    /// may be the value itself, given without a name, so it is not shown.
    #[error(
        "environment variable before the @ is not set (not shown: it does not look like the name of a variable; format: NAME=VALUE@HOSTS or NAME@HOSTS)"
    )]
    NotAVariable,
    /// The variable that should hold the value is not UTF-8.
    #[error("environment variable ${0} does not hold UTF-8")]
    NotUnicode(String),
}

impl SecretSpecError {
    /// The stable name of the error.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::MissingHosts => ErrorCode::SecretHostsMissing,
            Self::NoHosts => ErrorCode::SecretHostsEmpty,
            Self::EmptyName => ErrorCode::SecretNameEmpty,
            Self::NotSet(_) | Self::NotAVariable | Self::NotUnicode(_) => ErrorCode::SecretNotSet,
        }
    }
}

/// A secret and the variable that holds its placeholder in the guest.
///
/// Read from `NAME=VALUE@host1,host2`, or from `NAME@host1,host2` with the value
/// in the variable `NAME` of this process. The value may contain `=` and `@`: the
/// first `=` and the last `@` count. The name is taken as it is; hosts are
/// trimmed, and empty ones are kept for [`crate::api::Config::validate`] to
/// report.
///
/// ```
/// use flashpan::api::NamedSecret;
///
/// let secret: NamedSecret = "KEY=user@pass@host.com".parse()?;
/// assert_eq!(secret.name, "KEY");
/// assert_eq!(secret.secret.value.expose(), "user@pass");
/// assert_eq!(secret.secret.hosts, ["host.com"]);
/// # Ok::<(), flashpan::api::SecretSpecError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedSecret {
    /// Name of the variable in the guest.
    pub name: String,
    /// The secret.
    pub secret: Secret,
}

impl NamedSecret {
    /// Reads a secret; `lookup` finds variables of the host.
    ///
    /// # Errors
    /// [`SecretSpecError`], without any part of the value.
    pub fn parse_with(
        spec: &str,
        lookup: impl FnOnce(&str) -> Option<OsString>,
    ) -> Result<Self, SecretSpecError> {
        let (left, hosts) = spec.rsplit_once('@').ok_or(SecretSpecError::MissingHosts)?;
        if hosts.is_empty() {
            return Err(SecretSpecError::NoHosts);
        }
        let (name, value) = match left.split_once('=') {
            Some(("", _)) => return Err(SecretSpecError::EmptyName),
            Some((name, value)) => (name, SecretValue::new(value.to_owned())),
            None => (left, from_variable(left, lookup)?),
        };
        Ok(Self {
            name: name.to_owned(),
            secret: Secret::new(value, hosts.split(',').map(str::trim)),
        })
    }
}

impl FromStr for NamedSecret {
    type Err = SecretSpecError;

    fn from_str(spec: &str) -> Result<Self, SecretSpecError> {
        Self::parse_with(spec, super::env::of_this_process)
    }
}

fn from_variable(
    name: &str,
    lookup: impl FnOnce(&str) -> Option<OsString>,
) -> Result<SecretValue, SecretSpecError> {
    let shown = |error: fn(String) -> SecretSpecError| match looks_like_variable(name) {
        true => error(name.to_owned()),
        false => SecretSpecError::NotAVariable,
    };
    let value = lookup(name)
        .filter(|value| !value.is_empty())
        .ok_or_else(|| shown(SecretSpecError::NotSet))?;
    match value.into_string() {
        Ok(value) => Ok(SecretValue::new(value)),
        Err(_) => Err(shown(SecretSpecError::NotUnicode)),
    }
}

/// Whether a text is written as variables by convention are: tokens hardly ever
/// are.
fn looks_like_variable(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    (1..=NAME_SHOWN).contains(&name.len())
        && name.chars().all(allowed)
        && !name.starts_with(|c: char| c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(spec: &str) -> Result<NamedSecret, SecretSpecError> {
        NamedSecret::parse_with(spec, |name| match name {
            "SET" => Some("from-env".into()),
            "EMPTY" => Some("".into()),
            _ => None,
        })
    }

    #[test]
    fn accepted() {
        for (spec, name, value, hosts) in [
            ("K=v@a.com", "K", "v", vec!["a.com"]),
            ("K=v@a.com,b.com", "K", "v", vec!["a.com", "b.com"]),
            ("K=v@ a.com , b.com ", "K", "v", vec!["a.com", "b.com"]),
            ("K=v@a.com,,b.com", "K", "v", vec!["a.com", "", "b.com"]),
            ("K=v=w@a.com", "K", "v=w", vec!["a.com"]),
            (
                "KEY=user@pass@host.com",
                "KEY",
                "user@pass",
                vec!["host.com"],
            ),
            (" K =v@a.com", " K ", "v", vec!["a.com"]),
            ("K=@a.com", "K", "", vec!["a.com"]),
            ("SET@a.com", "SET", "from-env", vec!["a.com"]),
        ] {
            let secret = parse(spec).unwrap();
            assert_eq!(secret.name, name, "{spec}");
            assert_eq!(secret.secret.value.expose(), value, "{spec}");
            assert_eq!(secret.secret.hosts, hosts, "{spec}");
            assert_eq!(secret.secret.placeholder, "");
        }
    }

    #[test]
    fn rejected() {
        let missing = "missing @hosts (format: NAME=VALUE@host1,host2 or NAME@host1,host2)";
        let not_set = |name: &str| {
            format!(
                "environment variable ${name} is not set (hint: use 'sudo -E' to preserve \
                 env vars, or pass inline: {name}=VALUE@HOSTS)"
            )
        };
        for (spec, error, code) in [
            ("", missing.to_owned(), "secret_hosts_missing"),
            ("K=v", missing.to_owned(), "secret_hosts_missing"),
            (
                "K=v@",
                "no hosts specified after @".to_owned(),
                "secret_hosts_empty",
            ),
            (
                "=v@a.com",
                "secret name cannot be empty".to_owned(),
                "secret_name_empty",
            ),
            ("UNSET@a.com", not_set("UNSET"), "secret_not_set"),
            ("EMPTY@a.com", not_set("EMPTY"), "secret_not_set"),
        ] {
            let found = parse(spec).unwrap_err();
            assert_eq!(found.to_string(), error, "{spec}");
            assert_eq!(found.code().as_str(), code, "{spec}");
        }
    }

    #[test]
    fn a_value_given_without_a_name_is_not_shown() {
        for value in ["sk-0123456789", "ghp_abcdEFGH", "hunter two", ""] {
            let error = parse(&format!("{value}@a.com")).unwrap_err();
            assert_eq!(error, SecretSpecError::NotAVariable);
        }
    }

    #[test]
    fn a_variable_of_this_process_is_found() {
        let secret: NamedSecret = "PATH@a.com".parse().unwrap();
        assert_eq!(secret.secret.value.expose(), std::env::var("PATH").unwrap());
    }

    proptest! {
        #[test]
        fn no_text_is_a_problem(spec in any::<String>()) {
            let _ = parse(&spec);
        }

        #[test]
        fn no_error_contains_the_value(name in "[A-Z=]{0,3}", value in "[a-z]{12}", rest in "@?") {
            if let Err(error) = parse(&format!("{name}={value}{rest}")) {
                let shown = format!("{error} {error:?}");
                prop_assert!(!shown.contains(&value));
            }
        }

        #[test]
        fn what_was_put_together_comes_apart(
            name in "[^=@]{1,8}",
            value in "[^\0]{0,16}",
            hosts in proptest::collection::vec("[a-z0-9.*-]{1,8}", 1..4),
        ) {
            let secret = parse(&format!("{name}={value}@{}", hosts.join(","))).unwrap();
            prop_assert_eq!(secret.name, name);
            prop_assert_eq!(secret.secret.value.expose(), value);
            prop_assert_eq!(secret.secret.hosts, hosts);
        }
    }
}
