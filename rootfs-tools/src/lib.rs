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
//! - [`disk`]: sparse, empty ext4 disks.
//!
//! Everything works on ordinary files, needs no root and mounts nothing.
//! Functions block; only [`layers`] starts threads, which end before it returns.

pub mod archive;
pub mod builtin;
pub mod cache;
pub mod compression;
pub mod directory;
pub mod disk;
pub mod erofs;
pub mod image_config;
pub mod initramfs;
pub mod layers;
pub mod manifest;
pub mod probe;
pub mod reference;
pub mod registry;
mod sparse;
pub mod store;
pub mod tar;
pub mod tree;
