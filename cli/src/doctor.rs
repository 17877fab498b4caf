//! `flashpan doctor`: can this machine run VMs, and what is missing.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use clap::Args;
use flashpan_kernel::{Upstream, image};
use flashpan_rootfs::cache::Cache;
use flashpan_rootfs::{builtin, disk};
use serde::{Deserialize, Serialize};

use crate::failure::{Failure, print, print_json};
use crate::{kernel, vm};

/// How long the probe may take; its own deadline is shorter.
const PROBE_TIMEOUT: Duration = Duration::from_secs(15);

/// Most bytes that the probe may print.
const PROBE_OUTPUT: u64 = 64 * 1024;

/// Free memory below which a default VM will hardly start, in MiB.
const LITTLE_MEMORY_MIB: u64 = 512;

/// The device.
const KVM: &str = "/dev/kvm";

pub(crate) const EXAMPLES: &str = "\
Examples:
  flashpan doctor
  flashpan doctor --json

Exit status: 0 if VMs can run here, 1 if something needed is missing.";

/// Finds out whether VMs can run here, and what to do if not
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct DoctorArgs {
    /// As JSON.
    #[arg(long)]
    json: bool,
}

/// What a check found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Ok,
    /// Something that only some commands need is missing.
    Warning,
    Failed,
    /// There was no point in trying.
    Skipped,
}

#[derive(Debug, Clone, Serialize)]
struct Check {
    name: &'static str,
    status: Status,
    detail: String,
    /// What to do about it.
    fix: Option<String>,
}

impl Check {
    fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self {
            name,
            status: Status::Ok,
            detail: detail.into(),
            fix: None,
        }
    }

    fn warning(name: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        let (detail, fix) = (detail.into(), Some(fix.into()));
        Self {
            name,
            status: Status::Warning,
            detail,
            fix,
        }
    }

    fn failed(name: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        let (detail, fix) = (detail.into(), Some(fix.into()));
        Self {
            name,
            status: Status::Failed,
            detail,
            fix,
        }
    }

    fn skipped(name: &'static str, detail: impl Into<String>) -> Self {
        Self {
            name,
            status: Status::Skipped,
            detail: detail.into(),
            fix: None,
        }
    }
}

#[derive(Debug, Serialize)]
struct Diagnosis {
    ok: bool,
    checks: Vec<Check>,
}

pub(crate) fn doctor(args: &DoctorArgs) -> Result<u8, Failure> {
    let checks = examine();
    let ok = checks.iter().all(|check| check.status != Status::Failed);
    let diagnosis = Diagnosis { ok, checks };
    if args.json {
        print_json(&diagnosis)?;
    } else {
        print(&diagnosis.text())?;
    }
    Ok(if ok { 0 } else { 1 })
}

fn examine() -> Vec<Check> {
    let device = kvm_device(Path::new(KVM));
    let vmm = flashpan::vmm_program();
    let mut checks = vec![processor(), device];
    let usable = checks.iter().all(|check| check.status != Status::Failed);
    match (usable, &vmm) {
        (true, Ok(vmm)) => checks.extend(probe(vmm)),
        _ => checks.push(Check::skipped(
            "a guest runs",
            "needs the above and the VMM program",
        )),
    }
    checks.push(program("VMM program", vmm));
    checks.push(program(
        "guest init program",
        flashpan::guest_init_program(),
    ));
    checks.push(guest_kernel());
    checks.push(cache());
    checks.push(memory(fs::read_to_string("/proc/meminfo").as_deref()));
    checks.extend(tools());
    checks
}

/// The kernel that `flashpan run` would boot.
fn guest_kernel() -> Check {
    let name = "guest kernel";
    let named = vm::named_kernel();
    match kernel::resolve(named.as_deref()) {
        Ok(path) => match image::check(&path) {
            Ok(()) => Check::ok(name, path.display().to_string()),
            Err(e) => Check::failed(
                name,
                e.to_string(),
                format!("set ${} to another, or to none", vm::KERNEL_VARIABLE),
            ),
        },
        Err(_) if named.is_none() => {
            Check::failed(name, "none is built", "run: flashpan kernel build")
        }
        Err(e) => Check::failed(
            name,
            e.message(),
            format!("set ${} to another, or to none", vm::KERNEL_VARIABLE),
        ),
    }
}

fn processor() -> Check {
    let name = "processor";
    if std::env::consts::ARCH != "x86_64" {
        let detail = format!("{} is not supported", std::env::consts::ARCH);
        return Check::failed(name, detail, "use an x86-64 host");
    }
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = cpuinfo.lines().find(|line| line.starts_with(name))?;
        line.split_once(':').map(|(_, value)| value.trim())
    };
    let flags: Vec<_> = field("flags").unwrap_or_default().split(' ').collect();
    let model = field("model name").unwrap_or("unknown");
    if model.starts_with("QEMU TCG") {
        return Check::warning(
            name,
            format!("{model}: this host is itself emulated"),
            "VMs run here, but slowly: do not measure times, only counts",
        );
    }
    let nested = match flags.contains(&"hypervisor") {
        true => ", itself virtual (nested virtualisation)",
        false => "",
    };
    Check::ok(name, format!("{model}{nested}"))
}

fn kvm_device(path: &Path) -> Check {
    let name = "KVM device";
    match File::options().read(true).write(true).open(path) {
        Ok(_) => Check::ok(name, format!("{} can be opened", path.display())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Check::failed(
            name,
            format!("{} does not exist", path.display()),
            "switch virtualisation on in the firmware (on a cloud machine: choose a type with \
             nested virtualisation), then: sudo modprobe kvm_intel || sudo modprobe kvm_amd",
        ),
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Check::failed(
            name,
            format!("{} may not be opened by this user", path.display()),
            "run: sudo usermod -aG kvm \"$USER\", then log in again",
        ),
        Err(e) => Check::failed(
            name,
            format!("{} cannot be opened: {e}", path.display()),
            "load the module: sudo modprobe kvm_intel || sudo modprobe kvm_amd",
        ),
    }
}

/// What `flashpan-vmm --probe` prints.
#[derive(Debug, Deserialize)]
struct Probe {
    /// KVM has the version and the capabilities that the VMM needs.
    kvm: bool,
    /// A tiny guest ran to its end with the right results.
    guest: bool,
    detail: String,
}

/// Lets the VMM program run a tiny guest, in a process of its own.
fn probe(vmm: &Path) -> Vec<Check> {
    let (api, guest) = ("KVM interface", "a guest runs");
    let update = "update the host's kernel to 5.10 or later";
    let elsewhere = "use a host with full KVM (bare metal, or nested virtualisation), or the \
                     emulated host: cargo xtask lab";
    match run_probe(vmm) {
        Ok(Probe {
            kvm: true,
            guest: true,
            detail,
        }) => {
            vec![
                Check::ok(api, "version and capabilities as needed"),
                Check::ok(guest, detail),
            ]
        }
        Ok(Probe {
            kvm: true,
            guest: false,
            detail,
        }) => vec![
            Check::ok(api, "version and capabilities as needed"),
            Check::failed(guest, detail, elsewhere),
        ],
        Ok(Probe {
            kvm: false, detail, ..
        }) => vec![
            Check::failed(api, detail, update),
            Check::skipped(guest, "needs the KVM interface"),
        ],
        Err(why) => vec![Check::failed(guest, why, elsewhere)],
    }
}

fn run_probe(vmm: &Path) -> Result<Probe, String> {
    let failed = |e: io::Error| format!("cannot run {} --probe: {e}", vmm.display());
    let mut child = Command::new(vmm)
        .arg("--probe")
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(failed)?;
    let stdout = child.stdout.take();
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut text = String::new();
        let read = stdout.map(|stdout| stdout.take(PROBE_OUTPUT).read_to_string(&mut text));
        // The receiver is gone when the time was up.
        let _ = sender.send(read.transpose().map(|_| text));
    });
    let text = receiver.recv_timeout(PROBE_TIMEOUT);
    // It has ended, or it has to: either way it is reaped here.
    let _ = child.kill();
    let status = child.wait().map_err(failed)?;
    match text {
        Ok(Ok(text)) if !text.trim().is_empty() => serde_json::from_str(&text)
            .map_err(|e| format!("{} --probe gave no answer: {e}", vmm.display())),
        Ok(Ok(_)) => Err(format!("{} --probe ended with {status}", vmm.display())),
        Ok(Err(e)) => Err(failed(e)),
        Err(_) => Err(format!(
            "a tiny guest hung for {PROBE_TIMEOUT:?}: this is not a full KVM"
        )),
    }
}

fn program(name: &'static str, found: flashpan::Result<PathBuf>) -> Check {
    match found {
        Ok(path) => Check::ok(name, path.display().to_string()),
        Err(e) => Check::failed(name, e.to_string(), "build it: cargo build --release"),
    }
}

fn cache() -> Check {
    let name = "cache directory";
    let fix = "set XDG_CACHE_HOME to a directory that you may write to";
    let cache = match Cache::user() {
        Ok(cache) => cache,
        Err(e) => return Check::failed(name, e.to_string(), fix),
    };
    let path = cache.path();
    let made = fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path);
    match made.and_then(|()| writable(path)) {
        Ok(()) => Check::ok(name, path.display().to_string()),
        Err(e) => Check::failed(
            name,
            format!("cannot write to {}: {e}", path.display()),
            fix,
        ),
    }
}

/// Makes a file and removes it. A nameless one (`O_TMPFILE`) would leave nothing
/// behind in any case, but not all file systems have them.
fn writable(directory: &Path) -> io::Result<()> {
    let path = directory.join(format!(".doctor-{}", std::process::id()));
    File::options().write(true).create_new(true).open(&path)?;
    fs::remove_file(&path)
}

fn memory(meminfo: Result<&str, &io::Error>) -> Check {
    let name = "memory";
    let available = meminfo.ok().and_then(|text| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("MemAvailable:"))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    });
    match available.map(|kib| kib / 1024) {
        Some(mib) if mib < LITTLE_MEMORY_MIB => Check::warning(
            name,
            format!("{mib} MiB available"),
            "close something, or give VMs little: flashpan run --memory 64M",
        ),
        Some(mib) => Check::ok(name, format!("{mib} MiB available")),
        None => Check::skipped(name, "the host does not say how much is available"),
    }
}

/// What needs a program of the distribution, as far as that program is there; the
/// checks are those of the commands themselves.
fn tools() -> [Check; 3] {
    [builtin_root(), disks(), kernel_build()]
}

fn builtin_root() -> Check {
    let name = "built-in root file system";
    match builtin::check() {
        Ok(busybox) => Check::ok(name, format!("made of {}", busybox.display())),
        Err(e) => Check::warning(
            name,
            format!("{e}; needed for: flashpan run without --image or --rootfs"),
            "run: sudo apt-get install busybox-static",
        ),
    }
}

fn disks() -> Check {
    let name = "writable disks";
    match disk::formatter() {
        Ok(program) => Check::ok(name, program),
        Err(e) => Check::warning(
            name,
            format!("{e}; needed for: flashpan run --image and --disk-size, flashpan volume"),
            "run: sudo apt-get install e2fsprogs",
        ),
    }
}

fn kernel_build() -> Check {
    let name = "kernel build tools";
    let upstream = match Upstream::user() {
        Ok(upstream) => upstream,
        Err(e) => return Check::warning(name, e.to_string(), "set it to another, or to none"),
    };
    let cache = match flashpan_kernel::Cache::user() {
        Ok(cache) => cache,
        Err(e) => return Check::skipped(name, e.to_string()),
    };
    match cache.toolchain(&upstream) {
        Ok(toolchain) => Check::ok(name, toolchain.compiler),
        Err(missing) => {
            let what: Vec<_> = missing.0.iter().map(|tool| tool.what.as_str()).collect();
            let what = what.join(", ");
            Check::warning(
                name,
                format!("{what} not found; needed for: flashpan kernel build"),
                format!("run: sudo apt-get install {}", missing.packages().join(" ")),
            )
        }
    }
}

impl Diagnosis {
    fn text(&self) -> String {
        let mut out = String::new();
        for Check {
            name,
            status,
            detail,
            fix,
        } in &self.checks
        {
            let mark = match status {
                Status::Ok => "ok     ",
                Status::Warning => "warning",
                Status::Failed => "FAILED ",
                Status::Skipped => "-      ",
            };
            // Writing to a String cannot fail.
            let _ = writeln!(out, "{mark}  {name}: {detail}");
            if let Some(fix) = fix {
                let _ = writeln!(out, "         → {fix}");
            }
        }
        out.push_str(match self.ok {
            true => "\nVMs can run here.\n",
            false => "\nVMs cannot run here yet: see the lines marked FAILED.\n",
        });
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_device_says_how_to_get_one() {
        let check = kvm_device(Path::new("/nonexistent/kvm"));
        assert_eq!(check.status, Status::Failed);
        assert!(check.fix.unwrap().contains("modprobe"));
    }

    #[test]
    fn little_memory_is_a_warning() {
        let meminfo = |kib: u64| format!("MemTotal: 99 kB\nMemAvailable:   {kib} kB\n");
        assert_eq!(memory(Ok(&meminfo(100 * 1024))).status, Status::Warning);
        assert_eq!(memory(Ok(&meminfo(4096 * 1024))).status, Status::Ok);
        assert_eq!(memory(Ok("nothing")).status, Status::Skipped);
    }

    #[test]
    fn a_directory_is_writable_if_a_file_can_be_made_in_it() {
        let dir = tempfile::tempdir().unwrap();
        writable(dir.path()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        writable(&dir.path().join("nowhere")).unwrap_err();
    }

    fn script(text: &str) -> tempfile::TempDir {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vmm");
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        dir
    }

    #[test]
    fn the_probe_decides_whether_guests_run() {
        for (text, statuses) in [
            (
                r#"[ "$1" = --probe ] && echo '{"kvm":true,"guest":true,"detail":"ran"}'"#,
                &[Status::Ok, Status::Ok][..],
            ),
            (
                r#"echo '{"kvm":true,"guest":false,"detail":"paravirtual"}'; exit 1"#,
                &[Status::Ok, Status::Failed],
            ),
            (
                r#"echo '{"kvm":false,"guest":false,"detail":"old"}'; exit 1"#,
                &[Status::Failed, Status::Skipped],
            ),
            ("kill -SEGV $$", &[Status::Failed]),
            ("echo nonsense", &[Status::Failed]),
        ] {
            let dir = script(text);
            let checks = probe(&dir.path().join("vmm"));
            let got: Vec<_> = checks.iter().map(|check| check.status).collect();
            assert_eq!(got, statuses, "{text}: {checks:?}");
        }
    }

    #[test]
    fn every_failure_comes_with_a_fix() {
        for check in examine() {
            let bad = matches!(check.status, Status::Failed | Status::Warning);
            assert_eq!(bad, check.fix.is_some(), "{check:?}");
        }
    }
}
