//! Applies the entries of layers to a tree, as a container runtime extracts
//! them into a directory, one after the other, lowest layer first.
//!
//! * A path's directories are resolved inside the image: symbolic links that
//!   the image has there by then are followed, absolute ones and `..` lead no
//!   higher than its root. The last part of a path is never followed.
//! * What an entry finds in its place goes, unless both are directories.
//! * Directories that are missing are made: `root`, 0755, of the epoch.
//! * Whiteouts remove what lower layers have put there, and nothing of their
//!   own layer, wherever they stand in it.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};

use super::error::LayerError;
use super::limits::{Limits, PATH_MAX};
use super::unpack::{Unflattened, Unpacked};
use crate::tar::Kind;
use crate::tree::{Content, Inode, InodeId, Metadata, Node, Tree};

/// Symbolic links that are followed in one path: as many as Linux follows
/// (`MAXSYMLINKS`), so that what fails here could not be reached in a guest.
const LINKS_MAX: u32 = 40;
/// Parts of paths that are looked at for one image. An honest image needs a
/// handful for each entry; one that is made of links and whiteouts to take
/// forever ends here, after seconds.
const STEPS_MAX: u64 = 1 << 26;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Other names that begin so are AUFS's own, such as `.wh..wh.plnk`.
const AUFS: &[u8] = b".wh..wh.";

/// Turns layers into a tree.
#[derive(Debug)]
pub(super) struct Flattener {
    /// What the layers applied so far look like.
    pub(super) tree: Tree,
    /// For each inode, the last layer that made it or put something below it.
    touched: Vec<u32>,
    /// Names that this layer has given to files, most of which it has not made.
    linked: HashSet<(InodeId, Box<[u8]>)>,
    /// Number of the layer being applied, from 1 on.
    layer: u32,
    steps: u64,
    /// Inodes that may still be made.
    room: u64,
    entries_max: u64,
    /// The directory of the entry before.
    cached: Option<(Box<[u8]>, InodeId)>,
}

/// A part of a path that is being resolved.
#[derive(Debug)]
enum Part {
    /// It is there.
    There(InodeId, usize),
    /// It is not.
    Missing(Vec<u8>),
}

impl Part {
    fn length(&self) -> usize {
        match self {
            Self::There(_, length) => *length,
            Self::Missing(name) => name.len(),
        }
    }
}

impl Flattener {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            tree: Tree::new(Metadata::root_owned(0o755)),
            touched: vec![0],
            linked: HashSet::new(),
            layer: 0,
            steps: 0,
            room: limits.entries,
            entries_max: limits.entries,
            cached: None,
        }
    }

    /// Puts a layer on top.
    pub(super) fn apply(&mut self, layer: Unpacked, cancel: &AtomicBool) -> Result<(), LayerError> {
        self.layer += 1;
        self.linked.clear();
        self.cached = None;
        for entry in layer.entries {
            if cancel.load(Ordering::Relaxed) {
                return Err(LayerError::Cancelled);
            }
            self.entry(entry)?;
        }
        Ok(())
    }

    fn entry(&mut self, mut entry: Unflattened) -> Result<(), LayerError> {
        let path = std::mem::take(&mut entry.path);
        let parts = cleaned(&path);
        let Some((name, directories)) = parts.split_last() else {
            // The root itself.
            if entry.kind != Kind::Directory {
                return Err(LayerError::Root { path: path.into() });
            }
            let root = self.tree.root();
            if let Some(inode) = self.tree.get_mut(root) {
                inode.metadata = entry.metadata;
            }
            return Ok(());
        };
        if parts
            .iter()
            .any(|part| part.starts_with(AUFS) && *part != OPAQUE)
        {
            return Ok(());
        }
        if name.starts_with(WHITEOUT) {
            return self.whiteout(directories, name, &path);
        }
        let parent = self.directory(directories, &path)?;
        self.put(parent, name, entry, &path)
    }

    /// Puts an entry into a directory.
    fn put(
        &mut self,
        parent: InodeId,
        name: &[u8],
        entry: Unflattened,
        path: &[u8],
    ) -> Result<(), LayerError> {
        let Unflattened {
            kind,
            mut metadata,
            content,
            ..
        } = entry;
        if let Some(there) = self.tree.lookup(parent, name) {
            let is_directory = self.tree.get(there).is_some_and(Inode::is_directory);
            if is_directory && kind == Kind::Directory {
                if let Some(inode) = self.tree.get_mut(there) {
                    inode.metadata = metadata;
                }
                self.touch(there);
                return Ok(());
            }
            self.remove(parent, name);
        }
        let node = match kind {
            Kind::HardLink(target) => return self.hard_link(parent, name, &target, path),
            Kind::Regular => Node::Regular(content.unwrap_or(Content::Bytes(Vec::new()))),
            Kind::Directory => Node::Directory,
            Kind::Symlink(target) => {
                // Linux gives all links this mode, whatever archives say.
                metadata.permissions = 0o777;
                Node::Symlink(target)
            }
            Kind::CharDevice(major, minor) => Node::CharDevice { major, minor },
            Kind::BlockDevice(major, minor) => Node::BlockDevice { major, minor },
            Kind::Fifo => Node::Fifo,
        };
        self.add(parent, name, metadata, node, path)?;
        Ok(())
    }

    fn add(
        &mut self,
        parent: InodeId,
        name: &[u8],
        metadata: Metadata,
        node: Node,
        path: &[u8],
    ) -> Result<InodeId, LayerError> {
        let left = self.room.checked_sub(1);
        self.room = left.ok_or(LayerError::Entries {
            limit: self.entries_max,
        })?;
        let added = self.tree.add(parent, name, metadata, node);
        let id = added.map_err(|source| LayerError::Tree {
            path: path.to_owned(),
            source,
        })?;
        self.touched.resize(id.index() + 1, self.layer);
        Ok(id)
    }

    fn hard_link(
        &mut self,
        parent: InodeId,
        name: &[u8],
        target: &[u8],
        path: &[u8],
    ) -> Result<(), LayerError> {
        let wrong = || LayerError::HardLink {
            path: path.to_owned(),
            target: target.to_owned(),
        };
        let parts = cleaned(target);
        let (last, directories) = parts.split_last().ok_or_else(wrong)?;
        let found = self.resolve(directories, path)?;
        let directory = self.existing(&found).ok_or_else(wrong)?;
        let inode = self.tree.lookup(directory, last).ok_or_else(wrong)?;
        if self.tree.get(inode).is_none_or(Inode::is_directory) {
            return Err(wrong());
        }
        let linked = self.tree.link(parent, name, inode);
        linked.map_err(|source| LayerError::Tree {
            path: path.to_owned(),
            source,
        })?;
        self.linked.insert((parent, name.into()));
        Ok(())
    }

    fn whiteout(
        &mut self,
        directories: &[&[u8]],
        name: &[u8],
        path: &[u8],
    ) -> Result<(), LayerError> {
        let hidden = name.get(WHITEOUT.len()..).unwrap_or_default();
        let opaque = name == OPAQUE;
        if !opaque && matches!(hidden, b"" | b"." | b"..") {
            return Err(LayerError::Whiteout {
                path: path.to_owned(),
            });
        }
        let found = self.resolve(directories, path)?;
        let Some(directory) = self.existing(&found) else {
            // There is nothing to hide.
            return Ok(());
        };
        if opaque {
            return self.hide_lower(directory, path);
        }
        match self.tree.lookup(directory, hidden) {
            Some(inode) if self.is_touched(directory, hidden, inode) => {
                self.hide_lower(inode, path)
            }
            Some(_) => {
                self.remove(directory, hidden);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Removes what is below a directory and not of this layer.
    fn hide_lower(&mut self, top: InodeId, path: &[u8]) -> Result<(), LayerError> {
        let mut stack = vec![top];
        while let Some(directory) = stack.pop() {
            let mut hidden = Vec::new();
            let mut seen = 1;
            for (name, id) in self
                .tree
                .get(directory)
                .into_iter()
                .flat_map(Inode::entries)
            {
                seen += 1;
                if self.is_touched(directory, name, id) {
                    stack.push(id);
                } else {
                    hidden.push(name.to_vec());
                }
            }
            self.step(seen, path)?;
            for name in hidden {
                self.remove(directory, &name);
            }
        }
        Ok(())
    }

    fn remove(&mut self, directory: InodeId, name: &[u8]) {
        self.tree.remove(directory, name);
        self.cached = None;
    }

    /// Is an entry of a directory this layer's?
    fn is_touched(&self, directory: InodeId, name: &[u8], id: InodeId) -> bool {
        self.touched.get(id.index()) == Some(&self.layer)
            || (!self.linked.is_empty() && self.linked.contains(&(directory, name.into())))
    }

    fn touch(&mut self, id: InodeId) {
        if let Some(layer) = self.touched.get_mut(id.index()) {
            *layer = self.layer;
        }
    }

    fn step(&mut self, count: u64, path: &[u8]) -> Result<(), LayerError> {
        self.steps = self.steps.saturating_add(count);
        match self.steps > STEPS_MAX {
            true => Err(LayerError::Loop {
                path: path.to_owned(),
            }),
            false => Ok(()),
        }
    }

    /// The directory that `parts` lead to, made if it is missing, and marked as
    /// touched by this layer with those above it.
    fn directory(&mut self, parts: &[&[u8]], path: &[u8]) -> Result<InodeId, LayerError> {
        let key = parts.join(&b'/');
        if let Some((cached, id)) = &self.cached
            && **cached == *key
        {
            return Ok(*id);
        }
        let mut directory = self.tree.root();
        for part in self.resolve(parts, path)? {
            directory = match part {
                Part::There(id, _) => id,
                Part::Missing(name) => {
                    let metadata = Metadata::root_owned(0o755);
                    // Into something else than a directory, it does not go.
                    let inode = self.tree.get(directory);
                    if !inode.is_some_and(Inode::is_directory) {
                        return Err(LayerError::NotADirectory {
                            path: path.to_owned(),
                        });
                    }
                    self.add(directory, &name, metadata, Node::Directory, path)?
                }
            };
            self.touch(directory);
        }
        if !self.tree.get(directory).is_some_and(Inode::is_directory) {
            return Err(LayerError::NotADirectory {
                path: path.to_owned(),
            });
        }
        self.cached = Some((key.into(), directory));
        Ok(directory)
    }

    /// What a resolved path leads to, if all of it is there.
    fn existing(&self, parts: &[Part]) -> Option<InodeId> {
        match parts.last() {
            None => Some(self.tree.root()),
            Some(Part::There(id, _)) => Some(*id),
            Some(Part::Missing(_)) => None,
        }
    }

    /// Follows `parts` from the root, through links. The result has neither
    /// links nor dots; what is missing is at its end.
    fn resolve(&mut self, parts: &[&[u8]], path: &[u8]) -> Result<Vec<Part>, LayerError> {
        let mut found: Vec<Part> = Vec::with_capacity(parts.len());
        let mut length = 0;
        let mut links = 0;
        // What is left to follow, the next at the end. Links put theirs there.
        let mut left: Vec<Vec<u8>> = Vec::new();
        let mut own = parts.iter();
        loop {
            let next = match left.pop() {
                Some(name) => name,
                None => match own.next() {
                    Some(name) => name.to_vec(),
                    None => return Ok(found),
                },
            };
            self.step(1, path)?;
            match next.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    if let Some(part) = found.pop() {
                        length -= part.length() + 1;
                    }
                    continue;
                }
                _ => {}
            }
            let there = self
                .existing(&found)
                .and_then(|parent| self.tree.lookup(parent, &next));
            let target = there.and_then(|id| match self.tree.get(id)?.node() {
                Node::Symlink(target) => Some(target),
                _ => None,
            });
            if let Some(target) = target {
                links += 1;
                if links > LINKS_MAX {
                    return Err(LayerError::Loop {
                        path: path.to_owned(),
                    });
                }
                if target.starts_with(b"/") {
                    found.clear();
                    length = 0;
                }
                left.extend(target.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec));
                continue;
            }
            length += next.len() + 1;
            if length > PATH_MAX {
                return Err(LayerError::PathTooLong {
                    path: path.to_owned(),
                    length,
                });
            }
            found.push(match there {
                Some(id) => Part::There(id, next.len()),
                None => Part::Missing(next),
            });
        }
    }
}

/// The parts of a path without dots. `..` takes back the part before it, as
/// text: archives name files, not ways to them.
fn cleaned(path: &[u8]) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts
}
