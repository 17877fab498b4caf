//! `flashpan image` as its user sees it: pulls from the distribution's registry
//! on loopback and imports of what skopeo writes. No VM is needed.
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
use std::path::Path;
use std::process::{Command, Stdio};

use registry::{skopeo, tool};
use store::{World, complaint, from_layout, layout};

#[test]
fn a_pull_an_archive_and_a_layout_give_the_same_bytes() {
    let world = World::new();
    let registry = world.registry();
    let app = registry.image("app");
    let text = world.ok("pulled", &["pull", &app, "-t", "mine"]);
    assert!(
        text.starts_with("Tagged: mine:latest\nDigest: sha256:"),
        "{text}"
    );
    let pulled = world.inspect("pulled", "mine");
    assert_eq!(pulled["config"]["Cmd"][0], "true");
    assert_eq!(pulled["config"]["Env"][0], "A=b");
    assert_eq!(pulled["layers"].as_array().unwrap().len(), 3);
    let image = |inspected: &serde_json::Value| {
        let root = inspected["root_image"].as_str().unwrap();
        (inspected["id"].clone(), fs::read(root).unwrap())
    };
    let expected = image(&pulled);

    // As the registry has it with other layers of the same content.
    let zstd = format!("docker://{}", registry.image("zstd"));
    let options = [
        "--dest-compress-format",
        "zstd",
        "--dest-oci-accept-uncompressed-layers",
    ];
    skopeo(&options[..2], &from_layout(), &zstd);
    world.ok("zstd", &["image", "pull", &registry.image("zstd"), "-q"]);
    assert!(image(&world.inspect("zstd", &registry.image("zstd"))) == expected);

    let docker = world.path("docker.tar");
    skopeo(
        &[],
        &from_layout(),
        &format!("docker-archive:{}:app:1", docker.display()),
    );
    let oci = world.path("oci.tar");
    skopeo(
        &[],
        &from_layout(),
        &format!("oci-archive:{}:app:1", oci.display()),
    );
    let docker = docker.display().to_string();
    tool("gzip", &["-k", "-1", &docker]);
    tool("zstd", &["-q", "-1", &docker]);
    let oci = oci.display().to_string();
    let places = [
        docker.clone(),
        format!("{docker}.gz"),
        format!("{docker}.zst"),
        oci,
        layout().display().to_string(),
    ];
    for place in &places {
        let name = Path::new(place).file_name().unwrap().to_str().unwrap();
        let cache = &format!("cache-{name}");
        let text = world.ok(cache, &["image", "import", "mine", place]);
        assert!(
            text.starts_with("Imported: mine:latest\nLayers: 3\nSize: "),
            "{text}"
        );
        assert!(image(&world.inspect(cache, "mine")) == expected, "{place}");
        assert_eq!(
            world.ok(cache, &["image", "gc"]),
            "Removed 0 unreferenced blobs\nFreed: 0 B\n"
        );
    }
    // And through standard input, a pipe and a file, by its own name.
    let mut cat = Command::new("cat")
        .arg(&docker)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut import = world.command("pipe", &["image", "import", "-"]);
    let output = import.stdin(cat.stdout.take().unwrap()).output().unwrap();
    cat.wait().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(image(&world.inspect("pipe", "app:1")) == expected);
    let mut import = world.command("file", &["image", "import", "other"]);
    let output = import
        .stdin(fs::File::open(&docker).unwrap())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(image(&world.inspect("file", "other")) == expected);
}

#[test]
fn lists_tags_and_removals() {
    let world = World::new();
    let place = layout().display().to_string();
    assert_eq!(
        world.ok("c", &["image", "ls"]),
        "TAG  SOURCE  SIZE  CREATED\n"
    );
    assert_eq!(world.ok("c", &["image", "ls", "--json"]), "[]\n");
    world.ok("c", &["image", "import", "app", &place]);
    assert_eq!(
        world.ok("c", &["image", "tag", "app", "base:v1"]),
        "Tagged: base:v1\n"
    );
    let list = world.ok("c", &["image", "ls"]);
    let rows: Vec<Vec<&str>> = list
        .lines()
        .map(|l| l.split_whitespace().collect())
        .collect();
    assert_eq!(rows[0], ["TAG", "SOURCE", "SIZE", "CREATED"]);
    assert_eq!(
        (rows[1][0], rows[1][1], rows[1][3]),
        ("app:latest", "import", "MB")
    );
    assert_eq!((rows[2][0], rows[2][1]), ("base:v1", "tag"));
    let ids = world.ok("c", &["image", "ls", "-q"]);
    let id = ids.lines().next().unwrap();
    assert_eq!(ids, format!("{id}\n{id}\n"));
    assert_eq!(world.inspect("c", id)["tag"], "app:latest");
    assert_eq!(
        world.ok("c", &["image", "rm", "docker.io/library/app"]),
        "Removed app:latest\n"
    );
    assert!(!world.files("c").is_empty());
    assert_eq!(world.ok("c", &["image", "rm", id]), "Removed base:v1\n");
    assert_eq!(world.files("c"), [""; 0]);
    let text = world.complaint("c", &["image", "rm", "app"]);
    assert_eq!(text, "flashpan: error: image not found: \"app\"");
}

/// The layout with an index of two platforms beside its image, as `multi`; the
/// digest of the index. Both have the same manifest: it is names that matter.
#[test]
fn what_became_of_images_is_told_as_json() {
    let world = World::new();
    let place = layout().display().to_string();
    let json = |words: &[&str]| -> serde_json::Value {
        serde_json::from_str(&world.ok("c", &[&["image"], words].concat())).unwrap()
    };
    let imported = json(&["import", "--json", "app", &place]);
    assert_eq!(imported["tag"], "app:latest");
    let tagged = json(&["tag", "--json", "app", "base:v1"]);
    assert_eq!(
        (&tagged["tag"], &tagged["id"]),
        (&"base:v1".into(), &imported["id"])
    );
    assert_eq!(json(&["inspect", "--json", "app"])[0]["id"], imported["id"]);
    let gc = json(&["gc", "--json", "--dry-run"]);
    assert_eq!(
        (&gc["dry_run"], &gc["files"]),
        (&true.into(), &serde_json::json!([]))
    );
    let removed = json(&["rm", "--json", "app"]);
    let name = "docker.io/library/app:latest";
    assert_eq!(
        removed,
        serde_json::json!({"tag": "app:latest", "name": name})
    );
}

fn with_index(world: &World) -> (String, String) {
    let copy = world.path("multi");
    let (from, to) = (layout().display().to_string(), copy.display().to_string());
    tool("cp", &["-r", &from, &to]);
    let path = copy.join("index.json");
    let mut top: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let mut manifest = top["manifests"][0].clone();
    manifest.as_object_mut().unwrap().remove("annotations");
    let platforms = ["amd64", "arm64"].map(|architecture| {
        let mut manifest = manifest.clone();
        let platform = serde_json::json!({"os": "linux", "architecture": architecture});
        manifest["platform"] = platform;
        manifest
    });
    let media_type = "application/vnd.oci.image.index.v1+json";
    let index = serde_json::json!({
        "schemaVersion": 2, "mediaType": media_type, "manifests": platforms,
    });
    let bytes = index.to_string();
    fs::write(copy.join("new"), &bytes).unwrap();
    let sum = Command::new("sha256sum")
        .arg(copy.join("new"))
        .output()
        .unwrap();
    let hex = String::from_utf8_lossy(&sum.stdout)[..64].to_owned();
    fs::rename(copy.join("new"), copy.join("blobs/sha256").join(&hex)).unwrap();
    let digest = format!("sha256:{hex}");
    top["manifests"] = serde_json::json!([{
        "mediaType": media_type, "digest": &digest, "size": bytes.len(),
        "annotations": {"org.opencontainers.image.ref.name": "multi"},
    }]);
    fs::write(path, top.to_string()).unwrap();
    (format!("oci:{to}:multi"), digest)
}

#[test]
fn what_is_printed_of_an_image_can_be_used_for_it() {
    let world = World::new();
    let registry = world.registry();
    let (from, digest) = with_index(&world);
    let multi = registry.image("multi");
    skopeo(&["--all"], &from, &format!("docker://{multi}"));
    // The digest is that of the index, as docker has it.
    let text = world.ok("c", &["pull", &multi]);
    assert!(text.contains(&format!("\nDigest: {digest}\n")), "{text}");
    assert_eq!(
        world.ok("c", &["pull", "-q", &multi]),
        format!("{digest}\n")
    );
    let inspected = world.inspect("c", &multi);
    assert_eq!(inspected["digest"], digest);
    let manifest = inspected["manifest"].as_str().unwrap().to_owned();
    assert_ne!(manifest, digest);

    // One that only has a digest, and one with a very long name.
    let text = world.ok("d", &["pull", &format!("{multi}@{digest}")]);
    assert!(
        text.starts_with(&format!("Tagged: {multi}@{digest}\n")),
        "{text}"
    );
    let long = format!("registry.example/{}/app:1", "long/".repeat(20) + "x");
    world.ok("d", &["image", "tag", &digest, &long]);
    let listed = |words: &[&str]| -> Vec<String> {
        let list = world.ok("d", words);
        let first = |line: &str| line.split_whitespace().next().unwrap().to_owned();
        list.lines()
            .map(first)
            .filter(|word| word != "TAG")
            .collect()
    };
    let mut forms = listed(&["image", "ls"]);
    assert_eq!(forms[0], format!("{multi}@{}", &digest[..19]));
    forms.extend(listed(&["image", "ls", "--no-trunc"]));
    forms.extend(listed(&["image", "ls", "-q"]));
    forms.extend(listed(&["image", "ls", "-q", "--no-trunc"]));
    assert_eq!(forms.len(), 8);
    forms.extend([digest.clone(), format!("{multi}@{digest}")]);
    forms.extend([manifest.clone(), format!("{multi}@{manifest}")]);
    let kernel = world.path("vmlinux");
    fs::write(&kernel, "\x7fELF").unwrap();
    for form in &forms {
        assert_eq!(world.inspect("d", form)["digest"], digest, "{form}");
        let words = ["run", "--ephemeral", "--pull", "never", "--image", form];
        let mut run = world.command("d", &words);
        run.env("FLASHPAN_KERNEL", &kernel)
            .env("FLASHPAN_VMM", "/nowhere/vmm");
        // Everything is there but a VMM.
        let text = complaint(&run.output().unwrap());
        assert!(text.contains("/nowhere/vmm"), "{form}: {text}");
    }
    let form = &forms[0];
    world.ok("d", &["image", "tag", form, "again"]);
    assert_eq!(
        world.ok("d", &["image", "rm", &forms[1], "again", form]),
        format!("Removed {long}\nRemoved again:latest\nRemoved {multi}@{digest}\n")
    );
}

/// Nobody could name it any more.
#[test]
fn an_image_that_loses_its_last_name_is_told_and_removed_by_gc() {
    let world = World::new();
    let place = layout().display().to_string();
    world.ok("c", &["image", "import", "app", &place]);
    let id = world.ok("c", &["image", "ls", "-q"]);
    let id = id.trim();
    let tree = world.path("tree");
    fs::create_dir_all(tree.join("etc")).unwrap();
    fs::write(tree.join("etc/hostname"), "x").unwrap();
    world.ok(
        "c",
        &["image", "import", "other", &tree.display().to_string()],
    );
    let note = |words: &[&str]| {
        let output = world.run("c", words);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    assert_eq!(
        note(&["image", "tag", "other", "app"]),
        format!(
            "flashpan: note: the image that app:latest was until now ({id}) has no other name; \
             `flashpan image gc` removes its files\n"
        )
    );
    assert_eq!(note(&["image", "tag", "other", "app"]), "");
    let text = world.complaint("c", &["image", "inspect", id]);
    assert!(text.contains("not found"), "{text}");
    let before = world.files("c").len();
    world.ok("c", &["image", "gc"]);
    // Its root image, configuration, manifest.
    assert_eq!(world.files("c").len(), before - 3);
}

/// However one image is named, its digest is that of what the name stands for, and
/// its manifest the one for the platform.
#[test]
fn digests_are_the_same_by_tag_by_digest_and_from_a_layout() {
    let world = World::new();
    let registry = world.registry();
    let (from, index) = with_index(&world);
    let multi = registry.image("multi");
    skopeo(&["--all"], &from, &format!("docker://{multi}"));
    world.ok("c", &["pull", &multi]);
    let by_tag = world.inspect("c", &multi);
    let manifest = by_tag["manifest"].as_str().unwrap().to_owned();
    let (by_index, by_manifest) = (format!("{multi}@{index}"), format!("{multi}@{manifest}"));
    let place = world.path("multi").display().to_string();
    world.ok("c", &["image", "import", "layout", &place]);
    let told = world.ok("c", &["pull", &by_index]);
    let said = format!("\nDigest: {index}\nManifest: {manifest} (linux/amd64)\n");
    assert!(told.contains(&said), "{told}");
    let told = world.ok("c", &["pull", &by_manifest]);
    assert!(
        told.contains(&format!("\nDigest: {manifest}\nSize: ")),
        "{told}"
    );

    let of_index = (index.as_str(), serde_json::json!(index));
    let of_manifest = (manifest.as_str(), serde_json::Value::Null);
    let list = world.ok("c", &["image", "ls", "--json"]);
    let list: Vec<serde_json::Value> = serde_json::from_str(&list).unwrap();
    assert_eq!(list.len(), 4);
    for (name, (digest, index)) in [
        (multi.as_str(), &of_index),
        (&by_index, &of_index),
        (&by_manifest, &of_manifest),
        ("layout", &of_index),
    ] {
        let inspected = world.inspect("c", name);
        let listed = list.iter().find(|it| it["name"] == inspected["name"]);
        for shown in [&inspected, listed.unwrap()] {
            assert_eq!(shown["digest"], *digest, "{name}");
            assert_eq!(shown["index"], *index, "{name}");
            assert_eq!(shown["manifest"], manifest, "{name}");
            assert_eq!(shown["id"], by_tag["id"], "{name}");
        }
    }
}

#[test]
fn a_digest_removes_all_names_only_by_force_and_failures_stop_nothing() {
    let world = World::new();
    let place = layout().display().to_string();
    world.ok("c", &["image", "import", "app", &place]);
    world.ok("c", &["image", "tag", "app", "base"]);
    world.ok("c", &["image", "tag", "app", "third"]);
    let ids = world.ok("c", &["image", "ls", "-q"]);
    let id = ids.lines().next().unwrap();
    let text = world.complaint("c", &["image", "rm", id]);
    for name in ["app:latest", "base:latest", "third:latest", "-f"] {
        assert!(text.contains(name), "{text}");
    }
    let output = world.run("c", &["image", "rm", "none", "third", "nil"]);
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    assert_eq!(output.stdout, b"Removed third:latest\n");
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        "flashpan: error: image not found: \"none\"\n\
         flashpan: error: image not found: \"nil\"\n"
    );
    assert_eq!(
        world.ok("c", &["image", "rm", "-f", id]),
        "Removed app:latest\nRemoved base:latest\n"
    );
    assert_eq!(world.files("c"), [""; 0]);
}

#[test]
fn a_name_alone_is_for_standard_input_whatever_files_there_are() {
    let world = World::new();
    let docker = world.path("app.tar");
    let to = format!("docker-archive:{}:app:1", docker.display());
    skopeo(&[], &from_layout(), &to);
    fs::create_dir(world.path("mine")).unwrap();
    fs::write(world.path("mine/file"), "x").unwrap();
    let mut import = world.command("c", &["image", "import", "mine"]);
    import.stdin(fs::File::open(&docker).unwrap());
    let output = import.current_dir(world.dir.path()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.starts_with("Imported: mine:latest\nLayers: 3\n"),
        "{text}"
    );
    let notes = String::from_utf8(output.stderr).unwrap();
    assert!(
        notes.starts_with("flashpan: note: reading standard input for mine; ")
            && notes.contains("write ./mine\n"),
        "{notes}"
    );
    // What looks like a place is one, though there is something to read.
    let mut import = world.command("d", &["image", "import", "app.tar"]);
    import.stdin(fs::File::open(&docker).unwrap());
    let output = import.current_dir(world.dir.path()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(
        output.stdout.starts_with(b"Imported: app:1\n"),
        "{output:?}"
    );
    let mut import = world.command("e", &["image", "import", "./mine"]);
    let text = complaint(&import.current_dir(world.dir.path()).output().unwrap());
    assert!(text.contains("./mine holds no image"), "{text}");
}

#[test]
fn a_forced_pull_leaves_the_root_of_a_vm_that_runs() {
    use std::os::unix::fs::{FileExt, MetadataExt};
    let world = World::new();
    let registry = world.registry();
    let app = registry.image("app");
    world.ok("c", &["pull", &app]);
    let root = world.inspect("c", &app)["root_image"]
        .as_str()
        .unwrap()
        .to_owned();
    let sound = fs::read(&root).unwrap();
    let inode = || fs::metadata(&root).unwrap().ino();
    let before = inode();
    // What a VM has of it.
    let vm = fs::File::open(&root).unwrap();
    vm.lock_shared().unwrap();
    world.ok("c", &["pull", "--force", &app]);
    assert_eq!(inode(), before);
    let text = world.complaint("c", &["image", "rm", &app]);
    assert!(text.contains("used by a running VM"), "{text}");

    let writer = fs::File::options().write(true).open(&root).unwrap();
    let middle = sound.len() as u64 / 2;
    let damage = [!sound[sound.len() / 2]];
    writer.write_all_at(&damage, middle).unwrap();
    let text = world.complaint("c", &["pull", "--force", &app]);
    assert!(text.contains("damaged, and a running VM uses it"), "{text}");
    drop(vm);
    world.ok("c", &["pull", "--force", &app]);
    assert!(fs::read(&root).unwrap() == sound);
    assert_ne!(inode(), before);
}
