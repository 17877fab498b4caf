//! Any tree that can be made reads back as it was.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used
)]
#![allow(clippy::panic, clippy::indexing_slicing)]

#[path = "support/any_tree.rs"]
mod any_tree;
mod support;

use any_tree::{additions, grown};
use proptest::prelude::*;
use support::check;

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_tree_reads_back_as_it_was(additions in additions()) {
        check(&grown(additions));
    }
}
