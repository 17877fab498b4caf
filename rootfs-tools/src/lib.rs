//! Root file systems of guests, made without privileges.
//!
//! ```text
//!  host directory ── directory ──┐
//!  host's busybox ── builtin ────┼─► tree ── erofs ──► cache ──► read-only root (virtio-blk)
//!  image layers ───── layers ─────┘
//!  an image that somebody has ── probe ──────────────────────►
//!
//!  guest-init ── initramfs ──► what the kernel starts    disk ──► writable ext4
//! ```
//!
//! - [`initramfs`]: the cpio archive that carries PID 1.
//! - [`tree`]: a file tree in memory, contents wherever they are; [`erofs`]
//!   writes one as an image, streaming.
//! - [`layers`]: the layers of a container image, unpacked and flattened to a
//!   tree; [`tar`] and [`compression`] read what they are stored in.
//! - [`directory`] and [`builtin`] make trees and keep their images in a [`cache`].
//! - [`probe`]: what a path is that somebody wants as a root.
//! - [`disk`]: sparse, empty ext4 disks, and such that exist, locked;
//!   [`volume`]: those that have names and outlive VMs; [`e2fsprogs`]: why a program
//!   that makes or changes them failed.
//! - [`mod@reference`] and [`platform`]: the names of images and what they are for;
//!   [`registry`] fetches images, [`archive`] finds them in files.
//! - [`child`]: programs of the host, started beside locks.
//! - [`store`]: the images of a user; [`image_config`]: how their programs are run.
//!
//! Everything works on ordinary files, needs no root and mounts nothing.
//! Functions block, but for those of [`registry`] and [`store::Store::pull`],
//! which are asynchronous; only [`layers`] and pulls start threads.

pub mod archive;
pub mod builtin;
pub mod cache;
pub mod child;
pub mod compression;
pub mod directory;
pub mod disk;
pub mod e2fsprogs;
pub mod erofs;
pub mod image_config;
pub mod initramfs;
pub mod layers;
pub mod platform;
pub mod probe;
pub mod reference;
pub mod registry;
mod room;
mod sparse;
pub mod store;
pub mod tar;
#[cfg(test)]
mod testing;
pub mod tree;
pub mod volume;

/// The types of images, registries and runtimes: one version for everybody.
pub use oci_spec as oci;
