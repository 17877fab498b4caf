//! Builds a guest kernel: `build [--cache DIR] [--source DIR|TARBALL] [FRAGMENT…]`.

use std::error::Error;
use std::io::Write;

use flashpan_kernel::{BuildOptions, Cache};

fn main() -> Result<(), Box<dyn Error>> {
    let mut cache = Cache::user()?;
    let mut options = BuildOptions::default();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--cache" => cache = Cache::at(arguments.next().ok_or("--cache DIR")?.as_ref()),
            "--source" => options.source = arguments.next().map(Into::into),
            _ => options.fragments.push(argument),
        }
    }
    let built = cache.build(&options, &mut |progress| {
        let eta = progress
            .eta
            .map_or_else(String::new, |eta| format!("{} s left", eta.as_secs()));
        let part = progress.fraction * 100.0;
        // A terminal that is gone is no reason to stop.
        let _ = write!(
            std::io::stderr(),
            "\r\x1b[K{:11} {part:5.1} %  {eta:12} {:.50}",
            progress.phase,
            progress.detail
        );
    });
    eprintln!();
    match built {
        Ok(kernel) => println!("{}", serde_json::to_string_pretty(&kernel)?),
        Err(error) => {
            eprintln!("{error}");
            std::process::exit(1);
        }
    }
    Ok(())
}
