//! `flashpan logs`.

use std::io::{self, Write};
use std::os::fd::AsFd;

use clap::Args;
use flashpan::Sandbox;
use flashpan::state::{LogReader, LogStream, Vm};

use crate::failure::{Failure, say};
use crate::runtime;
use crate::stdio::Patient;
use crate::vms::find;

const EXAMPLES: &str = "\
Examples:
  flashpan logs web
  flashpan logs -f --tail 10 web         and what comes, until the VM ends
  flashpan logs --console web            the guest's console

A VM's log has what its command wrote, output and errors as they came. It keeps the
last 8 to 16 MiB. With `run --console` the console has the messages of the guest's
kernel, otherwise only those of its end.";

/// Shows what the command of a VM wrote
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, visible_alias = "log")]
pub(crate) struct LogsArgs {
    /// Its id, the beginning of it, or its name.
    #[arg(value_name = "VM")]
    vm: String,

    /// Go on as more is written, until the VM ends.
    #[arg(long, short)]
    follow: bool,

    /// Only the last N lines of what is there.
    #[arg(long, short = 'n', value_name = "N")]
    tail: Option<usize>,

    /// The guest's console instead.
    #[arg(long)]
    console: bool,
}

/// Runs `flashpan logs`.
pub(crate) fn logs(args: &LogsArgs) -> Result<u8, Failure> {
    let vm = find(&args.vm)?;
    let stream = match args.console {
        true => LogStream::Console,
        false => LogStream::Output,
    };
    runtime(async {
        // Before it is known whether the VM runs: what is written in between counts.
        let mut reader = LogReader::open(&vm, stream, args.tail).map_err(Failure::new)?;
        let mut out = Out::new()?;
        if args.follow && vm.status().is_alive() {
            follow(&vm, &mut reader, &mut out).await?;
        }
        out.drain(&mut reader)
    })?;
    Ok(0)
}

async fn follow(vm: &Vm, reader: &mut LogReader, out: &mut Out) -> Result<(), Failure> {
    let sandbox = match Sandbox::attach(vm).await {
        Ok(sandbox) => sandbox,
        // It has ended since.
        Err(flashpan::Error::NotRunning) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    loop {
        out.drain(reader)?;
        tokio::select! {
            changed = reader.changed() => changed.map_err(Failure::new)?,
            _ = sandbox.wait() => return Ok(()),
        }
    }
}

/// Standard output, for what comes bit by bit.
pub(super) struct Out(Patient);

impl Out {
    pub(super) fn new() -> Result<Self, Failure> {
        let stdout = Patient::new(io::stdout().as_fd());
        stdout
            .map(Self)
            .map_err(|e| Failure::new(format!("cannot write to standard output: {e}")))
    }

    /// Writes all that there is so far.
    fn drain(&mut self, reader: &mut LogReader) -> Result<(), Failure> {
        loop {
            let chunk = reader.available().map_err(Failure::new)?;
            if reader.take_lost() {
                say(
                    "warning",
                    "a part of the log was replaced before it could be shown",
                );
            }
            if chunk.is_empty() {
                return Ok(());
            }
            self.write(&chunk)?;
        }
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.0.write_all(bytes).map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::signalled(nix::libc::SIGPIPE),
            _ => Failure::new(format!("cannot write to standard output: {error}")),
        })
    }
}
