//! Is what Kconfig made what was asked for?

use std::fmt;
use std::fs;
use std::path::Path;

use crate::request::{Request, Requests, Resolved, Value};

/// A request that Kconfig did not honour.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unmet {
    /// Who asked for what.
    pub request: Request,
    /// What the option became.
    pub got: Value,
    /// What the option depends on according to the source, where it is known there.
    pub hint: Option<String>,
}

impl fmt::Display for Unmet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Request {
            option,
            value,
            fragment,
            line,
        } = &self.request;
        let got = &self.got;
        write!(
            f,
            "CONFIG_{option}: {fragment} (line {line}) asks for {value}, Kconfig gives {got}"
        )?;
        match &self.hint {
            Some(hint) => write!(f, "; {hint}"),
            None => Ok(()),
        }
    }
}

/// Every request that `resolved` does not honour, with a hint out of the Kconfig
/// files of `source`.
pub(crate) fn unmet(requests: &Requests, resolved: &Resolved, source: &Path) -> Vec<Unmet> {
    let mut unmet: Vec<_> = requests
        .iter()
        .filter_map(|request| {
            let got = resolved.get(&request.option);
            (got != request.value).then(|| Unmet {
                request: request.clone(),
                got,
                hint: None,
            })
        })
        .collect();
    if !unmet.is_empty() {
        let definitions = Definitions::read(source);
        for one in &mut unmet {
            one.hint = Some(definitions.hint(&one.request, &one.got));
        }
    }
    unmet
}

/// All Kconfig files of a source tree, read only when something went wrong.
struct Definitions(Vec<String>);

impl Definitions {
    fn read(source: &Path) -> Self {
        let mut texts = Vec::new();
        let mut directories = vec![source.to_owned()];
        while let Some(directory) = directories.pop() {
            // A hint is worth no error: what cannot be read is left out.
            for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
                match entry.file_type() {
                    Ok(kind) if kind.is_dir() => directories.push(entry.path()),
                    Ok(kind)
                        if kind.is_file() && is_kconfig(&entry.file_name().to_string_lossy()) =>
                    {
                        texts.extend(fs::read_to_string(entry.path()).ok());
                    }
                    _ => (),
                }
            }
        }
        Self(texts)
    }

    fn hint(&self, request: &Request, got: &Value) -> String {
        let option = &request.option;
        let Some(body) = self.0.iter().find_map(|text| body(text, option)) else {
            return "no Kconfig file of this source knows it".to_owned();
        };
        let all = |key: &str| {
            let lines = body.iter().filter_map(|line| line.trim().strip_prefix(key));
            lines.map(str::trim).collect::<Vec<_>>()
        };
        let (ranges, depends) = (all("range "), all("depends on "));
        match (&request.value, got) {
            (Value::No, _) => "another option selects it".to_owned(),
            (_, Value::Is(_)) if !ranges.is_empty() => {
                format!("its range is {}", ranges.join(", or "))
            }
            _ if depends.is_empty() => {
                "a menu around it, or another choice of the same menu, stands against it".to_owned()
            }
            _ => format!("it depends on {}", depends.join(" && ")),
        }
    }
}

fn is_kconfig(name: &str) -> bool {
    name.starts_with("Kconfig")
}

/// The lines between `config OPTION` and the next entry.
fn body<'a>(text: &'a str, option: &str) -> Option<Vec<&'a str>> {
    let defines = |line: &str| {
        let mut words = line.split_whitespace();
        matches!(words.next(), Some("config" | "menuconfig")) && words.next() == Some(option)
    };
    let mut lines = text.lines().skip_while(|line| !defines(line));
    lines.next()?;
    Some(
        lines
            .take_while(|line| line.is_empty() || line.starts_with([' ', '\t']))
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const KCONFIG: &str = "config A\n\tbool \"a\"\n\tdepends on B\n\tdepends on C || D\n\n\
                           config E\n\tbool\n\nconfig N\n\tint\n\trange 2 512 if SMP\n\
                           \tdefault 1\n";

    fn check(request: &str, config: &str) -> Vec<String> {
        let source = tempfile::tempdir().unwrap();
        fs::create_dir(source.path().join("drivers")).unwrap();
        fs::write(source.path().join("drivers/Kconfig"), KCONFIG).unwrap();
        let requests = Requests::parse("mine", request).unwrap();
        let unmet = unmet(&requests, &Resolved::parse(config), source.path());
        unmet.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_dropped_option_is_named_with_what_it_depends_on() {
        assert_eq!(
            check("\nCONFIG_A=y\n", "CONFIG_E=y\n"),
            ["CONFIG_A: mine (line 2) asks for y, Kconfig gives n; it depends on B && C || D"]
        );
    }

    #[test]
    fn a_changed_value_and_a_selected_option_are_named() {
        assert_eq!(
            check(
                "CONFIG_N=1000\n# CONFIG_E is not set\n",
                "CONFIG_N=512\nCONFIG_E=y\n"
            ),
            [
                "CONFIG_E: mine (line 2) asks for n, Kconfig gives y; another option selects it",
                "CONFIG_N: mine (line 1) asks for 1000, Kconfig gives 512; its range is 2 512 if SMP",
            ]
        );
    }

    #[test]
    fn an_option_nobody_defines_is_said_to_be_unknown() {
        let [line] = &check("CONFIG_TYPO=y\n", "")[..] else {
            panic!("one line")
        };
        assert!(
            line.ends_with("no Kconfig file of this source knows it"),
            "{line}"
        );
    }

    #[test]
    fn what_is_honoured_is_silent() {
        let config = "CONFIG_A=y\n# CONFIG_E is not set\nCONFIG_S=\"x\"\n";
        assert!(
            check(
                "CONFIG_A=y\n# CONFIG_E is not set\nCONFIG_S=\"x\"\n",
                config
            )
            .is_empty()
        );
    }
}
