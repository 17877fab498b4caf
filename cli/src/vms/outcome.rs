//! How a command says to which VMs it has done what it was asked for.

use clap::Args;
use serde::Serialize;

use crate::failure::{Failure, print, print_json_line};

/// How it is said.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct OutcomeArgs {
    /// Say what was done as JSON, one VM a line.
    #[arg(long)]
    json: bool,
}

/// A VM to which something was done.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Outcome<'a> {
    pub(crate) id: &'a str,
    /// Its name, if it has one and that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<&'a str>,
    /// Status of its command, where that was waited for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) exit_code: Option<u8>,
}

impl OutcomeArgs {
    pub(crate) fn is_json(self) -> bool {
        self.json
    }

    /// Says it at once; in words `text`.
    pub(crate) fn say(self, outcome: Outcome<'_>, text: &str) -> Result<(), Failure> {
        match self.json {
            true => print_json_line(&outcome),
            false => print(&format!("{text}\n")),
        }
    }
}
