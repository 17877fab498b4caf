//! Packages of the distribution: what is missing is installed when we are
//! root, and named otherwise.

use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// What the guest kernel is built with, and from. curl is there for the tests of
/// downloading.
pub const KERNEL: &[&str] = &[
    "linux-source-6.12",
    "bc",
    "bison",
    "cpio",
    "curl",
    "flex",
    "gcc",
    "libelf-dev",
    "libssl-dev",
    "make",
    "perl",
    "xz-utils",
];

/// What root file systems for the demonstration and the tests are made with.
pub const ROOTFS: &[&str] = &[
    "busybox-static",
    "ca-certificates",
    "e2fsprogs",
    "erofs-utils",
    "mmdebstrap",
];

/// What images of containers are made, served, compared and fuzzed with, and
/// certificates for registries.
pub const IMAGES: &[&str] = &[
    "attr",
    "docker-registry",
    "g++",
    "gzip",
    "openssl",
    "python3",
    "skopeo",
    "tar",
    "umoci",
    "util-linux",
    "zstd",
];

/// What the lab runs on, QEMU apart, which has a version to watch.
pub const LAB: &[&str] = &["busybox-static", "e2fsprogs", "xz-utils"];

/// The oldest QEMU whose emulated nested virtualisation is sound.
const QEMU_MAJOR: u32 = 10;
/// QEMU, and what it needs in its own version. Backports are asked for by
/// package: asked for the whole suite (`-t`), apt would take libraries from it
/// as well, which then do not fit the distribution's development packages.
const QEMU_PACKAGES: [&str; 4] = [
    "qemu-system-x86",
    "qemu-system-common",
    "qemu-system-data",
    "seabios",
];

/// The file that we add to apt's sources where backports are needed.
const BACKPORTS: &str = "/etc/apt/sources.list.d/flashpan-backports.sources";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Says what is being done, on standard error: standard output is the command's.
pub fn say(text: &str) {
    eprintln!("lab: {text}");
}

/// Runs a program whose output is progress and goes to standard error.
///
/// # Errors
/// It cannot be started, or fails.
pub fn run(command: &mut Command) -> Result<()> {
    let words: Vec<_> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect();
    let words = words.join(" ");
    let status = command
        .stdin(Stdio::null())
        .stdout(Stdio::from(io::stderr()))
        .status()
        .with_context(|| format!("cannot start `{words}`"))?;
    if !status.success() {
        bail!("`{words}` failed: {status}");
    }
    Ok(())
}

/// The standard output of a program; empty when it fails or does not exist.
fn ask(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .stderr(Stdio::null())
        .output();
    output
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        .unwrap_or_default()
}

/// Sees to it that these packages are installed.
///
/// # Errors
/// Some are missing and we are not root, or apt failed.
pub fn ensure(packages: &[&str]) -> Result<()> {
    let missing: Vec<&str> = packages
        .iter()
        .copied()
        .filter(|package| !is_installed(package))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    install(&missing)
}

fn is_installed(package: &str) -> bool {
    ask("dpkg-query", &["-W", "-f=${db:Status-Status}", package]) == "installed"
}

fn install<S: AsRef<str>>(packages: &[S]) -> Result<()> {
    let packages: Vec<_> = packages.iter().map(AsRef::as_ref).collect();
    let list = packages.join(" ");
    if !nix::unistd::geteuid().is_root() {
        bail!("packages are missing; install them with: sudo apt-get install {list}");
    }
    refresh_lists()?;
    say(&format!("installing {list}"));
    let mut apt = Command::new("apt-get");
    apt.env("DEBIAN_FRONTEND", "noninteractive");
    apt.args([
        "-q",
        "-y",
        "-o",
        "Dpkg::Use-Pty=0",
        "install",
        "--no-install-recommends",
    ]);
    run(apt.args(packages))
}

/// A fresh machine has no lists at all, and old lists name what is gone.
fn refresh_lists() -> Result<()> {
    say("refreshing the package lists");
    run(Command::new("apt-get").args(["-q", "-o", "Dpkg::Use-Pty=0", "update"]))
}

/// Sees to it that QEMU is installed and new enough.
///
/// # Errors
/// It is not, and could not be made so.
pub fn ensure_qemu() -> Result<()> {
    if qemu_version().is_some_and(|(major, _)| major >= QEMU_MAJOR) {
        return Ok(());
    }
    let codename = codename();
    if codename == "bookworm" {
        let suite = "bookworm-backports";
        if nix::unistd::geteuid().is_root() && mirror(suite).is_none() {
            add_suite(&codename, suite)?;
        }
        install(&QEMU_PACKAGES.map(|package| format!("{package}/{suite}")))
            .context("QEMU 10 comes from the suite bookworm-backports")?;
    } else {
        install(&QEMU_PACKAGES)?;
    }
    match qemu_version() {
        Some((major, _)) if major >= QEMU_MAJOR => Ok(()),
        Some((_, text)) => bail!(
            "the lab needs QEMU {QEMU_MAJOR} or newer and this is {text}: with 7.2 the emulated \
             host hangs or panics after about 14 boots in it"
        ),
        None => bail!("qemu-system-x86_64 does not start; the lab needs QEMU {QEMU_MAJOR}"),
    }
}

/// The major version of QEMU, and the whole of it.
fn qemu_version() -> Option<(u32, String)> {
    let text = ask("qemu-system-x86_64", &["--version"]);
    let version = text
        .split_whitespace()
        .skip_while(|word| *word != "version")
        .nth(1)?;
    Some((version.split('.').next()?.parse().ok()?, version.to_owned()))
}

fn codename() -> String {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let line = release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    line.unwrap_or_default().trim_matches('"').to_owned()
}

/// The releases in apt's sources, each with its mirror.
fn sources() -> Vec<(String, String)> {
    let text = ask(
        "apt-get",
        &[
            "indextargets",
            "--format",
            "$(RELEASE) $(REPO_URI)",
            "Created-By: Packages",
        ],
    );
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(a, b)| (a.into(), b.into()))
        .collect()
}

/// The mirror that the machine's sources name for a release of Debian.
#[must_use]
pub fn mirror(release: &str) -> Option<String> {
    sources()
        .into_iter()
        .find_map(|(name, mirror)| (name == release).then_some(mirror))
}

/// Adds a suite, from the mirror that the machine has its own release from.
fn add_suite(codename: &str, suite: &str) -> Result<()> {
    let mirror = mirror(codename)
        .with_context(|| format!("apt's sources name no mirror for {codename}; add {suite}"))?;
    let mut text = format!("Types: deb\nURIs: {mirror}\nSuites: {suite}\nComponents: main\n");
    if Path::new(KEYRING).exists() {
        text.push_str(&format!("Signed-By: {KEYRING}\n"));
    }
    say(&format!(
        "adding {suite} from {mirror} to apt's sources: {BACKPORTS}"
    ));
    fs::write(BACKPORTS, text).with_context(|| format!("cannot write {BACKPORTS}"))
}

/// Downloads the package that a meta-package depends on into a directory,
/// which needs no root; its name.
///
/// # Errors
/// There is no such package, or the download failed.
pub fn download_dependency(meta: &str, directory: &Path) -> Result<String> {
    let dependency = || -> Option<String> {
        let text = ask(
            "apt-cache",
            &["depends", "--no-recommends", "--no-suggests", meta],
        );
        let line = text
            .lines()
            .find_map(|line| line.trim().strip_prefix("Depends: "))?;
        Some(line.to_owned())
    };
    let mut package = dependency();
    if package.is_none() && nix::unistd::geteuid().is_root() {
        refresh_lists()?;
        package = dependency();
    }
    let package =
        package.with_context(|| format!("apt does not know {meta}; try `apt-get update`"))?;
    say(&format!("downloading {package}"));
    let download = || {
        let mut apt = Command::new("apt-get");
        // As root apt would download as a user who cannot write here.
        apt.args(["-q", "-o", "APT::Sandbox::User=root", "download"])
            .arg(&package);
        run(apt.current_dir(directory))
    };
    if download().is_err() {
        // The lists may name a version that the mirror no longer has.
        refresh_lists()?;
        download()?;
    }
    Ok(package)
}
