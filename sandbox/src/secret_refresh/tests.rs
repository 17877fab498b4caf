//! Sources of secrets in a real file system, changed in the ways in which people and programs
//! change them.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;

use flashpan_network::edit::Secret;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::task::JoinHandle;

use super::*;
use crate::events::{Events, VmEventKind};

const PATIENCE: Duration = Duration::from_secs(20);

/// Nothing is held back.
const AT_ONCE: Pace = Pace {
    grace: Duration::ZERO,
    within: Duration::ZERO,
    retry: Duration::from_millis(50),
};

/// A file, and a secret that follows it.
struct World {
    directory: tempfile::TempDir,
    secrets: Arc<Secrets>,
    shared: Arc<Shared>,
    events: Events,
    task: Option<JoinHandle<()>>,
}

impl World {
    /// The secret has the value "first", as it was read when the VM was launched.
    fn new() -> Self {
        let value = Zeroizing::new("first".to_owned());
        let hosts = vec!["a.test".parse().unwrap()];
        let secret = Secret::new("K", value, "PLACEHOLDER_K", hosts);
        let shared = Arc::<Shared>::default();
        Self {
            directory: tempfile::tempdir().unwrap(),
            secrets: Arc::new(Secrets::new(vec![secret]).unwrap()),
            events: shared.events.subscribe(),
            shared,
            task: None,
        }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.at(name), text).unwrap();
    }

    fn of(source: SecretSource) -> Refresh {
        Refresh {
            sources: BTreeMap::from([("K".to_owned(), source)]),
            ..Refresh::default()
        }
    }

    fn begin(&mut self, pace: Pace, of: Refresh) {
        let (secrets, shared) = (Arc::clone(&self.secrets), Arc::downgrade(&self.shared));
        self.task = Some(tokio::spawn(refresh_at(pace, of, secrets, shared)));
    }

    /// Follows this file, which has "first" in it; returns when a change of it is followed.
    async fn follow(&mut self, name: &str) {
        self.begin(AT_ONCE, Self::of(SecretSource::File(self.at(name))));
        self.followed(name).await;
    }

    /// Changes a file, and waits until that is seen.
    async fn followed(&mut self, name: &str) {
        // What was changed before the file was watched is seen as well.
        self.write(name, "begun");
        self.refreshed("begun").await;
    }

    async fn event(&mut self) -> SecretActivity {
        let next = tokio::time::timeout(PATIENCE, self.events.next());
        match next.await.expect("nothing was told").unwrap().kind {
            VmEventKind::Secret(activity) => activity,
            other => panic!("{other:?}"),
        }
    }

    /// The next that is told is that it has this value.
    async fn refreshed(&mut self, value: &str) {
        let event = self.event().await;
        assert_eq!(event.state, SecretState::Refreshed, "{event:?} {value}");
        assert!(self.secrets.has("K", value), "{value}");
        assert_eq!(event.why, None);
    }

    /// The next that is told is that it keeps its value. Why.
    async fn kept(&mut self) -> String {
        let event = self.event().await;
        assert_eq!(event.state, SecretState::Kept, "{event:?}");
        event.why.unwrap()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

#[tokio::test]
async fn a_file_that_is_written_or_replaced_changes_the_value() {
    let mut world = World::new();
    world.write("k", "first\n");
    world.follow("k").await;
    world.write("k", "second\n");
    world.refreshed("second").await;
    // As editors do it.
    world.write("other", "third");
    fs::rename(world.at("other"), world.at("k")).unwrap();
    world.refreshed("third").await;
    // A name that a whole file is given.
    world.write("other", "fourth");
    fs::remove_file(world.at("k")).unwrap();
    assert!(world.kept().await.contains("not there"));
    fs::hard_link(world.at("other"), world.at("k")).unwrap();
    world.refreshed("fourth").await;
    // What is no value changes nothing, and is told.
    world.write("k", "a\nb\n");
    assert!(world.kept().await.contains("control character"));
    assert!(world.secrets.has("K", "fourth"));
    world.write("k", "fifth");
    world.refreshed("fifth").await;
    let warnings = world.shared.take_warnings();
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    let is_it = |text: &String| text.starts_with("the secret K keeps its value: ");
    assert!(warnings.iter().all(is_it), "{warnings:?}");
}

#[tokio::test]
async fn what_changes_between_launch_and_watch_is_not_missed() {
    let mut world = World::new();
    // Read as "first" when the VM was launched.
    world.write("k", "rotated");
    world.begin(AT_ONCE, World::of(SecretSource::File(world.at("k"))));
    world.refreshed("rotated").await;
}

#[tokio::test]
async fn a_value_that_was_given_stays_until_the_source_changes() {
    let mut world = World::new();
    world.write("k", "of the file");
    let mut of = World::of(SecretSource::File(world.at("k")));
    of.given.insert("K".to_owned());
    // Something that is told comes after the file was first read.
    let other = SecretSource::File(world.at("none"));
    of.sources.insert("Z".to_owned(), other);
    world.begin(AT_ONCE, of);
    assert!(world.kept().await.contains("not there"));
    assert!(world.secrets.has("K", "first"));
    world.write("k", "changed");
    world.refreshed("changed").await;
}

/// As Kubernetes has it: `k` leads to `..data/k`, and `..data` to a directory which is another
/// with each change.
#[tokio::test]
async fn a_value_that_was_given_stays_though_the_source_has_none_at_first() {
    let mut world = World::new();
    world.write("k", "");
    let of = Refresh {
        given: BTreeSet::from(["K".to_owned()]),
        ..World::of(SecretSource::File(world.at("k")))
    };
    world.begin(AT_ONCE, of);
    assert!(world.kept().await.contains("there is nothing"));
    world.write("k", "of the file");
    assert_eq!(world.event().await.state, SecretState::Followed);
    assert!(world.secrets.has("K", "first"));
    world.write("k", "second");
    world.refreshed("second").await;
}

#[tokio::test]
async fn a_secret_that_was_revoked_is_not_told_to_have_another_value() {
    let mut world = World::new();
    world.write("k", "first");
    world.follow("k").await;
    world.secrets.revoke("K").unwrap();
    world.write("k", "second");
    fs::remove_file(world.at("k")).unwrap();
    // The first that is told.
    assert!(world.kept().await.contains("not there"));
    assert!(!world.secrets.has("K", "second"));
}

#[tokio::test]
async fn a_file_that_cannot_be_followed_keeps_no_other_from_it() {
    let mut world = World::new();
    world.write("k", "first");
    symlink("loop", world.at("loop")).unwrap();
    let mut of = World::of(SecretSource::File(world.at("k")));
    // Looked at before the other.
    let source = SecretSource::File(world.at("loop"));
    of.sources.insert("A".to_owned(), source);
    world.begin(AT_ONCE, of);
    let event = world.event().await;
    assert_eq!(event.secret, "A", "{event:?}");
    assert!(event.why.unwrap().contains("too many links"));
    for value in ["second", "third"] {
        world.write("k", value);
        world.refreshed(value).await;
    }
    // It is taken up when that can be.
    fs::remove_file(world.at("loop")).unwrap();
    symlink("k", world.at("loop")).unwrap();
    let event = world.event().await;
    assert_eq!(event.secret, "A", "{event:?}");
}

#[tokio::test]
async fn links_on_the_way_are_followed() {
    let mut world = World::new();
    let base = world.directory.path().to_owned();
    let version = |name: &str, value: &str| {
        fs::create_dir(base.join(name)).unwrap();
        fs::write(base.join(name).join("k"), value).unwrap();
    };
    version("..1", "one");
    version("..2", "two");
    version("..3", "three");
    let swap = |world: &World, to: &str| {
        symlink(to, world.at("..new")).unwrap();
        fs::rename(world.at("..new"), world.at("..data")).unwrap();
    };
    swap(&world, "..1");
    symlink("..data/k", world.at("k")).unwrap();
    // From elsewhere, through another directory.
    let outside = tempfile::tempdir().unwrap();
    let directory = outside.path().join("in");
    symlink(world.directory.path(), &directory).unwrap();
    world.begin(AT_ONCE, World::of(SecretSource::File(directory.join("k"))));
    world.refreshed("one").await;
    swap(&world, "..2");
    fs::remove_dir_all(world.at("..1")).unwrap();
    world.refreshed("two").await;
    swap(&world, "..3");
    world.refreshed("three").await;
    // Any link of them.
    let other = tempfile::tempdir().unwrap();
    fs::write(other.path().join("k"), "other").unwrap();
    symlink(other.path(), outside.path().join("new")).unwrap();
    fs::rename(outside.path().join("new"), &directory).unwrap();
    world.refreshed("other").await;
    // And directories.
    fs::rename(other.path(), world.at("moved")).unwrap();
    assert!(world.kept().await.contains("not there"));
    version("..4", "four");
    fs::rename(world.at("..4"), other.path()).unwrap();
    world.refreshed("four").await;
    fs::remove_file(&directory).unwrap();
    symlink("in", &directory).unwrap();
    let why = loop {
        let why = world.kept().await;
        if !why.contains("not there") {
            break why;
        }
    };
    assert!(why.contains("too many links"), "{why}");
}

#[tokio::test]
async fn a_file_that_is_half_written_is_not_read() {
    let mut world = World::new();
    world.write("k", "first");
    world.write("z", "first");
    let other = SecretSource::File(world.at("z"));
    let mut of = World::of(SecretSource::File(world.at("k")));
    of.sources.insert("Z".to_owned(), other);
    let secret = |name: &str| {
        let value = Zeroizing::new("first".to_owned());
        let hosts = vec!["a.test".parse().unwrap()];
        Secret::new(name, value, format!("PLACEHOLDER_{name}"), hosts)
    };
    world.secrets = Arc::new(Secrets::new(vec![secret("K"), secret("Z")]).unwrap());
    world.begin(AT_ONCE, of);
    world.followed("k").await;
    let mut half = fs::File::create(world.at("k")).unwrap();
    // Another file of the directory is whole meanwhile.
    for other in ["second", "third"] {
        world.write("z", other);
        let event = world.event().await;
        assert_eq!(
            (event.secret.as_str(), event.state),
            ("Z", SecretState::Refreshed)
        );
        assert!(world.secrets.has("Z", other) && world.secrets.has("K", "begun"));
        half.write_all(b"half").unwrap();
    }
    drop(half);
    world.refreshed("halfhalf").await;
    // One that is made anew.
    fs::remove_file(world.at("k")).unwrap();
    assert!(world.kept().await.contains("not there"));
    let mut half = fs::File::create(world.at("k")).unwrap();
    half.write_all(b"new").unwrap();
    world.write("z", "fourth");
    assert_eq!(world.event().await.secret, "Z");
    assert!(world.secrets.has("K", "halfhalf"));
    drop(half);
    world.refreshed("new").await;
    // Nothing is no value.
    world.write("k", "");
    assert!(world.kept().await.contains("there is nothing"));
    assert!(world.secrets.has("K", "new"));
}

#[tokio::test]
async fn a_file_that_is_gone_is_told_of_and_taken_up_again() {
    let mut world = World::new();
    fs::create_dir(world.at("d")).unwrap();
    world.write("d/k", "first");
    world.follow("d/k").await;
    fs::remove_file(world.at("d/k")).unwrap();
    let why = world.kept().await;
    assert!(why.ends_with("d/k: it is not there"), "{why}");
    fs::remove_dir(world.at("d")).unwrap();
    fs::create_dir(world.at("d")).unwrap();
    world.write("d/k", "begun");
    // The value is the same, so nothing but that is told.
    assert_eq!(world.event().await.state, SecretState::Followed);
    world.write("d/k", "other");
    world.refreshed("other").await;
    // A pipe in the place of a file holds nobody up.
    nix::unistd::mkfifo(&world.at("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs::rename(world.at("pipe"), world.at("d/k")).unwrap();
    assert!(world.kept().await.contains("no regular file"));
    assert!(world.secrets.has("K", "other"));
}

#[tokio::test]
async fn a_source_that_flaps_is_told_of_a_few_times() {
    let mut world = World::new();
    world.write("k", "first");
    let pace = Pace {
        grace: Duration::ZERO,
        within: Duration::from_secs(3600),
        ..AT_ONCE
    };
    let of = World::of(SecretSource::File(world.at("k")));
    world.begin(pace, of);
    let mut told = 0;
    for turn in 0..50 {
        let value = format!("turn {turn}");
        for text in [value.as_str(), ""] {
            world.write("k", text);
            if told < told::MOST {
                world.event().await;
                told += 1;
            }
        }
        // All of them are taken all the same.
        world.write("k", &value);
        let taken = async {
            while !world.secrets.has("K", &value) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, taken).await.unwrap();
    }
    world.shared.events.close();
    assert!(world.events.next().await.is_none());
    assert!(world.shared.take_warnings().len() <= told::MOST);
}

/// What is wrong only for a moment is not told.
#[tokio::test]
async fn a_file_that_is_replaced_by_another_is_not_told_to_be_gone() {
    let mut world = World::new();
    world.write("k", "first");
    let pace = Pace {
        grace: Duration::from_secs(3600),
        ..AT_ONCE
    };
    let of = World::of(SecretSource::File(world.at("k")));
    world.begin(pace, of);
    world.followed("k").await;
    fs::remove_file(world.at("k")).unwrap();
    world.write("k", "second");
    world.refreshed("second").await;
    assert!(world.shared.take_warnings().is_empty());
}

/// In a process of its own: it takes away what other tests need.
#[test]
fn a_watch_that_cannot_be_is_told_of_and_tried_again() {
    const INSIDE: &str = "FLASHPAN_TEST_OF_WATCHES";
    if std::env::var_os(INSIDE).is_none() {
        let name = "secret_refresh::tests::a_watch_that_cannot_be_is_told_of_and_tried_again";
        let program = std::env::current_exe().unwrap();
        let inside = std::process::Command::new(program)
            .args(["--exact", name, "--nocapture"])
            .env(INSIDE, "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&inside.stdout);
        assert!(
            inside.status.success() && said.contains("1 passed"),
            "{inside:?}"
        );
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.unwrap().block_on(async {
        let mut world = World::new();
        world.write("k", "first");
        let of = World::of(SecretSource::File(world.at("k")));
        let limit = getrlimit(Resource::Nofile);
        let none = Rlimit {
            current: Some(3),
            ..limit
        };
        setrlimit(Resource::Nofile, none).unwrap();
        world.begin(AT_ONCE, of);
        let why = world.kept().await;
        setrlimit(Resource::Nofile, limit).unwrap();
        assert!(why.contains("cannot be watched"), "{why}");
        // And no more than once.
        assert_eq!(world.event().await.state, SecretState::Followed);
        world.followed("k").await;
    });
}

#[tokio::test]
async fn commands_are_run_again_if_that_is_said() {
    let mut world = World::new();
    let source = || SecretSource::Command("printf again".to_owned());
    let of = Refresh {
        every: Some(Duration::from_millis(1)),
        ..World::of(source())
    };
    world.begin(AT_ONCE, of);
    world.refreshed("again").await;
    // Never otherwise: there is nothing to wait for.
    let done = refresh(World::of(source()), Arc::clone(&world.secrets), Weak::new());
    tokio::time::timeout(PATIENCE, done).await.unwrap();
    // What was printed by one that failed is no value, and what it is may be a secret itself.
    let mut world = World::new();
    let of = Refresh {
        every: Some(Duration::from_millis(1)),
        ..World::of(SecretSource::Command("echo hunter2; exit 3".to_owned()))
    };
    world.begin(AT_ONCE, of);
    let why = world.kept().await;
    assert!(
        why.contains("exit status: 3") && !why.contains("hunter2"),
        "{why}"
    );
    assert!(world.secrets.has("K", "first"));
}
