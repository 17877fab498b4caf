//! Random trees.

use flashpan_rootfs::tree::{InodeId, Metadata, Node, Timestamp, Tree};
use proptest::prelude::*;

use super::support::file;

/// One random addition to a tree.
#[derive(Clone, Debug)]
pub struct Addition {
    parent: prop::sample::Index,
    name: Vec<u8>,
    kind: Kind,
    metadata: Metadata,
}

#[derive(Clone, Debug)]
enum Kind {
    Directory,
    File(usize),
    Symlink(usize),
    Device(u32, u32),
    Fifo,
    Link(prop::sample::Index),
    Remove,
}

pub fn additions() -> impl Strategy<Value = Vec<Addition>> {
    let kind = prop_oneof![
        3 => Just(Kind::Directory),
        4 => prop_oneof![0..200_usize, 3900..4200_usize, 8100..8200_usize, 0..100_000_usize]
            .prop_map(Kind::File),
        2 => prop_oneof![1..100_usize, 3900..4096_usize].prop_map(Kind::Symlink),
        1 => (0..4096_u32, 0..0x10_0000_u32).prop_map(|(major, minor)| Kind::Device(major, minor)),
        1 => Just(Kind::Fifo),
        2 => any::<prop::sample::Index>().prop_map(Kind::Link),
        1 => Just(Kind::Remove),
    ];
    let name = prop_oneof!["[a-c.!-]{1,3}".prop_map(String::into_bytes), any_name()];
    let values = prop_oneof![0..20_usize, 0..6000_usize];
    let xattrs = prop::collection::btree_map("(user|trusted|security)\\.[a-z]{1,20}", values, 0..3);
    let times = prop_oneof![Just((0, 0)), (any::<i64>(), 0..1_000_000_000_u32)];
    let metadata = (0..=0o7777_u16, any::<u32>(), 0..70_000_u32, times, xattrs).prop_map(
        |(permissions, uid, gid, (seconds, nanoseconds), xattrs)| Metadata {
            permissions,
            uid,
            gid,
            modified: Timestamp {
                seconds,
                nanoseconds,
            },
            xattrs: xattrs
                .into_iter()
                .map(|(name, size)| (name.into_bytes(), vec![b'v'; size]))
                .collect(),
        },
    );
    let addition = (any::<prop::sample::Index>(), name, kind, metadata).prop_map(
        |(parent, name, kind, metadata)| Addition {
            parent,
            name,
            kind,
            metadata,
        },
    );
    prop::collection::vec(addition, 0..80)
}

fn any_name() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 1..=255)
}

/// Makes the tree; additions that it refuses are left out.
pub fn grown(additions: Vec<Addition>) -> Tree {
    let mut tree = Tree::new(Metadata::root_owned(0o755));
    let mut directories: Vec<InodeId> = vec![tree.root()];
    let mut files = Vec::new();
    for Addition {
        parent,
        name,
        kind,
        metadata,
    } in additions
    {
        let parent = *parent.get(&directories);
        let node = match kind {
            Kind::Directory => Node::Directory,
            Kind::File(size) => file(size),
            Kind::Symlink(size) => Node::Symlink(vec![b't'; size]),
            Kind::Device(major, minor) => Node::CharDevice { major, minor },
            Kind::Fifo => Node::Fifo,
            Kind::Link(target) => {
                if !files.is_empty() {
                    let _ = tree.link(parent, &name, *target.get(&files));
                }
                continue;
            }
            Kind::Remove => {
                tree.remove(parent, &name);
                continue;
            }
        };
        let is_directory = matches!(node, Node::Directory);
        if let Ok(id) = tree.add(parent, &name, metadata, node) {
            if is_directory {
                &mut directories
            } else {
                &mut files
            }
            .push(id);
        }
    }
    tree
}
