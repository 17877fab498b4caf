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
use store::{World, from_layout, layout};

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
