//! Root file systems of guests, made without privileges.
//!
//! ```text
//!  host directory ── directory ──┐
//!  host's busybox ── builtin ────┼─► tree ── erofs ──► cache ──► read-only root (virtio-blk)
//!  (container images) ───────────┘
//!  an image that somebody has ── probe ──────────────────────►
//!
//!  guest-init ── initramfs ──► what the kernel starts    disk ──► writable ext4
//! ```
//!
//! - [`initramfs`]: the cpio archive that carries PID 1.
//! - [`tree`]: a file tree in memory, contents wherever they are; [`erofs`]
//!   writes one as an image, streaming.
//! - [`directory`] and [`builtin`] make trees and keep their images in a [`cache`].
//! - [`probe`]: what a path is that somebody wants as a root.
//! - [`disk`]: sparse, empty ext4 disks.
//! - [`mod@reference`] and [`platform`]: the names of images and what they are for;
//!   [`registry`] fetches images.
//!
//! Everything works on ordinary files, needs no root and mounts nothing.
//! Functions block and start no threads, but for those of [`registry`], which
//! are asynchronous.

pub mod builtin;
pub mod cache;
pub mod directory;
pub mod disk;
pub mod erofs;
pub mod initramfs;
pub mod platform;
pub mod probe;
pub mod reference;
pub mod registry;
mod sparse;
pub mod tree;

/// The types of images, registries and runtimes: one version for everybody.
pub use oci_spec as oci;
