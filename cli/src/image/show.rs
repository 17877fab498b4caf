//! Images as text and as JSON.

use std::collections::HashSet;
use std::fmt::Write as _;

use clap::Args;
use flashpan_rootfs::image_config::RunConfig;
use flashpan_rootfs::reference::Reference;
use flashpan_rootfs::store::{Image, ImageInfo, LayerInfo, Source, Store};
use serde::Serialize;

use crate::failure::{Failure, print, print_json};
use crate::pin;

/// Digits of a digest that are shown; they are enough to name an image.
const SHORT_DIGEST: usize = 12;

const LS_EXAMPLES: &str = "\
Examples:
  flashpan image ls
  flashpan image ls -q
  flashpan image ls --json";

const INSPECT_EXAMPLES: &str = "\
Examples:
  flashpan image inspect alpine
  flashpan image inspect alpine python:3.12 | jq '.[].config.Env'";

/// Lists images
#[derive(Debug, Args)]
#[command(after_help = LS_EXAMPLES)]
pub(super) struct LsArgs {
    /// As JSON.
    #[arg(long, conflicts_with = "quiet")]
    json: bool,

    /// Only digests.
    #[arg(long, short)]
    quiet: bool,

    /// Do not shorten digests.
    #[arg(long)]
    no_trunc: bool,
}

/// Shows everything about images, as JSON
#[derive(Debug, Args)]
#[command(after_help = INSPECT_EXAMPLES)]
pub(super) struct InspectArgs {
    /// Names of images, or the beginnings of their digests.
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<String>,

    /// As JSON, as without it.
    #[arg(long)]
    json: bool,
}

/// An image as JSON lists it.
#[derive(Debug, Serialize)]
pub(super) struct Listed<'a> {
    tag: String,
    name: &'a str,
    source: Source,
    id: &'a str,
    /// Of what the name stands for: of the index, or else of the manifest.
    digest: Option<&'a str>,
    index: Option<&'a str>,
    /// Of the one for the platform.
    manifest: Option<&'a str>,
    platform: &'a str,
    /// Bytes of the root image.
    size: u64,
    /// When it came into the store, RFC 3339.
    created: String,
}

impl<'a> Listed<'a> {
    pub(super) fn of(info: &'a ImageInfo) -> Self {
        Self {
            tag: short_name(&info.name),
            name: &info.name,
            source: info.source,
            id: &info.id,
            digest: info.digest(),
            index: info.index.as_deref(),
            manifest: info.manifest.as_deref(),
            platform: &info.platform,
            size: info.size,
            created: utc(info.added, 'T', "Z"),
        }
    }
}

/// An image in full.
#[derive(Debug, Serialize)]
struct Inspected<'a> {
    #[serde(flatten)]
    listed: Listed<'a>,
    /// When it was made, as it says itself.
    made: Option<&'a str>,
    root_image: String,
    layers: &'a [LayerInfo],
    config: &'a RunConfig,
}

pub(super) fn ls(args: &LsArgs) -> Result<(), Failure> {
    let store = Store::user().map_err(Failure::new)?;
    let mut images = store.list().map_err(Failure::new)?;
    // A VM's own name for its image is shown where it is the last one.
    let others: HashSet<String> = images
        .iter()
        .filter(|image| !pin::is_pin(&image.name))
        .map(|image| image.id.clone())
        .collect();
    images.retain(|image| !pin::is_pin(&image.name) || !others.contains(&image.id));
    images.sort_by_cached_key(|image| short_name(&image.name));
    if args.json {
        let listed: Vec<_> = images.iter().map(Listed::of).collect();
        return print_json(&listed);
    }
    if args.quiet {
        let mut out = String::new();
        for image in &images {
            // Writing to a String cannot fail.
            let _ = writeln!(out, "{}", digest(&image.id, args.no_trunc));
        }
        return print(&out);
    }
    print(&table(&images, args.no_trunc))
}

fn table(images: &[ImageInfo], whole: bool) -> String {
    let rows = images.iter().map(|image| {
        [
            listed_name(&short_name(&image.name), whole),
            image.source.name().to_owned(),
            size(image.size),
            utc(image.added, ' ', ""),
        ]
    });
    let head = ["TAG", "SOURCE", "SIZE", "CREATED"].map(str::to_owned);
    columns(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
}

/// Columns as wide as need be, two blanks between them.
fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..N).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            // Writing to a String cannot fail.
            let _ = write!(line, "{cell:<width$}  ");
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

pub(super) fn inspect(args: &InspectArgs) -> Result<(), Failure> {
    let store = Store::user().map_err(Failure::new)?;
    let images = args.images.iter().map(|name| store.get(name));
    let images: Vec<Image> = images.collect::<Result<_, _>>().map_err(Failure::new)?;
    let inspected: Vec<_> = images
        .iter()
        .map(|image| Inspected {
            listed: Listed::of(&image.info),
            made: image.info.created.as_deref(),
            root_image: store.root_path(&image.info).display().to_string(),
            layers: &image.info.layers,
            config: &image.config.run,
        })
        .collect();
    print_json(&inspected)
}

/// What to say of an image whose last name was given to another.
pub(super) fn nameless(image: &ImageInfo) -> String {
    format!(
        "the image that {} was until now ({}) has no other name; `flashpan image gc` removes \
         its files",
        short_name(&image.name),
        digest(&image.id, false)
    )
}

/// A name as people write it.
pub(super) fn short_name(name: &str) -> String {
    match name.parse::<Reference>() {
        Ok(reference) => reference.short(),
        Err(_) => name.to_owned(),
    }
}

/// A name as lists show it, with the beginning of its digest if it has one. Every
/// command understands it.
fn listed_name(name: &str, whole: bool) -> String {
    let digest = name
        .rsplit_once('@')
        .and_then(|(_, digest)| digest.split_once(':'));
    match digest.and_then(|(_, hex)| hex.get(SHORT_DIGEST..)) {
        Some(rest) if !whole => name.strip_suffix(rest).unwrap_or(name).to_owned(),
        _ => name.to_owned(),
    }
}

/// A digest, or the beginning of its digits.
pub(super) fn digest(digest: &str, whole: bool) -> &str {
    if whole {
        return digest;
    }
    let hex = digest.strip_prefix("sha256:").unwrap_or(digest);
    hex.get(..SHORT_DIGEST).unwrap_or(hex)
}

/// A size in megabytes with one decimal, or in the unit that fits it.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [(&str, u64); 3] = [("GB", 1 << 30), ("MB", 1 << 20), ("kB", 1 << 10)];
    for (unit, of) in UNITS {
        if bytes >= of {
            let tenths = u128::from(bytes) * 10 / u128::from(of);
            return format!("{}.{} {unit}", tenths / 10, tenths % 10);
        }
    }
    format!("{bytes} B")
}

/// Seconds since 1970 as date and time in UTC.
fn utc(seconds: u64, between: char, end: &str) -> String {
    let (days, time) = (seconds / 86_400, seconds % 86_400);
    // Howard Hinnant's civil_from_days, for years after 1970.
    let shifted = days.saturating_add(719_468);
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (time / 3600, time / 60 % 60, time % 60);
    format!("{year:04}-{month:02}-{day:02}{between}{hour:02}:{minute:02}:{second:02}{end}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_the_unit_that_fits() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1 << 20, "1.0 MB"),
            ((77 << 20) + (1 << 19), "77.5 MB"),
            (3 << 30, "3.0 GB"),
            (u64::MAX, "17179869183.9 GB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn times_are_utc() {
        assert_eq!(utc(0, ' ', ""), "1970-01-01 00:00:00");
        assert_eq!(utc(951_782_400, 'T', "Z"), "2000-02-29T00:00:00Z");
        assert_eq!(utc(1_709_251_199, ' ', ""), "2024-02-29 23:59:59");
        assert_eq!(utc(1_735_689_600, ' ', ""), "2025-01-01 00:00:00");
    }

    #[test]
    fn columns_are_as_wide_as_their_cells() {
        let rows = [["TAG", "SIZE"], ["a:latest", "1"]].map(|row| row.map(str::to_owned));
        assert_eq!(columns(&rows), "TAG       SIZE\na:latest  1\n");
    }

    #[test]
    fn only_digests_are_shortened() {
        let long = format!("registry.example/{}/app:1", "x".repeat(100));
        let digest = format!("app@sha256:{}", "0123456789abcdef".repeat(4));
        for (name, listed) in [
            ("alpine:latest", "alpine:latest"),
            (&long, &long),
            (&digest, "app@sha256:0123456789ab"),
        ] {
            assert_eq!(listed_name(name, false), listed);
            assert_eq!(listed_name(name, true), name);
        }
    }

    #[test]
    fn names_are_shown_as_people_write_them() {
        assert_eq!(
            short_name("docker.io/library/alpine:latest"),
            "alpine:latest"
        );
        assert_eq!(short_name("quay.io/a/b:1"), "quay.io/a/b:1");
    }
}
