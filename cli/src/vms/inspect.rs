//! `flashpan inspect`.

use clap::Args;
use flashpan::state::Vm;
use serde::Serialize;
use serde_json::Value;

use crate::failure::{Failure, print, print_json};
use crate::format::{Path, Row, Source, Template, json, render};
use crate::vms::find;
use crate::vms::list::Listed;

const EXAMPLES: &str = "\
Examples:
  flashpan inspect web
  flashpan inspect vm-0a1b2c3d | jq '.[0].exit.message'
  flashpan inspect --format '{{.Status}}' web
  flashpan inspect --format '{{.Config.Resources.MemoryMB}} {{.Exit.Reason.Kind}}' web
  flashpan inspect --format '{{json .Config}}' web

--format reaches every field of the JSON: disk_bytes is {{.DiskBytes}} or {{.disk_bytes}},
and an entry of a list has its number, {{.Programs.Command.0}}; Config stands for
Launch.Config. What is not set is `-`. A name alone that `flashpan ls` knows is as there.";

/// Shows everything about VMs, as JSON
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct InspectArgs {
    /// Ids, their beginnings, or names.
    #[arg(value_name = "VM", required = true)]
    vms: Vec<String>,

    /// Each by a template, e.g. '{{.Status}}'.
    #[arg(long, value_name = "TEMPLATE")]
    format: Option<Template>,

    /// As JSON, as without it.
    #[arg(long, conflicts_with = "format")]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Inspected {
    #[serde(flatten)]
    vm: Vm,
    disk_bytes: u64,
}

/// Runs `flashpan inspect`.
pub(crate) fn inspect(args: &InspectArgs) -> Result<u8, Failure> {
    let vms = args.vms.iter().map(|text| find(text));
    let vms: Vec<Vm> = vms.collect::<Result<_, _>>()?;
    let listed: Vec<_> = vms.iter().map(Listed::from).collect();
    let inspected = vms.into_iter().map(|vm| Inspected {
        disk_bytes: vm.disk_bytes().unwrap_or(0),
        vm,
    });
    let Some(template) = &args.format else {
        print_json(&inspected.collect::<Vec<_>>())?;
        return Ok(0);
    };
    let documents = listed.into_iter().zip(inspected).map(|(listed, vm)| {
        let all = serde_json::to_value(&vm)
            .map_err(|e| Failure::new(format!("cannot describe the VM: {e}")))?;
        let id = vm.vm.id().to_owned();
        Ok(Document { id, listed, all })
    });
    let documents: Vec<_> = documents.collect::<Result<_, Failure>>()?;
    print(&render(&documents, template)?)?;
    Ok(0)
}

/// A VM for templates.
struct Document {
    id: String,
    listed: Listed,
    all: Value,
}

/// Fields that a VM need not have.
const OPTIONAL: [&str; 6] = ["name", "image", "publish", "gracems", "run", "exit"];

/// Most names that an error lists.
const SHOWN: usize = 24;

impl Document {
    fn get(&self, path: &Path) -> Result<&Value, Failure> {
        let mut at = &self.all;
        for (depth, name) in path.names.iter().enumerate() {
            let found = match at {
                // Of nothing every part is nothing.
                Value::Null => return Ok(at),
                Value::Array(list) => name.parse().ok().and_then(|index: usize| list.get(index)),
                at => member(at, name),
            };
            let found = found.or_else(|| match depth {
                0 if OPTIONAL.contains(&folded(name).as_str()) => Some(&Value::Null),
                // `Config`, as docker has it.
                0 => member(self.all.get("launch")?, name),
                _ => None,
            });
            at = found.ok_or_else(|| self.unknown(path, depth, at))?;
        }
        Ok(at)
    }

    fn unknown(&self, path: &Path, depth: usize, at: &Value) -> Failure {
        let name = path.names.get(..=depth).unwrap_or_default().join(".");
        let parts = match at {
            Value::Object(map) if !map.is_empty() => {
                let names: Vec<_> = map.keys().take(SHOWN).map(String::as_str).collect();
                format!("; there are {}", names.join(", "))
            }
            Value::Array(list) if !list.is_empty() => {
                format!("; there are 0 to {}", list.len().saturating_sub(1))
            }
            _ => String::new(),
        };
        Failure::new(format!(
            "--format: there is no field {name} of {}{parts}",
            self.id
        ))
    }
}

/// A field by its name, or as docker would write that.
fn member<'a>(of: &'a Value, name: &str) -> Option<&'a Value> {
    let map = of.as_object()?;
    map.get(name).or_else(|| {
        let name = folded(name);
        let mut all = map.iter();
        all.find(|(key, _)| folded(key) == name).map(|of| of.1)
    })
}

fn folded(name: &str) -> String {
    name.replace('_', "").to_ascii_lowercase()
}

impl Source for Document {
    fn text(&self, path: &Path) -> Result<String, Failure> {
        let mut fields = Listed::FIELDS.iter();
        let is_listed = path.names.len() == 1
            && fields.any(|(name, _)| path.names.first().is_some_and(|first| first == name));
        if is_listed && !path.json {
            return self.listed.text(path);
        }
        match self.get(path)? {
            value if path.json => json(value),
            Value::Null => Ok("-".to_owned()),
            Value::String(text) => Ok(text.clone()),
            value => json(value),
        }
    }

    fn title(path: &Path) -> Result<String, Failure> {
        Ok(path
            .names
            .last()
            .map_or("VM", String::as_str)
            .to_uppercase())
    }
}
