//! Root file systems: EROFS images, initramfs, built-in root.

pub mod initramfs;
