//! Whatever fuzzing has found, and what it starts from: the fuzz targets' own
//! checks on every file of their corpora.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

#[path = "../../tests/fuzz/src/attached.rs"]
mod attached;
#[path = "../../tests/fuzz/src/corpus.rs"]
mod corpus;
#[path = "../../tests/fuzz/src/forward.rs"]
mod forward;
#[path = "../../tests/fuzz/src/records.rs"]
mod records;
#[path = "../../tests/fuzz/src/texts.rs"]
mod texts;

use corpus::each;

#[test]
fn attached() {
    each("attached", self::attached::attached);
}

#[test]
fn forward() {
    each("forward", self::forward::forward);
}

#[test]
fn records() {
    each("records", self::records::records);
}

#[test]
fn texts() {
    each("texts", self::texts::texts);
}

#[test]
fn config() {
    each("config", texts::config);
}
