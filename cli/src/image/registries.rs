//! How to talk to registries, from options and the environment.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use flashpan::launch::RegistryOptions;
use flashpan_rootfs::platform::Platform;
use flashpan_rootfs::registry::{Client, Options};

use crate::failure::{Failure, say};

/// Environment variables that stand for the options below, lists separated by
/// commas (and file names by colons).
const INSECURE_VARIABLE: &str = "FLASHPAN_INSECURE_REGISTRIES";
const MIRRORS_VARIABLE: &str = "FLASHPAN_REGISTRY_MIRRORS";
const CA_VARIABLE: &str = "FLASHPAN_REGISTRY_CA";

/// Options of every command that may pull.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Registries")]
pub(crate) struct RegistryArgs {
    /// A registry that is spoken to in plain HTTP; may be repeated, also
    /// $FLASHPAN_INSECURE_REGISTRIES.
    #[arg(long = "insecure-registry", value_name = "HOST[:PORT]")]
    insecure: Vec<String>,

    /// A file with certificates of authorities to trust besides the host's; may
    /// be repeated, also $FLASHPAN_REGISTRY_CA.
    #[arg(long = "ca", value_name = "FILE")]
    ca_files: Vec<PathBuf>,

    /// Where to ask before the registry itself; may be repeated, also
    /// $FLASHPAN_REGISTRY_MIRRORS.
    #[arg(long = "mirror", value_name = "REGISTRY=HOST[:PORT][/PREFIX]",
          value_parser = mirror)]
    mirrors: Vec<(String, String)>,
}

fn mirror(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((registry, mirror)) if !registry.is_empty() && !mirror.is_empty() => {
            Ok((registry.to_owned(), mirror.to_owned()))
        }
        _ => Err(format!(
            "`{text}` is no mirror; write e.g. docker.io=mirror.example"
        )),
    }
}

impl RegistryArgs {
    /// What the options and the environment say.
    pub(crate) fn options(&self) -> Result<RegistryOptions, Failure> {
        let list = |name: &str, separator: char| -> Vec<String> {
            let value = std::env::var(name).unwrap_or_default();
            let parts = value.split(separator).map(str::trim);
            parts
                .filter(|part| !part.is_empty())
                .map(str::to_owned)
                .collect()
        };
        let mut options = RegistryOptions::default();
        options.insecure.clone_from(&self.insecure);
        options.insecure.extend(list(INSECURE_VARIABLE, ','));
        options.ca_files.clone_from(&self.ca_files);
        let more = list(CA_VARIABLE, ':').into_iter().map(PathBuf::from);
        options.ca_files.extend(more);
        let named = list(MIRRORS_VARIABLE, ',');
        let named = named.iter().map(|text| mirror(text));
        let named: Vec<_> = named
            .collect::<Result<_, _>>()
            .map_err(|why| Failure::new(format!("{MIRRORS_VARIABLE}: {why}")))?;
        for (registry, mirror) in self.mirrors.iter().cloned().chain(named) {
            options.mirrors.entry(registry).or_default().push(mirror);
        }
        Ok(options)
    }

    /// A client for images of this platform, which says on standard error what
    /// goes wrong and is got over.
    pub(crate) fn client(&self, platform: &Platform) -> Result<Client, Failure> {
        let own = self.options()?;
        let mut options = Options::from_environment();
        options.platform = platform.clone();
        options.insecure = own.insecure;
        options.ca_files = own.ca_files;
        options.mirrors = own.mirrors;
        options.notify = Some(Arc::new(|notice| say("note", &notice.to_string())));
        Client::new(options).map_err(Failure::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_are_pairs() {
        let pair = |a: &str, b: &str| Ok((a.to_owned(), b.to_owned()));
        assert_eq!(mirror("docker.io=m:5000/p"), pair("docker.io", "m:5000/p"));
        assert!(mirror("docker.io").is_err());
        assert!(mirror("=m").is_err());
    }
}
