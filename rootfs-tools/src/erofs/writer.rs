//! Writes what the layout has planned.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::dirents::{self, Dirent, FileType};
use super::format::{BLOCK, BLOCK_LEN, SLOT, SUPER_OFFSET, superblock};
use super::layout::{Placed, Plan, data_blocks};
use super::{Error, Options, Progress, Summary, xattrs};
use crate::sparse::{At, Copier, CopyError};
use crate::tree::{Content, Inode, InodeId, Node, SourceError, Tree};

/// Progress is reported when this much more was written.
const REPORT_EVERY: u64 = 1 << 20;

pub(super) struct Writer<'a> {
    tree: &'a Tree,
    plan: &'a Plan,
    output: &'a File,
    copier: Copier,
    /// The inode being put together: itself, attributes, tail.
    metadata: Vec<u8>,
    meter: Meter<'a>,
}

impl<'a> Writer<'a> {
    pub(super) fn new(
        tree: &'a Tree,
        plan: &'a Plan,
        output: &'a File,
        stop: &'a mut dyn FnMut(Progress) -> bool,
    ) -> Self {
        let progress_now = Progress {
            done: 0,
            total: plan.content,
        };
        Self {
            tree,
            plan,
            output,
            copier: Copier::new(),
            metadata: Vec::new(),
            meter: Meter {
                now: progress_now,
                reported: 0,
                stopped: false,
                stop,
            },
        }
    }

    /// `None` when it was stopped.
    pub(super) fn write(mut self, options: &Options) -> Result<Option<Summary>, Error> {
        let size = u64::from(self.plan.blocks) * BLOCK;
        // Emptied first: all that is not written has to read as zeros.
        self.output.set_len(0).map_err(Error::Write)?;
        self.output.set_len(size).map_err(Error::Write)?;
        for placed in &self.plan.inodes {
            self.inode(placed)?;
            if self.meter.stopped {
                return Ok(None);
            }
        }
        let root = u16::try_from(self.plan.nid(self.tree.root())).unwrap_or(u16::MAX);
        let inodes = u64::try_from(self.plan.inodes.len()).unwrap_or(u64::MAX);
        let superblock = superblock(
            root,
            inodes,
            self.plan.blocks,
            self.plan.built,
            options.uuid,
        );
        self.put(&superblock, SUPER_OFFSET)?;
        self.meter.report();
        Ok(Some(Summary {
            size,
            inodes,
            content: self.plan.content,
        }))
    }

    fn inode(&mut self, placed: &Placed) -> Result<(), Error> {
        let Some(inode) = self.tree.get(placed.id) else {
            return Ok(());
        };
        self.metadata.clear();
        placed.raw.encode(&mut self.metadata);
        xattrs::encode(&inode.metadata.xattrs, &mut self.metadata).map_err(|source| {
            Error::Xattr {
                path: self.path(placed),
                source,
            }
        })?;
        match inode.node() {
            Node::Directory => {
                let bytes = self.directory(placed.id, inode);
                self.bytes(placed, &bytes)?;
            }
            Node::Symlink(target) => self.bytes(placed, target)?,
            Node::Regular(content) => self.content(placed, content)?,
            Node::CharDevice { .. } | Node::BlockDevice { .. } | Node::Fifo | Node::Socket => {}
        }
        self.put(&self.metadata, placed.nid * SLOT)
    }

    fn directory(&self, id: InodeId, inode: &Inode) -> Vec<u8> {
        let dirent = |name, id| Dirent {
            name,
            nid: self.plan.nid(id),
            kind: file_type(self.tree.get(id).map(Inode::node)),
        };
        let mut entries: Vec<_> = inode.entries().map(|(name, id)| dirent(name, id)).collect();
        entries.push(dirent(b".", id));
        entries.push(dirent(b"..", self.plan.parent(id)));
        dirents::encode(&mut entries)
    }

    fn content(&mut self, placed: &Placed, content: &Content) -> Result<(), Error> {
        match content {
            Content::Bytes(bytes) => {
                self.bytes(placed, bytes)?;
                self.meter.add(placed.raw.size);
                Ok(())
            }
            Content::Range { file, offset, .. } => self.file(
                placed,
                At {
                    file,
                    offset: *offset,
                },
            ),
            Content::Source(source) => {
                let file = source
                    .open()
                    .map_err(|error| self.no_source(placed, error))?;
                self.file(placed, At::start(&file))?;
                source
                    .verify(&file)
                    .map_err(|error| self.no_source(placed, error))
            }
        }
    }

    /// Data that is in memory: whole blocks to their place, the tail to the inode.
    fn bytes(&mut self, placed: &Placed, data: &[u8]) -> Result<(), Error> {
        let in_blocks = usize::try_from(data_blocks(&placed.raw))
            .unwrap_or(usize::MAX)
            .saturating_mul(BLOCK_LEN)
            .min(data.len());
        let (blocks, tail) = data.split_at(in_blocks);
        self.metadata.extend_from_slice(tail);
        self.put(blocks, u64::from(placed.raw.union) * BLOCK)
    }

    /// The same from a file.
    fn file(&mut self, placed: &Placed, from: At<'_>) -> Result<(), Error> {
        let size = placed.raw.size;
        let in_blocks = data_blocks(&placed.raw).saturating_mul(BLOCK).min(size);
        let to = At {
            file: self.output,
            offset: u64::from(placed.raw.union) * BLOCK,
        };
        let meter = &mut self.meter;
        let copied = self
            .copier
            .copy(from, to, in_blocks, &mut |bytes| meter.add(bytes));
        copied.map_err(|error| match error {
            CopyError::Short => Error::Changed {
                path: self.path(placed),
            },
            CopyError::Read(error) => self.unreadable(placed, error),
            CopyError::Write(error) => Error::Write(error),
        })?;
        let tail = size - in_blocks;
        let header = self.metadata.len();
        self.metadata
            .resize(header + usize::try_from(tail).unwrap_or(0), 0);
        let room = self.metadata.get_mut(header..).unwrap_or_default();
        from.file
            .read_exact_at(room, from.offset.saturating_add(in_blocks))
            .map_err(|error| self.unreadable(placed, error))?;
        self.meter.add(tail);
        Ok(())
    }

    fn put(&self, bytes: &[u8], offset: u64) -> Result<(), Error> {
        self.output
            .write_all_at(bytes, offset)
            .map_err(Error::Write)
    }

    fn path(&self, placed: &Placed) -> String {
        self.plan.path(self.tree, placed.id)
    }

    fn no_source(&self, placed: &Placed, error: SourceError) -> Error {
        match error {
            SourceError::Changed => Error::Changed {
                path: self.path(placed),
            },
            SourceError::Io(source) => self.unreadable(placed, source),
        }
    }

    fn unreadable(&self, placed: &Placed, source: io::Error) -> Error {
        let path = self.path(placed);
        match source.kind() {
            io::ErrorKind::UnexpectedEof => Error::Changed { path },
            _ => Error::Read { path, source },
        }
    }
}

fn file_type(node: Option<&Node>) -> FileType {
    match node {
        Some(Node::Directory) => FileType::Directory,
        Some(Node::Symlink(_)) => FileType::Symlink,
        Some(Node::CharDevice { .. }) => FileType::CharDevice,
        Some(Node::BlockDevice { .. }) => FileType::BlockDevice,
        Some(Node::Fifo) => FileType::Fifo,
        Some(Node::Socket) => FileType::Socket,
        Some(Node::Regular(_)) | None => FileType::Regular,
    }
}

/// Counts bytes, tells of them now and then, and hears whether to stop.
struct Meter<'a> {
    now: Progress,
    reported: u64,
    stopped: bool,
    stop: &'a mut dyn FnMut(Progress) -> bool,
}

impl Meter<'_> {
    fn add(&mut self, bytes: u64) {
        self.now.done = self.now.done.saturating_add(bytes);
        if self.now.done - self.reported >= REPORT_EVERY {
            self.report();
        }
    }

    fn report(&mut self) {
        self.reported = self.now.done;
        self.stopped |= (self.stop)(self.now);
    }
}
