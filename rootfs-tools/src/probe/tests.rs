use std::process::Command;

use super::*;
use crate::tree::{Metadata, Tree};

mod privileged;

fn erofs_image(path: &Path) -> u64 {
    let tree = Tree::new(Metadata::root_owned(0o755));
    let file = File::create(path).unwrap();
    let options = crate::erofs::Options::default();
    crate::erofs::write(&tree, &options, &file, &mut |_| {})
        .unwrap()
        .size
}

fn poke(path: &Path, offset: u64, bytes: &[u8]) {
    let file = File::options().write(true).open(path).unwrap();
    file.write_all_at(bytes, offset).unwrap();
}

#[test]
fn directories_and_links_to_them_are_directories() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(probe(dir.path()).unwrap(), RootImage::Directory);
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(dir.path(), &link).unwrap();
    assert_eq!(probe(&link).unwrap(), RootImage::Directory);
}

#[test]
fn erofs_is_known_and_a_truncated_one_told_with_both_sizes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let size = erofs_image(&path);
    let compressed = false;
    assert_eq!(probe(&path).unwrap(), RootImage::Erofs { size, compressed });
    let file = File::options().write(true).open(&path).unwrap();
    file.set_len(size - 1).unwrap();
    let error = probe(&path).unwrap_err().to_string();
    assert!(error.contains("truncated"), "{error}");
    for part in [size, size - 1] {
        assert!(error.contains(&part.to_string()), "{error}");
    }
    file.set_len(SUPER_OFFSET + 4).unwrap();
    probe(&path).unwrap_err();
}

#[test]
fn erofs_that_no_guest_mounts_is_refused_and_compression_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    for (offset, bytes) in [(12, &[13][..]), (12, &[0]), (36, &[0; 4]), (86, &[1])] {
        erofs_image(&path);
        poke(&path, SUPER_OFFSET + offset, bytes);
        let error = probe(&path).unwrap_err();
        assert!(matches!(error, Error::Superblock { .. }), "{error}");
    }
    for offset in [80, 84] {
        erofs_image(&path);
        poke(&path, SUPER_OFFSET + offset, &[1]);
        let RootImage::Erofs { compressed, .. } = probe(&path).unwrap() else {
            panic!("not EROFS");
        };
        assert!(compressed);
    }
}

#[test]
fn ext4_is_known_with_its_size_and_its_journal() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let size = 8 << 20;
    File::create(&path).unwrap().set_len(size).unwrap();
    let mut mkfs = Command::new("/usr/sbin/mkfs.ext4");
    let made = crate::child::output(mkfs.args(["-q", "-F"]).arg(&path))
        .expect("mkfs.ext4 is needed by this test: apt-get install e2fsprogs");
    assert!(made.status.success());
    let needs_recovery = false;
    assert_eq!(
        probe(&path).unwrap(),
        RootImage::Ext4 {
            size,
            needs_recovery
        }
    );
    let incompat = SUPER_OFFSET + 96;
    let mut flags = [0];
    File::open(&path)
        .unwrap()
        .read_exact_at(&mut flags, incompat)
        .unwrap();
    poke(&path, incompat, &[flags[0] | 4]);
    assert!(matches!(
        probe(&path).unwrap(),
        RootImage::Ext4 {
            needs_recovery: true,
            ..
        }
    ));
    let file = File::options().write(true).open(&path).unwrap();
    file.set_len(size / 2).unwrap();
    let error = probe(&path).unwrap_err();
    assert!(matches!(error, Error::Truncated { .. }), "{error}");
    // A size that does not fit 64 bits.
    poke(&path, SUPER_OFFSET + 336, &[0xff; 4]);
    let error = probe(&path).unwrap_err();
    assert!(matches!(error, Error::Superblock { .. }), "{error}");
    poke(&path, SUPER_OFFSET + 24, &[0xff; 4]);
    let error = probe(&path).unwrap_err();
    assert!(matches!(error, Error::Superblock { .. }), "{error}");
}

#[test]
fn an_image_that_is_opened_is_locked_against_writers_and_only_against_them() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let size = erofs_image(&path);
    let compressed = false;
    let (image, file) = open(&path).unwrap();
    assert_eq!(image, RootImage::Erofs { size, compressed });
    let second = open(&path).unwrap();
    let writer = File::options().write(true).open(&path).unwrap();
    assert!(matches!(writer.try_lock(), Err(TryLockError::WouldBlock)));
    drop((file, second));
    writer.try_lock().unwrap();
    let refused = open(&path).unwrap_err().to_string();
    assert!(refused.contains("is in use"), "{refused}");
    assert!(refused.contains(path.to_str().unwrap()), "{refused}");
    assert_eq!(open(dir.path()).unwrap().0, RootImage::Directory);
    let refused = open(Path::new("/dev/null")).unwrap_err().to_string();
    assert!(refused.contains("neither a file"), "{refused}");
}

#[test]
fn anything_else_is_refused_with_what_it_looks_like() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let qcow2 = [&b"QFI\xfb"[..], &[0; 5000]].concat();
    for (content, word) in [
        (&b""[..], "it is empty"),
        (b"hello", "EROFS, ext4 or a directory"),
        (&qcow2, "qcow2"),
        (b"\x1f\x8b\x08", "compressed"),
        (b"\x7fELF", "kernel"),
    ] {
        std::fs::write(&path, content).unwrap();
        let error = probe(&path).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
        assert_eq!(error.lines().count(), 1);
    }
    let error = probe(Path::new("/dev/null")).unwrap_err().to_string();
    assert!(error.contains("neither a file"), "{error}");
    let error = probe(&dir.path().join("nothing")).unwrap_err().to_string();
    assert!(error.contains("No such file"), "{error}");
}
