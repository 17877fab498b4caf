//! What a host adds to a configuration.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use flashpan_protocol::control::{BootProtocol, Console};
use flashpan_rootfs::platform::Platform;
use serde::{Deserialize, Serialize};

use crate::api::Config;
use crate::client_certificate::ClientCertificate;
use crate::config::DEFAULT_BOOT_TIMEOUT;
use crate::network::Network;
use crate::rate::RateLimit;

/// What a host adds to a [`crate::api::Config`]: what is none of a client's
/// business, or depends on this machine. It can be stored; there is no secret in
/// it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct HostOptions {
    /// The kernel: an uncompressed ELF or a bzImage.
    pub kernel: PathBuf,
    /// More arguments for the kernel, printable ASCII, at most 1024 bytes.
    pub kernel_args: String,
    /// How the kernel is entered.
    pub boot_protocol: BootProtocol,
    /// How long the guest may take to become ready; in JSON in milliseconds.
    /// Default one minute.
    #[serde(rename = "boot_timeout_ms", with = "milliseconds")]
    pub boot_timeout: Duration,
    /// Where the root file system comes from.
    pub root: RootSource,
    /// What takes the guest's writes to its root.
    pub upper: UpperSource,
    /// What the serial port is for.
    pub console: Console,
    /// Most processes and threads of all programs of the guest together; as many as
    /// its memory allows if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids_limit: Option<u32>,
    /// How much I/O every disk of the VM does at most, those of its root included.
    /// Each has the limit for itself: two disks together may do twice as much. As
    /// much as the host does if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_rate: Option<RateLimit>,
    /// What network the VM has; none if its configuration says so (`network.no_network`).
    #[serde(default)]
    pub network: Network,
    /// Where values of secrets come from, by their names, when the VM is started again. The
    /// values themselves are never kept.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub secret_sources: BTreeMap<String, SecretSource>,
    /// Names of secrets whose values in the configuration are not those of their sources: they
    /// hold until a source changes. Values of all others were read from their sources, and
    /// follow what became of these meanwhile. Not stored.
    #[serde(skip)]
    pub secrets_given: BTreeSet<String>,
    /// How often commands that values come from are run again while the VM runs; never if
    /// it is not there. Files are read again when they change. In JSON in milliseconds.
    #[serde(
        rename = "secret_refresh_ms",
        skip_serializing_if = "Option::is_none",
        with = "some_milliseconds"
    )]
    pub secret_refresh: Option<Duration>,
    /// Files with authorities, in PEM, that hosts are verified by when TLS is looked into,
    /// besides those that this host trusts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub upstream_ca_files: Vec<PathBuf>,
    /// Certificates that hosts get which ask for one. Of them only the paths are kept: they
    /// are read at each start.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub client_certificates: Vec<ClientCertificate>,
    /// How much passes the VM's network card at most, in each direction for itself; as
    /// much as the host does if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_rate: Option<RateLimit>,
    /// The VMM program; looked up if there is none ([`crate::vmm_program`]).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vmm: Option<PathBuf>,
    /// The guest's PID 1; looked up if there is none
    /// ([`crate::guest_init_program`]).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guest_init: Option<PathBuf>,
    /// Whether the VMM is killed when the thread that boots it ends
    /// ([`crate::SandboxBuilder::end_with_thread`]). Not stored.
    #[serde(skip)]
    pub end_with_thread: bool,
    /// How long the VM may run, if not as `resources.timeout_seconds` says.
    pub time_limit: TimeLimit,
}

/// Where the value of a secret comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum SecretSource {
    /// A variable of the process that starts the VM.
    Env(String),
    /// A file, without the line break at its end.
    File(PathBuf),
    /// What a command prints, without the line break at its end, run by a shell.
    Command(String),
}

/// How long a VM may run once its guest is ready.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum TimeLimit {
    /// As `resources.timeout_seconds` says.
    #[default]
    Configured,
    /// This long; in JSON in milliseconds.
    After(#[serde(with = "milliseconds")] Duration),
    /// As long as it likes.
    Unlimited,
}

/// Where the root file system comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RootSource {
    /// The container image that the configuration names.
    Image(ImageSource),
    /// A directory (made into an image once, and again when it changes), an EROFS
    /// image or an ext4 image. The configuration names no image then.
    Path(PathBuf),
    /// A small one with busybox. The configuration names no image then.
    BuiltIn,
}

impl Default for RootSource {
    fn default() -> Self {
        Self::Image(ImageSource::default())
    }
}

/// How a container image is got.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct ImageSource {
    /// When it is pulled.
    pub pull: PullPolicy,
    /// Of an image for several platforms, which one.
    #[serde(with = "text")]
    pub platform: Platform,
    /// How registries are spoken to.
    pub registries: RegistryOptions,
}

/// When an image is pulled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum PullPolicy {
    /// If it is not there.
    #[default]
    Missing,
    /// Whenever the registry has another one.
    Always,
    /// Not at all.
    Never,
}

/// How registries are spoken to. Credentials are those that docker and podman have
/// stored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct RegistryOptions {
    /// Registries in plain HTTP, as `host:port`, or `host` for all its ports.
    pub insecure: Vec<String>,
    /// Files with certificates of authorities to trust besides the host's.
    pub ca_files: Vec<PathBuf>,
    /// Where to ask before the registry itself, as `host[:port][/prefix]`, by
    /// registry.
    pub mirrors: BTreeMap<String, Vec<String>>,
}

/// What takes the guest's writes to its root.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum UpperSource {
    /// A disk of `resources.disk_size_mb` that is gone at the end.
    #[default]
    Scratch,
    /// The guest's memory.
    Memory,
    /// Nothing: the root is read-only.
    ReadOnly,
    /// A disk in this file, for a VM that is stopped and started again. It is made,
    /// with `resources.disk_size_mb`, if it is not there.
    Disk(PathBuf),
}

impl HostOptions {
    /// A VM with this kernel; everything else has its default.
    pub fn new(kernel: impl Into<PathBuf>) -> Self {
        Self {
            kernel: kernel.into(),
            ..Self::default()
        }
    }

    /// What network a VM of this configuration has.
    pub(crate) fn network_of(&self, config: &Config) -> Network {
        self.network.of(config)
    }

    /// With another root than a container image.
    #[must_use]
    pub fn root(mut self, root: RootSource) -> Self {
        self.root = root;
        self
    }

    /// With something else than a scratch disk for the writes to the root.
    #[must_use]
    pub fn upper(mut self, upper: UpperSource) -> Self {
        self.upper = upper;
        self
    }

    /// The same with all paths absolute, relative ones counted from `base`: for
    /// another process to use.
    #[must_use]
    pub fn absolute(mut self, base: &Path) -> Self {
        let full = |path: &mut PathBuf| *path = base.join(&*path);
        full(&mut self.kernel);
        self.vmm.as_mut().map(full);
        self.guest_init.as_mut().map(full);
        self.upstream_ca_files.iter_mut().for_each(full);
        for certificate in &mut self.client_certificates {
            certificate.change_paths(full);
        }
        for source in self.secret_sources.values_mut() {
            if let SecretSource::File(path) = source {
                full(path);
            }
        }
        if let UpperSource::Disk(path) = &mut self.upper {
            full(path);
        }
        match &mut self.root {
            RootSource::Path(path) => full(path),
            RootSource::Image(image) => image.registries.ca_files.iter_mut().for_each(full),
            RootSource::BuiltIn => {}
        }
        self
    }
}

impl Default for HostOptions {
    fn default() -> Self {
        Self {
            kernel: PathBuf::new(),
            kernel_args: String::new(),
            boot_protocol: BootProtocol::default(),
            boot_timeout: DEFAULT_BOOT_TIMEOUT,
            root: RootSource::default(),
            upper: UpperSource::default(),
            console: Console::default(),
            pids_limit: None,
            disk_rate: None,
            network: Network::default(),
            secret_sources: BTreeMap::new(),
            secrets_given: BTreeSet::new(),
            secret_refresh: None,
            upstream_ca_files: Vec::new(),
            client_certificates: Vec::new(),
            network_rate: None,
            vmm: None,
            guest_init: None,
            end_with_thread: false,
            time_limit: TimeLimit::default(),
        }
    }
}

mod milliseconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_millis)
    }
}

/// The same where there may be none.
mod some_milliseconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(
        time: &Option<Duration>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        match time {
            Some(time) => super::milliseconds::serialize(time, to),
            None => to.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D>(from: D) -> Result<Option<Duration>, D::Error>
    where
        D: Deserializer<'de>,
    {
        let milliseconds = Option::<u64>::deserialize(from)?;
        Ok(milliseconds.map(Duration::from_millis))
    }
}

/// A value that is written as it is read.
mod text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &impl Display, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(value)
    }

    pub(super) fn deserialize<'de, D, T>(from: D) -> Result<T, D::Error>
    where
        D: Deserializer<'de>,
        T: FromStr<Err: Display>,
    {
        let text = String::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_come_back_as_they_were_stored() {
        let mut image = ImageSource {
            pull: PullPolicy::Never,
            platform: Platform::new("linux", "arm64", Some("v8")),
            ..ImageSource::default()
        };
        image.registries.insecure.push("localhost:5000".into());
        let mirrors = vec!["mirror.example/hub".to_owned()];
        image.registries.mirrors.insert("docker.io".into(), mirrors);
        let mut options = HostOptions::new("/k").root(RootSource::Image(image));
        options.boot_timeout = Duration::from_millis(1500);
        options.upper = UpperSource::Disk("/vm/upper.ext4".into());
        let limit = RateLimit::default().bytes_per_second(1 << 20);
        options.disk_rate = Some(limit.operations_per_second(100).burst_operations(500));
        options.time_limit = TimeLimit::After(Duration::from_millis(500));
        let others = [RootSource::Path("/r".into()), RootSource::BuiltIn];
        let others = others.map(|root| HostOptions::new("/k").root(root));
        for options in others.into_iter().chain([options]) {
            let json = serde_json::to_string(&options).unwrap();
            assert_eq!(serde_json::from_str::<HostOptions>(&json).unwrap(), options);
        }
        // What an older version has not written has its default.
        let old: HostOptions = serde_json::from_str(r#"{"kernel":"/k"}"#).unwrap();
        assert_eq!(old, HostOptions::new("/k"));
    }

    #[test]
    fn relative_paths_count_from_a_directory() {
        let mut options = HostOptions::new("k").root(RootSource::Path("r".into()));
        options.upper = UpperSource::Disk("/abs".into());
        let options = options.absolute(Path::new("/base"));
        assert_eq!(options.kernel, Path::new("/base/k"));
        assert_eq!(options.root, RootSource::Path("/base/r".into()));
        assert_eq!(options.upper, UpperSource::Disk("/abs".into()));
    }
}
