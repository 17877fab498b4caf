//! What people and clients write: words of a command line, files of variables,
//! configurations. The same runs over the corpora in
//! `sandbox/tests/fuzz_corpus.rs`.

use std::fmt::{Debug, Display};
use std::os::fd::AsRawFd;
use std::str::FromStr;

use flashpan::api::{
    self, Config, EnvVar, Event, HostIpMapping, NamedSecret, NetworkHookCallbackRequest,
    NetworkHookCallbackResponse, PortForward, Timestamp, VolumeMountSpec,
};
use flashpan::{Capability, Privilege};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A text, as everything that a word of a command line can be: what is understood
/// can be written and is understood again, and a complaint is one line.
pub fn texts(data: &[u8]) {
    env_file(data);
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Some(ports) = again::<PortForward>(text) {
        assert!(ports.local_port != 0 && ports.remote_port != 0);
    }
    if let Some(entry) = again::<HostIpMapping>(text) {
        entry.validate().unwrap();
        entry.address().unwrap();
    }
    if let Some(time) = again::<Timestamp>(text) {
        let (seconds, nanoseconds) = (time.unix_seconds(), time.nanoseconds());
        assert_eq!(Timestamp::from_unix(seconds, nanoseconds), Some(time));
    }
    if let Some(capability) = again::<Capability>(text) {
        let privilege = Privilege::confined().add_capability(capability);
        let json = serde_json::to_string(&privilege).unwrap();
        assert_eq!(serde_json::from_str::<Privilege>(&json).unwrap(), privilege);
    }
    variable(text);
    secret(text);
    volume(text);
    guest_path(text);
    let args: Vec<_> = text.split('\0').collect();
    assert_eq!(words(&api::shell_quote_args(&args)), args);
    json_again::<Event>(text);
    json_again::<NetworkHookCallbackRequest>(text);
    json_again::<NetworkHookCallbackResponse>(text);
}

fn again<T>(text: &str) -> Option<T>
where
    T: FromStr<Err: Display> + Display + PartialEq + Debug,
{
    match text.parse::<T>() {
        Ok(value) => {
            let written = value.to_string();
            match written.parse::<T>() {
                Ok(again) => assert_eq!(again, value, "{text:?} as {written:?}"),
                Err(error) => panic!("{text:?} as {written:?}: {error}"),
            }
            Some(value)
        }
        Err(error) => {
            one_line(&error);
            None
        }
    }
}

fn json_again<T: Serialize + DeserializeOwned + PartialEq + Debug>(text: &str) {
    if let Ok(value) = serde_json::from_str::<T>(text) {
        let written = serde_json::to_string(&value).unwrap();
        assert_eq!(
            serde_json::from_str::<T>(&written).unwrap(),
            value,
            "{written}"
        );
    }
}

fn one_line(error: &impl Display) {
    let text = error.to_string();
    assert!(!text.contains(char::is_control), "{text:?}");
}

fn variable(text: &str) {
    match EnvVar::parse_with(text, |_| None) {
        Ok(variable) => {
            assert!(!variable.name.is_empty() && !variable.name.contains(['=', '\0']));
            assert!(!variable.value.contains('\0'));
            let written = variable.to_string();
            assert_eq!(EnvVar::parse_with(&written, |_| None).unwrap(), variable);
        }
        Err(error) => one_line(&error),
    }
}

/// A file of variables: what it says can be written as another, which says the
/// same.
fn env_file(data: &[u8]) {
    let read = |bytes: &[u8]| {
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let file = std::fs::File::from(rustix::fs::memfd_create("env", flags).unwrap());
        std::io::Write::write_all(&mut &file, bytes).unwrap();
        api::parse_env_file(format!("/proc/self/fd/{}", file.as_raw_fd()))
    };
    match read(data) {
        Ok(variables) => {
            let lines = variables.iter();
            let lines: String = lines
                .map(|(name, value)| format!("{name}={value}\n"))
                .collect();
            assert_eq!(read(lines.as_bytes()).unwrap(), variables);
        }
        Err(error) => one_line(&error),
    }
}

/// The value of a secret is in no complaint and is not shown.
fn secret(text: &str) {
    let value = format!("<{}>", text.replace('@', ""));
    let shown = match NamedSecret::parse_with(&format!("KEY={value}@a.com,{text}"), |_| None) {
        Ok(secret) => {
            assert_eq!(secret.name, "KEY");
            // Of several `@` the last one counts.
            assert!(secret.secret.value.expose().starts_with(&value));
            assert!(secret.secret.redacted().value.is_empty());
            format!("{:?}", secret.secret.value)
        }
        Err(error) => {
            one_line(&error);
            format!("{error} {error:?}")
        }
    };
    assert!(!shown.contains(&value), "{shown}");
    match NamedSecret::parse_with(text, |_| None) {
        Ok(secret) => assert!(!secret.name.is_empty() && !secret.name.contains('=')),
        Err(error) => one_line(&error),
    }
}

fn volume(text: &str) {
    match VolumeMountSpec::parse(text, "/workspace") {
        Ok(volume) => {
            let guest = &volume.guest_path;
            let within = guest == "/workspace" || guest.starts_with("/workspace/");
            assert!(
                within && !guest.split('/').any(|part| part == ".."),
                "{guest}"
            );
            assert!(volume.host_path.is_absolute());
            let written = volume.to_string();
            let again = VolumeMountSpec::parse(&written, "/workspace").unwrap();
            assert_eq!(again, volume, "{written:?}");
            volume.mount().unwrap();
        }
        Err(error) => one_line(&error),
    }
}

fn guest_path(text: &str) {
    if let Err(error) = api::validate_guest_mount(text) {
        one_line(&error);
    }
    match api::validate_guest_path_within_workspace(text, "/work") {
        Ok(()) => {
            // By its components alone, and so with more of them behind it.
            let below = format!("{text}/x");
            api::validate_guest_path_within_workspace(&below, "/work").unwrap();
            api::validate_guest_path_within_workspace(text, "/").unwrap();
            // What is in one workspace is not in another beside it.
            api::validate_guest_path_within_workspace(text, "/workspace").unwrap_err();
        }
        Err(error) => one_line(&error),
    }
}

/// The words of a command as a POSIX shell has them (2.2 Quoting, 2.3 Token
/// Recognition). Whatever would make it do more than that is a defect.
fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        match c {
            ' ' | '\t' | '\n' => {
                assert_eq!(c, ' ', "only blanks are between words: {text:?}");
                words.extend(word.take());
            }
            '\'' => loop {
                match rest.next().expect("the other quote") {
                    '\'' => break word.get_or_insert_default().push_str(""),
                    quoted => word.get_or_insert_default().push(quoted),
                }
            },
            '\\' => {
                let quoted = rest.next().expect("what is quoted");
                assert_ne!(quoted, '\n', "no character: {text:?}");
                word.get_or_insert_default().push(quoted);
            }
            '~' | '#' => {
                let inner = word.as_mut().expect("within a word it is one like others");
                inner.push(c);
            }
            _ => {
                assert!(!"\"`$|&;<>()*?[!{".contains(c), "{c:?} in {text:?}");
                assert!(!(c == '=' && words.is_empty()), "an assignment: {text:?}");
                word.get_or_insert_default().push(c);
            }
        }
    }
    words.extend(word);
    words
}

/// A configuration, of which the first byte says in which form it is: one that is
/// read can be written and is the same again, in itself it changes nothing, and
/// whatever is said of it is one line without its secrets.
pub fn config(data: &[u8]) {
    let Some((form, data)) = data.split_first() else {
        return;
    };
    let parsed = match form % 2 {
        0 => Config::from_json(data),
        _ => match std::str::from_utf8(data) {
            Ok(text) => from_toml(text),
            Err(_) => return,
        },
    };
    let parsed = match parsed {
        Ok(parsed) => parsed,
        Err(error) => return one_line(&error),
    };
    assert!(parsed.warnings.len() <= api::MAX_LISTED);
    for warning in &parsed.warnings {
        one_line(warning);
    }
    let config = parsed.config;
    match config.validate() {
        Ok(()) => {
            for warning in config.warnings() {
                one_line(&warning);
            }
        }
        Err(errors) => one_line(&errors),
    }
    let _ = config.validate_request();
    // TOML has a number that is none, and is not equal to itself.
    let cpus = config
        .resources
        .as_ref()
        .and_then(|resources| resources.cpus);
    if cpus.is_some_and(|cpus| !cpus.is_finite()) {
        config.validate().unwrap_err();
        return;
    }
    let written = serde_json::to_vec(&config).unwrap();
    if written.len() <= api::MAX_CONFIG_BYTES {
        let again = Config::from_json(&written).unwrap();
        assert!(again.warnings.is_empty(), "{:?}", again.warnings);
        assert_eq!(again.config, config);
    }
    assert_eq!(config.clone().merge(config.clone()), config);
    assert_eq!(Config::default().merge(config.clone()), config);
    assert_eq!(config.clone().merge(Config::default()), config);
    let all = Config::with_defaults().merge(config.clone());
    assert_eq!(all.clone().merge(config.clone()), all);
    if config.validate().is_ok() {
        all.validate().expect("defaults make nothing wrong");
        let open = config
            .network
            .as_ref()
            .and_then(|network| network.block_private_ips);
        assert_eq!(
            all.network.as_ref().unwrap().blocks_private_ips(),
            open != Some(false)
        );
        of_valid(&config);
    }
    let redacted = config.redacted();
    for secret in redacted
        .network
        .iter()
        .flat_map(|network| network.secrets.values())
    {
        assert!(secret.value.is_empty());
    }
    assert_eq!(redacted.redacted(), redacted);
}

fn from_toml(text: &str) -> Result<api::Parsed, api::ParseError> {
    let parsed = Config::from_toml(text);
    let strict = Config::from_toml_strict(text);
    match (&parsed, &strict) {
        (Ok(parsed), Ok(_)) => assert!(parsed.warnings.is_empty()),
        (Ok(parsed), Err(error)) => {
            assert!(!parsed.warnings.is_empty());
            assert!(matches!(error, api::ParseError::Unknown { .. }), "{error}");
            one_line(error);
        }
        (Err(error), strict) => assert_eq!(strict.as_ref().unwrap_err(), error),
    }
    parsed
}

/// What follows from a configuration that makes sense.
fn of_valid(config: &Config) {
    if let Some(network) = &config.network {
        if let Some(interception) = &network.interception {
            let effective = interception.effective_rules();
            let mut again = interception.clone();
            again.rules.clone_from(&effective);
            assert_eq!(again.effective_rules(), effective);
            let mut config = config.clone();
            config.network.as_mut().unwrap().interception = Some(again);
            config.validate().expect("rules in one form are as good");
        }
        for (name, secret) in &network.secrets {
            assert!(!name.is_empty() && !secret.value.is_empty());
        }
    }
    if let Some(vfs) = &config.vfs {
        for path in vfs.mounts.keys() {
            let workspace = config.workspace().expect("mounts are in a workspace");
            api::validate_guest_path_within_workspace(path, workspace).unwrap();
        }
    }
}
