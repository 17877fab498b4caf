//! What a program may do in its guest, as the caller says it.

use std::fmt;
use std::str::FromStr;

use flashpan_protocol::privilege::{Capabilities, Confinement, Scope};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::error::{Error, Result};

/// Linux capabilities by name: one, or all.
///
/// Read from a name in any case, with or without `CAP_`, or `ALL`.
///
/// ```
/// use flashpan::Capability;
///
/// let capability: Capability = "net_admin".parse()?;
/// assert_eq!(capability.to_string(), "NET_ADMIN");
/// assert_eq!("CAP_NET_ADMIN".parse(), Ok(capability));
/// # Ok::<(), flashpan::CapabilityError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Capability(Capabilities);

impl Capability {
    /// All of them, those of later kernels too.
    pub const ALL: Self = Self(Capabilities::ALL);
}

/// A text is no capability of Linux.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0:?} is not a capability; want a name of capabilities(7) like NET_ADMIN, or ALL")]
pub struct CapabilityError(String);

impl FromStr for Capability {
    type Err = CapabilityError;

    fn from_str(text: &str) -> std::result::Result<Self, CapabilityError> {
        let named = Capabilities::named(text);
        named.map(Self).ok_or_else(|| {
            // An error is one line, however long the text.
            CapabilityError(text.chars().take(64).collect())
        })
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut names = self.0.names();
        f.write_str(match (names.next(), names.next()) {
            (Some(name), None) => name,
            _ => "ALL",
        })
    }
}

/// Whose processes, or mounts, a program has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Namespace {
    /// Its own: it sees its own processes, or what it mounts is seen by nobody
    /// else.
    Private,
    /// Those of the VM: the agent's, and those of all programs that are there too.
    Vm,
}

impl From<Namespace> for Scope {
    fn from(namespace: Namespace) -> Self {
        match namespace {
            Namespace::Private => Self::Private,
            Namespace::Vm => Self::Vm,
        }
    }
}

/// What a program may do in its guest beyond what its user may, and what it sees of
/// the guest: [`Privilege::confined`], unless it is told otherwise.
///
/// This keeps programs of one VM apart as containers are kept apart, and lowers
/// what a program can try on the guest's kernel. What must be kept apart for
/// certain goes in VMs of its own. `docs/privilege.md` lists all that is meant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[must_use = "a privilege does nothing until it is given to a program"]
pub struct Privilege {
    added: Capabilities,
    added_by_name: Capabilities,
    dropped: Capabilities,
    base: Confinement,
    mounts: Option<Namespace>,
}

impl Default for Privilege {
    fn default() -> Self {
        Self::confined()
    }
}

impl Privilege {
    fn of(base: Confinement) -> Self {
        Self {
            added: Capabilities::NONE,
            added_by_name: Capabilities::NONE,
            dropped: Capabilities::NONE,
            base,
            mounts: None,
        }
    }

    /// Few capabilities and none by set-user-id programs, no system calls by which
    /// kernels are attacked, settings of the kernel read-only, its own `/dev`, its
    /// own processes and mounts.
    pub fn confined() -> Self {
        Self::of(Confinement::CONFINED)
    }

    /// None of that: what root may in the guest. For container engines, debuggers,
    /// and whatever administers the VM.
    pub fn privileged() -> Self {
        Self::of(Confinement::PRIVILEGED)
    }

    /// Gives a capability besides. Unlike in a container, the program has it
    /// whoever its user is.
    pub fn add_capability(mut self, capability: Capability) -> Self {
        self.added = self.added.with(capability.0);
        if capability != Capability::ALL {
            self.added_by_name = self.added_by_name.with(capability.0);
        }
        self
    }

    /// Takes a capability away. One that is added by name stays, so that `ALL`
    /// leaves just those.
    pub fn drop_capability(mut self, capability: Capability) -> Self {
        self.dropped = self.dropped.with(capability.0);
        self
    }

    /// Whether set-user-id programs and capabilities of files give what they
    /// promise; they give nothing otherwise (`no_new_privs`).
    pub fn allow_new_privileges(mut self, allow: bool) -> Self {
        self.base.no_new_privileges = !allow;
        self
    }

    /// Whether system calls that ordinary programs do without are refused.
    pub fn system_call_filter(mut self, on: bool) -> Self {
        self.base.system_call_filter = on;
        self
    }

    /// Whether `/sys` and the settings in `/proc` are read-only, what there is not
    /// for programs is hidden, and `/dev` has harmless devices only.
    pub fn protect_system_paths(mut self, on: bool) -> Self {
        self.base.system_paths = on;
        self
    }

    /// Which processes the program sees.
    pub fn processes(mut self, namespace: Namespace) -> Self {
        self.base.processes = namespace.into();
        self
    }

    /// Which mounts the program sees, and who sees those that it makes. With
    /// private processes they have to be private, and so they have with protected
    /// system paths.
    pub fn mounts(mut self, namespace: Namespace) -> Self {
        self.mounts = Some(namespace);
        self
    }

    /// The same for the agent.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] for mounts of the VM with what needs private ones.
    pub(crate) fn confinement(&self) -> Result<Confinement> {
        let mut confinement = self.base;
        let start = match self.added == Capabilities::ALL {
            true => Capabilities::ALL,
            false => confinement.capabilities.with(self.added),
        };
        confinement.capabilities = start.without(self.dropped).with(self.added_by_name);
        confinement.ambient = self.added_by_name;
        let needs_private = match confinement {
            Confinement {
                processes: Scope::Private,
                ..
            } => Some("private processes"),
            Confinement {
                system_paths: true, ..
            } => Some("protected system paths"),
            _ => None,
        };
        confinement.mounts = match (self.mounts, needs_private) {
            (Some(Namespace::Vm), Some(what)) => {
                let why = format!("{what} need private mounts, not those of the VM");
                return Err(Error::config("privilege", why));
            }
            (Some(namespace), _) => namespace.into(),
            (None, Some(_)) => Scope::Private,
            (None, None) => confinement.mounts,
        };
        Ok(confinement)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> Capability {
        name.parse().unwrap()
    }

    fn capabilities(privilege: &Privilege) -> Capabilities {
        privilege.confinement().unwrap().capabilities
    }

    #[test]
    fn capabilities_are_added_and_dropped_as_docker_does_it() {
        let confined = Privilege::confined;
        assert_eq!(capabilities(&confined()), Capabilities::CONFINED);
        let more = confined().add_capability(named("net_admin"));
        let fewer = more.clone().drop_capability(named("CAP_CHOWN"));
        assert!(capabilities(&fewer).intersects(Capabilities::named("NET_ADMIN").unwrap()));
        assert!(!capabilities(&fewer).intersects(Capabilities::CHOWN));
        let only = confined()
            .add_capability(named("KILL"))
            .drop_capability(Capability::ALL);
        assert_eq!(capabilities(&only), Capabilities::KILL);
        let all_but = confined()
            .add_capability(Capability::ALL)
            .drop_capability(named("SYS_ADMIN"));
        assert_eq!(
            capabilities(&all_but),
            Capabilities::ALL.without(Capabilities::SYS_ADMIN)
        );
        let none = confined().drop_capability(Capability::ALL);
        assert!(capabilities(&none).is_empty());
    }

    #[test]
    fn what_is_added_by_name_is_for_every_user() {
        let privilege = Privilege::confined()
            .add_capability(Capability::ALL)
            .add_capability(named("NET_RAW"));
        let confinement = privilege.confinement().unwrap();
        assert_eq!(confinement.ambient, Capabilities::NET_RAW);
        assert!(
            Privilege::privileged()
                .confinement()
                .unwrap()
                .ambient
                .is_empty()
        );
    }

    #[test]
    fn a_privileged_program_may_all_but_restart_the_machine() {
        let privileged = Privilege::privileged();
        assert_eq!(privileged.confinement().unwrap(), Confinement::PRIVILEGED);
        assert!(!capabilities(&privileged).intersects(Capabilities::SYS_BOOT));
        let boots = privileged.add_capability(named("SYS_BOOT"));
        assert_eq!(capabilities(&boots), Capabilities::ALL);
    }

    #[test]
    fn mounts_are_private_where_they_have_to_be() {
        let mounts = |privilege: Privilege| privilege.confinement().map(|all| all.mounts);
        let joined = Privilege::confined().processes(Namespace::Vm);
        assert_eq!(mounts(joined.clone()).unwrap(), Scope::Private);
        let open = joined.clone().protect_system_paths(false);
        assert_eq!(mounts(open.clone()).unwrap(), Scope::Private);
        assert_eq!(mounts(open.mounts(Namespace::Vm)).unwrap(), Scope::Vm);
        for wrong in [Privilege::confined(), joined] {
            let refused = mounts(wrong.mounts(Namespace::Vm)).unwrap_err();
            assert!(refused.to_string().contains("private mounts"), "{refused}");
        }
        let own = Privilege::privileged().processes(Namespace::Private);
        assert_eq!(mounts(own).unwrap(), Scope::Private);
    }

    #[test]
    fn names_of_capabilities() {
        for name in ["ALL", "all", "CAP_SYS_ADMIN", "sys_admin"] {
            let shown = named(name).to_string();
            assert_eq!(named(&shown), named(name));
        }
        for wrong in ["", "SYS", "CAP_", "1"] {
            let refused = wrong.parse::<Capability>().unwrap_err().to_string();
            assert!(refused.contains("capabilities(7)"), "{refused}");
        }
    }
}
