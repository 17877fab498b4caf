//! Pulls at once, pulls that are interrupted, pulls to a full disk: what is left of
//! them.
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
use std::process::Stdio;

use registry::tar;
use store::{PROGRAM, World};

#[test]
fn of_eight_pulls_at_once_one_downloads() {
    let world = World::new();
    let registry = world.registry();
    let app = registry.image("app");
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
    let inspected = world.inspect("c", &app);
    let times = |digest: &serde_json::Value| {
        let digest = digest.as_str().unwrap();
        served.iter().filter(|served| *served == digest).count()
    };
    for layer in inspected["layers"].as_array().unwrap() {
        assert_eq!(times(&layer["digest"]), 1, "{layer}: {served:?}");
    }
    // Each process that does not find the image finished reads the
    // configuration, to know what it pulls.
    let configs = times(&inspected["id"]);
    assert!((1..=8).contains(&configs), "{served:?}");
    assert_eq!(served.len(), 3 + configs, "{served:?}");
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
    let small = world.path("small.tar");
    fs::create_dir_all(world.path("small/etc")).unwrap();
    fs::write(world.path("small/etc/x"), "x").unwrap();
    tar(&world.path("small"), &small);
    let (app, small) = (registry.image("app"), small.display().to_string());
    let cache = world.path("c").display().to_string();
    // Room for some layers; for all of them, but not for what is in them; for
    // that as well, but not for the image.
    let place = format!("{cache}/flashpan/images has ");
    let foreseen = ["cannot make a root image of", "bytes free; make room"];
    let met = [
        "No space left",
        &place,
        " free now, and more than 5.0 MB is needed",
        "`flashpan image gc",
    ];
    for (size, words) in [("2m", &foreseen[..]), ("7m", &foreseen), ("12m", &met)] {
        let script = format!(
            "{PROGRAM} image import small {small} \
             && find {cache} -type f | sort > before && ! {PROGRAM} pull {app} > out 2> error \
             && find {cache} -type f | sort > after \
             && {PROGRAM} image ls -q | wc -l && {PROGRAM} image inspect small > /dev/null",
        );
        let output = world.with_little_room("c", size, &script);
        let error = fs::read_to_string(world.path("error")).unwrap_or_default();
        assert!(output.status.success(), "{size}: {output:?}\n{error}");
        // Where, how much, and what to do.
        for words in words {
            assert!(error.contains(words), "{size}: {words}: {error}");
        }
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
