//! `flashpan version`.

use clap::Args;
use serde::Serialize;

use crate::failure::{Failure, print, print_json};

pub(crate) const EXAMPLES: &str = "\
Examples:
  flashpan version
  flashpan version --json";

/// Shows the version of flashpan and of its protocols
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct VersionArgs {
    /// As JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Version {
    version: &'static str,
    agent_protocol: u32,
    control_protocol: u32,
    supervisor_protocol: u32,
}

pub(crate) fn version(args: &VersionArgs) -> Result<u8, Failure> {
    let version = Version {
        version: env!("CARGO_PKG_VERSION"),
        agent_protocol: flashpan_protocol::agent::VERSION,
        control_protocol: flashpan_protocol::control::VERSION,
        supervisor_protocol: flashpan_protocol::supervisor::VERSION,
    };
    if args.json {
        print_json(&version)?;
    } else {
        let Version {
            version,
            agent_protocol,
            control_protocol,
            supervisor_protocol,
        } = version;
        print(&format!(
            "flashpan {version} (agent protocol {agent_protocol}, control protocol {control_protocol}, \
             supervisor protocol {supervisor_protocol})\n"
        ))?;
    }
    Ok(0)
}
