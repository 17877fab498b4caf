//! Who we are to registries: what the user's tools have stored.
//!
//! Looked at in this order, the first that has something for a registry counts:
//! 1. what the program was given ([`Credentials::add`]);
//! 2. `$REGISTRY_AUTH_FILE`;
//! 3. `$XDG_RUNTIME_DIR/containers/auth.json`;
//! 4. `$XDG_CONFIG_HOME/containers/auth.json` (`~/.config`);
//! 5. `$DOCKER_CONFIG/config.json` (`~/.docker`).
//!
//! In a file, a credential helper for the registry (`credHelpers`) counts before
//! the helper for all (`credsStore`), and that before what the file itself holds
//! (`auths`). A source that cannot be used is told of and passed over.

mod file;
mod helper;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use super::Error;
use super::secret::Secret;
use crate::reference;

/// How to prove who we are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Login {
    /// A name and a password.
    Password {
        /// The name.
        user: String,
        /// The password.
        password: Secret,
    },
    /// An identity token: token servers give access tokens for it (OAuth 2
    /// refresh token).
    Identity(Secret),
    /// An access token for the registry itself.
    Access(Secret),
}

/// Sources of credentials. The default has none.
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    given: BTreeMap<String, Login>,
    files: Vec<PathBuf>,
    /// Where helpers are looked for.
    path: Option<OsString>,
}

/// What the sources have for a registry.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) login: Option<Login>,
    /// What could not be used, a line each.
    pub(super) problems: Vec<String>,
}

impl Credentials {
    /// The user's.
    #[must_use]
    pub fn from_environment() -> Self {
        Self::from_variables(&|name| std::env::var_os(name))
    }

    pub(super) fn from_variables(get: &dyn Fn(&str) -> Option<OsString>) -> Self {
        let get = |name| get(name).filter(|value| !value.is_empty());
        let directory = |name| {
            let path = get(name).map(PathBuf::from);
            path.filter(|path| path.is_absolute())
        };
        let home = |rest: &str| directory("HOME").map(|home| home.join(rest));
        let files = [
            get("REGISTRY_AUTH_FILE").map(PathBuf::from),
            directory("XDG_RUNTIME_DIR").map(|at| at.join("containers/auth.json")),
            directory("XDG_CONFIG_HOME")
                .or_else(|| home(".config"))
                .map(|at| at.join("containers/auth.json")),
            get("DOCKER_CONFIG")
                .map(PathBuf::from)
                .or_else(|| home(".docker"))
                .map(|at| at.join("config.json")),
        ];
        Self {
            given: BTreeMap::new(),
            files: files.into_iter().flatten().collect(),
            path: get("PATH"),
        }
    }

    /// Uses `login` for a registry (`docker.io`, `localhost:5000`).
    #[must_use]
    pub fn add(mut self, registry: &str, login: Login) -> Self {
        self.given.insert(registry.to_owned(), login);
        self
    }

    /// Looks at a file, of docker or podman, after those that are known.
    #[must_use]
    pub fn add_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.files.push(path.into());
        self
    }

    /// Looks for helpers in the directories of `path`, separated by colons.
    #[must_use]
    pub fn helpers_in(mut self, path: impl Into<OsString>) -> Self {
        self.path = Some(path.into());
        self
    }

    /// Checks the names of registries.
    pub(super) fn checked(mut self) -> Result<Self, Error> {
        let mut given = BTreeMap::new();
        for (registry, login) in self.given {
            let registry = reference::check_registry(&registry).map_err(|why| Error::Options {
                why: format!("credentials: {why}"),
            })?;
            given.insert(registry, login);
        }
        self.given = given;
        Ok(self)
    }

    /// What there is for a repository of a registry.
    pub(super) async fn find(&self, registry: &str, repository: &str, deadline: Duration) -> Found {
        let mut found = Found::default();
        if let Some(login) = self.given.get(registry) {
            found.login = Some(login.clone());
            return found;
        }
        for path in &self.files {
            let file = match file::AuthFile::read(path) {
                Ok(Some(file)) => file,
                Ok(None) => continue,
                Err(why) => {
                    found.problems.push(why);
                    continue;
                }
            };
            if let Some(name) = file.helper(registry) {
                for server in file::helper_servers(registry) {
                    match helper::get(name, server, self.path.as_deref(), deadline).await {
                        Ok(None) => {}
                        Ok(login) => {
                            found.login = login;
                            return found;
                        }
                        Err(why) => {
                            found.problems.push(why);
                            break;
                        }
                    }
                }
            }
            match file.login(registry, repository) {
                Ok(None) => {}
                Ok(login) => {
                    found.login = login;
                    return found;
                }
                Err(why) => found.problems.push(why),
            }
        }
        found
    }
}

#[cfg(test)]
mod tests;
