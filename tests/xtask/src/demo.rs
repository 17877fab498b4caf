//! `cargo xtask demo`: the main job, from nothing to the output of a program
//! that ran in a guest.

use std::ffi::OsString;

use anyhow::Result;

use crate::setup::{self, Guest};
use crate::step;

/// Seconds for one command in a guest; the lab is slow, and starts cold.
const PATIENCE: u32 = 300;

pub(crate) fn demo() -> Result<u8> {
    setup::setup()?;
    let guest = Guest::prepare()?;
    let debian = guest.debian.as_os_str();
    let run = |root: &[OsString], command: &[&str]| {
        let mut words = vec![guest.flashpan.clone().into_os_string(), "run".into()];
        words.extend_from_slice(root);
        words.push("--".into());
        words.extend(command.iter().map(OsString::from));
        let title = format!("flashpan run … -- {}", command.join(" "));
        step::run(&title, &mut guest.command(PATIENCE, words)?)
    };
    run(&[], &["uname", "-a"])?;
    run(
        &["--rootfs".into(), debian.into()],
        &["cat", "/etc/os-release"],
    )?;
    run(
        &["--rootfs".into(), debian.into()],
        &[
            "python3",
            "-c",
            "import platform; print(6 * 7, 'says Python on', platform.release())",
        ],
    )?;
    step::say("done: those programs ran in micro-VMs");
    Ok(0)
}
