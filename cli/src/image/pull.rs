//! Getting images: from registries, archives and directories.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use flashpan_rootfs::platform::Platform;
use flashpan_rootfs::reference::Reference;
use flashpan_rootfs::registry::Client;
use flashpan_rootfs::store::{
    Cancel, Conversion, Error, Image, ImportOptions, Input, PullOptions, Pulled, Store,
};
use serde::Serialize;
use tokio::sync::oneshot;

use super::progress::ImageProgress;
use super::registries::RegistryArgs;
use super::show::{Listed, short_name, size};
use crate::failure::{Failure, print, print_json_line, say};
use crate::signals::Signals;
use crate::{full, runtime};

/// How long work that was cancelled may take to end in order.
const PATIENCE: Duration = Duration::from_secs(3);

const PULL_EXAMPLES: &str = "\
Examples:
  flashpan pull alpine
  flashpan image pull quay.io/podman/hello -t hello
  flashpan image pull --json alpine | jq -r .digest
  flashpan image pull --platform linux/arm64 debian:12
  flashpan image pull localhost:5000/app --insecure-registry localhost:5000

Credentials are those that docker and podman have stored (`docker login`). A pull
that was interrupted goes on where it was.";

const IMPORT_EXAMPLES: &str = "\
Examples:
  docker save app | flashpan image import -
  flashpan image import --json app.tar          what came of it as JSON
  flashpan image import app.tar                 all its images, by their own names
  flashpan image import base debian-root.tar.zst
  flashpan image import app ./oci-layout
  flashpan image import ./oci-layout            all its images, by their own names
  flashpan image import mine < root.tar

Understood are tars of `docker save`, OCI image layouts (tar or directory) and
root file systems (tar or directory), each tar also with gzip or zstd.";

/// Pulls an image from a registry
#[derive(Debug, Args)]
#[command(after_help = PULL_EXAMPLES)]
pub(crate) struct PullArgs {
    /// Name of the image, as docker writes it.
    #[arg(value_name = "IMAGE")]
    image: Reference,

    /// Of an image for several platforms, which one.
    #[arg(long, value_name = "OS/ARCH[/VARIANT]", default_value_t)]
    platform: Platform,

    /// Check everything that is there, and make the root image again.
    #[arg(long)]
    force: bool,

    /// A second name for the image.
    #[arg(long, short, value_name = "NAME")]
    tag: Option<String>,

    /// Only print the digest.
    #[arg(long, short)]
    quiet: bool,

    /// Show the image as JSON.
    #[arg(long, conflicts_with = "quiet")]
    json: bool,

    #[command(flatten)]
    registries: RegistryArgs,
}

/// Imports images from an archive, a directory or standard input
#[derive(Debug, Args)]
#[command(after_help = IMPORT_EXAMPLES)]
pub(super) struct ImportArgs {
    /// Name for the image, or of several images which one; and where it is:
    /// a file, a directory, or `-` for standard input. Alone, what begins with `/`
    /// or `.` or ends like an archive (.tar, .tgz, .tar.gz, .tar.zst) is a place,
    /// anything else a name for standard input.
    #[arg(value_names = ["[NAME]", "FILE|DIR|-"], num_args = 1..=2, required = true)]
    words: Vec<String>,

    /// Of an archive for several platforms, which one.
    #[arg(long, value_name = "OS/ARCH[/VARIANT]", default_value_t)]
    platform: Platform,

    /// Only print digests.
    #[arg(long, short)]
    quiet: bool,

    /// Show the images as JSON, one a line.
    #[arg(long, conflicts_with = "quiet")]
    json: bool,
}

/// When `flashpan run` pulls.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum PullPolicy {
    /// If the image is not there.
    #[default]
    Missing,
    /// Whenever the registry has another one.
    Always,
    /// Not at all.
    Never,
}

impl From<PullPolicy> for flashpan::launch::PullPolicy {
    fn from(policy: PullPolicy) -> Self {
        match policy {
            PullPolicy::Missing => Self::Missing,
            PullPolicy::Always => Self::Always,
            PullPolicy::Never => Self::Never,
        }
    }
}

pub(crate) fn pull(args: &PullArgs) -> Result<(), Failure> {
    let store = Store::user().map_err(Failure::new)?;
    let client = args.registries.client(&args.platform)?;
    let name = args.image.short();
    announce(args.quiet, &format!("Pulling {name}..."));
    let cancel = Cancel::default();
    let options = PullOptions {
        force: args.force,
        tag: args.tag.clone(),
        conversion: Conversion {
            cancel: cancel.clone(),
            ..Conversion::default()
        },
    };
    let pulled = fetch(&store, &client, &args.image, &options, args.quiet)?;
    let info = &pulled.image.info;
    let digest = info.digest().unwrap_or(&info.id);
    if args.quiet {
        return print(&format!("{digest}\n"));
    }
    if args.json {
        return print_json_line(&PulledImage {
            changed: pulled.changed,
            second_name: pulled.tag.as_deref(),
            image: Listed::of(info),
        });
    }
    let tag = pulled.tag.as_deref().unwrap_or(&info.name);
    let current = match pulled.changed {
        true => "",
        false => "Up to date\n",
    };
    // The digest is the index's then.
    let manifest = info.manifest.as_ref().filter(|_| info.index.is_some());
    let manifest = manifest.map(|digest| format!("Manifest: {digest} ({})\n", info.platform));
    print(&format!(
        "{current}Tagged: {}\nDigest: {digest}\n{}Size: {}\n",
        short_name(tag),
        manifest.unwrap_or_default(),
        size(info.size)
    ))
}

/// A pulled image in JSON.
#[derive(Debug, Serialize)]
struct PulledImage<'a> {
    #[serde(flatten)]
    image: Listed<'a>,
    /// Whether it was not there before.
    changed: bool,
    /// What --tag named it besides.
    #[serde(skip_serializing_if = "Option::is_none")]
    second_name: Option<&'a str>,
}

/// Says to who watches what begins.
fn announce(quiet: bool, text: &str) {
    if !quiet && io::stderr().is_terminal() {
        // With standard error gone there is nobody to tell.
        let _ = writeln!(io::stderr().lock(), "{text}");
    }
}

/// Pulls, showing progress; a signal ends it in order.
fn fetch(
    store: &Store,
    client: &Client,
    image: &Reference,
    options: &PullOptions,
    quiet: bool,
) -> Result<Pulled, Failure> {
    let progress = Arc::new(ImageProgress::new(&image.short(), quiet));
    let listener = Arc::clone(&progress);
    let events: flashpan_rootfs::store::Listener = Arc::new(move |event| listener.on(event));
    let cancel = options.conversion.cancel.clone();
    runtime(in_order(
        &cancel,
        store.pull(client, image, options, &events),
        |error| full::failure(&error, &[store.path()], progress.bytes()),
    ))
}

/// Awaits work that can be cancelled. A signal cancels it, and it has a moment
/// to leave everything in order.
pub(crate) async fn in_order<T, E>(
    cancel: &Cancel,
    work: impl Future<Output = Result<T, E>>,
    failed: impl FnOnce(E) -> Failure,
) -> Result<T, Failure> {
    let mut signals =
        Signals::watch().map_err(|e| Failure::new(format!("cannot watch signals: {e}")))?;
    tokio::pin!(work);
    tokio::select! {
        done = &mut work => done.map_err(failed),
        signal = signals.ending() => {
            cancel.cancel();
            match tokio::time::timeout(PATIENCE, work).await {
                // It was done before it heard of the signal.
                Ok(Ok(done)) => Ok(done),
                _ => Err(Failure::signalled(signal)),
            }
        }
    }
}

pub(super) fn import(args: &ImportArgs) -> Result<(), Failure> {
    let store = Store::user().map_err(Failure::new)?;
    let (name, input) = args.input()?;
    let what = match &input {
        Input::Path(path) => path.display().to_string(),
        Input::File { name, .. } => name.clone(),
    };
    if matches!(input, Input::File { .. }) {
        let name = name.as_deref().unwrap_or("images");
        announce(args.quiet, &format!("Importing {name} from stdin..."));
    }
    let images = import_in_order(&store, input, name, &args.platform, &what, args.quiet)?;
    for image in &images {
        let info = &image.info;
        if args.quiet {
            print(&format!("{}\n", info.id))?;
            continue;
        }
        if args.json {
            print_json_line(&Listed::of(info))?;
            continue;
        }
        print(&format!(
            "Imported: {}\nLayers: {}\nSize: {}\n",
            short_name(&info.name),
            info.layers.len(),
            size(info.size)
        ))?;
    }
    Ok(())
}

fn import_in_order(
    store: &Store,
    input: Input,
    name: Option<String>,
    platform: &Platform,
    what: &str,
    quiet: bool,
) -> Result<Vec<Image>, Failure> {
    let cancel = Cancel::default();
    let options = ImportOptions {
        name,
        platform: platform.clone(),
        conversion: Conversion {
            cancel: cancel.clone(),
            ..Conversion::default()
        },
    };
    let progress = ImageProgress::new(what, quiet);
    let importer = store.clone();
    runtime(async move {
        let (sender, done) = oneshot::channel();
        // Not waited for at the end: reading a pipe may take as long as it likes.
        std::thread::Builder::new()
            .name("import".to_owned())
            .spawn(move || {
                let imported = importer.import(input, &options, &|event| progress.on(event));
                drop(progress);
                drop(sender.send(imported));
            })
            .map_err(|e| Failure::new(format!("cannot start a thread: {e}")))?;
        let work = async { done.await.map_err(|_| Error::Cancelled)? };
        in_order(&cancel, work, |error| {
            full::failure(&error, &[store.path()], None)
        })
        .await
    })
}

impl ImportArgs {
    /// The name that the image is to get, and where it is. Whether one word is a
    /// name or a place is told by the word alone: a file that happens to be there
    /// must not change what `image import NAME < FILE` does.
    fn input(&self) -> Result<(Option<String>, Input), Failure> {
        match self.words.as_slice() {
            [word] if word == "-" => Ok((None, stdin()?)),
            [word] if is_place(word) => Ok((None, Input::Path(PathBuf::from(word)))),
            [name] => Ok((Some(name.clone()), stdin_as(name)?)),
            [name, place] if place == "-" => Ok((Some(name.clone()), stdin()?)),
            [name, place] => Ok((Some(name.clone()), Input::Path(PathBuf::from(place)))),
            _ => Err(Failure::new("write `flashpan image import [NAME] FILE`")),
        }
    }
}

/// Endings of archives, which no name of an image has.
const ARCHIVES: [&str; 6] = [".tar", ".tgz", ".tar.gz", ".tzst", ".tar.zst", ".tar.zstd"];

/// Is the word a path, and no name for what comes in on standard input?
fn is_place(word: &str) -> bool {
    let is_path = word.starts_with(['/', '.']);
    let is_archive = ARCHIVES.iter().any(|ending| word.ends_with(ending));
    is_path || is_archive || word.parse::<Reference>().is_err()
}

/// Standard input, to be an image of that name.
fn stdin_as(name: &str) -> Result<Input, Failure> {
    let is_there = Path::new(name).exists();
    if io::stdin().is_terminal() {
        let advice = match is_there {
            true => format!("for the file of that name write ./{name}"),
            false => format!("name a file as well: flashpan image import {name} FILE"),
        };
        return Err(Failure::new(format!(
            "{name} is a name for what comes in on standard input, and that is a terminal; {advice}"
        )));
    }
    if is_there {
        say(
            "note",
            &format!("reading standard input for {name}; for the file of that name write ./{name}"),
        );
    }
    stdin()
}

fn stdin() -> Result<Input, Failure> {
    if io::stdin().is_terminal() {
        return Err(Failure::new(
            "standard input is a terminal, and an archive cannot be typed; name a file",
        ));
    }
    let fd = io::stdin().as_fd().try_clone_to_owned();
    let fd = fd.map_err(|e| Failure::new(format!("cannot read standard input: {e}")))?;
    Ok(Input::File {
        file: File::from(fd),
        name: "standard input".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_word_is_a_place_or_a_name_by_its_looks_alone() {
        for place in [
            "./app",
            "../app",
            "/app",
            ".",
            "app.tar",
            "dir/app.tar.gz",
            "app.tgz",
            "app.tar.zst",
            "My Directory",
        ] {
            assert!(is_place(place), "{place}");
        }
        for name in [
            "app",
            "app:1.tar.x",
            "team/app",
            "quay.io/team/app:2",
            "src",
        ] {
            assert!(!is_place(name), "{name}");
        }
    }
}
