//! Writes a cpio archive in the `newc` format that the kernel unpacks as its
//! initramfs (Documentation/driver-api/early-userspace/buffer-format.rst).

const REGULAR: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;

/// An archive under construction. Directories come before what is in them.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    pub(crate) fn directory(&mut self, path: &str) {
        self.entry(path, DIRECTORY | 0o755, &[]);
    }

    pub(crate) fn file(&mut self, path: &str, permissions: u32, content: &[u8]) {
        self.entry(path, REGULAR | permissions, content);
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let inode = self.entries;
        let (length, name_length) = (content.len(), path.len() + 1);
        // inode, mode, uid, gid, links, mtime, size, device (2), rdev (2),
        // length of the name with its NUL, checksum (unused).
        let head = format!(
            "070701{inode:08x}{mode:08x}{0:08x}{0:08x}{1:08x}{0:08x}{length:08x}\
             {0:08x}{0:08x}{0:08x}{0:08x}{name_length:08x}{0:08x}",
            0, 1
        );
        self.bytes.extend_from_slice(head.as_bytes());
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_is_the_kernels() {
        let mut archive = Archive::default();
        archive.directory("bin");
        archive.file("bin/x", 0o755, b"hello");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        // Header 110 bytes + "bin\0" = 114, padded to 116.
        assert_eq!(&bytes[116..122], b"070701");
        assert_eq!(&bytes[116 + 14..116 + 22], b"000081ed");
        // Header + "bin/x\0" = 116, no padding; then the content.
        assert_eq!(&bytes[232..237], b"hello");
        assert_eq!(&bytes[240..246], b"070701");
        assert_eq!(&bytes[350..361], b"TRAILER!!!\0");
    }
}
