//! Whatever fuzzing has found, and what it starts from: the fuzz targets' own
//! checks on every file of their corpora.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used
)]
#![allow(clippy::panic, clippy::indexing_slicing)]

#[path = "../../tests/fuzz/src/entry.rs"]
mod entry;
mod support;

use std::path::Path;

fn each(target: &str, run: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus");
    let mut count = 0;
    for file in std::fs::read_dir(corpus.join(target)).unwrap() {
        let path = file.unwrap().path();
        println!("{}", path.display());
        run(&std::fs::read(&path).unwrap());
        count += 1;
    }
    assert!(count >= 5, "the corpus of {target} is gone");
}

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
