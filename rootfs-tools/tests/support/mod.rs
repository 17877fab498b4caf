//! What a tree should look like, and what independent readers make of an image.

// Each test program uses a part of this.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::process::Command;

use erofs_rs::EroFS;
use erofs_rs::backend::SliceImage;
use flashpan_rootfs::erofs::{self, Options, Summary};
use flashpan_rootfs::tree::{Content, InodeId, Node, Tree};
use rustix::fs::FileType;

/// All that can be seen of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub what: What,
    pub permissions: u16,
    pub owner: (u32, u32),
    pub modified: (i64, u32),
    pub links: u32,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The first path, in the order of bytes, of the same inode.
    pub same_as: Vec<u8>,
}

#[derive(Clone, PartialEq, Eq)]
pub enum What {
    Directory,
    Regular(Vec<u8>),
    Symlink(Vec<u8>),
    CharDevice(u32, u32),
    BlockDevice(u32, u32),
    Fifo,
    Socket,
}

impl std::fmt::Debug for What {
    /// Contents of many KiB do not help to find a difference.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Directory => f.write_str("Directory"),
            Self::Regular(bytes) => write!(f, "Regular({} bytes)", bytes.len()),
            Self::Symlink(target) => write!(f, "Symlink({} bytes)", target.len()),
            Self::CharDevice(major, minor) => write!(f, "CharDevice({major}:{minor})"),
            Self::BlockDevice(major, minor) => write!(f, "BlockDevice({major}:{minor})"),
            Self::Fifo => f.write_str("Fifo"),
            Self::Socket => f.write_str("Socket"),
        }
    }
}

/// Files by their paths; the root has the empty path.
pub type Listing = BTreeMap<Vec<u8>, Seen>;

/// A regular file; that its period is prime to the block size shows every
/// misplaced block.
pub fn file(size: usize) -> Node {
    Node::Regular(Content::Bytes((0..=250).cycle().take(size).collect()))
}

/// What `tree` should look like.
pub fn expected(tree: &Tree) -> Listing {
    let mut listing = Listing::new();
    let mut first: BTreeMap<InodeId, Vec<u8>> = BTreeMap::new();
    let mut links: BTreeMap<InodeId, u32> = BTreeMap::new();
    let mut ids: BTreeMap<Vec<u8>, InodeId> = BTreeMap::new();
    let mut stack = vec![(Vec::new(), tree.root())];
    links.insert(tree.root(), 1);
    while let Some((path, id)) = stack.pop() {
        let inode = tree.get(id).unwrap();
        *links.entry(id).or_default() += u32::from(inode.is_directory());
        for (name, entry) in inode.entries() {
            *links.entry(entry).or_default() += 1;
            if tree.get(entry).unwrap().is_directory() {
                *links.entry(id).or_default() += 1;
            }
            stack.push(([&path, &b"/"[..], name].concat(), entry));
        }
        ids.insert(path, id);
    }
    for (path, id) in &ids {
        first.entry(*id).or_insert_with(|| path.clone());
    }
    for (path, id) in ids {
        let inode = tree.get(id).unwrap();
        let metadata = &inode.metadata;
        let what = match inode.node() {
            Node::Directory => What::Directory,
            Node::Regular(content) => What::Regular(bytes(content)),
            Node::Symlink(target) => What::Symlink(target.clone()),
            Node::CharDevice { major, minor } => What::CharDevice(*major, *minor),
            Node::BlockDevice { major, minor } => What::BlockDevice(*major, *minor),
            Node::Fifo => What::Fifo,
            Node::Socket => What::Socket,
        };
        let seen = Seen {
            what,
            permissions: metadata.permissions,
            owner: (metadata.uid, metadata.gid),
            modified: (metadata.modified.seconds, metadata.modified.nanoseconds),
            links: links[&id],
            xattrs: metadata.xattrs.clone(),
            same_as: first[&id].clone(),
        };
        listing.insert(path, seen);
    }
    listing
}

fn bytes(content: &Content) -> Vec<u8> {
    match content {
        Content::Bytes(bytes) => bytes.clone(),
        Content::Range {
            file,
            offset,
            length,
        } => {
            let mut bytes = vec![0; usize::try_from(*length).unwrap()];
            file.read_exact_at(&mut bytes, *offset).unwrap();
            bytes
        }
        Content::Source(source) => {
            let mut bytes = Vec::new();
            source.open().unwrap().read_to_end(&mut bytes).unwrap();
            bytes
        }
    }
}

/// Writes `tree` to an image in a temporary file.
pub fn write(tree: &Tree, options: &Options) -> (File, Summary) {
    let file = tempfile::tempfile().unwrap();
    let summary = erofs::write(tree, options, &file, &mut |_| {}).unwrap();
    assert_eq!(file.metadata().unwrap().len(), summary.size);
    (file, summary)
}

/// The bytes of an image.
pub fn load(image: &File) -> Vec<u8> {
    let length = usize::try_from(image.metadata().unwrap().len()).unwrap();
    let mut bytes = vec![0; length];
    image.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// What the crate `erofs-rs` reads from an image.
pub fn seen(image: &[u8]) -> Listing {
    let fs = EroFS::new(SliceImage::new(image)).unwrap();
    let mut listing = Listing::new();
    let mut first: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    let mut nids = vec![(Vec::new(), fs.super_block().root_inode_id())];
    for entry in fs.walk_dir("/").unwrap() {
        let entry = entry.unwrap();
        if !matches!(entry.dir_entry.file_name(), b"." | b"..") {
            let path = entry.dir_entry.path().as_bytes().to_owned();
            nids.push((path, entry.dir_entry.nid()));
        }
    }
    nids.sort();
    for (path, nid) in nids {
        let inode = fs.get_inode(nid).unwrap();
        let device = inode.device();
        let what = match inode.file_type() {
            FileType::Directory => What::Directory,
            FileType::RegularFile => {
                let file = fs.open_inode_file(inode).unwrap();
                let mut content = vec![0; usize::try_from(inode.data_size()).unwrap()];
                let mut at = 0;
                while at < content.len() {
                    let offset = u64::try_from(at).unwrap();
                    let read = file.read_at(&mut content[at..], offset).unwrap();
                    assert!(read > 0, "content ends early");
                    at += read;
                }
                What::Regular(content)
            }
            FileType::Symlink => {
                What::Symlink(fs.read_link_inode(inode).unwrap().as_bytes().to_owned())
            }
            FileType::CharacterDevice => What::CharDevice(device.unwrap().0, device.unwrap().1),
            FileType::BlockDevice => What::BlockDevice(device.unwrap().0, device.unwrap().1),
            FileType::Fifo => What::Fifo,
            FileType::Socket => What::Socket,
            other => panic!("file type {other:?}"),
        };
        let seen = Seen {
            what,
            permissions: inode.permissions(),
            owner: (inode.uid(), inode.gid()),
            modified: inode.modified_unix(),
            links: inode.nlink(),
            xattrs: fs.xattrs_inode(inode).unwrap(),
            same_as: first.entry(nid).or_insert_with(|| path.clone()).clone(),
        };
        assert!(listing.insert(path, seen).is_none(), "a path twice");
    }
    listing
}

/// `fsck.erofs`, which checks the superblock's sum and reads everything.
pub fn fsck(image: &File) {
    let output = Command::new("fsck.erofs")
        // The descriptor is ours, and open while the command runs.
        .arg(format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            image.as_raw_fd()
        ))
        .output()
        .expect("fsck.erofs is needed by this test: apt-get install erofs-utils");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && stderr.is_empty(), "{output:?}");
}

/// Writes `tree`, has it checked, and compares what is read with what went in.
pub fn check(tree: &Tree) -> Summary {
    let mut last = None;
    for inline_files in [true, false] {
        let options = Options {
            inline_files,
            ..Options::default()
        };
        let (image, summary) = write(tree, &options);
        fsck(&image);
        let (seen, expected) = (seen(&load(&image)), expected(tree));
        let paths = |listing: &Listing| listing.keys().cloned().collect::<Vec<_>>();
        assert_eq!(paths(&seen), paths(&expected));
        for (path, seen) in &seen {
            let path_text = String::from_utf8_lossy(path);
            assert_eq!(*seen, expected[path], "{path_text}");
        }
        last = Some(summary);
    }
    last.unwrap()
}
