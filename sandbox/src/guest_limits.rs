//! What the guest itself keeps to: lines of `/etc/hosts`, a share of the processors.

use flashpan_protocol::agent::{HostEntry, MAX_HOSTS, MIN_CPU_QUOTA};

use crate::config::SandboxBuilder;
use crate::disk::Upper;
use crate::error::{Error, Result};

impl SandboxBuilder {
    /// The lines for `/etc/hosts`, checked.
    pub(crate) fn host_entries(&self) -> Result<Vec<HostEntry>> {
        let wrong = |why: String| Err(Error::config("add host", why));
        if self.hosts.len() > MAX_HOSTS {
            let number = self.hosts.len();
            return wrong(format!("{number} are too many; at most {MAX_HOSTS} fit"));
        }
        if !self.hosts.is_empty() && matches!(self.upper, Upper::ReadOnly) {
            return wrong("the root is read-only, and /etc/hosts is part of it".to_owned());
        }
        let mut entries = Vec::new();
        for entry in &self.hosts {
            if let Err(why) = entry.validate() {
                return wrong(why.to_string());
            }
            match entry.ip.trim().parse() {
                Ok(address) => entries.push(HostEntry {
                    name: entry.host.clone(),
                    address,
                }),
                Err(_) => return wrong(format!("{:?} is not an IP address", entry.ip)),
            }
        }
        Ok(entries)
    }

    /// What programs may use of the processors in thousandths, if that is not all.
    pub(crate) fn cpu_quota(&self) -> Option<u32> {
        if self.cpus.fract() == 0.0 {
            return None;
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "`vm_spec` has seen that it is more than 0 and at most 32"
        )]
        let thousandths = (self.cpus * 1000.0).round() as u32;
        Some(thousandths.max(MIN_CPU_QUOTA))
    }
}

#[cfg(test)]
mod tests {
    use flashpan_protocol::agent::FsType;

    use super::*;
    use crate::api::HostIpMapping;
    use crate::config::Root;

    fn builder() -> SandboxBuilder {
        let root = Root::new("root.erofs", FsType::Erofs);
        SandboxBuilder::new("vmlinux".into(), root)
    }

    fn refusal(builder: &SandboxBuilder) -> String {
        builder.validate().unwrap_err().to_string()
    }

    #[test]
    fn of_a_fraction_of_processors_the_guest_keeps_the_rest() {
        for (cpus, vcpus, quota) in [
            (1.0, 1, None),
            (0.5, 1, Some(500)),
            (1.25, 2, Some(1250)),
            (0.0001, 1, Some(10)),
            (31.999, 32, Some(31_999)),
            (32.0, 32, None),
        ] {
            let builder = builder().cpus(cpus);
            assert_eq!(builder.vm_spec().unwrap().vcpus, vcpus, "{cpus}");
            assert_eq!(builder.guest_config().cpu_quota, quota, "{cpus}");
        }
    }

    #[test]
    fn processes_and_hosts_are_for_the_guest() {
        let entry: HostIpMapping = "db.internal:2001:DB8::1".parse().unwrap();
        let both = builder().pids_limit(7).add_host(entry.clone());
        both.validate().unwrap();
        let config = both.guest_config();
        assert_eq!(config.pids_limit, Some(7));
        let expected = HostEntry {
            name: "db.internal".to_owned(),
            address: "2001:db8::1".parse().unwrap(),
        };
        assert_eq!(config.hosts, [expected]);
        assert!(refusal(&builder().pids_limit(0)).starts_with("pids limit: "));
        let read_only = builder().upper(Upper::ReadOnly).add_host(entry.clone());
        assert!(refusal(&read_only).contains("read-only"));
        let bad = HostIpMapping::new("a b", "10.0.0.1".parse().unwrap());
        assert!(refusal(&builder().add_host(bad)).starts_with("add host: "));
        let many = (0..=MAX_HOSTS).fold(builder(), |all, _| all.add_host(entry.clone()));
        assert!(refusal(&many).contains("too many"));
    }
}
