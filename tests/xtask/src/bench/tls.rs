//! `cargo xtask bench tls`.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use anyhow::Result;
use flashpan_lab::packages;

use super::build;
use crate::step;

/// Where the distribution puts it.
const MITMDUMP: &str = "/usr/bin/mitmdump";

/// Measures and judges.
pub(super) fn bench() -> Result<u8> {
    let program = build()?("flashpan-bench")?;
    let budgets = step::root().join("tests/bench/budgets.toml");
    let mut words: Vec<OsString> = vec!["tls".into(), "--budgets".into(), budgets.into()];
    if let Err(error) = packages::ensure(&["mitmproxy"]) {
        eprintln!("    mitmproxy is left out, as it cannot be had: {error:#}");
    }
    if Path::new(MITMDUMP).exists() {
        words.extend(["--mitmdump".into(), MITMDUMP.into()]);
    }
    step::run("the benchmark", Command::new(program).args(words))?;
    Ok(0)
}
