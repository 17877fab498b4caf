//! `cargo xtask demo`: the main job, from nothing to the output of a program
//! that ran in a guest.

use std::ffi::OsString;
use std::path::Path;

use anyhow::Result;

use crate::setup::{self, Guest};
use crate::step;

/// Seconds for one command in a guest; the lab is slow, and starts cold.
const PATIENCE: u32 = 300;

pub(crate) fn demo() -> Result<u8> {
    setup::setup()?;
    let guest = Guest::prepare(&[])?;
    let run = |root: &[OsString], command: &[&str]| {
        let mut words = vec![guest.flashpan.clone().into_os_string(), "run".into()];
        words.extend_from_slice(root);
        words.push("--".into());
        words.extend(command.iter().map(OsString::from));
        let title = title(root, command);
        step::run(&title, &mut guest.command(PATIENCE, words)?)
    };
    run(&[], &["uname", "-a"])?;
    let debian = ["--rootfs".into(), guest.debian.clone().into_os_string()];
    let greet = ". /etc/os-release; echo $PRETTY_NAME on $(uname -sr)";
    run(&debian, &["sh", "-c", greet])?;
    run(&debian, &["python3", "-c", "print(6*7)"])?;
    step::say("done: those programs ran in micro-VMs");
    Ok(0)
}

/// The command line as one would type it, the root image by its name alone.
fn title(root: &[OsString], command: &[&str]) -> String {
    let mut words = vec!["flashpan run".to_owned()];
    for word in root {
        let name = Path::new(word).file_name().unwrap_or(word);
        words.push(name.display().to_string());
    }
    words.push("--".to_owned());
    for word in command {
        let plain = word
            .chars()
            .all(|letter| letter.is_ascii_alphanumeric() || "-_./".contains(letter));
        words.push(if plain {
            (*word).to_owned()
        } else {
            format!("'{word}'")
        });
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_can_be_typed() {
        let root = ["--rootfs".into(), "/home/me/debian.erofs".into()];
        let title = title(&root, &["python3", "-c", "print(6*7)"]);
        assert_eq!(
            title,
            "flashpan run --rootfs debian.erofs -- python3 -c 'print(6*7)'"
        );
    }
}
