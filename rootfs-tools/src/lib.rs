//! Root file systems: EROFS images, initramfs, built-in root.

pub mod cache;
pub mod directory;
pub mod erofs;
pub mod initramfs;
mod sparse;
pub mod tree;
