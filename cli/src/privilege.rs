//! Options that say what a program may do in its guest.

use std::str::FromStr;

use clap::{Args, ValueEnum};
use flashpan::{Capability, Namespace, Privilege};

/// Options of every command that runs a program.
#[derive(Debug, Args)]
#[command(next_help_heading = "What the command may do in the guest")]
pub(crate) struct PrivilegeArgs {
    /// Do not confine the command: all capabilities but SYS_BOOT, all system calls,
    /// all devices, and the processes and mounts of the VM. For Docker in the guest,
    /// for mounting and for iptables. The host is no closer for it.
    #[arg(long)]
    privileged: bool,

    /// Give the command a capability of Linux besides, whoever it runs as, e.g.
    /// NET_ADMIN for `ip` or SYS_PTRACE for debuggers, or ALL; may be repeated.
    #[arg(long = "cap-add", value_name = "CAPABILITY", value_delimiter = ',')]
    cap_add: Vec<Capability>,

    /// Take a capability of Linux away from the command, e.g. NET_RAW, or ALL; may
    /// be repeated.
    #[arg(long = "cap-drop", value_name = "CAPABILITY", value_delimiter = ',')]
    cap_drop: Vec<Capability>,

    /// Let set-user-id programs (sudo, su) and capabilities of files take effect.
    #[arg(long)]
    allow_new_privileges: bool,

    /// Which processes the command sees: its own, or those of the VM, PID 1 and
    /// those of other commands among them. Otherwise its own, or with --privileged
    /// those of the VM.
    #[arg(long, value_enum, value_name = "WHOSE")]
    pid: Option<Processes>,

    /// As docker has it: seccomp=unconfined allows all system calls,
    /// systempaths=unconfined all of /proc, /sys and /dev, no-new-privileges=false is
    /// --allow-new-privileges; may be repeated.
    #[arg(long = "security-opt", value_name = "OPTION")]
    security: Vec<SecurityOption>,
}

/// Whose processes a command sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Processes {
    /// Its own.
    Private,
    /// All of the VM.
    Vm,
}

/// An option of docker's `--security-opt` that means something here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SecurityOption {
    AllSystemCalls,
    AllSystemPaths,
    NoNewPrivileges(bool),
}

impl FromStr for SecurityOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // Docker takes a colon too.
        let (name, value) = text.split_once(['=', ':']).unwrap_or((text, "true"));
        match (name, value) {
            ("seccomp", "unconfined") => Ok(Self::AllSystemCalls),
            ("systempaths", "unconfined") => Ok(Self::AllSystemPaths),
            ("no-new-privileges", "true") => Ok(Self::NoNewPrivileges(true)),
            ("no-new-privileges", "false") => Ok(Self::NoNewPrivileges(false)),
            _ => Err(format!(
                "{text:?} is none of seccomp=unconfined, systempaths=unconfined, \
                 no-new-privileges and no-new-privileges=false"
            )),
        }
    }
}

impl PrivilegeArgs {
    /// What they say together, of a VM whose programs are `otherwise` as privileged as
    /// this. Single switches go before --privileged.
    pub(crate) fn privilege(&self, otherwise: Privilege) -> Privilege {
        let mut privilege = match self.privileged {
            true => Privilege::privileged(),
            false => otherwise,
        };
        for capability in &self.cap_add {
            privilege = privilege.add_capability(*capability);
        }
        for capability in &self.cap_drop {
            privilege = privilege.drop_capability(*capability);
        }
        for option in &self.security {
            privilege = match option {
                SecurityOption::AllSystemCalls => privilege.system_call_filter(false),
                SecurityOption::AllSystemPaths => privilege.protect_system_paths(false),
                SecurityOption::NoNewPrivileges(on) => privilege.allow_new_privileges(!on),
            };
        }
        if self.allow_new_privileges {
            privilege = privilege.allow_new_privileges(true);
        }
        match self.pid {
            Some(Processes::Private) => privilege.processes(Namespace::Private),
            Some(Processes::Vm) => privilege.processes(Namespace::Vm),
            None => privilege,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        privilege: PrivilegeArgs,
    }

    fn privilege(words: &[&str]) -> Privilege {
        let all = ["flashpan"].iter().chain(words);
        Command::try_parse_from(all)
            .unwrap()
            .privilege
            .privilege(Privilege::confined())
    }

    #[test]
    fn options_mean_what_docker_means_by_them() {
        let confined = Privilege::confined;
        let named = |name: &str| name.parse::<Capability>().unwrap();
        for (words, expected) in [
            (&[][..], confined()),
            (&["--privileged"], Privilege::privileged()),
            (
                &["--cap-add", "NET_ADMIN,SYS_TIME", "--cap-drop=all"],
                confined()
                    .add_capability(named("NET_ADMIN"))
                    .add_capability(named("SYS_TIME"))
                    .drop_capability(Capability::ALL),
            ),
            (
                &["--allow-new-privileges"],
                confined().allow_new_privileges(true),
            ),
            (
                &["--security-opt", "no-new-privileges:false"],
                confined().allow_new_privileges(true),
            ),
            (
                &["--privileged", "--security-opt", "no-new-privileges"],
                Privilege::privileged().allow_new_privileges(false),
            ),
            (
                &[
                    "--security-opt=seccomp=unconfined",
                    "--security-opt",
                    "systempaths=unconfined",
                ],
                confined()
                    .system_call_filter(false)
                    .protect_system_paths(false),
            ),
            (&["--pid", "vm"], confined().processes(Namespace::Vm)),
            (
                &["--privileged", "--pid", "private"],
                Privilege::privileged().processes(Namespace::Private),
            ),
        ] {
            assert_eq!(privilege(words), expected, "{words:?}");
        }
    }

    #[test]
    fn what_means_nothing_is_refused() {
        for words in [
            ["--cap-add", "NET"],
            ["--cap-drop", ""],
            ["--pid", "host"],
            ["--security-opt", "apparmor=unconfined"],
            ["--security-opt", "seccomp=profile.json"],
        ] {
            let all = ["flashpan"].iter().chain(&words);
            Command::try_parse_from(all).unwrap_err();
        }
    }
}
