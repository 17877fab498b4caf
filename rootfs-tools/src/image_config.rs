//! What an image says about the programs in it, and how that and a user's
//! wishes make one command line.
//!
//! The configuration is the JSON document that an image's manifest points to
//! (OCI image specification 1.1, `config.md`; docker writes the same fields).
//! Only what flashpan obeys or shows is read, the rest is passed over, so that
//! an image of a later tool still runs.

mod compose;

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use crate::registry::clean;

pub use compose::{Command, ComposeError, Overrides, compose};

/// Longest configuration that is read, in bytes. Real ones have some KiB; their
/// history makes the longest ones.
pub const CONFIG_MAX: usize = 8 << 20;

/// Most layers of an image. docker's own limit is 127.
pub const LAYERS_MAX: usize = 512;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is longer than [`CONFIG_MAX`].
    #[error("the image's configuration has {0} bytes; at most {CONFIG_MAX} are read")]
    TooLong(usize),
    /// It is not the JSON that it should be.
    #[error("the image's configuration cannot be understood: {}", clean(&.0.to_string()))]
    Json(#[from] serde_json::Error),
    /// More layers than [`LAYERS_MAX`].
    #[error("the image has {0} layers; at most {LAYERS_MAX} are taken")]
    Layers(usize),
    /// A layer's digest is not one.
    #[error("the image's configuration names a layer {0:?}, which is not a SHA-256 digest")]
    DiffId(String),
    /// What it is for is not said in words.
    #[error("the image's configuration is for {0:?}, which is no platform")]
    Platform(String),
    /// The layers are given in a form that nobody has used since 2015.
    #[error("the image's configuration lists no layers (rootfs.diff_ids); pull it again")]
    NoRootfs,
}

/// A configuration document.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// CPU architecture by Go's names: `amd64`.
    pub architecture: String,
    /// Operating system: `linux`.
    pub os: String,
    /// Variant of the architecture, such as `v8`; may be empty.
    pub variant: String,
    /// When the image was made, as the image says it (RFC 3339).
    pub created: Option<String>,
    /// Digests of the unpacked layers, `sha256:` and 64 hexadecimal digits, the
    /// lowest layer first.
    pub diff_ids: Vec<String>,
    /// How its programs want to be run.
    pub run: RunConfig,
}

/// How an image's programs want to be run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct RunConfig {
    /// What every command is an argument of.
    #[serde(deserialize_with = "words")]
    pub entrypoint: Vec<String>,
    /// The command unless the user gives one.
    #[serde(deserialize_with = "words")]
    pub cmd: Vec<String>,
    /// Variables, `NAME=VALUE`, in the image's order. Entries without `=` mean
    /// nothing and are left out.
    #[serde(deserialize_with = "variables")]
    pub env: Vec<String>,
    /// Directory that programs start in; empty is `/`.
    #[serde(deserialize_with = "nullable")]
    pub working_dir: String,
    /// `name`, `uid`, `name:group` or `uid:gid`; empty is root.
    #[serde(deserialize_with = "nullable")]
    pub user: String,
    /// The signal that asks the program to end, as the image writes it
    /// (`SIGTERM`, `15`); empty is SIGTERM. See [`RunConfig::stop_signal`].
    #[serde(rename = "StopSignal", deserialize_with = "nullable")]
    pub stop_signal_name: String,
    /// Directories that hold data, sorted.
    #[serde(deserialize_with = "keys")]
    pub volumes: Vec<String>,
    /// Ports, such as `80/tcp`, sorted.
    #[serde(deserialize_with = "keys")]
    pub exposed_ports: Vec<String>,
    /// Labels.
    #[serde(deserialize_with = "nullable")]
    pub labels: BTreeMap<String, String>,
}

impl ImageConfig {
    /// Reads a configuration document.
    ///
    /// # Errors
    ///
    /// It is too long, is no configuration, or names layers by something that
    /// is no digest.
    pub fn parse(json: &[u8]) -> Result<Self, Error> {
        if json.len() > CONFIG_MAX {
            return Err(Error::TooLong(json.len()));
        }
        let document: Document = serde_json::from_slice(json)?;
        let diff_ids = document.rootfs.ok_or(Error::NoRootfs)?.diff_ids;
        if diff_ids.len() > LAYERS_MAX {
            return Err(Error::Layers(diff_ids.len()));
        }
        if let Some(wrong) = diff_ids.iter().find(|id| !is_sha256(id)) {
            return Err(Error::DiffId(wrong.chars().take(100).collect()));
        }
        for word in [&document.architecture, &document.os, &document.variant] {
            let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
            if word.len() > 64 || !word.bytes().all(allowed) {
                return Err(Error::Platform(word.chars().take(64).collect()));
            }
        }
        Ok(Self {
            architecture: document.architecture,
            os: document.os,
            variant: document.variant,
            // A time of RFC 3339 or nothing: it is kept in the list of all images.
            created: document.created.filter(|time| time.len() <= 64),
            diff_ids,
            run: document.config.unwrap_or_default(),
        })
    }

    /// The platform as `--platform` takes it: `linux/amd64`, `linux/arm64/v8`.
    #[must_use]
    pub fn platform(&self) -> String {
        let os = if self.os.is_empty() {
            "linux"
        } else {
            &self.os
        };
        let architecture = match self.architecture.as_str() {
            "" => "unknown",
            name => name,
        };
        match self.variant.as_str() {
            "" => format!("{os}/{architecture}"),
            variant => format!("{os}/{architecture}/{variant}"),
        }
    }
}

impl RunConfig {
    /// The number of the signal that asks the program to end, SIGTERM where
    /// the image names none that Linux has.
    #[must_use]
    pub fn stop_signal(&self) -> i32 {
        signal(&self.stop_signal_name).unwrap_or(SIGTERM)
    }
}

const SIGTERM: i32 = 15;

/// Names of the signals 1 to 31 on x86-64, signal(7).
const SIGNALS: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];
/// The first real-time signal that the C library leaves to programs.
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// A signal by number, by name with or without `SIG`, or as `RTMIN+n`,
/// `RTMAX-n`, as docker takes it.
fn signal(name: &str) -> Option<i32> {
    if let Ok(number) = name.parse::<i32>() {
        return (1..=RTMAX).contains(&number).then_some(number);
    }
    let upper = name.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let offset = |text: &str| -> Option<i32> {
        let text = text.strip_prefix(['+', '-']).unwrap_or(text);
        if text.is_empty() {
            Some(0)
        } else {
            text.parse().ok()
        }
    };
    let real_time = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(rest), _) => Some(RTMIN.checked_add(offset(rest)?)?),
        (_, Some(rest)) => Some(RTMAX.checked_sub(offset(rest)?)?),
        _ => None,
    };
    if let Some(number) = real_time {
        return (RTMIN..=RTMAX).contains(&number).then_some(number);
    }
    let index = SIGNALS.iter().position(|known| *known == name)?;
    i32::try_from(index).ok()?.checked_add(1)
}

/// Is it `sha256:` and 64 lower-case hexadecimal digits?
pub(crate) fn is_sha256(digest: &str) -> bool {
    digest.strip_prefix("sha256:").is_some_and(|hex| {
        hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    })
}

#[derive(Deserialize)]
struct Document {
    #[serde(default, deserialize_with = "nullable")]
    architecture: String,
    #[serde(default, deserialize_with = "nullable")]
    os: String,
    #[serde(default, deserialize_with = "nullable")]
    variant: String,
    #[serde(default)]
    created: Option<String>,
    #[serde(default)]
    rootfs: Option<Rootfs>,
    #[serde(default)]
    config: Option<RunConfig>,
}

#[derive(Deserialize)]
struct Rootfs {
    #[serde(default, deserialize_with = "nullable")]
    diff_ids: Vec<String>,
}

/// `null` is what Go writes for an empty slice or map.
fn nullable<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// A list of words, or one word alone, as docker writes and reads them.
fn words<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Words {
        One(String),
        Many(Vec<String>),
    }
    Ok(match Option::<Words>::deserialize(deserializer)? {
        None => Vec::new(),
        Some(Words::One(word)) => vec![word],
        Some(Words::Many(words)) => words,
    })
}

fn variables<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let mut all: Vec<String> = nullable(deserializer)?;
    all.retain(|entry| entry.find('=').is_some_and(|at| at > 0));
    Ok(all)
}

/// The names of a map whose values mean nothing (`{"80/tcp": {}}`), or a list
/// of names, which is how we write it ourselves.
fn keys<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Keys {
        Map(BTreeMap<String, serde::de::IgnoredAny>),
        List(Vec<String>),
    }
    Ok(match Option::<Keys>::deserialize(deserializer)? {
        None => Vec::new(),
        Some(Keys::Map(map)) => map.into_keys().collect(),
        Some(Keys::List(list)) => list,
    })
}

#[cfg(test)]
mod tests;
