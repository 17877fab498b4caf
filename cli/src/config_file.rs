//! `--file`: a whole configuration, in TOML by people or in JSON by programs.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use flashpan::api::{Config, MAX_CONFIG_BYTES, RequestError};

use crate::failure::{Failure, say};

/// The configuration in a file: JSON if its name ends so, else TOML. Fields that
/// nobody knows are an error in TOML, where they are mistyped, and a warning in
/// JSON, where they may be a newer client's. Paths of disks count from the file's
/// directory.
pub(crate) fn read(path: &Path) -> Result<Config, Failure> {
    let shown = path.display();
    let failed = |why: &dyn std::fmt::Display| Failure::new(format!("{shown}: {why}"));
    let bytes = contents(path).map_err(|e| {
        Failure::new(format!(
            "cannot read the configuration {shown}: {e}; name another"
        ))
    })?;
    let is_json = path
        .extension()
        .is_some_and(|extension| extension.eq_ignore_ascii_case("json"));
    let mut config = if is_json {
        let parsed = Config::from_json(&bytes).map_err(|e| failed(&e))?;
        for warning in parsed.warnings {
            say("warning", &format!("{shown}: {warning}"));
        }
        parsed.config
    } else {
        let text = std::str::from_utf8(&bytes).map_err(|e| {
            let before = bytes.get(..e.valid_up_to()).unwrap_or_default();
            let line = before.split(|byte| *byte == b'\n').count();
            failed(&format_args!(
                "configuration is not TOML: line {line}: it is not UTF-8"
            ))
        })?;
        Config::from_toml_strict(text).map_err(|e| failed(&e))?
    };
    if !config.id.is_empty() {
        return Err(failed(&RequestError::IdGiven));
    }
    let directory = path.parent().unwrap_or(Path::new(""));
    for disk in &mut config.extra_disks {
        // A volume has a name and no path.
        if !disk.host_path.is_empty() && !disk.host_path.starts_with('@') {
            let full = directory.join(&disk.host_path);
            disk.host_path = full.to_string_lossy().into_owned();
        }
    }
    Ok(config)
}

/// Says what has no effect in a configuration that is valid: of one that is not, what is
/// wrong is said.
pub(crate) fn warn(path: &str, config: &Config) {
    for warning in config.warnings() {
        say("warning", &format!("{path}: {warning}"));
    }
}

/// All of a file that is not too long; one more byte of one that is.
fn contents(path: &Path) -> std::io::Result<Vec<u8>> {
    let most = u64::try_from(MAX_CONFIG_BYTES).unwrap_or(u64::MAX);
    let mut bytes = Vec::new();
    let file = File::open(path)?;
    file.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    Ok(bytes)
}
