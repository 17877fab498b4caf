//! Development commands: `cargo xtask COMMAND`.

use std::env;
use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::{Result, bail};

mod lab;

const HELP: &str = "\
Development commands.

  cargo xtask lab [OPTIONS] -- COMMAND…   run a command in the emulated host
";

fn main() -> ExitCode {
    let mut arguments = env::args_os().skip(1);
    let command = arguments.next().unwrap_or_default();
    match dispatch(&command.to_string_lossy(), arguments.collect()) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::from(flashpan_lab::status::LAB_FAILED)
        }
    }
}

fn dispatch(command: &str, arguments: Vec<OsString>) -> Result<u8> {
    match command {
        "lab" => lab::lab(arguments),
        // Not for people: this program as PID 1 of the lab.
        "lab-agent" => flashpan_lab::agent::serve().map(|()| 0),
        "" | "help" | "--help" | "-h" => {
            print!("{HELP}");
            Ok(0)
        }
        other => bail!("there is no command `{other}`; `cargo xtask help` lists them"),
    }
}
