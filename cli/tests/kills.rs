//! Pulls that are killed, at every step that can be seen from outside: nothing is
//! left of them for good.
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
#[path = "support/slow.rs"]
mod slow;
#[path = "support/store.rs"]
mod store;

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use registry::noise;
use slow::SlowNetwork;
use store::World;

fn start(world: &World, cache: &str, image: &str) -> Child {
    let mut pull = world.command(cache, &["pull", image]);
    pull.stdout(Stdio::null()).stderr(Stdio::piped());
    pull.spawn().unwrap()
}

fn kill(mut pull: Child) {
    pull.kill().unwrap();
    let status = pull.wait().unwrap();
    assert_eq!(status.signal(), Some(9), "it ended before: {status}");
}

/// After a kill: what is listed is there, and another pull makes all as it is in
/// the store `whole`.
fn check(world: &World, cache: &str, image: &str, when: &str) {
    for id in world.ok(cache, &["image", "ls", "-q"]).lines() {
        let root = world.inspect(cache, id)["root_image"].clone();
        assert!(Path::new(root.as_str().unwrap()).exists(), "{when}: {root}");
    }
    world.ok(cache, &["pull", image]);
    world.ok(cache, &["image", "gc"]);
    assert_eq!(world.files(cache), world.files("whole"), "{when}");
    assert_eq!(
        world.ok(cache, &["image", "gc"]),
        "Removed 0 unreferenced blobs\nFreed: 0 B\n",
        "{when}"
    );
    let root = |cache: &str| {
        let inspected = world.inspect(cache, image);
        fs::read(inspected["root_image"].as_str().unwrap()).unwrap()
    };
    assert!(root(cache) == root("whole"), "{when}");
}

#[test]
fn pulls_that_are_killed_while_they_download_leave_nothing_for_good() {
    const KILLS: u64 = 12;
    let world = World::new();
    let registry = world.registry();
    let network = SlowNetwork::before(registry.name());
    let app = network.image("app");
    world.ok("whole", &["pull", &app]);
    let total = network.reset(None);
    assert!(total > 5 << 20, "{total}");
    // Answers may differ by some bytes from one pull to the next, and a limit that
    // is not reached would be waited for in vain.
    let total = total - total / 50;
    let seed = match std::env::var("FLASHPAN_TEST_SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .subsec_nanos()
            .into(),
    };
    println!("FLASHPAN_TEST_SEED={seed}");
    let mut random = noise(1000, seed).into_iter();
    for part in 0..KILLS {
        let bytes = std::array::from_fn(|_| random.next().unwrap());
        // Each part of the download has its turn.
        let (from, to) = (part * total / KILLS, (part + 1) * total / KILLS);
        let limit = from + u64::from_le_bytes(bytes) % (to - from);
        network.reset(Some(limit));
        let cache = format!("part-{part}");
        let pull = start(&world, &cache, &app);
        network.wait_until_held();
        kill(pull);
        network.reset(None);
        check(
            &world,
            &cache,
            &app,
            &format!("after {limit} of {total} bytes"),
        );
    }
}

/// The names that appear in a store while something happens there.
struct Watch {
    inotify: Inotify,
    seen: Vec<String>,
}

impl Watch {
    fn on(store: &Path) -> Self {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).unwrap();
        for folder in ["", "work", "blobs/sha256", "roots"] {
            let flags = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
            inotify.add_watch(&store.join(folder), flags).unwrap();
        }
        let seen = Vec::new();
        Self { inotify, seen }
    }

    /// Returns when `count` names have appeared, or the process has ended;
    /// whether it was the names.
    fn wait(&mut self, count: usize, process: &Child) -> bool {
        let stderr = process.stderr.as_ref().unwrap();
        loop {
            let mut fds = [
                PollFd::new(self.inotify.as_fd(), PollFlags::POLLIN),
                // Only its end: what it says fits the pipe.
                PollFd::new(stderr.as_fd(), PollFlags::empty()),
            ];
            poll(&mut fds, PollTimeout::NONE).unwrap();
            let ended = fds[1].any().unwrap();
            let names = self.inotify.read_events().unwrap_or_default();
            let names = names.into_iter().filter_map(|event| event.name);
            self.seen
                .extend(names.map(|name| name.into_string().unwrap()));
            if self.seen.len() >= count {
                return true;
            }
            if ended {
                return false;
            }
        }
    }
}

#[test]
fn pulls_that_are_killed_when_a_file_appears_leave_nothing_for_good() {
    let world = World::new();
    let registry = world.registry();
    let app = registry.image("app");
    world.ok("whole", &["pull", &app]);
    let mut count = 0;
    let names = loop {
        count += 1;
        let cache = format!("file-{count}");
        // Makes the directories.
        world.ok(&cache, &["image", "ls"]);
        let mut watch = Watch::on(&world.path(&cache).join("flashpan/images"));
        let mut pull = start(&world, &cache, &app);
        if !watch.wait(count, &pull) {
            assert!(pull.wait().unwrap().success());
            break watch.seen;
        }
        // The last file appears a moment before the end.
        pull.kill().unwrap();
        pull.wait().unwrap();
        check(&world, &cache, &app, &format!("at {:?}", watch.seen.last()));
    };
    // Three layers, the root image, configuration and manifest, each in `work` and
    // in its place, and the list.
    assert!(names.len() >= 2 * 6 + 2, "{names:?}");
    assert_eq!(names.last().map(String::as_str), Some("index.json"));
}
