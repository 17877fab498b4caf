//! Runs a fuzz target's own checks over the files of its corpus: what fuzzing
//! starts from, and whatever it has found.

use std::path::Path;

/// Hands every file of the corpus of `target` to `run`.
pub fn each(target: &str, run: fn(&[u8])) {
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
