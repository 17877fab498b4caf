//! Two kernels, option by option.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::error::Error;
use crate::kernel::Kernel;
use crate::request::Resolved;

/// An option that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Name without the `CONFIG_` prefix.
    pub option: String,
    /// Value in the first kernel; `n` where it is off.
    pub from: String,
    /// Value in the second.
    pub to: String,
}

/// What lies between two kernels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Options that differ, by name. What only describes the compiler counts too.
    pub options: Vec<Change>,
    /// Length of `vmlinux`, second minus first, in bytes.
    pub bytes: i64,
}

/// Compares the resolved configurations and the sizes of two kernels.
///
/// # Errors
/// A configuration cannot be read.
pub fn diff(from: &Kernel, to: &Kernel) -> Result<Difference, Error> {
    let options = changes(
        &Resolved::parse(&from.config()?),
        &Resolved::parse(&to.config()?),
    );
    let bytes = |kernel: &Kernel| i64::try_from(kernel.info.bytes).unwrap_or(i64::MAX);
    Ok(Difference {
        options,
        bytes: bytes(to).saturating_sub(bytes(from)),
    })
}

fn changes(from: &Resolved, to: &Resolved) -> Vec<Change> {
    let names: BTreeSet<_> = from
        .iter()
        .chain(to.iter())
        .map(|(option, _)| option)
        .collect();
    names
        .into_iter()
        .map(|option| Change {
            option: option.to_owned(),
            from: from.get(option).to_string(),
            to: to.get(option).to_string(),
        })
        .filter(|change| change.from != change.to)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_listed() {
        let from = Resolved::parse("CONFIG_A=y\nCONFIG_B=1\nCONFIG_C=y\n");
        let to = Resolved::parse("CONFIG_A=y\nCONFIG_B=2\nCONFIG_D=y\n");
        let changes: Vec<_> = changes(&from, &to)
            .into_iter()
            .map(|change| format!("{} {}->{}", change.option, change.from, change.to))
            .collect();
        assert_eq!(changes, ["B 1->2", "C y->n", "D n->y"]);
    }
}
