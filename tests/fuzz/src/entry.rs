//! What fuzz targets do with their input, and what has to hold then. The same
//! runs over the corpus in `rootfs-tools/tests/fuzz_corpus.rs`.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use flashpan_rootfs::archive::{self, Contents};
use flashpan_rootfs::compression::{Compression, Decompressor};
use flashpan_rootfs::layers::{self, Layer, Limits, Options};
use flashpan_rootfs::platform::Platform;
use flashpan_rootfs::store::Cancel;
use flashpan_rootfs::tar::{self, Event, Reader};

use super::support;

/// Small, so that what is allowed is also fast.
fn limits() -> Limits {
    Limits {
        total: 4 << 20,
        file: 1 << 20,
        entries: 2000,
        metadata: 1 << 20,
        header: 64 << 10,
    }
}

fn options(cancel: &AtomicBool) -> Options<'_> {
    let mut options = Options::new(Path::new("/dev/shm"), cancel);
    options.limits = limits();
    options.threads = NonZeroUsize::MIN;
    options
}

/// Makes the check sums of all headers right, which mutation would not.
fn with_right_sums(data: &[u8]) -> Vec<u8> {
    let mut data = data.to_vec();
    for block in data.chunks_exact_mut(512) {
        if block[257..262] == *b"ustar" {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
    data
}

/// The first byte says into how many layers the rest is cut.
fn cut(data: &[u8]) -> Vec<Layer> {
    let Some((count, data)) = data.split_first() else {
        return Vec::new();
    };
    let blocks = data.len().div_ceil(512);
    let each = blocks.div_ceil(usize::from(count % 4) + 1).max(1) * 512;
    data.chunks(each)
        .enumerate()
        .map(|(index, part)| {
            let fd = rustix::fs::memfd_create("layer", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
            let mut file = File::from(fd);
            file.write_all(part).unwrap();
            let length = u64::try_from(part.len()).unwrap();
            Layer::new(format!("{index}"), Arc::new(file), 0, length).unwrap()
        })
        .collect()
}

/// All that a reader tells when it gets its input in pieces of `step` bytes.
fn told(data: &[u8], step: usize) -> Result<(Vec<tar::Entry>, Vec<u8>), tar::Error> {
    let mut reader = Reader::new(limits().header);
    let (mut entries, mut content) = (Vec::new(), Vec::new());
    for part in data.chunks(step) {
        reader.push::<tar::Error>(part, &mut |event| {
            match event {
                Event::Entry(entry) => entries.push(entry),
                Event::Data(bytes) => content.extend_from_slice(bytes),
            }
            Ok(())
        })?;
    }
    reader.finish()?;
    Ok((entries, content))
}

/// A tar: however it comes in pieces it is read alike, every entry's data is
/// in it, and flattening it never does worse than to fail.
pub fn tar(data: &[u8]) {
    let data = with_right_sums(data);
    let archive = data.get(1..).unwrap_or_default();
    let whole = told(archive, usize::MAX);
    for step in [1, 700] {
        assert_eq!(told(archive, step), whole, "in pieces of {step}");
    }
    if let Ok((entries, content)) = whole {
        let stored: u64 = entries.iter().map(|entry| entry.stored).sum();
        assert_eq!(stored, u64::try_from(content.len()).unwrap());
        for entry in entries {
            assert!(!entry.path.is_empty() && !entry.path.contains(&0));
            let end = entry.position.checked_add(entry.stored).unwrap();
            assert!(end <= u64::try_from(archive.len()).unwrap());
            if let Some(map) = entry.sparse {
                let sum: u64 = map.iter().map(|segment| segment.length).sum();
                assert_eq!(sum, entry.stored);
            }
        }
    }
    let cancel = AtomicBool::new(false);
    let _ = layers::flatten(&cut(&data), &[], &options(&cancel), &|_| {});
}

/// Layers as they are: an image that is made reads back as the layers' tree,
/// and a second one is the same.
pub fn convert(data: &[u8]) {
    let data = with_right_sums(data);
    let layers = cut(&data);
    let cancel = AtomicBool::new(false);
    let options = options(&cancel);
    let output =
        || File::from(rustix::fs::memfd_create("image", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
    let image = output();
    let converted = layers::convert(&layers, &[], &options, &image, &|_| {});
    let flattened = layers::flatten(&layers, &[], &options, &|_| {});
    let Ok(converted) = converted else {
        return;
    };
    let tree = flattened.expect("what is converted can be flattened").tree;
    let bytes = support::load(&image);
    assert_eq!(support::seen(&bytes), support::expected(&tree));
    let again = output();
    let second = layers::convert(&layers, &converted.diff_ids, &options, &again, &|_| {});
    assert_eq!(second.expect("a second time"), converted);
    assert!(support::load(&again) == bytes, "two conversions differ");
}

/// A stream: it decompresses or it does not, in bounded memory, and whatever
/// the size of reads is.
pub fn decompress(data: &[u8]) {
    let compression = Compression::of_bytes(data);
    let read = |step: usize| {
        let mut stream = Decompressor::new(data, compression).take(4 << 20);
        let mut out = Vec::new();
        let mut buffer = vec![0; step];
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => return (out, true),
                Ok(read) => out.extend_from_slice(&buffer[..read]),
                Err(_) => return (out, false),
            }
        }
    };
    let (large, fine) = read(256 << 10);
    let (small, also_fine) = read(1000);
    assert_eq!(fine, also_fine);
    if fine {
        assert!(large == small, "reads of other sizes give other bytes");
    }
}

/// An archive of images or of a root: whatever is found in it lies in it, the
/// reader of layers agrees on what a tar is, and a complaint is one line.
pub fn archive(data: &[u8]) {
    let data = with_right_sums(data);
    let memory = |bytes: &[u8]| {
        let fd = rustix::fs::memfd_create("archive", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let mut file = File::from(fd);
        file.write_all(bytes).unwrap();
        file.rewind().unwrap();
        file
    };
    let options = archive::Options {
        platform: Platform::default(),
        limits: limits(),
        spool: "/dev/shm".into(),
        cancel: Cancel::default(),
    };
    let opened = archive::open_file(memory(&data), "fuzzed", &options, &mut |_| {});
    let layers = match &opened {
        Ok(Contents::Images(images)) => {
            assert!(!images.is_empty());
            images.iter().flat_map(|image| &image.layers).collect()
        }
        Ok(Contents::Root(layer)) => vec![layer],
        Ok(Contents::Directory(path)) => panic!("no file is a directory: {path:?}"),
        Err(error) => {
            let text = error.to_string();
            assert!(!text.chars().any(char::is_control), "{text:?}");
            Vec::new()
        }
    };
    for layer in layers {
        let end = layer.piece.offset.checked_add(layer.piece.length).unwrap();
        assert!(end <= layer.piece.file.metadata().unwrap().len());
    }
    if Compression::of_bytes(&data) == Compression::None && opened.is_ok() {
        told(&data, usize::MAX).expect("what was scanned can be read");
    }
}
