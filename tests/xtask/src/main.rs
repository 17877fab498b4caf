//! Development commands: `cargo xtask COMMAND`.

use std::env;
use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::{Result, bail};

mod bench;
mod demo;
mod deny;
mod fuzz;
mod images;
mod lab;
mod peer;
mod setup;
mod share;
mod space;
mod step;
mod test;
mod wheel;

const HELP: &str = "\
Development commands.

  cargo xtask demo                        boot VMs, from nothing to a program's output
  cargo xtask test [--help]               everything that has to be green
  cargo xtask bench [--help]              figures beside peers', against budgets
  cargo xtask fuzz [TARGET] [--seconds N] fuzz what reads what strangers made
  cargo xtask lab [OPTIONS] -- COMMAND…   run a command in the emulated host
  cargo xtask deny                        check the dependency graph (deny.toml)
  cargo xtask setup                       install, or name, the packages all this needs
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
        "demo" => demo::demo(),
        "test" => test::test(&arguments),
        "bench" => bench::bench(&arguments),
        "fuzz" => fuzz::fuzz(&arguments),
        "lab" => lab::lab(arguments),
        "deny" => deny::check().map(|()| 0),
        "setup" => setup::setup().map(|()| 0),
        // Not for people: this program as PID 1 of the lab.
        "lab-agent" => flashpan_lab::agent::serve().map(|()| 0),
        "" | "help" | "--help" | "-h" => {
            print!("{HELP}");
            Ok(0)
        }
        other => bail!("there is no command `{other}`; `cargo xtask help` lists them"),
    }
}
