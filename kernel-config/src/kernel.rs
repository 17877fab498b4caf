//! A built kernel in the cache, and what is known of it.

use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// Version of `meta.json`; kernels of another one are not listed.
pub(crate) const FORMAT: u32 = 1;

/// A fragment that went into a kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FragmentRecord {
    /// Its name.
    pub name: String,
    /// SHA-256 of its text.
    pub sha256: String,
}

/// What a kernel is made of (`meta.json`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KernelInfo {
    /// Version of this record.
    pub format: u32,
    /// Hash of all inputs, 40 hexadecimal digits: the name in the cache.
    pub hash: String,
    /// `base`, `base+netfilter`.
    pub name: String,
    /// What `uname -r` says: `6.12.117-flashpan`.
    pub release: String,
    /// The source that it was built from, as it was given.
    pub source: PathBuf,
    /// What identifies that source: `sha256:…` or `tree:…`.
    pub source_identity: String,
    /// The fragments on top of base, in order.
    pub fragments: Vec<FragmentRecord>,
    /// SHA-256 of the merged requests.
    pub request_sha256: String,
    /// First line of `gcc --version`.
    pub compiler: String,
    /// First line of `ld --version`.
    pub linker: String,
    /// Length of `vmlinux` in bytes: what a loader copies.
    pub bytes: u64,
    /// SHA-256 of `vmlinux`.
    pub sha256: String,
    /// When the build ended, in seconds since 1970.
    pub built_at: u64,
    /// How long compiling took, in seconds.
    pub build_seconds: f64,
    /// Jobs that compiled at once.
    pub jobs: u32,
    /// Steps that make printed while compiling.
    pub steps: u32,
    /// Options that are `y`.
    pub options: u32,
}

impl KernelInfo {
    /// When the build ended, as `2026-01-31T12:00:00Z`.
    pub fn built_at_utc(&self) -> String {
        utc(self.built_at)
    }
}

/// A kernel in the cache.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Kernel {
    /// What it is made of.
    #[serde(flatten)]
    pub info: KernelInfo,
    /// Where its files are.
    pub directory: PathBuf,
}

impl Kernel {
    /// The kernel: an ELF file that a VMM loads.
    pub fn vmlinux(&self) -> PathBuf {
        self.directory.join("vmlinux")
    }

    /// The configuration as Kconfig resolved it.
    pub fn config_path(&self) -> PathBuf {
        self.directory.join("config")
    }

    /// Names of the addresses that a panic prints.
    pub fn system_map(&self) -> PathBuf {
        self.directory.join("System.map")
    }

    /// The kernel with symbols and DWARF, where fragment `debug` asked for them.
    pub fn vmlinux_debug(&self) -> Option<PathBuf> {
        Some(self.directory.join("vmlinux.debug")).filter(|path| path.is_file())
    }

    /// Text of the resolved configuration.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn config(&self) -> Result<String, Error> {
        let path = self.config_path();
        std::fs::read_to_string(&path).map_err(Error::io("read", &path))
    }

    /// The kernel in `directory`, if it is a whole one of this format.
    pub(crate) fn read(directory: &Path) -> Option<Self> {
        let text = std::fs::read_to_string(directory.join("meta.json")).ok()?;
        let info: KernelInfo = serde_json::from_str(&text).ok()?;
        let kernel = Self {
            info,
            directory: directory.to_owned(),
        };
        let named = directory.file_name()?.to_str()? == kernel.info.hash;
        (named && kernel.info.format == FORMAT && kernel.vmlinux().is_file()).then_some(kernel)
    }
}

/// The name of base with these fragments.
pub(crate) fn name<'a>(fragments: impl Iterator<Item = &'a str>) -> String {
    std::iter::once("base")
        .chain(fragments)
        .collect::<Vec<_>>()
        .join("+")
}

/// Seconds since 1970, now.
pub(crate) fn now() -> u64 {
    UNIX_EPOCH.elapsed().as_ref().map_or(0, Duration::as_secs)
}

/// RFC 3339 in UTC. The calendar is Howard Hinnant's `civil_from_days`, for years
/// from 1970 on: eras of 400 years have 146,097 days and begin on 1 March.
fn utc(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(utc(0), "1970-01-01T00:00:00Z");
        assert_eq!(utc(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(utc(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(utc(1_798_761_599), "2026-12-31T23:59:59Z");
    }

    #[test]
    fn a_name_lists_the_fragments() {
        assert_eq!(name([].into_iter()), "base");
        assert_eq!(name(["debug", "nosmp"].into_iter()), "base+debug+nosmp");
    }
}
