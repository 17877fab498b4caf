//! The lab: an emulated host on which KVM works, for machines where it does
//! not. `docs/lab.md` says how it is made and why.
//!
//! The host's side is [`run`]; the lab's side is [`agent::serve`], which the
//! same program has to offer as its subcommand `lab-agent`.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

pub mod agent;
mod cpio;
mod image;
mod mend;
pub mod packages;
mod qemu;
mod reap;
mod scratch;
mod session;
mod terminal;
mod wire;

/// Where the scratch disk is mounted in the lab. The variable `FLASHPAN_LAB`
/// names it too, and so tells a program that it runs in a lab.
pub const SCRATCH: &str = "/run/lab";

/// Exit statuses that are not the command's; as `timeout` and `docker` have them.
pub mod status {
    /// The time-out passed.
    pub const TIMED_OUT: u8 = 124;
    /// The lab itself failed.
    pub const LAB_FAILED: u8 = 125;
    /// The command is there and cannot be run.
    pub const NOT_EXECUTABLE: u8 = 126;
    /// There is no such command.
    pub const NOT_FOUND: u8 = 127;
}

/// What kind of lab, and what to run in it.
#[derive(Debug, Clone)]
pub struct Options {
    /// Let the clock count instructions (1 ns each): slow, on one CPU, and
    /// repeatable whatever else the machine does.
    pub icount: bool,
    /// Emulated CPUs.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory: u32,
    /// How long the command may take.
    pub timeout: Option<Duration>,
    /// Size of the scratch disk in bytes; it is sparse.
    pub scratch: u64,
    /// How many times to run the command; the first failure ends it.
    pub repeat: u32,
    /// Give the command a terminal.
    pub terminal: bool,
    /// Show the lab's console, for the one who debugs the lab.
    pub console: bool,
    /// The command and its arguments.
    pub command: Vec<OsString>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            icount: false,
            cpus: 2,
            memory: 6144,
            timeout: None,
            scratch: 32 << 30,
            repeat: 1,
            terminal: false,
            console: false,
            command: Vec::new(),
        }
    }
}

/// Installs, or names, the packages that a lab needs.
///
/// # Errors
/// Packages are missing and cannot be installed.
pub fn ensure_packages() -> Result<()> {
    packages::ensure_with_qemu(packages::LAB)
}

/// Runs a command in a lab of its own; its exit status.
///
/// # Errors
/// The lab could not be started, or died; the error says what it said last.
pub fn run(options: &Options) -> Result<u8> {
    ensure_packages()?;
    let cache = cache_directory()?.join("lab");
    std::fs::create_dir_all(&cache)
        .with_context(|| format!("cannot make the cache {}", cache.display()))?;
    let kernel = image::Kernel::find_or_fetch(&cache)?;
    let scratch = scratch::Scratch::take(&cache, options.scratch)?;
    let agent = env::current_exe().context("cannot find this program")?;
    let plugin = mend::plugin(&cache)?;
    let machine = qemu::Machine::start(options, &kernel, &agent, &scratch.path, &plugin)?;
    session::run(machine, options)
}

/// flashpan's directory in the user's cache directory.
///
/// # Errors
/// Neither `XDG_CACHE_HOME` nor `HOME` is set.
pub fn cache_directory() -> Result<PathBuf> {
    let given = |name| {
        env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    given("XDG_CACHE_HOME")
        .or_else(|| given("HOME").map(|home| home.join(".cache")))
        .map(|cache| cache.join("flashpan"))
        .context("neither XDG_CACHE_HOME nor HOME says where caches go")
}
