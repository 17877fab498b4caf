//! The configurations that come with flashpan, and those of users.

use std::io;
use std::path::{Path, PathBuf};

use crate::input;
use crate::request::{Requests, SyntaxError};

/// The configuration under every kernel, with the reason for each line.
pub const BASE: &str = include_str!("../base.config");

/// Names and texts of the fragments that come with flashpan, by name.
pub const FRAGMENTS: [(&str, &str); 5] = [
    ("debug", include_str!("../fragments/debug.config")),
    ("hardened", include_str!("../fragments/hardened.config")),
    ("netfilter", include_str!("../fragments/netfilter.config")),
    ("nosmp", include_str!("../fragments/nosmp.config")),
    ("pci-acpi", include_str!("../fragments/pci-acpi.config")),
];

/// A user's fragment is text that a person wrote: more than this is a mistake
/// (the full configuration of a distribution has 300 KiB).
const MAX_BYTES: u64 = 1 << 20;

/// A named piece of configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fragment {
    /// `netfilter`, or the stem of the file's name.
    pub name: String,
    /// Its text.
    pub text: String,
}

/// Why a fragment cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FragmentError {
    /// Neither the name of one of [`FRAGMENTS`] nor a file.
    #[error(
        "no fragment is called `{name}` and no file either; there are {known}, or give the path of a file"
    )]
    Unknown {
        /// What was asked for.
        name: String,
        /// The names that exist.
        known: String,
    },
    /// A file that cannot be read as text.
    #[error("cannot read the fragment {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file of more than 1 MiB.
    #[error("the fragment {0} is too long; a fragment has at most {MAX_BYTES} bytes")]
    TooLong(PathBuf),
    /// One fragment twice, or two files of one name.
    #[error("the fragment `{0}` is given twice")]
    Twice(String),
    /// A line that is no configuration.
    #[error(transparent)]
    Syntax(#[from] SyntaxError),
}

impl Fragment {
    /// A fragment by name, or else a file by path.
    pub fn resolve(name_or_file: &str) -> Result<Self, FragmentError> {
        if let Some((name, text)) = FRAGMENTS.iter().find(|(name, _)| *name == name_or_file) {
            return Ok(Self {
                name: (*name).to_owned(),
                text: (*text).to_owned(),
            });
        }
        let path = Path::new(name_or_file);
        let read = |source| FragmentError::Read {
            path: path.to_owned(),
            source,
        };
        let bytes = match input::read(path, MAX_BYTES) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let known = FRAGMENTS.map(|(name, _)| name).join(", ");
                return Err(FragmentError::Unknown {
                    name: name_or_file.to_owned(),
                    known,
                });
            }
            Err(error) => return Err(read(error)),
        };
        if bytes.len() as u64 > MAX_BYTES {
            return Err(FragmentError::TooLong(path.to_owned()));
        }
        let text = String::from_utf8(bytes).map_err(|error| {
            read(io::Error::new(
                io::ErrorKind::InvalidData,
                error.utf8_error(),
            ))
        })?;
        let name = path
            .file_stem()
            .unwrap_or(path.as_os_str())
            .to_string_lossy()
            .into_owned();
        Ok(Self { name, text })
    }
}

/// [`BASE`] with `fragments` on top, in their order.
pub(crate) fn merged(fragments: &[Fragment]) -> Result<Requests, FragmentError> {
    let mut requests = Requests::parse("base", BASE)?;
    for (index, fragment) in fragments.iter().enumerate() {
        if fragments
            .iter()
            .take(index)
            .any(|earlier| earlier.name == fragment.name)
        {
            return Err(FragmentError::Twice(fragment.name.clone()));
        }
        requests.merge(Requests::parse(&fragment.name, &fragment.text)?);
    }
    Ok(requests)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Value;

    #[test]
    fn what_comes_with_flashpan_parses_and_is_sorted() {
        let all: Vec<_> = FRAGMENTS
            .map(|(name, _)| Fragment::resolve(name).unwrap())
            .to_vec();
        assert!(merged(&all).unwrap().iter().count() > 300);
        assert!(FRAGMENTS.is_sorted());
    }

    #[test]
    fn each_fragment_changes_base() {
        let base = merged(&[]).unwrap().digest();
        for (name, _) in FRAGMENTS {
            let one = merged(&[Fragment::resolve(name).unwrap()]).unwrap();
            assert_ne!(one.digest(), base, "{name}");
        }
    }

    #[test]
    fn base_has_no_modules_pci_or_acpi() {
        let base = merged(&[]).unwrap();
        for option in ["MODULES", "PCI", "ACPI"] {
            let request = base
                .iter()
                .find(|request| request.option == option)
                .unwrap();
            assert_eq!(request.value, Value::No, "{option}");
        }
    }

    #[test]
    fn a_file_is_a_fragment_and_an_unknown_name_lists_the_known() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("mine.config");
        std::fs::write(&path, "CONFIG_A=y\n").unwrap();
        let fragment = Fragment::resolve(path.to_str().unwrap()).unwrap();
        assert_eq!(
            (fragment.name.as_str(), fragment.text.as_str()),
            ("mine", "CONFIG_A=y\n")
        );
        let error = Fragment::resolve("netfliter").unwrap_err().to_string();
        assert!(
            error.contains("netfliter") && error.contains("netfilter,"),
            "{error}"
        );
        let twice = merged(&[fragment.clone(), fragment]).unwrap_err();
        assert_eq!(twice.to_string(), "the fragment `mine` is given twice");
    }

    #[test]
    fn a_fragment_is_a_text_file_of_some_length() {
        let directory = tempfile::tempdir().unwrap();
        let long = directory.path().join("long.config");
        let file = std::fs::File::create(&long).unwrap();
        let resolve = || Fragment::resolve(long.to_str().unwrap());
        file.set_len(MAX_BYTES).unwrap();
        resolve().unwrap();
        file.set_len(MAX_BYTES + 1).unwrap();
        assert!(matches!(resolve(), Err(FragmentError::TooLong(_))));
        for device in ["/dev/null", "/dev/zero"] {
            let error = Fragment::resolve(device).unwrap_err().to_string();
            assert!(
                error.contains(device) && error.contains("not a regular file"),
                "{error}"
            );
        }
    }
}
