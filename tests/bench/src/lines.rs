//! What a program says, line by line, as it comes.

use std::io::{BufRead, BufReader, Read};
use std::process::Child;
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::deadline::DEADLINE;

/// Lines of a program.
#[derive(Debug)]
pub(crate) struct Lines(mpsc::Receiver<String>);

impl Lines {
    /// Those on standard output of a program, which is a pipe.
    pub(crate) fn of(program: &mut Child) -> Result<Self> {
        let output = program.stdout.take().context("its output is no pipe")?;
        Ok(Self::from(output))
    }

    fn from(output: impl Read + Send + 'static) -> Self {
        let (sender, lines) = mpsc::channel();
        // To its end, so that the program never waits for a reader.
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        Self(lines)
    }

    /// The first that something is found in.
    pub(crate) fn find<T>(&self, find: impl Fn(&str) -> Option<T>) -> Result<T> {
        let deadline = Instant::now() + DEADLINE;
        let mut said = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.0.recv_timeout(left) {
                Ok(line) => match find(&line) {
                    Some(found) => return Ok(found),
                    None => said.push(line),
                },
                Err(why) => bail!("it said no more ({why}) than: {}", said.join("\n")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_looked_for_is_found_when_it_is_said_and_not_before() {
        let lines = Lines::from(&b"a key\nServer listening\nlater\n"[..]);
        let listens = |line: &str| line.contains("Server listening").then_some(());
        lines.find(listens).unwrap();
        assert_eq!(lines.find(|line| Some(line.to_owned())).unwrap(), "later");
        // It has ended instead.
        let error = Lines::from(&b"no hostkeys available\n"[..]).find(listens);
        let error = error.unwrap_err().to_string();
        assert!(error.contains("no hostkeys available"), "{error}");
    }
}
