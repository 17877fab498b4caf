//! Where flashpan's own programs are.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// A program that belongs to flashpan.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Program {
    /// Its file name.
    pub(crate) name: &'static str,
    /// The environment variable that overrides where it is.
    pub(crate) variable: &'static str,
}

/// The VMM.
pub(crate) const VMM: Program = Program {
    name: "flashpan-vmm",
    variable: "FLASHPAN_VMM",
};

/// The guest's PID 1.
pub(crate) const INIT: Program = Program {
    name: "flashpan-guest-init",
    variable: "FLASHPAN_GUEST_INIT",
};

/// Finds a program: where its variable says, else beside the running program,
/// else in `../libexec/flashpan` seen from there.
pub(crate) fn find(program: Program) -> Result<PathBuf> {
    let not_found = |why: String| Error::ProgramNotFound {
        name: program.name,
        variable: program.variable,
        why,
    };
    if let Some(path) = named(env::var_os(program.variable)) {
        return if path.is_file() {
            Ok(path)
        } else {
            Err(not_found(format!(
                "{} names {}, which is no file",
                program.variable,
                path.display()
            )))
        };
    }
    let exe = env::current_exe()
        .map_err(|e| not_found(format!("the running program's own path is unknown ({e})")))?;
    let candidates = candidates(&exe, program.name);
    candidates
        .iter()
        .find(|path| path.is_file())
        .cloned()
        .ok_or_else(|| {
            let tried: Vec<_> = candidates.iter().map(|p| p.display().to_string()).collect();
            not_found(format!("it is not at {}", tried.join(" nor at ")))
        })
}

/// The path that a variable's value names; empty, it is as if it were not set.
fn named(value: Option<OsString>) -> Option<PathBuf> {
    value.filter(|value| !value.is_empty()).map(PathBuf::from)
}

fn candidates(exe: &Path, name: &str) -> Vec<PathBuf> {
    let beside = exe.parent().map(|dir| dir.join(name));
    let libexec = exe
        .parent()
        .and_then(Path::parent)
        .map(|prefix| prefix.join("libexec/flashpan").join(name));
    beside.into_iter().chain(libexec).collect()
}

/// Path of the VMM program that [`crate::Sandbox`] would start.
///
/// # Errors
/// [`Error::ProgramNotFound`].
pub fn vmm_program() -> Result<PathBuf> {
    find(VMM)
}

/// Path of the program that guests get as their PID 1.
///
/// # Errors
/// [`Error::ProgramNotFound`].
pub fn guest_init_program() -> Result<PathBuf> {
    find(INIT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_variable_names_nothing() {
        assert_eq!(named(None), None);
        assert_eq!(named(Some("".into())), None);
        assert_eq!(named(Some("vmm".into())), Some(PathBuf::from("vmm")));
    }

    #[test]
    fn programs_are_looked_for_beside_and_in_libexec() {
        assert_eq!(
            candidates(Path::new("/opt/fp/bin/flashpan"), "flashpan-vmm"),
            [
                Path::new("/opt/fp/bin/flashpan-vmm"),
                Path::new("/opt/fp/libexec/flashpan/flashpan-vmm")
            ]
        );
    }
}
