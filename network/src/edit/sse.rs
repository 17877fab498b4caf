//! Replacement in a stream of events (`text/event-stream`).

use super::filter::{Broken, Chain, Filter};

/// What a line begins with that has data.
const DATA: &[u8] = b"data:";

/// Passes what follows `data:` in a line through other filters, line by line, and all
/// else as it is. What is looked for is so never found over the end of a line. Lines may
/// be of any length: they are not kept.
pub(super) struct Events {
    text: Chain,
    at: At,
}

/// Where in a line it is.
enum At {
    /// This many bytes of `data:` were there.
    Begin(usize),
    /// In the text of a line of data.
    Data,
    /// In another line.
    Other,
}

impl Events {
    /// Passes the text of lines of data through these filters, which can go on after
    /// [`Filter::finish`].
    pub(super) fn new(text: Chain) -> Self {
        Self {
            text,
            at: At::Begin(0),
        }
    }
}

impl Filter for Events {
    fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Broken> {
        let mut rest = bytes;
        while let Some(byte) = rest.first().copied() {
            match self.at {
                At::Begin(seen) if DATA.get(seen) == Some(&byte) => {
                    out.push(byte);
                    rest = rest.get(1..).unwrap_or_default();
                    self.at = match seen + 1 {
                        all if all == DATA.len() => At::Data,
                        seen => At::Begin(seen),
                    };
                }
                At::Begin(_) => self.at = At::Other,
                At::Data | At::Other => {
                    let is_end = |byte: &u8| matches!(byte, b'\n' | b'\r');
                    let end = rest.iter().position(is_end);
                    let (line, after) = rest
                        .split_at_checked(end.unwrap_or(rest.len()))
                        .unwrap_or((rest, &[]));
                    match self.at {
                        At::Data => self.text.push(line, out)?,
                        _ => out.extend_from_slice(line),
                    }
                    rest = after;
                    if let [end, after @ ..] = after {
                        if matches!(self.at, At::Data) {
                            self.text.finish(out)?;
                        }
                        out.push(*end);
                        rest = after;
                        self.at = At::Begin(0);
                    }
                }
            }
        }
        Ok(())
    }

    fn finish(&mut self, out: &mut Vec<u8>) -> Result<(), Broken> {
        self.text.finish(out)
    }
}

#[cfg(test)]
mod tests {
    use super::super::replace::Replacer;
    use super::super::replace::tests::{filtered, table};
    use super::*;

    fn events(bytes: &[u8], step: usize) -> Vec<u8> {
        let pairs: [(&[u8], &[u8]); 2] = [(b" cat", b" dog"), (b"dog", b"")];
        let one = |pair| -> Box<dyn Filter> { Box::new(Replacer::new(table(&[pair]))) };
        let mut events = Events::new(Chain(pairs.map(one).into()));
        filtered(&mut events, bytes.chunks(step))
    }

    #[test]
    fn only_lines_of_data_are_changed_and_each_on_its_own() {
        for (stream, changed) in [
            ("data: cat\n\n", "data: \n\n"),
            ("data:dog dog\r\n\r\n", "data: \r\n\r\n"),
            ("event: cat\ndata: cats\n", "event: cat\ndata: s\n"),
            ("id: dog\n: cat\n", "id: dog\n: cat\n"),
            // A line that is none of data, and data that is none at the begin.
            (
                "dat: dog\n data: dog\ndata\n",
                "dat: dog\n data: dog\ndata\n",
            ),
            // Never over the end of a line.
            (
                "data: c\ndata:at do\ndata:g\n",
                "data: c\ndata:at do\ndata:g\n",
            ),
            ("data: do", "data: do"),
            ("data: dog", "data: "),
            ("data: c\rdata: cat\r", "data: c\rdata: \r"),
            ("\n\ndata: cat", "\n\ndata: "),
            ("", ""),
        ] {
            for step in 1..9 {
                let out = events(stream.as_bytes(), step);
                assert_eq!(String::from_utf8_lossy(&out), changed, "{stream:?} {step}");
            }
        }
    }
}
