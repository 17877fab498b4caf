//! Variables for programs in the guest, as they are given on a command line or
//! in a file.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use thiserror::Error;

use super::code::ErrorCode;
use super::problem::quoted;
use crate::text::shown_path;

/// Longest line of a file of variables, in bytes.
pub const MAX_ENV_LINE: usize = 1024 * 1024;

/// Why variables cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EnvError {
    /// A name is empty or blank.
    #[error("environment variable name cannot be empty")]
    NameEmpty,
    /// A name contains a NUL.
    #[error("environment variable name is invalid {}", quoted(.0))]
    NameInvalid(String),
    /// A value contains a NUL, which no program can be given.
    #[error("environment variable value is invalid: ${} contains a NUL", .0.escape_debug())]
    ValueInvalid(String),
    /// This process has no such variable.
    #[error("environment variable is not set ${}", .0.escape_debug())]
    NotSet(String),
    /// This process has such a variable, but not in UTF-8.
    #[error("environment variable value is invalid: ${} is not UTF-8", .0.escape_debug())]
    NotUnicode(String),
    /// A file cannot be read.
    #[error("read env file: {}: {source}", shown_path(path))]
    ReadFile {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A line of a file is wrong.
    #[error("parse env file line {}:{line}: {source}", shown_path(path))]
    FileLine {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong.
        source: Box<EnvError>,
    },
}

impl EnvError {
    /// The stable name of the error.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::NameEmpty => ErrorCode::EnvNameEmpty,
            Self::NameInvalid(_) => ErrorCode::EnvNameInvalid,
            Self::ValueInvalid(_) | Self::NotUnicode(_) => ErrorCode::EnvValueInvalid,
            Self::NotSet(_) => ErrorCode::EnvNotSet,
            Self::ReadFile { .. } => ErrorCode::EnvFileUnreadable,
            Self::FileLine { .. } => ErrorCode::EnvFileLine,
        }
    }
}

/// A variable.
///
/// Read from `NAME=VALUE`, or from `NAME` with the value that this process has.
/// The name is trimmed; the value is what follows the first `=`, as it is.
///
/// ```
/// use flashpan::api::EnvVar;
///
/// let variable: EnvVar = "GREETING=a=b".parse()?;
/// assert_eq!((variable.name.as_str(), variable.value.as_str()), ("GREETING", "a=b"));
/// # Ok::<(), flashpan::api::EnvError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnvVar {
    /// Its name.
    pub name: String,
    /// Its value, which may be empty.
    pub value: String,
}

impl EnvVar {
    /// Reads a variable; `lookup` finds variables of the host.
    ///
    /// # Errors
    /// No name, a NUL in name or value, or a variable that the host does not have
    /// or has in another encoding than UTF-8.
    pub fn parse_with(
        spec: &str,
        lookup: impl FnOnce(&str) -> Option<OsString>,
    ) -> Result<Self, EnvError> {
        let (name, value) = match spec.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (spec, None),
        };
        let name = name.trim().to_owned();
        if name.is_empty() {
            return Err(EnvError::NameEmpty);
        }
        if name.contains('\0') {
            return Err(EnvError::NameInvalid(name));
        }
        let value = match value {
            Some(value) => value.to_owned(),
            None => match lookup(&name).map(OsString::into_string) {
                Some(Ok(value)) => value,
                Some(Err(_)) => return Err(EnvError::NotUnicode(name)),
                None => return Err(EnvError::NotSet(name)),
            },
        };
        if value.contains('\0') {
            return Err(EnvError::ValueInvalid(name));
        }
        Ok(Self { name, value })
    }
}

impl FromStr for EnvVar {
    type Err = EnvError;

    fn from_str(spec: &str) -> Result<Self, EnvError> {
        Self::parse_with(spec, of_this_process)
    }
}

impl fmt::Display for EnvVar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, self.value)
    }
}

/// Reads a file with one variable per line, each as [`EnvVar`] reads it. Lines
/// are trimmed; empty ones and those that begin with `#` are skipped. There are
/// no quotes and no `export`. Of two lines with one name the later one counts.
///
/// # Errors
/// [`EnvError::ReadFile`], also for a line of more than [`MAX_ENV_LINE`] bytes or
/// text that is not UTF-8; [`EnvError::FileLine`] with the number of the line.
pub fn parse_env_file(path: impl AsRef<Path>) -> Result<BTreeMap<String, String>, EnvError> {
    let path = path.as_ref();
    let unreadable = |source| EnvError::ReadFile {
        path: path.to_owned(),
        source,
    };
    let mut reader = BufReader::new(File::open(path).map_err(unreadable)?);
    let mut variables = BTreeMap::new();
    let mut number = 0;
    while let Some(line) = read_line(&mut reader).map_err(unreadable)? {
        number += 1;
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let variable: EnvVar = line.parse().map_err(|source| EnvError::FileLine {
            path: path.to_owned(),
            line: number,
            source: Box::new(source),
        })?;
        variables.insert(variable.name, variable.value);
    }
    Ok(variables)
}

/// Reads all files in order, then all specifications in order; what comes later
/// wins.
///
/// # Errors
/// The first [`EnvError`].
pub fn parse_envs<S, P>(specs: &[S], files: &[P]) -> Result<BTreeMap<String, String>, EnvError>
where
    S: AsRef<str>,
    P: AsRef<Path>,
{
    let mut variables = BTreeMap::new();
    for file in files {
        variables.extend(parse_env_file(file)?);
    }
    for spec in specs {
        let variable: EnvVar = spec.as_ref().parse()?;
        variables.insert(variable.name, variable.value);
    }
    Ok(variables)
}

/// A variable of this process. Asking the system for a name with NUL or `=` in it
/// is an error in itself, so it is not asked.
pub(super) fn of_this_process(name: &str) -> Option<OsString> {
    if name.is_empty() || name.contains(['\0', '=']) {
        return None;
    }
    std::env::var_os(name)
}

fn read_line(reader: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    let most = u64::try_from(MAX_ENV_LINE + 1).unwrap_or(u64::MAX);
    reader.by_ref().take(most).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Ok(None);
    }
    if line.len() > MAX_ENV_LINE && !line.ends_with(b"\n") {
        let why = format!("a line has more than {MAX_ENV_LINE} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
    }
    let not_text = |_| io::Error::new(io::ErrorKind::InvalidData, "a line is not UTF-8");
    String::from_utf8(line).map(Some).map_err(not_text)
}

#[cfg(test)]
mod tests;
