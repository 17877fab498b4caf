//! A small root file system for VMMs to run the same program in: busybox and
//! what a shell expects. As a directory, as an EROFS image, and as an archive of
//! an OCI image.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Where Debian's `busybox-static` puts it.
const BUSYBOX: &str = "/bin/busybox";

/// The tree, in its three forms.
#[derive(Debug)]
pub(crate) struct Tree {
    directory: PathBuf,
    /// The EROFS image.
    pub(crate) image: PathBuf,
}

impl Tree {
    /// Makes the directory `tree` in `work`, and the image beside it.
    pub(crate) fn make(work: &Path) -> Result<Self> {
        let directory = work.join("tree");
        for part in ["bin", "dev", "etc", "proc", "root", "sys", "tmp"] {
            fs::create_dir_all(directory.join(part))?;
        }
        fs::write(
            directory.join("etc/passwd"),
            "root:x:0:0:root:/root:/bin/sh\n",
        )?;
        fs::write(directory.join("etc/group"), "root:x:0:\n")?;
        let busybox = directory.join("bin/busybox");
        fs::copy(BUSYBOX, &busybox).with_context(|| format!("copy {BUSYBOX}"))?;
        fs::set_permissions(&busybox, PermissionsExt::from_mode(0o755))?;
        for applet in ["sh", "echo", "true"] {
            symlink("busybox", directory.join("bin").join(applet))?;
        }
        let image = work.join("tree.erofs");
        let mut mkfs = Command::new("mkfs.erofs");
        run(mkfs.arg("--quiet").arg(&image).arg(&directory))?;
        Ok(Self { directory, image })
    }

    /// Writes an archive of an OCI image with one layer, this tree; below `work`.
    pub(crate) fn oci_archive(&self, work: &Path) -> Result<PathBuf> {
        let layout = work.join("oci");
        fs::create_dir_all(layout.join("blobs/sha256"))?;
        let layer = work.join("layer.tar");
        let mut tar = Command::new("tar");
        tar.args(["--owner=0", "--group=0", "--numeric-owner", "-cf"]);
        run(tar.arg(&layer).arg("-C").arg(&self.directory).arg("."))?;
        let layer = blob(&layout, "image.layer.v1.tar", &fs::read(layer)?)?;
        let config = json!({
            "architecture": "amd64",
            "os": "linux",
            "config": { "Env": ["PATH=/bin"] },
            "rootfs": { "type": "layers", "diff_ids": [layer.get("digest")] },
        });
        let config = blob(
            &layout,
            "image.config.v1+json",
            &serde_json::to_vec(&config)?,
        )?;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": media_type("image.manifest.v1+json"),
            "config": config,
            "layers": [layer],
        });
        let manifest = blob(
            &layout,
            "image.manifest.v1+json",
            &serde_json::to_vec(&manifest)?,
        )?;
        let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
        fs::write(layout.join("index.json"), serde_json::to_vec(&index)?)?;
        fs::write(
            layout.join("oci-layout"),
            r#"{"imageLayoutVersion":"1.0.0"}"#,
        )?;
        let archive = work.join("oci.tar");
        let mut tar = Command::new("tar");
        run(tar.arg("-cf").arg(&archive).arg("-C").arg(layout).arg("."))?;
        Ok(archive)
    }
}

fn media_type(kind: &str) -> String {
    format!("application/vnd.oci.{kind}")
}

/// Adds a blob to an OCI layout; its descriptor.
fn blob(layout: &Path, kind: &str, bytes: &[u8]) -> Result<Value> {
    let digest: String = Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    fs::write(layout.join("blobs/sha256").join(&digest), bytes)?;
    Ok(json!({
        "mediaType": media_type(kind),
        "digest": format!("sha256:{digest}"),
        "size": bytes.len(),
    }))
}

/// Runs a program that has to succeed and has nothing to say.
fn run(command: &mut Command) -> Result<()> {
    let output = command
        .output()
        .with_context(|| format!("start {command:?}"))?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?} ended with {}: {}", output.status, why.trim());
    }
    Ok(())
}
