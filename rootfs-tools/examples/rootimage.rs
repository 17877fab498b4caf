//! What `run --rootfs PATH` starts from: tells what PATH is and, if it is a
//! directory, has the cache make an image of it. Without PATH: the built-in root.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use flashpan_rootfs::cache::Cache;
use flashpan_rootfs::directory::{self, Event};
use flashpan_rootfs::probe::{RootImage, probe};
use flashpan_rootfs::{builtin, erofs};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rootimage: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let started = Instant::now();
    let cache = Cache::user()?;
    let event = &mut |event| match event {
        Event::LeftOut(path) => eprintln!("{} is left empty", path.display()),
        Event::Waiting => eprintln!("waiting for another process that makes this image"),
        Event::Copied(erofs::Progress { done, total }) => {
            eprint!("\r{} of {} MiB", done >> 20, total >> 20);
        }
    };
    let image = match std::env::args_os().nth(1).map(PathBuf::from) {
        None => builtin::image(&cache, event)?,
        Some(path) => match probe(&path)? {
            RootImage::Directory => {
                directory::image(&path, &directory::Options::default(), &cache, event)?
            }
            image => {
                println!("{}: {image:?}", path.display());
                return Ok(());
            }
        },
    };
    let made = if image.made { "made" } else { "found" };
    println!(
        "\r{made} {} in {:.0?}",
        image.path.display(),
        started.elapsed()
    );
    Ok(())
}
