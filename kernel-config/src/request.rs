//! Requests for kernel options: parsing, merging, and what Kconfig made of them.

use std::collections::BTreeMap;
use std::fmt;

use sha2::{Digest, Sha256};

use crate::key::hex;

/// What an option is asked to be, or has become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Off: `# CONFIG_X is not set`, or not mentioned in a resolved configuration.
    No,
    /// Anything that stands right of `=`: `y`, a number, a quoted string.
    Is(String),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::No => f.write_str("n"),
            Self::Is(text) => f.write_str(text),
        }
    }
}

/// One line of a configuration: an option, the value asked for, and who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Name without the `CONFIG_` prefix.
    pub option: String,
    /// Value asked for.
    pub value: Value,
    /// Name of the configuration that asks: `base`, a fragment, a file.
    pub fragment: String,
    /// Its line there, counted from 1.
    pub line: usize,
}

/// A line that is neither empty, comment nor request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SyntaxError {
    /// Not of a form that Kconfig writes.
    #[error(
        "{fragment}, line {line}: `{text}` is not `CONFIG_X=value`, `# CONFIG_X is not set` or a comment"
    )]
    Line {
        /// Name of the configuration.
        fragment: String,
        /// Line number, from 1.
        line: usize,
        /// The line, at most 80 characters of it.
        text: String,
    },
    /// The same option twice with different values in one file: a slip, since
    /// only the later could count.
    #[error("{fragment}: lines {first} and {second} ask for different values of CONFIG_{option}")]
    Contradiction {
        /// Name of the configuration.
        fragment: String,
        /// The option, without prefix.
        option: String,
        /// Line of the first request.
        first: usize,
        /// Line of the second.
        second: usize,
    },
}

/// A set of requests, one per option. Ordered by name, so that its text and
/// digest do not depend on the order of lines.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Requests(BTreeMap<String, Request>);

impl Requests {
    /// Parses configuration `text`; `fragment` names it in messages.
    pub fn parse(fragment: &str, text: &str) -> Result<Self, SyntaxError> {
        let mut requests: BTreeMap<String, Request> = BTreeMap::new();
        for (index, raw) in text.lines().enumerate() {
            let line = index + 1;
            let (option, value) = match parse_line(raw.trim()) {
                Line::Nothing => continue,
                Line::Request(option, value) => (option, value),
                Line::Unknown => {
                    let text = raw.trim().chars().take(80).collect();
                    return Err(SyntaxError::Line {
                        fragment: fragment.to_owned(),
                        line,
                        text,
                    });
                }
            };
            if let Some(earlier) = requests
                .get(option)
                .filter(|earlier| earlier.value != value)
            {
                return Err(SyntaxError::Contradiction {
                    fragment: fragment.to_owned(),
                    option: option.to_owned(),
                    first: earlier.line,
                    second: line,
                });
            }
            let (fragment, option) = (fragment.to_owned(), option.to_owned());
            requests.insert(
                option.clone(),
                Request {
                    option,
                    value,
                    fragment,
                    line,
                },
            );
        }
        Ok(Self(requests))
    }

    /// Puts `later` on top: where both name an option, `later` wins.
    pub fn merge(&mut self, later: Self) {
        self.0.extend(later.0);
    }

    /// All requests, by name of the option.
    pub fn iter(&self) -> impl Iterator<Item = &Request> {
        self.0.values()
    }

    /// The form that Kconfig reads (`KCONFIG_ALLCONFIG`).
    pub fn to_config(&self) -> String {
        self.iter().fold(String::new(), |mut text, request| {
            push_line(&mut text, &request.option, &request.value);
            text
        })
    }

    /// SHA-256 of [`Self::to_config`], in hexadecimal.
    pub fn digest(&self) -> String {
        hex(&Sha256::digest(self.to_config()))
    }
}

/// A configuration as Kconfig resolved it (`.config`): every option that is on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resolved(BTreeMap<String, String>);

impl Resolved {
    /// Parses a `.config`. Lines that are no assignments say nothing here.
    pub fn parse(text: &str) -> Self {
        let assignments = text.lines().filter_map(|raw| match parse_line(raw.trim()) {
            Line::Request(option, Value::Is(value)) => Some((option.to_owned(), value)),
            _ => None,
        });
        Self(assignments.collect())
    }

    /// The value of an option (name without prefix).
    pub fn get(&self, option: &str) -> Value {
        self.0
            .get(option)
            .map_or(Value::No, |value| Value::Is(value.clone()))
    }

    /// Names and values of all options that are on, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .map(|(option, value)| (option.as_str(), value.as_str()))
    }

    /// How many options are `y`: what the size of a build goes with.
    pub fn enabled(&self) -> usize {
        self.0.values().filter(|value| *value == "y").count()
    }
}

enum Line<'a> {
    Nothing,
    Request(&'a str, Value),
    Unknown,
}

fn parse_line(line: &str) -> Line<'_> {
    if let Some(comment) = line.strip_prefix('#') {
        // Only the exact form is a request, so that prose may mention options.
        let unset = comment.trim_start().strip_prefix("CONFIG_");
        return match unset.and_then(|rest| rest.strip_suffix(" is not set")) {
            Some(option) if is_name(option) => Line::Request(option, Value::No),
            _ => Line::Nothing,
        };
    }
    if line.is_empty() {
        return Line::Nothing;
    }
    match line
        .strip_prefix("CONFIG_")
        .and_then(|rest| rest.split_once('='))
    {
        Some((option, "n")) if is_name(option) => Line::Request(option, Value::No),
        Some((option, value)) if is_name(option) && is_value(value) => {
            Line::Request(option, Value::Is(value.to_owned()))
        }
        _ => Line::Unknown,
    }
}

fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

fn is_value(text: &str) -> bool {
    let quoted = text.len() >= 2 && text.starts_with('"') && text.ends_with('"');
    let bare = !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
    (quoted || bare) && !text.contains('\0')
}

fn push_line(text: &mut String, option: &str, value: &Value) {
    let line = match value {
        Value::No => format!("# CONFIG_{option} is not set\n"),
        Value::Is(value) => format!("CONFIG_{option}={value}\n"),
    };
    text.push_str(&line);
}

#[cfg(test)]
mod tests;
