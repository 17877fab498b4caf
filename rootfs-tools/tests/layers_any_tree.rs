//! Any tree that is put into an archive comes out of it as it was.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used
)]
#![allow(clippy::panic, clippy::indexing_slicing)]

#[path = "support/any_tree.rs"]
mod any_tree;
#[path = "support/archive.rs"]
#[allow(dead_code)]
mod archive;
mod support;

use any_tree::{additions, grown};
use archive::{Item, flattened};
use flashpan_rootfs::tree::Tree;
use proptest::prelude::*;
use support::{Listing, What, expected};

/// What the tree looks like, as far as Linux has it: symbolic links have no
/// permissions, and PAX no times beyond those that a file system keeps.
fn as_linux_has_it(tree: &Tree) -> Listing {
    let mut listing = expected(tree);
    for seen in listing.values_mut() {
        if matches!(seen.what, What::Symlink(_)) {
            seen.permissions = 0o777;
        }
        seen.modified.0 %= 1 << 40;
    }
    listing
}

/// An archive of the listing; the paths of directories come before those in them.
fn items(listing: &Listing) -> Vec<Item> {
    let item = |(path, seen): (&Vec<u8>, &support::Seen)| {
        let path = [b".", &path[..]].concat();
        let (kind, link, device, data) = match &seen.what {
            _ if seen.same_as != path[1..] => (
                b'1',
                [b"./", &seen.same_as[1..]].concat(),
                (0, 0),
                Vec::new(),
            ),
            What::Directory => (b'5', Vec::new(), (0, 0), Vec::new()),
            What::Regular(data) => (b'0', Vec::new(), (0, 0), data.clone()),
            What::Symlink(target) => (b'2', target.clone(), (0, 0), Vec::new()),
            What::CharDevice(major, minor) => (b'3', Vec::new(), (*major, *minor), Vec::new()),
            What::BlockDevice(major, minor) => (b'4', Vec::new(), (*major, *minor), Vec::new()),
            What::Fifo | What::Socket => (b'6', Vec::new(), (0, 0), Vec::new()),
        };
        Item {
            link,
            device,
            data,
            mode: seen.permissions.into(),
            owner: (seen.owner.0.into(), seen.owner.1.into()),
            modified: seen.modified,
            xattrs: seen.xattrs.clone().into_iter().collect(),
            ..Item::new(path, kind)
        }
    };
    listing.iter().map(item).collect()
}

/// Names that mean something else in a layer, and paths that Linux does not take.
fn is_for_layers(path: &[u8]) -> bool {
    path.len() < 4000
        && !path
            .split(|byte| *byte == b'/')
            .any(|name| name.starts_with(b".wh."))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_tree_comes_out_of_an_archive_as_it_was(additions in additions()) {
        let listing = as_linux_has_it(&grown(additions));
        prop_assume!(listing.keys().all(|path| is_for_layers(path)));
        let items = items(&listing);
        // In one layer; and over itself, which changes nothing but hard links,
        // each of which is then made anew.
        for layers in [&[&items[..]][..], &[&items, &items]] {
            let tree = flattened(layers);
            let seen = expected(&tree);
            let paths = |listing: &Listing| listing.keys().cloned().collect::<Vec<_>>();
            prop_assert_eq!(paths(&seen), paths(&listing));
            for (path, seen) in &seen {
                prop_assert_eq!(seen, &listing[path], "{}", String::from_utf8_lossy(path));
            }
        }
    }
}
