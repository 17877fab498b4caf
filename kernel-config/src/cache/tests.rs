use super::*;
use crate::kernel::{FORMAT, FragmentRecord, KernelInfo, name};

/// Puts a kernel into the cache as a build would.
fn add(cache: &Cache, hash: &str, fragments: &[&str], request: &str, built_at: u64) {
    let directory = cache.directory(hash);
    fs::create_dir_all(&directory).unwrap();
    let record = |name: &&str| FragmentRecord {
        name: (*name).into(),
        sha256: String::new(),
    };
    let info = KernelInfo {
        format: FORMAT,
        hash: hash.into(),
        name: name(fragments.iter().copied()),
        release: "6.12.1-flashpan".into(),
        source: "/src".into(),
        source_identity: "sha256:00".into(),
        fragments: fragments.iter().map(record).collect(),
        request_sha256: request.into(),
        compiler: "gcc".into(),
        linker: "ld".into(),
        bytes: 4,
        sha256: String::new(),
        built_at,
        build_seconds: 1.0,
        jobs: 1,
        steps: 1,
        options: 1,
    };
    fs::write(directory.join("vmlinux"), "ELF!").unwrap();
    fs::write(
        directory.join("meta.json"),
        serde_json::to_string(&info).unwrap(),
    )
    .unwrap();
}

fn cache() -> (tempfile::TempDir, Cache) {
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::at(directory.path());
    (directory, cache)
}

fn current() -> String {
    merged(&[]).unwrap().digest()
}

#[test]
fn an_empty_cache_says_what_to_do() {
    let (_directory, cache) = cache();
    assert_eq!(cache.list().unwrap(), []);
    let error = cache.find(None).unwrap_err().to_string();
    assert!(error.contains("flashpan kernel build"), "{error}");
    let error = cache.find(Some("debug")).unwrap_err().to_string();
    assert!(
        error.contains("no kernel `debug`") && error.ends_with("there is none"),
        "{error}"
    );
}

#[test]
fn the_default_is_the_newest_base_of_this_version() {
    let (_directory, cache) = cache();
    add(&cache, "aaaa1", &[], &current(), 1);
    add(&cache, "aaaa2", &[], &current(), 2);
    add(&cache, "bbbb1", &[], "of another version", 3);
    add(&cache, "cccc1", &["debug"], "x", 4);
    assert_eq!(cache.find(None).unwrap().info.hash, "aaaa2");
    // By name too: this version's before a newer one of another.
    assert_eq!(cache.find(Some("base")).unwrap().info.hash, "aaaa2");
    let listed: Vec<_> = cache
        .list()
        .unwrap()
        .into_iter()
        .map(|k| k.info.hash)
        .collect();
    assert_eq!(listed, ["cccc1", "bbbb1", "aaaa2", "aaaa1"]);
}

#[test]
fn a_kernel_is_named_by_its_fragments_or_its_hash() {
    let (_directory, cache) = cache();
    add(&cache, "abcd11", &["debug"], "x", 1);
    add(&cache, "abcd22", &["debug", "mine"], "x", 2);
    for wanted in ["debug", "base+debug", "abcd1", "abcd11"] {
        assert_eq!(
            cache.find(Some(wanted)).unwrap().info.hash,
            "abcd11",
            "{wanted}"
        );
    }
    assert_eq!(cache.find(Some("debug+mine")).unwrap().info.hash, "abcd22");
    let error = cache.find(Some("abcd")).unwrap_err().to_string();
    assert!(
        error.contains("abcd11") && error.contains("abcd22"),
        "{error}"
    );
    // Too few digits are no name, however few kernels there are.
    let error = cache.find(Some("abc")).unwrap_err().to_string();
    assert!(
        error.ends_with("there are base+debug, base+debug+mine"),
        "{error}"
    );
}

#[test]
fn what_is_not_a_whole_kernel_is_not_there() {
    let (_directory, cache) = cache();
    add(&cache, "aaaa1", &[], &current(), 1);
    fs::remove_file(cache.directory("aaaa1").join("vmlinux")).unwrap();
    add(&cache, "aaaa2", &[], &current(), 1);
    fs::write(cache.directory("aaaa2").join("meta.json"), "{").unwrap();
    add(&cache, "aaaa3", &[], &current(), 1);
    fs::rename(cache.directory("aaaa3"), cache.directory(".new-aaaa3")).unwrap();
    assert_eq!(cache.list().unwrap(), []);
}

#[test]
fn removing_leaves_nothing_of_one_and_all_of_the_others() {
    let (_directory, cache) = cache();
    add(&cache, "aaaa1", &[], &current(), 1);
    add(&cache, "bbbb1", &["debug"], "x", 2);
    assert_eq!(cache.remove("debug").unwrap().info.hash, "bbbb1");
    let entries = fs::read_dir(&cache.kernels).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, [".locks", "aaaa1"]);
    assert_eq!(cache.list().unwrap().len(), 1);
}

#[test]
fn the_cache_of_the_user_follows_xdg() {
    let root = |xdg: Option<&str>, home: Option<&str>| {
        user_root(|name| match name {
            "XDG_CACHE_HOME" => xdg.map(Into::into),
            "HOME" => home.map(Into::into),
            _ => None,
        })
    };
    assert_eq!(root(Some("/c"), Some("/h")), Some("/c/flashpan".into()));
    assert_eq!(
        root(Some("relative"), Some("/h")),
        Some("/h/.cache/flashpan".into())
    );
    assert_eq!(root(None, Some("/h")), Some("/h/.cache/flashpan".into()));
    assert_eq!(root(None, Some("")), None);
}
