//! The plugin that mends QEMU's emulation of a host with KVM (`mend.c` says what is wrong).

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fs, process};

use anyhow::{Context, Result};

use crate::packages;

const SOURCE: &str = include_str!("mend.c");

/// The plugin's file, compiled if it is not in the cache yet.
pub(crate) fn plugin(cache: &Path) -> Result<PathBuf> {
    let mut hasher = DefaultHasher::new();
    SOURCE.hash(&mut hasher);
    let name = format!("mend-{:016x}", hasher.finish());
    let plugin = cache.join(&name).with_extension("so");
    if !plugin.exists() {
        // Beside its place first: another lab may be about to start.
        let source = cache.join(format!("{name}.{}.c", process::id()));
        let object = source.with_extension("so");
        fs::write(&source, SOURCE)?;
        let mut cc = Command::new("cc");
        cc.args(["-O2", "-shared", "-fPIC", "-Wall", "-Wextra", "-o"])
            .args([&object, &source]);
        packages::run(&mut cc).context("cannot compile the lab's plugin for QEMU")?;
        fs::rename(&object, &plugin)?;
        fs::remove_file(&source)?;
    }
    Ok(plugin)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The very QEMU of the lab takes it, and is mended: it says so if not.
    #[test]
    fn qemu_takes_the_plugin() {
        let cache = tempfile::tempdir().unwrap();
        let plugin = plugin(cache.path()).unwrap();
        assert_eq!(fs::read_dir(cache.path()).unwrap().count(), 1);
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args([
            "-nodefaults",
            "-display",
            "none",
            "-M",
            "none",
            "-accel",
            "tcg",
        ]);
        qemu.args(["-monitor", "stdio", "-plugin"]).arg(&plugin);
        let commands = cache.path().join("commands");
        fs::write(&commands, "quit\n").unwrap();
        qemu.stdin(fs::File::open(&commands).unwrap());
        let output = qemu.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    }
}
