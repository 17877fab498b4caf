//! What is wrong with a configuration, and where.

use std::fmt::{self, Write as _};

use serde::Serialize;

use super::code::ErrorCode;

/// Most errors and most warnings that are listed; further ones are counted.
pub const MAX_LISTED: usize = 64;

/// Most characters of a client's text in a message.
const SHOWN: usize = 128;

/// A text of the user between quotes: one line, without control characters, not
/// long.
pub(super) fn quoted(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{:?}…", text.get(..end).unwrap_or_default()),
        None => format!("{text:?}"),
    }
}

/// The path of a field: `network.interception.rules[2].hosts`,
/// `vfs.mounts["/workspace/src"].type`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct FieldPath(String);

impl FieldPath {
    /// A field of the configuration itself.
    pub(super) fn top(name: &str) -> Self {
        Self::default().field(name)
    }

    /// A field or entry below this one.
    pub(super) fn field(&self, name: &str) -> Self {
        let mut path = self.0.clone();
        if is_plain(name) {
            if !path.is_empty() {
                path.push('.');
            }
            path.push_str(name);
        } else {
            // Writing to a string does not fail.
            let _ = write!(path, "[{}]", quoted(name));
        }
        Self(path)
    }

    /// An entry of this list.
    pub(super) fn index(&self, index: usize) -> Self {
        Self(format!("{}[{index}]", self.0))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether a name can stand after a dot.
fn is_plain(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    !name.is_empty() && name.len() <= SHOWN && name.chars().all(allowed)
}

/// What kind of mistake a field has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ProblemKind {
    /// It must be given and is not.
    Required,
    /// It cannot be given together with another field.
    Conflict,
    /// It is not within the range that is allowed.
    OutOfRange,
    /// It is not written as such a field is.
    Malformed,
    /// It asks for something that there is not.
    Unsupported,
    /// It says the same as another entry.
    Duplicate,
}

/// One mistake in a configuration.
///
/// As JSON: `{"field": …, "kind": …, "message": …}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct FieldError {
    /// Path of the field, e.g. `network.interception.rules[2].hosts`.
    pub field: String,
    /// What kind of mistake it is.
    pub kind: ProblemKind,
    /// What is wrong, the field included; never a secret's value.
    pub message: String,
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Everything that is wrong with a configuration: at least one mistake.
///
/// Its message is one line, `invalid configuration: ` and the messages of all
/// listed errors with `; ` between them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ValidationErrors {
    errors: Vec<FieldError>,
    more: usize,
}

impl ValidationErrors {
    /// The mistakes, at most [`MAX_LISTED`].
    #[must_use]
    pub fn errors(&self) -> &[FieldError] {
        &self.errors
    }

    /// How many more there are.
    #[must_use]
    pub fn more(&self) -> usize {
        self.more
    }

    /// Always [`ErrorCode::ConfigInvalid`].
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        ErrorCode::ConfigInvalid
    }
}

impl fmt::Display for ValidationErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("invalid configuration")?;
        for (index, error) in self.errors.iter().enumerate() {
            write!(f, "{} {error}", if index == 0 { ":" } else { ";" })?;
        }
        match self.more {
            0 => Ok(()),
            more => write!(f, "; and {more} more"),
        }
    }
}

impl std::error::Error for ValidationErrors {}

/// Something in a configuration that is accepted and has no effect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Warning {
    /// Path of the field.
    pub field: String,
    /// What about it, the field not included.
    pub message: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

/// Collects mistakes.
#[derive(Debug, Default)]
pub(super) struct Problems {
    errors: Vec<FieldError>,
    more: usize,
}

impl Problems {
    /// `FIELD: why`.
    pub(super) fn add(&mut self, at: &FieldPath, kind: ProblemKind, why: impl fmt::Display) {
        self.whole(at, kind, format_args!("{at}: {why}"));
    }

    /// A message that names the field in its own way.
    pub(super) fn whole(&mut self, at: &FieldPath, kind: ProblemKind, message: impl fmt::Display) {
        if self.errors.len() == MAX_LISTED {
            self.more = self.more.saturating_add(1);
            return;
        }
        self.errors.push(FieldError {
            field: at.as_str().to_owned(),
            kind,
            message: message.to_string(),
        });
    }

    pub(super) fn into_result(self) -> Result<(), ValidationErrors> {
        if self.errors.is_empty() {
            return Ok(());
        }
        Err(ValidationErrors {
            errors: self.errors,
            more: self.more,
        })
    }
}

/// Collects warnings; those after the first [`MAX_LISTED`] are dropped.
#[derive(Debug, Default)]
pub(super) struct Warnings(pub(super) Vec<Warning>);

impl Warnings {
    pub(super) fn add(&mut self, at: &FieldPath, message: impl fmt::Display) {
        if self.0.len() < MAX_LISTED {
            self.0.push(Warning {
                field: at.as_str().to_owned(),
                message: message.to_string(),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_readable_and_harmless() {
        let mounts = FieldPath::top("vfs").field("mounts");
        assert_eq!(
            mounts.field("/a b").field("type").as_str(),
            r#"vfs.mounts["/a b"].type"#
        );
        let rules = FieldPath::top("rules");
        assert_eq!(rules.index(2).field("hosts").as_str(), "rules[2].hosts");
        assert_eq!(rules.field("\x1b[0m").as_str(), r#"rules["\u{1b}[0m"]"#);
        assert!(rules.field(&"x".repeat(10_000)).as_str().len() < 200);
    }

    #[test]
    fn many_mistakes_are_counted() {
        let mut problems = Problems::default();
        let at = FieldPath::top("env");
        for _ in 0..MAX_LISTED + 3 {
            problems.add(&at, ProblemKind::Malformed, "no");
        }
        let errors = problems.into_result().unwrap_err();
        assert_eq!(errors.errors().len(), MAX_LISTED);
        assert!(errors.to_string().ends_with("; env: no; and 3 more"));
    }
}
