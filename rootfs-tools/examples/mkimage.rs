//! Makes an EROFS image of layers: `mkimage IMAGE SPOOL_DIRECTORY LAYER...`.

use std::error::Error;
use std::fs::{self, File};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use flashpan_rootfs::layers::{self, Layer, Options};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mkimage: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(image), Some(spool)) = (arguments.next(), arguments.next()) else {
        return Err("usage: mkimage IMAGE SPOOL_DIRECTORY LAYER...".into());
    };
    let mut layers = Vec::new();
    for path in arguments {
        let file = File::open(&path)?;
        let length = file.metadata()?.len();
        let name = path.to_string_lossy().into_owned();
        layers.push(Layer::new(name, Arc::new(file), 0, length)?);
    }
    let output = File::options()
        .create(true)
        .truncate(true)
        .write(true)
        .open(image)?;
    let cancel = AtomicBool::new(false);
    let options = Options::new(Path::new(&spool), &cancel);
    let begun = Instant::now();
    let converted = layers::convert(&layers, &[], &options, &output, &|_| {})?;
    let summary = converted.summary;
    println!(
        "{} inodes, {} bytes of files, image of {} bytes, {:.0?}",
        summary.inodes,
        summary.content,
        summary.size,
        begun.elapsed()
    );
    let status = fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find(|line| line.starts_with("VmHWM"));
    println!("{}", peak.unwrap_or_default());
    Ok(())
}
