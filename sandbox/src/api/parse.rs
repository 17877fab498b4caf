//! Configurations from JSON and TOML.
//!
//! Fields that nobody knows are passed over, so that newer clients work with an
//! older host, and reported, so that a mistyped name is found. `serde_ignored`
//! tells which they are: it watches what the readers of all types ask for, where
//! a comparison of documents would need a second description of every type.
//! `serde_path_to_error` tells in the same way where an error is.

use std::fmt;

use serde::{Deserialize, Deserializer};
use thiserror::Error;

use super::code::ErrorCode;
use super::config::Config;
use super::lenient::Object;
use super::problem::{FieldPath, MAX_LISTED, Warning};

/// Longest configuration that is read, in bytes.
pub const MAX_CONFIG_BYTES: usize = 2 * 1024 * 1024;

/// Most characters of an error of the JSON or TOML reader that are shown.
const MAX_REASON: usize = 256;

/// A configuration that was read. It is not validated.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Parsed {
    /// The configuration.
    pub config: Config,
    /// The fields that were passed over, at most [`crate::api::MAX_LISTED`].
    pub warnings: Vec<Warning>,
}

/// Where in a text something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The line, counted from 1.
    pub line: usize,
    /// The column, counted from 1: in bytes in JSON, in characters in TOML.
    pub column: usize,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}", self.line, self.column)
    }
}

/// Why a configuration cannot be read. No message contains a value of the
/// configuration.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ParseError {
    /// It is longer than [`MAX_CONFIG_BYTES`].
    #[error("configuration has {0} bytes; at most {MAX_CONFIG_BYTES} are read")]
    TooLong(usize),
    /// It is not JSON or TOML.
    #[error("configuration is not {format}: {at}: {reason}")]
    Syntax {
        /// `JSON` or `TOML`.
        format: &'static str,
        /// Where.
        at: Position,
        /// What is wrong there.
        reason: String,
    },
    /// A field does not hold what it should.
    #[error("configuration: {at}: {}{reason}", prefix(field))]
    Field {
        /// Path of the field; empty for the whole.
        field: String,
        /// Where.
        at: Position,
        /// What is wrong there.
        reason: String,
    },
    /// There is no such field ([`Config::from_toml_strict`]).
    #[error("configuration: {at}: {field}: unknown field")]
    Unknown {
        /// Path of the field.
        field: String,
        /// Where.
        at: Position,
    },
}

impl ParseError {
    /// The stable name of the error.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::TooLong(_) => ErrorCode::ConfigTooLong,
            Self::Syntax { .. } => ErrorCode::ConfigSyntax,
            Self::Field { .. } | Self::Unknown { .. } => ErrorCode::ConfigField,
        }
    }
}

fn prefix(field: &str) -> String {
    if field.is_empty() {
        return String::new();
    }
    format!("{field}: ")
}

impl Config {
    /// Reads a configuration from JSON (RFC 8259). `null` is the same as a field
    /// that is absent, and so is 0 for a number.
    ///
    /// # Errors
    /// [`ParseError`]; nothing is validated.
    pub fn from_json(json: &[u8]) -> Result<Parsed, ParseError> {
        check_length(json.len())?;
        let mut reader = serde_json::Deserializer::from_slice(json);
        let (config, unknown) =
            read(&mut reader).map_err(|(field, error)| json_error(field.as_str(), &error))?;
        reader.end().map_err(|error| json_error("", &error))?;
        let warnings = unknown.into_iter().map(|path| path.warning());
        Ok(Parsed {
            config,
            warnings: warnings.collect(),
        })
    }

    /// Reads a configuration from TOML (1.1), with the same names as in JSON. 0 is
    /// the same as a number that is absent.
    ///
    /// ```
    /// let text = "image = 'alpine'\n[resources]\nmemory_mb = 1024\n";
    /// let config = flashpan::api::Config::from_toml(text)?.config;
    /// assert_eq!(config.resources.unwrap().memory_mb, Some(1024));
    /// # Ok::<(), flashpan::api::ParseError>(())
    /// ```
    ///
    /// # Errors
    /// [`ParseError`]; nothing is validated.
    pub fn from_toml(text: &str) -> Result<Parsed, ParseError> {
        let (config, unknown) = toml(text)?;
        let warnings = unknown.into_iter().map(|path| path.warning());
        Ok(Parsed {
            config,
            warnings: warnings.collect(),
        })
    }

    /// The same for a file that a person wrote: a field that nobody knows is a
    /// mistyped one, and an error.
    ///
    /// ```
    /// let text = "image = 'alpine'\n[resources]\nmemroy_mb = 1024\n";
    /// let error = flashpan::api::Config::from_toml_strict(text).unwrap_err();
    /// assert_eq!(
    ///     error.to_string(),
    ///     "configuration: line 3, column 1: resources.memroy_mb: unknown field"
    /// );
    /// ```
    ///
    /// # Errors
    /// [`ParseError`]; nothing is validated.
    pub fn from_toml_strict(text: &str) -> Result<Self, ParseError> {
        let (config, unknown) = toml(text)?;
        let Some(path) = unknown.first() else {
            return Ok(config);
        };
        Err(ParseError::Unknown {
            field: path.to_string(),
            at: position(text, path.offset_in(text)),
        })
    }
}

fn toml(text: &str) -> Result<(Config, Vec<UnknownPath>), ParseError> {
    check_length(text.len())?;
    let reader = toml::Deserializer::parse(text).map_err(|error| ParseError::Syntax {
        format: "TOML",
        at: position_of(text, &error),
        reason: one_line(error.message()),
    })?;
    read(reader).map_err(|(field, error)| ParseError::Field {
        field: field.as_str().to_owned(),
        at: position_of(text, &error),
        reason: without_value(error.message()),
    })
}

fn check_length(bytes: usize) -> Result<(), ParseError> {
    if bytes > MAX_CONFIG_BYTES {
        return Err(ParseError::TooLong(bytes));
    }
    Ok(())
}

/// Reads a configuration; the fields that were passed over, at most
/// [`MAX_LISTED`].
fn read<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<(Config, Vec<UnknownPath>), (FieldPath, D::Error)> {
    let mut all = Vec::new();
    let mut track = serde_path_to_error::Track::new();
    let tracked = serde_path_to_error::Deserializer::new(from, &mut track);
    let mut unknown = |path: serde_ignored::Path<'_>| {
        if all.len() < MAX_LISTED {
            all.push(UnknownPath::of(&path));
        }
    };
    let config =
        Object::<Config>::deserialize(serde_ignored::Deserializer::new(tracked, &mut unknown));
    match config {
        Ok(Object(config)) => Ok((config, all)),
        Err(error) => Err((failed(&track.path()), error)),
    }
}

/// The path of a field that was passed over.
#[derive(Debug, Default)]
struct UnknownPath(Vec<Step>);

#[derive(Debug)]
enum Step {
    Key(String),
    Index(usize),
}

impl UnknownPath {
    fn of(path: &serde_ignored::Path<'_>) -> Self {
        use serde_ignored::Path;
        let (parent, step) = match path {
            Path::Root => return Self::default(),
            Path::Seq { parent, index } => (parent, Some(Step::Index(*index))),
            Path::Map { parent, key } => (parent, Some(Step::Key(key.clone()))),
            Path::Some { parent }
            | Path::NewtypeStruct { parent }
            | Path::NewtypeVariant { parent } => (parent, None),
        };
        let mut path = Self::of(parent);
        path.0.extend(step);
        path
    }

    fn field(&self) -> FieldPath {
        let root = FieldPath::default();
        self.0.iter().fold(root, |path, step| match step {
            Step::Key(key) => path.field(key),
            Step::Index(index) => path.index(*index),
        })
    }

    fn warning(&self) -> Warning {
        Warning {
            field: self.to_string(),
            message: "unknown field; it has no effect".to_owned(),
        }
    }

    /// Where its key is in a text that was read.
    fn offset_in(&self, text: &str) -> usize {
        use toml::de::{DeTable, DeValue};
        fn within(table: &DeTable<'_>, path: &[Step]) -> Option<usize> {
            let (Step::Key(wanted), rest) = path.split_first()? else {
                return None;
            };
            let named = |key: &str| key == wanted;
            let (key, value) = table.iter().find(|(key, _)| named(key.get_ref()))?;
            let mut value = value.get_ref();
            let mut rest = rest;
            while let (DeValue::Array(list), Some((Step::Index(index), after))) =
                (value, rest.split_first())
            {
                value = list.get(*index)?.get_ref();
                rest = after;
            }
            let below = match value {
                DeValue::Table(table) => within(table, rest),
                _ => None,
            };
            Some(below.unwrap_or(key.span().start))
        }
        let table = DeTable::parse(text).ok();
        let offset = table.and_then(|table| within(table.get_ref(), &self.0));
        offset.unwrap_or(0)
    }
}

impl fmt::Display for UnknownPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.field().fmt(f)
    }
}

/// The path of a field that could not be read.
fn failed(path: &serde_path_to_error::Path) -> FieldPath {
    use serde_path_to_error::Segment;
    let root = FieldPath::default();
    path.iter().fold(root, |path, segment| match segment {
        Segment::Seq { index } => path.index(*index),
        Segment::Map { key } => path.field(key),
        Segment::Enum { variant } => path.field(variant),
        Segment::Unknown => path,
    })
}

fn json_error(field: &str, error: &serde_json::Error) -> ParseError {
    let at = Position {
        line: error.line().max(1),
        column: error.column().max(1),
    };
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    let reason = text.strip_suffix(&place).unwrap_or(&text);
    match error.classify() {
        serde_json::error::Category::Data => ParseError::Field {
            field: field.to_owned(),
            at,
            reason: without_value(reason),
        },
        _ => ParseError::Syntax {
            format: "JSON",
            at,
            reason: one_line(reason),
        },
    }
}

fn position_of(text: &str, error: &toml::de::Error) -> Position {
    position(text, error.span().map_or(0, |span| span.start))
}

fn position(text: &str, offset: usize) -> Position {
    let mut offset = offset.min(text.len());
    while !text.is_char_boundary(offset) {
        offset -= 1;
    }
    let before = text.get(..offset).unwrap_or_default();
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    let in_line = before.get(line_start..).unwrap_or_default();
    Position {
        line: before.matches('\n').count() + 1,
        column: in_line.chars().count() + 1,
    }
}

/// The message of a reader without the value that was found, which may be a
/// secret in the wrong place.
fn without_value(reason: &str) -> String {
    let Some(kind) = ["invalid type: ", "invalid value: "]
        .into_iter()
        .find(|kind| reason.starts_with(kind))
    else {
        return one_line(reason);
    };
    // What was expected is written by the types of this module and comes last.
    let (found, expected) = reason.rsplit_once(", expected ").unwrap_or((reason, ""));
    let found = found.strip_prefix(kind).unwrap_or_default();
    let integer = found.strip_prefix("integer `");
    let expected = match (expected, integer) {
        ("u8" | "u16" | "u32" | "u64" | "usize", Some(integer)) => {
            return match integer.starts_with('-') {
                true => "must be 0 or more".to_owned(),
                false => "is too large a number".to_owned(),
            };
        }
        ("u8" | "u16" | "u32" | "u64" | "usize", None) => "a whole number",
        ("f32" | "f64", _) => "a number",
        (expected, _) => expected,
    };
    let found = found.split(['"', '`']).next().unwrap_or_default().trim();
    let found = if found.is_empty() { "a value" } else { found };
    one_line(&format!("found {found}, expected {expected}"))
}

fn one_line(reason: &str) -> String {
    crate::text::one_line(reason, MAX_REASON)
}

#[cfg(test)]
mod tests;
