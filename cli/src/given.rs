//! Options that were given, in place of the settings that they are for: a message about
//! one names what its user wrote.

use flashpan::Error;

use crate::failure::Failure;

/// Which settings an option was given for.
#[derive(Debug, Default)]
pub(crate) struct Given(Vec<(&'static str, &'static str)>);

/// Settings as messages name them, as fields of a configuration and as the library's own,
/// and the options for them.
const OPTIONS: &[(&str, &[&str])] = &[
    ("--cpus", &["resources.cpus", "cpus"]),
    ("--memory", &["resources.memory_mb", "memory"]),
    ("--disk-size", &["resources.disk_size_mb"]),
    ("--timeout", &["resources.timeout_seconds", "time limit"]),
    ("--hostname", &["network.hostname", "hostname"]),
    ("--image", &["image"]),
    ("--disk", &["extra_disks", "disks", "disk"]),
    ("--disk-bps", &["disk rate: bytes_per_second"]),
    ("--disk-iops", &["disk rate: operations_per_second"]),
    ("--network-bps", &["network rate: bytes_per_second"]),
    ("--pids-limit", &["pids limit"]),
    ("--kernel-arg", &["kernel arguments"]),
    ("--boot-timeout", &["boot timeout"]),
    ("--add-host", &["network.add_hosts", "add host"]),
    ("--allow-host", &["network.allowed_hosts"]),
    ("--tcp", &["network.allowed_hosts"]),
    ("--deny-host", &["network.denied_hosts"]),
    ("--rule", &["network.rules"]),
    ("--no-network", &["network.no_network"]),
    ("--allow-private-ips", &["network.block_private_ips"]),
    ("--network-intercept", &["network.intercept"]),
    ("--dns-servers", &["network.dns_servers"]),
    ("--mtu", &["network.mtu"]),
    ("--secret", &["network.secrets"]),
    ("--workspace", &["vfs.workspace"]),
    ("--volume", &["vfs.mounts"]),
    ("--env", &["env", "environment"]),
    ("--user", &["image_config.user", "user"]),
    (
        "--workdir",
        &["image_config.working_dir", "working directory"],
    ),
    ("--entrypoint", &["image_config.entrypoint"]),
];

impl Given {
    /// `option` was given, if it was.
    pub(crate) fn add(&mut self, is_given: bool, option: &'static str) {
        let settings = OPTIONS.iter().find(|(name, _)| *name == option);
        debug_assert!(settings.is_some(), "{option} is for no setting");
        for setting in settings.filter(|_| is_given).iter().flat_map(|of| of.1) {
            self.0.push((setting, option));
        }
    }

    /// With those of `other`.
    pub(crate) fn and(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }

    /// `SETTING: why` with an option in place of the setting; `None` if there is none.
    fn reworded(&self, message: &str) -> Option<String> {
        self.0.iter().find_map(|(setting, option)| {
            let rest = message.strip_prefix(setting)?;
            // An entry of a list, or a field of it: there the option is the whole.
            let why = match rest.starts_with(['.', '[']) {
                true => rest.split_once(": ")?.1,
                false => rest.strip_prefix(": ")?,
            };
            Some(format!("{option}: {why}"))
        })
    }

    /// What to tell of an error.
    pub(crate) fn failure(&self, error: Error) -> Failure {
        let (messages, title) = match &error {
            Error::InvalidConfig { .. } => (vec![error.to_string()], ""),
            Error::ConfigInvalid(errors) if errors.more() == 0 => {
                let messages = errors.errors().iter().map(ToString::to_string);
                (messages.collect(), "invalid configuration: ")
            }
            Error::Unsupported(fields) => {
                let messages = fields
                    .reasons()
                    .map(|(field, why)| format!("{field}: {why}"));
                (messages.collect(), "")
            }
            _ => return error.into(),
        };
        let reworded: Vec<_> = messages.iter().map(|text| self.reworded(text)).collect();
        if reworded.iter().all(Option::is_none) {
            return error.into();
        }
        // The configuration is nothing that who wrote options only knows of.
        let title = match reworded.iter().all(Option::is_some) {
            true => "",
            false => title,
        };
        let words = reworded.into_iter().zip(messages);
        let words: Vec<_> = words.map(|(new, old)| new.unwrap_or(old)).collect();
        Failure::new(format!("{title}{}", words.join("; ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flashpan::api::Config;

    fn given(options: &[&'static str]) -> Given {
        let mut given = Given::default();
        for option in options {
            given.add(true, option);
        }
        given.add(false, "--user");
        given
    }

    fn said(given: &Given, json: &str) -> String {
        let config = Config::from_json(json.as_bytes()).unwrap().config;
        let error = config.validate().unwrap_err();
        given.failure(error.into()).message().to_owned()
    }

    #[test]
    fn an_option_is_named_and_the_field_where_there_was_none() {
        let json = r#"{"resources":{"cpus":99}}"#;
        let why = "99 is more than 32, the most that a VM can have";
        assert_eq!(said(&given(&["--cpus"]), json), format!("--cpus: {why}"));
        let field = format!("invalid configuration: resources.cpus: {why}");
        assert_eq!(said(&given(&["--memory"]), json), field);
        let both = r#"{"resources":{"cpus":99,"memory_mb":1}}"#;
        let text = said(&given(&["--cpus"]), both);
        let begin = format!("invalid configuration: --cpus: {why}; resources.memory_mb: 1 MiB");
        assert!(text.starts_with(&begin), "{text}");
    }

    #[test]
    fn entries_of_lists_are_of_the_option_too() {
        let given = given(&["--disk"]);
        assert_eq!(
            given.reworded("extra_disks[1].guest_mount: no").as_deref(),
            Some("--disk: no")
        );
        // Another setting that begins in the same way.
        assert_eq!(given.reworded("disk rate: no"), None);
        assert_eq!(given.reworded("diskette: no"), None);
    }
}
