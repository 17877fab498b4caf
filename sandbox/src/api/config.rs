//! The configuration of a VM.

use std::collections::BTreeMap;
use std::io;

use rustix::rand::{GetRandomFlags, getrandom};
use serde::{Deserialize, Serialize};

use super::image::ImageConfig;
use super::lenient;
use super::network::NetworkConfig;
use super::resources::Resources;
use super::vfs::{DiskMount, VfsConfig};

/// What the id of a VM begins with; 8 lower-case hexadecimal digits follow.
pub const ID_PREFIX: &str = "vm-";

/// The configuration of a VM: what a client sends, or what is in a file.
///
/// [`Config::default`] has nothing set; every field that is not set has the
/// default that its description tells, protection included.
/// [`Config::from_json`] and [`Config::from_toml`] read one,
/// [`Config::merge`] puts one over another, [`Config::validate`] checks it.
///
/// ```
/// use flashpan::api::{Config, NetworkConfig};
///
/// let mut over = Config::default();
/// over.image = "alpine:3.20".into();
/// over.network = Some(NetworkConfig::default());
/// let config = Config::with_defaults().merge(over);
/// config.validate()?;
/// assert!(config.network.unwrap().blocks_private_ips());
/// # Ok::<(), flashpan::api::ValidationErrors>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Config {
    /// The VM's id, `vm-` and 8 hexadecimal digits. Set by the host: a request
    /// that has it is refused.
    #[serde(
        default,
        deserialize_with = "lenient::null",
        skip_serializing_if = "String::is_empty"
    )]
    pub id: String,
    /// Name of the container image, e.g. `alpine:latest`. A request must have it.
    #[serde(
        default,
        deserialize_with = "lenient::null",
        skip_serializing_if = "String::is_empty"
    )]
    pub image: String,
    /// Whether programs in the guest keep all capabilities. Default false.
    #[serde(
        default,
        deserialize_with = "lenient::null",
        skip_serializing_if = "lenient::is_default"
    )]
    pub privileged: bool,
    /// Whether the image's own command is started in the background. Default
    /// false.
    #[serde(
        default,
        deserialize_with = "lenient::null",
        skip_serializing_if = "lenient::is_default"
    )]
    pub launch_entrypoint: bool,
    /// What the VM may use of the host.
    #[serde(
        default,
        deserialize_with = "lenient::object",
        skip_serializing_if = "Option::is_none"
    )]
    pub resources: Option<Resources>,
    /// What the guest may reach.
    #[serde(
        default,
        deserialize_with = "lenient::object",
        skip_serializing_if = "Option::is_none"
    )]
    pub network: Option<NetworkConfig>,
    /// What the guest sees of the host's files. Absent: nothing.
    #[serde(
        default,
        deserialize_with = "lenient::object",
        skip_serializing_if = "Option::is_none"
    )]
    pub vfs: Option<VfsConfig>,
    /// Variables of every program in the guest. Not for secrets.
    #[serde(
        default,
        deserialize_with = "lenient::map",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub env: BTreeMap<String, String>,
    /// Disk images that the guest mounts, in this order; at most 14.
    #[serde(
        default,
        deserialize_with = "lenient::objects",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub extra_disks: Vec<DiskMount>,
    /// What overrides how the image's programs want to be run.
    #[serde(
        default,
        deserialize_with = "lenient::object",
        skip_serializing_if = "Option::is_none"
    )]
    pub image_config: Option<ImageConfig>,
}

impl Config {
    /// The defaults that have a value, spelled out: resources, private addresses
    /// blocked, packets of 1500 bytes; no files of the host.
    #[must_use]
    pub fn with_defaults() -> Self {
        Self {
            resources: Some(Resources::with_defaults()),
            network: Some(NetworkConfig::with_defaults()),
            ..Self::default()
        }
    }

    /// The VM's id; a random one is made and kept if there is none.
    ///
    /// # Errors
    /// The host has no random numbers.
    pub fn id_or_new(&mut self) -> io::Result<&str> {
        if self.id.is_empty() {
            let mut random = [0; 4];
            let got = getrandom(&mut random, GetRandomFlags::empty())?;
            if got != random.len() {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
            }
            self.id = format!("{ID_PREFIX}{:08x}", u32::from_be_bytes(random));
        }
        Ok(&self.id)
    }

    /// The guest's name: as set, or the VM's id ([`Config::id_or_new`]).
    ///
    /// # Errors
    /// As [`Config::id_or_new`].
    pub fn hostname_or_id(&mut self) -> io::Result<&str> {
        let set = self
            .network
            .as_ref()
            .is_some_and(|network| !network.hostname.is_empty());
        if !set {
            return self.id_or_new();
        }
        let network = self.network.as_ref();
        Ok(network
            .map(|network| network.hostname.as_str())
            .unwrap_or_default())
    }

    /// The workspace, if it is set.
    #[must_use]
    pub fn workspace(&self) -> Option<&str> {
        self.vfs.as_ref()?.workspace()
    }

    /// Whether the guest has mounts in its workspace.
    #[must_use]
    pub fn has_vfs_mounts(&self) -> bool {
        self.vfs.as_ref().is_some_and(|vfs| !vfs.mounts.is_empty())
    }

    /// The same without the values of secrets: for storing and showing. It does
    /// not pass [`Config::validate`] if there were secrets.
    #[must_use]
    pub fn redacted(&self) -> Self {
        let mut redacted = self.clone();
        if let Some(network) = &mut redacted.network {
            for secret in network.secrets.values_mut() {
                *secret = secret.redacted();
            }
        }
        redacted
    }
}

#[cfg(test)]
mod tests;
