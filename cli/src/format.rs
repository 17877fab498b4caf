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
    /// `{{.Field}}`
    Field(String),
    /// `{{json .}}`
    Json,
}

impl FromStr for Template {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
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
            parts.push(match inside.trim() {
                "json ." => Part::Json,
                field => {
                    let name = field.strip_prefix('.').unwrap_or_default();
                    let good = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric());
                    match good {
                        true => Part::Field(name.to_owned()),
                        false => {
                            return Err(format!(
                                "`{{{{{inside}}}}}` is not understood; write {{{{.Field}}}} or {{{{json .}}}}"
                            ));
                        }
                    }
                }
            });
            rest = behind;
        }
        if !rest.is_empty() {
            parts.push(Part::Text(unescape(rest)));
        }
        Ok(Self { parts, table })
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

/// What an option says of how a list is printed.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Style<'a> {
    /// A table of these fields.
    Table(&'a [&'a str]),
    Json,
    Template(&'a Template),
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

fn render<R: Row>(rows: &[R], template: &Template) -> Result<String, Failure> {
    for part in &template.parts {
        if let Part::Field(name) = part
            && !R::FIELDS.iter().any(|(field, _)| field == name)
        {
            let known: Vec<_> = R::FIELDS.iter().map(|(field, _)| *field).collect();
            return Err(Failure::new(format!(
                "--format: there is no field {name}; there are {}",
                known.join(", ")
            )));
        }
    }
    let mut lines = Vec::new();
    if template.table {
        lines.push(line(template, R::FIELDS.iter().map(|f| f.1), R::FIELDS, ""));
    }
    for row in rows {
        let json = serde_json::to_string(row)
            .map_err(|e| Failure::new(format!("cannot write JSON: {e}")))?;
        let values = row.values();
        lines.push(line(
            template,
            values.iter().map(String::as_str),
            R::FIELDS,
            &json,
        ));
    }
    if template.table {
        let cells = lines
            .iter()
            .map(|line| line.split('\t').map(str::to_owned).collect())
            .collect::<Vec<_>>();
        return Ok(aligned(&cells));
    }
    Ok(lines.iter().map(|line| format!("{line}\n")).collect())
}

fn line<'a>(
    template: &Template,
    values: impl Iterator<Item = &'a str>,
    fields: &[(&str, &str)],
    json: &str,
) -> String {
    let values: Vec<_> = values.collect();
    let value = |name: &String| {
        let at = fields.iter().position(|(field, _)| field == name);
        at.and_then(|at| values.get(at))
            .copied()
            .unwrap_or_default()
    };
    let text = |part: &Part| match part {
        Part::Text(text) => text.clone(),
        Part::Field(name) => value(name).to_owned(),
        Part::Json => json.to_owned(),
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
        assert_eq!(
            rendered(r"table {{.One}}\t{{.Two}}").unwrap(),
            "ONE    TWO\n1      a\n22222  b\n"
        );
        for (wrong, says) in [
            ("{{.One", "has no `}}`"),
            ("{{One}}", "is not understood"),
            ("{{range .}}", "is not understood"),
            ("{{.}}", "is not understood"),
            ("{{.Three}}", "there are One, Two"),
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
