//! Where a setting comes from, in place of the setting itself: a message names the option
//! that its user wrote, or the field and the file that it is in.

use std::collections::BTreeMap;
use std::path::Path;

use flashpan::Error;
use flashpan::launch::LaunchError;
use flashpan::text::plain;
use flashpan_rootfs::image_config::ComposeError;

use crate::environment;
use crate::failure::Failure;

/// Most characters of what somebody wrote that a message repeats.
const SHOWN: usize = 128;

/// Which settings come from where.
#[derive(Debug, Default)]
pub(crate) struct Given {
    /// The file that all else comes from.
    file: Option<String>,
    options: Vec<(&'static Setting, Entries)>,
}

/// What an option is for.
#[derive(Debug)]
struct Setting {
    option: &'static str,
    /// The field of a configuration.
    field: Option<&'static str>,
    /// The library's own names of it.
    names: &'static [&'static str],
}

impl Setting {
    /// What its user wrote.
    fn name(&self) -> &'static str {
        environment::variable_of(self.option).unwrap_or(self.option)
    }
}

/// What of a setting an option says.
#[derive(Debug)]
enum Entries {
    All,
    /// All entries of a list, as they were written.
    List(Vec<String>),
    /// Entries with these keys, each as it was written: others may be there.
    Map(BTreeMap<String, String>),
}

const fn setting(
    option: &'static str,
    field: Option<&'static str>,
    names: &'static [&'static str],
) -> Setting {
    Setting {
        option,
        field,
        names,
    }
}

static SETTINGS: [Setting; 37] = [
    setting("--cpus", Some("resources.cpus"), &["cpus"]),
    setting("--memory", Some("resources.memory_mb"), &["memory"]),
    setting("--disk-size", Some("resources.disk_size_mb"), &[]),
    setting(
        "--timeout",
        Some("resources.timeout_seconds"),
        &["time limit"],
    ),
    setting("--hostname", Some("network.hostname"), &["hostname"]),
    setting("--image", Some("image"), &[]),
    setting("--disk", Some("extra_disks"), &["disks", "disk"]),
    setting("--disk-bps", None, &["disk rate: bytes_per_second"]),
    setting("--disk-iops", None, &["disk rate: operations_per_second"]),
    setting("--network-bps", None, &["network rate: bytes_per_second"]),
    setting("--upstream-ca", None, &["upstream authorities"]),
    setting("--client-cert", None, &["client certificates"]),
    setting("--pids-limit", None, &["pids limit"]),
    setting("--kernel-arg", None, &["kernel arguments"]),
    setting("--boot-timeout", None, &["boot timeout"]),
    setting("--add-host", Some("network.add_hosts"), &["add host"]),
    setting("--allow-host", Some("network.allowed_hosts"), &[]),
    setting("--deny-host", Some("network.denied_hosts"), &[]),
    setting("--rule", Some("network.rules"), &[]),
    setting("--policy-script", Some("network.policy_script"), &[]),
    setting("--no-network", Some("network.no_network"), &[]),
    setting(
        "--allow-private-ips",
        Some("network.block_private_ips"),
        &[],
    ),
    setting("--network-intercept", Some("network.intercept"), &[]),
    setting("--dns-synthetic", Some("network.synthetic_names"), &[]),
    setting("--secret-no-range", Some("network.forbid_range"), &[]),
    setting("--splice", Some("network.splice"), &[]),
    setting("--no-scrub", Some("network.scrub"), &[]),
    setting("--dns-servers", Some("network.dns_servers"), &[]),
    setting("--mtu", Some("network.mtu"), &[]),
    setting("--secret", Some("network.secrets"), &[]),
    setting("--workspace", Some("vfs.workspace"), &[]),
    setting("--volume", Some("vfs.mounts"), &[]),
    setting("--env", Some("env"), &["environment"]),
    setting("--env-file", Some("env"), &["environment"]),
    setting("--user", Some("image_config.user"), &["user"]),
    setting(
        "--workdir",
        Some("image_config.working_dir"),
        &["working directory"],
    ),
    setting("--entrypoint", Some("image_config.entrypoint"), &[]),
];

impl Given {
    /// What no option says comes from this file.
    pub(crate) fn in_file(file: Option<&Path>) -> Self {
        Self {
            file: file.map(|file| plain(&file.display().to_string())),
            options: Vec::new(),
        }
    }

    /// The file.
    pub(crate) fn file(&self) -> Option<&str> {
        self.file.as_deref()
    }

    /// `option` was given, if it was.
    pub(crate) fn add(&mut self, is_given: bool, option: &'static str) {
        if is_given {
            self.insert(option, Entries::All);
        }
    }

    /// `option` was given for the entries of a list.
    pub(crate) fn add_list<T: ToString>(&mut self, entries: &[T], option: &'static str) {
        if !entries.is_empty() {
            let entries = entries.iter().map(|entry| shown(&entry.to_string()));
            self.insert(option, Entries::List(entries.collect()));
        }
    }

    /// `option` was given for entries with keys, each as it may be repeated.
    pub(crate) fn add_map(
        &mut self,
        entries: impl IntoIterator<Item = (String, String)>,
        option: &'static str,
    ) {
        let entries = entries.into_iter();
        let entries: BTreeMap<_, _> = entries.map(|(key, text)| (key, shown(&text))).collect();
        if !entries.is_empty() {
            self.insert(option, Entries::Map(entries));
        }
    }

    fn insert(&mut self, option: &'static str, entries: Entries) {
        let setting = SETTINGS.iter().find(|setting| setting.option == option);
        debug_assert!(setting.is_some(), "{option} is for no setting");
        self.options.extend(setting.map(|of| (of, entries)));
    }

    /// With those of `other`.
    pub(crate) fn and(mut self, other: Self) -> Self {
        self.file = self.file.or(other.file);
        self.options.extend(other.options);
        self
    }

    /// The option that a field, or an entry of it, comes from, with what was written.
    fn option_of(&self, path: &str) -> Option<String> {
        self.options.iter().find_map(|(setting, entries)| {
            let rest = path.strip_prefix(setting.field?)?;
            match entries {
                _ if rest.is_empty() => Some(setting.name().to_owned()),
                _ if !is_below(rest) => None,
                Entries::All => Some(setting.name().to_owned()),
                Entries::List(texts) => {
                    let (index, _) = rest.strip_prefix('[')?.split_once(']')?;
                    let text = texts.get(index.parse::<usize>().ok()?)?;
                    Some(format!("{} {text}", setting.name()))
                }
                Entries::Map(texts) => {
                    let (_, text) = texts.iter().find(|(key, _)| is_of_key(rest, key))?;
                    Some(format!("{} {text}", setting.name()))
                }
            }
        })
    }

    /// A message of the library's own on a setting: what is wrong, and where.
    fn own(&self, message: &str) -> Option<Told> {
        let why = |setting: &Setting| {
            let mut names = setting.names.iter();
            names.find_map(|name| message.strip_prefix(name)?.strip_prefix(": "))
        };
        let given = self.options.iter().find_map(|(setting, entries)| {
            let why = why(setting)?;
            // Others have entries there too, and it says which it is.
            if let Entries::Map(texts) = entries {
                texts.keys().find(|key| why.contains(key.as_str()))?;
            }
            Some(Told::Option(format!("{}: {why}", setting.name())))
        });
        given.or_else(|| {
            self.file.as_ref()?;
            SETTINGS.iter().find_map(|setting| {
                let (why, field) = (why(setting)?, setting.field?);
                Some(Told::Field(format!("{field}: {why}")))
            })
        })
    }

    /// A message on a field of a configuration.
    fn field(&self, path: &str, message: &str) -> Told {
        let Some(option) = self.option_of(path) else {
            let words = message.strip_prefix(path).and_then(|rest| {
                let (words, other) = rest.strip_prefix(' ')?.rsplit_once(' ')?;
                let option = self.option_of(other)?;
                Some(format!("{option}: {words} {}", self.place(path)))
            });
            // The file may be right without the option.
            return words.map_or_else(|| Told::Field(message.to_owned()), Told::Option);
        };
        let why = message.strip_prefix(path);
        let why = why.and_then(|rest| rest.strip_prefix(": "));
        let why = why.unwrap_or(message);
        // One that is like another names that.
        let other = why.rsplit_once(' ');
        let other = other.and_then(|(words, path)| {
            let option = self.option_of(path).filter(|_| path.contains(['.', '[']))?;
            Some(format!("{words} {option}"))
        });
        Told::Option(format!("{option}: {}", other.as_deref().unwrap_or(why)))
    }

    /// Where a field is, among what was given.
    fn place(&self, path: &str) -> String {
        match (self.option_of(path), &self.file) {
            (Some(option), _) => option,
            (None, Some(file)) => format!("{path} of {file}"),
            (None, None) => path.to_owned(),
        }
    }

    /// What is not supported, and why.
    fn unsupported(&self, path: &str, why: &str) -> Told {
        match environment::variable_of("--network") {
            // It does not go with the network that the VM is to have, which nobody wrote.
            Some(variable) if path.starts_with("network.") => {
                Told::Option(format!("{variable} beside {}: {why}", self.place(path)))
            }
            _ => self.field(path, &format!("{path}: {why}")),
        }
    }

    /// What to tell of an error of what is to be run.
    pub(crate) fn command_failure(&self, error: &LaunchError) -> Failure {
        match (&self.file, error) {
            // No option asks for that.
            (Some(file), LaunchError::Command(ComposeError::NothingToLaunch)) => {
                Failure::new(format!("{file}: {error}"))
            }
            _ => Failure::new(error),
        }
    }

    /// What to tell of an error.
    pub(crate) fn failure(&self, error: Error) -> Failure {
        let (told, title, more) = match &error {
            Error::InvalidConfig { .. } => match self.own(&error.to_string()) {
                Some(told) => (vec![told], "", 0),
                None => return error.into(),
            },
            Error::ConfigInvalid(errors) => {
                let told = errors.errors().iter();
                let told = told.map(|error| self.field(&error.field, &error.message));
                (told.collect(), "invalid configuration: ", errors.more())
            }
            Error::Unsupported(fields) => {
                let told = fields.reasons();
                let told = told.map(|(field, why)| self.unsupported(field, why));
                (told.collect::<Vec<_>>(), "", 0)
            }
            _ => return error.into(),
        };
        let in_file = told.iter().any(|told| matches!(told, Told::Field(_)));
        // The configuration is nothing that who wrote options only knows of.
        let title = match (&self.file, in_file) {
            (None, true) => title,
            _ => "",
        };
        let (options, fields): (Vec<_>, Vec<_>) = told
            .into_iter()
            .partition(|told| matches!(told, Told::Option(_)));
        let mut words: Vec<_> = options.into_iter().map(Told::into_words).collect();
        let mut fields = fields.into_iter().map(Told::into_words);
        if let Some(file) = &self.file
            && let Some(first) = fields.next()
        {
            words.push(format!("{file}: {first}"));
        }
        words.extend(fields);
        if more > 0 {
            words.push(format!("and {more} more"));
        }
        Failure::new(format!("{title}{}", words.join("; ")))
    }
}

/// A message with where it comes from.
enum Told {
    /// By the name of an option, or of the variable that stands in for it.
    Option(String),
    /// By the path of a field.
    Field(String),
}

impl Told {
    fn into_words(self) -> String {
        match self {
            Self::Option(words) | Self::Field(words) => words,
        }
    }
}

/// Whether what follows a field in a path is an entry of it, or a field of that.
fn is_below(rest: &str) -> bool {
    rest.starts_with(['.', '['])
}

/// Whether what follows a map in a path is its entry of that key, or below it.
fn is_of_key(rest: &str, key: &str) -> bool {
    let quoted: String = key.chars().take(SHOWN).collect();
    let ways = [
        format!(".{key}"),
        format!("[{quoted:?}]"),
        format!("[{quoted:?}…]"),
    ];
    let mut rests = ways
        .iter()
        .filter_map(|way| rest.strip_prefix(way.as_str()));
    rests.any(|rest| rest.is_empty() || is_below(rest))
}

/// What somebody wrote, for a message.
fn shown(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", plain(text.get(..end).unwrap_or_default())),
        None => plain(text),
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
    fn an_entry_is_named_as_it_was_written() {
        let mut given = Given::default();
        given.add_list(&["a:/d", "b:/dev/x", "c:/d/"], "--disk");
        let json = r#"{"extra_disks":[
            {"host_path":"a","guest_mount":"/d"},
            {"host_path":"b","guest_mount":"/dev/x"},
            {"host_path":"c","guest_mount":"/d/"}]}"#;
        let text = said(&given, json);
        let says = "--disk b:/dev/x: \"/dev/x\": the guest's kernel has /dev; \
                    --disk c:/d/: is the same path as that of --disk a:/d";
        assert_eq!(text, says);
        // Another setting that begins in the same way.
        assert_eq!(given.option_of("extra_disks_too"), None);
        assert_eq!(given.option_of("extra_disks[9].host_path"), None);
        assert_eq!(given.option_of("extra_disks").as_deref(), Some("--disk"));
        assert!(given.own("disk rate: no").is_none());
    }

    #[test]
    fn what_an_option_does_not_say_is_of_the_file() {
        let mut given = Given::in_file(Some(Path::new("dir/s.toml")));
        given.add_map(
            [("B".into(), "B".into()), ("C C=".into(), "C".into())],
            "--env",
        );
        given.add_map([("F".into(), "F".into())], "--env-file");
        let json = r#"{"env":{"A=":"a","B":"\u0000","C C=":"c","F":"\u0000"},
            "network":{"add_hosts":[{"host":"a","ip":"1.1.1.1"},{"host":"b","ip":"x"}]}}"#;
        let text = said(&given, json);
        let nul = "the value contains a NUL";
        let options = format!("--env B: {nul}; --env C: the name of a variable contains `=`");
        assert!(text.starts_with(&options), "{text}");
        assert!(text.contains(&format!("; --env-file F: {nul}; ")), "{text}");
        let file = "; dir/s.toml: network.add_hosts[1]: ";
        assert!(text.contains(file), "{text}");
        assert!(
            text.contains("; env[\"A=\"]: the name of a variable"),
            "{text}"
        );
        assert!(!text.contains("invalid configuration"), "{text}");
        // A setting of the library that the file has as a field.
        let error = Error::InvalidConfig {
            field: "add host",
            why: "no".to_owned(),
        };
        let text = given.failure(error).message().to_owned();
        assert_eq!(text, "dir/s.toml: network.add_hosts: no");
    }

    #[test]
    fn what_is_not_listed_is_counted_for_options_too() {
        let hosts = vec!["a b"; 70];
        let mut given = Given::default();
        given.add_list(&hosts, "--allow-host");
        let json = serde_json::json!({"network": {"allowed_hosts": hosts}});
        let text = said(&given, &json.to_string());
        assert!(text.starts_with("--allow-host a b: "), "{text}");
        assert!(text.ends_with("; and 6 more"), "{text}");
    }
}
