//! docker's rules of who wins: the image or the user.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use super::RunConfig;

/// What a user asks for instead of what the image says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// Replaces the image's entrypoint, and with it its command; empty means
    /// that there is no entrypoint at all. `None` keeps the image's.
    pub entrypoint: Option<OsString>,
    /// Replaces the image's command unless empty.
    pub command: Vec<OsString>,
    /// Variables; the last of a name counts.
    pub env: Vec<(OsString, OsString)>,
    /// Replaces the image's working directory.
    pub working_dir: Option<OsString>,
    /// Replaces the image's user.
    pub user: Option<String>,
}

/// A program of an image, ready to be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// The program and its arguments; never empty.
    pub argv: Vec<OsString>,
    /// Variables, each name once: the user's, then those of the image that the
    /// user does not set.
    pub env: Vec<(OsString, OsString)>,
    /// Absolute, without `.`, `..` and double slashes. It need not exist in the
    /// image: docker makes it, so it has to be made.
    pub working_dir: OsString,
    /// `name`, `uid`, `name:group` or `uid:gid`; `None` is root.
    pub user: Option<String>,
    /// Number of the signal that asks it to end.
    pub stop_signal: i32,
}

/// Why there is no command to run.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ComposeError {
    /// Neither the image nor the user names a program.
    #[error("there is no command to run: the image has none, and neither do the arguments")]
    NoCommand,
    /// The user took the entrypoint away, and with it the image's command.
    #[error(
        "there is no command to run: with --entrypoint the image's own command does not count; \
         write the command after `--`"
    )]
    NoCommandAfterEntrypoint,
    /// A command is to be launched beside the user's, and there is none.
    #[error("launch_entrypoint: neither the image nor image_config names a command to launch")]
    NothingToLaunch,
    /// The user's working directory is relative.
    #[error("the working directory {0} is not an absolute path")]
    RelativeDirectory(String),
}

/// Puts an image's configuration and a user's wishes together as `docker run`
/// does:
///
/// - The entrypoint comes first, then the user's arguments, or else the image's
///   command. A user's entrypoint (one word, never split; also the empty one)
///   makes the image's command void.
/// - Variables of the user replace the image's.
/// - The user's working directory and user replace the image's.
///
/// # Errors
///
/// Nothing is left to run, or the user's working directory is relative.
pub fn compose(image: &RunConfig, user: &Overrides) -> Result<Command, ComposeError> {
    let words = |words: &[String]| words.iter().map(OsString::from).collect::<Vec<_>>();
    let mut argv = match &user.entrypoint {
        None => words(&image.entrypoint),
        // docker's way to say "none".
        Some(entrypoint) if entrypoint.is_empty() => Vec::new(),
        Some(entrypoint) => vec![entrypoint.clone()],
    };
    if !user.command.is_empty() {
        argv.extend(user.command.iter().cloned());
    } else if user.entrypoint.is_none() {
        argv.extend(words(&image.cmd));
    }
    if argv.is_empty() {
        return Err(match user.entrypoint {
            Some(_) => ComposeError::NoCommandAfterEntrypoint,
            None => ComposeError::NoCommand,
        });
    }
    // An empty wish is none, as in docker.
    let working_dir = match user.working_dir.as_ref().filter(|dir| !dir.is_empty()) {
        Some(path) if !path.as_bytes().starts_with(b"/") => {
            let path = path.display().to_string();
            return Err(ComposeError::RelativeDirectory(path));
        }
        Some(path) => clean(path.as_bytes()),
        // An image's relative one counts from the root.
        None => clean(image.working_dir.as_bytes()),
    };
    let wanted = user.user.as_deref().filter(|user| !user.is_empty());
    let wanted = wanted.unwrap_or(&image.user);
    Ok(Command {
        argv,
        env: merge(&image.env, &user.env),
        working_dir,
        user: normal_user(wanted),
        stop_signal: image.stop_signal(),
    })
}

/// The user's variables, then those of the image that are not among them; of
/// several of one name the last value counts, at the first one's place.
fn merge(image: &[String], user: &[(OsString, OsString)]) -> Vec<(OsString, OsString)> {
    let image = image.iter().filter_map(|entry| {
        let (name, value) = entry.split_once('=')?;
        (!name.is_empty()).then(|| (OsString::from(name), OsString::from(value)))
    });
    let mut merged = Vec::new();
    replace_or_append(&mut merged, user.iter().cloned(), 0);
    let users = merged.len();
    replace_or_append(&mut merged, image, users);
    merged
}

/// Adds `more` to `all`, of which the first `fixed` are never replaced.
fn replace_or_append(
    all: &mut Vec<(OsString, OsString)>,
    more: impl Iterator<Item = (OsString, OsString)>,
    fixed: usize,
) {
    let mut places: std::collections::HashMap<OsString, usize> = all
        .iter()
        .enumerate()
        .map(|(index, (name, _))| (name.clone(), index))
        .collect();
    for (name, value) in more {
        match places.get(&name) {
            Some(index) if *index < fixed => {}
            Some(index) => {
                if let Some(entry) = all.get_mut(*index) {
                    entry.1 = value;
                }
            }
            None => {
                places.insert(name.clone(), all.len());
                all.push((name, value));
            }
        }
    }
}

/// Go's `path.Clean` of `/` and the path.
fn clean(path: &[u8]) -> OsString {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    let mut cleaned = Vec::with_capacity(path.len().saturating_add(1));
    for part in &parts {
        cleaned.push(b'/');
        cleaned.extend_from_slice(part);
    }
    if cleaned.is_empty() {
        return OsStr::new("/").to_owned();
    }
    OsString::from_vec(cleaned)
}

/// docker lets either side of the colon be empty: no user is root, no group is
/// the user's own.
fn normal_user(text: &str) -> Option<String> {
    match text.split_once(':') {
        None | Some(("", "")) => (!text.is_empty() && text != ":").then(|| text.to_owned()),
        Some((user, "")) => Some(user.to_owned()),
        Some(("", group)) => Some(format!("0:{group}")),
        Some(_) => Some(text.to_owned()),
    }
}
