//! Packages of the distribution: what is missing is installed when we are
//! root, and named otherwise.

use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// What the guest kernel is built from.
const KERNEL_SOURCE: &str = "linux-source-6.12";

/// What the guest kernel is built with, and from. curl is there for the tests of
/// downloading.
pub const KERNEL: &[&str] = &[
    KERNEL_SOURCE,
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

/// What the servers consist of that programs in a guest speak to.
pub const SERVERS: &[&str] = &[
    "git",
    "iproute2",
    "openssl",
    "postgresql",
    "python3",
    "python3-grpcio",
    "util-linux",
];

/// The host's end of a connection that is measured.
pub const IPERF: &[&str] = &["iperf3"];

/// Networks of the distribution's that need no privilege on the host, beside which ours is
/// measured, and what a namespace is set up with.
pub const NETWORKS: &[&str] = &["iproute2", "passt", "slirp4netns"];

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

/// The release of Debian whose own QEMU is too old, and which has no source of the
/// guest kernel's series, and the suite that has both.
const BOOKWORM: &str = "bookworm";
const SUITE: &str = "bookworm-backports";

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

/// Whether we may install packages.
#[must_use]
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
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
    Wanted::of(packages).obtain()
}

/// The same, and QEMU, new enough for the lab.
///
/// # Errors
/// As [`ensure`]; and QEMU could not be made new enough.
pub fn ensure_with_qemu(packages: &[&str]) -> Result<()> {
    let mut wanted = Wanted::of(packages);
    if qemu_is_good() {
        return wanted.obtain();
    }
    wanted.add_qemu(codename() == BOOKWORM);
    wanted.obtain()?;
    match qemu_version() {
        Some((major, _)) if major >= QEMU_MAJOR => Ok(()),
        Some((_, text)) => bail!(
            "the lab needs QEMU {QEMU_MAJOR} or newer and this is {text}: with 7.2 the emulated \
             host hangs or panics after about 14 boots in it"
        ),
        None => bail!("qemu-system-x86_64 does not start; the lab needs QEMU {QEMU_MAJOR}"),
    }
}

/// Packages that are missing, and where they come from.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wanted {
    packages: Vec<String>,
    /// Some come from [`SUITE`].
    backports: bool,
}

impl Wanted {
    fn of(packages: &[&str]) -> Self {
        let mut packages = packages.to_vec();
        packages.sort_unstable();
        packages.dedup();
        packages.retain(|package| !is_installed(package));
        let backports = packages.contains(&KERNEL_SOURCE) && codename() == BOOKWORM;
        let packages = packages.into_iter().map(str::to_owned).collect();
        Self {
            packages,
            backports,
        }
    }

    fn add_qemu(&mut self, from_backports: bool) {
        self.backports |= from_backports;
        let suite = match from_backports {
            true => format!("/{SUITE}"),
            false => String::new(),
        };
        let qemu = QEMU_PACKAGES.map(|package| format!("{package}{suite}"));
        self.packages.extend(qemu);
    }

    /// Installs it all when we are root; else that is the error.
    fn obtain(&self) -> Result<()> {
        if self.packages.is_empty() {
            return Ok(());
        }
        let source = match self.backports && mirror(SUITE).is_none() {
            true => Some(backports()?),
            false => None,
        };
        if !is_root() {
            bail!("{}", self.advice(source.as_deref()));
        }
        if let Some(source) = source {
            say(&format!("adding {SUITE} to apt's sources: {BACKPORTS}"));
            fs::write(BACKPORTS, source).with_context(|| format!("cannot write {BACKPORTS}"))?;
        }
        install(&self.packages)
    }

    /// What to type instead, when a file of sources with this text is missing.
    fn advice(&self, source: Option<&str>) -> String {
        let mut lines = vec!["packages are missing; install them with:".to_owned()];
        if let Some(source) = source {
            let quoted: Vec<_> = source.lines().map(|line| format!("'{line}'")).collect();
            let quoted = quoted.join(" ");
            lines.push(format!("printf '%s\\n' {quoted} | sudo tee {BACKPORTS}"));
        }
        lines.push("sudo apt-get update".to_owned());
        let packages = self.packages.join(" ");
        lines.push(format!("sudo apt-get install {packages}"));
        lines.join("\n  ")
    }
}

fn is_installed(package: &str) -> bool {
    ask("dpkg-query", &["-W", "-f=${db:Status-Status}", package]) == "installed"
}

fn install<S: AsRef<str>>(packages: &[S]) -> Result<()> {
    let packages: Vec<_> = packages.iter().map(AsRef::as_ref).collect();
    refresh_lists()?;
    say(&format!("installing {}", packages.join(" ")));
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

fn qemu_is_good() -> bool {
    qemu_version().is_some_and(|(major, _)| major >= QEMU_MAJOR)
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

/// The text of [`BACKPORTS`], with the mirror that the machine has its own release
/// from.
fn backports() -> Result<String> {
    let mirror = mirror(BOOKWORM)
        .with_context(|| format!("apt's sources name no mirror for {BOOKWORM}; add {SUITE}"))?;
    let mut text = format!("Types: deb\nURIs: {mirror}\nSuites: {SUITE}\nComponents: main\n");
    if Path::new(KEYRING).exists() {
        text.push_str(&format!("Signed-By: {KEYRING}\n"));
    }
    Ok(text)
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
    if package.is_none() && is_root() {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_not_root_is_told_all_at_once_and_in_order() {
        let mut wanted = Wanted {
            packages: vec!["flex".into(), KERNEL_SOURCE.into()],
            backports: false,
        };
        assert_eq!(
            wanted.advice(None),
            "packages are missing; install them with:\n  \
             sudo apt-get update\n  \
             sudo apt-get install flex linux-source-6.12"
        );
        wanted.add_qemu(true);
        assert!(wanted.backports);
        let advice = wanted.advice(Some("Types: deb\nURIs: http://mirror.example/debian\n"));
        let lines: Vec<_> = advice.lines().skip(1).map(str::trim).collect();
        assert_eq!(
            lines,
            [
                "printf '%s\\n' 'Types: deb' 'URIs: http://mirror.example/debian' | sudo tee \
                 /etc/apt/sources.list.d/flashpan-backports.sources",
                "sudo apt-get update",
                "sudo apt-get install flex linux-source-6.12 \
                 qemu-system-x86/bookworm-backports qemu-system-common/bookworm-backports \
                 qemu-system-data/bookworm-backports seabios/bookworm-backports",
            ]
        );
    }

    #[test]
    fn what_is_installed_is_not_wanted() {
        let packages = [
            "dpkg",
            "flashpan-no-such-package",
            "flashpan-no-such-package",
        ];
        assert_eq!(
            Wanted::of(&packages),
            Wanted {
                packages: vec!["flashpan-no-such-package".into()],
                backports: false
            }
        );
    }
}
