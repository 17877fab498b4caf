//! Secrets: where their values come from. No message has any part of one in it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::path::PathBuf;

use clap::Args;
use flashpan::api::{NamedSecret, Secret, SecretValue};
use flashpan::edit::Places;
use flashpan::launch::SecretSource;

use crate::failure::Failure;

/// Options that say where values come from.
#[derive(Debug, Default, Args)]
pub(crate) struct SourceArgs {
    /// The value of a secret is in this file, but for the line break at its end; may be
    /// repeated.
    #[arg(long = "secret-file", value_name = "NAME=FILE")]
    files: Vec<String>,

    /// The value of a secret is what this command prints, run by sh, but for the line break
    /// at its end; it has 30 seconds; may be repeated.
    #[arg(long = "secret-command", value_name = "NAME=COMMAND")]
    commands: Vec<String>,

    /// The value of a secret can be read from this descriptor; may be repeated.
    #[arg(long = "secret-fd", value_name = "NAME=FD")]
    fds: Vec<String>,
}

/// Options that say where values go, of secrets of the same command line.
#[derive(Debug, Default, Args)]
pub(crate) struct PlaceArgs {
    /// The places of a request in which the value of a secret comes, and no others:
    /// `headers`, `header:NAME` (only these), `basic` (credentials), `query`, `path`, `body`;
    /// otherwise `headers,basic,query`. May be repeated, for each secret once.
    #[arg(long = "secret-in", value_name = "NAME=PLACE[,PLACE]")]
    places: Vec<String>,

    /// What programs have in place of the value: 8 characters or more that occur nowhere
    /// else; may be repeated.
    #[arg(long = "secret-placeholder", value_name = "NAME=TEXT")]
    placeholders: Vec<String>,

    /// Let the value of a secret be sent without TLS as well; may be repeated.
    #[arg(long = "secret-plain-http", value_name = "NAME")]
    plain_http: Vec<String>,
}

impl PlaceArgs {
    /// Sets what they say.
    pub(crate) fn apply_to(&self, secrets: &mut BTreeMap<String, Secret>) -> Result<(), Failure> {
        fn named<'a>(
            secrets: &'a mut BTreeMap<String, Secret>,
            option: &str,
            name: &str,
        ) -> Result<&'a mut Secret, Failure> {
            let none = || {
                Failure::new(format!(
                    "{option}: there is no secret {name:?}; give --secret"
                ))
            };
            secrets.get_mut(name).ok_or_else(none)
        }
        let split = |option: &str, text: &'_ str| {
            let parts = text
                .split_once('=')
                .filter(|(name, what)| !(name.is_empty() || what.is_empty()));
            let parts = parts.map(|(name, what)| (name.to_owned(), what.to_owned()));
            parts.ok_or_else(|| {
                Failure::new(format!(
                    "{option}: give the secret's name, `=`, and what it is to have"
                ))
            })
        };
        for text in &self.places {
            let option = "--secret-in";
            let (name, places) = split(option, text)?;
            let secret = named(secrets, option, &name)?;
            if !secret.places.is_empty() {
                return Err(Failure::new(format!(
                    "{option}: {name} is there twice; separate places by commas"
                )));
            }
            let places = places.split(',').map(str::trim);
            Places::of(places.clone())
                .map_err(|why| Failure::new(format!("{option} {name}: {why}")))?;
            secret.places = places.map(str::to_owned).collect();
        }
        for text in &self.placeholders {
            let option = "--secret-placeholder";
            let (name, placeholder) = split(option, text)?;
            named(secrets, option, &name)?.placeholder = placeholder;
        }
        for name in &self.plain_http {
            named(secrets, "--secret-plain-http", name)?.plain_http = true;
        }
        Ok(())
    }
}

/// What a value comes from.
enum From<'a> {
    Source(SecretSource),
    Fd(&'a str),
}

impl SourceArgs {
    pub(crate) fn is_empty(&self) -> bool {
        self.files.is_empty() && self.commands.is_empty() && self.fds.is_empty()
    }

    /// By the names of the secrets.
    fn sources(&self) -> Result<BTreeMap<&str, From<'_>>, Failure> {
        fn file(text: &str) -> From<'_> {
            From::Source(SecretSource::File(PathBuf::from(text)))
        }
        fn command(text: &str) -> From<'_> {
            From::Source(SecretSource::Command(text.to_owned()))
        }
        let mut sources = BTreeMap::new();
        type Make = fn(&str) -> From<'_>;
        let all: [(_, _, Make); 3] = [
            (&self.files, "--secret-file", file),
            (&self.commands, "--secret-command", command),
            (&self.fds, "--secret-fd", |text| From::Fd(text)),
        ];
        for (texts, option, make) in all {
            for text in texts {
                let parts = text
                    .split_once('=')
                    .filter(|(name, from)| !(name.is_empty() || from.is_empty()));
                // Without a name it may be anything, a value too.
                let (name, from) = parts.ok_or_else(|| {
                    Failure::new(format!(
                        "{option}: give the secret's name, `=`, and from where"
                    ))
                })?;
                if sources.insert(name, make(from)).is_some() {
                    return Err(Failure::new(format!(
                        "the value of the secret {name} is given twice"
                    )));
                }
            }
        }
        Ok(sources)
    }
}

/// Secrets of a command line.
#[derive(Debug, Default)]
pub(crate) struct Secrets {
    pub(crate) secrets: BTreeMap<String, Secret>,
    /// From where their values can be got again.
    pub(crate) sources: BTreeMap<String, SecretSource>,
}

/// Reads secrets, each `NAME=VALUE@HOSTS` or `NAME@HOSTS`, of which the latter have their
/// values from `from`, or from the variable of that name.
pub(crate) fn with_hosts(texts: &[String], from: &SourceArgs) -> Result<Secrets, Failure> {
    let mut sources = from.sources()?;
    let mut all = Secrets::default();
    for text in texts {
        let mut got: Option<(Result<SecretValue, Failure>, Option<SecretSource>)> = None;
        let parsed = NamedSecret::parse_with(text, |name| {
            let value = match sources.remove(name) {
                None => {
                    let source = SecretSource::Env(name.to_owned());
                    got = Some((Ok(SecretValue::default()), Some(source)));
                    return std::env::var_os(name);
                }
                Some(From::Source(source)) => {
                    let value = read(name, &source);
                    got = Some((value, Some(source)));
                    &got
                }
                Some(From::Fd(fd)) => {
                    got = Some((read_fd(name, fd), None));
                    &got
                }
            };
            let value = value.as_ref().and_then(|(value, _)| value.as_ref().ok());
            // One that could not be read is told of below.
            let text = value.map_or("x", |value| value.expose());
            Some(OsString::from(text))
        });
        let parsed = parsed.map_err(|e| Failure::new(format!("invalid secret: {e}")))?;
        if let Some((value, source)) = got {
            value?;
            if let Some(source) = source {
                all.sources.insert(parsed.name.clone(), source);
            }
        }
        all.secrets.insert(parsed.name, parsed.secret);
    }
    match sources.into_keys().next() {
        None => Ok(all),
        Some(name) => Err(Failure::new(format!(
            "there is no secret {name}; give --secret {name}@HOST"
        ))),
    }
}

/// Reads values, each `NAME=VALUE`, or `NAME` of the variable of that name; and those of
/// `from`.
pub(crate) fn values(
    texts: &[String],
    from: &SourceArgs,
) -> Result<BTreeMap<String, SecretValue>, Failure> {
    let mut values = BTreeMap::new();
    for text in texts {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, SecretValue::new(value.to_owned())),
            None => (text.as_str(), read(text, &SecretSource::Env(text.clone()))?),
        };
        values.insert(name.to_owned(), value);
    }
    for (name, from) in from.sources()? {
        let value = match from {
            From::Source(source) => read(name, &source)?,
            From::Fd(fd) => read_fd(name, fd)?,
        };
        values.insert(name.to_owned(), value);
    }
    Ok(values)
}

/// The value of a secret, from where it comes from.
pub(crate) fn read(name: &str, source: &SecretSource) -> Result<SecretValue, Failure> {
    source.read().map_err(|error| {
        let what = match source {
            SecretSource::File(path) => format!("cannot read {}: ", path.display()),
            SecretSource::Command(_) => {
                "cannot take it from its command (--secret-command): ".to_owned()
            }
            _ => String::new(),
        };
        Failure::new(format!("the value of the secret {name}: {what}{error}"))
    })
}

#[allow(unsafe_code)] // A number becomes a descriptor of ours.
fn read_fd(name: &str, text: &str) -> Result<SecretValue, Failure> {
    let failed = |what: &str| {
        Failure::new(format!(
            "the value of the secret {name}: descriptor {text}: {what}"
        ))
    };
    let fd: RawFd = text.parse().map_err(|_| failed("it is no number"))?;
    if fd < 3 || nix::fcntl::fcntl(borrowed(fd), nix::fcntl::FcntlArg::F_GETFD).is_err() {
        return Err(failed("it is not open, or one of the standard streams"));
    }
    // SAFETY: it is open, and was inherited: nothing in this process owns it, since what
    // this process opens is not named on its command line. It is used once, as its name in
    // the options is used up.
    let file = unsafe { OwnedFd::from_raw_fd(fd) };
    SecretSource::read_from(File::from(file)).map_err(|e| failed(&e.to_string()))
}

#[allow(unsafe_code)] // As above.
fn borrowed(fd: RawFd) -> std::os::fd::BorrowedFd<'static> {
    // SAFETY: it is only asked whether it is open, which does no harm to any number but -1,
    // and that is below 3.
    unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn from(files: &[&str], commands: &[&str]) -> SourceArgs {
        let all = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect();
        SourceArgs {
            files: all(files),
            commands: all(commands),
            fds: Vec::new(),
        }
    }

    #[test]
    fn values_come_from_files_and_commands() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("k");
        std::fs::write(&path, "hunter2\n").unwrap();
        let file = format!("F={}", path.display());
        let from = from(&[&file], &["C=printf 'a b'"]);
        let texts = ["F@a.test", "C@b.test,c.test", "I=in@line@d.test"].map(str::to_owned);
        let all = with_hosts(&texts, &from).unwrap();
        let value = |name: &str| all.secrets.get(name).unwrap().value.expose().to_owned();
        assert_eq!(
            [value("F"), value("C"), value("I")],
            ["hunter2", "a b", "in@line"]
        );
        assert_eq!(all.sources.get("F"), Some(&SecretSource::File(path)));
        assert_eq!(all.sources.get("I"), None);
    }

    #[test]
    fn places_and_placeholders_are_of_secrets_that_are_there() {
        let all = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect();
        let args = |places: &[&str], placeholders: &[&str], plain: &[&str]| PlaceArgs {
            places: all(places),
            placeholders: all(placeholders),
            plain_http: all(plain),
        };
        let texts = ["K=v@a.test".to_owned()];
        let mut secrets = with_hosts(&texts, &SourceArgs::default()).unwrap().secrets;
        let good = args(
            &["K=header:Authorization, body"],
            &["K=sk-=placeholder"],
            &["K"],
        );
        good.apply_to(&mut secrets).unwrap();
        let secret = secrets.get("K").unwrap();
        assert_eq!(secret.places, ["header:Authorization", "body"]);
        assert_eq!(secret.placeholder, "sk-=placeholder");
        assert!(secret.plain_http);
        for (bad, why) in [
            (
                args(&["L=body"], &[], &[]),
                "--secret-in: there is no secret \"L\"",
            ),
            (args(&["K=body"], &[], &[]), "--secret-in: K is there twice"),
            (
                args(&["K"], &[], &[]),
                "--secret-in: give the secret's name",
            ),
            (
                args(&[], &["K="], &[]),
                "--secret-placeholder: give the secret's name",
            ),
            (
                args(&[], &[], &["L"]),
                "--secret-plain-http: there is no secret",
            ),
        ] {
            let failure = bad.apply_to(&mut secrets).unwrap_err();
            assert!(failure.message().contains(why), "{}", failure.message());
        }
        secrets.get_mut("K").unwrap().places.clear();
        let failure = args(&["K=cookie"], &[], &[])
            .apply_to(&mut secrets)
            .unwrap_err();
        assert!(failure.message().contains("\"cookie\" is no place"));
    }

    #[test]
    fn what_cannot_be_read_is_told_without_a_value() {
        let texts = ["K@a.test".to_owned()];
        for (from, why) in [
            (from(&["K=/nowhere/k"], &[]), "K: cannot read /nowhere/k"),
            (
                from(&["hunter2"], &[]),
                "--secret-file: give the secret's name",
            ),
            (
                from(&[], &["K=exit 3"]),
                "K: cannot take it from its command (--secret-command): it ended with exit status: 3",
            ),
            (from(&[], &["K=true"]), "there is nothing"),
            (from(&["K=/x"], &["K=true"]), "given twice"),
            (from(&["L=/nowhere"], &["K=echo 1"]), "there is no secret L"),
        ] {
            let failure = with_hosts(&texts, &from).unwrap_err();
            let message = failure.message();
            assert!(
                message.contains(why) && !message.contains("hunter2"),
                "{message}"
            );
        }
    }
}
