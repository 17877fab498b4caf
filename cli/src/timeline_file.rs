//! `--timeline`: where it goes.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use flashpan::timeline::Report;

use crate::failure::Failure;

/// Where the timeline goes; opened before the VM boots.
pub(crate) struct TimelineFile {
    path: PathBuf,
    /// `None` is the picture on standard error.
    file: Option<File>,
}

impl TimelineFile {
    pub(crate) fn open(path: &Path) -> Result<Self, Failure> {
        let file = match path == Path::new("-") {
            true => None,
            false => Some(File::create(path).map_err(|e| {
                Failure::new(format!(
                    "cannot write the timeline to {}: {e}; name a file that you may write to",
                    path.display()
                ))
            })?),
        };
        Ok(Self {
            path: path.to_owned(),
            file,
        })
    }

    pub(crate) fn write(self, report: &Report) -> Result<(), String> {
        let Some(mut file) = self.file else {
            // A picture that nobody can see is not worth a word.
            let _ = io::stderr().lock().write_all(report.picture().as_bytes());
            return Ok(());
        };
        let failed = |e: io::Error| {
            let path = self.path.display();
            format!("cannot write the timeline to {path}: {e}")
        };
        let mut json = serde_json::to_vec_pretty(report).map_err(|e| failed(e.into()))?;
        json.push(b'\n');
        file.write_all(&json).map_err(failed)
    }
}
