//! Whether there is room on the disk, told before the work and not in the middle
//! of it by a linker.

use std::env;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use flashpan_lab::cache_directory;

use crate::step;

/// What everything takes, of which most is builds in `target`.
const FROM_NOTHING: u64 = 9 << 30;
/// What a run takes on top of what earlier ones have left.
const AGAIN: u64 = 1 << 30;

/// Fails if a disk that is written to is too full.
pub(crate) fn check() -> Result<()> {
    // We are in a folder of the build ourselves, wherever cargo has put it.
    let ourselves = env::current_exe().context("cannot tell which program this is")?;
    let debug = ourselves.parent().context("this program is nowhere")?;
    let built = debug.with_file_name("release").is_dir();
    enough(debug, if built { AGAIN } else { FROM_NOTHING })?;
    let cache = cache_directory()?;
    match cache.ancestors().find(|path| path.is_dir()) {
        Some(there) => enough(there, AGAIN),
        None => Ok(()),
    }
}

fn enough(directory: &Path, need: u64) -> Result<()> {
    let mut df = Command::new("df");
    df.args(["--output=avail", "--block-size=1"]).arg(directory);
    let free = free(&step::read(&mut df)?)
        .with_context(|| format!("`df` does not tell what is free in {}", directory.display()))?;
    if free < need {
        bail!(
            "{} has {} MiB free, and this takes up to {} MiB: make room there, or set \
             CARGO_TARGET_DIR and XDG_CACHE_HOME to where there is some",
            directory.display(),
            free >> 20,
            need >> 20,
        );
    }
    Ok(())
}

/// The number under the heading.
fn free(output: &str) -> Option<u64> {
    output.lines().nth(1)?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_said_to_be_full() {
        assert_eq!(free("     Avail\n 450887680\n"), Some(450_887_680));
        assert_eq!(free(""), None);
        let here = step::root();
        enough(&here, 0).unwrap();
        let error = enough(&here, u64::MAX).unwrap_err().to_string();
        assert!(error.contains("make room"), "{error}");
    }
}
