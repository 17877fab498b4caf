//! The data of the interface: what a VM is made from, what it reports, and the
//! forms in which people write these things.
//!
//! Names and forms in JSON are those of the API of matchlock, so its clients
//! work with this. [`Config`] is the beginning; docs/config.md describes every
//! field and what is done differently.
//!
//! Nothing here does anything to the host: it reads texts, checks them and writes
//! them. Only the readers of files and variables look at the host
//! ([`parse_env_file`], [`EnvVar`], [`NamedSecret`], [`VolumeMountSpec`]).
//!
//! Every error has one line of text and a [`ErrorCode`] that stays the same.

#[cfg(test)]
mod arbitrary;
mod callback;
mod code;
mod config;
mod env;
mod event;
mod exec;
mod file;
mod guest_path;
mod hook;
mod host_entry;
mod image;
mod lenient;
mod merge;
mod network;
mod normal;
mod parse;
mod pattern;
mod port;
mod problem;
mod resources;
#[cfg(test)]
mod schema;
mod secret;
mod secret_spec;
mod shell;
mod timestamp;
mod validate;
mod vfs;
mod volume;
mod words;

pub use callback::{
    Headers, NetworkHookCallbackRequest, NetworkHookCallbackResponse, NetworkHookRequestMutation,
    NetworkHookResponseMutation,
};
pub use code::{ErrorCode, RpcCode};
pub use config::{Config, ID_PREFIX};
pub use env::{EnvError, EnvVar, MAX_ENV_LINE, parse_env_file, parse_envs};
pub use event::{BlockReason, Event, EventKind, ExecEvent, FileEvent, NetworkEvent};
pub use exec::{ExecOptions, ExecResult};
pub use file::{FileInfo, FileMode};
pub use guest_path::{
    GuestPathError, validate_guest_mount, validate_guest_path_within_workspace,
    validate_vfs_mounts_within_workspace,
};
pub use hook::{
    HookPhase, NetworkBodyTransform, NetworkHookAction, NetworkHookRule, NetworkInterceptionConfig,
};
pub use host_entry::{AddHostError, HostIpMapping};
pub use image::ImageConfig;
pub use lenient::MAX_ENTRIES;
pub use network::{DEFAULT_DNS_SERVERS, DEFAULT_NETWORK_MTU, NetworkConfig};
pub use parse::{MAX_CONFIG_BYTES, ParseError, Parsed, Position};
pub use port::{PortForward, PortForwardBinding, PortForwardError};
pub use problem::{FieldError, MAX_LISTED, ProblemKind, ValidationErrors, Warning};
pub use resources::{
    DEFAULT_CPUS, DEFAULT_DISK_SIZE_MB, DEFAULT_GRACEFUL_SHUTDOWN_PERIOD, DEFAULT_MEMORY_MB,
    DEFAULT_TIMEOUT_SECONDS, Resources, is_valid_cpu_count, vcpu_count,
};
pub use secret::{SECRET_PLACEHOLDER_PREFIX, Secret, SecretValue};
pub use secret_spec::{NamedSecret, SecretSpecError};
pub use shell::shell_quote_args;
pub use timestamp::{Timestamp, TimestampError};
pub use validate::{HostLimits, MAX_EXTRA_DISKS, RequestError};
pub use vfs::{
    DEFAULT_WORKSPACE, DirectMount, DiskMount, FileOp, MountConfig, MountType, VfsConfig,
    VfsHookAction, VfsHookRule, VfsInterceptionConfig,
};
pub use volume::{VolumeError, VolumeMountSpec};

/// The JSON Schema (draft 2020-12) of [`Config`], as in docs/config.schema.json.
pub const CONFIG_SCHEMA: &str = include_str!("../../../docs/config.schema.json");
