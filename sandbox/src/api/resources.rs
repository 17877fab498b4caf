//! What a VM may use of the host.

use std::time::Duration;

use serde::{Deserialize, Serialize, Serializer};

use super::lenient;

/// Processors of a VM unless asked otherwise.
pub const DEFAULT_CPUS: f64 = 1.0;

/// Memory of a VM in MiB unless asked otherwise.
pub const DEFAULT_MEMORY_MB: u64 = 512;

/// Size of a VM's writable disk in MiB unless asked otherwise.
pub const DEFAULT_DISK_SIZE_MB: u64 = 5120;

/// Time limit in seconds unless asked otherwise.
pub const DEFAULT_TIMEOUT_SECONDS: u64 = 300;

/// How long a VM may take to shut down before it is killed, unless asked
/// otherwise: no time at all.
pub const DEFAULT_GRACEFUL_SHUTDOWN_PERIOD: Duration = Duration::ZERO;

/// What a VM may use of the host. A field that is `None` has its default; in
/// JSON and TOML such a field is absent, `null` or 0.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Resources {
    /// Processors; fractions are allowed. More than 0, at most 32, and at most
    /// what the host has. The guest gets as many vCPUs as the next whole number.
    /// Default 1.
    #[serde(
        default,
        deserialize_with = "lenient::zero",
        serialize_with = "whole_if_possible",
        skip_serializing_if = "Option::is_none"
    )]
    #[cfg_attr(test, schemars(range(min = 0, max = 32)))]
    pub cpus: Option<f64>,
    /// Memory in MiB, from 48 to what the host has. Default 512.
    #[serde(
        default,
        deserialize_with = "lenient::zero",
        skip_serializing_if = "Option::is_none"
    )]
    #[cfg_attr(test, schemars(range(min = 0, max = 4_294_967_295_u64)))]
    pub memory_mb: Option<u64>,
    /// Size in MiB of the writable disk below the root, from 16 to 16 TiB less
    /// 1 MiB. It is sparse: it takes what was written to it. Default 5120.
    #[serde(
        default,
        deserialize_with = "lenient::zero",
        skip_serializing_if = "Option::is_none"
    )]
    #[cfg_attr(test, schemars(range(min = 0, max = 16_777_215)))]
    pub disk_size_mb: Option<u64>,
    /// Time limit in seconds, at most 4294967295. Default 300.
    #[serde(
        default,
        deserialize_with = "lenient::zero",
        skip_serializing_if = "Option::is_none"
    )]
    #[cfg_attr(test, schemars(range(min = 0, max = 4_294_967_295_u64)))]
    pub timeout_seconds: Option<u64>,
}

impl Resources {
    /// All defaults, spelled out.
    #[must_use]
    pub fn with_defaults() -> Self {
        Self {
            cpus: Some(DEFAULT_CPUS),
            memory_mb: Some(DEFAULT_MEMORY_MB),
            disk_size_mb: Some(DEFAULT_DISK_SIZE_MB),
            timeout_seconds: Some(DEFAULT_TIMEOUT_SECONDS),
        }
    }

    /// Processors: as set, or [`DEFAULT_CPUS`].
    #[must_use]
    pub fn cpus_or_default(&self) -> f64 {
        self.cpus.unwrap_or(DEFAULT_CPUS)
    }

    /// Memory in MiB: as set, or [`DEFAULT_MEMORY_MB`].
    #[must_use]
    pub fn memory_mb_or_default(&self) -> u64 {
        self.memory_mb.unwrap_or(DEFAULT_MEMORY_MB)
    }

    /// Size of the writable disk in MiB: as set, or [`DEFAULT_DISK_SIZE_MB`].
    #[must_use]
    pub fn disk_size_mb_or_default(&self) -> u64 {
        self.disk_size_mb.unwrap_or(DEFAULT_DISK_SIZE_MB)
    }

    /// Time limit: as set, or [`DEFAULT_TIMEOUT_SECONDS`].
    #[must_use]
    pub fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout_seconds.unwrap_or(DEFAULT_TIMEOUT_SECONDS))
    }
}

/// Whether a number of processors is finite and more than 0.
///
/// ```
/// assert!(flashpan::api::is_valid_cpu_count(0.5));
/// assert!(!flashpan::api::is_valid_cpu_count(f64::NAN));
/// ```
#[must_use]
pub fn is_valid_cpu_count(cpus: f64) -> bool {
    cpus.is_finite() && cpus > 0.0
}

/// The vCPUs that a number of processors takes: the next whole number. `None` if
/// it is not valid ([`is_valid_cpu_count`]) or more than a `u32` holds.
///
/// ```
/// assert_eq!(flashpan::api::vcpu_count(1.01), Some(2));
/// ```
#[must_use]
pub fn vcpu_count(cpus: f64) -> Option<u32> {
    let whole = cpus.ceil();
    if !is_valid_cpu_count(cpus) || whole > f64::from(u32::MAX) {
        return None;
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a whole number from 1 to u32::MAX, as was just checked"
    )]
    Some(whole as u32)
}

/// Whole numbers are written without a fraction: `2`, not `2.0`.
#[expect(clippy::ref_option, reason = "serde passes a reference to the field")]
fn whole_if_possible<S: Serializer>(cpus: &Option<f64>, to: S) -> Result<S::Ok, S::Error> {
    match cpus {
        None => to.serialize_none(),
        Some(cpus) => match vcpu_count(*cpus) {
            // Exact: a u32 has fewer bits than the mantissa.
            Some(whole) if f64::from(whole).to_bits() == cpus.to_bits() => to.serialize_u32(whole),
            _ => to.serialize_f64(*cpus),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn valid_cpu_counts_are_finite_and_positive() {
        for (cpus, valid) in [
            (0.5, true),
            (1.0, true),
            (0.0, false),
            (-1.0, false),
            (f64::NAN, false),
            (f64::INFINITY, false),
            (f64::NEG_INFINITY, false),
        ] {
            assert_eq!(is_valid_cpu_count(cpus), valid, "{cpus}");
        }
    }

    #[test]
    fn vcpus_are_the_next_whole_number() {
        for (cpus, vcpus) in [
            (0.5, Some(1)),
            (1.0, Some(1)),
            (1.01, Some(2)),
            (f64::from(u32::MAX), Some(u32::MAX)),
            (f64::from(u32::MAX) + 0.5, None),
            (1e300, None),
            (0.0, None),
            (-1.0, None),
            (f64::NAN, None),
            (f64::INFINITY, None),
        ] {
            assert_eq!(vcpu_count(cpus), vcpus, "{cpus}");
        }
    }

    #[test]
    fn zero_and_null_are_the_default() {
        let json = r#"{"cpus":0,"memory_mb":0,"disk_size_mb":null}"#;
        let resources: Resources = serde_json::from_str(json).unwrap();
        assert_eq!(resources, Resources::default());
        assert_eq!(serde_json::to_string(&resources).unwrap(), "{}");
        assert_eq!(resources.memory_mb_or_default(), 512);
        assert_eq!(resources.timeout(), Duration::from_secs(300));
    }

    #[test]
    fn numbers_are_written_as_plainly_as_they_can() {
        let json = r#"{"cpus":2,"memory_mb":512,"disk_size_mb":5120,"timeout_seconds":300}"#;
        let resources: Resources = serde_json::from_str(json).unwrap();
        assert_eq!(serde_json::to_string(&resources).unwrap(), json);
        let half: Resources = serde_json::from_str(r#"{"cpus":0.5}"#).unwrap();
        assert_eq!(serde_json::to_string(&half).unwrap(), r#"{"cpus":0.5}"#);
    }
}
