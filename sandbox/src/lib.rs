//! Run untrusted programs in micro-VMs.
//!
//! A [`Sandbox`] is a Linux guest on KVM with its own kernel and its own PID 1,
//! run by a VMM process that holds nothing but the descriptors it was given.
//!
//! ```no_run
//! use flashpan::{ExecOptions, FsType, Root, Sandbox};
//!
//! # async fn example() -> Result<(), flashpan::Error> {
//! let root = Root::new("root.erofs", FsType::Erofs);
//! let sandbox = Sandbox::builder("vmlinux", root).cpus(2).memory_mib(512).boot().await?;
//! let hello = sandbox.exec(ExecOptions::argv(["echo", "hello"])).await?;
//! let hello = hello.collect(4096).await?;
//! assert_eq!(hello.stdout, b"hello\n");
//! sandbox.shutdown(std::time::Duration::from_secs(2)).await;
//! # Ok(())
//! # }
//! ```
//!
//! Files go in and out of a running guest by [`Sandbox::write_file`],
//! [`Sandbox::open_file`], [`Sandbox::list_files`] and their like, whole trees by
//! [`Sandbox::copy_in`] and [`Sandbox::copy_out`], and as tar archives by
//! [`Sandbox::tar_in`] and [`Sandbox::tar_out`]; [`Sandbox::watch`] tells what changes. [`Sandbox::port_forward`] makes ports of the guest reachable.
//!
//! All of it is asynchronous, on tokio; [`blocking`] is for programs without.
//!
//! A VM that is to outlive this process is made by [`state::Vms::create`], lives in a
//! process of [`mod@supervise`], and is reached by [`Sandbox::attach`].
//!
//! Any other VM has no file of its own anywhere, and its VMM ends when the control
//! socket to this process closes. So nothing is left behind however this
//! process ends, and a [`Sandbox`] or [`Process`] that is dropped ends what it
//! stands for.
//!
//! Nothing that comes from a guest is trusted: lengths are bounded, waits have
//! deadlines, and text is made harmless before it gets into a message.

mod agent;
pub mod api;
mod attach;
pub mod blocking;
mod boot;
mod client_certificate;
mod config;
mod console;
mod control;
mod copy;
mod copy_time;
mod dial;
mod disk;
mod driver;
mod error;
mod events;
mod exec;
mod exit;
mod file_entry;
mod file_link;
mod file_reader;
mod files;
mod flows;
mod forward;
mod forward_card;
mod forward_link;
mod forward_spec;
mod forward_tcp;
mod forward_udp;
mod frames;
mod guest_limits;
mod host_cgroup;
mod inspection;
pub mod launch;
pub mod learn;
mod locate;
mod log;
mod logs;
mod network;
mod network_event;
mod opened;
mod pem_file;
mod privilege;
mod process;
mod programs;
mod pump;
mod rate;
mod reach;
mod sandbox;
mod secret_event;
mod secret_refresh;
mod shared;
mod spawn;
pub mod state;
mod stdio;
pub mod supervise;
mod supervised;
mod surroundings;
mod tar_in;
mod tar_out;
pub mod text;
pub mod timeline;
mod usage;
mod vmm_process;
mod watch;

pub use client_certificate::{ClientCertificate, ClientCertificateError};
pub use config::{
    DEFAULT_BOOT_TIMEOUT, DEFAULT_CPUS, DEFAULT_MEMORY_MIB, MIN_MEMORY_MIB, Root, SandboxBuilder,
};
pub use copy::{Copied, CopyOptions};
pub use disk::{Disk, DiskMount, DiskRole, DiskSource, FullDisk, Upper};
pub use error::{Error, Result};
pub use events::{Events, ExecEnded, ExecStarted, VmEvent, VmEventKind};
pub use exec::{DEFAULT_PATH, ExecOptions};
pub use exit::{Exit, ExitReason};
pub use file_entry::FileEntry;
pub use file_reader::FileReader;
pub use files::{ReadOptions, WriteOptions};
pub use flashpan_network::{edit, policy, script};
pub use flashpan_protocol::agent::{ExitStatus, FsType, StartFailureKind, TerminalSize};
pub use flashpan_protocol::control::{BootProtocol, Console, ExitCount, Stats};
pub use flashpan_protocol::file::{ChangeKind, FileFailureKind, FileStat};
pub use flashpan_protocol::forward::{ForwardFailureKind, Transport};
pub use flashpan_protocol::phase::Phase;
pub use flashpan_protocol::supervisor::{Activity, Usage};
pub use flashpan_protocol::supervisor::{Explained, Reachable};
pub use forward::{
    BoundPorts, ForwardBinding, ForwardCounts, ForwardError, ForwardOptions, PortForwarding,
};
pub use forward_spec::Forward;
pub use launch::{HostOptions, Launch};
pub use locate::{guest_init_program, vmm_program};
pub use log::VmLog;
pub use logs::Logs;
pub use network::Network;
pub use network_event::NetworkActivity;
pub use privilege::{Capability, CapabilityError, Namespace, Privilege};
pub use process::{Collected, Process};
pub use programs::ProgramInfo;
pub use rate::RateLimit;
pub use reach::explain_offline;
pub use sandbox::Sandbox;
pub use secret_event::{SecretActivity, SecretState};
pub use stdio::{Output, Stdin};
pub use watch::{Change, Watch, WatchOptions};
