//! Images as other programs read them: everything that goes into one comes out.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used
)]
#![allow(clippy::panic, clippy::indexing_slicing)]

mod support;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;

use flashpan_rootfs::erofs::{self, Error, Options};
use flashpan_rootfs::tree::{Content, Metadata, Node, Source, SourceError, Timestamp, Tree};
use support::{check, file, fsck, load, seen, write};

fn tree() -> Tree {
    Tree::new(Metadata::root_owned(0o755))
}

fn meta() -> Metadata {
    Metadata::root_owned(0o644)
}

fn xattr(name: &str, size: usize) -> BTreeMap<Vec<u8>, Vec<u8>> {
    BTreeMap::from([(name.into(), vec![b'v'; size])])
}

#[test]
fn an_empty_root() {
    let summary = check(&tree());
    assert_eq!((summary.inodes, summary.content), (1, 0));
}

#[test]
fn every_type_with_every_bit_of_the_mode() {
    let mut tree = tree();
    let root = tree.root();
    let nodes = [
        Node::Directory,
        file(1),
        Node::Symlink(b"target".into()),
        Node::CharDevice { major: 5, minor: 1 },
        Node::BlockDevice {
            major: 4095,
            minor: 0xf_ffff,
        },
        Node::Fifo,
        Node::Socket,
    ];
    for (index, node) in nodes.into_iter().enumerate() {
        let mut metadata = meta();
        metadata.permissions = 0o7777 >> index;
        tree.add(root, format!("{index}").as_bytes(), metadata, node)
            .unwrap();
    }
    check(&tree);
}

#[test]
fn files_of_sizes_around_blocks_and_tails() {
    let mut tree = tree();
    let root = tree.root();
    // 4096 - 64 and 4096 - 32 are the tails that just fit next to an inode.
    for around in [
        0,
        1,
        4032,
        4064,
        4096,
        8192 - 64,
        8192,
        65_536,
        262_144,
        1 << 20,
    ] {
        for size in [around - around.min(1), around, around + 1] {
            let _ = tree.add(root, format!("{size}").as_bytes(), meta(), file(size));
        }
    }
    check(&tree);
}

#[test]
fn a_directory_over_many_blocks() {
    let mut tree = tree();
    let big = tree.add(
        tree.root(),
        b"big",
        Metadata::root_owned(0o755),
        Node::Directory,
    );
    let big = big.unwrap();
    for number in 0..6000 {
        let name = format!("{number}{}", "x".repeat(number % 250));
        let node = if number % 7 == 0 {
            Node::Directory
        } else {
            file(number % 5)
        };
        tree.add(big, name.as_bytes(), meta(), node).unwrap();
    }
    check(&tree);
}

#[test]
fn names_of_any_bytes_and_any_length() {
    let mut tree = tree();
    let root = tree.root();
    for byte in 1..=255_u8 {
        for length in [1, 2, 255] {
            // `/`, `.` and `..` are refused.
            let _ = tree.add(root, &vec![byte; length], meta(), file(1));
        }
    }
    assert_eq!(tree.get(root).unwrap().entries().count(), 3 * 254 - 2);
    check(&tree);
}

#[test]
fn directories_whose_content_ends_with_a_block() {
    let mut tree = tree();
    let root = tree.root();
    // The dots take 27 bytes, fifteen names of 255 bytes 4005, so that these
    // last names leave one byte, fill the block, or start the next.
    for last in 50..=54 {
        let name = format!("{last}");
        let directory = tree
            .add(
                root,
                name.as_bytes(),
                Metadata::root_owned(0o755),
                Node::Directory,
            )
            .unwrap();
        for letter in b'a'..b'p' {
            tree.add(directory, &[letter; 255], meta(), file(0))
                .unwrap();
        }
        tree.add(directory, &vec![b'z'; last], meta(), file(0))
            .unwrap();
    }
    check(&tree);
}

#[test]
fn images_whose_last_block_is_full_of_inodes() {
    for count in 165..180 {
        let mut tree = tree();
        let root = tree.root();
        for number in 0..count {
            let name = format!("{number:03}");
            tree.add(root, name.as_bytes(), meta(), Node::Fifo).unwrap();
        }
        check(&tree);
    }
}

#[test]
fn deep_directories() {
    let mut tree = tree();
    let mut at = tree.root();
    for _ in 0..1500 {
        at = tree
            .add(at, b"d", Metadata::root_owned(0o755), Node::Directory)
            .unwrap();
    }
    // Readers recurse; that the writer does not is what is shown here.
    let (image, summary) = write(&tree, &Options::default());
    assert_eq!(summary.inodes, 1501);
    assert!(image.metadata().unwrap().len() > 0);
}

#[test]
fn long_targets_of_symbolic_links_with_and_without_attributes() {
    let mut tree = tree();
    let root = tree.root();
    for size in [1, 4031, 4032, 4033, 4064, 4065, 4095] {
        for attributes in [0, 100, 4000] {
            let mut metadata = Metadata::root_owned(0o777);
            if attributes > 0 {
                metadata.xattrs = xattr("trusted.a", attributes);
            }
            let name = format!("{size}-{attributes}");
            tree.add(
                root,
                name.as_bytes(),
                metadata,
                Node::Symlink(vec![b't'; size]),
            )
            .unwrap();
        }
    }
    check(&tree);
}

#[test]
fn hard_links_share_an_inode_and_are_counted() {
    let mut tree = tree();
    let root = tree.root();
    let directory = tree
        .add(root, b"z", Metadata::root_owned(0o755), Node::Directory)
        .unwrap();
    let id = tree.add(root, b"m", meta(), file(5000)).unwrap();
    tree.link(root, b"a", id).unwrap();
    tree.link(directory, b"b", id).unwrap();
    let many = tree.add(root, b"many", meta(), Node::Fifo).unwrap();
    // More than the 16 bits of a compact inode.
    for number in 0..70_000 {
        tree.link(directory, format!("link{number}").as_bytes(), many)
            .unwrap();
    }
    let summary = check(&tree);
    assert_eq!((summary.inodes, summary.content), (4, 5000));
}

#[test]
fn a_name_that_was_removed_does_not_count() {
    let mut tree = tree();
    let root = tree.root();
    let id = tree.add(root, b"a", meta(), file(10)).unwrap();
    tree.link(root, b"b", id).unwrap();
    let gone = tree
        .add(root, b"gone", Metadata::root_owned(0o755), Node::Directory)
        .unwrap();
    tree.add(gone, b"file", meta(), file(100_000)).unwrap();
    tree.remove(root, b"gone").unwrap();
    tree.remove(root, b"a").unwrap();
    assert_eq!(check(&tree).content, 10);
}

#[test]
fn attributes_of_all_kinds_and_sizes() {
    let mut tree = tree();
    let root = tree.root();
    let names = [
        "user.a",
        "trusted.overlay.opaque",
        "security.capability",
        "system.posix_acl_access",
        "system.posix_acl_default",
    ];
    for size in [0, 1, 2, 3, 4, 1100, 3990, 4020, 4096, 20_000, 65_535] {
        let mut metadata = meta();
        for name in names.iter().take(if size > 5000 { 3 } else { 5 }) {
            metadata.xattrs.extend(xattr(name, size));
        }
        tree.add(root, format!("{size}").as_bytes(), metadata, file(size))
            .unwrap();
    }
    let mut metadata = Metadata::root_owned(0o755);
    for number in 0..200 {
        let name = format!("user.{number}{}", "n".repeat(240));
        metadata.xattrs.extend(xattr(&name, number));
    }
    tree.get_mut(root).unwrap().metadata = metadata;
    check(&tree);
}

#[test]
fn owners_and_times_beyond_the_compact_inode() {
    let mut tree = tree();
    let root = tree.root();
    for (index, (uid, seconds, nanoseconds)) in [
        (0, 0, 0),
        (65_535, 0, 0),
        (65_536, 0, 0),
        (4_000_000_000, 0, 0),
        (u32::MAX - 1, -1, 999_999_999),
        (1000, 1_795_528_483, 123_456_789),
        (1000, 1 << 33, 0),
    ]
    .into_iter()
    .enumerate()
    {
        let mut metadata = meta();
        metadata.uid = uid;
        metadata.gid = u32::MAX - 1 - uid;
        metadata.modified = Timestamp {
            seconds,
            nanoseconds,
        };
        tree.add(root, format!("{index}").as_bytes(), metadata, file(10))
            .unwrap();
    }
    check(&tree);
}

#[test]
fn ranges_of_a_file_are_contents() {
    let whole = tempfile::tempfile().unwrap();
    let bytes: Vec<u8> = (0..=250).cycle().take(300_000).collect();
    whole.write_all_at(&bytes, 0).unwrap();
    let whole = Arc::new(whole);
    let mut tree = tree();
    for (offset, length) in [
        (0, 300_000),
        (512, 4096),
        (1, 0),
        (299_999, 1),
        (1000, 200_000),
    ] {
        let file = Arc::clone(&whole);
        let node = Node::Regular(Content::Range {
            file,
            offset,
            length,
        });
        let name = format!("{offset}-{length}");
        tree.add(tree.root(), name.as_bytes(), meta(), node)
            .unwrap();
    }
    check(&tree);
}

/// A file of 5 GiB with data at its start, in the middle and at its end.
#[derive(Debug)]
struct Sparse(Arc<File>);

impl Source for Sparse {
    fn size(&self) -> u64 {
        5 << 30
    }

    fn open(&self) -> Result<File, SourceError> {
        Ok(self.0.try_clone()?)
    }
}

#[test]
fn a_sparse_file_of_5_gib_makes_a_sparse_image() {
    let sparse = tempfile::tempfile().unwrap();
    sparse.set_len(5 << 30).unwrap();
    for offset in [0, 3 << 30, (5 << 30) - 4096] {
        sparse.write_all_at(&[0xa5; 4096], offset).unwrap();
    }
    let mut tree = tree();
    let node = Node::Regular(Content::Source(Box::new(Sparse(Arc::new(sparse)))));
    tree.add(tree.root(), b"sparse", meta(), node).unwrap();
    let image = tempfile::tempfile().unwrap();
    let (mut told, mut last) = (0, None);
    let summary = erofs::write(&tree, &Options::default(), &image, &mut |progress| {
        assert!(progress.done >= told, "progress never goes back");
        told = progress.done;
        last = Some(progress);
    })
    .unwrap();
    assert!(summary.size > 5 << 30);
    assert_eq!(last.unwrap().done, last.unwrap().total);
    assert!(image.metadata().unwrap().blocks() * 512 < 1 << 20);
    // The data area follows two blocks; look at it without reading 5 GiB.
    let mut found = Vec::new();
    let mut block = [0; 4096];
    for offset in [0, 4096, 3 << 30, (3 << 30) + 4096, (5 << 30) - 4096] {
        image.read_exact_at(&mut block, 2 * 4096 + offset).unwrap();
        found.push(block[0]);
        assert_eq!(block, [block[0]; 4096]);
    }
    assert_eq!(found, [0xa5, 0, 0xa5, 0, 0xa5]);
}

#[test]
fn the_same_tree_gives_the_same_bytes_however_it_was_made() {
    let names: Vec<String> = (0..500).map(|number| format!("file{number}")).collect();
    let make = |names: &mut dyn Iterator<Item = &String>, link_from: &[u8], link_to: &[u8]| {
        let mut tree = tree();
        let root = tree.root();
        for name in names {
            let mut metadata = meta();
            metadata.modified.seconds = i64::try_from(name.len()).unwrap();
            tree.add(root, name.as_bytes(), metadata, file(name.len() * 997))
                .unwrap();
        }
        let id = tree.add(root, link_from, meta(), file(1)).unwrap();
        tree.link(root, link_to, id).unwrap();
        load(&write(&tree, &Options::default()).0)
    };
    let one = make(&mut names.iter(), b"x", b"y");
    let other = make(&mut names.iter().rev(), b"y", b"x");
    assert!(one == other);
}

#[test]
fn the_uuid_is_the_callers() {
    let uuid = *b"0123456789abcdef";
    let options = Options {
        uuid,
        ..Options::default()
    };
    let (image, _) = write(&tree(), &options);
    fsck(&image);
    assert_eq!(load(&image)[1024 + 48..][..16], uuid);
}

/// A source that fails in one of the ways that there are.
#[derive(Debug)]
struct Broken {
    claimed: u64,
    open: Option<io::ErrorKind>,
    changed: bool,
}

impl Source for Broken {
    fn size(&self) -> u64 {
        self.claimed
    }

    fn open(&self) -> Result<File, SourceError> {
        if let Some(kind) = self.open {
            return Err(io::Error::from(kind).into());
        }
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[1; 100], 0).unwrap();
        Ok(file)
    }

    fn verify(&self, _: &File) -> Result<(), SourceError> {
        if self.changed {
            Err(SourceError::Changed)
        } else {
            Ok(())
        }
    }
}

#[test]
fn contents_that_fail_are_named_and_leave_no_image() {
    let denied = Some(io::ErrorKind::PermissionDenied);
    for (claimed, open, changed, wanted) in [
        (
            100,
            denied,
            false,
            "cannot read /dir/file: permission denied",
        ),
        (100, None, true, "/dir/file changed while it was copied"),
        (101, None, false, "/dir/file changed while it was copied"),
        (10_000, None, false, "/dir/file changed while it was copied"),
        (
            10 << 20,
            None,
            false,
            "/dir/file changed while it was copied",
        ),
    ] {
        let mut tree = tree();
        let directory = tree
            .add(
                tree.root(),
                b"dir",
                Metadata::root_owned(0o755),
                Node::Directory,
            )
            .unwrap();
        let source = Box::new(Broken {
            claimed,
            open,
            changed,
        });
        tree.add(
            directory,
            b"file",
            meta(),
            Node::Regular(Content::Source(source)),
        )
        .unwrap();
        let image = tempfile::NamedTempFile::new().unwrap();
        let error = erofs::write(&tree, &Options::default(), image.as_file(), &mut |_| {});
        let error = error.unwrap_err().to_string();
        assert!(error.starts_with(wanted), "{error}");
        flashpan_rootfs::probe::probe(image.path()).unwrap_err();
    }
}

#[test]
fn what_the_format_cannot_hold_is_refused_before_anything_is_written() {
    let refused = |metadata: Metadata, node: Node| {
        let mut tree = tree();
        tree.add(tree.root(), b"odd", metadata, node).unwrap();
        let image = tempfile::tempfile().unwrap();
        image.write_all_at(b"untouched", 0).unwrap();
        let error = erofs::write(&tree, &Options::default(), &image, &mut |_| {}).unwrap_err();
        assert_eq!(load(&image), b"untouched");
        error
    };
    let error = refused(
        meta(),
        Node::CharDevice {
            major: 4096,
            minor: 0,
        },
    );
    assert!(matches!(error, Error::Device { .. }), "{error}");
    let mut metadata = meta();
    metadata.xattrs = xattr("system.nfs4_acl", 1);
    let error = refused(metadata, Node::Fifo);
    assert!(error.to_string().contains("/odd"), "{error}");
    assert!(matches!(error, Error::Xattr { .. }), "{error}");
    for claimed in [16 << 40, u64::MAX] {
        let source = Box::new(Broken {
            claimed,
            open: None,
            changed: false,
        });
        let error = refused(meta(), Node::Regular(Content::Source(source)));
        assert!(matches!(error, Error::ImageTooLarge { .. }), "{error}");
    }
}

#[test]
fn readers_see_what_this_test_expects_of_them() {
    // That `check` can fail: another tree is not the same.
    let mut tree = tree();
    tree.add(tree.root(), b"a", meta(), file(1)).unwrap();
    let image = load(&write(&tree, &Options::default()).0);
    tree.add(tree.root(), b"b", meta(), file(1)).unwrap();
    assert_ne!(seen(&image), support::expected(&tree));
}
