//! The command of a VM, and what all its programs have in common.

use std::ffi::OsStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::exec::ExecOptions;
use crate::privilege::Privilege;

/// The command of a VM, and what holds for every program in it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Programs {
    /// The command, which begins when the VM is started; none if empty.
    pub command: Vec<String>,
    /// Variables.
    pub env: Vec<(String, String)>,
    /// The directory that programs begin in; `/` if empty.
    pub working_dir: String,
    /// Whether that directory is made if it is missing.
    pub make_working_dir: bool,
    /// Who they run as; root if empty.
    pub user: String,
    /// What they may do.
    pub privilege: Privilege,
    /// The signal that asks the command to end when the VM is stopped; SIGTERM if 0.
    pub stop_signal: i32,
}

/// A word of a command or its surroundings cannot be kept: records are text.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0} is not UTF-8, and what is kept of a VM is")]
pub struct NotText(String);

impl Programs {
    /// A command to keep, and its surroundings for all others.
    ///
    /// # Errors
    /// Something of it is not UTF-8. Values of variables are in no error.
    pub fn of(command: &ExecOptions) -> Result<Self, NotText> {
        let text = |word: &OsStr, what: &dyn Fn() -> String| {
            let text = word.to_str().map(str::to_owned);
            text.ok_or_else(|| NotText(what()))
        };
        let words = command.words();
        let words = words
            .iter()
            .enumerate()
            .map(|(index, word)| text(word, &|| format!("argument {index}, {},", word.display())));
        let env = command.variables().map(|(name, value)| {
            let name = text(name, &|| format!("the variable {}", name.display()))?;
            // Its value is nobody's business.
            let value = text(value, &|| format!("the value of {name}"))?;
            Ok((name, value))
        });
        let directory = command.directory().unwrap_or_default();
        Ok(Self {
            command: words.collect::<Result<_, _>>()?,
            env: env.collect::<Result<_, _>>()?,
            working_dir: text(directory, &|| {
                format!("the working directory {}", directory.display())
            })?,
            make_working_dir: command.makes_working_dir(),
            user: command.user_or_root().to_owned(),
            privilege: command.privilege_or_confined(),
            stop_signal: 0,
        })
    }

    /// The VM's own command, if it has one.
    #[must_use]
    pub fn own_command(&self) -> Option<ExecOptions> {
        let has_one = !self.command.is_empty();
        has_one.then(|| self.options(&self.command))
    }

    /// Another program, with what all have in common; [`crate::Sandbox::exec`] adds
    /// nothing to it ([`ExecOptions::bare`]).
    pub fn options<I>(&self, argv: I) -> ExecOptions
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        self.apply_to(ExecOptions::argv(argv))
    }

    /// A program with what all have in common where it says nothing else itself.
    pub(crate) fn apply_to(&self, options: ExecOptions) -> ExecOptions {
        let mut options = options.default_privilege(&self.privilege).bare();
        // The last of several counts, which comes first here.
        for (name, value) in self.env.iter().rev() {
            options = options.default_env(name, value);
        }
        if !self.working_dir.is_empty() {
            options = options.default_working_dir(&self.working_dir, self.make_working_dir);
        }
        if !self.user.is_empty() {
            options = options.default_user(&self.user);
        }
        options
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    #[test]
    fn what_is_kept_comes_back_as_it_was() {
        let command = ExecOptions::argv(["make", "-j4"])
            .env("LANG", "C")
            .env("A", "1")
            .working_dir("/src")
            .make_working_dir(true)
            .user("1:2")
            .privilege(Privilege::privileged());
        let kept = Programs::of(&command).unwrap();
        let json = serde_json::to_string(&kept).unwrap();
        let kept: Programs = serde_json::from_str(&json).unwrap();
        let frame = |options: ExecOptions| options.into_frame().unwrap();
        assert_eq!(frame(kept.own_command().unwrap()), frame(command));
        // What was kept before programs were confined is confined.
        let old: Programs = serde_json::from_str(r#"{"command":["true"]}"#).unwrap();
        assert_eq!(old.privilege, Privilege::confined());
    }

    #[test]
    fn what_is_no_text_is_named_and_values_are_not_shown() {
        let bad = || OsString::from_vec(b"s\xffecret".to_vec());
        let refused = |options: ExecOptions| Programs::of(&options).unwrap_err().to_string();
        assert!(refused(ExecOptions::argv([bad()])).starts_with("argument 0, s"));
        let of_value = refused(ExecOptions::argv(["x"]).env("TOKEN", bad()));
        assert_eq!(
            of_value,
            "the value of TOKEN is not UTF-8, and what is kept of a VM is"
        );
        let of_directory = refused(ExecOptions::argv(["x"]).working_dir(bad()));
        assert!(of_directory.starts_with("the working directory s"));
    }
}
