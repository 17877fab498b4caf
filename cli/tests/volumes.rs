//! `flashpan volume` as its user sees it. No VM is needed.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

#[path = "support/registry.rs"]
mod registry;
#[path = "support/store.rs"]
mod store;

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Stdio;

use store::{PROGRAM, World};

fn file(world: &World, name: &str) -> PathBuf {
    world.path(".local/state/flashpan/volumes").join(name)
}

#[test]
fn a_new_volume_is_told_in_the_words_that_programs_expect() {
    let world = World::new();
    // A plain number is MiB, blanks are not part of a name.
    assert_eq!(
        world.ok("c", &["volume", "create", " one ", "--size", "16"]),
        "Created volume one (16 MB)\n"
    );
    let path = file(&world, "two.ext4").display().to_string();
    assert_eq!(
        world.ok("c", &["volume", "create", "two", "--size", "16M", "--json"]),
        format!("{{\"name\":\"two\",\"size\":\"16.0 MB\",\"path\":\"{path}\"}}\n")
    );
    let list = world.ok("c", &["volume", "ls", "--json"]);
    assert_eq!(list.lines().count(), 1, "{list}");
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    let names: Vec<_> = list
        .as_array()
        .unwrap()
        .iter()
        .map(|v| &v["name"])
        .collect();
    assert_eq!(names, ["one", "two"]);
    assert_eq!(list[1]["path"], path);
    assert_eq!(list[1]["size"], "16.0 MB");
    assert_eq!(
        world.ok("c", &["volume", "cp", "one ", "three"]),
        "Copied volume one to three\n"
    );
    assert_eq!(
        world.ok("c", &["volume", "remove", " three"]),
        "Removed volume three\n"
    );
    for (words, expected) in [
        (&["create", "one"][..], "named volume already exists: one"),
        (&["cp", "one", "two"], "named volume already exists: two"),
        (
            &["cp", "one", " one"],
            "copy named volume: source and destination must be different",
        ),
        (
            &["create", " "],
            "invalid volume name: name cannot be empty",
        ),
        (&["create", "a/b"], "invalid volume name: \"a/b\""),
        (
            &["create", "new", "--size", "0"],
            "create named volume: size must be > 0 MB",
        ),
        (&["rm", "three"], "named volume not found: three"),
    ] {
        let text = world.complaint("c", &[&["volume"], words].concat());
        let rest = text.strip_prefix("flashpan: error: ").unwrap();
        assert!(rest.starts_with(expected), "{text}");
    }
}

#[test]
fn one_failure_does_not_keep_the_others_from_being_removed() {
    let world = World::new();
    for name in ["a", "b"] {
        world.ok("c", &["volume", "create", name, "--size", "16"]);
    }
    let output = world.run("c", &["volume", "rm", "a", "none", "b", "nil"]);
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        "Removed volume a\nRemoved volume b\n"
    );
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        "flashpan: error: named volume not found: none\n\
         flashpan: error: named volume not found: nil\n"
    );
}

#[test]
fn what_became_of_volumes_is_told_as_json() {
    let world = World::new();
    world.ok("c", &["volume", "create", "one", "--size", "16"]);
    let json = |words: &[&str]| -> serde_json::Value {
        serde_json::from_str(&world.ok("c", &[&["volume"], words].concat())).unwrap()
    };
    let copy = json(&["cp", "--json", "one", "two"]);
    assert_eq!(copy["name"], "two");
    assert_eq!(copy["path"], file(&world, "two.ext4").display().to_string());
    let larger = json(&["resize", "--json", "one", "32M"]);
    assert_eq!(
        (&larger["name"], &larger["size_bytes"]),
        (&"one".into(), &(32 << 20).into())
    );
    let removed = world.ok("c", &["volume", "rm", "--json", "one", "two"]);
    assert_eq!(removed, "{\"name\":\"one\"}\n{\"name\":\"two\"}\n");
}

#[test]
fn only_files_are_volumes() {
    let world = World::new();
    fs::create_dir_all(file(&world, "folder.ext4")).unwrap();
    assert_eq!(world.ok("c", &["volume", "ls", "--json"]), "[]\n");
}

#[test]
fn who_comes_second_with_a_name_hears_that_it_is_taken() {
    let world = World::new();
    let create = |name| world.command("c", &["volume", "create", name, "--size", "16"]);
    // While another one is making it.
    world.ok("c", &["volume", "create", "first", "--size", "16"]);
    let maker = File::create(file(&world, ".slow.ext4.new")).unwrap();
    maker.lock().unwrap();
    let text = store::complaint(&create("slow").output().unwrap());
    assert!(
        text.ends_with("named volume already exists: slow"),
        "{text}"
    );
    drop(maker);

    let creators: Vec<_> = (0..8)
        .map(|_| {
            let mut create = create("many");
            create.stdout(Stdio::piped()).stderr(Stdio::piped());
            create.spawn().unwrap()
        })
        .collect();
    let mut made = 0;
    for creator in creators {
        let output = creator.wait_with_output().unwrap();
        if output.status.success() {
            made += 1;
        } else {
            let text = store::complaint(&output);
            assert!(
                text.ends_with("named volume already exists: many"),
                "{text}"
            );
        }
    }
    assert_eq!(made, 1);
}

#[test]
fn a_full_disk_is_told_with_its_place() {
    let world = World::new();
    // So that the template is not what there is no room for.
    world.ok("c", &["volume", "create", "first", "--size", "1G"]);
    let state = ".local/state/flashpan/volumes";
    let script = format!("! {PROGRAM} volume create second --size 1G 2> error && ls -A {state}");
    let output = world.with_little_room(state, "64k", &script);
    let error = fs::read_to_string(world.path("error")).unwrap_or_default();
    assert!(output.status.success(), "{output:?} {error}");
    assert!(output.stdout.is_empty(), "{output:?}");
    assert_eq!(error.lines().count(), 1, "{error}");
    let place = format!("{} has ", world.path(state).display());
    for words in ["No space left", &place, " free now; ", "flashpan volume rm"] {
        assert!(error.contains(words), "{words}: {error}");
    }
}
