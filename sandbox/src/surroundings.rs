//! What the programs of a VM have in common.

use std::sync::Arc;

use crate::exec::ExecOptions;
use crate::launch::ExecDefaults;
use crate::sandbox::Sandbox;
use crate::state::Programs;

/// What a program gets that its caller does not say.
#[derive(Debug, Clone, Default)]
pub(crate) enum Surroundings {
    /// Nothing: the VM was made by hand.
    #[default]
    None,
    /// What the configuration and the image say.
    Launched(Arc<ExecDefaults>),
    /// What was written down when the VM was made.
    Kept(Arc<Programs>),
}

impl Surroundings {
    /// The program with all that its caller left open.
    pub(crate) fn around(&self, program: ExecOptions) -> ExecOptions {
        match self {
            _ if program.is_bare() => program,
            Self::None => program,
            Self::Launched(defaults) => defaults.apply_to(program),
            Self::Kept(programs) => programs.apply_to(program),
        }
    }
}

impl Sandbox {
    /// How programs of the VM are run unless the caller says otherwise, if it was made
    /// from a configuration by this process: for the image's own command with other
    /// arguments ([`ExecDefaults::program`]). [`Sandbox::exec`] obeys it of itself.
    #[must_use]
    pub fn exec_defaults(&self) -> Option<&ExecDefaults> {
        match &self.surroundings {
            Surroundings::Launched(defaults) => Some(defaults),
            Surroundings::None | Surroundings::Kept(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::privilege::Privilege;

    fn frame(options: ExecOptions) -> Vec<u8> {
        options.into_frame().unwrap()
    }

    #[test]
    fn a_vm_of_somebody_else_s_has_what_was_written_down() {
        let common = ExecOptions::argv(["x"])
            .env("A", "1")
            .env("B", "2")
            .working_dir("/w")
            .make_working_dir(true)
            .user("7")
            .privilege(Privilege::privileged());
        let kept = Surroundings::Kept(Arc::new(Programs::of(&common).unwrap()));
        let plain = ExecOptions::argv(["x"]);
        assert_eq!(frame(kept.around(plain.clone())), frame(common.clone()));
        // What is said counts; a directory of one's own is not made.
        let own = plain.clone().user("8").working_dir("/own");
        let expected = common.clone().user("8").working_dir("/own");
        assert_eq!(
            frame(kept.around(own)),
            frame(expected.make_working_dir(false))
        );
        assert_eq!(
            frame(kept.around(plain.clone().bare())),
            frame(plain.clone())
        );
        assert_eq!(
            frame(Surroundings::None.around(plain.clone())),
            frame(plain)
        );
        // Nothing is added to what comes from there.
        let Surroundings::Kept(programs) = &kept else {
            panic!("{kept:?}")
        };
        let theirs = programs.options(["x"]).user("9");
        assert_eq!(frame(kept.around(theirs)), frame(common.user("9")));
    }
}
