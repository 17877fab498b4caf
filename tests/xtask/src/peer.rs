//! The optional peer of the benchmark: microsandbox, from its wheel.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::wheel;

const VERSION: &str = "0.7.11";
/// It has the programs in it; pinned by its content.
const WHEEL: &str = "microsandbox==0.7.11 \
    --hash=sha256:65f1e4bbf8d721c9f7f557329fb6c8cf41f554c1c6942eac8b941198fa283fe0";

/// The directory with microsandbox's `bin` and `lib`: cached, or fetched now.
/// `None` where it cannot be had, which is said on standard error.
pub(crate) fn microsandbox() -> Option<PathBuf> {
    match find_or_fetch() {
        Ok(bundle) => Some(bundle),
        Err(error) => {
            eprintln!("    microsandbox is left out, as it cannot be had: {error:#}");
            None
        }
    }
}

fn find_or_fetch() -> Result<PathBuf> {
    let peers = flashpan_lab::cache_directory()?.join("lab/peers");
    let bundle = peers.join(format!("microsandbox-{VERSION}"));
    if bundle.is_dir() {
        return Ok(bundle);
    }
    fs::create_dir_all(&peers)?;
    let tree = peers.join(format!("wheel.{}", std::process::id()));
    let result = wheel::unpack("microsandbox from its wheel", WHEEL, &tree)
        .and_then(|()| keep(&tree, &bundle));
    let _ = fs::remove_dir_all(&tree);
    result.map(|()| bundle)
}

/// Keeps of the wheel what is a program or a library.
fn keep(tree: &Path, bundle: &Path) -> Result<()> {
    let bundled = tree.join("microsandbox/_bundled");
    // pip leaves programs in package data as the archive has them: plain files.
    fs::set_permissions(bundled.join("bin/msb"), fs::Permissions::from_mode(0o755))
        .context("the wheel has no program `msb`")?;
    fs::rename(&bundled, bundle).context("cannot move it into the cache")
}
