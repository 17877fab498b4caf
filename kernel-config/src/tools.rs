//! What a kernel build needs of the machine, checked before anything is unpacked.

use std::fmt;
use std::io::Write;
use std::process::{Command, Stdio};

/// Programs, by the Debian package that has them. `make` of the kernel would
/// find each of them missing one after the other, minutes apart.
const PROGRAMS: [(&str, &str); 8] = [
    ("make", "make"),
    ("gcc", "gcc"),
    ("ld", "binutils"),
    ("flex", "flex"),
    ("bison", "bison"),
    ("bc", "bc"),
    ("perl", "perl"),
    ("tar", "tar"),
];

/// Headers, by package: the C library for the build's own programs, libelf for
/// objtool, which x86 needs for static branches.
const HEADERS: [(&str, &str); 2] = [("stdlib.h", "libc6-dev"), ("gelf.h", "libelf-dev")];

/// Something that is not there: a program, a header, the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingTool {
    /// `flex`, `gelf.h`.
    pub what: String,
    /// The Debian package that has it.
    pub package: &'static str,
}

/// Everything that is missing, in one message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct MissingTools(pub Vec<MissingTool>);

impl MissingTools {
    /// The Debian packages to install, each once.
    #[must_use]
    pub fn packages(&self) -> Vec<&'static str> {
        let mut packages = Vec::new();
        for tool in &self.0 {
            if !packages.contains(&tool.package) {
                packages.push(tool.package);
            }
        }
        packages
    }

    /// With one more.
    pub(crate) fn and(mut self, tool: MissingTool) -> Self {
        self.0.push(tool);
        self
    }
}

impl fmt::Display for MissingTools {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what: Vec<_> = self.0.iter().map(|tool| tool.what.as_str()).collect();
        write!(
            f,
            "building a kernel needs {}: apt-get install {}",
            what.join(", "),
            self.packages().join(" ")
        )
    }
}

/// The programs whose version is part of what a kernel is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Toolchain {
    /// First line of `gcc --version`.
    pub compiler: String,
    /// First line of `ld --version`.
    pub linker: String,
}

impl Toolchain {
    /// Checks that everything is installed, the programs for this source (`xz`,
    /// `curl`) included.
    ///
    /// # Errors
    /// Names all that is missing, with the packages to install.
    pub fn detect(source: &[(&str, &'static str)]) -> Result<Self, MissingTools> {
        let mut missing = Vec::new();
        for (program, package) in PROGRAMS.into_iter().chain(source.iter().copied()) {
            if version(program).is_none() {
                missing.push(MissingTool {
                    what: program.to_owned(),
                    package,
                });
            }
        }
        // Without a compiler nothing can be said about headers, and libc6-dev is
        // only recommended by gcc's package: then name them all.
        for (header, package) in HEADERS {
            if !has_header(header) {
                missing.push(MissingTool {
                    what: header.to_owned(),
                    package,
                });
            }
        }
        match (version("gcc"), version("ld")) {
            (Some(compiler), Some(linker)) if missing.is_empty() => Ok(Self { compiler, linker }),
            _ => Err(MissingTools(missing)),
        }
    }
}

/// First line of `program --version`, or `None` if it cannot be run.
fn version(program: &str) -> Option<String> {
    let output = Command::new(program)
        .arg("--version")
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    Some(
        text.lines()
            .find(|line| !line.trim().is_empty())
            .unwrap_or(program)
            .trim()
            .to_owned(),
    )
}

/// Whether the compiler finds a header.
fn has_header(header: &str) -> bool {
    let probe = || {
        let mut child = Command::new("gcc")
            .args(["-E", "-x", "c", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            writeln!(stdin, "#include <{header}>")?;
        }
        child.wait()
    };
    probe().is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_is_missing_is_one_message_with_one_command() {
        let tool = |what: &str, package| MissingTool {
            what: what.into(),
            package,
        };
        let missing = MissingTools(vec![tool("flex", "flex"), tool("gelf.h", "libelf-dev")]);
        assert_eq!(
            missing.to_string(),
            "building a kernel needs flex, gelf.h: apt-get install flex libelf-dev"
        );
    }

    #[test]
    fn a_program_or_header_that_is_not_there_is_noticed() {
        assert_eq!(version("flashpan-no-such-program"), None);
        assert!(version("sh").is_some());
        assert!(!has_header("flashpan-no-such-header.h"));
        let error = Toolchain::detect(&[("flashpan-unpacker", "unpack-utils")]).unwrap_err();
        assert!(
            error.0.iter().any(|tool| tool.package == "unpack-utils"),
            "{error}"
        );
    }
}
