//! How much I/O a disk or the network card of a VM does at most.

use std::num::NonZeroU64;
use std::ops::RangeInclusive;

use flashpan_protocol::control::{IoRate, Rate};
use serde::{Deserialize, Serialize};

use crate::config::SandboxBuilder;
use crate::error::{Error, Result};

/// Bytes in a second, and in a burst: from a page, which is the least that a guest
/// reads, to a TiB.
const BYTES: RangeInclusive<u64> = 4096..=1 << 40;

/// Operations in a second, and in a burst.
const OPERATIONS: RangeInclusive<u64> = 1..=1_000_000_000;

/// How much I/O a disk, or a network card, does at most, by buckets of tokens: after a rest a burst at
/// once, and then so much in each second. What it does not name is not limited.
///
/// Bytes are those that the guest reads and writes, and those that it has zeroed;
/// every request is one operation, a flush or a discard too. A request that is larger
/// than the burst is done, and later ones wait for it.
///
/// ```
/// use flashpan::RateLimit;
///
/// let limit = RateLimit::default().bytes_per_second(100 << 20).operations_per_second(2000);
/// assert_eq!(limit.operations_per_second, Some(2000));
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct RateLimit {
    /// Bytes in a second, from 4096 to 2^40.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<u64>,
    /// Bytes at once after a rest, from 4096 to 2^40; those of one second otherwise.
    /// Needs `bytes_per_second`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub burst_bytes: Option<u64>,
    /// Operations in a second, from 1 to 10^9.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operations_per_second: Option<u64>,
    /// Operations at once after a rest, from 1 to 10^9; those of one second
    /// otherwise. Needs `operations_per_second`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub burst_operations: Option<u64>,
}

impl RateLimit {
    /// With so many bytes in a second.
    #[must_use]
    pub fn bytes_per_second(mut self, bytes: u64) -> Self {
        self.bytes_per_second = Some(bytes);
        self
    }

    /// With so many bytes at once after a rest.
    #[must_use]
    pub fn burst_bytes(mut self, bytes: u64) -> Self {
        self.burst_bytes = Some(bytes);
        self
    }

    /// With so many operations in a second.
    #[must_use]
    pub fn operations_per_second(mut self, operations: u64) -> Self {
        self.operations_per_second = Some(operations);
        self
    }

    /// With so many operations at once after a rest.
    #[must_use]
    pub fn burst_operations(mut self, operations: u64) -> Self {
        self.burst_operations = Some(operations);
        self
    }

    /// As the VMM takes it, once it is checked; an error is one of `setting`, names the
    /// field and begins with `of`.
    pub(crate) fn checked(&self, setting: &'static str, of: &str) -> Result<IoRate> {
        let rate = |rate, burst, names: [&str; 2], range: RangeInclusive<u64>| {
            let number = |number: u64, name: &str| {
                let within = NonZeroU64::new(number).filter(|n| range.contains(&n.get()));
                within.ok_or_else(|| {
                    let (least, most) = (range.start(), range.end());
                    let why = format!("{of}{name}: {number} is not from {least} to {most}");
                    Error::config(setting, why)
                })
            };
            let [rate_name, burst_name] = names;
            match (rate, burst) {
                (None, None) => Ok(None),
                (None, Some(_)) => {
                    let why = format!("{of}{burst_name}: it is nothing without {rate_name}");
                    Err(Error::config(setting, why))
                }
                (Some(rate), burst) => {
                    let per_second = number(rate, rate_name)?;
                    let burst = burst.map_or(Ok(per_second), |burst| number(burst, burst_name))?;
                    Ok(Some(Rate { per_second, burst }))
                }
            }
        };
        Ok(IoRate {
            bytes: rate(
                self.bytes_per_second,
                self.burst_bytes,
                ["bytes_per_second", "burst_bytes"],
                BYTES,
            )?,
            operations: rate(
                self.operations_per_second,
                self.burst_operations,
                ["operations_per_second", "burst_operations"],
                OPERATIONS,
            )?,
        })
    }
}

/// The setting that is wrong, in errors.
const FIELD: &str = "disk rate";

impl SandboxBuilder {
    /// Limits the I/O of every disk of the VM, those of its root included, each for
    /// itself: two disks together may do twice as much. A disk that has a limit of its
    /// own too ([`crate::Disk::rate_limit`]) keeps to both.
    pub fn disk_rate(mut self, limit: RateLimit) -> Self {
        self.disk_rate = Some(limit);
        self
    }

    /// The limits of the disks of the root, and of those that were added, checked.
    pub(crate) fn disk_rates(&self) -> Result<(IoRate, Vec<IoRate>)> {
        let every = self.disk_rate.unwrap_or_default().checked(FIELD, "")?;
        let own = self.disks.iter().map(|disk| {
            let of = format!("of {:?}: ", disk.guest_path);
            let own = disk.rate.unwrap_or_default().checked(FIELD, &of)?;
            Ok(both(every, own))
        });
        Ok((every, own.collect::<Result<_>>()?))
    }
}

/// A limit that keeps to both.
fn both(one: IoRate, other: IoRate) -> IoRate {
    let lower = |one: Option<Rate>, other: Option<Rate>| match (one, other) {
        (Some(one), Some(other)) => Some(Rate {
            per_second: one.per_second.min(other.per_second),
            burst: one.burst.min(other.burst),
        }),
        (one, other) => one.or(other),
    };
    IoRate {
        bytes: lower(one.bytes, other.bytes),
        operations: lower(one.operations, other.operations),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use flashpan_protocol::agent::FsType;

    use super::*;
    use crate::config::Root;
    use crate::disk::{Disk, Upper};

    fn builder() -> SandboxBuilder {
        let root = Root::new("root.erofs", FsType::Erofs);
        SandboxBuilder::new("vmlinux".into(), root)
    }

    fn file() -> File {
        File::open("/dev/null").unwrap()
    }

    fn bytes(per_second: u64, burst: u64) -> Option<Rate> {
        let number = |n| NonZeroU64::new(n).unwrap();
        Some(Rate {
            per_second: number(per_second),
            burst: number(burst),
        })
    }

    fn refusal(builder: &SandboxBuilder) -> String {
        builder.validate().unwrap_err().to_string()
    }

    #[test]
    fn every_disk_has_the_limit_for_itself() {
        let limit = RateLimit::default().bytes_per_second(5000);
        let builder = builder()
            .disk_rate(limit.operations_per_second(7).burst_operations(9))
            .upper(Upper::Scratch(file()))
            .disk(Disk::new(file(), "/a"));
        let disks = builder.vm_spec().unwrap().disks;
        assert_eq!(disks.len(), 3);
        for disk in disks {
            assert_eq!(disk.rate.bytes, bytes(5000, 5000), "{}", disk.id);
            assert_eq!(disk.rate.operations, bytes(7, 9), "{}", disk.id);
        }
    }

    #[test]
    fn a_disk_keeps_to_its_own_limit_and_that_of_all() {
        let own = RateLimit::default().bytes_per_second(9000);
        let builder = |burst| {
            let every = RateLimit::default()
                .bytes_per_second(8000)
                .burst_bytes(burst);
            builder()
                .disk_rate(every)
                .disk(Disk::new(file(), "/a").rate_limit(own.operations_per_second(3)))
        };
        for (burst, expected) in [(4096, 4096), (10_000, 9000)] {
            let disks = builder(burst).vm_spec().unwrap().disks;
            assert_eq!(disks[0].rate.bytes, bytes(8000, burst));
            assert_eq!(disks[0].rate.operations, None);
            assert_eq!(disks[1].rate.bytes, bytes(8000, expected));
            assert_eq!(disks[1].rate.operations, bytes(3, 3));
        }
    }

    #[test]
    fn without_limits_there_are_none() {
        let plain = builder().disk(Disk::new(file(), "/a"));
        let nothing = builder().disk_rate(RateLimit::default());
        for builder in [plain, nothing] {
            let disks = builder.vm_spec().unwrap().disks;
            assert!(disks.iter().all(|disk| disk.rate == IoRate::default()));
        }
    }

    #[test]
    fn what_is_out_of_range_is_refused_by_name() {
        let limit = RateLimit::default();
        for (limit, why) in [
            (
                limit.bytes_per_second(0),
                "bytes_per_second: 0 is not from 4096 to 1099511627776",
            ),
            (
                limit.bytes_per_second(4095),
                "bytes_per_second: 4095 is not from 4096 to 1099511627776",
            ),
            (
                limit.bytes_per_second((1 << 40) + 1),
                "bytes_per_second: 1099511627777 is not from 4096 to 1099511627776",
            ),
            (
                limit.bytes_per_second(4096).burst_bytes(0),
                "burst_bytes: 0 is not from 4096 to 1099511627776",
            ),
            (
                limit.operations_per_second(0),
                "operations_per_second: 0 is not from 1 to 1000000000",
            ),
            (
                limit.operations_per_second(1).burst_operations(u64::MAX),
                "burst_operations: 18446744073709551615 is not from 1 to 1000000000",
            ),
            (
                limit.burst_bytes(4096),
                "burst_bytes: it is nothing without bytes_per_second",
            ),
            (
                limit.bytes_per_second(4096).burst_operations(1),
                "burst_operations: it is nothing without operations_per_second",
            ),
        ] {
            let every = builder().disk_rate(limit);
            assert_eq!(refusal(&every), format!("disk rate: {why}"));
            let own = builder().disk(Disk::new(file(), "/a").rate_limit(limit));
            assert_eq!(refusal(&own), format!("disk rate: of \"/a\": {why}"));
        }
    }
}
