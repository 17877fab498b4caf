use std::collections::HashSet;
use std::os::unix::fs::FileExt;
use std::process::Command;

use super::*;
use crate::child;

const MIB: u64 = 1 << 20;

struct Fixture {
    dir: tempfile::TempDir,
    volumes: Volumes,
    cache: Cache,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let volumes = Volumes::at(dir.path().join("volumes"));
        let cache = Cache::at(dir.path().join("cache"));
        Self {
            dir,
            volumes,
            cache,
        }
    }

    fn create(&self, name: &str) -> Volume {
        self.volumes.create(name, 16 * MIB, &self.cache).unwrap()
    }

    /// Everything in the directory of volumes.
    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path().join("volumes")).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

/// Writes a file into a volume with a tool of ext4's own.
fn put(volume: &Volume, name: &str, content: &str) {
    let source = volume.path.with_extension("source");
    fs::write(&source, content).unwrap();
    let request = format!("write {} {name}", source.display());
    let mut debugfs = Command::new("/usr/sbin/debugfs");
    debugfs.args(["-w", "-R", &request]).arg(&volume.path);
    let output = child::output(&mut debugfs).unwrap();
    assert!(output.status.success(), "{output:?}");
    fs::remove_file(source).unwrap();
}

fn get(volume: &Volume, name: &str) -> String {
    let mut debugfs = Command::new("/usr/sbin/debugfs");
    debugfs
        .args(["-R", &format!("cat {name}")])
        .arg(&volume.path);
    let output = child::output(&mut debugfs).unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn fsck(volume: &Volume) {
    let mut e2fsck = Command::new("/usr/sbin/e2fsck");
    let output = child::output(e2fsck.arg("-fn").arg(&volume.path)).unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// As the superblock has it.
fn uuid(volume: &Volume) -> [u8; 16] {
    let mut uuid = [0; 16];
    let file = File::open(&volume.path).unwrap();
    file.read_exact_at(&mut uuid, 1024 + 104).unwrap();
    uuid
}

/// Without a clean end: the journal is to be replayed at the next mount.
fn leave_unclean(volume: &Volume) {
    let mut debugfs = Command::new("/usr/sbin/debugfs");
    debugfs.args(["-w", "-R", "feature needs_recovery"]);
    let output = child::output(debugfs.arg(&volume.path)).unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn no_two_volumes_have_the_same_uuid() {
    let fixture = Fixture::new();
    let (first, second) = (fixture.create("a"), fixture.create("b"));
    put(&first, "greeting", "hello");
    leave_unclean(&first);
    let unclean = fixture.volumes.copy("a", "c").unwrap();
    let again = fixture.volumes.copy("c", "d").unwrap();
    let all = [&first, &second, &unclean, &again];
    let uuids: HashSet<_> = all.into_iter().map(uuid).collect();
    assert_eq!(uuids.len(), 4);
    for copy in [&unclean, &again] {
        assert_eq!(get(copy, "greeting"), "hello");
        fsck(copy);
    }
    // Another size is no other file system.
    let before = uuid(&again);
    let larger = fixture.volumes.resize("d", 32 * MIB).unwrap();
    assert_eq!(uuid(&larger), before);
    fsck(&larger);
    // The copy was what recovered, not what it was made of.
    let opened = fixture.volumes.open("a", true);
    assert!(
        matches!(opened, Err(Error::Open(OpenError::NeedsRecovery { .. }))),
        "{opened:?}"
    );
}

/// File systems of other hands may have no checksums.
#[test]
fn a_volume_without_checksums_is_copied() {
    let fixture = Fixture::new();
    let volume = fixture.create("a");
    let mut mkfs = Command::new("/usr/sbin/mkfs.ext4");
    mkfs.args(["-q", "-F", "-O", "^metadata_csum,^metadata_csum_seed"]);
    let output = child::output(mkfs.arg(&volume.path)).unwrap();
    assert!(output.status.success(), "{output:?}");
    let copy = fixture.volumes.copy("a", "b").unwrap();
    assert_ne!(uuid(&copy), uuid(&volume));
    fsck(&copy);
}

#[test]
fn volumes_are_made_listed_and_removed() {
    let fixture = Fixture::new();
    assert_eq!(fixture.volumes.list().unwrap(), []);
    let b = fixture.create("b");
    let a = fixture.create("a");
    assert_eq!(a.size, 16 * MIB);
    assert!(a.used < 4 * MIB, "{a:?}");
    assert_eq!(fixture.volumes.list().unwrap(), [a, b]);
    fixture.volumes.remove("a").unwrap();
    let missing = fixture.volumes.remove("a").unwrap_err().to_string();
    assert_eq!(missing, "named volume not found: a");
    assert_eq!(fixture.files(), ["b.ext4"]);
}

#[test]
fn a_name_is_given_once() {
    let fixture = Fixture::new();
    let volume = fixture.create("a");
    put(&volume, "kept", "content");
    let again = fixture.volumes.create("a", 16 * MIB, &fixture.cache);
    assert_eq!(
        again.unwrap_err().to_string(),
        "named volume already exists: a"
    );
    assert_eq!(get(&volume, "kept"), "content");
    assert_eq!(fixture.files(), ["a.ext4"]);
}

#[test]
fn names_are_checked() {
    let fixture = Fixture::new();
    let nameless = fixture.volumes.create("", 16 * MIB, &fixture.cache);
    assert!(matches!(nameless, Err(Error::Nameless)), "{nameless:?}");
    for name in [
        ".",
        "..",
        "-a",
        "a/b",
        "a b",
        "a\0",
        "ä",
        ".a",
        &"x".repeat(201),
    ] {
        let refused = fixture.volumes.create(name, 16 * MIB, &fixture.cache);
        assert!(matches!(refused, Err(Error::Name(_))), "{name:?}");
    }
    fixture.create("0-A_b.c");
}

#[test]
fn a_volume_that_is_in_use_stays_as_it_is() {
    let fixture = Fixture::new();
    let volume = fixture.create("a");
    let vm = fixture.volumes.open("a", false).unwrap();
    for refused in [
        fixture.volumes.remove("a").unwrap_err(),
        fixture.volumes.resize("a", 32 * MIB).unwrap_err(),
        fixture.volumes.copy("a", "b").unwrap_err(),
        fixture.volumes.open("a", true).unwrap_err(),
    ] {
        assert!(matches!(refused, Error::InUse(_)), "{refused}");
    }
    drop(vm);
    // Who only reads does not disturb a copy.
    let _vm = fixture.volumes.open("a", true).unwrap();
    fixture.volumes.copy("a", "b").unwrap();
    assert!(fixture.volumes.remove("a").is_err());
    assert!(volume.path.exists());
    assert_eq!(fixture.files(), ["a.ext4", "b.ext4"]);
}

#[test]
fn a_copy_has_the_same_content() {
    let fixture = Fixture::new();
    let volume = fixture.create("a");
    put(&volume, "greeting", "hello");
    let copy = fixture.volumes.copy("a", "b").unwrap();
    assert_eq!(get(&copy, "greeting"), "hello");
    fsck(&copy);
    let taken = fixture.volumes.copy("a", "b").unwrap_err().to_string();
    assert_eq!(taken, "named volume already exists: b");
    assert!(matches!(
        fixture.volumes.copy("a", "a"),
        Err(Error::SameName)
    ));
    let missing = fixture.volumes.copy("c", "d").unwrap_err().to_string();
    assert_eq!(missing, "named volume not found: c");
    assert_eq!(fixture.files(), ["a.ext4", "b.ext4"]);
}

#[test]
fn volumes_grow_and_shrink_with_their_content() {
    let fixture = Fixture::new();
    let volume = fixture.create("a");
    put(&volume, "greeting", "hello");
    for size in [64 * MIB, 24 * MIB] {
        let resized = fixture.volumes.resize("a", size).unwrap();
        assert_eq!(resized.size, size);
        fsck(&resized);
        assert_eq!(get(&resized, "greeting"), "hello");
    }
    // Too small for what is in it: nothing has changed.
    put(&volume, "big", &"x".repeat(20 << 20));
    let refused = fixture.volumes.resize("a", 16 * MIB).unwrap_err();
    assert!(
        matches!(refused, Error::Tool(e2fsprogs::Error::Failed { .. })),
        "{refused}"
    );
    assert_eq!(fixture.volumes.describe("a").unwrap().size, 24 * MIB);
    fsck(&volume);
    assert!(fixture.volumes.resize("a", 1).is_err());
    assert_eq!(fixture.files(), ["a.ext4"]);
}

#[test]
fn what_a_killed_process_left_is_no_obstacle() {
    let fixture = Fixture::new();
    fixture.create("other");
    for left in [".a.ext4.new", ".b.ext4.new"] {
        fs::write(fixture.dir.path().join("volumes").join(left), "half").unwrap();
    }
    assert_eq!(fixture.volumes.list().unwrap().len(), 1);
    fixture.create("a");
    assert_eq!(fixture.files(), ["a.ext4", "other.ext4"]);
}

#[test]
fn a_damaged_volume_can_be_removed() {
    let fixture = Fixture::new();
    let volume = fixture.create("a");
    fs::write(&volume.path, "nothing like a file system").unwrap();
    assert!(fixture.volumes.open("a", false).is_err());
    fixture.volumes.remove("a").unwrap();
    assert_eq!(fixture.volumes.list().unwrap(), []);
}
