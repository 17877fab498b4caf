//! Guest kernel configurations: build, cache, compare.
//!
//! A kernel is [`BASE`], the configuration that runs what container images
//! hold, plus any number of [`Fragment`]s on top. [`Cache::build`] turns them and
//! a source tree into an uncompressed ELF kernel that is kept under the hash of
//! everything it was made from; [`Cache::find`] gives it back without needing a
//! compiler or a source tree.
//!
//! What is asked for is what one gets: an option that Kconfig drops or changes
//! fails the build before anything is compiled ([`Unmet`]).
//!
//! The crate prints nothing, installs no signal handler and keeps no global
//! state. Progress goes to a callback, and a [`Cancel`] handle stops a build
//! from any thread.
//!
//! ```no_run
//! use flashpan_kernel::{BuildOptions, Cache};
//!
//! let cache = Cache::at("/var/cache/flashpan".as_ref());
//! let options = BuildOptions { fragments: vec!["netfilter".into()], ..Default::default() };
//! let kernel = cache.build(&options, &mut |progress| {
//!     eprintln!("{:3.0} % {}", progress.fraction * 100.0, progress.phase);
//! })?;
//! println!("{}", kernel.vmlinux().display());
//! # Ok::<(), flashpan_kernel::Error>(())
//! ```

mod build;
mod cache;
mod cancel;
mod diff;
mod download;
mod elf;
mod error;
mod fragment;
pub mod image;
mod input;
mod kernel;
mod key;
mod lock;
mod make;
mod process;
mod progress;
mod publish;
mod request;
mod source;
mod tools;
mod upstream;
mod verify;

pub use build::BuildOptions;
pub use cache::Cache;
pub use cancel::Cancel;
pub use diff::{Change, Difference, diff};
pub use download::{DownloadError, Transfer};
pub use elf::ElfError;
pub use error::Error;
pub use fragment::{BASE, FRAGMENTS, Fragment, FragmentError};
pub use kernel::{FragmentRecord, Kernel, KernelInfo};
pub use progress::{Phase, Progress};
pub use request::{Request, Requests, Resolved, SyntaxError, Value};
pub use source::{Compression, Source, SourceChoice, SourceError, SourceKind, WRITTEN_FOR};
pub use tools::{MissingTool, MissingTools, Toolchain};
pub use upstream::{MirrorError, Upstream};
pub use verify::Unmet;
