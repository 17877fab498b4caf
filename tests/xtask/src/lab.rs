//! `cargo xtask lab`: the command line of the lab.

use std::ffi::OsString;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use flashpan_lab::Options;

const HELP: &str = "\
Run a command in an emulated host on which KVM works (docs/lab.md).

  cargo xtask lab [OPTIONS] [--] COMMAND [ARGUMENT…]

  --icount        a clock that counts instructions: one CPU, slow, repeatable
  --cpus N        emulated CPUs (2)
  --memory MIB    memory (6144)
  --timeout SECS  kill the command after that time and exit with 124
  --scratch SIZE  size of the scratch disk, with K, M, G or T (32G; sparse)
  --repeat N      run the command N times in one lab; the first failure ends it
  -t, --tty       give the command a terminal
  --console       show the lab's console on standard error

The exit status is the command's: 128+n if signal n ended it, 126 or 127 if it
cannot be run, 124 after a time-out, 125 if the lab itself fails.
";

/// Runs `cargo xtask lab` with these arguments.
pub(crate) fn lab(arguments: Vec<OsString>) -> Result<u8> {
    let Some(options) = parse(arguments)? else {
        print!("{HELP}");
        return Ok(0);
    };
    flashpan_lab::run(&options)
}

/// `None` is a request for help.
fn parse(arguments: Vec<OsString>) -> Result<Option<Options>> {
    let mut options = Options::default();
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let text = argument.to_str().unwrap_or_default();
        let (name, given) = match text.split_once('=') {
            Some((name, value)) if name.starts_with("--") => (name, Some(value.to_owned())),
            _ => (text, None),
        };
        let mut value = || {
            let next = || arguments.next().and_then(|next| next.into_string().ok());
            given
                .clone()
                .or_else(next)
                .with_context(|| format!("{name} needs a value"))
        };
        match name {
            "--icount" => options.icount = true,
            "--cpus" => options.cpus = number(name, &value()?)?,
            "--memory" => options.memory = number(name, &value()?)?,
            "--timeout" => {
                options.timeout = Some(Duration::from_secs(number(name, &value()?)?.into()));
            }
            "--scratch" => options.scratch = size(&value()?)?,
            "--repeat" => options.repeat = number(name, &value()?)?,
            "-t" | "--tty" => options.terminal = true,
            "--console" => options.console = true,
            "-h" | "--help" => return Ok(None),
            "--" => {
                options.command.extend(arguments);
                break;
            }
            _ if name.starts_with('-') => bail!("lab has no option {name}; see lab --help"),
            _ => {
                options.command.push(argument.clone());
                options.command.extend(arguments);
                break;
            }
        }
    }
    if options.command.is_empty() {
        bail!("no command to run in the lab; see lab --help");
    }
    Ok(Some(options))
}

fn number(name: &str, text: &str) -> Result<u32> {
    let number = text.parse().ok().filter(|number| *number > 0);
    number.with_context(|| format!("{name} takes a number above zero, not `{text}`"))
}

/// A size in bytes from text such as `512M`.
fn size(text: &str) -> Result<u64> {
    let shift = match text.chars().last() {
        Some('K') => 10,
        Some('M') => 20,
        Some('G') => 30,
        Some('T') => 40,
        _ => 0,
    };
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let units: Option<u64> = digits.parse().ok();
    let size = units.and_then(|units| units.checked_mul(1 << shift));
    size.filter(|size| *size >= 64 << 20)
        .with_context(|| format!("a scratch disk has at least 64M; `{text}` is no such size"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> Result<Option<Options>> {
        parse(words.iter().map(OsString::from).collect())
    }

    #[test]
    fn options_end_where_the_command_begins() {
        let options = parsed(&["--cpus", "3", "--timeout=9", "ls", "--icount"])
            .unwrap()
            .unwrap();
        assert_eq!(options.cpus, 3);
        assert_eq!(options.timeout, Some(Duration::from_secs(9)));
        assert!(!options.icount);
        assert_eq!(options.command, ["ls", "--icount"]);
        assert_eq!(
            parsed(&["--", "--cpus"]).unwrap().unwrap().command,
            ["--cpus"]
        );
    }

    #[test]
    fn nonsense_is_refused() {
        for words in [
            &["--cpus"][..],
            &["--cpus", "0", "x"],
            &["--nope", "x"],
            &["--icount"],
        ] {
            assert!(parsed(words).is_err(), "{words:?}");
        }
        assert!(parsed(&["-h"]).unwrap().is_none());
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(size("64M").unwrap(), 64 << 20);
        assert_eq!(size("2T").unwrap(), 2 << 40);
        for text in ["", "1G5", "1K", "G", "99999999999T"] {
            assert!(size(text).is_err(), "{text}");
        }
    }
}
