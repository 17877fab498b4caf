use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::process::Command;
use std::time::{Duration, SystemTime};

use super::*;
use crate::tree::{InodeId, Node, Timestamp, Tree};

/// A directory to be made an image of, and a cache for it.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        fs::create_dir(place.root()).unwrap();
        place
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    fn cache(&self) -> Cache {
        Cache::at(self.dir.path().join("cache"))
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        let path = self.root().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn image(&self) -> Cached {
        image(
            &self.root(),
            &Options::default(),
            &self.cache(),
            &mut |_| {},
        )
        .unwrap()
    }

    /// Names of all images and half-written images in the cache.
    fn images(&self) -> Vec<String> {
        let names = fs::read_dir(self.dir.path().join("cache/roots")).unwrap();
        names
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| !name.ends_with(".lock"))
            .collect()
    }

    fn tree(&self) -> Tree {
        Scan::new(&self.root(), &Options::default()).unwrap().tree
    }

    /// Waits until the clock that stamps files has ticked since the last write:
    /// then, and not before, a state has one fingerprint.
    fn tick(&self) {
        let fingerprint =
            || scan::Fingerprint::of(&self.root(), &Options::default(), &mut |_| {}).unwrap();
        while fingerprint() != fingerprint() {}
    }
}

fn lookup(tree: &Tree, path: &str) -> Option<InodeId> {
    path.split('/')
        .try_fold(tree.root(), |at, part| tree.lookup(at, part.as_bytes()))
}

#[test]
fn an_unchanged_directory_is_copied_once() {
    let place = Place::new();
    place.write("etc/hostname", b"one\n");
    place.tick();
    let first = place.image();
    assert!(first.made);
    let second = image(
        &place.root(),
        &Options::default(),
        &place.cache(),
        &mut |_| panic!("nothing to copy and nobody to wait for"),
    )
    .unwrap();
    assert!(!second.made);
    assert_eq!(first.path, second.path);
    assert_eq!(
        first.file.metadata().unwrap().ino(),
        second.file.metadata().unwrap().ino()
    );
}

#[test]
fn every_change_is_seen_and_the_old_image_goes() {
    let place = Place::new();
    place.write("a/file", b"1");
    place.write("b", b"1");
    symlink("one", place.root().join("link")).unwrap();
    let file = place.root().join("a/file");
    let changes: [&dyn Fn(); 7] = [
        &|| fs::write(&file, "2").unwrap(),
        &|| fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap(),
        &|| fs::rename(place.root().join("b"), place.root().join("c")).unwrap(),
        &|| place.write("a/new", b""),
        &|| fs::remove_file(place.root().join("a/new")).unwrap(),
        // What rsync -t, cp -p and tar do: same size, same mtime.
        &|| {
            let modified = fs::metadata(&file).unwrap().modified().unwrap();
            fs::write(&file, "3").unwrap();
            File::options()
                .write(true)
                .open(&file)
                .unwrap()
                .set_modified(modified)
                .unwrap();
        },
        &|| {
            fs::remove_file(place.root().join("link")).unwrap();
            symlink("two", place.root().join("link")).unwrap();
        },
    ];
    for (index, change) in changes.into_iter().enumerate() {
        place.tick();
        let before = place.image();
        assert!(!place.image().made);
        change();
        let after = place.image();
        assert!(after.made, "change {index} was not seen");
        assert_ne!(after.path, before.path);
        assert_eq!(place.images().len(), 1, "{:?}", place.images());
        // Whoever uses the old image still can.
        assert!(before.file.metadata().unwrap().len() > 0);
    }
}

#[test]
fn a_change_within_a_tick_of_the_clock_is_seen() {
    let place = Place::new();
    for round in 0..20_u8 {
        place.write("file", &[b'a' + round]);
        let scan = Scan::new(&place.root(), &Options::default()).unwrap();
        let image = place.image();
        // The content that the image has is the newest, however fast it came.
        let id = lookup(&scan.tree, "file").unwrap();
        assert!(matches!(
            scan.tree.get(id).unwrap().node(),
            Node::Regular(_)
        ));
        let mut bytes = vec![0; usize::try_from(image.file.metadata().unwrap().len()).unwrap()];
        image.file.read_exact_at(&mut bytes, 0).unwrap();
        let fs = erofs_rs::EroFS::new(erofs_rs::backend::SliceImage::new(&bytes)).unwrap();
        let mut content = [0];
        fs.open("/file").unwrap().read_at(&mut content, 0).unwrap();
        assert_eq!(content, [b'a' + round]);
    }
}

#[test]
fn times_in_the_far_future_do_not_make_every_state_a_new_one() {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
    let unclear = |seconds, nanoseconds| {
        let changed = Timestamp {
            seconds,
            nanoseconds,
        };
        scan::may_change_unseen(changed, now)
    };
    assert!(unclear(1_000_000, 0) && unclear(999_999, 995_000_000));
    assert!(unclear(1_000_030, 0), "a file server is ahead");
    assert!(!unclear(999_999, 0) && !unclear(0, 0) && !unclear(-5, 0));
    assert!(!unclear(2_000_000, 0) && !unclear(i64::MAX, 999_999_999));
    assert!(!unclear(i64::MIN, 0));
}

#[test]
fn half_written_images_are_never_used() {
    let place = Place::new();
    place.write("file", b"content");
    place.tick();
    let made = place.image();
    let name = made.path.file_name().unwrap().to_str().unwrap();
    let partial = format!("{}.partial", name.split('-').next().unwrap());
    fs::remove_file(&made.path).unwrap();
    // What a builder that was killed leaves behind.
    fs::write(made.path.with_file_name(&partial), "half").unwrap();
    let again = place.image();
    assert!(again.made);
    assert_eq!(place.images(), [name]);
    assert_eq!(
        made.file.metadata().unwrap().len(),
        again.file.metadata().unwrap().len()
    );
}

#[test]
fn of_several_at_once_one_copies() {
    let place = Place::new();
    for number in 0..50 {
        place.write(&format!("file{number}"), &vec![7; 100_000]);
    }
    place.tick();
    let made: Vec<bool> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| place.image().made)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    assert_eq!(made.iter().filter(|made| **made).count(), 1, "{made:?}");
    assert_eq!(place.images().len(), 1);
}

#[test]
fn links_out_of_the_tree_are_kept_not_followed() {
    let place = Place::new();
    fs::write(place.dir.path().join("secret"), "outside").unwrap();
    fs::create_dir(place.dir.path().join("outside")).unwrap();
    fs::write(place.dir.path().join("outside/file"), "outside").unwrap();
    symlink("../secret", place.root().join("file")).unwrap();
    symlink("../outside", place.root().join("dir")).unwrap();
    symlink("/nowhere", place.root().join("dangling")).unwrap();
    let tree = place.tree();
    for (name, target) in [
        ("file", "../secret"),
        ("dir", "../outside"),
        ("dangling", "/nowhere"),
    ] {
        let inode = tree.get(lookup(&tree, name).unwrap()).unwrap();
        let Node::Symlink(found) = inode.node() else {
            panic!("{name} is {inode:?}")
        };
        assert_eq!(found, target.as_bytes());
        assert_eq!(inode.entries().count(), 0);
    }
}

#[test]
fn the_root_may_be_a_link_to_a_directory_but_not_a_file() {
    let place = Place::new();
    place.write("file", b"x");
    let link = place.dir.path().join("link");
    symlink(place.root(), &link).unwrap();
    let scan = Scan::new(&link, &Options::default()).unwrap();
    assert!(lookup(&scan.tree, "file").is_some());
    for path in [place.root().join("file"), place.root().join("nothing")] {
        let error = Scan::new(&path, &Options::default())
            .unwrap_err()
            .to_string();
        assert!(error.contains(path.to_str().unwrap()), "{error}");
    }
}

#[test]
fn a_file_that_changes_after_the_walk_is_an_error() {
    let place = Place::new();
    place.write("dir/file", b"before");
    let changes: [&dyn Fn(); 5] = [
        &|| place.write("dir/file", b"after!"),
        &|| place.write("dir/file", b"longer than before"),
        &|| fs::remove_file(place.root().join("dir/file")).unwrap(),
        // A link or a FIFO in its place must neither be followed nor waited for.
        &|| symlink("/etc/passwd", place.root().join("dir/file")).unwrap(),
        &|| {
            fs::remove_file(place.root().join("dir/file")).unwrap();
            let mut mkfifo = Command::new("mkfifo");
            let made = crate::child::output(mkfifo.arg(place.root().join("dir/file")));
            assert!(made.unwrap().status.success());
        },
    ];
    let scan = || Scan::new(&place.root(), &Options::default()).unwrap();
    place.tick();
    let scan = scan();
    for change in changes {
        change();
        let image = tempfile::tempfile().unwrap();
        let options = erofs::Options::default();
        let error = erofs::write(&scan.tree, &options, &image, &mut |_| {}).unwrap_err();
        assert_eq!(
            error.to_string(),
            "/dir/file changed while it was copied; stop what writes to it and try again"
        );
        place.tick();
    }
}

#[test]
fn a_directory_replaced_by_a_link_does_not_lead_out_of_the_tree() {
    let place = Place::new();
    place.write("dir/file", b"inside");
    let scan = Scan::new(&place.root(), &Options::default()).unwrap();
    // The very same file, so that only the way to it tells.
    fs::rename(place.root().join("dir"), place.dir.path().join("moved")).unwrap();
    symlink("../moved", place.root().join("dir")).unwrap();
    let image = tempfile::tempfile().unwrap();
    let options = erofs::Options::default();
    let error = erofs::write(&scan.tree, &options, &image, &mut |_| {}).unwrap_err();
    assert!(matches!(error, erofs::Error::Changed { .. }), "{error}");
}

#[test]
fn hard_links_sparse_files_and_times_are_kept() {
    let place = Place::new();
    place.write("a", b"linked");
    fs::create_dir(place.root().join("dir")).unwrap();
    fs::hard_link(place.root().join("a"), place.root().join("dir/b")).unwrap();
    let sparse = File::create(place.root().join("sparse")).unwrap();
    sparse.set_len(1 << 30).unwrap();
    sparse.write_all_at(b"end", (1 << 30) - 3).unwrap();
    let time = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
    File::open(place.root().join("a"))
        .unwrap()
        .set_modified(time)
        .unwrap();
    let tree = place.tree();
    let id = lookup(&tree, "a").unwrap();
    assert_eq!(lookup(&tree, "dir/b"), Some(id));
    let modified = tree.get(id).unwrap().metadata.modified;
    assert_eq!(
        (modified.seconds, modified.nanoseconds),
        (1_000_000_000, 123_456_789)
    );
    let image = place.image().file.metadata().unwrap();
    assert!(image.len() > 1 << 30);
    assert!(image.blocks() * 512 < 1 << 20, "{} blocks", image.blocks());
}

#[test]
fn extended_attributes_are_kept() {
    let place = Place::new();
    place.write("file", b"x");
    let path = place.root().join("file");
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(&path, "user.flashpan", b"value", flags)
        .expect("this test needs a temporary directory with extended attributes");
    let tree = place.tree();
    let inode = tree.get(lookup(&tree, "file").unwrap()).unwrap();
    let name: &[u8] = b"user.flashpan";
    assert_eq!(
        inode.metadata.xattrs.get(name).map(Vec::as_slice),
        Some(&b"value"[..])
    );
}

#[test]
fn other_file_systems_show_as_empty_directories_unless_wanted() {
    // Of those that are mounted wherever programs run, /dev has a small one.
    let seen = |cross| {
        let (mut seen, mut left_out) = (Vec::new(), Vec::new());
        let walked = walk::walk(Path::new("/dev"), cross, &mut |step| {
            match step {
                walk::Step::Found(found) => seen.push(found.path.to_owned()),
                walk::Step::LeftOut(path) => left_out.push(path.to_owned()),
                walk::Step::Leave => {}
            }
            Ok(())
        });
        walked.unwrap();
        (seen, left_out)
    };
    let (mount, file) = (PathBuf::from("/dev/pts"), PathBuf::from("/dev/pts/ptmx"));
    let (without, left_out) = seen(false);
    assert!(without.contains(&mount) && !without.contains(&file));
    assert!(left_out.contains(&mount), "{left_out:?}");
    let (with, left_out) = seen(true);
    assert!(with.contains(&mount) && with.contains(&file));
    assert!(left_out.is_empty(), "{left_out:?}");
}

#[test]
fn what_cannot_be_read_is_named_and_leaves_no_image() {
    // A file that not even root may read.
    let root = Path::new("/proc/sys/vm");
    let place = Place::new();
    let error = image(root, &Options::default(), &place.cache(), &mut |_| {}).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot make an image of /proc/sys/vm: cannot read /compact_memory: \
         Permission denied (os error 13)"
    );
    assert_eq!(place.images(), Vec::<String>::new());
}
