//! `flashpan logs`.

use std::io::{self, Write};
use std::os::fd::AsFd;

use clap::Args;
use flashpan::Sandbox;
use flashpan::state::{LogReader, LogStream, Vm};
use serde::Serialize;

use crate::failure::{Failure, say};
use crate::parse;
use crate::runtime;
use crate::stdio::Patient;
use crate::vms::find;

const EXAMPLES: &str = "\
Examples:
  flashpan logs web
  flashpan logs -f --tail 10 web         and what comes, until the VM ends
  flashpan logs --console web            the guest's console
  flashpan logs --json web | jq -r .line

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
    #[arg(long, short = 'n', value_name = "N", value_parser = parse::count,
          allow_negative_numbers = true)]
    tail: Option<usize>,

    /// The guest's console instead.
    #[arg(long)]
    console: bool,

    /// Each line as a JSON object: its text, and of which log it is.
    #[arg(long)]
    json: bool,
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
        out.lines = args.json.then(|| Lines::of(stream));
        if args.follow && vm.status().is_alive() {
            follow(&vm, &mut reader, &mut out).await?;
        }
        out.drain(&mut reader)?;
        out.finish()
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
pub(super) struct Out {
    to: Patient,
    /// If it is written as JSON.
    lines: Option<Lines>,
}

impl Out {
    pub(super) fn new() -> Result<Self, Failure> {
        let stdout = Patient::new(io::stdout().as_fd());
        stdout
            .map(|to| Self { to, lines: None })
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
            let chunk = match &mut self.lines {
                Some(lines) => lines.push(&chunk)?,
                None => chunk,
            };
            self.write(&chunk)?;
        }
    }

    /// Writes what waits for the end of its line.
    fn finish(&mut self) -> Result<(), Failure> {
        let rest = self.lines.as_mut().map(Lines::finish).transpose()?;
        self.write(&rest.unwrap_or_default())
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.to
            .write_all(bytes)
            .map_err(|error| match error.kind() {
                io::ErrorKind::BrokenPipe => Failure::signalled(nix::libc::SIGPIPE),
                _ => Failure::new(format!("cannot write to standard output: {error}")),
            })
    }
}

/// Longest line that is one JSON object, in bytes: what a guest writes has no limit.
const MAX_LINE: usize = 64 * 1024;

/// A line of a log in JSON.
#[derive(Debug, Serialize)]
struct Line<'a> {
    stream: &'static str,
    line: &'a str,
    /// Whether the line goes on: in the next object, or it was not ended.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    partial: bool,
}

/// Makes lines of what comes bit by bit.
struct Lines {
    stream: &'static str,
    begun: Vec<u8>,
}

impl Lines {
    fn of(stream: LogStream) -> Self {
        let stream = match stream {
            LogStream::Console => "console",
            _ => "output",
        };
        let begun = Vec::new();
        Self { stream, begun }
    }

    /// The lines that these bytes end, as JSON.
    fn push(&mut self, bytes: &[u8]) -> Result<Vec<u8>, Failure> {
        let mut out = Vec::new();
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let mut rest = piece;
            while self.begun.len() + rest.len() > MAX_LINE {
                let room = MAX_LINE.saturating_sub(self.begun.len()).min(rest.len());
                let (now, later) = rest.split_at(room);
                self.begun.extend_from_slice(now);
                self.cut(&mut out)?;
                rest = later;
            }
            self.begun.extend_from_slice(rest);
            if self.begun.last() == Some(&b'\n') {
                self.begun.pop();
                let whole = std::mem::take(&mut self.begun);
                self.object(&whole, false, &mut out)?;
            }
        }
        Ok(out)
    }

    /// Writes a line that is too long as far as it is there, but for a character that
    /// is not whole.
    fn cut(&mut self, out: &mut Vec<u8>) -> Result<(), Failure> {
        let end = match std::str::from_utf8(&self.begun) {
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            _ => self.begun.len(),
        };
        let rest = self.begun.split_off(end);
        let part = std::mem::replace(&mut self.begun, rest);
        self.object(&part, true, out)
    }

    /// What waits for the end of its line.
    fn finish(&mut self) -> Result<Vec<u8>, Failure> {
        let mut out = Vec::new();
        let rest = std::mem::take(&mut self.begun);
        if !rest.is_empty() {
            self.object(&rest, true, &mut out)?;
        }
        Ok(out)
    }

    fn object(&self, line: &[u8], partial: bool, out: &mut Vec<u8>) -> Result<(), Failure> {
        let line = Line {
            stream: self.stream,
            line: &String::from_utf8_lossy(line),
            partial,
        };
        serde_json::to_writer(&mut *out, &line)
            .map_err(|e| Failure::new(format!("cannot write JSON: {e}")))?;
        out.push(b'\n');
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(pieces: &[&[u8]]) -> String {
        let mut lines = Lines::of(LogStream::Output);
        let mut all = Vec::new();
        for piece in pieces {
            all.extend(lines.push(piece).unwrap());
        }
        all.extend(lines.finish().unwrap());
        String::from_utf8(all).unwrap()
    }

    #[test]
    fn a_log_is_an_object_a_line_however_it_comes() {
        let text = lines(&[b"one\n\ntw", b"o \xff\xe2\x82", b"\xac\nend"]);
        assert_eq!(
            text,
            "{\"stream\":\"output\",\"line\":\"one\"}\n\
             {\"stream\":\"output\",\"line\":\"\"}\n\
             {\"stream\":\"output\",\"line\":\"two \u{fffd}\u{20ac}\"}\n\
             {\"stream\":\"output\",\"line\":\"end\",\"partial\":true}\n"
        );
        assert_eq!(lines(&[]), "");
    }

    #[test]
    fn a_line_without_end_comes_in_parts_of_whole_characters() {
        let euro = "\u{20ac}".repeat(MAX_LINE);
        let text = lines(&[euro.as_bytes(), b"\n"]);
        let parts = text.lines().map(|line| {
            let object: serde_json::Value = serde_json::from_str(line).unwrap();
            object["line"].as_str().unwrap().to_owned()
        });
        let parts: Vec<String> = parts.collect();
        assert!(parts.len() > 2 && parts.iter().all(|part| part.len() <= MAX_LINE));
        assert_eq!(parts.concat(), euro);
    }
}
