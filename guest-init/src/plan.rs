//! From a request to everything that is needed to start the program.
//!
//! All of it is made before the fork: the child cannot allocate.

use std::ffi::CString;

use flashpan_protocol::agent::{
    Bytes, Command, ExecRequest, StartFailure, StartFailureKind, TerminalSize,
};

use crate::confine::Ready;
use crate::users::{Accounts, Identity};

/// Where programs are looked for when the request has no `PATH`, as docker has
/// it.
const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Terminal type when the request has none; every image knows it.
const DEFAULT_TERM: &[u8] = b"xterm";

/// Linux's longest path, with its NUL.
const PATH_MAX: usize = 4096;

const SHELL: &[u8] = b"/bin/sh";

/// A program that is ready to be started.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Paths to try, in order.
    pub(crate) candidates: Vec<CString>,
    pub(crate) arguments: Vec<CString>,
    pub(crate) environment: Vec<CString>,
    pub(crate) directory: CString,
    /// Directories to make first, where they are missing: the working directory
    /// and those above it, the uppermost first.
    pub(crate) directories: Vec<CString>,
    pub(crate) identity: Identity,
    pub(crate) terminal: Option<TerminalSize>,
    pub(crate) stdin: bool,
    pub(crate) linger: bool,
    pub(crate) confinement: Ready,
}

impl Plan {
    /// Checks `request` and completes it: user, `PATH`, `HOME`, `TERM`.
    pub(crate) fn new(request: ExecRequest, accounts: &Accounts) -> Result<Self, StartFailure> {
        let identity = accounts
            .resolve(request.user.as_deref())
            .map_err(|error| bad_request(error.to_string()))?;
        let arguments: Vec<Vec<u8>> = match request.command {
            Command::Argv(arguments) => arguments.into_iter().map(Bytes::into_vec).collect(),
            Command::Shell(line) => vec![SHELL.to_vec(), b"-c".to_vec(), line.into_vec()],
        };
        let Some(program) = arguments.first().cloned() else {
            return Err(bad_request("no command: the argument list is empty"));
        };
        let environment = environment(&request.env, &identity, request.terminal.is_some())?;
        let path = environment
            .iter()
            .find_map(|entry| entry.strip_prefix(b"PATH="))
            .unwrap_or(DEFAULT_PATH);
        let candidates = candidates(&program, path);
        let directory = request
            .working_dir
            .map_or_else(|| b"/".to_vec(), Bytes::into_vec);
        if directory.is_empty() {
            return Err(bad_request(
                "the working directory is empty; leave it out or name one",
            ));
        }
        let directories = match request.make_working_dir {
            // A longer one cannot be entered, which is told then.
            true if directory.len() < PATH_MAX => with_parents(&directory),
            _ => Vec::new(),
        };
        Ok(Self {
            candidates: c_strings(candidates, "the program's name")?,
            arguments: numbered_c_strings(arguments, "argument")?,
            environment: numbered_c_strings(environment, "environment entry")?,
            directories: c_strings(directories, "the working directory")?,
            directory: c_string(directory, "the working directory")?,
            identity,
            terminal: request.terminal,
            stdin: request.stdin,
            linger: request.linger,
            confinement: Ready::new(request.confinement),
        })
    }

    /// The program as it was asked for.
    pub(crate) fn program(&self) -> String {
        self.arguments.first().map(text).unwrap_or_default()
    }
}

/// For messages: the bytes as text.
pub(crate) fn text(bytes: &CString) -> String {
    bytes.to_string_lossy().into_owned()
}

pub(crate) fn bad_request(message: impl Into<String>) -> StartFailure {
    StartFailure {
        kind: StartFailureKind::BadRequest,
        message: message.into(),
    }
}

/// `name=value` strings without duplicates, and with the defaults for what the
/// request leaves open.
fn environment(
    given: &[(Bytes, Bytes)],
    identity: &Identity,
    terminal: bool,
) -> Result<Vec<Vec<u8>>, StartFailure> {
    let mut names = std::collections::BTreeMap::new();
    let mut entries: Vec<Vec<u8>> = Vec::with_capacity(given.len().saturating_add(3));
    let mut set = |name: &[u8], value: &[u8], replace: bool| {
        let entry = [name, b"=", value].concat();
        match names
            .get(name)
            .and_then(|index: &usize| entries.get_mut(*index))
        {
            Some(old) if replace => *old = entry,
            Some(_) => {}
            None => {
                names.insert(name.to_vec(), entries.len());
                entries.push(entry);
            }
        }
    };
    for (name, value) in given {
        if name.is_empty() || name.contains(&b'=') {
            return Err(bad_request(format!(
                "{:?} is not a name of an environment variable: it is empty or has a '='",
                String::from_utf8_lossy(name)
            )));
        }
        set(name, value, true);
    }
    set(b"PATH", DEFAULT_PATH, false);
    set(b"HOME", &identity.home, false);
    if terminal {
        set(b"TERM", DEFAULT_TERM, false);
    }
    Ok(entries)
}

/// What execvp(3) would try: the name itself if it has a slash, else the name
/// in each directory of `path`, where an empty one is the working directory.
fn candidates(program: &[u8], path: &[u8]) -> Vec<Vec<u8>> {
    if program.is_empty() || program.contains(&b'/') {
        return vec![program.to_vec()];
    }
    path.split(|b| *b == b':')
        .map(|directory| match directory {
            b"" => program.to_vec(),
            directory => [directory, b"/", program].concat(),
        })
        .collect()
}

/// A path and what is above it, but for the root, the uppermost first.
fn with_parents(path: &[u8]) -> Vec<Vec<u8>> {
    let ends = path.iter().enumerate().skip(1);
    let ends = ends.filter_map(|(index, byte)| (*byte == b'/').then_some(index));
    ends.chain([path.len()])
        .filter_map(|end| path.get(..end))
        .filter(|part| !part.ends_with(b"/"))
        .map(<[u8]>::to_vec)
        .collect()
}

fn c_string(bytes: Vec<u8>, what: &str) -> Result<CString, StartFailure> {
    CString::new(bytes).map_err(|error| {
        let position = error.nul_position();
        bad_request(format!(
            "{what} has a NUL at byte {position}; programs cannot be given one"
        ))
    })
}

fn c_strings(all: Vec<Vec<u8>>, what: &str) -> Result<Vec<CString>, StartFailure> {
    all.into_iter().map(|bytes| c_string(bytes, what)).collect()
}

fn numbered_c_strings(all: Vec<Vec<u8>>, what: &str) -> Result<Vec<CString>, StartFailure> {
    all.into_iter()
        .enumerate()
        .map(|(index, bytes)| c_string(bytes, &format!("{what} {index}")))
        .collect()
}
