//! The tables of `docs/devices.md` are true: each test is there and cites the
//! clauses that the table says, and no test that cites a clause is missing.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

/// A line of a table: names of tests, and clauses like `§2.7.5`.
struct Row {
    tests: Vec<String>,
    clauses: Vec<String>,
}

fn crate_dir() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn rows() -> Vec<Row> {
    let text = fs::read_to_string(crate_dir().join("../docs/devices.md")).unwrap();
    let rows = text
        .lines()
        .filter(|line| line.contains("::") && line.starts_with("| "));
    rows.map(|line| {
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        Row {
            tests: cells[2]
                .split(", ")
                .map(|name| name.trim_matches('`').to_owned())
                .collect(),
            clauses: clauses(cells[3]),
        }
    })
    .collect()
}

/// All `§1.2.3` in `text`.
fn clauses(text: &str) -> Vec<String> {
    text.match_indices('§')
        .map(|(at, sign)| {
            let number = &text[at + sign.len()..];
            let end = number.find(|c: char| !c.is_ascii_digit() && c != '.');
            let number = &number[..end.unwrap_or(number.len())];
            format!("§{}", number.trim_end_matches('.'))
        })
        .collect()
}

/// The file of a module of tests, `a::b::tests` or `a::tests::b`.
fn file_of(module: &str) -> PathBuf {
    let path = crate_dir().join("src").join(module.replace("::", "/"));
    let inline = path.parent().unwrap();
    [
        path.with_extension("rs"),
        path.join("mod.rs"),
        inline.with_extension("rs"),
    ]
    .into_iter()
    .find(|path| path.exists())
    .unwrap_or_else(|| panic!("there is no module {module}"))
}

/// Name and text of each test in a file: from the end of the one before to its
/// own end.
fn tests_in(source: &str) -> Vec<(&str, &str)> {
    let mut tests = Vec::new();
    let mut rest = source;
    while let Some(attribute) = rest.find("#[test]") {
        let from_attribute = &rest[attribute..];
        let name = from_attribute.split("fn ").nth(1).unwrap();
        let name = &name[..name.find('(').unwrap()];
        let indent = rest[..attribute].rsplit('\n').next().unwrap();
        let close = format!("\n{indent}}}\n");
        let end = attribute + from_attribute.find(&close).unwrap() + close.len();
        // Comments before the attribute belong to it; so does what is between
        // the tests, which has no clauses.
        tests.push((name, &rest[..end]));
        rest = &rest[end..];
    }
    tests
}

#[test]
fn tests_in_the_tables_cite_their_clauses() {
    let rows = rows();
    assert!(rows.len() > 100, "the tables were found");
    for row in rows {
        let mut cited = HashSet::new();
        for test in &row.tests {
            let (module, name) = test.rsplit_once("::").unwrap();
            let source = fs::read_to_string(file_of(module)).unwrap();
            let tests = tests_in(&source);
            let (_, text) = tests
                .iter()
                .find(|(found, _)| *found == name)
                .unwrap_or_else(|| panic!("there is no test {test}"));
            cited.extend(clauses(text));
        }
        for clause in &row.clauses {
            assert!(
                cited.contains(clause),
                "{:?} do not cite {clause}",
                row.tests
            );
        }
    }
}

#[test]
fn tests_that_cite_clauses_are_in_the_tables() {
    let listed: HashSet<String> = rows().into_iter().flat_map(|row| row.tests).collect();
    let mut missing = Vec::new();
    for module in [
        "transport::tests::properties",
        "transport::tests::queues",
        "transport::tests::registers",
        "transport::tests::saved",
        "transport::tests::status",
        "ring::tests::chains",
        "ring::tests::notifications",
        "ring::tests::properties",
        "block::tests::hostile",
        "block::tests::ranges",
        "block::tests::requests",
        "rng::tests",
        "vsock::connection::tests",
        "vsock::tests::bulk",
        "vsock::tests::closing",
        "vsock::tests::connecting",
        "vsock::tests::credit",
        "vsock::tests::event_loop",
        "vsock::tests::hostile",
        "vsock::tests::random",
        "vsock::tests::snapshot",
        "legacy::tests",
        "legacy::i8042::tests",
        "legacy::ports::tests",
    ] {
        let source = fs::read_to_string(file_of(module)).unwrap();
        for (name, text) in tests_in(&source) {
            // The module's own comment is before its first test.
            let cites = text.lines().map(str::trim).any(|line| {
                line.starts_with("//") && !line.starts_with("//!") && line.contains('§')
            });
            let test = format!("{module}::{name}");
            if cites && !listed.contains(&test) {
                missing.push(test);
            }
        }
    }
    assert!(missing.is_empty(), "not in docs/devices.md: {missing:#?}");
}
