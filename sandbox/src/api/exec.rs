//! How programs are run in a guest, and what became of them.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use flashpan_protocol::agent::ExitStatus;

use super::lenient;
use crate::process::Collected;

/// The surroundings of a program in a guest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ExecOptions {
    /// Absolute path of the directory that it starts in. Empty: the image's, else
    /// the workspace, else `/`.
    #[serde(
        default,
        deserialize_with = "lenient::null",
        skip_serializing_if = "String::is_empty"
    )]
    pub working_dir: String,
    /// Variables besides those of the VM.
    #[serde(
        default,
        deserialize_with = "lenient::map",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub env: BTreeMap<String, String>,
    /// `uid`, `uid:gid` or a name; resolved in the guest. Empty: the image's, else
    /// root.
    #[serde(
        default,
        deserialize_with = "lenient::null",
        skip_serializing_if = "String::is_empty"
    )]
    pub user: String,
}

impl ExecOptions {
    /// Adds these surroundings to a program.
    pub fn apply_to(&self, mut program: crate::ExecOptions) -> crate::ExecOptions {
        for (name, value) in &self.env {
            program = program.env(name, value);
        }
        if !self.working_dir.is_empty() {
            program = program.working_dir(&self.working_dir);
        }
        if !self.user.is_empty() {
            program = program.user(&self.user);
        }
        program
    }
}

/// What became of a program.
///
/// In JSON: `exit_code`, `stdout` and `stderr` in base64 unless they are empty,
/// and `duration_ms` in whole milliseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ExecResult {
    /// Its exit code, 0 to 255; -1 if a signal ended it.
    #[serde(default)]
    pub exit_code: i32,
    /// What it wrote to its standard output.
    #[serde(default, with = "base64_text", skip_serializing_if = "Vec::is_empty")]
    pub stdout: Vec<u8>,
    /// What it wrote to its standard error.
    #[serde(default, with = "base64_text", skip_serializing_if = "Vec::is_empty")]
    pub stderr: Vec<u8>,
    /// How long it ran.
    #[serde(default, rename = "duration_ms", with = "milliseconds")]
    pub duration: Duration,
}

impl ExecResult {
    /// A program that ran for this long and ended with this code, without output.
    #[must_use]
    pub fn new(exit_code: i32, duration: Duration) -> Self {
        Self {
            exit_code,
            duration,
            ..Self::default()
        }
    }
}

impl From<Collected> for ExecResult {
    fn from(collected: Collected) -> Self {
        Self {
            exit_code: match collected.status {
                ExitStatus::Code(code) => code.into(),
                ExitStatus::Signal(_) => -1,
            },
            stdout: collected.stdout,
            stderr: collected.stderr,
            duration: collected.duration,
        }
    }
}

mod base64_text {
    use super::*;

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        let text: String = lenient::null(from)?;
        let no_base64 = |_| serde::de::Error::custom("not base64");
        STANDARD.decode(text).map_err(no_base64)
    }
}

mod milliseconds {
    use super::*;

    pub(super) fn serialize<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_millis)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_have_output_in_base64() {
        let mut result = ExecResult::new(-1, Duration::from_micros(41_999));
        assert_eq!(
            serde_json::to_string(&result).unwrap(),
            r#"{"exit_code":-1,"duration_ms":41}"#
        );
        result.stdout = b"hello\n".to_vec();
        result.duration = Duration::from_millis(41);
        let json = r#"{"exit_code":-1,"stdout":"aGVsbG8K","duration_ms":41}"#;
        assert_eq!(serde_json::to_string(&result).unwrap(), json);
        assert_eq!(serde_json::from_str::<ExecResult>(json).unwrap(), result);
        assert!(serde_json::from_str::<ExecResult>(r#"{"stdout":"?"}"#).is_err());
    }

    #[test]
    fn options_have_the_names_and_reach_the_program() {
        let json = r#"{"working_dir":"/w","env":{"A":"1"},"user":"1000:1000"}"#;
        let options: ExecOptions = serde_json::from_str(json).unwrap();
        assert_eq!(serde_json::to_string(&options).unwrap(), json);
        let program = options.apply_to(crate::ExecOptions::argv(["true"]));
        program.validate().unwrap();
        let shown = format!("{program:?}");
        assert!(
            shown.contains("1000:1000") && shown.contains("/w"),
            "{shown}"
        );
        let bad: ExecOptions = serde_json::from_str(r#"{"working_dir":"w"}"#).unwrap();
        assert!(
            bad.apply_to(crate::ExecOptions::argv(["true"]))
                .validate()
                .is_err()
        );
    }
}
