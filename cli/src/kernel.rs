//! `flashpan kernel`: build guest kernels, and look after those that were built.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use crate::failure::Failure;

/// Builds guest kernels and looks after them
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  flashpan kernel build")]
pub(crate) struct KernelArgs {
    #[command(subcommand)]
    command: KernelCommand,
}

#[derive(Debug, Subcommand)]
enum KernelCommand {
    Build(BuildArgs),
}

/// Builds
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  flashpan kernel build")]
struct BuildArgs {}

pub(crate) fn kernel(args: &KernelArgs) -> Result<u8, Failure> {
    let KernelCommand::Build(BuildArgs {}) = args.command;
    Ok(0)
}

/// The kernel to boot.
pub(crate) fn resolve(named: Option<&Path>) -> Result<PathBuf, Failure> {
    named
        .map(Path::to_owned)
        .ok_or_else(|| Failure::new("no kernel; run `flashpan kernel build`"))
}
