//! Rows of a list as a table, as JSON, or by a template in docker's manner.

use std::str::FromStr;

use serde::Serialize;

use crate::failure::{Failure, print, print_json};

/// How lists are printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Template {
    parts: Vec<Part>,
    /// Whether there is a line of titles and columns are aligned.
    table: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Value(Path),
}

/// What stands between `{{` and `}}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Path {
    /// `{{.Field.Sub}}`; empty for all, which only is JSON.
    pub(crate) names: Vec<String>,
    /// `{{json .Field}}`
    pub(crate) json: bool,
}

impl Path {
    fn parse(text: &str) -> Option<Self> {
        let words: Vec<_> = text.split_whitespace().collect();
        let (json, path) = match words.as_slice() {
            ["json", path] => (true, *path),
            [path] => (false, *path),
            _ => return None,
        };
        let names = path.strip_prefix('.')?;
        if names.is_empty() {
            return json.then_some(Self {
                names: Vec::new(),
                json,
            });
        }
        let names: Vec<_> = names.split('.').map(str::to_owned).collect();
        let in_names = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        let good = |name: &String| !name.is_empty() && name.bytes().all(in_names);
        names.iter().all(good).then_some(Self { names, json })
    }
}

impl std::fmt::Display for Path {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.names.join("."))
    }
}

impl FromStr for Template {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // As docker has these words.
        let text = match text {
            "json" => "{{json .}}",
            "table" => {
                let parts = Vec::new();
                return Ok(Self { parts, table: true });
            }
            text => text,
        };
        let (table, mut rest) = match text.strip_prefix("table ") {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let mut parts = Vec::new();
        while let Some((before, after)) = rest.split_once("{{") {
            if !before.is_empty() {
                parts.push(Part::Text(unescape(before)));
            }
            let Some((inside, behind)) = after.split_once("}}") else {
                return Err("a `{{` has no `}}`".to_owned());
            };
            let path = Path::parse(inside).ok_or_else(|| {
                format!(
                    "`{{{{{inside}}}}}` is not understood; write {{{{.Field}}}} or {{{{json .}}}}"
                )
            })?;
            parts.push(Part::Value(path));
            rest = behind;
        }
        if parts.is_empty() {
            return Err(format!(
                "`{text}` names no field; write e.g. {{{{.Field}}}}, or json or table"
            ));
        }
        if !rest.is_empty() {
            parts.push(Part::Text(unescape(rest)));
        }
        Ok(Self { parts, table })
    }
}

impl Template {
    /// Whether it is the table that there is without a template.
    pub(crate) fn is_table(&self) -> bool {
        self.table && self.parts.is_empty()
    }
}

/// `\t` and `\n` as a shell's user writes them.
fn unescape(text: &str) -> String {
    text.replace("\\t", "\t").replace("\\n", "\n")
}

/// A thing that is listed.
pub(crate) trait Row: Serialize {
    /// Names of its fields in templates, and the titles of their columns.
    const FIELDS: &'static [(&'static str, &'static str)];

    /// Their values, in the same order.
    fn values(&self) -> Vec<String>;
}

/// A thing that a template is filled from.
pub(crate) trait Source {
    /// What is at a path; an error says that nothing is.
    fn text(&self, path: &Path) -> Result<String, Failure>;

    /// The title of a column for it.
    fn title(path: &Path) -> Result<String, Failure>;
}

impl<R: Row> Source for R {
    fn text(&self, path: &Path) -> Result<String, Failure> {
        if path.names.is_empty() {
            return json(self);
        }
        let at = position::<R>(path)?;
        let value = self.values().into_iter().nth(at).unwrap_or_default();
        match path.json {
            true => json(&value),
            false => Ok(value),
        }
    }

    fn title(path: &Path) -> Result<String, Failure> {
        if path.names.is_empty() {
            return Ok(String::new());
        }
        let field = R::FIELDS.get(position::<R>(path)?);
        Ok(field.map(|field| field.1.to_owned()).unwrap_or_default())
    }
}

/// Which of the fields of rows it is.
fn position<R: Row>(path: &Path) -> Result<usize, Failure> {
    let name = path.to_string();
    let at = R::FIELDS.iter().position(|(field, _)| *field == name);
    at.ok_or_else(|| {
        let known: Vec<_> = R::FIELDS.iter().map(|(field, _)| *field).collect();
        Failure::new(format!(
            "--format: there is no field {name}; there are {}",
            known.join(", ")
        ))
    })
}

/// A value as JSON on one line.
pub(crate) fn json(value: &impl Serialize) -> Result<String, Failure> {
    serde_json::to_string(value).map_err(|e| Failure::new(format!("cannot write JSON: {e}")))
}

/// What an option says of how a list is printed.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Style<'a> {
    /// A table of these fields.
    Table(&'a [&'a str]),
    Json,
    Template(&'a Template),
}

impl<'a> Style<'a> {
    /// What `--format` and `--json` say; a table of these fields otherwise.
    pub(crate) fn of(format: Option<&'a Template>, json: bool, fields: &'a [&'a str]) -> Self {
        match format.filter(|template| !template.is_table()) {
            Some(template) => Self::Template(template),
            None if json => Self::Json,
            None => Self::Table(fields),
        }
    }
}

/// Prints a list.
pub(crate) fn print_rows<R: Row>(rows: &[R], style: Style<'_>) -> Result<(), Failure> {
    match style {
        Style::Json => print_json(&rows),
        Style::Table(fields) => print(&table::<R>(rows, fields)),
        Style::Template(template) => print(&render(rows, template)?),
    }
}

/// The table as text.
pub(crate) fn table<R: Row>(rows: &[R], fields: &[&str]) -> String {
    let columns: Vec<_> = fields
        .iter()
        .filter_map(|field| R::FIELDS.iter().position(|(name, _)| name == field))
        .collect();
    let titles = columns
        .iter()
        .filter_map(|at| Some(R::FIELDS.get(*at)?.1.to_owned()));
    let mut lines = vec![titles.collect::<Vec<_>>()];
    lines.extend(rows.iter().map(|row| {
        let values = row.values();
        let value = |at: &usize| values.get(*at).cloned().unwrap_or_default();
        columns.iter().map(value).collect()
    }));
    aligned(&lines)
}

/// A template filled from each of several things, a line for each.
pub(crate) fn render<S: Source>(things: &[S], template: &Template) -> Result<String, Failure> {
    // Also for a list of nothing: a field that there is not is a mistake.
    let titles = line(template, S::title)?;
    let lines = things
        .iter()
        .map(|thing| line(template, |path| thing.text(path)));
    let mut lines: Vec<_> = lines.collect::<Result<_, _>>()?;
    if !template.table {
        return Ok(lines.iter().map(|line| format!("{line}\n")).collect());
    }
    lines.insert(0, titles);
    let cells = lines
        .iter()
        .map(|line| line.split('\t').map(str::to_owned).collect());
    Ok(aligned(&cells.collect::<Vec<_>>()))
}

fn line(
    template: &Template,
    value: impl Fn(&Path) -> Result<String, Failure>,
) -> Result<String, Failure> {
    let text = |part: &Part| match part {
        Part::Text(text) => Ok(text.clone()),
        Part::Value(path) => value(path),
    };
    template.parts.iter().map(text).collect()
}

/// Columns padded with blanks, two between them.
fn aligned(lines: &[Vec<String>]) -> String {
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = lines.iter().filter_map(|line| line.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..columns).map(width).collect();
    let mut text = String::new();
    for line in lines {
        let cells = line.iter().zip(&widths);
        let padded: Vec<_> = cells
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        text.push_str(padded.join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    struct Pair {
        one: u32,
        two: &'static str,
    }

    impl Row for Pair {
        const FIELDS: &'static [(&'static str, &'static str)] = &[("One", "ONE"), ("Two", "TWO")];

        fn values(&self) -> Vec<String> {
            vec![self.one.to_string(), self.two.to_owned()]
        }
    }

    const PAIRS: [Pair; 2] = [
        Pair { one: 1, two: "a" },
        Pair {
            one: 22222,
            two: "b",
        },
    ];

    fn rendered(template: &str) -> Result<String, String> {
        let template: Template = template.parse()?;
        render(&PAIRS, &template).map_err(|failure| failure.message().to_owned())
    }

    #[test]
    fn templates_are_those_of_docker() {
        assert_eq!(rendered("{{.One}}").unwrap(), "1\n22222\n");
        assert_eq!(
            rendered(r"<{{ .Two }}>\t{{.One}}").unwrap(),
            "<a>\t1\n<b>\t22222\n"
        );
        assert_eq!(
            rendered("{{json .}}").unwrap(),
            "{\"one\":1,\"two\":\"a\"}\n{\"one\":22222,\"two\":\"b\"}\n"
        );
        assert_eq!(rendered("{{json .Two}}").unwrap(), "\"a\"\n\"b\"\n");
        assert_eq!(
            rendered(r"table {{.One}}\t{{.Two}}").unwrap(),
            "ONE    TWO\n1      a\n22222  b\n"
        );
        assert_eq!(rendered("json"), rendered("{{json .}}"));
        assert!("table".parse::<Template>().unwrap().is_table());
        for (wrong, says) in [
            ("One", "`One` names no field"),
            ("", "names no field"),
            ("table One", "names no field"),
            ("jsonx", "names no field"),
            ("{{.One", "has no `}}`"),
            ("{{One}}", "is not understood"),
            ("{{range .}}", "is not understood"),
            ("{{.}}", "is not understood"),
            ("{{.One..Two}}", "is not understood"),
            ("{{.Three}}", "there are One, Two"),
            ("{{.One.Two}}", "there is no field One.Two"),
        ] {
            let error = rendered(wrong).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn tables_are_aligned_and_end_without_blanks() {
        assert_eq!(
            table(&PAIRS, &["Two", "One"]),
            "TWO  ONE\na    1\nb    22222\n"
        );
        assert_eq!(table::<Pair>(&[], &["One"]), "ONE\n");
    }
}
