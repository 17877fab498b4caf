//! Credential helpers: programs that keep credentials for docker and podman.
//! `docker-credential-NAME get` reads the registry on standard input and writes
//! JSON (docker-credential-helpers, "Development").

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use zeroize::Zeroizing;

use super::Login;
use super::file::TOKEN_USER;
use crate::child;
use crate::registry::secret::Secret;

/// The most that a helper may say, in bytes.
const LARGEST: u64 = 64 << 10;

/// What helpers say when they have nothing, and fail.
const NOT_FOUND: &str = "credentials not found";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: Secret,
}

/// Asks the helper `name` for what it has for `server`.
pub(super) async fn get(
    name: &str,
    server: &str,
    path: Option<&OsStr>,
    deadline: Duration,
) -> Result<Option<Login>, String> {
    let named = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !name.chars().all(named) {
        return Err("the name of a credential helper has a slash or worse in it".to_owned());
    }
    let program = format!("docker-credential-{name}");
    let failed = |why: &str| format!("credential helper {program}: {why}");
    let found = find(&program, path).ok_or_else(|| failed("it is not in PATH"))?;

    let asked = tokio::time::timeout(deadline, ask(&found, server)).await;
    let (output, succeeded) = asked
        .map_err(|_| failed(&format!("no answer within {} s", deadline.as_secs_f32())))?
        .map_err(|error| failed(&error.to_string()))?;
    if output.len() as u64 > LARGEST {
        return Err(failed("its answer is longer than 64 KiB"));
    }
    if !succeeded {
        // What it says may be anything; it is not repeated.
        let text = String::from_utf8_lossy(&output);
        return if text.contains(NOT_FOUND) {
            Ok(None)
        } else {
            Err(failed("it failed"))
        };
    }
    let answer: Answer =
        serde_json::from_slice(&output).map_err(|_| failed("its answer is not as agreed"))?;
    if answer.secret.expose().is_empty() {
        return Ok(None);
    }
    Ok(Some(if answer.username == TOKEN_USER {
        Login::Identity(answer.secret)
    } else {
        Login::Password {
            user: answer.username,
            password: answer.secret,
        }
    }))
}

/// What the program says, one byte more than allowed at most, and whether it
/// succeeded. Dropped before it ends, the program is killed.
async fn ask(program: &PathBuf, server: &str) -> std::io::Result<(Zeroizing<Vec<u8>>, bool)> {
    let mut command = Command::new(program);
    command
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    let mut child = child::start(|| command.spawn())?;
    if let Some(mut input) = child.stdin.take() {
        // A helper that reads nothing says by its answer what it thinks.
        let _ = input.write_all(server.as_bytes()).await;
    }
    let mut output = Zeroizing::new(Vec::new());
    if let Some(stdout) = child.stdout.take() {
        stdout.take(LARGEST + 1).read_to_end(&mut output).await?;
    }
    if output.len() as u64 > LARGEST {
        return Ok((output, false));
    }
    Ok((output, child.wait().await?.success()))
}

fn find(program: &str, path: Option<&OsStr>) -> Option<PathBuf> {
    std::env::split_paths(path?)
        .filter(|directory| directory.is_absolute())
        .map(|directory| directory.join(program))
        .find(|file| {
            let metadata = file.metadata();
            metadata.is_ok_and(|it| it.is_file() && it.permissions().mode() & 0o111 != 0)
        })
}
