//! `flashpan-bench image`: the layers of an image in an OCI layout to an EROFS
//! image, beside what umoci takes to unpack them into a directory.
//!
//! Both read from the page cache and write to the same file system, neither
//! syncs. They take turns, so that whatever else the machine does is shared.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use flashpan_rootfs::compression::Decompressor;
use flashpan_rootfs::layers::{self, Layer, Options};
use serde_json::Value;

use crate::budgets::Budgets;
use crate::figure::Figures;
use crate::large::LARGE;
use crate::options;

/// What `image` is given.
#[derive(Debug, Default)]
pub(crate) struct ImageOptions {
    layout: PathBuf,
    tag: String,
    work: PathBuf,
    budgets: PathBuf,
    runs: usize,
}

impl ImageOptions {
    /// Reads pairs of options and values.
    pub(crate) fn parse(words: &[String]) -> Result<Self> {
        let mut options = Self::default();
        options::read(words, |word, value| {
            match word {
                "--layout" => options.layout = value.into(),
                "--tag" => value.clone_into(&mut options.tag),
                "--work" => options.work = value.into(),
                "--budgets" => options.budgets = value.into(),
                "--runs" => options.runs = value.parse().context("--runs takes a number")?,
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        if options.runs == 0 {
            bail!("--runs 0 measures nothing");
        }
        Ok(options)
    }
}

/// Measures everything; false if a budget is broken.
pub(crate) fn image(options: &ImageOptions) -> Result<bool> {
    let budgets = Budgets::read(&options.budgets)?;
    remove(&options.work)?;
    fs::create_dir_all(&options.work)?;
    let figures = measure(options, &budgets);
    remove(&options.work)?;
    let names = budgets
        .names()
        .filter(|name| name.starts_with(crate::IMAGE) && !name.starts_with(LARGE));
    crate::print(&figures?.list, names)
}

pub(crate) fn remove(path: &Path) -> Result<()> {
    match path.exists() {
        true => fs::remove_dir_all(path).with_context(|| format!("remove {}", path.display())),
        false => Ok(()),
    }
}

fn measure<'a>(options: &ImageOptions, budgets: &'a Budgets) -> Result<Figures<'a>> {
    let peer = umoci_version()?;
    let (mut ours, mut theirs, mut raw, mut floor) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut told = Value::Null;
    // The first round fills the page cache and does not count.
    for round in 0..=options.runs {
        let image = options.work.join("image.erofs");
        let mut convert = Command::new(std::env::current_exe()?);
        convert
            .arg("convert")
            .arg(&options.layout)
            .arg(&options.tag)
            .arg(&image);
        let (time, output) = timed(&mut convert)?;
        let umoci = unpack(options, &["unpack"])?;
        let umoci_raw = unpack(options, &["raw", "unpack"])?;
        let mut decompress = Command::new(std::env::current_exe()?);
        decompress
            .arg("decompress")
            .arg(&options.layout)
            .arg(&options.tag);
        let (least, _) = timed(&mut decompress)?;
        fs::remove_file(&image)?;
        if round > 0 {
            ours.push(time);
            theirs.push(umoci);
            raw.push(umoci_raw);
            floor.push(least);
            told = serde_json::from_slice(&output).context("what the conversion tells")?;
        }
    }
    let least = |times: &[f64]| times.iter().copied().fold(f64::INFINITY, f64::min);
    let umoci = least(&theirs);
    let mut figures = Figures::new(budgets);
    figures.add("image/peer-umoci-unpack", umoci, "s");
    figures.add("image/peer-umoci-raw-unpack", least(&raw), "s");
    figures.beside("image/convert", least(&ours), "s", (&peer, umoci));
    figures.add("image/decompress-only", least(&floor), "s");
    figures.add("image/convert-peak", number(&told, "peak_kib")?, "KiB");
    figures.add("image/content", number(&told, "content")?, "bytes");
    figures.add("image/inodes", number(&told, "inodes")?, "inodes");
    Ok(figures)
}

/// What the conversion tells under this name.
pub(crate) fn number(told: &Value, name: &str) -> Result<f64> {
    let number = told.get(name).and_then(Value::as_f64);
    number.with_context(|| format!("the conversion tells no number `{name}`"))
}

/// umoci, into a directory that is removed again; seconds.
fn unpack(options: &ImageOptions, words: &[&str]) -> Result<f64> {
    let bundle = options.work.join("bundle");
    let mut name = options.layout.clone().into_os_string();
    name.push(format!(":{}", options.tag));
    let mut umoci = Command::new("umoci");
    umoci.args(words).arg("--image").arg(name).arg(&bundle);
    let (time, _) = timed(&mut umoci)?;
    remove(&bundle)?;
    Ok(time)
}

fn umoci_version() -> Result<String> {
    let output = Command::new("umoci")
        .arg("--version")
        .output()
        .context("start umoci")?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.trim().replace(" version", ""))
}

/// Seconds that a command takes, and what it says.
pub(crate) fn timed(command: &mut Command) -> Result<(f64, Vec<u8>)> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let begun = Instant::now();
    let output = command
        .output()
        .with_context(|| format!("start {command:?}"))?;
    let took = begun.elapsed().as_secs_f64();
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?} ended with {}: {}", output.status, why.trim());
    }
    Ok((took, output.stdout))
}

/// The layers of the image with this tag, lowest first.
fn layers_of(layout: &Path, tag: &str) -> Result<Vec<Layer>> {
    let read = |path: PathBuf| -> Result<Value> {
        let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        Ok(serde_json::from_slice(&text)?)
    };
    let blob = |descriptor: &Value| -> Result<PathBuf> {
        let digest = descriptor
            .get("digest")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let (kind, digest) = digest
            .split_once(':')
            .context("a descriptor without digest")?;
        Ok(layout.join("blobs").join(kind).join(digest))
    };
    let list = |value: &Value, name: &str| -> Result<Vec<Value>> {
        let list = value.get(name).and_then(Value::as_array).cloned();
        list.with_context(|| format!("the layout has no {name}"))
    };
    let index = read(layout.join("index.json"))?;
    let is_tagged = |manifest: &Value| {
        let name = manifest.pointer("/annotations/org.opencontainers.image.ref.name");
        name.and_then(Value::as_str) == Some(tag)
    };
    let manifests = list(&index, "manifests")?;
    let manifest = manifests.iter().find(|manifest| is_tagged(manifest));
    let manifest = read(blob(manifest.context("the layout has no such tag")?)?)?;
    list(&manifest, "layers")?
        .iter()
        .map(|descriptor| {
            let path = blob(descriptor)?;
            let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
            let length = file.metadata()?.len();
            Ok(Layer::new(
                path.display().to_string(),
                Arc::new(file),
                0,
                length,
            )?)
        })
        .collect()
}

/// `flashpan-bench convert LAYOUT TAG IMAGE`: what is measured, alone in its process.
pub(crate) fn convert(layout: &Path, tag: &str, image: &Path) -> Result<()> {
    let output = File::options()
        .create(true)
        .truncate(true)
        .read(true)
        .write(true)
        .open(image)?;
    let cancel = AtomicBool::new(false);
    let directory = image.parent().context("an image without directory")?;
    let options = Options::new(directory, &cancel);
    let converted = layers::convert(&layers_of(layout, tag)?, &[], &options, &output, &|_| {})?;
    let status = fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak = peak.and_then(|text| text.trim().trim_end_matches(" kB").parse::<u64>().ok());
    let told = serde_json::json!({
        "peak_kib": peak,
        "content": converted.summary.content,
        "inodes": converted.summary.inodes,
    });
    writeln!(std::io::stdout(), "{told}")?;
    Ok(())
}

/// `flashpan-bench decompress LAYOUT TAG`: what cannot be spared, on as many
/// CPUs as there are: the decompression of every layer, to nowhere.
pub(crate) fn decompress(layout: &Path, tag: &str) -> Result<()> {
    let layers = layers_of(layout, tag)?;
    std::thread::scope(|scope| {
        let running: Vec<_> = layers
            .iter()
            .map(|layer| {
                scope.spawn(move || {
                    let length = usize::try_from(layer.length).unwrap_or(usize::MAX);
                    let mut stored = vec![0; length];
                    std::os::unix::fs::FileExt::read_exact_at(
                        &*layer.file,
                        &mut stored,
                        layer.offset,
                    )?;
                    let mut stream = Decompressor::new(&*stored, layer.compression);
                    std::io::copy(&mut stream, &mut std::io::sink())
                })
            })
            .collect();
        for thread in running {
            let done = thread
                .join()
                .map_err(|_| anyhow::anyhow!("a thread panicked"))?;
            done.context("decompress a layer")?;
        }
        Ok(())
    })
}
