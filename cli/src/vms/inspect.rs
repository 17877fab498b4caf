//! `flashpan inspect`.

use std::collections::BTreeSet;
use std::sync::Arc;

use clap::Args;
use flashpan::state::Vm;
use serde::Serialize;
use serde_json::Value;

use crate::failure::{Failure, print, print_json};
use crate::format::{Path, Row, Source, Template, json, render};
use crate::vms::find;
use crate::vms::form::{Form, folded};
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
Launch.Config. What is not set is empty. A name alone that `flashpan ls` knows is as there.";

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
    if args.format.as_ref().is_some_and(Template::is_table) {
        return Err(Failure::new(
            "--format table: what is shown is no table; name fields, or leave it out",
        ));
    }
    let Some(template) = &args.format else {
        print_json(&inspected.collect::<Vec<_>>())?;
        return Ok(0);
    };
    let form = Arc::new(Form::of_vm());
    let documents = listed.into_iter().zip(inspected).map(|(listed, vm)| {
        let all = serde_json::to_value(&vm)
            .map_err(|e| Failure::new(format!("cannot describe the VM: {e}")))?;
        let id = vm.vm.id().to_owned();
        let form = Arc::clone(&form);
        Ok(Document {
            id,
            listed,
            all,
            form,
        })
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
    form: Arc<Form>,
}

/// Most names that an error lists.
const SHOWN: usize = 24;

/// What a path led to so far.
struct Place<'a> {
    /// What is there; null if it is not set.
    value: &'a Value,
    /// What can be below it, as far as that is known.
    form: Form,
}

impl<'a> Place<'a> {
    /// What is below; `None` if there is nothing of that name, set or not.
    fn below(&self, name: &str) -> Option<Self> {
        let value = match self.value {
            // The numbers of entries that there are not are mistakes.
            Value::Array(list) => Some(list.get(name.parse::<usize>().ok()?)?),
            value => member(value, name),
        };
        let form = self.form.member(name);
        if value.is_none() && form.is_none() {
            return None;
        }
        Some(Self {
            value: value.unwrap_or(&Value::Null),
            form: form.unwrap_or_default(),
        })
    }

    /// What there is below, for an error.
    fn listed(&self) -> String {
        let mut names: BTreeSet<_> = self.form.names().into_iter().collect();
        match self.value {
            Value::Array(list) if !list.is_empty() => {
                return format!("; there are 0 to {}", list.len().saturating_sub(1));
            }
            Value::Object(map) => names.extend(map.keys().cloned()),
            _ => {}
        }
        if names.is_empty() {
            return String::new();
        }
        let names: Vec<_> = names.into_iter().take(SHOWN).collect();
        format!("; there are {}", names.join(", "))
    }
}

impl Document {
    fn get(&self, path: &Path) -> Result<&Value, Failure> {
        let mut at = Place {
            value: &self.all,
            form: self.form.as_ref().clone(),
        };
        for (depth, name) in path.names.iter().enumerate() {
            let found = at.below(name).or_else(|| match depth {
                // `Config`, as docker has it.
                0 => at.below("launch")?.below(name),
                _ => None,
            });
            at = found.ok_or_else(|| self.unknown(path, depth, &at))?;
        }
        Ok(at.value)
    }

    fn unknown(&self, path: &Path, depth: usize, at: &Place<'_>) -> Failure {
        let name = path.names.get(..=depth).unwrap_or_default().join(".");
        Failure::new(format!(
            "--format: there is no field {name} of {}{}",
            self.id,
            at.listed()
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
            Value::Null => Ok(String::new()),
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
