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

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use registry::{Registry, make_layout, noise, skopeo, tar, tool};
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_flashpan");

/// An image of three layers, the second of which takes something away, as an
/// OCI layout; made once.
fn layout() -> &'static Path {
    static LAYOUT: OnceLock<PathBuf> = OnceLock::new();
    LAYOUT.get_or_init(|| {
        // Kept for all tests of this program, so it cannot go with one of them.
        let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("image-tests");
        let _ = fs::remove_dir_all(&dir);
        let file = |layer: &str, name: &str, bytes: &[u8]| {
            let path = dir.join(layer).join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        };
        file("1", "etc/hostname", b"one\n");
        file("1", "usr/noise", &noise(3 << 20, 1));
        file("1", "usr/gone", b"x");
        file("2", "usr/.wh.gone", b"");
        file("2", "usr/zeros", &vec![0; 4 << 20]);
        file("3", "usr/more", &noise(2 << 20, 3));
        let layers = ["1", "2", "3"].map(|layer| {
            let archive = dir.join(layer).with_extension("tar");
            tar(&dir.join(layer), &archive);
            archive
        });
        let layout = dir.join("layout");
        let config = ["--config.cmd", "true", "--config.env", "A=b"];
        make_layout(&layout, "app", &layers, &config);
        layout
    })
}

fn from_layout() -> String {
    format!("oci:{}:app", layout().display())
}

/// A user with a store and, perhaps, a registry.
struct World {
    dir: TempDir,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The registry with the image, as `app` (gzip) and `zstd`.
    fn registry(&self) -> Registry {
        let registry = Registry::start(self.dir.path());
        let to = |name: &str| format!("docker://{}", registry.image(name));
        skopeo(&[], &from_layout(), &to("app"));
        registry
    }

    fn command(&self, cache: &str, words: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command
            .args(words)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("HOME", self.dir.path())
            .env("XDG_CACHE_HOME", self.path(cache))
            .env("FLASHPAN_INSECURE_REGISTRIES", "127.0.0.1")
            .stdin(Stdio::null());
        command
    }

    fn run(&self, cache: &str, words: &[&str]) -> Output {
        self.command(cache, words).output().unwrap()
    }

    /// Standard output of a command that has to succeed.
    #[track_caller]
    fn ok(&self, cache: &str, words: &[&str]) -> String {
        let output = self.run(cache, words);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words:?}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// What a command that has to fail says, in one line.
    #[track_caller]
    fn complaint(&self, cache: &str, words: &[&str]) -> String {
        complaint(&self.run(cache, words))
    }

    #[track_caller]
    fn inspect(&self, cache: &str, image: &str) -> serde_json::Value {
        let text = self.ok(cache, &["image", "inspect", image]);
        let images: serde_json::Value = serde_json::from_str(&text).unwrap();
        images[0].clone()
    }

    /// All files of a store but its list and its lock.
    fn files(&self, cache: &str) -> Vec<String> {
        let images = self.path(cache).join("flashpan/images");
        let mut found = Vec::new();
        for folder in ["blobs/sha256", "roots", "work"] {
            for entry in fs::read_dir(images.join(folder)).into_iter().flatten() {
                let name = entry.unwrap().file_name().into_string().unwrap();
                found.push(format!("{folder}/{name}"));
            }
        }
        found.sort();
        found
    }
}

#[track_caller]
fn complaint(output: &Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(125), "{errors}");
    // Nothing else but progress.
    let is_progress = |line: &&str| {
        !line.starts_with("flashpan: error: ") && (line.contains(": layer ") || line.contains(" %"))
    };
    let lines: Vec<&str> = errors.lines().filter(|line| !is_progress(line)).collect();
    assert_eq!(lines.len(), 1, "{errors}");
    let last = lines[0];
    assert!(last.starts_with("flashpan: error: "), "{errors}");
    assert!(output.stdout.is_empty(), "{output:?}");
    last.to_owned()
}

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

#[test]
fn of_eight_pulls_at_once_one_downloads() {
    let world = World::new();
    let registry = world.registry();
    let app = registry.image("app");
    let before = registry.blobs_served();
    let pulls: Vec<_> = (0..8)
        .map(|_| {
            let mut pull = world.command("c", &["pull", &app]);
            pull.stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    for pull in pulls {
        let output = pull.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    let served = registry.blobs_served();
    let configs_and_layers = served - before;
    // Each process reads the configuration, to know what it pulls; the three
    // layers are downloaded once.
    assert!(
        (4..=11).contains(&configs_and_layers),
        "{configs_and_layers}"
    );
    let files = world.files("c");
    assert_eq!(files.len(), 6, "{files:?}");
    assert_eq!(
        world.ok("c", &["image", "gc"]),
        "Removed 0 unreferenced blobs\nFreed: 0 B\n"
    );
    // Nothing to do: nothing is downloaded, and it says so.
    assert!(world.ok("c", &["pull", &app]).starts_with("Up to date\n"));
    assert_eq!(registry.blobs_served(), served);
    // Without layers it still runs, and a pull of the same needs none.
    assert!(
        world
            .ok("c", &["image", "gc", "--layers"])
            .starts_with("Removed 3 ")
    );
    assert!(world.ok("c", &["pull", &app]).starts_with("Up to date\n"));
    // Told to, it gets and makes everything again.
    assert!(
        world
            .ok("c", &["pull", "--force", &app])
            .starts_with("Tagged: ")
    );
    assert_eq!(world.files("c"), files);
}

#[test]
fn pulls_that_are_killed_leave_nothing_for_good() {
    const KILLS: usize = 30;
    let world = World::new();
    let registry = world.registry();
    let app = registry.image("app");
    let begun = Instant::now();
    world.ok("whole", &["pull", &app]);
    let takes = u64::try_from(begun.elapsed().as_micros()).unwrap();
    let mut random = noise(KILLS * 8, takes).into_iter();
    for _ in 0..KILLS {
        let mut pull = world.command("c", &["pull", "--force", &app]);
        let mut pull = pull
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let bytes = std::array::from_fn(|_| random.next().unwrap());
        // Any moment at all is what is tried, so there is no event to wait for.
        std::thread::sleep(Duration::from_micros(u64::from_le_bytes(bytes) % takes));
        let _ = pull.kill();
        pull.wait().unwrap();
        // What is listed is there.
        for id in world.ok("c", &["image", "ls", "-q"]).lines() {
            let root = world.inspect("c", id)["root_image"]
                .as_str()
                .unwrap()
                .to_owned();
            assert!(Path::new(&root).exists(), "{root}");
        }
    }
    world.ok("c", &["pull", &app]);
    world.ok("c", &["image", "gc"]);
    assert_eq!(world.files("c"), world.files("whole"));
    assert_eq!(
        world.ok("c", &["image", "gc"]),
        "Removed 0 unreferenced blobs\nFreed: 0 B\n"
    );
    let root = |cache: &str| {
        let inspected = world.inspect(cache, &app);
        fs::read(inspected["root_image"].as_str().unwrap()).unwrap()
    };
    assert!(root("c") == root("whole"));
}

#[test]
fn a_signal_ends_a_pull_in_order() {
    use std::os::unix::process::ExitStatusExt;
    let world = World::new();
    // Somebody who accepts and never answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let image = format!("{}/app", silent.local_addr().unwrap());
    let mut pull = world.command("c", &["pull", &image]);
    let pull = pull.stderr(Stdio::piped()).spawn().unwrap();
    let _connection = silent.accept().unwrap();
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pull.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    let output = pull.wait_with_output().unwrap();
    assert_eq!(
        (output.status.code(), output.status.signal()),
        (Some(130), None)
    );
    assert!(output.stderr.is_empty(), "{output:?}");
    assert_eq!(world.files("c"), [""; 0]);
}

#[test]
fn a_full_disk_is_told_and_the_store_stays_sound() {
    let world = World::new();
    let registry = world.registry();
    fs::create_dir(world.path("c")).unwrap();
    let small = world.path("small.tar");
    fs::create_dir_all(world.path("small/etc")).unwrap();
    fs::write(world.path("small/etc/x"), "x").unwrap();
    tar(&world.path("small"), &small);
    let (app, small) = (registry.image("app"), small.display().to_string());
    // Room for some layers; for all of them, but not for what is in them; for
    // that as well, but not for the image.
    for (size, why) in [
        ("2m", "No space left"),
        ("7m", "bytes free; make room"),
        ("12m", "No space left"),
    ] {
        let script = format!(
            "mount -t tmpfs -o size={size} none {cache} && {PROGRAM} image import small {small} \
             && find {cache} -type f | sort > before && ! {PROGRAM} pull {app} > out 2> error \
             && find {cache} -type f | sort > after \
             && {PROGRAM} image ls -q | wc -l && {PROGRAM} image inspect small > /dev/null",
            cache = world.path("c").display(),
        );
        let mut unshare = Command::new("unshare");
        let command = world.command("c", &[]);
        for (name, value) in command.get_envs() {
            unshare.env(name, value.unwrap());
        }
        unshare.args(["-r", "-m", "sh", "-c", &script]);
        let output = unshare.current_dir(world.dir.path()).output().unwrap();
        let error = fs::read_to_string(world.path("error")).unwrap_or_default();
        assert!(output.status.success(), "{size}: {output:?}\n{error}");
        assert!(error.contains(why), "{size}: {error}");
        assert_eq!(
            error.lines().filter(|line| line.contains("error")).count(),
            1,
            "{error}"
        );
        let list = |name: &str| fs::read_to_string(world.path(name)).unwrap();
        assert_eq!(list("before"), list("after"), "{size}");
        assert!(
            String::from_utf8_lossy(&output.stdout).ends_with("1\n"),
            "{output:?}"
        );
    }
}

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
    let text = world.complaint(
        "c",
        &["run", "--image", &registry.image("nothing"), "--", "x"],
    );
    assert!(
        text.contains("nothing") || text.contains("kernel"),
        "{text}"
    );
}
