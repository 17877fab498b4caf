//! Names of images, and the room that they take.

use std::path::PathBuf;

use clap::Args;
use flashpan_rootfs::store::{Event, Gc, Store};
use serde::Serialize;

use super::show::{Listed, nameless, short_name, size};
use crate::failure::{Failure, each, print, print_json_line, say};

const RM_EXAMPLES: &str = "\
Examples:
  flashpan image rm alpine
  flashpan image rm --json alpine
  flashpan image rm 1a2b3c4d python:3.12
  flashpan image rm -f alpine           although a running VM uses it
  flashpan image rm -f 1a2b3c4d         under all its names

A digest names an image with all its names; if there are several, -f is needed.
Files that other images need stay, and so do those of a running VM until it has
ended and `flashpan image gc` finds them.";

const TAG_EXAMPLES: &str = "\
Examples:
  flashpan image tag alpine base
  flashpan image tag --json alpine base
  flashpan image tag 1a2b3c4d registry.example/team/app:v2";

const GC_EXAMPLES: &str = "\
Examples:
  flashpan image gc --dry-run
  flashpan image gc
  flashpan image gc --json | jq .bytes
  flashpan image gc --layers            also layers, which only a later pull can use

What a running VM or another flashpan uses is never removed.";

/// Removes images
#[derive(Debug, Args)]
#[command(after_help = RM_EXAMPLES)]
pub(super) struct RmArgs {
    /// Names of images, or the beginnings of their digests.
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<String>,

    /// Also an image that a running VM uses, and all names of one that is named
    /// by its digest.
    #[arg(long, short)]
    force: bool,

    /// Say which names were removed as JSON, one a line.
    #[arg(long)]
    json: bool,
}

/// Gives an image another name
#[derive(Debug, Args)]
#[command(after_help = TAG_EXAMPLES)]
pub(super) struct TagArgs {
    /// Name of the image, or the beginning of its digest.
    #[arg(value_name = "IMAGE")]
    image: String,

    /// The new name; an image that has it loses it.
    #[arg(value_name = "NAME")]
    name: String,

    /// Show the image as JSON.
    #[arg(long)]
    json: bool,
}

/// Removes files that no image needs, and what interrupted pulls left
#[derive(Debug, Args)]
#[command(after_help = GC_EXAMPLES)]
pub(super) struct GcArgs {
    /// Also compressed layers: images run without them, and a pull of an image
    /// that shares them downloads them again.
    #[arg(long)]
    layers: bool,

    /// Only say what would be removed.
    #[arg(long)]
    dry_run: bool,

    /// As JSON.
    #[arg(long)]
    json: bool,
}

/// A name that is gone, in JSON.
#[derive(Debug, Serialize)]
struct Removed<'a> {
    tag: String,
    name: &'a str,
}

/// What was collected, in JSON.
#[derive(Debug, Serialize)]
struct Freed<'a> {
    /// Whether it is still there.
    dry_run: bool,
    files: &'a [PathBuf],
    bytes: u64,
    in_use: usize,
}

pub(super) fn rm(args: &RmArgs) -> Result<(), Failure> {
    let store = Store::user().map_err(Failure::new)?;
    each(&args.images, |image| {
        let names = store.remove(image, args.force).map_err(Failure::new)?;
        if args.json {
            return names.iter().try_for_each(|name| {
                print_json_line(&Removed {
                    tag: short_name(name),
                    name,
                })
            });
        }
        let lines = names
            .iter()
            .map(|name| format!("Removed {}\n", short_name(name)));
        print(&lines.collect::<String>())
    })
}

pub(super) fn tag(args: &TagArgs) -> Result<(), Failure> {
    let store = Store::user().map_err(Failure::new)?;
    let note = |event| {
        if let Event::Nameless(image) = event {
            say("note", &nameless(&image));
        }
    };
    let info = store
        .tag(&args.image, &args.name, &note)
        .map_err(Failure::new)?;
    if args.json {
        return print_json_line(&Listed::of(&info));
    }
    print(&format!("Tagged: {}\n", short_name(&info.name)))
}

pub(super) fn gc(args: &GcArgs) -> Result<(), Failure> {
    let store = Store::user().map_err(Failure::new)?;
    let what = Gc::all()
        .with_layers(args.layers)
        .with_dry_run(args.dry_run);
    let collected = store.gc(&what).map_err(Failure::new)?;
    if args.json {
        return print_json_line(&Freed {
            dry_run: args.dry_run,
            files: &collected.files,
            bytes: collected.bytes,
            in_use: collected.in_use,
        });
    }
    let files = collected.files.len();
    let freed = size(collected.bytes);
    let in_use = match collected.in_use {
        0 => String::new(),
        n => format!("{n} more are in use\n"),
    };
    if args.dry_run {
        return print(&format!(
            "{files} unreferenced blobs would be removed\nSize: {freed}\n{in_use}"
        ));
    }
    print(&format!(
        "Removed {files} unreferenced blobs\nFreed: {freed}\n{in_use}"
    ))
}
