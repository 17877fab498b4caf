//! `flashpan-bench large`: an image as large as one likes to an EROFS image, for
//! the memory that it takes. It is made up, and nobody else unpacks it.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::budgets::Budgets;
use crate::figure::Figures;
use crate::image::{self, number, timed};
use crate::options;

/// Names of the figures; all others of `image/` are those of the image of packages.
pub(crate) const LARGE: &str = "image/large-";

const MIB: u64 = 1 << 20;
/// Bytes of files in a layer, at most.
const LAYER: u64 = 1024 * MIB;
/// Bytes of a file: 4000 files for each GiB.
const FILE: u64 = MIB / 4;
/// Its name in the layout.
const TAG: &str = "large";
/// A block of a tar.
const BLOCK: usize = 512;

/// What `large` is given.
#[derive(Debug, Default)]
pub(crate) struct LargeOptions {
    work: PathBuf,
    budgets: PathBuf,
    /// Bytes of files.
    size: u64,
}

impl LargeOptions {
    /// Reads pairs of options and values.
    pub(crate) fn parse(words: &[String]) -> Result<Self> {
        let mut options = Self::default();
        options::read(words, |word, value| {
            match word {
                "--work" => options.work = value.into(),
                "--budgets" => options.budgets = value.into(),
                "--size" => options.size = size(value)?,
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        if options.size == 0 {
            bail!("--size is needed, e.g. --size 5G");
        }
        Ok(options)
    }
}

/// `5G` or `512M` in bytes.
fn size(text: &str) -> Result<u64> {
    let wrong = || format!("--size {text} is no size; write e.g. 5G or 512M, up to 64G");
    let (digits, unit) = match text.strip_suffix('G') {
        Some(digits) => (digits, 1024 * MIB),
        None => (text.strip_suffix('M').with_context(wrong)?, MIB),
    };
    let size = digits.parse::<u64>().ok();
    let size = size.and_then(|number| number.checked_mul(unit));
    // What a conversion takes at most.
    size.filter(|size| *size <= 64 * 1024 * MIB)
        .with_context(wrong)
}

/// Makes the image and converts it; false if a budget is broken.
pub(crate) fn large(options: &LargeOptions) -> Result<bool> {
    let budgets = Budgets::read(&options.budgets)?;
    image::remove(&options.work)?;
    fs::create_dir_all(&options.work)?;
    let figures = measure(options, &budgets);
    image::remove(&options.work)?;
    let names = budgets.names().filter(|name| name.starts_with(LARGE));
    crate::print(&figures?.list, names)
}

fn measure<'a>(options: &LargeOptions, budgets: &'a Budgets) -> Result<Figures<'a>> {
    let layout = options.work.join("layout");
    make(&layout, options.size)?;
    let mut convert = Command::new(std::env::current_exe()?);
    convert
        .arg("convert")
        .arg(&layout)
        .arg(TAG)
        .arg(options.work.join("image.erofs"));
    let (time, output) = timed(&mut convert)?;
    let told: Value = serde_json::from_slice(&output).context("what the conversion tells")?;
    let content = number(&told, "content")?;
    // Or else it would be the memory of something smaller.
    if content < options.size as f64 {
        bail!("{content} bytes were converted, not {}", options.size);
    }
    let mut figures = Figures::new(budgets);
    figures.add("image/large-convert", time, "s");
    figures.add(
        "image/large-convert-peak",
        number(&told, "peak_kib")?,
        "KiB",
    );
    figures.add("image/large-content", content, "bytes");
    figures.add("image/large-inodes", number(&told, "inodes")?, "inodes");
    Ok(figures)
}

/// An OCI layout with an image of that many bytes in gzip layers.
fn make(layout: &Path, size: u64) -> Result<()> {
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let (mut layers, mut ids, mut left) = (Vec::new(), Vec::new(), size);
    while left > 0 {
        let of_this = left.min(LAYER);
        let (layer, id) = layer(&blobs, layers.len(), of_this)?;
        layers.push(layer);
        ids.push(id);
        left -= of_this;
    }
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": ids},
    });
    let config = document(&blobs, "config", &config)?;
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": layers});
    let mut manifest = document(&blobs, "manifest", &manifest)?;
    let entry = manifest.as_object_mut().context("a descriptor")?;
    let name = json!({"org.opencontainers.image.ref.name": TAG});
    entry.insert("annotations".to_owned(), name);
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    fs::write(layout.join("index.json"), index.to_string())?;
    fs::write(
        layout.join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )?;
    Ok(())
}

/// Stores a document; its descriptor.
fn document(blobs: &Path, kind: &str, document: &Value) -> Result<Value> {
    let text = document.to_string();
    let digest = hex(Sha256::new_with_prefix(&text));
    fs::write(blobs.join(&digest), &text)?;
    let media_type = format!("application/vnd.oci.image.{kind}.v1+json");
    Ok(json!({
        "mediaType": media_type, "digest": format!("sha256:{digest}"), "size": text.len(),
    }))
}

/// Stores a layer of files; its descriptor, and the digest of its tar.
fn layer(blobs: &Path, number: usize, size: u64) -> Result<(Value, String)> {
    let new = blobs.join("new");
    let packed = Hashed::new(BufWriter::new(File::create(&new)?));
    let mut tar = Hashed::new(GzEncoder::new(packed, Compression::fast()));
    let mut state = 0x9e37_79b9_7f4a_7c15 ^ number as u64;
    let mut left = size;
    while left > 0 {
        let length = left.min(FILE);
        left -= length;
        let name = format!("srv/{number}/{:02x}/{left}", left / FILE % 256);
        tar.write_all(&header(&name, length))?;
        tar.write_all(&content(&mut state, usize::try_from(length)?))?;
    }
    tar.write_all(&[0; 2 * BLOCK])?;
    let id = format!("sha256:{}", hex(tar.hash));
    let mut packed = tar.inner.finish()?;
    packed.flush()?;
    let digest = hex(packed.hash);
    fs::rename(&new, blobs.join(&digest))?;
    let descriptor = json!({
        "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
        "digest": format!("sha256:{digest}"), "size": packed.length,
    });
    Ok((descriptor, id))
}

/// The header of a file in a tar (POSIX ustar). The lengths of files are those of
/// whole blocks.
fn header(name: &str, length: u64) -> [u8; BLOCK] {
    let mut header = [0; BLOCK];
    let mut put = |at: usize, text: &str| {
        for (byte, to) in text.bytes().zip(header.iter_mut().skip(at)) {
            *to = byte;
        }
    };
    put(0, name);
    put(100, "0000644");
    put(108, "0000000");
    put(116, "0000000");
    put(124, &format!("{length:011o}"));
    put(136, "00000000000");
    // While the sum is taken there are blanks in its place.
    put(148, "        ");
    put(156, "0");
    put(257, "ustar");
    put(263, "00");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    let text = format!("{sum:06o}\0 ");
    for (byte, to) in text.bytes().zip(header.iter_mut().skip(148)) {
        *to = byte;
    }
    header
}

/// Bytes that are different everywhere; gzip makes about two thirds of them, as of
/// programs, since every third word is the same.
fn content(state: &mut u64, length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length + 8);
    let mut word = 0u32;
    while bytes.len() < length {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        let value = if word.is_multiple_of(3) { 0 } else { *state };
        bytes.extend_from_slice(&value.to_le_bytes());
        word = word.wrapping_add(1);
    }
    bytes.truncate(length);
    bytes
}

fn hex(hash: Sha256) -> String {
    let digest = hash.finalize();
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Counts and hashes what is written.
struct Hashed<W> {
    inner: W,
    hash: Sha256,
    length: u64,
}

impl<W: Write> Hashed<W> {
    fn new(inner: W) -> Self {
        Self {
            inner,
            hash: Sha256::new(),
            length: 0,
        }
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(bytes.get(..written).unwrap_or_default());
        self.length += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_in_mebibytes_or_gibibytes() {
        assert_eq!(size("5G").unwrap(), 5 << 30);
        assert_eq!(size("512M").unwrap(), 512 << 20);
        for wrong in ["5", "G", "-1G", "65G", "18446744073709551615G"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_image_has_the_bytes_that_it_is_to_have() {
        let dir = tempfile::tempdir().unwrap();
        let layout = dir.path().join("layout");
        make(&layout, 3 * MIB).unwrap();
        // Every digest and the tar itself are checked by umoci.
        let image = format!("{}:{TAG}", layout.display());
        let root = dir.path().join("root");
        let umoci = Command::new("umoci")
            .args(["raw", "unpack", "--rootless", "--image", &image])
            .arg(&root)
            .output()
            .expect("umoci (`cargo xtask setup` installs it)");
        assert!(umoci.status.success(), "{umoci:?}");
        let du = Command::new("sh")
            .args(["-c", "find . -type f -exec cat {} + | wc -c"])
            .current_dir(&root)
            .output()
            .unwrap();
        let bytes = String::from_utf8(du.stdout).unwrap();
        assert_eq!(bytes.trim(), (3 * MIB).to_string());
    }
}
