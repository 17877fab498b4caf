//! `flashpan port-forward`.

use clap::Args;

use crate::failure::{Failure, print_json_line};
use crate::publish::{PortArgs, tell};
use crate::runtime;
use crate::signals::Signals;
use crate::vms::{attach_in_time, find, must_have_begun, of};

const EXAMPLES: &str = "\
Examples:
  flashpan port-forward web 8080:80
  flashpan port-forward web 5432 5353:53/udp
  flashpan port-forward web 0.0.0.0:8080:80                for other machines too
  flashpan port-forward --address ::1 web 8080:80 9090     each on [::1]

Ports lead into the VM until this is interrupted or the VM ends. `flashpan run -p` does
the same for as long as the VM runs.";

/// Makes ports of a VM reachable from this machine
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct PortForwardArgs {
    /// Its id, the beginning of it, or its name.
    #[arg(value_name = "VM")]
    vm: String,

    #[command(flatten)]
    ports: PortArgs,

    /// Say where the ports are as JSON, on standard output, one a line.
    #[arg(long)]
    json: bool,
}

/// Runs `flashpan port-forward`.
pub(crate) fn port_forward(args: &PortForwardArgs) -> Result<u8, Failure> {
    let vm = find(&args.vm)?;
    runtime(async {
        let mut signals =
            Signals::watch().map_err(|e| Failure::new(format!("cannot watch signals: {e}")))?;
        let sandbox = attach_in_time(&vm, None, &mut signals).await?;
        must_have_begun(&vm)?;
        let published = tokio::select! {
            published = args.ports.start(&sandbox) => published,
            signal = signals.ending() => return Err(Failure::signalled(signal)),
        };
        let published = published.map_err(|error| of(&vm, error))?;
        match args.json {
            true => published.bindings().iter().try_for_each(print_json_line)?,
            false => tell(published.bindings()),
        }
        let ended = tokio::select! {
            signal = signals.ending() => Err(Failure::signalled(signal)),
            exit = sandbox.wait() => match exit.reason.is_orderly() {
                true => Ok(0),
                false => Err(Failure::new(format!(
                    "the VM {} has ended: {}",
                    vm.id(),
                    exit.reason
                ))),
            },
        };
        published.report();
        ended
    })
}
