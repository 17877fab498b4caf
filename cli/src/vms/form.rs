//! What fields a VM can have, those that are not set among them: a template that names one
//! of these is right, and any other is mistyped.

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use flashpan::launch::{HostOptions, ImageSource, RootSource, TimeLimit, UpperSource};
use flashpan::state::{CommandEnd, ExitRecord, Record, Run};
use flashpan::{ExitReason, Transport};
use serde::Serialize;
use serde_json::{Value, json};

/// The form of a whole configuration.
static CONFIG: LazyLock<Value> = LazyLock::new(|| {
    let text = include_str!("../../../docs/config.schema.json");
    serde_json::from_str(text).unwrap_or_default()
});

/// What can be below a field.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) enum Form {
    /// Nothing.
    #[default]
    Leaf,
    /// Entries by their numbers.
    List(Box<Form>),
    /// Entries by their keys, whatever these are.
    Map(Box<Form>),
    Fields(BTreeMap<String, Form>),
    /// What this part of the form of a configuration says: a mount can be below a mount.
    Described(&'static Value),
}

impl Form {
    /// Of everything that `flashpan inspect` prints of a VM.
    pub(super) fn of_vm() -> Self {
        let mut vm = Self::like(&record());
        let launch = [
            ("config".to_owned(), Self::Described(&CONFIG)),
            ("options".to_owned(), Self::of_options()),
        ];
        let more = [
            ("launch", Self::Fields(launch.into())),
            ("run", Self::like(&run())),
            ("exit", Self::of_exit()),
        ];
        let leaves = ["status", "directory", "disk_bytes"];
        let more = more
            .into_iter()
            .chain(leaves.map(|name| (name, Self::Leaf)))
            .map(|(name, form)| (name.to_owned(), form));
        vm.join(Self::Fields(more.collect()));
        vm
    }

    fn of_exit() -> Self {
        let mut exit = Self::Leaf;
        for reason in reasons() {
            exit.join(Self::like(&ExitRecord {
                version: 0,
                run: 0,
                ended_at: SystemTime::UNIX_EPOCH.into(),
                reason: Some(reason),
                message: String::new(),
                orderly: false,
                timed_out: false,
                command: Some(command_end()),
            }));
        }
        exit
    }

    fn of_options() -> Self {
        let mut form = Self::Leaf;
        for options in options() {
            form.join(Self::like(&options));
        }
        form
    }

    /// The form of a value of which everything is set.
    fn like(value: &impl Serialize) -> Self {
        serde_json::to_value(value).map_or(Self::Leaf, |value| Self::of(&value))
    }

    fn of(value: &Value) -> Self {
        match value {
            Value::Array(list) => Self::List(Box::new(list.first().map_or(Self::Leaf, Self::of))),
            // Of what has fields at least one is set here.
            Value::Object(map) if map.is_empty() => Self::Map(Box::default()),
            Value::Object(map) => {
                let fields = map
                    .iter()
                    .map(|(name, value)| (name.clone(), Self::of(value)));
                Self::Fields(fields.collect())
            }
            _ => Self::Leaf,
        }
    }

    /// The form that a part of a JSON schema describes, and no further than the next
    /// names.
    fn described(part: &'static Value) -> Self {
        let below = |name: &str| part.get(name);
        if let Some(path) = below("$ref").and_then(Value::as_str) {
            let pointer = path.strip_prefix('#').filter(|pointer| !pointer.is_empty());
            let named = pointer.and_then(|pointer| CONFIG.pointer(pointer));
            return named.map_or(Self::Leaf, Self::described);
        }
        if let Some(choices) = below("anyOf").and_then(Value::as_array) {
            let mut form = Self::Leaf;
            for choice in choices {
                form.join(Self::described(choice));
            }
            return form;
        }
        if let Some(fields) = below("properties").and_then(Value::as_object) {
            let fields = fields
                .iter()
                .map(|(name, part)| (name.clone(), Self::Described(part)));
            return Self::Fields(fields.collect());
        }
        match (below("additionalProperties"), below("items")) {
            (Some(part), _) => Self::Map(Box::new(Self::Described(part))),
            (None, Some(part)) => Self::List(Box::new(Self::Described(part))),
            (None, None) => Self::Leaf,
        }
    }

    /// The same, with its names.
    pub(super) fn open(self) -> Self {
        match self {
            Self::Described(part) => Self::described(part),
            form => form,
        }
    }

    /// With what is below another form of the same field.
    fn join(&mut self, other: Self) {
        match (self, other) {
            (_, Self::Leaf) => {}
            (Self::Fields(own), Self::Fields(others)) => {
                for (name, form) in others {
                    own.entry(name).or_default().join(form);
                }
            }
            (own, other) => *own = other,
        }
    }

    /// What is below it of that name, or as docker would write that.
    pub(super) fn member(&self, name: &str) -> Option<Self> {
        match self {
            Self::Leaf => None,
            Self::Described(_) => self.clone().open().member(name),
            Self::List(entry) => name.parse::<usize>().ok().map(|_| entry.as_ref().clone()),
            Self::Map(entry) => Some(entry.as_ref().clone()),
            Self::Fields(fields) => {
                let exact = fields.get(name).cloned();
                exact.or_else(|| {
                    let name = folded(name);
                    let mut all = fields.iter();
                    all.find(|(key, _)| folded(key) == name)
                        .map(|of| of.1.clone())
                })
            }
        }
    }

    /// The names of its fields.
    pub(super) fn names(&self) -> Vec<String> {
        match self.clone().open() {
            Self::Fields(fields) => fields.into_keys().collect(),
            _ => Vec::new(),
        }
    }
}

/// A name without what docker writes otherwise.
pub(super) fn folded(name: &str) -> String {
    name.replace('_', "").to_ascii_lowercase()
}

fn record() -> Record {
    Record {
        name: Some(String::new()),
        image: Some(String::new()),
        publish: read(&json!({"ports": ["1:1"], "addresses": ["::"]})),
        grace_ms: Some(0),
        programs: read(&json!({"env": [["", ""]]})),
        ..Record::new(Value::Null)
    }
}

fn run() -> Run {
    let port = json!({"transport": Transport::Tcp, "address": "[::]:1", "remote_port": 1});
    Run {
        version: 0,
        number: 0,
        started_at: SystemTime::UNIX_EPOCH.into(),
        attended: true,
        command: Some(command_end()),
        ports: read(&json!([port])),
    }
}

fn command_end() -> CommandEnd {
    CommandEnd {
        code: 0,
        signal: Some(0),
    }
}

/// Reasons that have all fields that one can have.
fn reasons() -> [ExitReason; 5] {
    let text = String::new;
    [
        ExitReason::AskedByProgram { reboot: false },
        ExitReason::GuestFailed {
            what: text(),
            why: text(),
        },
        ExitReason::TimedOut {
            after: Duration::ZERO,
            orderly: false,
        },
        ExitReason::VmmDied {
            status: text(),
            stderr: Some(text()),
        },
        ExitReason::VmmStuck {
            pid: 0,
            message: text(),
        },
    ]
}

/// Options that have all fields that a host's can have.
fn options() -> [HostOptions; 2] {
    let rate = json!({
        "bytes_per_second": 4096,
        "burst_bytes": 4096,
        "operations_per_second": 1,
        "burst_operations": 1,
    });
    let mut all: HostOptions = read(&json!({
        "pids_limit": 1,
        "disk_rate": rate,
        "network_rate": rate,
        "vmm": "/",
        "guest_init": "/",
    }));
    all.root = RootSource::Image(ImageSource::default());
    all.upper = UpperSource::Disk("/".into());
    all.time_limit = TimeLimit::After(Duration::ZERO);
    let mut others = HostOptions::default();
    others.root = RootSource::Path("/".into());
    [all, others]
}

/// A value that is written here, as its type has it.
fn read<T: serde::de::DeserializeOwned + Default>(value: &Value) -> T {
    T::deserialize(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(path: &str) -> Option<Form> {
        let mut form = Form::of_vm();
        for name in path.split('.') {
            form = form.member(name)?;
        }
        Some(form)
    }

    #[test]
    fn every_field_is_known_whether_it_is_set_or_not() {
        for path in [
            "name",
            "image",
            "grace_ms",
            "publish.ports.0",
            "publish.addresses.1",
            "programs.command.0",
            "programs.env.0.1",
            "run.attended",
            "run.ports",
            "run.command.signal",
            "run.ports.0.remote_port",
            "exit.command.signal",
            "exit.reason.kind",
            "exit.reason.message",
            "exit.reason.after.secs",
            "exit.reason.stderr",
            "exit.reason.what",
            "exit.reason.reboot",
            "exit.reason.pid",
            "launch.config.network.secrets.KEY.hosts.0",
            "launch.config.network.interception.rules.0.hosts.0",
            "launch.config.vfs.mounts./d.type",
            "launch.config.vfs.mounts./d.upper.lower.host_path",
            "launch.config.extra_disks.0.host_path",
            "launch.config.image_config.env.HOME",
            "launch.config.env.HOME",
            "launch.options.disk_rate.burst_operations",
            "launch.options.network_rate.bytes_per_second",
            "launch.options.pids_limit",
            "launch.options.vmm",
            "launch.options.guest_init",
            "launch.options.root.path",
            "launch.options.root.image.registries.mirrors.docker",
            "launch.options.upper.disk",
            "launch.options.time_limit.after",
            "launch.options.network",
            "Launch.Options.BootTimeoutMs",
            "status",
            "directory",
            "disk_bytes",
        ] {
            assert!(at(path).is_some(), "{path}");
        }
        for path in [
            "pid",
            "exit.reson",
            "exit.reason.kind.x",
            "launch.config.resources.cpu",
            "launch.config.extra_disks.first",
            "launch.config.network.xyz",
        ] {
            assert_eq!(at(path), None, "{path}");
        }
    }

    #[test]
    fn the_configuration_has_the_fields_that_are_published() {
        let config = at("launch.config").unwrap();
        let mut published: Vec<_> = CONFIG["properties"].as_object().unwrap().keys().collect();
        published.sort();
        assert_eq!(config.names().iter().collect::<Vec<_>>(), published);
    }
}
