//! The name of a kernel: a hash of everything that it is made from.

use sha2::{Digest, Sha256};

/// Raised when the builder makes something else out of the same inputs.
pub(crate) const BUILDER_VERSION: u32 = 1;

/// Collects named inputs. Lengths are part of the hash, so that no two lists of
/// inputs read alike.
#[derive(Debug, Clone)]
pub(crate) struct KeyBuilder(Sha256);

impl KeyBuilder {
    pub(crate) fn new() -> Self {
        let mut key = Self(Sha256::new());
        key.input("builder", &BUILDER_VERSION.to_string());
        key
    }

    pub(crate) fn input(&mut self, name: &str, value: &str) {
        for part in [name, value] {
            self.0
                .update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_le_bytes());
            self.0.update(part);
        }
    }

    /// 40 hexadecimal digits: as unique as a git object, and short enough to read.
    pub(crate) fn finish(self) -> String {
        let mut key = hex(&self.0.finalize());
        key.truncate(40);
        key
    }
}

/// Lower-case hexadecimal digits of `bytes`.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(inputs: &[(&str, &str)]) -> String {
        let mut key = KeyBuilder::new();
        for (name, value) in inputs {
            key.input(name, value);
        }
        key.finish()
    }

    #[test]
    fn the_key_of_given_inputs_never_changes() {
        // A new value here makes every cache of every user useless: then raise
        // BUILDER_VERSION on purpose instead.
        assert_eq!(
            key(&[("source", "sha256:00"), ("compiler", "gcc 12")]),
            "24ec5714902939827b764fbb97a551c8db271736"
        );
    }

    #[test]
    fn inputs_do_not_run_into_each_other() {
        assert_ne!(key(&[("a", "bc")]), key(&[("ab", "c")]));
        assert_ne!(key(&[("a", "b"), ("c", "d")]), key(&[("a", "bcd")]));
        assert_ne!(
            key(&[("a", "b"), ("c", "d")]),
            key(&[("c", "d"), ("a", "b")])
        );
    }
}
