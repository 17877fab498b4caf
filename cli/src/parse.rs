//! Values of options: sizes, durations, variables.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use flashpan::api::EnvVar;

/// Bytes in a MiB.
pub(crate) const MIB: u64 = 1024 * 1024;

/// The memory of a guest in MiB: as [`disk_size_mib`], but a plain number so large that
/// it can only be of bytes is refused.
pub(crate) fn memory_mib(text: &str) -> Result<u64, String> {
    match text.parse::<u64>() {
        Ok(number) if number >= MIB => Err(format!(
            "`{text}` is a number of MiB; did you mean {text}B?"
        )),
        _ => disk_size_mib(text),
    }
}

/// A size in MiB as [`size`] reads it; a part of a MiB counts as a whole one.
fn size_mib(text: &str) -> Result<u64, String> {
    let bytes = size(text).map_err(|wrong| match wrong {
        NoSize::Malformed => format!("`{text}` is not a size; write e.g. 512M or 2G"),
        NoSize::TooLarge => format!("`{text}` is too large a size"),
    })?;
    Ok(bytes.div_ceil(MIB))
}

/// Bytes in a second: a size as [`size`] reads it, with or without `/s`.
pub(crate) fn bytes_per_second(text: &str) -> Result<u64, String> {
    // The library refuses what is too little or too much.
    size(text.strip_suffix("/s").unwrap_or(text)).map_err(|wrong| match wrong {
        NoSize::Malformed => format!("`{text}` is not a rate; write e.g. 100M or 1G/s"),
        NoSize::TooLarge => format!("`{text}` is too high a rate"),
    })
}

/// Why a text is not a size.
enum NoSize {
    Malformed,
    TooLarge,
}

/// A size in bytes from text such as `512M`, `2G`, `1GiB` or a number of bytes. Units
/// are powers of 1024.
fn size(text: &str) -> Result<u64, NoSize> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| NoSize::Malformed)?;
    let unit = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" | "kib" => 1024,
        "m" | "mb" | "mib" => MIB,
        "g" | "gb" | "gib" => 1024 * MIB,
        "t" | "tb" | "tib" => MIB * MIB,
        _ => return Err(NoSize::Malformed),
    };
    number.checked_mul(unit).ok_or(NoSize::TooLarge)
}

/// A number of processors from text such as `2` or `0.5`.
pub(crate) fn cpus(text: &str) -> Result<f64, String> {
    match text.parse() {
        // The library refuses what is too few or too many.
        Ok(cpus) if f64::is_finite(cpus) => Ok(cpus),
        _ => Err(format!(
            "`{text}` is not a number of processors; write e.g. 2 or 0.5"
        )),
    }
}

/// The size of a disk in MiB: as [`size_mib`], but a plain number is MiB. The
/// same for every option that is the size of a disk or a volume.
pub(crate) fn disk_size_mib(text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(mib) => Ok(mib),
        Err(_) => size_mib(text),
    }
}

/// A duration as [`duration`] reads it, or none at all: `0`, `0s`.
pub(crate) fn duration_or_zero(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_lowercase());
    let is_zero = !digits.is_empty() && digits.bytes().all(|b| b == b'0');
    let unit = text.strip_prefix(digits).unwrap_or_default();
    match is_zero && ["", "ms", "s", "m", "h", "d"].contains(&unit) {
        true => Ok(Duration::ZERO),
        false => duration(text),
    }
}

/// A duration from text such as `90`, `1.5s`, `500ms`, `2m` or `1h30m`; a plain
/// number is seconds. Zero is refused.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not a duration; write e.g. 30s, 500ms or 1h30m");
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let number_end = rest
            .find(|c: char| c != '.' && !c.is_ascii_digit())
            .unwrap_or(rest.len());
        let (number, tail) = rest.split_at(number_end);
        let unit_end = tail
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let seconds_per_unit = match unit {
            "ms" => 0.001,
            "" if rest.len() == text.len() => 1.0,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            "d" => 86_400.0,
            _ => return Err(wrong()),
        };
        let number: f64 = number.parse().map_err(|_| wrong())?;
        let part = Duration::try_from_secs_f64(number * seconds_per_unit).map_err(|_| wrong())?;
        total = total.checked_add(part).ok_or_else(wrong)?;
        rest = tail;
    }
    if total.is_zero() {
        Err(wrong())
    } else {
        Ok(total)
    }
}

/// A text that is not empty: what is left out has another meaning than nothing.
pub(crate) fn not_empty(text: &str) -> Result<String, String> {
    match text.is_empty() {
        true => Err("it is empty; leave the option out".to_owned()),
        false => Ok(text.to_owned()),
    }
}

/// The same of one that may be no UTF-8.
pub(crate) fn not_empty_os(text: OsString) -> Result<OsString, String> {
    not_empty(&text.to_string_lossy()).map(|_| text)
}

/// A number of lines or events.
pub(crate) fn count(text: &str) -> Result<usize, String> {
    let wrong = |_| format!("`{text}` is not a number of lines; write e.g. 10");
    text.parse().map_err(wrong)
}

/// What `--env` says: a variable and its value, which may be ours that is passed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Variable {
    name: OsString,
    value: OsString,
}

/// A variable from `NAME=VALUE` or `NAME`, as [`EnvVar`] reads it, but that a value may
/// be no UTF-8: a program takes any.
pub(crate) fn variable(text: &OsStr) -> Result<Variable, String> {
    let bytes = text.as_bytes();
    let end = bytes.iter().position(|b| *b == b'=').unwrap_or(bytes.len());
    let (name, value) = bytes.split_at(end);
    let named = OsStr::from_bytes(name).to_str();
    let named = named.ok_or_else(|| "the name of a variable is not UTF-8".to_owned())?;
    let mut value = value
        .strip_prefix(b"=")
        .map(|v| OsStr::from_bytes(v).to_owned());
    // All but the value, which is as it is.
    let read = EnvVar::parse_with(named, |name| {
        let found = value.take().or_else(|| std::env::var_os(name));
        let stands_for_it = found.as_ref().map(|_| OsString::new());
        value = found;
        stands_for_it
    });
    let name = read.map_err(|e| e.to_string())?.name.into();
    let value = value.unwrap_or_default();
    Ok(Variable { name, value })
}

impl Variable {
    pub(crate) fn into_pair(self) -> (OsString, OsString) {
        (self.name, self.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, mib) in [
            ("512M", 512),
            ("512m", 512),
            ("1G", 1024),
            ("1GiB", 1024),
            ("2gb", 2048),
            ("1T", 1024 * 1024),
            ("65536K", 64),
            ("134217728", 128),
            ("1048577", 2),
            ("0M", 0),
        ] {
            assert_eq!(size_mib(text), Ok(mib), "{text}");
        }
        for text in [
            "",
            "M",
            "12X",
            "-1M",
            "1.5G",
            "1 G",
            "99999999999999999999",
            "99999999999T",
        ] {
            assert!(size_mib(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_number_is_memory_in_mebibytes_and_what_is_suggested_would_be() {
        let text = "134217728";
        let wrong = "`134217728` is a number of MiB; did you mean 134217728B?";
        assert_eq!(memory_mib(text).unwrap_err(), wrong);
        // The library refuses what is too little.
        for (text, mib) in [("0", 0), ("47", 47), ("0M", 0), ("512", 512)] {
            assert_eq!(memory_mib(text), Ok(mib), "{text}");
        }
        for (text, mib) in [("512M", 512), ("134217728B", 128), ("2G", 2048)] {
            assert_eq!(memory_mib(text), Ok(mib), "{text}");
        }
        assert!(memory_mib("much").is_err());
    }

    #[test]
    fn plain_sizes_of_disks_are_mebibytes() {
        for (text, mib) in [("5120", 5120), ("512M", 512), ("10G", 10_240), ("0", 0)] {
            assert_eq!(disk_size_mib(text), Ok(mib), "{text}");
        }
        for text in ["", "1.5G", "-1"] {
            assert!(disk_size_mib(text).is_err(), "{text}");
        }
    }

    #[test]
    fn rates() {
        for (text, bytes) in [
            ("100M", 100 << 20),
            ("100M/s", 100 << 20),
            ("4MiB/s", 4 << 20),
            ("1G", 1 << 30),
            ("65536", 65_536),
            ("65536/s", 65_536),
            ("0", 0),
        ] {
            assert_eq!(bytes_per_second(text), Ok(bytes), "{text}");
        }
        for text in ["", "/s", "M/s", "100M/m", "100M/s/s", "1.5G", "-1", "fast"] {
            let wrong = format!("`{text}` is not a rate; write e.g. 100M or 1G/s");
            assert_eq!(bytes_per_second(text), Err(wrong));
        }
        let wrong = "`99999999999T` is too high a rate".to_owned();
        assert_eq!(bytes_per_second("99999999999T"), Err(wrong));
    }

    #[test]
    fn processors_may_be_fractions() {
        for (text, number) in [("2", 2.0), ("0.5", 0.5), (".25", 0.25), ("0", 0.0)] {
            assert_eq!(cpus(text).map(f64::to_bits), Ok(f64::to_bits(number)));
        }
        for text in ["", "many", "inf", "NaN", "1,5", "1e999"] {
            assert!(cpus(text).unwrap_err().contains("0.5"), "{text}");
        }
    }

    #[test]
    fn durations() {
        for (text, ms) in [
            ("1", 1000),
            ("0.25", 250),
            ("90s", 90_000),
            ("1.5s", 1500),
            ("500ms", 500),
            ("2m", 120_000),
            ("1h30m", 5_400_000),
            ("1d", 86_400_000),
            ("1m0s500ms", 60_500),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in [
            "", "0", "0s", "s", "5x", "-1", "1m30", "1..5s", "1e400", "inf", "1 s",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn no_duration_at_all_is_one_where_it_makes_sense() {
        for text in ["0", "0s", "0ms", "00m"] {
            assert_eq!(duration_or_zero(text), Ok(Duration::ZERO), "{text}");
        }
        assert_eq!(duration_or_zero("10s"), Ok(Duration::from_secs(10)));
        for text in ["", "s", "0x", "-0"] {
            assert!(duration_or_zero(text).is_err(), "{text}");
        }
    }

    #[test]
    fn variables() {
        let pair = |text: &[u8]| variable(OsStr::from_bytes(text)).map(Variable::into_pair);
        let set = |n: &str, v: &[u8]| Ok((n.into(), OsStr::from_bytes(v).to_owned()));
        assert_eq!(pair(b"A=b=c"), set("A", b"b=c"));
        assert_eq!(pair(b" A =\xe4 "), set("A", b"\xe4 "));
        assert_eq!(pair(b"A="), set("A", b""));
        let path = std::env::var_os("PATH").unwrap();
        assert_eq!(pair(b"PATH"), set("PATH", path.as_bytes()));
        for (text, why) in [
            (&b"=x"[..], "environment variable name cannot be empty"),
            (b"", "environment variable name cannot be empty"),
            (b" =x", "environment variable name cannot be empty"),
            (b"\xe4=x", "the name of a variable is not UTF-8"),
            (
                b"FLASHPAN_NEVER_SET",
                "environment variable is not set $FLASHPAN_NEVER_SET",
            ),
        ] {
            assert_eq!(pair(text), Err(why.to_owned()));
        }
    }
}
