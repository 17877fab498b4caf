//! What can be done without async is what can be done with it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Every source file below a directory.
fn sources(directory: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            all.push(path);
        }
    }
    all
}

/// The public methods that a file gives a type.
fn methods(file: &Path, of: &str) -> Vec<String> {
    let text = fs::read_to_string(file).unwrap();
    let begin = format!("impl {of} {{");
    let mut inside = false;
    let mut found = Vec::new();
    for line in text.lines() {
        match line {
            line if line == begin => inside = true,
            "}" => inside = false,
            line if inside => {
                let words = line.strip_prefix("    pub ").map(str::split_whitespace);
                let name = words.and_then(|mut words| words.find(|word| word.contains('(')));
                let name = name.and_then(|name| name.split(['(', '<']).next());
                found.extend(name.filter(|name| !name.is_empty()).map(str::to_owned));
            }
            _ => {}
        }
    }
    found
}

#[test]
fn everything_that_can_be_done_can_be_done_without_async() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (ours, theirs): (Vec<_>, Vec<_>) = sources(&source).into_iter().partition(|path| {
        let inside = path.strip_prefix(&source).unwrap();
        inside.starts_with("blocking") || inside == Path::new("blocking.rs")
    });
    let all = |files: &[PathBuf], of: &str| -> BTreeSet<String> {
        files.iter().flat_map(|file| methods(file, of)).collect()
    };
    // Those that are not async, or are an iterator's; what `boot` of a builder is.
    let differ = [
        ("Sandbox", &["builder"][..], &["boot"][..], 40),
        ("Launch", &[][..], &[][..], 10),
        ("Checked", &[][..], &[][..], 3),
        ("Process", &[][..], &[][..], 5),
        ("FileReader", &["next_chunk"][..], &[][..], 1),
        ("Watch", &["next"][..], &[][..], 0),
        ("Events", &["next"][..], &[][..], 0),
        ("Logs", &["next"][..], &[][..], 2),
    ];
    for (of, only_theirs, only_ours, least) in differ {
        let mut expected = all(&theirs, of);
        for method in only_theirs {
            assert!(expected.remove(*method), "{of}::{method} is not there");
        }
        expected.extend(only_ours.iter().map(|method| (*method).to_owned()));
        assert!(expected.len() >= least, "{of}: {expected:?}");
        assert_eq!(all(&ours, of), expected, "of {of}");
    }
}
