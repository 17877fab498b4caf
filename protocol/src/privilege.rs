//! What a program may do in its guest beyond what its user may, and what it sees
//! of the guest.
//!
//! The supervisor decides it for each program ([`Confinement`] in
//! [`crate::agent::ExecRequest`]); the agent does as it is told.

use serde::{Deserialize, Serialize};

/// A set of Linux capabilities: bit *n* is capability *n* of
/// `linux/capability.h`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Capabilities(pub u64);

/// The names of the capabilities in the order of their numbers, without `CAP_`.
pub const CAPABILITY_NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

impl Capabilities {
    /// None.
    pub const NONE: Self = Self(0);
    /// All, those of later kernels too.
    pub const ALL: Self = Self(u64::MAX);

    /// Change owners of files.
    pub const CHOWN: Self = Self(1);
    /// Read and write any file.
    pub const DAC_OVERRIDE: Self = Self(1 << 1);
    /// Read any file, and open files by handles.
    pub const DAC_READ_SEARCH: Self = Self(1 << 2);
    /// Be the owner of any file.
    pub const FOWNER: Self = Self(1 << 3);
    /// Keep set-id bits.
    pub const FSETID: Self = Self(1 << 4);
    /// Signal any process.
    pub const KILL: Self = Self(1 << 5);
    /// Change groups.
    pub const SETGID: Self = Self(1 << 6);
    /// Change the user.
    pub const SETUID: Self = Self(1 << 7);
    /// Give capabilities away.
    pub const SETPCAP: Self = Self(1 << 8);
    /// Listen on ports below 1024.
    pub const NET_BIND_SERVICE: Self = Self(1 << 10);
    /// Raw and packet sockets.
    pub const NET_RAW: Self = Self(1 << 13);
    /// Load kernel modules.
    pub const SYS_MODULE: Self = Self(1 << 16);
    /// Ports and memory of the machine.
    pub const SYS_RAWIO: Self = Self(1 << 17);
    /// Change the root directory.
    pub const SYS_CHROOT: Self = Self(1 << 18);
    /// Trace any process.
    pub const SYS_PTRACE: Self = Self(1 << 19);
    /// Mount, namespaces, and much else.
    pub const SYS_ADMIN: Self = Self(1 << 21);
    /// Restart the machine.
    pub const SYS_BOOT: Self = Self(1 << 22);
    /// Write to the kernel's audit log.
    pub const AUDIT_WRITE: Self = Self(1 << 29);
    /// Set capabilities of files.
    pub const SETFCAP: Self = Self(1 << 31);
    /// Read the kernel's log.
    pub const SYSLOG: Self = Self(1 << 34);
    /// Performance counters.
    pub const PERFMON: Self = Self(1 << 38);
    /// Load BPF programs.
    pub const BPF: Self = Self(1 << 39);

    /// What a confined program has. `docs/privilege.md` says why of each one, and
    /// why of each that is not there.
    pub const CONFINED: Self = Self::CHOWN
        .with(Self::DAC_OVERRIDE)
        .with(Self::FOWNER)
        .with(Self::FSETID)
        .with(Self::KILL)
        .with(Self::SETGID)
        .with(Self::SETUID)
        .with(Self::SETPCAP)
        .with(Self::NET_BIND_SERVICE)
        .with(Self::NET_RAW)
        .with(Self::SYS_CHROOT)
        .with(Self::AUDIT_WRITE)
        .with(Self::SETFCAP);

    /// These and those.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// These without those.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether any of those is among these.
    #[must_use]
    pub const fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The capability of this name, in any case, with or without `CAP_`; `ALL` are
    /// all.
    ///
    /// ```
    /// use flashpan_protocol::privilege::Capabilities;
    ///
    /// assert_eq!(Capabilities::named("cap_net_raw"), Some(Capabilities::NET_RAW));
    /// assert_eq!(Capabilities::named("NET_COOKED"), None);
    /// ```
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let name = name.to_ascii_uppercase();
        let name = name.strip_prefix("CAP_").unwrap_or(&name);
        if name == "ALL" {
            return Some(Self::ALL);
        }
        let index = CAPABILITY_NAMES.iter().position(|known| *known == name)?;
        Some(Self(1 << index))
    }

    /// The names of those that have one.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        let named = CAPABILITY_NAMES.iter().enumerate();
        named.filter_map(move |(bit, name)| (self.0 >> bit & 1 == 1).then_some(*name))
    }
}

/// Whose namespace a program is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Scope {
    /// One of its own.
    Private,
    /// That of the agent, with every program that is not in one of its own.
    Vm,
}

/// What a program may do in its guest, and what it sees of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Confinement {
    /// The capabilities that the program and its children can have at all (the
    /// bounding set), and that it has if it is root.
    pub capabilities: Capabilities,
    /// Those that it has if it is not root (the ambient and the inheritable set).
    /// Those that are not in `capabilities` do not count.
    pub ambient: Capabilities,
    /// Whether set-user-id programs and capabilities of files give it nothing
    /// (`no_new_privs`).
    pub no_new_privileges: bool,
    /// Whether system calls are refused that ordinary programs do without, as far
    /// as `capabilities` do not ask for them.
    pub system_call_filter: bool,
    /// Whether it has only harmless devices in `/dev`, cannot write to `/sys` and
    /// the settings of the kernel in `/proc`, and does not see what is not for it
    /// there. Needs private mounts.
    pub system_paths: bool,
    /// Which processes it sees and can signal.
    pub processes: Scope,
    /// Which file systems it sees, and who sees what it mounts. Programs with
    /// private processes have private mounts, whatever this says.
    pub mounts: Scope,
}

impl Confinement {
    /// That of programs unless somebody says otherwise.
    pub const CONFINED: Self = Self {
        capabilities: Capabilities::CONFINED,
        ambient: Capabilities::NONE,
        no_new_privileges: true,
        system_call_filter: true,
        system_paths: true,
        processes: Scope::Private,
        mounts: Scope::Private,
    };

    /// None at all, but for one capability: a restart of the machine around PID 1
    /// would lose what is not written yet.
    pub const PRIVILEGED: Self = Self {
        capabilities: Capabilities::ALL.without(Capabilities::SYS_BOOT),
        ambient: Capabilities::NONE,
        no_new_privileges: false,
        system_call_filter: false,
        system_paths: false,
        processes: Scope::Vm,
        mounts: Scope::Vm,
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stands_for_its_number() {
        for (name, number) in [
            ("CHOWN", 0),
            ("SYS_ADMIN", 21),
            ("SYS_BOOT", 22),
            ("SETFCAP", 31),
            ("CHECKPOINT_RESTORE", 40),
        ] {
            let capability = Some(Capabilities(1 << number));
            assert_eq!(Capabilities::named(name), capability, "{name}");
            assert_eq!(Capabilities::named(&format!("CAP_{name}")), capability);
            assert_eq!(Capabilities::named(&name.to_lowercase()), capability);
        }
        for name in ["", "CAP_", "SYS", "CAP_CAP_CHOWN", "CHOWN "] {
            assert_eq!(Capabilities::named(name), None, "{name:?}");
        }
        assert_eq!(Capabilities::named("all"), Some(Capabilities::ALL));
    }

    #[test]
    fn constants_have_the_numbers_of_their_names() {
        let all = [
            ("CHOWN", Capabilities::CHOWN),
            ("DAC_OVERRIDE", Capabilities::DAC_OVERRIDE),
            ("DAC_READ_SEARCH", Capabilities::DAC_READ_SEARCH),
            ("FOWNER", Capabilities::FOWNER),
            ("FSETID", Capabilities::FSETID),
            ("KILL", Capabilities::KILL),
            ("SETGID", Capabilities::SETGID),
            ("SETUID", Capabilities::SETUID),
            ("SETPCAP", Capabilities::SETPCAP),
            ("NET_BIND_SERVICE", Capabilities::NET_BIND_SERVICE),
            ("NET_RAW", Capabilities::NET_RAW),
            ("SYS_MODULE", Capabilities::SYS_MODULE),
            ("SYS_RAWIO", Capabilities::SYS_RAWIO),
            ("SYS_CHROOT", Capabilities::SYS_CHROOT),
            ("SYS_PTRACE", Capabilities::SYS_PTRACE),
            ("SYS_ADMIN", Capabilities::SYS_ADMIN),
            ("SYS_BOOT", Capabilities::SYS_BOOT),
            ("AUDIT_WRITE", Capabilities::AUDIT_WRITE),
            ("SETFCAP", Capabilities::SETFCAP),
            ("SYSLOG", Capabilities::SYSLOG),
            ("PERFMON", Capabilities::PERFMON),
            ("BPF", Capabilities::BPF),
        ];
        for (name, capability) in all {
            assert_eq!(Capabilities::named(name), Some(capability), "{name}");
            assert_eq!(capability.names().collect::<Vec<_>>(), [name]);
        }
    }

    #[test]
    fn a_confined_program_cannot_take_the_guest_over() {
        for name in [
            "SYS_ADMIN",
            "SYS_PTRACE",
            "SYS_MODULE",
            "SYS_RAWIO",
            "SYS_BOOT",
            "MKNOD",
            "NET_ADMIN",
            "BPF",
        ] {
            let capability = Capabilities::named(name).unwrap();
            assert!(!Capabilities::CONFINED.intersects(capability), "{name}");
        }
    }
}
