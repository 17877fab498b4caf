//! `flashpan kernel`: build guest kernels, and look after those that were built.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use clap::{Args, Subcommand};
use flashpan_kernel::{
    BuildOptions, Cache, Cancel, Change, Error, Kernel, KernelInfo, Phase, SourceChoice, Upstream,
    diff,
};
use serde::Serialize;
use tokio::sync::oneshot;

use crate::failure::{Failure, each, print, print_json, print_json_line, say};
use crate::progress::Progress;
use crate::runtime;
use crate::signals::Signals;

/// Digits of a hash that are shown in lists; they are enough to name a kernel.
const SHORT_HASH: usize = 12;

const EXAMPLES: &str = "\
Examples:
  flashpan kernel build
  flashpan kernel ls
  flashpan kernel diff base netfilter";

const BUILD_EXAMPLES: &str = "\
Examples:
  flashpan kernel build
  flashpan kernel build --fragment netfilter --fragment debug
  flashpan kernel build --fragment ./my.config --source ~/src/linux-6.12 --jobs 8
  flashpan kernel build --source upstream
  flashpan kernel build --json | jq -r .hash
  flashpan run --kernel \"$(flashpan kernel build --fragment debug)\" -- uname -a

The path of the kernel goes to standard output, all else to standard error. A
kernel that was built before from the same things is not built again. An option
that Kconfig would drop or change fails the build before anything is compiled.

The source is that of the distribution's package linux-source-6.12. Where that is
not installed, the tarball of kernel.org is downloaded (150 MB, once, pinned by its
SHA-256), or from the directory whose URL is in FLASHPAN_KERNEL_MIRROR.

Fragments that come with flashpan: debug, hardened, netfilter, nosmp, pci-acpi.";

const LS_EXAMPLES: &str = "\
Examples:
  flashpan kernel ls
  flashpan kernel ls --json";

const SHOW_EXAMPLES: &str = "\
Examples:
  flashpan kernel show
  flashpan kernel show netfilter --config | grep NF_
  flashpan kernel show 1a2b3c --json";

const RM_EXAMPLES: &str = "\
Examples:
  flashpan kernel rm 1a2b3c
  flashpan kernel rm base+debug base+nosmp
  flashpan kernel rm --json 1a2b3c

A VM that runs a kernel keeps it until it ends.";

const DIFF_EXAMPLES: &str = "\
Examples:
  flashpan kernel diff base netfilter
  flashpan kernel diff 1a2b3c 4d5e6f --json";

/// Builds guest kernels and looks after them
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct KernelArgs {
    #[command(subcommand)]
    command: KernelCommand,
}

#[derive(Debug, Subcommand)]
enum KernelCommand {
    Build(BuildArgs),
    Ls(LsArgs),
    Show(ShowArgs),
    Rm(RmArgs),
    Diff(DiffArgs),
}

/// Builds a kernel from the base configuration and fragments
#[derive(Debug, Args)]
#[command(after_help = BUILD_EXAMPLES)]
struct BuildArgs {
    /// A fragment on top of the base configuration: a name or a file; may be
    /// repeated, later ones win.
    #[arg(long = "fragment", value_name = "NAME|FILE")]
    fragments: Vec<String>,

    /// Source of the kernel: a tree, a tarball, or `upstream` for the tarball of
    /// kernel.org; otherwise the distribution's package, or else upstream.
    #[arg(long, value_name = "DIR|TARBALL|upstream")]
    source: Option<PathBuf>,

    /// Download nothing.
    #[arg(long)]
    offline: bool,

    /// Compilers at once; otherwise one per CPU.
    #[arg(long, short, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    jobs: Option<u32>,

    /// Only find out whether Kconfig grants all that is asked for.
    #[arg(long)]
    check: bool,

    /// Show the kernel as JSON, as `kernel show` does; with --check, how many options
    /// are on.
    #[arg(long)]
    json: bool,
}

/// Lists the kernels that were built, the newest first
#[derive(Debug, Args)]
#[command(after_help = LS_EXAMPLES)]
struct LsArgs {
    /// As JSON.
    #[arg(long)]
    json: bool,
}

/// Shows what a kernel is made of
#[derive(Debug, Args)]
#[command(after_help = SHOW_EXAMPLES)]
struct ShowArgs {
    /// Name of a kernel or the beginning of its hash; otherwise the default one.
    #[arg(value_name = "KERNEL")]
    kernel: Option<String>,

    /// Its whole configuration.
    #[arg(long, conflicts_with = "json")]
    config: bool,

    /// As JSON.
    #[arg(long)]
    json: bool,
}

/// Removes kernels
#[derive(Debug, Args)]
#[command(after_help = RM_EXAMPLES)]
struct RmArgs {
    /// Names of kernels or the beginnings of their hashes.
    #[arg(value_name = "KERNEL", required = true)]
    kernels: Vec<String>,

    /// Say which were removed as JSON, one a line.
    #[arg(long)]
    json: bool,
}

/// Compares the configurations and sizes of two kernels
#[derive(Debug, Args)]
#[command(after_help = DIFF_EXAMPLES)]
struct DiffArgs {
    /// Name of the first kernel or the beginning of its hash.
    #[arg(value_name = "FROM")]
    from: String,

    /// The same of the second.
    #[arg(value_name = "TO")]
    to: String,

    /// As JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn kernel(args: &KernelArgs) -> Result<u8, Failure> {
    let cache = Cache::user().map_err(Failure::new)?;
    match &args.command {
        KernelCommand::Build(args) => build(cache, args)?,
        KernelCommand::Ls(args) => ls(&cache, args)?,
        KernelCommand::Show(args) => show(&cache, args)?,
        KernelCommand::Rm(args) => rm(&cache, args)?,
        KernelCommand::Diff(args) => compare(&cache, args)?,
    }
    Ok(0)
}

/// The kernel to boot: a file, a kernel of the cache, or the default one.
pub(crate) fn resolve(named: Option<&Path>) -> Result<PathBuf, Failure> {
    if let Some(path) = named
        && (path.components().count() > 1 || path.exists())
    {
        return Ok(path.to_owned());
    }
    let name = named.map(|name| {
        name.to_str()
            .ok_or_else(|| Failure::new(format!("no kernel is called {}", name.display())))
    });
    let cache = Cache::user().map_err(Failure::new)?;
    let kernel = cache.find(name.transpose()?).map_err(Failure::new)?;
    Ok(kernel.vmlinux())
}

fn build(cache: Cache, args: &BuildArgs) -> Result<(), Failure> {
    let options = BuildOptions {
        fragments: args.fragments.clone(),
        source: match &args.source {
            None => SourceChoice::Found,
            Some(path) if path.as_os_str() == "upstream" => SourceChoice::Upstream,
            Some(path) => SourceChoice::Path(path.clone()),
        },
        upstream: Upstream::user().map_err(Failure::new)?,
        offline: args.offline,
        jobs: args.jobs,
        cancel: Cancel::default(),
    };
    let cancel = options.cancel.clone();
    let bars = SharedBars::new();
    let shown = bars.clone();
    if args.check {
        let work = move || cache.check(&options, &mut |now| shown.show(&now));
        let enabled = cancellable(&cancel, &bars, work)?.enabled();
        if args.json {
            return print_json_line(&Checked { enabled });
        }
        return print(&format!(
            "Kconfig grants everything; {enabled} options are on\n"
        ));
    }
    let work = move || cache.build(&options, &mut |now| shown.show(&now));
    let kernel = cancellable(&cancel, &bars, work)?;
    if args.json {
        return print_json_line(&kernel);
    }
    print(&format!("{}\n", kernel.vmlinux().display()))
}

/// A configuration that Kconfig grants, in JSON.
#[derive(Debug, Serialize)]
struct Checked {
    enabled: usize,
}

/// A kernel that is gone, in JSON.
#[derive(Debug, Serialize)]
struct Removed<'a> {
    hash: &'a str,
    name: &'a str,
}

/// The progress of a build, and while it downloads that of the download.
struct Bars {
    bar: Progress,
    shows: Shows,
}

/// What a bar is about.
#[derive(PartialEq, Eq)]
enum Shows {
    Build,
    /// A download that has said nothing yet, or not how long it is.
    Announced,
    Download,
}

impl Bars {
    fn new() -> Self {
        Self {
            bar: Progress::share("kernel"),
            shows: Shows::Build,
        }
    }

    fn show(&mut self, now: &flashpan_kernel::Progress) {
        if now.phase != Phase::Downloading {
            if self.shows != Shows::Build {
                *self = Self::new();
            }
            self.bar.at(now.fraction, now.eta, &now.phase.to_string());
            return;
        }
        if self.shows == Shows::Build {
            // The bar that is there goes first, or the two lines would mix.
            self.bar = Progress::share("kernel");
            self.shows = Shows::Announced;
            say("note", &downloading(&now.detail));
        }
        let Some(transfer) = now.transfer else { return };
        match transfer.total {
            Some(total) if self.shows == Shows::Announced => {
                self.bar = Progress::bytes("downloading the kernel's source", total);
                self.shows = Shows::Download;
            }
            None if self.shows == Shows::Announced => {
                let doing = format!("downloading, {} so far", mebibytes(transfer.done));
                self.bar.at(now.fraction, None, &doing);
            }
            _ => (),
        }
        if self.shows == Shows::Download {
            self.bar.set(transfer.done);
        }
    }
}

/// The bars of a build that may be left to itself.
#[derive(Clone)]
struct SharedBars(Arc<Mutex<Option<Bars>>>);

impl SharedBars {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(Some(Bars::new()))))
    }

    fn show(&self, now: &flashpan_kernel::Progress) {
        let mut bars = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bars) = &mut *bars {
            bars.show(now);
        }
    }

    /// Takes them off the terminal, for good.
    fn clear(&self) {
        let bars = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(bars);
    }
}

/// What is fetched from where, and how to do without.
fn downloading(url: &str) -> String {
    format!(
        "downloading {url} (once; pinned by its SHA-256). To use a source of your own: \
         apt-get install linux-source-6.12, or --source; --offline downloads nothing"
    )
}

/// Runs long work on a thread of its own; a signal stops it in order. Work that has
/// not begun to build may be reading a file that takes for ever: it is not waited
/// for.
fn cancellable<T: Send + 'static>(
    cancel: &Cancel,
    bars: &SharedBars,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Failure> {
    runtime(async {
        let mut signals =
            Signals::watch().map_err(|e| Failure::new(format!("cannot watch signals: {e}")))?;
        let (sender, mut done) = oneshot::channel();
        std::thread::Builder::new()
            .name("build".to_owned())
            .spawn(move || drop(sender.send(work())))
            .map_err(|e| Failure::new(format!("cannot start a thread: {e}")))?;
        let lost = |_| Failure::new("the build ended without a result");
        tokio::select! {
            result = &mut done => result.map_err(lost)?.map_err(Failure::new),
            signal = signals.ending() => {
                let result = match cancel.cancel() {
                    true => done.await.map_err(lost)?,
                    false => done.try_recv().unwrap_or(Err(Error::Cancelled)),
                };
                bars.clear();
                match result {
                    // It was done before it heard of the signal.
                    Ok(result) => Ok(result),
                    Err(Error::Cancelled) => Err(Failure::signalled(signal)),
                    Err(e) => Err(Failure::new(e)),
                }
            }
        }
    })
}

fn ls(cache: &Cache, args: &LsArgs) -> Result<(), Failure> {
    let kernels = cache.list().map_err(Failure::new)?;
    if args.json {
        return print_json(&kernels);
    }
    let default = cache.find(None).ok().map(|kernel| kernel.info.hash);
    let mut out = format!(
        "{:<13} {:<28} {:<22} {:>9}  BUILT\n",
        "HASH", "NAME", "RELEASE", "SIZE"
    );
    for Kernel { info, .. } in &kernels {
        let is_default = default.as_ref() == Some(&info.hash);
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "{:<13} {:<28} {:<22} {:>9}  {}",
            format!("{}{}", short(&info.hash), if is_default { "*" } else { "" }),
            info.name,
            info.release,
            mebibytes(info.bytes),
            info.built_at_utc(),
        );
    }
    if kernels.is_empty() {
        out.push_str("none yet; run: flashpan kernel build\n");
    } else if default.is_some() {
        out.push_str("* boots by default\n");
    }
    print(&out)
}

fn show(cache: &Cache, args: &ShowArgs) -> Result<(), Failure> {
    let kernel = cache.find(args.kernel.as_deref()).map_err(Failure::new)?;
    if args.config {
        return print(&kernel.config().map_err(Failure::new)?);
    }
    if args.json {
        return print_json(&kernel);
    }
    let info = &kernel.info;
    let fragments: Vec<_> = info.fragments.iter().map(|f| f.name.as_str()).collect();
    let fragments = if fragments.is_empty() {
        "none".to_owned()
    } else {
        fragments.join(", ")
    };
    let KernelInfo {
        hash,
        name,
        release,
        source_identity,
        compiler,
        options,
        ..
    } = info;
    print(&format!(
        "name      {name}\n\
         hash      {hash}\n\
         release   {release}\n\
         kernel    {}\n\
         size      {} ({} bytes)\n\
         source    {} ({source_identity})\n\
         compiler  {compiler}\n\
         fragments {fragments}\n\
         options   {options} on; all of them: {}\n\
         built     {} in {:.0} s with {} jobs\n",
        kernel.vmlinux().display(),
        mebibytes(info.bytes),
        info.bytes,
        info.source.display(),
        kernel.config_path().display(),
        info.built_at_utc(),
        info.build_seconds,
        info.jobs,
    ))
}

fn rm(cache: &Cache, args: &RmArgs) -> Result<(), Failure> {
    each(&args.kernels, |name| {
        let removed = cache.remove(name).map_err(Failure::new)?;
        if args.json {
            return print_json_line(&Removed {
                hash: &removed.info.hash,
                name: &removed.info.name,
            });
        }
        print(&format!(
            "removed {} ({})\n",
            short(&removed.info.hash),
            removed.info.name
        ))
    })
}

fn compare(cache: &Cache, args: &DiffArgs) -> Result<(), Failure> {
    let find = |name: &str| cache.find(Some(name)).map_err(Failure::new);
    let difference = diff(&find(&args.from)?, &find(&args.to)?).map_err(Failure::new)?;
    if args.json {
        return print_json(&difference);
    }
    let mut out = String::new();
    for Change { option, from, to } in &difference.options {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{option:<40} {from} -> {to}");
    }
    let options = difference.options.len();
    let _ = writeln!(
        out,
        "{options} options differ; {:+} bytes",
        difference.bytes
    );
    print(&out)
}

fn short(hash: &str) -> &str {
    hash.get(..SHORT_HASH).unwrap_or(hash)
}

fn mebibytes(bytes: u64) -> String {
    let tenths = bytes.saturating_mul(10) / (1024 * 1024);
    format!("{}.{} MiB", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_a_file_and_a_plain_word_may_be_a_kernel_of_the_cache() {
        let path = Path::new("/nowhere/vmlinux");
        assert_eq!(resolve(Some(path)).unwrap(), path);
        let error = resolve(Some(Path::new("no-such-kernel"))).unwrap_err();
        assert_eq!(error.code, 125);
    }

    #[test]
    fn sizes_have_one_decimal() {
        assert_eq!(mebibytes(0), "0.0 MiB");
        assert_eq!(mebibytes(12 * 1024 * 1024 + 600 * 1024), "12.5 MiB");
    }
}
