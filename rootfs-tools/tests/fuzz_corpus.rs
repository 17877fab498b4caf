//! Whatever fuzzing has found, and what it starts from: the fuzz targets' own
//! checks on every file of their corpora.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used
)]
#![allow(clippy::panic, clippy::indexing_slicing)]

#[path = "../../tests/fuzz/src/corpus.rs"]
mod corpus;
#[path = "../../tests/fuzz/src/entry.rs"]
mod entry;
mod support;

use corpus::each;

#[test]
fn tar() {
    each("tar", entry::tar);
}

#[test]
fn convert() {
    each("convert", entry::convert);
}

#[test]
fn decompress() {
    each("decompress", entry::decompress);
}

#[test]
fn archive() {
    each("archive", entry::archive);
}
