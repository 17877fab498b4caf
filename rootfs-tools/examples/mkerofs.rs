//! Makes an EROFS image of a directory: `mkerofs DIRECTORY IMAGE`.

use std::error::Error;
use std::fs::File;
use std::path::Path;
use std::process::ExitCode;

use flashpan_rootfs::{directory, erofs};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mkerofs: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let [directory, image] = arguments.as_slice() else {
        return Err("usage: mkerofs DIRECTORY IMAGE".into());
    };
    let scan = directory::Scan::new(Path::new(directory), &directory::Options::default())?;
    let output = File::options()
        .create(true)
        .truncate(true)
        .write(true)
        .open(image)?;
    let options = erofs::Options::default();
    let summary = erofs::write(&scan.tree, &options, &output, &mut |_| {})?;
    println!(
        "{} inodes, {} bytes of files, image of {} bytes",
        summary.inodes, summary.content, summary.size
    );
    Ok(())
}
