//! Archives and layers as tests want them, right and wrong.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use flashpan_rootfs::layers::{self, Error, Flattened, Layer, Limits, Options};
use flashpan_rootfs::tree::Tree;

/// Archives are put together from these.
#[derive(Clone, Debug)]
pub struct Item {
    pub path: Vec<u8>,
    /// The type flag.
    pub kind: u8,
    pub link: Vec<u8>,
    pub mode: u32,
    pub owner: (u64, u64),
    pub modified: (i64, u32),
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub device: (u32, u32),
    pub data: Vec<u8>,
}

impl Item {
    pub fn new(path: impl AsRef<[u8]>, kind: u8) -> Self {
        Self {
            path: path.as_ref().to_vec(),
            kind,
            link: Vec::new(),
            mode: if kind == b'5' { 0o755 } else { 0o644 },
            owner: (0, 0),
            modified: (1_600_000_000, 0),
            xattrs: Vec::new(),
            device: (0, 0),
            data: Vec::new(),
        }
    }

    /// With PAX records for all that a header has no room for.
    pub fn write(&self, out: &mut Vec<u8>) {
        let mut records = Vec::new();
        if self.path.len() > 100 {
            record(&mut records, b"path", &self.path);
        }
        if self.link.len() > 100 {
            record(&mut records, b"linkpath", &self.link);
        }
        if self.owner.0 > 0o7_777_777 {
            record(&mut records, b"uid", self.owner.0.to_string().as_bytes());
        }
        if self.owner.1 > 0o7_777_777 {
            record(&mut records, b"gid", self.owner.1.to_string().as_bytes());
        }
        let (seconds, nanoseconds) = self.modified;
        if nanoseconds > 0 || !(0..1 << 33).contains(&seconds) {
            let total = i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
            let (sign, whole) = (if total < 0 { "-" } else { "" }, total.unsigned_abs());
            let (whole, rest) = (whole / 1_000_000_000, whole % 1_000_000_000);
            record(
                &mut records,
                b"mtime",
                format!("{sign}{whole}.{rest:09}").as_bytes(),
            );
        }
        for (name, value) in &self.xattrs {
            record(&mut records, &[b"SCHILY.xattr.", &name[..]].concat(), value);
        }
        if !records.is_empty() {
            let mut pax = Self::new("pax", b'x');
            pax.data = records;
            pax.plain(out);
        }
        self.plain(out);
    }

    /// A header and the data, nothing else.
    pub fn plain(&self, out: &mut Vec<u8>) {
        let mut block = [0_u8; 512];
        let mut put = |at: usize, bytes: &[u8], room: usize| {
            let bytes = &bytes[..bytes.len().min(room)];
            block[at..at + bytes.len()].copy_from_slice(bytes);
        };
        let octal =
            |value: u64, digits: usize| format!("{:0digits$o}\0", value % (1 << (3 * digits)));
        put(0, &self.path, 100);
        put(100, octal(self.mode.into(), 7).as_bytes(), 8);
        put(108, octal(self.owner.0.min(0o7_777_777), 7).as_bytes(), 8);
        put(116, octal(self.owner.1.min(0o7_777_777), 7).as_bytes(), 8);
        let has_data = matches!(self.kind, 0 | b'0' | b'7' | b'x' | b'g' | b'L' | b'K');
        let size = if has_data { self.data.len() } else { 0 };
        put(124, octal(u64::try_from(size).unwrap(), 11).as_bytes(), 12);
        let seconds = u64::try_from(self.modified.0)
            .unwrap_or(0)
            .min(0o77_777_777_777);
        put(136, octal(seconds, 11).as_bytes(), 12);
        put(156, &[self.kind], 1);
        put(157, &self.link, 100);
        put(257, b"ustar\x0000", 8);
        put(329, octal(self.device.0.into(), 7).as_bytes(), 8);
        put(337, octal(self.device.1.into(), 7).as_bytes(), 8);
        seal(&mut block);
        out.extend(block);
        if has_data {
            out.extend(&self.data);
            out.resize(out.len().next_multiple_of(512), 0);
        }
    }
}

/// Makes a header's check sum right.
pub fn seal(block: &mut [u8]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

fn record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let body = 3 + key.len() + value.len();
    let mut length = body + 1;
    while length != body + length.to_string().len() {
        length = body + length.to_string().len();
    }
    out.extend(length.to_string().into_bytes());
    out.extend([b" ", key, b"=", value, b"\n"].concat());
}

pub fn directory(path: &str) -> Item {
    Item::new(path, b'5')
}

pub fn file(path: &str, data: &str) -> Item {
    Item {
        data: data.into(),
        ..Item::new(path, b'0')
    }
}

pub fn symlink(path: &str, target: &str) -> Item {
    Item {
        link: target.into(),
        ..Item::new(path, b'2')
    }
}

pub fn hard_link(path: &str, target: &str) -> Item {
    Item {
        link: target.into(),
        ..Item::new(path, b'1')
    }
}

/// A complete archive.
pub fn tar(items: &[Item]) -> Vec<u8> {
    let mut out = Vec::new();
    for item in items {
        item.write(&mut out);
    }
    out.resize(out.len() + 1024, 0);
    out
}

/// A layer that is these bytes, in the middle of a file.
pub fn layer(bytes: &[u8]) -> Layer {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"something before").unwrap();
    file.write_all(bytes).unwrap();
    file.write_all(b"something after").unwrap();
    let length = u64::try_from(bytes.len()).unwrap();
    Layer::new("test".to_owned(), Arc::new(file), 16, length).unwrap()
}

pub fn flatten_with(layers: &[Vec<u8>], limits: Limits) -> Result<Flattened, Error> {
    let layers: Vec<_> = layers.iter().map(|bytes| layer(bytes)).collect();
    let cancel = AtomicBool::new(false);
    let spool = std::env::temp_dir();
    let mut options = Options::new(&spool, &cancel);
    options.limits = limits;
    layers::flatten(&layers, &[], &options, &|_| {})
}

/// The tree of layers that are given as items.
pub fn flattened(layers: &[&[Item]]) -> Tree {
    let layers: Vec<_> = layers.iter().map(|items| tar(items)).collect();
    flatten_with(&layers, Limits::default()).unwrap().tree
}

/// Converts; the image's file.
pub fn image(layers: &[Vec<u8>]) -> (File, layers::Converted) {
    let layers: Vec<_> = layers.iter().map(|bytes| layer(bytes)).collect();
    let cancel = AtomicBool::new(false);
    let spool = std::env::temp_dir();
    let options = Options::new(&spool, &cancel);
    let output = tempfile::tempfile().unwrap();
    let converted = layers::convert(&layers, &[], &options, &output, &|_| {}).unwrap();
    (output, converted)
}

/// What a program makes of some bytes.
pub fn filtered(program: &str, arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(input).unwrap();
    let mut command = Command::new(program);
    command.args(arguments).stdin(file.reopen().unwrap());
    run(&mut command)
}

/// The standard output of a command that has to be there and succeed.
pub fn run(command: &mut Command) -> Vec<u8> {
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .unwrap_or_else(|error| panic!("{command:?} is needed by this test: {error}"));
    assert!(output.status.success(), "{command:?}: {}", output.status);
    output.stdout
}

/// GNU tar's archive of a directory.
pub fn gnu_tar(directory: &Path, options: &[&str]) -> Vec<u8> {
    let mut command = Command::new("tar");
    command
        .args(options)
        .arg("-C")
        .arg(directory)
        .args(["-cf", "-", "."]);
    run(&mut command)
}
