//! The commands of a build: tar and make, always in the same environment.

use std::path::Path;
use std::process::Command;

/// Variables that a build may see. Everything else of the caller's environment
/// (MAKEFLAGS, KCFLAGS, ARCH, CROSS_COMPILE) would change the kernel unseen.
const PASSED_ON: [&str; 3] = ["PATH", "HOME", "TMPDIR"];

/// What would otherwise make two builds of the same inputs differ.
const FIXED: [(&str, &str); 6] = [
    ("LC_ALL", "C"),
    ("KBUILD_BUILD_TIMESTAMP", "Thu Jan  1 00:00:00 UTC 1970"),
    ("KBUILD_BUILD_USER", "flashpan"),
    ("KBUILD_BUILD_HOST", "flashpan"),
    ("KBUILD_BUILD_VERSION", "1"),
    ("SOURCE_DATE_EPOCH", "0"),
];

/// A command with the environment of a build.
fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env_clear().envs(FIXED);
    for name in PASSED_ON {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command
}

/// Unpacks `tarball` below `directory`, without its top-level directory; prints a
/// line per file.
pub(crate) fn unpack(tarball: &Path, directory: &Path) -> Command {
    let mut tar = command("tar");
    tar.args([
        "--extract",
        "--verbose",
        "--no-same-owner",
        "--strip-components=1",
        "--file",
    ]);
    tar.arg(tarball).arg("--directory").arg(directory);
    tar
}

/// `make` in `source`, with everything that it writes in `output`.
fn make(source: &Path, output: &Path) -> Command {
    let mut make = command("make");
    let mut out = std::ffi::OsString::from("O=");
    out.push(output);
    make.arg("--directory")
        .arg(source)
        .arg(out)
        .arg("ARCH=x86_64");
    make
}

/// Resolves the requests in the file `requests`: what they do not name is off.
pub(crate) fn configure(source: &Path, output: &Path, requests: &Path) -> Command {
    let mut make = make(source, output);
    make.env("KCONFIG_ALLCONFIG", requests).arg("allnoconfig");
    make
}

/// Compiles and links `vmlinux` with `jobs` jobs.
pub(crate) fn compile(source: &Path, output: &Path, jobs: u32) -> Command {
    let mut make = make(source, output);
    make.arg(format!("-j{jobs}")).arg("vmlinux");
    make
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_of_the_caller_does_not_reach_make() {
        let make = compile(Path::new("/src"), Path::new("/out"), 3);
        let names: Vec<_> = make
            .get_envs()
            .map(|(name, _)| name.to_str().unwrap())
            .collect();
        assert!(names.contains(&"KBUILD_BUILD_TIMESTAMP"));
        assert!(names.iter().all(|name| {
            PASSED_ON.contains(name) || FIXED.iter().any(|(fixed, _)| fixed == name)
        }));
        let arguments: Vec<_> = make.get_args().map(|arg| arg.to_str().unwrap()).collect();
        assert_eq!(
            arguments,
            [
                "--directory",
                "/src",
                "O=/out",
                "ARCH=x86_64",
                "-j3",
                "vmlinux"
            ]
        );
    }
}
