//! Decides where everything goes before anything is written.
//!
//! ```text
//! block 0      superblock (at byte 1024)
//! block 1 …    metadata: inodes, each with its attributes and its data's tail
//! then         data: whole blocks of files, directories, symbolic links
//! ```
//!
//! The order is that of a walk which puts the inodes of a directory's entries
//! next to each other: listing a directory with `stat` on every entry, the
//! first thing that most programs do, then touches few blocks.

use std::collections::{BTreeSet, HashMap};

use super::dirents;
use super::format::{BLOCK, Layout, RawInode, SLOT, SLOTS_PER_BLOCK, Version, device_number};
use super::{Error, Options, xattrs};
use crate::tree::{Inode, InodeId, Node, Timestamp, Tree};

/// The plan of an image.
#[derive(Debug)]
pub(super) struct Plan {
    /// Inodes in the order in which they and their data are written.
    pub(super) inodes: Vec<Placed>,
    /// By [`InodeId::index`].
    slots: Vec<Slot>,
    /// Size of the image in blocks.
    pub(super) blocks: u32,
    /// The superblock's time, which compact inodes share.
    pub(super) built: Timestamp,
    /// Bytes of content of all regular files.
    pub(super) content: u64,
}

/// An inode with its place.
#[derive(Debug)]
pub(super) struct Placed {
    pub(super) id: InodeId,
    pub(super) nid: u64,
    pub(super) raw: RawInode,
}

/// What is found out about an inode of the tree.
#[derive(Clone, Copy, Debug)]
struct Slot {
    nid: u64,
    links: u32,
    parent: InodeId,
}

impl Plan {
    /// Lays out everything that can be reached from the root of `tree`.
    pub(super) fn new(tree: &Tree, options: &Options) -> Result<Self, Error> {
        let (order, slots) = walk(tree);
        let mut plan = Self {
            inodes: Vec::with_capacity(order.len()),
            built: most_common_time(tree, &order),
            slots,
            blocks: 0,
            content: 0,
        };
        let mut metadata = MetadataArea::default();
        for id in order {
            let Some(inode) = tree.get(id) else { continue };
            let raw = plan.describe(tree, id, inode, options)?;
            let nid = metadata.place(footprint(&raw));
            if let Some(slot) = plan.slots.get_mut(id.index()) {
                slot.nid = nid;
            }
            plan.inodes.push(Placed { id, nid, raw });
        }
        plan.place_data(&metadata)?;
        Ok(plan)
    }

    /// Nid of an inode of the tree.
    pub(super) fn nid(&self, id: InodeId) -> u64 {
        self.slots.get(id.index()).map_or(0, |slot| slot.nid)
    }

    /// The directory that an inode was first found in; the root's is itself.
    pub(super) fn parent(&self, id: InodeId) -> InodeId {
        self.slots.get(id.index()).map_or(id, |slot| slot.parent)
    }

    /// The first path of an inode, for messages.
    pub(super) fn path(&self, tree: &Tree, mut id: InodeId) -> String {
        let mut parts = Vec::new();
        while id != tree.root() {
            let parent = self.parent(id);
            let mut entries = tree.get(parent).into_iter().flat_map(Inode::entries);
            match entries.find(|(_, entry)| *entry == id) {
                Some((name, _)) => parts.push(String::from_utf8_lossy(name)),
                None => break,
            }
            id = parent;
        }
        parts
            .iter()
            .rev()
            .fold(String::new(), |path, part| path + "/" + part)
    }

    /// All of an inode but where its data is.
    fn describe(
        &mut self,
        tree: &Tree,
        id: InodeId,
        inode: &Inode,
        options: &Options,
    ) -> Result<RawInode, Error> {
        let metadata = &inode.metadata;
        let xattr_size = xattrs::size(&metadata.xattrs).map_err(|source| Error::Xattr {
            path: self.path(tree, id),
            source,
        })?;
        let (size, union) = match inode.node() {
            Node::Directory => (
                u64::try_from(dirents::size(inode.entries().map(|(name, _)| name)))
                    .unwrap_or(u64::MAX),
                0,
            ),
            Node::Regular(content) => {
                self.content = self.content.saturating_add(content.size());
                (content.size(), 0)
            }
            Node::Symlink(target) => (u64::try_from(target.len()).unwrap_or(u64::MAX), 0),
            Node::CharDevice { major, minor } | Node::BlockDevice { major, minor } => {
                let number = device_number(*major, *minor).ok_or_else(|| Error::Device {
                    path: self.path(tree, id),
                    major: *major,
                    minor: *minor,
                })?;
                (0, number)
            }
            Node::Fifo | Node::Socket => (0, 0),
        };
        let mut raw = RawInode {
            version: Version::Extended,
            layout: Layout::FlatPlain,
            xattr_size,
            mode: file_type_bits(inode.node()) | (metadata.permissions & 0o7777),
            links: self.slots.get(id.index()).map_or(1, |slot| slot.links),
            size,
            union,
            ino: u32::try_from(self.inodes.len() + 1).unwrap_or(u32::MAX),
            uid: metadata.uid,
            gid: metadata.gid,
            modified: metadata.modified,
        };
        raw.version = raw.smallest_version(self.built);
        // A tail must not cross a block boundary, and Linux up to 6.6 wants a
        // symbolic link's inode in the same block as well.
        let tail = size % BLOCK;
        let may_inline = options.inline_files || !matches!(inode.node(), Node::Regular(_));
        if tail > 0 && may_inline && header_size(&raw) + tail <= BLOCK {
            raw.layout = Layout::FlatInline;
        }
        Ok(raw)
    }

    /// Gives every inode with whole blocks of data its place after the metadata.
    fn place_data(&mut self, metadata: &MetadataArea) -> Result<(), Error> {
        let mut next = metadata.end;
        let too_large = || Error::ImageTooLarge {
            content: self.content,
        };
        for placed in &mut self.inodes {
            let blocks = data_blocks(&placed.raw);
            if blocks > 0 {
                placed.raw.union = u32::try_from(next).map_err(|_| too_large())?;
                next = next.checked_add(blocks).ok_or_else(too_large)?;
            }
        }
        // `fsck.erofs` up to 1.5 reads what would be attributes behind an inode that
        // has none, so an image does not end with one.
        if next == metadata.end && metadata.ends_full() {
            next = next.checked_add(1).ok_or_else(too_large)?;
        }
        self.blocks = u32::try_from(next).map_err(|_| too_large())?;
        Ok(())
    }
}

/// Bytes of an inode with its attributes, before its tail.
pub(super) fn header_size(raw: &RawInode) -> u64 {
    raw.version.size() + u64::try_from(raw.xattr_size).unwrap_or(u64::MAX)
}

/// Bytes that an inode takes in the metadata area.
fn footprint(raw: &RawInode) -> u64 {
    let tail = match raw.layout {
        Layout::FlatInline => raw.size % BLOCK,
        Layout::FlatPlain => 0,
    };
    header_size(raw).saturating_add(tail)
}

/// Blocks that an inode takes in the data area.
pub(super) fn data_blocks(raw: &RawInode) -> u64 {
    match raw.layout {
        Layout::FlatInline => raw.size / BLOCK,
        Layout::FlatPlain => raw.size.div_ceil(BLOCK),
    }
}

/// `S_IFMT` of a node.
fn file_type_bits(node: &Node) -> u16 {
    match node {
        Node::Fifo => 0o010_000,
        Node::CharDevice { .. } => 0o020_000,
        Node::Directory => 0o040_000,
        Node::BlockDevice { .. } => 0o060_000,
        Node::Regular(_) => 0o100_000,
        Node::Symlink(_) => 0o120_000,
        Node::Socket => 0o140_000,
    }
}

/// All inodes below the root, each once, with their link counts.
fn walk(tree: &Tree) -> (Vec<InodeId>, Vec<Slot>) {
    let root = tree.root();
    let unseen = Slot {
        nid: 0,
        links: 0,
        parent: root,
    };
    let mut slots = vec![unseen; tree.table_len()];
    let mut order = vec![root];
    let mut stack = vec![root];
    // The links of a directory: its name in its parent (the root is its own),
    // its dot, and the dot-dot of each of its subdirectories.
    add_links(&mut slots, root, 2);
    while let Some(directory) = stack.pop() {
        let before = stack.len();
        for (_, id) in tree.get(directory).into_iter().flat_map(Inode::entries) {
            let is_directory = tree.get(id).is_some_and(Inode::is_directory);
            if let Some(slot) = slots.get_mut(id.index())
                && slot.links == 0
            {
                slot.parent = directory;
                order.push(id);
            }
            add_links(&mut slots, id, if is_directory { 2 } else { 1 });
            if is_directory {
                add_links(&mut slots, directory, 1);
                stack.push(id);
            }
        }
        // The first subdirectory comes off the stack first.
        if let Some(subdirectories) = stack.get_mut(before..) {
            subdirectories.reverse();
        }
    }
    (order, slots)
}

fn add_links(slots: &mut [Slot], id: InodeId, count: u32) {
    if let Some(slot) = slots.get_mut(id.index()) {
        slot.links = slot.links.saturating_add(count);
    }
}

/// The mtime that most inodes have (the earliest of several): those can be
/// compact. Images made reproducibly often have one time for nearly all files.
fn most_common_time(tree: &Tree, order: &[InodeId]) -> Timestamp {
    let mut counts: HashMap<Timestamp, usize> = HashMap::new();
    for inode in order.iter().filter_map(|id| tree.get(*id)) {
        *counts.entry(inode.metadata.modified).or_default() += 1;
    }
    let by_count = |(time, count): &(Timestamp, usize)| (*count, std::cmp::Reverse(*time));
    counts
        .into_iter()
        .max_by_key(by_count)
        .map_or(Timestamp::default(), |(time, _)| time)
}

/// Hands out room for inodes, in slots of 32 bytes.
///
/// What fits into a block never crosses into the next: tails must not, and
/// inodes that do cost a second read. The ends of blocks that remain are given
/// to later inodes, the tightest fit first, but only the ends of the
/// [`MetadataArea::OPEN_MAX`] roomiest blocks, to keep neighbours together.
#[derive(Debug)]
struct MetadataArea {
    /// First block after the area.
    end: u64,
    /// Blocks with room at their end: (free slots, block).
    open: BTreeSet<(u64, u64)>,
}

impl Default for MetadataArea {
    fn default() -> Self {
        Self {
            end: 1,
            open: BTreeSet::new(),
        }
    }
}

impl MetadataArea {
    const OPEN_MAX: usize = 32;

    /// Whether nothing is known to be free at the end of the last block.
    fn ends_full(&self) -> bool {
        let last = self.end - 1;
        self.open.iter().all(|(_, block)| *block != last)
    }

    /// Room for `bytes`, at most 2³²; its nid.
    fn place(&mut self, bytes: u64) -> u64 {
        let slots = bytes.div_ceil(SLOT);
        let found = self.open.range((slots, 0)..).next().copied();
        let (block, at, left) = match found {
            Some((free, block)) => {
                self.open.remove(&(free, block));
                (block, SLOTS_PER_BLOCK - free, free - slots)
            }
            None => {
                let block = self.end;
                let blocks = slots.div_ceil(SLOTS_PER_BLOCK);
                self.end += blocks;
                (block, 0, blocks * SLOTS_PER_BLOCK - slots)
            }
        };
        let nid = block * SLOTS_PER_BLOCK + at;
        if left > 0 {
            let last = (nid + slots) / SLOTS_PER_BLOCK;
            self.open.insert((left, last));
            if self.open.len() > Self::OPEN_MAX {
                self.open.pop_first();
            }
        }
        nid
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_do_not_overlap_and_small_ones_do_not_cross_a_block() {
        let mut area = MetadataArea::default();
        let mut used = BTreeSet::new();
        // Sizes from one slot to several blocks, in a fixed, mixed order.
        for step in 0..3000_u64 {
            let bytes = 1 + (step * 7919) % if step % 100 == 0 { 20_000 } else { 4096 };
            let nid = area.place(bytes);
            let slots = bytes.div_ceil(SLOT);
            let (first, last) = (nid / SLOTS_PER_BLOCK, (nid + slots - 1) / SLOTS_PER_BLOCK);
            assert!(first >= 1 && last < area.end);
            assert!(
                bytes > BLOCK || first == last,
                "{bytes} bytes cross a block"
            );
            for slot in nid..nid + slots {
                assert!(used.insert(slot), "slot {slot} given twice");
            }
        }
    }

    #[test]
    fn the_first_place_is_what_a_16_bit_root_nid_can_name() {
        assert_eq!(MetadataArea::default().place(64), SLOTS_PER_BLOCK);
    }
}
