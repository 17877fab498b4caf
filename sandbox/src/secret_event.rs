//! What is told of secrets.

use serde::{Deserialize, Serialize};

/// What became of a secret while its VM runs. No value is in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SecretActivity {
    /// The secret's name.
    pub secret: String,
    /// How it is now.
    pub state: SecretState,
    /// Why it keeps its value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// How a secret is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum SecretState {
    /// Its source has another value, which it has now.
    Refreshed,
    /// Its source is there again, with the value that it has.
    Followed,
    /// Its source is gone or has no value; it keeps the one that it had.
    Kept,
    /// Somebody gave it a value ([`Sandbox::set_secret`](crate::Sandbox::set_secret)).
    Set,
    /// Somebody took its value away ([`Sandbox::revoke_secret`](crate::Sandbox::revoke_secret)).
    Revoked,
}
