//! How programs of a VM are run unless the caller says otherwise.

use std::collections::BTreeMap;
use std::ffi::OsString;

use flashpan_rootfs::image_config::{ComposeError, Overrides, RunConfig, compose};
use serde::{Deserialize, Serialize};

use super::error::LaunchError;
use super::options::{HostOptions, RootSource};
use crate::api::{Config, ImageConfig};
use crate::exec::ExecOptions;
use crate::privilege::Privilege;

/// How programs of a VM are run unless the caller says otherwise: by what its image
/// says, by what its configuration says in place of that, and by docker's rules of
/// who wins. It can be stored, for another process that reaches the VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecDefaults {
    /// What the image says, and the configuration in its place.
    run: RunConfig,
    /// Whether the root is an image's: then programs get a `HOSTNAME`, and their
    /// working directory is made.
    of_image: bool,
    hostname: String,
    /// Variables of the configuration, which go before the image's.
    env: BTreeMap<String, String>,
    launch_entrypoint: bool,
    privileged: bool,
}

impl ExecDefaults {
    pub(super) fn new(config: &Config, hostname: &str, image: Option<RunConfig>) -> Self {
        let of_image = image.is_some();
        let run = image.unwrap_or_default();
        Self {
            run: match &config.image_config {
                Some(over) => overlaid(run, over),
                None => run,
            },
            of_image,
            hostname: hostname.to_owned(),
            env: config.env.clone(),
            launch_entrypoint: config.launch_entrypoint,
            privileged: config.privileged,
        }
    }

    /// What is known before the image is: it is taken to have a command. For
    /// checking what a caller wants before anything takes long.
    #[must_use]
    pub fn expected(config: &Config, options: &HostOptions) -> Self {
        let image = matches!(options.root, RootSource::Image(_)).then(|| RunConfig {
            cmd: vec!["true".to_owned()],
            ..RunConfig::default()
        });
        Self::new(config, "", image)
    }

    /// A program as `docker run` would run it: the entrypoint, then the caller's
    /// arguments, or else the image's command. If the entrypoint is launched anyway
    /// (`launch_entrypoint`), the caller's arguments are a program of their own. All is
    /// in it: [`crate::Sandbox::exec`] adds nothing ([`ExecOptions::bare`]).
    ///
    /// # Errors
    /// Nothing is left to run, or the working directory is relative.
    pub fn program(&self, wishes: &Overrides) -> Result<ExecOptions, LaunchError> {
        let mut wishes = wishes.clone();
        if self.launch_entrypoint && wishes.entrypoint.is_none() && !wishes.command.is_empty() {
            wishes.entrypoint = Some(OsString::new());
        }
        let configured = self.env.iter();
        let configured = configured.map(|(name, value)| (name.into(), value.into()));
        // Of several of one name the last one counts.
        wishes.env = configured.chain(wishes.env).collect();
        let command = compose(&self.run, &wishes)?;
        let mut exec = ExecOptions::argv(command.argv).working_dir(command.working_dir);
        for (name, value) in command.env {
            exec = exec.env(name, value);
        }
        if let Some(user) = command.user {
            exec = exec.user(user);
        }
        exec = exec.make_working_dir(self.of_image);
        Ok(self.surrounded(exec))
    }

    /// A program as `docker exec` would run it: what is not set is as the image and
    /// the configuration say, and there is no entrypoint. [`crate::Sandbox::exec`] does
    /// it of itself, unless the options are [`ExecOptions::bare`].
    pub fn apply_to(&self, mut exec: ExecOptions) -> ExecOptions {
        for (name, value) in &self.env {
            exec = exec.default_env(name, value);
        }
        // The last of several counts, which comes first here.
        for entry in self.run.env.iter().rev() {
            if let Some((name, value)) = entry.split_once('=') {
                exec = exec.default_env(name, value);
            }
        }
        if !self.run.working_dir.is_empty() {
            exec = exec.default_working_dir(&self.run.working_dir, self.of_image);
        }
        if !self.run.user.is_empty() {
            exec = exec.default_user(&self.run.user);
        }
        self.surrounded(exec)
    }

    /// The signal that asks the image's command to end: SIGTERM, unless the image
    /// says otherwise.
    #[must_use]
    pub fn stop_signal(&self) -> i32 {
        self.run.stop_signal()
    }

    /// What programs may do in the guest.
    pub fn privilege(&self) -> Privilege {
        match self.privileged {
            true => Privilege::privileged(),
            false => Privilege::confined(),
        }
    }

    fn surrounded(&self, mut exec: ExecOptions) -> ExecOptions {
        exec = exec.default_privilege(&self.privilege()).bare();
        match self.of_image {
            true => exec.default_env("HOSTNAME", &self.hostname),
            false => exec,
        }
    }

    /// The image's own command, if it is to run as long as the VM does
    /// (`launch_entrypoint`).
    ///
    /// # Errors
    /// There is none.
    pub fn entrypoint(&self) -> Result<Option<ExecOptions>, LaunchError> {
        if !self.launch_entrypoint {
            return Ok(None);
        }
        let program = self.program(&Overrides::default());
        program.map(Some).map_err(|error| match error {
            LaunchError::Command(ComposeError::NoCommand) => {
                LaunchError::Command(ComposeError::NothingToLaunch)
            }
            error => error,
        })
    }

    /// Whether the image's own command runs as long as the VM does.
    #[must_use]
    pub fn launches_entrypoint(&self) -> bool {
        self.launch_entrypoint
    }
}

/// What an image says with a configuration's words in place of its own.
fn overlaid(mut run: RunConfig, over: &ImageConfig) -> RunConfig {
    if !over.user.is_empty() {
        run.user.clone_from(&over.user);
    }
    if !over.working_dir.is_empty() {
        run.working_dir.clone_from(&over.working_dir);
    }
    if let Some(entrypoint) = &over.entrypoint {
        run.entrypoint.clone_from(entrypoint);
    }
    if let Some(cmd) = &over.cmd {
        run.cmd.clone_from(cmd);
    }
    if let Some(env) = &over.env {
        let entries = env.iter().map(|(name, value)| format!("{name}={value}"));
        run.env = entries.collect();
    }
    run
}

#[cfg(test)]
mod tests;
