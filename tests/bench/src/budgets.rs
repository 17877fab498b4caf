//! `budgets.toml`: the most that a figure may be, or the least.
//!
//! One `"name" = number` or `"name" = "at least number"` per line and comments: that much of
//! TOML is enough.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// What a figure has to be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Budget {
    Most(f64),
    Least(f64),
}

/// The budgets by the names of their figures.
#[derive(Debug, Default)]
pub(crate) struct Budgets(BTreeMap<String, Budget>);

impl Budgets {
    /// Reads the file.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path)
            .with_context(|| format!("read the budgets {}", path.display()))?;
        Self::parse(&text)
    }

    pub(crate) fn parse(text: &str) -> Result<Self> {
        let mut budgets = BTreeMap::new();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.split_once('#').map_or(line, |(line, _)| line).trim();
            if line.is_empty() {
                continue;
            }
            let wrong = || format!("line {number} of the budgets is not `\"name\" = number`");
            let (name, value) = line.split_once('=').with_context(wrong)?;
            let value = value.trim().trim_matches('"');
            let budget = match value.strip_prefix("at least ") {
                Some(least) => Budget::Least(least.parse().with_context(wrong)?),
                None => Budget::Most(value.parse().with_context(wrong)?),
            };
            budgets.insert(name.trim().trim_matches('"').to_owned(), budget);
        }
        Ok(Self(budgets))
    }

    /// The names that have a budget.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// The budget of a figure: of its ratio if it has one, else of its value.
    pub(crate) fn of(&self, name: &str) -> Option<Budget> {
        self.0.get(name).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_numbers_and_comments_are_read() {
        let budgets =
            Budgets::parse("# why\n\"a/b\" = 0.8 # because\n\nc = 12\ne = \"at least 5\"").unwrap();
        assert_eq!(budgets.of("a/b"), Some(Budget::Most(0.8)));
        assert_eq!(budgets.of("c"), Some(Budget::Most(12.0)));
        assert_eq!(budgets.of("e"), Some(Budget::Least(5.0)));
        assert_eq!(budgets.of("d"), None);
    }

    #[test]
    fn a_line_that_is_neither_is_named() {
        let error = Budgets::parse("a = 1\nb: 2\n").unwrap_err();
        assert!(error.to_string().contains("line 2"), "{error}");
    }
}
