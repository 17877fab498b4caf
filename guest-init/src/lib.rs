//! PID 1 of the guest: a static program that makes the root file system,
//! mounts what programs expect, and then runs programs on behalf of the
//! supervisor ([`flashpan_protocol::agent`]).
//!
//! * [`run()`] is the order of work.
//! * One level-triggered epoll loop owns everything afterwards: the boot
//!   connection, the listeners, the exec connections, the children and their
//!   pipes and terminals, and the connections that are forwarded. There are no sleeps and no polling; deadlines are the
//!   loop's time-out. Only what is done to files on behalf of the supervisor
//!   has threads, since a disk can keep whoever uses it waiting (`files`).
//! * Every program runs in a session and a cgroup of its own, so that it can be
//!   ended with everything that it started. What else it has to itself, and what it
//!   may do, the supervisor says ([`flashpan_protocol::privilege`]).
//! * Nothing here may end PID 1: a guest without it panics. A failure during
//!   set-up and a bug (a panic) are told to the supervisor, then the VM is
//!   powered off.

mod agent;
mod anchors;
mod boot;
mod cgroup;
mod confine;
mod connection;
mod device_tree;
mod disks;
mod events;
mod exec;
mod failure;
mod files;
mod forward;
mod init;
mod link;
mod mounts;
mod network;
mod plan;
mod poller;
mod ports;
mod reap;
mod reaper;
mod root;
mod run;
pub mod serve;
mod shutdown;
mod spawn;
mod stdio;
mod sys;
mod syscall_filter;
#[cfg(test)]
mod testing;
mod trust;
mod twin;
mod users;
mod vsock;

pub use init::run;
