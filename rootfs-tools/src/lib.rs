//! Root file systems: EROFS images, initramfs, built-in root.

pub mod builtin;
pub mod cache;
pub mod directory;
pub mod disk;
pub mod erofs;
pub mod initramfs;
pub mod probe;
mod sparse;
pub mod tree;
