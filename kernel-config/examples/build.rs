//! Builds a guest kernel: `build [--check] [--cache DIR] [--source DIR|TARBALL]
//! [FRAGMENT…]`; with `--check` only asks Kconfig whether it can be built.

use std::error::Error;
use std::io::Write;

use flashpan_kernel::{BuildOptions, Cache, Progress, SourceChoice};

fn main() -> Result<(), Box<dyn Error>> {
    let mut cache = Cache::user()?;
    let mut options = BuildOptions::default();
    let mut check = false;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--cache" => cache = Cache::at(arguments.next().ok_or("--cache DIR")?.as_ref()),
            "--check" => check = true,
            "--source" => {
                let path = arguments.next().ok_or("--source DIR|TARBALL")?;
                options.source = SourceChoice::Path(path.into());
            }
            _ => options.fragments.push(argument),
        }
    }
    let mut show = |progress: Progress| {
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
    };
    let done = if check {
        cache
            .check(&options, &mut show)
            .map(|resolved| format!("{} options on", resolved.enabled()))
    } else {
        cache
            .build(&options, &mut show)
            .map(|kernel| kernel.vmlinux().display().to_string())
    };
    eprintln!();
    match done {
        Ok(line) => println!("{line}"),
        Err(error) => {
            eprintln!("{error}");
            std::process::exit(1);
        }
    }
    Ok(())
}
