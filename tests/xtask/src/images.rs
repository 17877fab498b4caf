//! Container images for the tests, made from the distribution's packages.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use flashpan_lab::packages;
use serde_json::{Value, json};

use crate::setup::DEBIAN;
use crate::step;

/// Changes when the images are made in another way.
const VERSION: u32 = 2;
/// What the image with Python is made of; it is not installed, only unpacked.
const PYTHON: &str = "python3-venv,busybox-static";

/// The programs of busybox that the tests use.
const APPLETS: [&str; 10] = [
    "sh",
    "echo",
    "id",
    "pwd",
    "cut",
    "ls",
    "sleep",
    "sha256sum",
    "wc",
    "cat",
];

const ACCOUNTS: [(&str, &str); 2] = [
    (
        "passwd",
        "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n",
    ),
    ("group", "root:x:0:\napp:x:1001:\nextra:x:2000:app\n"),
];

/// Makes or finds them in the user's cache: a directory with an OCI layout
/// `layout` and `box.tar`.
pub(crate) fn prepare() -> Result<PathBuf> {
    let cache = flashpan_lab::cache_directory()?.join("lab");
    let images = cache.join(format!("images-{DEBIAN}-{VERSION}"));
    if images.is_dir() {
        return Ok(images);
    }
    let work = cache.join("images.new");
    if work.exists() {
        fs::remove_dir_all(&work)?;
    }
    fs::create_dir_all(work.join("tars"))?;
    let layout = work.join("layout");
    umoci(&["init", "--layout"], &layout, "", [""; 0])?;
    python(&work, &layout)?;
    boxes(&work, &layout)?;
    fs::remove_dir_all(work.join("tars"))?;
    // In one step: where the directory is, all is well.
    fs::rename(&work, &images)?;
    Ok(images)
}

/// A Debian with Python and two layers over it.
fn python(work: &Path, layout: &Path) -> Result<()> {
    let tars = ["base", "upper", "top"].map(|name| work.join("tars").join(name));
    let [base, upper, top] = &tars;
    let mut mmdebstrap = Command::new("mmdebstrap");
    mmdebstrap.args(["--quiet", "--variant=extract", "--format=tar"]);
    mmdebstrap
        .arg(format!("--include={PYTHON}"))
        .arg(DEBIAN)
        .arg(base);
    mmdebstrap.args(packages::mirror(DEBIAN));
    step::run("a Debian with Python with mmdebstrap", &mut mmdebstrap)?;
    let mut layers = Command::new("python3");
    layers
        .arg(step::root().join("tests/e2e/images/layers.py"))
        .args([base, upper, top]);
    step::run("two layers over it", &mut layers)?;
    umoci(&["new", "--image"], layout, "python", [""; 0])?;
    for tar in tars {
        umoci(&["raw", "add-layer", "--image"], layout, "python", [tar])?;
    }
    Ok(())
}

/// Images with busybox alone: `box`, by `docker save`, and one for two
/// platforms, `multi`.
fn boxes(work: &Path, layout: &Path) -> Result<()> {
    let root = work.join("tars/root");
    for directory in ["bin", "etc", "tmp"] {
        fs::create_dir_all(root.join(directory))?;
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).context("busybox-static is missing")?;
    for applet in APPLETS {
        symlink("busybox", root.join("bin").join(applet))?;
    }
    for (name, text) in ACCOUNTS {
        fs::write(root.join("etc").join(name), text)?;
    }
    let tar = work.join("tars/box");
    let mut archive = Command::new("tar");
    archive.args(["--owner=0", "--group=0", "--sort=name", "-C"]);
    archive.arg(&root).arg("-cf").arg(&tar).arg(".");
    step::run("an image of busybox", &mut archive)?;

    let script = "id; pwd; echo A=$A; echo B=$B; echo $HOME; exit 3";
    umoci(&["new", "--image"], layout, "box", [""; 0])?;
    umoci(&["raw", "add-layer", "--image"], layout, "box", [&tar])?;
    let config = [
        "--config.entrypoint=/bin/sh",
        "--config.entrypoint=-c",
        &format!("--config.cmd={script}"),
        "--config.env=PATH=/bin",
        "--config.env=A=image",
        "--config.env=B=image",
        "--config.user=app",
        "--config.workingdir=/made/here",
    ];
    umoci(&["config", "--image"], layout, "box", config)?;
    let from = format!("oci:{}:box", layout.display());
    let to = format!(
        "docker-archive:{}:box:latest",
        work.join("box.tar").display()
    );
    let mut skopeo = Command::new("skopeo");
    skopeo.args(["--insecure-policy", "copy", "--quiet", &from, &to]);
    step::run("the same by `docker save`", &mut skopeo)?;

    for architecture in ["amd64", "arm64"] {
        umoci(&["new", "--image"], layout, architecture, [""; 0])?;
        umoci(
            &["raw", "add-layer", "--image"],
            layout,
            architecture,
            [&tar],
        )?;
        let config = [
            "--config.cmd=/bin/echo",
            &format!("--config.cmd=for {architecture}"),
            &format!("--architecture={architecture}"),
        ];
        umoci(&["config", "--image"], layout, architecture, config)?;
    }
    index(layout)
}

/// Adds an index of the images for both platforms to the layout.
fn index(layout: &Path) -> Result<()> {
    const NAME: &str = "org.opencontainers.image.ref.name";
    let path = layout.join("index.json");
    let mut top: Value = serde_json::from_slice(&fs::read(&path)?)?;
    let entries = top
        .get_mut("manifests")
        .and_then(Value::as_array_mut)
        .context("the layout has no images")?;
    let mut manifests = Vec::new();
    for architecture in ["amd64", "arm64"] {
        let named = |entry: &&Value| {
            let name = entry.pointer("/annotations").and_then(|all| all.get(NAME));
            name.is_some_and(|name| name == architecture)
        };
        let entry = entries.iter().find(named).context("umoci made no image")?;
        manifests.push(json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": entry.get("digest"),
            "size": entry.get("size"),
            "platform": {"os": "linux", "architecture": architecture},
        }));
    }
    const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
    let index = serde_json::to_vec(&index)?;
    let size = index.len();
    let blob = layout.join("blobs/sha256/new");
    fs::write(&blob, index)?;
    let output = step::read(Command::new("sha256sum").arg(&blob))?;
    let digest = output.get(..64).context("sha256sum said nothing")?;
    fs::rename(&blob, blob.with_file_name(digest))?;
    entries.push(json!({
        "mediaType": INDEX,
        "digest": format!("sha256:{digest}"),
        "size": size,
        "annotations": {NAME: "multi"},
    }));
    fs::write(&path, serde_json::to_vec(&top)?)?;
    Ok(())
}

fn umoci<S: AsRef<OsStr>>(
    words: &[&str],
    layout: &Path,
    tag: &str,
    rest: impl IntoIterator<Item = S>,
) -> Result<()> {
    let mut image = OsString::from(layout);
    if !tag.is_empty() {
        image.push(":");
        image.push(tag);
    }
    let rest = rest.into_iter();
    step::run(
        "umoci",
        Command::new("umoci").args(words).arg(image).args(rest),
    )
}
