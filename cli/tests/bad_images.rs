//! Archives and registries that are not what they should be: one line, and nothing
//! is left.
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

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use registry::{noise, tar, tool};
use store::{World, complaint, layout};

/// Changes a file of a copy of the layout.
fn spoiled(world: &World, change: impl FnOnce(&Path)) -> String {
    let copy = world.path("spoiled");
    let _ = fs::remove_dir_all(&copy);
    let (from, to) = (layout().display().to_string(), copy.display().to_string());
    tool("cp", &["-r", &from, &to]);
    change(&copy);
    to
}

/// The blobs of a layout from the largest to the smallest: a layer comes first.
fn blobs(layout: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(layout.join("blobs/sha256")).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort_by_key(|path| std::cmp::Reverse(fs::metadata(path).unwrap().len()));
    paths
}

/// The manifest that the index names.
fn manifest(layout: &Path) -> PathBuf {
    let index = fs::read_to_string(layout.join("index.json")).unwrap();
    let named = |path: &PathBuf| index.contains(path.file_name().unwrap().to_str().unwrap());
    blobs(layout).into_iter().find(named).unwrap()
}

/// Replaces a blob, and everything that names it: the manifests of earlier steps
/// are still there.
fn replace(layout: &Path, old: &Path, bytes: &[u8]) {
    let digest = |path: &Path| {
        let output = Command::new("sha256sum").arg(path).output().unwrap();
        String::from_utf8_lossy(&output.stdout)[..64].to_owned()
    };
    let hex = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    let size = fs::metadata(old).unwrap().len();
    let new = old.with_file_name("new");
    fs::write(&new, bytes).unwrap();
    let (was, is) = (hex(old), digest(&new));
    fs::remove_file(old).unwrap();
    fs::rename(&new, old.with_file_name(&is)).unwrap();
    let sizes = (
        format!("\"size\":{size}"),
        format!("\"size\":{}", bytes.len()),
    );
    let index = layout.join("index.json");
    for path in blobs(layout).into_iter().chain([index.clone()]) {
        let Ok(text) = fs::read_to_string(&path) else {
            continue;
        };
        if !text.contains(&was) {
            continue;
        }
        // The size that belongs to it is the one next to it.
        let at = text.find(&was).unwrap();
        let end = text[at..].find('}').map_or(text.len(), |end| at + end);
        let changed = text[..end].replace(&was, &is).replace(&sizes.0, &sizes.1) + &text[end..];
        if path == index {
            fs::write(&path, changed).unwrap();
        } else {
            replace(layout, &path, changed.as_bytes());
        }
    }
}

#[test]
fn bad_archives_are_one_line_and_leave_nothing() {
    let world = World::new();
    let import = |place: &str, words: &[&str]| {
        let text = world.complaint("c", &["image", "import", "app", place]);
        for word in words {
            assert!(text.contains(word), "{word:?}: {text}");
        }
        assert_eq!(world.files("c"), [""; 0], "{text}");
        assert_eq!(world.ok("c", &["image", "ls", "-q"]), "");
    };
    let text = |path: PathBuf| path.display().to_string();
    import(
        "/nowhere/at/all.tar",
        &["/nowhere/at/all.tar", "No such file"],
    );
    let notes = world.path("notes");
    fs::create_dir(&notes).unwrap();
    fs::write(notes.join("todo.txt"), "x").unwrap();
    tar(&notes, &world.path("notes.tar"));
    import(
        &text(world.path("notes.tar")),
        &["holds no image", "docker save"],
    );
    fs::write(world.path("noise"), noise(100_000, 7)).unwrap();
    import(&text(world.path("noise")), &["holds no image"]);

    import(
        &spoiled(&world, |l| fs::remove_file(&blobs(l)[0]).unwrap()),
        &["missing"],
    );
    let flip = |layout: &Path| {
        let path = blobs(layout)[0].clone();
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(path, bytes).unwrap();
    };
    import(&spoiled(&world, flip), &["digest", "sha256:"]);
    let cut = |layout: &Path| {
        let path = blobs(layout)[0].clone();
        let bytes = fs::read(&path).unwrap();
        fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
    };
    import(&spoiled(&world, cut), &["bytes", "should have"]);
    // Right digests of the wrong things from here on.
    let corrupt = |layout: &Path| {
        let path = blobs(layout)[0].clone();
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle..middle + 100].fill(0xff);
        replace(layout, &path, &bytes);
    };
    import(&spoiled(&world, corrupt), &["root image of", "layer"]);
    let truncated = |layout: &Path| {
        let path = blobs(layout)[0].clone();
        let bytes = fs::read(&path).unwrap();
        replace(layout, &path, &bytes[..bytes.len() / 2]);
    };
    import(&spoiled(&world, truncated), &["layer"]);
    let rewrite = |from: &'static str, to: &'static str| {
        move |layout: &Path| {
            let path = manifest(layout);
            let text = fs::read_to_string(&path).unwrap();
            assert!(text.contains(from), "{text}");
            replace(layout, &path, text.replacen(from, to, 1).as_bytes());
        }
    };
    let media = rewrite("image.layer.v1.tar+gzip", "image.cake.v1.tar+gzip");
    import(&spoiled(&world, media), &["cake"]);
    let absurd = |layout: &Path| {
        let path = manifest(layout);
        let text = fs::read_to_string(&path).unwrap();
        let at = text.find("\"layers\"").unwrap();
        let size = at + text[at..].find("\"size\":").unwrap() + 7;
        let end = size + text[size..].find(['}', ',']).unwrap();
        let text = format!("{}9223372036854775807{}", &text[..size], &text[end..]);
        replace(layout, &path, text.as_bytes());
    };
    import(&spoiled(&world, absurd), &["9223372036854775807"]);
}

#[test]
fn bad_registries_are_one_line_and_leave_nothing() {
    let world = World::new();
    let registry = world.registry();
    let fails = |image: &str, words: &[&str]| {
        let text = world.complaint("c", &["pull", image]);
        for word in words {
            assert!(text.contains(word), "{word:?}: {text}");
        }
        assert_eq!(world.files("c"), [""; 0], "{text}");
    };
    fails(&registry.image("nothing"), &["no such image", "nothing"]);
    fails(&registry.image("app:none"), &["no such image", "none"]);
    fails("Upper/Case", &["Upper/Case", "lower case"]);
    let text = complaint(
        &world
            .command("c", &["pull", &registry.image("app")])
            .env("FLASHPAN_INSECURE_REGISTRIES", "")
            .output()
            .unwrap(),
    );
    assert!(
        text.contains("plain HTTP") && text.contains("insecure"),
        "{text}"
    );
    let kernel = world.path("vmlinux");
    fs::write(&kernel, "\x7fELF").unwrap();
    let nothing = registry.image("nothing");
    let mut run = world.command("c", &["run", "--ephemeral", "--image", &nothing, "--", "x"]);
    let text = complaint(&run.env("FLASHPAN_KERNEL", &kernel).output().unwrap());
    assert!(
        text.contains("no such image") && text.contains(&nothing),
        "{text}"
    );
}

#[test]
fn what_is_wrong_besides_is_said_before_a_pull() {
    let world = World::new();
    let kernel = world.path("vmlinux");
    fs::write(&kernel, "\x7fELF").unwrap();
    // Nobody who pulls gets an answer from it.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    silent.set_nonblocking(true).unwrap();
    let image = format!("{}/app", silent.local_addr().unwrap());
    world.ok("c", &["volume", "create", "busy", "--size", "16M"]);
    let volume = world.path(".local/state/flashpan/volumes/busy.ext4");
    let busy = fs::File::open(volume).unwrap();
    busy.try_lock().unwrap();
    for (options, reason) in [
        (&["--disk", "/nowhere/disk:/data"][..], "/nowhere/disk"),
        (&["--disk", "@none:/data"], "named volume not found: none"),
        (&["--disk", "@busy:/data"], "volume busy is in use"),
        (&["--disk-size", "1M"], "16 MiB"),
        (&["--disk-size", "99T"], "16 MiB"),
        (&["--memory", "1M"], "too little"),
        (&["--workdir", "relative"], "relative"),
        (&["--ca", "/nowhere/ca.pem"], "/nowhere/ca.pem"),
        (&["--kernel", "/nowhere/vmlinux"], "/nowhere/vmlinux"),
    ] {
        let mut words = vec!["run", "--image", &image];
        words.extend(options);
        words.extend(["--", "true"]);
        let mut run = world.command("c", &words);
        let output = run.env("FLASHPAN_KERNEL", &kernel).output().unwrap();
        let text = complaint(&output);
        assert!(text.contains(reason), "{options:?}: {text}");
        let asked = silent.accept().map(drop).unwrap_err();
        assert_eq!(asked.kind(), std::io::ErrorKind::WouldBlock, "{options:?}");
    }
}
