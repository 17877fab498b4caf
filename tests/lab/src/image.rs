//! What the lab boots: the distribution's kernel, and an initramfs.
//!
//! The kernel package is unpacked into the cache rather than installed: that
//! needs no root, and a kernel installed on a development machine would rebuild
//! initramfs images and boot-loader entries that nobody asked for.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cpio::Archive;
use crate::packages::{self, say};

/// The generic kernel; the cloud flavour lacks 9p.
const META_PACKAGE: &str = "linux-image-amd64";

/// Modules to load, each after those it depends on: first what the root and
/// the port to the host need, then, beside the mounts, what commands need. ext4
/// wants the crc32c transform without depending on the modules that have it.
const LISTS: [(&str, &[&str]); 2] = [
    (
        "first",
        &[
            "virtio_pci",
            "virtio_console",
            "9pnet_virtio",
            "9p",
            "virtio_blk",
            "crc32c_intel",
            "crc32c_generic",
            "ext4",
        ],
    ),
    (
        "second",
        &["kvm_amd", "fuse", "loop", "overlay", "tun", "vhost_vsock"],
    ),
];

/// Counts the changes to what is kept of a kernel.
const LAYOUT: u32 = 2;

const BUSYBOX: &str = "/bin/busybox";
const INIT: &[u8] = include_bytes!("init.sh");

/// A kernel unpacked in the cache.
#[derive(Debug)]
pub(crate) struct Kernel {
    directory: PathBuf,
}

impl Kernel {
    /// The cached kernel, fetched if there is none yet.
    pub(crate) fn find_or_fetch(cache: &Path) -> Result<Self> {
        let directory = cache.join(format!("kernel-{LAYOUT}"));
        if !directory.is_dir() {
            fetch(cache, &directory).context("cannot fetch a kernel for the lab")?;
        }
        Ok(Self { directory })
    }

    pub(crate) fn image(&self) -> PathBuf {
        self.directory.join("vmlinux")
    }

    /// The initramfs with our modules, busybox and the agent, as bytes.
    pub(crate) fn initramfs(&self, agent: &Path) -> Result<Vec<u8>> {
        let read =
            |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
        let mut archive = Archive::default();
        for directory in ["bin", "dev", "proc", "sys", "root", "modules"] {
            archive.directory(directory);
        }
        archive.file("init", 0o755, INIT);
        archive.file("bin/busybox", 0o755, &read(Path::new(BUSYBOX))?);
        archive.file("agent", 0o755, &read(agent)?);
        for (list, _) in LISTS {
            let modules = read(&self.directory.join(list))?;
            for module in str::from_utf8(&modules)?.lines() {
                let content = read(&self.directory.join(module))?;
                archive.file(&format!("modules/{module}"), 0o644, &content);
            }
            archive.file(&format!("modules/{list}"), 0o644, &modules);
        }
        Ok(archive.finish())
    }
}

/// Downloads and unpacks the kernel beside its place, keeps what the lab
/// needs, and moves it there in one step.
fn fetch(cache: &Path, place: &Path) -> Result<()> {
    let work = cache.join(format!("kernel-work.{}", std::process::id()));
    fs::create_dir_all(&work)?;
    let package = packages::download_dependency(META_PACKAGE, &work)?;
    let archive = list(&work)?
        .into_iter()
        .find(|path| path.extension() == Some(OsStr::new("deb")))
        .context("apt-get downloaded nothing")?;
    let tree = work.join("tree");
    say(&format!("unpacking {package}"));
    packages::run(Command::new("dpkg").arg("-x").arg(&archive).arg(&tree))?;

    let kept = work.join("kept");
    fs::create_dir(&kept)?;
    let version = package.trim_start_matches("linux-image-");
    keep_kernel(
        &tree.join("boot").join(format!("vmlinuz-{version}")),
        &kept.join("vmlinux"),
    )?;
    let mut modules = HashMap::new();
    find_modules(&tree.join("lib/modules"), &mut modules)?;
    // Since Debian 13 nothing but /usr has files in it.
    find_modules(&tree.join("usr/lib/modules"), &mut modules)?;
    let mut seen = HashSet::new();
    for (list, wanted) in LISTS {
        let mut order = Vec::new();
        for module in wanted {
            keep_module(module, &modules, &kept, &mut seen, &mut order)?;
        }
        fs::write(kept.join(list), order.join("\n") + "\n")?;
    }
    if let Err(error) = fs::rename(&kept, place) {
        // Another lab may have been faster; its kernel is as good.
        if !place.is_dir() {
            return Err(error).context("cannot move the kernel into the cache");
        }
    }
    fs::remove_dir_all(&work)?;
    Ok(())
}

/// Keeps the kernel unpacked: emulated, it would take three seconds to unpack
/// itself. QEMU starts the ELF file by its PVH entry.
fn keep_kernel(image: &Path, place: &Path) -> Result<()> {
    let image = fs::read(image)?;
    let payload = xz_payload(&image).context("the kernel is not an xz-compressed bzImage")?;
    let packed = place.with_extension("xz");
    fs::write(&packed, payload)?;
    packages::run(Command::new("xz").arg("-d").arg(&packed))
}

/// The compressed kernel in a bzImage, found by its header
/// (Documentation/arch/x86/boot.rst: setup_sects, payload_offset, payload_length).
fn xz_payload(image: &[u8]) -> Option<&[u8]> {
    let number = |at: usize| {
        let bytes = image.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    };
    let setup = (usize::from(*image.get(0x1f1)?) + 1) * 512;
    let start = setup.checked_add(number(0x248)?)?;
    // The last four bytes are the unpacked size and no part of the stream.
    let end = start.checked_add(number(0x24c)?)?.checked_sub(4)?;
    image
        .get(start..end)
        .filter(|payload| payload.starts_with(b"\xfd7zXZ\0"))
}

fn list(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory)?;
    Ok(entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?)
}

/// Module names (with `_` for `-`, as the kernel does) to files.
fn find_modules(directory: &Path, found: &mut HashMap<String, PathBuf>) -> Result<()> {
    if !directory.is_dir() {
        return Ok(());
    }
    for path in list(directory)? {
        if path.is_dir() {
            find_modules(&path, found)?;
        } else if let Some((name, "ko" | "ko.xz")) = path
            .file_name()
            .and_then(OsStr::to_str)
            .and_then(|name| name.split_once('.'))
        {
            found.insert(name.replace('-', "_"), path);
        }
    }
    Ok(())
}

/// Copies a module after all it depends on. What is not in the package is
/// built into the kernel, or else missed by `insmod`, which says so.
fn keep_module(
    name: &str,
    modules: &HashMap<String, PathBuf>,
    to: &Path,
    seen: &mut HashSet<String>,
    order: &mut Vec<String>,
) -> Result<()> {
    let Some(path) = modules.get(name).filter(|_| seen.insert(name.to_owned())) else {
        return Ok(());
    };
    let mut path = path.clone();
    if path.extension() == Some(OsStr::new("xz")) {
        packages::run(Command::new("xz").arg("-d").arg(&path))?;
        path.set_extension("");
    }
    let content = fs::read(&path)?;
    for needed in depends(&content).with_context(|| format!("{name} is no module"))? {
        keep_module(&needed, modules, to, seen, order)?;
    }
    let file = format!("{name}.ko");
    fs::write(to.join(&file), content)?;
    order.push(file);
    Ok(())
}

/// What a module needs, as its `.modinfo` section says. This is where `depmod`
/// has it from; reading it here saves a package.
fn depends(module: &[u8]) -> Result<Vec<String>> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else {
        bail!("it has no `depends` field");
    };
    let value = module.get(at + KEY.len()..).unwrap_or_default();
    let value = value.split(|byte| *byte == 0).next().unwrap_or_default();
    let names = str::from_utf8(value)?
        .split(',')
        .filter(|name| !name.is_empty());
    Ok(names.map(|name| name.replace('-', "_")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_come_from_the_modinfo_section() {
        let module = b"\x7fELF..license=GPL\0depends=kvm,irq-bypass\0retpoline=Y\0";
        assert_eq!(depends(module).unwrap(), ["kvm", "irq_bypass"]);
        assert!(depends(b"x\0depends=\0").unwrap().is_empty());
        assert!(depends(b"no module").is_err());
    }

    #[test]
    fn the_payload_is_where_the_header_says() {
        let mut image = vec![0; 0x400];
        image[0x1f1] = 1;
        image[0x248..0x24c].copy_from_slice(&8u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&11u32.to_le_bytes());
        assert_eq!(xz_payload(&image), None);
        image.extend_from_slice(b"........\xfd7zXZ\0.SIZE");
        assert_eq!(xz_payload(&image), Some(b"\xfd7zXZ\0.".as_slice()));
        image.truncate(0x40a);
        assert_eq!(xz_payload(&image), None);
    }
}
