//! `flashpan image`: container images in this user's store.

mod manage;
mod progress;
mod pull;
mod registries;
mod show;

use clap::{Args, Subcommand};

use crate::failure::Failure;

pub(crate) use progress::ImageProgress;
pub(crate) use pull::{PullArgs, PullPolicy, in_order, pull};
pub(crate) use registries::RegistryArgs;
pub(crate) use show::size;

const EXAMPLES: &str = "\
Examples:
  flashpan image pull python:3.12-slim
  flashpan image ls
  flashpan image import app app.tar";

/// Pulls container images, imports them, and looks after them
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ImageArgs {
    #[command(subcommand)]
    command: ImageCommand,
}

#[derive(Debug, Subcommand)]
enum ImageCommand {
    Pull(PullArgs),
    #[command(visible_alias = "list")]
    Ls(show::LsArgs),
    Import(pull::ImportArgs),
    #[command(visible_alias = "remove")]
    Rm(manage::RmArgs),
    Inspect(show::InspectArgs),
    Tag(manage::TagArgs),
    Gc(manage::GcArgs),
}

pub(crate) fn image(args: &ImageArgs) -> Result<u8, Failure> {
    match &args.command {
        ImageCommand::Pull(args) => pull(args)?,
        ImageCommand::Ls(args) => show::ls(args)?,
        ImageCommand::Import(args) => pull::import(args)?,
        ImageCommand::Rm(args) => manage::rm(args)?,
        ImageCommand::Inspect(args) => show::inspect(args)?,
        ImageCommand::Tag(args) => manage::tag(args)?,
        ImageCommand::Gc(args) => manage::gc(args)?,
    }
    Ok(0)
}
