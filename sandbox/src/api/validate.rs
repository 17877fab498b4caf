//! Whether a configuration makes sense, before anything is made from it.

mod hooks;
mod network;
mod vfs;

use std::collections::BTreeMap;

use flashpan_protocol::control::{MAX_DISKS, VCPUS};
use flashpan_rootfs::disk::{SIZE_MAX, SIZE_MIN};
use thiserror::Error;

use super::code::ErrorCode;
use super::config::{Config, ID_PREFIX};
use super::image::ImageConfig;
use super::problem::{
    FieldPath, ProblemKind, Problems, ValidationErrors, Warning, Warnings, quoted,
};
use super::resources::{Resources, is_valid_cpu_count};
use crate::config::MIN_MEMORY_MIB;

/// Most disks besides that of the root and the one that takes writes to it.
pub const MAX_EXTRA_DISKS: usize = MAX_DISKS - 2;

const MIB: u64 = 1024 * 1024;

/// What a host has. A limit that is `None` is not checked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct HostLimits {
    /// Processors.
    pub cpus: Option<u32>,
    /// Memory in MiB.
    pub memory_mb: Option<u64>,
}

impl HostLimits {
    /// What this host has, as far as it tells.
    #[must_use]
    pub fn of_this_host() -> Self {
        let cpus = std::thread::available_parallelism().ok();
        let memory = nix::sys::sysinfo::sysinfo().ok();
        Self {
            cpus: cpus.and_then(|cpus| u32::try_from(cpus.get()).ok()),
            memory_mb: memory.map(|info| info.ram_total() / MIB),
        }
    }
}

/// Why a VM cannot be made from a request.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RequestError {
    /// It names no image.
    #[error("image is required (e.g., alpine:latest)")]
    ImageRequired,
    /// It sets the id.
    #[error("id is internal-only and cannot be set")]
    IdGiven,
    /// The configuration is invalid.
    #[error(transparent)]
    Invalid(#[from] ValidationErrors),
}

impl RequestError {
    /// The stable name of the error.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::ImageRequired => ErrorCode::ImageRequired,
            Self::IdGiven => ErrorCode::IdGiven,
            Self::Invalid(errors) => errors.code(),
        }
    }
}

impl Config {
    /// Checks everything that can be checked without the host and the image, and
    /// tells all that is wrong. Nothing on the host is looked at.
    ///
    /// # Errors
    /// [`ValidationErrors`], with the path of each field.
    pub fn validate(&self) -> Result<(), ValidationErrors> {
        self.validate_on(&HostLimits::default())
    }

    /// The same, and that the host has what is asked for.
    ///
    /// # Errors
    /// [`ValidationErrors`], with the path of each field.
    pub fn validate_on(&self, host: &HostLimits) -> Result<(), ValidationErrors> {
        let mut problems = Problems::default();
        if let Some(network) = &self.network {
            network::check(network, &mut problems);
        }
        if let Some(vfs) = &self.vfs {
            vfs::check(vfs, &mut problems);
        }
        vfs::check_disks(&self.extra_disks, self.vfs.as_ref(), &mut problems);
        if let Some(resources) = &self.resources {
            check_resources(resources, host, &mut problems);
        }
        check_id(&self.id, &mut problems);
        check_image(&self.image, &mut problems);
        check_env(&self.env, &FieldPath::top("env"), &mut problems);
        if let Some(image) = &self.image_config {
            check_image_config(image, &mut problems);
        }
        problems.into_result()
    }

    /// Checks what a client asks to make a VM from, before it is put over the
    /// defaults: that there is an image and no id, and [`Config::validate`].
    ///
    /// # Errors
    /// [`RequestError`].
    pub fn validate_request(&self) -> Result<(), RequestError> {
        if self.image.is_empty() {
            return Err(RequestError::ImageRequired);
        }
        if !self.id.is_empty() {
            return Err(RequestError::IdGiven);
        }
        Ok(self.validate()?)
    }

    /// What is accepted and has no effect, besides unknown fields
    /// ([`crate::api::Parsed::warnings`]).
    #[must_use]
    pub fn warnings(&self) -> Vec<Warning> {
        let mut warnings = Warnings::default();
        if let Some(network) = &self.network {
            network::warn(network, &mut warnings);
        }
        if let Some(vfs) = &self.vfs {
            vfs::warn(vfs, &mut warnings);
        }
        warnings.0
    }
}

fn check_resources(resources: &Resources, host: &HostLimits, problems: &mut Problems) {
    let top = FieldPath::top("resources");
    if let Some(cpus) = resources.cpus {
        let at = top.field("cpus");
        let most = f64::from(*VCPUS.end());
        let host = host.cpus.map(f64::from);
        if !is_valid_cpu_count(cpus) {
            let why = format!("must be a finite number > 0, not {cpus}");
            problems.add(&at, ProblemKind::OutOfRange, why);
        } else if cpus > most {
            let why = format!("{cpus} is more than {most}, the most that a VM can have");
            problems.add(&at, ProblemKind::OutOfRange, why);
        } else if let Some(host) = host.filter(|host| cpus > *host) {
            let why = format!("must be <= host cpus ({host}), not {cpus}");
            problems.add(&at, ProblemKind::OutOfRange, why);
        }
    }
    let most_memory = host.memory_mb.unwrap_or(u64::MAX).min(u32::MAX.into());
    let disk = SIZE_MIN / MIB..=SIZE_MAX / MIB;
    for (name, unit, value, range) in [
        (
            "memory_mb",
            "MiB",
            resources.memory_mb,
            MIN_MEMORY_MIB..=most_memory,
        ),
        ("disk_size_mb", "MiB", resources.disk_size_mb, disk),
        (
            "timeout_seconds",
            "seconds",
            resources.timeout_seconds,
            1..=u32::MAX.into(),
        ),
    ] {
        if let Some(value) = value.filter(|value| !range.contains(value)) {
            let (least, most) = (range.start(), range.end());
            let much = if value < *least { "little" } else { "much" };
            let why = format!("{value} {unit} is too {much}: want {least} {unit} to {most} {unit}");
            problems.add(&top.field(name), ProblemKind::OutOfRange, why);
        }
    }
}

/// An id becomes the name of a directory.
fn check_id(id: &str, problems: &mut Problems) {
    let is_digit = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
    let digits = id.strip_prefix(ID_PREFIX).unwrap_or_default();
    if !id.is_empty() && (digits.len() != 8 || !digits.bytes().all(is_digit)) {
        let why = format!("{} is not {ID_PREFIX} and 8 hexadecimal digits", quoted(id));
        problems.add(&FieldPath::top("id"), ProblemKind::Malformed, why);
    }
}

fn check_image(image: &str, problems: &mut Problems) {
    if image.contains(|c: char| c.is_whitespace() || c.is_control()) {
        let why = "an image's name has no blanks and control characters";
        problems.add(&FieldPath::top("image"), ProblemKind::Malformed, why);
    }
}

/// Variables as a program can be given them.
fn check_env(env: &BTreeMap<String, String>, at: &FieldPath, problems: &mut Problems) {
    for (name, value) in env {
        check_variable_name(name, &at.field(name), problems);
        if value.contains('\0') {
            problems.add(
                &at.field(name),
                ProblemKind::Malformed,
                "the value contains a NUL",
            );
        }
    }
}

fn check_variable_name(name: &str, at: &FieldPath, problems: &mut Problems) {
    if name.trim().is_empty() {
        problems.add(
            at,
            ProblemKind::Malformed,
            "the name of a variable is empty",
        );
    } else if name.contains(['=', '\0']) {
        problems.add(
            at,
            ProblemKind::Malformed,
            "the name of a variable contains `=` or a NUL",
        );
    }
}

fn check_image_config(image: &ImageConfig, problems: &mut Problems) {
    let top = FieldPath::top("image_config");
    if image.user.contains('\0') {
        problems.add(&top.field("user"), ProblemKind::Malformed, "contains a NUL");
    }
    if !image.working_dir.is_empty() {
        let at = top.field("working_dir");
        if !image.working_dir.starts_with('/') {
            let why = format!("{} is not an absolute path", quoted(&image.working_dir));
            problems.add(&at, ProblemKind::Malformed, why);
        }
        if image.working_dir.contains('\0') {
            problems.add(&at, ProblemKind::Malformed, "contains a NUL");
        }
    }
    for (name, list) in [("entrypoint", &image.entrypoint), ("cmd", &image.cmd)] {
        for (index, argument) in list.iter().flatten().enumerate() {
            if argument.contains('\0') {
                let at = top.field(name).index(index);
                problems.add(&at, ProblemKind::Malformed, "contains a NUL");
            }
        }
    }
    if let Some(env) = &image.env {
        check_env(env, &top.field("env"), problems);
    }
}

#[cfg(test)]
mod tests;
