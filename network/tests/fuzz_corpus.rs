//! Whatever fuzzing has found, and what it starts from: the fuzz targets' own checks on
//! every file of their corpora.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

#[path = "../../tests/fuzz/src/corpus.rs"]
mod corpus;
#[path = "../../tests/fuzz/src/dns.rs"]
mod dns;
#[path = "../../tests/fuzz/src/edit.rs"]
mod edit;
#[path = "../../tests/fuzz/src/hello.rs"]
mod hello;

#[test]
fn dns() {
    corpus::each("dns", self::dns::dns);
}

#[test]
fn hello() {
    corpus::each("hello", self::hello::hello);
}

#[test]
fn edit() {
    corpus::each("edit", self::edit::edit);
}
