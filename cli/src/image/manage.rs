//! Names of images, and the room that they take.

use clap::Args;
use flashpan_rootfs::store::{Event, Gc, Store};

use super::show::{nameless, short_name, size};
use crate::failure::{Failure, each, print, say};

const RM_EXAMPLES: &str = "\
Examples:
  flashpan image rm alpine
  flashpan image rm 1a2b3c4d python:3.12
  flashpan image rm -f alpine           although a running VM uses it
  flashpan image rm -f 1a2b3c4d         under all its names

A digest names an image with all its names; if there are several, -f is needed.
Files that other images need stay, and so do those of a running VM until it has
ended and `flashpan image gc` finds them.";

const TAG_EXAMPLES: &str = "\
Examples:
  flashpan image tag alpine base
  flashpan image tag 1a2b3c4d registry.example/team/app:v2";

const GC_EXAMPLES: &str = "\
Examples:
  flashpan image gc --dry-run
  flashpan image gc
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
}

pub(super) fn rm(args: &RmArgs) -> Result<(), Failure> {
    let store = Store::user().map_err(Failure::new)?;
    each(&args.images, |image| {
        let names = store.remove(image, args.force).map_err(Failure::new)?;
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
    print(&format!("Tagged: {}\n", short_name(&info.name)))
}

pub(super) fn gc(args: &GcArgs) -> Result<(), Failure> {
    let store = Store::user().map_err(Failure::new)?;
    let what = Gc::all()
        .with_layers(args.layers)
        .with_dry_run(args.dry_run);
    let collected = store.gc(&what).map_err(Failure::new)?;
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
