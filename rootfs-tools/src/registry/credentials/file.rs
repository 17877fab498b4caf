//! `config.json` of docker and `auth.json` of podman (containers-auth.json(5)):
//! the same format, but for keys that name a repository, which docker has not.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use serde::Deserialize;
use zeroize::Zeroizing;

use super::Login;
use crate::reference::DEFAULT_REGISTRY;
use crate::registry::secret::Secret;

/// The largest file that is read, in bytes.
const LARGEST: u64 = 1 << 20;

/// What docker calls docker.io, for reasons of history.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";

/// What docker writes for a name when the password is an identity token.
pub(super) const TOKEN_USER: &str = "<token>";

/// A file, read.
#[derive(Debug)]
pub(super) struct AuthFile {
    path: PathBuf,
    content: Content,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Content {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
    #[serde(default)]
    cred_helpers: BTreeMap<String, String>,
    #[serde(default)]
    creds_store: String,
}

#[derive(Debug, Deserialize)]
struct Entry {
    /// `user:password` in base64.
    auth: Option<Secret>,
    username: Option<String>,
    password: Option<Secret>,
    identitytoken: Option<Secret>,
    registrytoken: Option<Secret>,
}

/// The names under which helpers may have a registry.
pub(super) fn helper_servers(registry: &str) -> impl Iterator<Item = &str> {
    let legacy = (registry == DEFAULT_REGISTRY).then_some(DOCKER_HUB);
    legacy.into_iter().chain([registry])
}

impl AuthFile {
    /// Reads a file, if it is there.
    pub(super) fn read(path: &Path) -> Result<Option<Self>, String> {
        let failed = |why: &str| format!("cannot use the credentials in {}: {why}", path.display());
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(&error.to_string())),
        };
        let mut text = Zeroizing::new(Vec::new());
        file.take(LARGEST + 1)
            .read_to_end(&mut text)
            .map_err(|error| failed(&error.to_string()))?;
        if text.len() as u64 > LARGEST {
            return Err(failed("it is larger than a mebibyte"));
        }
        // The error of the parser may quote what it read: its place must do.
        let content = serde_json::from_slice(&text).map_err(|error| {
            let (line, column) = (error.line(), error.column());
            failed(&format!("wrong JSON in line {line}, column {column}"))
        })?;
        Ok(Some(Self {
            path: path.to_owned(),
            content,
        }))
    }

    /// The credential helper for a registry, without `docker-credential-`.
    pub(super) fn helper(&self, registry: &str) -> Option<&str> {
        let helpers = &self.content.cred_helpers;
        let name = helpers
            .iter()
            .find_map(|(key, name)| (host(key) == registry).then_some(name))
            .unwrap_or(&self.content.creds_store);
        (!name.is_empty()).then_some(name.as_str())
    }

    /// What the file itself has for a repository. The key that names the most
    /// of it counts: `host/a/b` before `host/a` before `host`.
    pub(super) fn login(&self, registry: &str, repository: &str) -> Result<Option<Login>, String> {
        let whole = format!("{registry}/{repository}");
        let mut name = whole.as_str();
        loop {
            if let Some(entry) = self.content.auths.get(name)
                && let Some(login) = self.login_of(name, entry)?
            {
                return Ok(Some(login));
            }
            match name.rsplit_once('/') {
                Some((shorter, _)) => name = shorter,
                None => break,
            }
        }
        // Keys of docker are URLs or what is left of them.
        let keys = self.content.auths.iter();
        for (key, entry) in keys.filter(|(key, _)| is_docker_key(key) && host(key) == registry) {
            if let Some(login) = self.login_of(key, entry)? {
                return Ok(Some(login));
            }
        }
        Ok(None)
    }

    fn login_of(&self, key: &str, entry: &Entry) -> Result<Option<Login>, String> {
        let given = |secret: &Option<Secret>| secret.clone().filter(|it| !it.expose().is_empty());
        if let Some(token) = given(&entry.identitytoken) {
            return Ok(Some(Login::Identity(token)));
        }
        if let Some(token) = given(&entry.registrytoken) {
            return Ok(Some(Login::Access(token)));
        }
        if let Some(auth) = given(&entry.auth) {
            let (user, password) = decode(&auth).ok_or_else(|| {
                let path = self.path.display();
                format!("cannot use the credentials for {key} in {path}: `auth` is not user:password in base64")
            })?;
            return Ok(Some(if user == TOKEN_USER {
                Login::Identity(password)
            } else {
                Login::Password { user, password }
            }));
        }
        match (&entry.username, given(&entry.password)) {
            (Some(user), Some(password)) if !user.is_empty() => Ok(Some(Login::Password {
                user: user.clone(),
                password,
            })),
            // Docker leaves empty entries where a helper has the credentials.
            _ => Ok(None),
        }
    }
}

fn decode(auth: &Secret) -> Option<(String, Secret)> {
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(auth.expose().trim())
        .ok()?;
    let bytes = Zeroizing::new(bytes);
    // Docker pads some with zeros.
    let text = std::str::from_utf8(&bytes).ok()?.trim_matches('\0');
    let (user, password) = text.split_once(':')?;
    Some((user.to_owned(), Secret::new(password.to_owned())))
}

/// Does docker write such keys: a URL, or a host with at most `/v1/` or so?
fn is_docker_key(key: &str) -> bool {
    key.contains("://")
        || matches!(
            key.split_once('/'),
            None | Some((_, "v1/" | "v2/" | "v1" | "v2" | ""))
        )
}

/// The registry that a key of docker means.
fn host(key: &str) -> &str {
    let rest = key.split_once("://").map_or(key, |(_, rest)| rest);
    let host = rest.split_once('/').map_or(rest, |(host, _)| host);
    match host {
        "index.docker.io" | "registry-1.docker.io" => DEFAULT_REGISTRY,
        other => other,
    }
}
