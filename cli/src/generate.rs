//! What is generated from the command line's own description: completion
//! scripts and manual pages.

use std::path::PathBuf;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::Cli;
use crate::failure::{Failure, print};

pub(crate) const COMPLETION_EXAMPLES: &str = "\
Examples:
  flashpan completion bash > ~/.local/share/bash-completion/completions/flashpan
  flashpan completion zsh > \"${fpath[1]}/_flashpan\"
  flashpan completion fish > ~/.config/fish/completions/flashpan.fish";

pub(crate) const MAN_EXAMPLES: &str = "\
Examples:
  flashpan man ~/.local/share/man/man1
  man flashpan-run";

/// Prints a completion script for a shell
#[derive(Debug, Args)]
#[command(after_help = COMPLETION_EXAMPLES)]
pub(crate) struct CompletionArgs {
    /// The shell.
    shell: Shell,
}

/// Writes the manual pages to a directory
#[derive(Debug, Args)]
#[command(after_help = MAN_EXAMPLES)]
pub(crate) struct ManArgs {
    /// The directory; it is made if need be.
    directory: PathBuf,
}

pub(crate) fn completion(args: &CompletionArgs) -> Result<u8, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "flashpan", &mut script);
    print(&String::from_utf8_lossy(&script))?;
    Ok(0)
}

pub(crate) fn man(args: &ManArgs) -> Result<u8, Failure> {
    let directory = &args.directory;
    std::fs::create_dir_all(directory)
        .and_then(|()| clap_mangen::generate_to(Cli::command(), directory))
        .map_err(|e| {
            Failure::new(format!(
                "cannot write manual pages to {}: {e}",
                directory.display()
            ))
        })?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_gets_a_manual_page() {
        let dir = tempfile::tempdir().unwrap();
        man(&ManArgs {
            directory: dir.path().join("man1"),
        })
        .unwrap();
        for page in [
            "flashpan.1",
            "flashpan-run.1",
            "flashpan-kernel-build.1",
            "flashpan-bench-boot.1",
        ] {
            let text = std::fs::read_to_string(dir.path().join("man1").join(page));
            assert!(text.is_ok_and(|text| text.starts_with(".ie")), "{page}");
        }
    }
}
