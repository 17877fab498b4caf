//! `cargo xtask setup`, and what the demonstration and the tests run on: our
//! programs, a guest kernel, a Debian root file system, and a place for VMs.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use flashpan_lab::packages;

use crate::{images, space, step};

/// The release of Debian whose root file system is tried.
pub(crate) const DEBIAN: &str = "bookworm";
/// What the tests run in it: a language with a big runtime, and an editor.
const DEBIAN_PACKAGES: &str = "python3,vim-tiny";
/// Programs that speak to a network, each with libraries of its own for TLS and HTTP. The
/// runtime of Java has its compiler in it as well.
const NETWORK_PACKAGES: &str = "ca-certificates,curl,git,nodejs,npm,openjdk-17-jre-headless,\
    openssh-client,openssl,postgresql-client,python3-grpcio,python3-h2,python3-httpx,\
    python3-pip,python3-requests,python3-websockets,wget";
/// The name of their root file system, which is another one when they are others: one that
/// is cached is not made anew.
const NETWORK_ROOT: &str = "programs-2";

/// What nothing in a guest reads; 90 MB of the biggest one.
const UNREAD: [&str; 2] = ["doc", "locale"];

/// Installs, or names, every package that any of our commands needs.
pub(crate) fn setup() -> Result<()> {
    space::check()?;
    step::say("packages of the distribution");
    let mut all = [
        packages::KERNEL,
        packages::ROOTFS,
        packages::IMAGES,
        packages::SERVERS,
        packages::LAB,
    ]
    .concat();
    if !packages::is_root() {
        // With it mmdebstrap needs no root.
        all.push("uidmap");
    }
    packages::ensure_with_qemu(&all)?;
    eprintln!("    all there");
    Ok(())
}

/// The packages with the programs that a VM is made with.
const PROGRAMS: [&str; 3] = ["flashpan-cli", "flashpan-vmm", "flashpan-guest-init"];

/// The check of `flashpan doctor` that tells whether a lab is needed.
const GUEST_CHECK: &str = "a guest runs";

/// More labs do not make the longest of the test programs shorter.
const MAX_LABS: usize = 4;

/// Where VMs run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Here: KVM runs an ordinary guest.
    Here,
    /// In the lab.
    Lab,
}

/// Everything that a VM is made of.
#[derive(Debug)]
pub(crate) struct Guest {
    /// Our program.
    pub(crate) flashpan: PathBuf,
    /// The guest kernel.
    pub(crate) kernel: PathBuf,
    /// Debian's root file system, as an EROFS image.
    pub(crate) debian: PathBuf,
    /// The same as a directory.
    pub(crate) debian_directory: PathBuf,
    /// Another one, with programs that speak to a network.
    pub(crate) programs: PathBuf,
    /// Container images in several forms; see `images`.
    pub(crate) images: PathBuf,
    /// Where VMs run on this machine.
    pub(crate) place: Place,
}

/// What cargo is asked to build them. Not the tools of development, which would take as long
/// again.
fn our_programs() -> Vec<&'static str> {
    let packages = PROGRAMS.iter().flat_map(|package| ["--package", package]);
    ["build", "--release"].into_iter().chain(packages).collect()
}

/// Begins to build them: that takes minutes, of which most have work for one CPU alone.
pub(crate) fn begin_to_build() -> Result<step::Ahead> {
    step::Ahead::build(&our_programs())
}

impl Guest {
    /// Builds or finds it all, with these fragments in the kernel's configuration.
    pub(crate) fn prepare(fragments: &[OsString]) -> Result<Self> {
        let built = step::build("our programs, with all optimisations", &our_programs())?;
        let flashpan = built
            .into_iter()
            .find_map(|(name, path)| (name == "flashpan").then_some(path))
            .context("cargo built no program `flashpan`")?;
        let kernel = kernel(&flashpan, fragments)?;
        let (_, programs) = debian(NETWORK_ROOT, NETWORK_PACKAGES)?;
        let (debian_directory, debian) = debian("debian", DEBIAN_PACKAGES)?;
        let images = images::prepare()?;
        let place = place(&flashpan)?;
        Ok(Self {
            flashpan,
            kernel,
            debian,
            debian_directory,
            programs,
            images,
            place,
        })
    }

    /// In how many places tests that boot VMs are run at a time: where VMs run, one after the
    /// other; or in labs, of which one leaves half of two CPUs idle.
    pub(crate) fn places(&self) -> Result<usize> {
        Ok(match self.place {
            Place::Here => 1,
            Place::Lab => labs(std::thread::available_parallelism()?.get(), memory()?),
        })
    }

    /// A command line that is run where VMs can be.
    pub(crate) fn command<I>(&self, timeout: u32, words: I) -> Result<Command>
    where
        I: IntoIterator<Item = OsString>,
    {
        let mut words = words.into_iter();
        let mut command = match self.place {
            Place::Lab => {
                let limit = timeout.to_string();
                let head = ["lab", "--timeout", &limit, "--"];
                step::ourselves(head.map(OsString::from).into_iter().chain(words))?
            }
            Place::Here => {
                let mut command = Command::new(words.next().context("no command")?);
                command.args(words);
                command
            }
        };
        command.env("FLASHPAN_TEST_BIN", &self.flashpan);
        // The program's own variable: in the lab it would look for kernels in
        // another cache.
        command.env("FLASHPAN_KERNEL", &self.kernel);
        command.env("FLASHPAN_TEST_DEBIAN", &self.debian);
        command.env("FLASHPAN_TEST_DEBIAN_DIR", &self.debian_directory);
        command.env("FLASHPAN_TEST_PROGRAMS", &self.programs);
        command.env("FLASHPAN_TEST_IMAGES", &self.images);
        Ok(command)
    }
}

/// How many labs this machine has room for: one for each CPU, and for 8 GiB of memory, of
/// which a lab has up to six.
fn labs(cpus: usize, memory: u64) -> usize {
    let room = usize::try_from(memory >> 33).unwrap_or(usize::MAX);
    cpus.min(room).clamp(1, MAX_LABS)
}

/// The memory of this machine in bytes.
fn memory() -> Result<u64> {
    let table = fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
    let total = table
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = total.and_then(|text| text.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.map(|kib| kib << 10)
        .context("/proc/meminfo has no MemTotal")
}

/// The guest kernel; minutes when it is not in the cache yet.
fn kernel(flashpan: &Path, fragments: &[OsString]) -> Result<PathBuf> {
    step::say("the guest kernel (about ten minutes on two CPUs, unless it is cached)");
    let mut build = Command::new(flashpan);
    build.args(["kernel", "build"]);
    for fragment in fragments {
        build.arg("--fragment").arg(fragment);
    }
    let output = step::read(&mut build)?;
    let path = PathBuf::from(output.lines().last().unwrap_or_default());
    if !path.is_file() {
        bail!("`flashpan kernel build` did not end with the path of a kernel: {output}");
    }
    eprintln!("    {}", path.display());
    Ok(path)
}

/// Debian's root file system with these packages in the user's cache, as a directory and
/// an image. A user who is not root gets all of it as their own: what mmdebstrap unpacks for
/// such a user belongs to others, and cannot even be read, but its archive can.
pub(crate) fn debian(name: &str, packages: &str) -> Result<(PathBuf, PathBuf)> {
    let cache = flashpan_lab::cache_directory()?.join("lab");
    let directory = cache.join(format!("{name}-{DEBIAN}"));
    let image = cache.join(format!("{name}-{DEBIAN}.erofs"));
    // The image is made last and in one step: where it is, all is well.
    if !image.is_file() {
        fs::create_dir_all(&cache)?;
        clear(&directory)?;
        let mut mmdebstrap = Command::new("mmdebstrap");
        mmdebstrap.args(["--quiet", "--variant=minbase", "--format=tar"]);
        let unread = |name| format!("--dpkgopt=path-exclude=/usr/share/{name}/*");
        mmdebstrap.args(UNREAD.map(unread));
        mmdebstrap.arg(format!("--include={packages}")).arg(DEBIAN);
        let tar = cache.join(format!("{name}-{DEBIAN}.tar"));
        mmdebstrap.arg(&tar);
        // Without one, mmdebstrap knows where the release is at home.
        mmdebstrap.args(packages::mirror(DEBIAN));
        step::run("a Debian root file system with mmdebstrap", &mut mmdebstrap)?;
        unpack(&tar, &directory)?;
        fs::remove_file(&tar)?;
        let work = image.with_extension("new");
        let mut mkfs = Command::new("mkfs.erofs");
        mkfs.arg("--quiet");
        if !packages::is_root() {
            mkfs.arg("--all-root");
        }
        mkfs.arg(&work).arg(&directory);
        step::run("its EROFS image", &mut mkfs)?;
        fs::rename(&work, &image)?;
    }
    Ok((directory, image))
}

/// Makes room for a directory. What cannot be removed, since parts of it belong to
/// others, is put aside.
fn clear(directory: &Path) -> Result<()> {
    let aside = |number: u32| directory.with_added_extension(format!("old-{number}"));
    let Some(aside) = (1..).map(aside).find(|path| !path.exists()) else {
        bail!("no name is free beside {}", directory.display());
    };
    match fs::rename(directory, &aside) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => {
            let directory = directory.display();
            return Err(error).with_context(|| format!("cannot put {directory} aside"));
        }
    }
    if let Err(error) = fs::remove_dir_all(&aside) {
        let aside = aside.display();
        eprintln!("    cannot remove {aside} ({error}); do it with: sudo rm -r {aside}");
    }
    Ok(())
}

/// Unpacks an archive of a root file system, all but its device nodes, which only
/// root can make and guests have of their own.
fn unpack(tar: &Path, directory: &Path) -> Result<()> {
    fs::create_dir(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let mut unpack = Command::new("tar");
    unpack.args(["--numeric-owner", "--exclude=./dev/*", "-xpf"]);
    unpack.arg(tar).arg("-C").arg(directory);
    step::run("its directory", &mut unpack)
}

/// Asks `flashpan doctor` whether an ordinary guest runs here.
fn place(flashpan: &Path) -> Result<Place> {
    let output = Command::new(flashpan).args(["doctor", "--json"]).output();
    let output = output.with_context(|| format!("cannot start {}", flashpan.display()))?;
    let report = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let place = if runs_guests(&report) {
        Place::Here
    } else {
        Place::Lab
    };
    match place {
        Place::Here => step::say("KVM runs ordinary guests here: no lab is needed"),
        Place::Lab => step::say("KVM does not run an ordinary guest here: VMs run in the lab"),
    }
    Ok(place)
}

/// Whether the report has a check of that name that passed.
fn runs_guests(report: &serde_json::Value) -> bool {
    let checks = report.get("checks").and_then(serde_json::Value::as_array);
    checks.into_iter().flatten().any(|check| {
        check.get("name").is_some_and(|name| name == GUEST_CHECK)
            && check.get("status").is_some_and(|status| status == "ok")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_as_many_labs_as_there_is_room_for() {
        const GIB: u64 = 1 << 30;
        assert_eq!(labs(2, 24 * GIB), 2);
        assert_eq!(labs(1, 24 * GIB), 1);
        assert_eq!(labs(2, 9 * GIB), 1);
        assert_eq!(labs(2, 4 * GIB), 1);
        assert_eq!(labs(64, 512 * GIB), MAX_LABS);
        assert!(memory().unwrap() > 1 << 28);
    }

    /// A member of an archive of 1988, without contents.
    fn member(name: &str, kind: u8) -> Vec<u8> {
        let mut header = [0; 512];
        let fields: [(usize, &[u8]); 8] = [
            (0, name.as_bytes()),
            (100, b"0000755"),
            (108, b"0000000"),
            (116, b"0000000"),
            (124, b"00000000000"),
            (136, b"00000000000"),
            (148, b"        "),
            (156, &[kind]),
        ];
        let devices: [(usize, &[u8]); 3] =
            [(257, b"ustar\x0000"), (329, b"0000001"), (337, b"0000003")];
        for (at, bytes) in fields.into_iter().chain(devices) {
            header
                .get_mut(at..at + bytes.len())
                .unwrap()
                .copy_from_slice(bytes);
        }
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        let (start, rest) = header.split_at(148);
        let (_, end) = rest.split_at(8);
        [start, format!("{sum:06o}\0 ").as_bytes(), end].concat()
    }

    #[test]
    fn a_root_file_system_is_unpacked_without_devices() {
        let directory = tempfile::tempdir().unwrap();
        let tar = directory.path().join("debian.tar");
        let archive = [
            member("./etc/", b'5'),
            member("./dev/", b'5'),
            member("./dev/null", b'3'),
            member("./etc/debian_version", b'0'),
            vec![0; 1024],
        ];
        fs::write(&tar, archive.concat()).unwrap();
        let tree = directory.path().join("debian");
        unpack(&tar, &tree).unwrap();
        assert!(tree.join("etc/debian_version").is_file());
        assert_eq!(fs::read_dir(tree.join("dev")).unwrap().count(), 0);
    }

    #[test]
    fn what_an_earlier_attempt_left_is_not_in_the_way() {
        let directory = tempfile::tempdir().unwrap();
        let tree = directory.path().join("debian-12.5");
        clear(&tree).unwrap();
        fs::create_dir_all(tree.join("half/made")).unwrap();
        // What could not be removed the time before.
        fs::create_dir(directory.path().join("debian-12.5.old-1")).unwrap();
        clear(&tree).unwrap();
        let left: Vec<_> = fs::read_dir(&directory).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
        assert!(!tree.exists());
    }

    #[test]
    fn only_a_passed_guest_check_keeps_us_out_of_the_lab() {
        let report = |status: &str| {
            serde_json::json!({"checks": [
                {"name": "kvm", "status": "ok"},
                {"name": "a guest runs", "status": status},
            ]})
        };
        assert!(runs_guests(&report("ok")));
        assert!(!runs_guests(&report("failed")));
        assert!(!runs_guests(&serde_json::Value::Null));
    }
}
