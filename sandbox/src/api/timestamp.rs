//! Points in time as text (RFC 3339).

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

/// Seconds from the beginning of the year 1 to that of 1970.
const YEAR_1: i64 = -62_135_596_800;

/// The last second of the year 9999.
const YEAR_9999: i64 = 253_402_300_799;

const SECONDS_PER_DAY: i64 = 86_400;

/// A point in time in UTC, to the nanosecond, from the year 1 to 9999.
///
/// Written as `2026-01-31T12:00:00.5Z`, in JSON too. Its default is the beginning
/// of the year 1, which stands for a time that is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    /// Since 1970, rounded down.
    seconds: i64,
    nanoseconds: u32,
}

/// A text is no point in time of RFC 3339.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("not a time like 2026-01-31T12:00:00.5Z")]
pub struct TimestampError;

impl Timestamp {
    /// Seconds since 1970, rounded down, and nanoseconds, at most 999999999.
    /// `None` outside of the years 1 to 9999.
    #[must_use]
    pub fn from_unix(seconds: i64, nanoseconds: u32) -> Option<Self> {
        let fits = (YEAR_1..=YEAR_9999).contains(&seconds) && nanoseconds < 1_000_000_000;
        fits.then_some(Self {
            seconds,
            nanoseconds,
        })
    }

    /// Seconds since 1970, rounded down.
    #[must_use]
    pub fn unix_seconds(self) -> i64 {
        self.seconds
    }

    /// Nanoseconds after that second.
    #[must_use]
    pub fn nanoseconds(self) -> u32 {
        self.nanoseconds
    }

    /// Milliseconds since 1970, rounded down.
    #[must_use]
    pub fn unix_milliseconds(self) -> i64 {
        self.seconds * 1000 + i64::from(self.nanoseconds / 1_000_000)
    }
}

impl Default for Timestamp {
    fn default() -> Self {
        Self {
            seconds: YEAR_1,
            nanoseconds: 0,
        }
    }
}

/// Times outside of the years 1 to 9999 become the default.
impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        let seconds = |duration: Duration| i64::try_from(duration.as_secs()).ok();
        let parts = match time.duration_since(UNIX_EPOCH) {
            Ok(since) => seconds(since).map(|seconds| (seconds, since.subsec_nanos())),
            Err(error) => {
                let before = error.duration();
                let rest = before.subsec_nanos();
                seconds(before).map(|seconds| match rest {
                    0 => (-seconds, 0),
                    rest => (-seconds - 1, 1_000_000_000 - rest),
                })
            }
        };
        parts
            .and_then(|(seconds, nanoseconds)| Self::from_unix(seconds, nanoseconds))
            .unwrap_or_default()
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = date_of(self.seconds.div_euclid(SECONDS_PER_DAY));
        let second = self.seconds.rem_euclid(SECONDS_PER_DAY);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}"
        )?;
        if self.nanoseconds != 0 {
            let digits = format!("{:09}", self.nanoseconds);
            write!(f, ".{}", digits.trim_end_matches('0'))?;
        }
        f.write_str("Z")
    }
}

impl FromStr for Timestamp {
    type Err = TimestampError;

    fn from_str(text: &str) -> Result<Self, TimestampError> {
        parse(text).ok_or(TimestampError)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// The date of a day counted from 1970-01-01, in the Gregorian calendar.
fn date_of(day: i64) -> (i64, i64, i64) {
    // Years begin in March here, so that a leap day is the last of its year;
    // 400 of them have 146097 days.
    let day = day + 719_468;
    let (era, of_era) = (day.div_euclid(146_097), day.rem_euclid(146_097));
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

/// The day counted from 1970-01-01 of a date.
fn day_of(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let month = (month + 9) % 12;
    let of_year = (153 * month + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// `YYYY-MM-DDTHH:MM:SS[.FRACTION](Z|+HH:MM|-HH:MM)`.
fn parse(text: &str) -> Option<Timestamp> {
    let (date_time, rest) = text.split_at_checked(19)?;
    let number = |from: usize, to: usize, range: std::ops::RangeInclusive<i64>| {
        let digits = date_time.get(from..to)?;
        let all = digits.bytes().all(|b| b.is_ascii_digit());
        let number: i64 = digits.parse().ok()?;
        (all && range.contains(&number)).then_some(number)
    };
    let mark = |at: usize, allowed: &str| {
        let found = date_time.get(at..at + 1)?;
        allowed.contains(found).then_some(())
    };
    for (at, allowed) in [(4, "-"), (7, "-"), (10, "Tt"), (13, ":"), (16, ":")] {
        mark(at, allowed)?;
    }
    let (year, month, day) = (
        number(0, 4, 1..=9999)?,
        number(5, 7, 1..=12)?,
        number(8, 10, 1..=31)?,
    );
    let days = day_of(year, month, day);
    if date_of(days) != (year, month, day) {
        return None;
    }
    let hour = number(11, 13, 0..=23)?;
    let minute = number(14, 16, 0..=59)?;
    let second = number(17, 19, 0..=59)?;
    let (nanoseconds, zone) = match rest.strip_prefix('.') {
        None => (0, rest),
        Some(rest) => {
            let end = rest.find(|c: char| !c.is_ascii_digit())?;
            let (digits, zone) = rest.split_at_checked(end)?;
            let nine = digits.get(..9).unwrap_or(digits);
            let nanoseconds: u32 = format!("{nine:0<9}").parse().ok()?;
            (
                if digits.is_empty() {
                    return None;
                } else {
                    nanoseconds
                },
                zone,
            )
        }
    };
    let seconds = days * SECONDS_PER_DAY + hour * 3600 + minute * 60 + second;
    Timestamp::from_unix(seconds - offset(zone)?, nanoseconds)
}

/// Seconds that a time zone is ahead of UTC.
fn offset(zone: &str) -> Option<i64> {
    if zone.eq_ignore_ascii_case("z") {
        return Some(0);
    }
    let (sign, zone) = match zone.strip_prefix('+') {
        Some(zone) => (1, zone),
        None => (-1, zone.strip_prefix('-')?),
    };
    let (hours, minutes) = zone.split_once(':')?;
    let number = |digits: &str, most: i64| -> Option<i64> {
        let fits = digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_digit());
        let number = digits.parse().ok()?;
        (fits && number <= most).then_some(number)
    };
    Some(sign * (number(hours, 23)? * 3600 + number(minutes, 59)? * 60))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_times() {
        for (text, seconds, nanoseconds) in [
            ("1970-01-01T00:00:00Z", 0, 0),
            ("0001-01-01T00:00:00Z", YEAR_1, 0),
            ("9999-12-31T23:59:59.999999999Z", YEAR_9999, 999_999_999),
            ("2000-02-29T12:34:56.5Z", 951_827_696, 500_000_000),
            ("1969-12-31T23:59:59.25Z", -1, 250_000_000),
            ("2026-03-14T01:02:03.00000001Z", 1_773_450_123, 10),
        ] {
            let time = Timestamp::from_unix(seconds, nanoseconds).unwrap();
            assert_eq!(time.to_string(), text);
            assert_eq!(text.parse(), Ok(time));
        }
        assert_eq!(Timestamp::default().to_string(), "0001-01-01T00:00:00Z");
    }

    #[test]
    fn other_spellings() {
        for (text, same) in [
            ("2026-03-14T02:02:03+01:00", "2026-03-14T01:02:03Z"),
            ("2026-03-13T20:32:03-04:30", "2026-03-14T01:02:03Z"),
            ("2026-03-14t01:02:03z", "2026-03-14T01:02:03Z"),
            (
                "2026-03-14T01:02:03.1234567899Z",
                "2026-03-14T01:02:03.123456789Z",
            ),
        ] {
            assert_eq!(text.parse::<Timestamp>().unwrap().to_string(), same);
        }
    }

    #[test]
    fn no_times() {
        for text in [
            "",
            "2026-03-14",
            "2026-03-14T01:02:03",
            "2026-03-14 01:02:03Z",
            "2026-02-29T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-03-14T24:00:00Z",
            "2026-03-14T01:02:03.Z",
            "2026-03-14T01:02:03+1:00",
            "0000-01-01T00:00:00Z",
            "0001-01-01T00:00:00+01:00",
            "+026-03-14T01:02:03Z",
        ] {
            assert_eq!(text.parse::<Timestamp>(), Err(TimestampError), "{text}");
        }
    }

    #[test]
    fn times_of_the_system() {
        let half = Duration::from_millis(500);
        assert_eq!(
            Timestamp::from(UNIX_EPOCH + half).to_string(),
            "1970-01-01T00:00:00.5Z"
        );
        assert_eq!(
            Timestamp::from(UNIX_EPOCH - half).to_string(),
            "1969-12-31T23:59:59.5Z"
        );
        assert_eq!(Timestamp::from(UNIX_EPOCH - half).unix_milliseconds(), -500);
    }

    proptest! {
        #[test]
        fn no_text_is_a_problem(text in "\\PC*|[0-9TZ:.+-]{0,40}") {
            let _ = text.parse::<Timestamp>();
        }

        #[test]
        fn what_is_written_is_read_again(
            seconds in YEAR_1..=YEAR_9999,
            nanoseconds in 0..1_000_000_000_u32,
        ) {
            let time = Timestamp::from_unix(seconds, nanoseconds).unwrap();
            prop_assert_eq!(time.to_string().parse(), Ok(time));
        }
    }
}
