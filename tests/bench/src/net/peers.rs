//! passt, pasta and slirp4netns, as the distribution has them.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::deadline::Running;

use super::space::{Frames, Space, TAP, ip, tap};

/// Where passt and pasta are told that their guest is.
const GUEST: &str = "198.18.4.2";
/// Their host.
pub(super) const GATEWAY: &str = "198.18.4.1";
/// slirp4netns's host.
pub(super) const SLIRP_GATEWAY: &str = "10.0.2.2";

/// What all that speak IPv4 only are told.
const PASST: [&str; 16] = [
    "--foreground",
    "--quiet",
    "--ipv4-only",
    "--mtu",
    "1500",
    "--address",
    GUEST,
    "--netmask",
    "255.255.255.252",
    "--gateway",
    GATEWAY,
    "--tcp-ports",
    "none",
    "--udp-ports",
    "none",
    "--no-dhcp",
];

/// A program that runs as long as this lives.
#[derive(Debug)]
pub(super) struct Program {
    // First, so that it ends before what it looks at goes.
    _running: Running,
    /// What it looks at as long as it runs.
    mount: Option<Mount>,
}

/// Starts a program that is to run, whose standard error is ours.
fn start(command: &mut Command) -> Result<Program> {
    let name = command.get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let child = command.spawn().with_context(|| format!("start {name}"))?;
    Ok(Program {
        _running: Running(child),
        mount: None,
    })
}

/// Lets the next programs have this descriptor.
fn pass_on(fd: &impl AsFd) -> Result<()> {
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty())).context("pass a descriptor on")?;
    Ok(())
}

fn configure(space: &Space) -> Result<()> {
    space.run(|| {
        ip(&format!("link set {TAP} mtu 1500 up"))?;
        ip(&format!("addr add {GUEST}/30 dev {TAP}"))?;
        ip(&format!("route add default via {GATEWAY}"))
    })?
}

/// passt at a socket, as QEMU is connected to it: what a virtual machine has. Who plays
/// QEMU moves frames between TAP device and socket.
pub(super) fn passt(space: &Space) -> Result<Program> {
    let tap = space.run(|| tap(Frames::Plain))??;
    configure(space)?;
    let (ours, theirs) = UnixStream::pair()?;
    pass_on(&theirs)?;
    let mut command = Command::new("passt");
    command
        .args(PASST)
        .arg("--fd")
        .arg(theirs.as_raw_fd().to_string());
    let program = start(&mut command)?;
    drop(theirs);
    let tap = Arc::new(tap);
    let (to, from) = (ours.try_clone()?, ours);
    let other = Arc::clone(&tap);
    // Both end with the socket, when passt does.
    thread::spawn(move || up(&tap, to));
    thread::spawn(move || down(&other, from));
    Ok(program)
}

/// Frames that are sent together.
const BATCH: usize = 64;
/// Room for one frame.
const FRAME: usize = 4096;

/// Frames of the guest, with their length before each. As many as there are pass at once.
fn up(tap: &File, mut to: UnixStream) -> io::Result<()> {
    let mut reader = tap;
    let mut batch = vec![0; BATCH * FRAME];
    loop {
        let mut filled = 0;
        for _ in 0..BATCH {
            let Some(room) = batch.get_mut(filled..filled + FRAME) else {
                break;
            };
            let (prefix, frame) = room.split_at_mut(4);
            match reader.read(frame) {
                Ok(len) => {
                    prefix.copy_from_slice(&u32::try_from(len).unwrap_or(0).to_be_bytes());
                    filled += 4 + len;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        if filled == 0 {
            let mut fds = [
                PollFd::new(tap.as_fd(), PollFlags::POLLIN),
                PollFd::new(to.as_fd(), PollFlags::POLLHUP),
            ];
            poll(&mut fds, PollTimeout::NONE)?;
            let [_, socket] = fds;
            if socket.any().unwrap_or(false) {
                return Ok(());
            }
        }
        to.write_all(batch.get(..filled).unwrap_or_default())?;
    }
}

/// Frames for the guest.
fn down(tap: &File, mut from: UnixStream) -> io::Result<()> {
    let mut writer = tap;
    let mut buffer = vec![0; 512 * 1024];
    let mut filled = 0;
    loop {
        let room = buffer.get_mut(filled..).unwrap_or_default();
        match from.read(room)? {
            0 => return Ok(()),
            count => filled += count,
        }
        let mut done = 0;
        while let Some(prefix) = buffer.get(done..done + 4)
            && let Ok(prefix) = <[u8; 4]>::try_from(prefix)
            && let Ok(len) = usize::try_from(u32::from_be_bytes(prefix))
            && let Some(frame) = buffer.get(done + 4..done + 4 + len)
            && done + 4 + len <= filled
        {
            match writer.write(frame) {
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                _ => {}
            }
            done += 4 + len;
        }
        buffer.copy_within(done..filled, 0);
        filled -= done;
    }
}

/// pasta, which is passt with a TAP device of its own.
pub(super) fn pasta(space: &Space) -> Result<Program> {
    let mut command = Command::new("pasta");
    command
        .args(PASST)
        .args(["--config-net", "--ns-ifname", TAP]);
    command.args([
        "--tcp-ns",
        "none",
        "--udp-ns",
        "none",
        "--runas",
        "0",
        "--netns-only",
    ]);
    // It gives up the privilege that it would need for a file of /proc.
    let mount = Mount::new(space.path())?;
    command.arg("--netns").arg(mount.0.path());
    let mut program = start(&mut command)?;
    program.mount = Some(mount);
    wait_for_route(space)?;
    Ok(program)
}

/// A file that is a namespace.
#[derive(Debug)]
struct Mount(tempfile::NamedTempFile);

impl Mount {
    fn new(namespace: &Path) -> Result<Self> {
        let file = tempfile::NamedTempFile::new()?;
        let mut mount = Command::new("mount");
        let status = mount.arg("--bind").arg(namespace).arg(file.path()).status();
        ensure!(
            status.context("start mount")?.success(),
            "cannot mount a namespace"
        );
        Ok(Self(file))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount")
            .arg("--lazy")
            .arg(self.0.path())
            .status();
    }
}

/// slirp4netns as it comes.
pub(super) fn slirp4netns(space: &Space) -> Result<Program> {
    let (mut ours, theirs) = UnixStream::pair()?;
    pass_on(&theirs)?;
    let mut command = Command::new("slirp4netns");
    command.args([
        "--configure",
        "--mtu",
        "1500",
        "--netns-type",
        "path",
        "--ready-fd",
    ]);
    command
        .arg(theirs.as_raw_fd().to_string())
        .arg(space.path())
        .arg(TAP);
    command.stderr(Stdio::null());
    let program = start(&mut command)?;
    drop(theirs);
    let mut ready = [0];
    ours.read_exact(&mut ready)
        .context("slirp4netns did not start")?;
    Ok(program)
}

/// Waits until the namespace has a way out.
fn wait_for_route(space: &Space) -> Result<()> {
    space.run(|| {
        // What changes is told as it happens; what was there before is asked for after that.
        let mut monitor = Command::new("ip")
            .args(["-4", "monitor", "route"])
            .stdout(Stdio::piped())
            .spawn()
            .context("start ip monitor")?;
        let mut told = monitor.stdout.take().context("ip monitor has no output")?;
        let mut there = || -> Result<()> {
            for _ in 0..100 {
                let routes = Command::new("ip").args(["-4", "route"]).output()?;
                if String::from_utf8_lossy(&routes.stdout).contains("default") {
                    return Ok(());
                }
                if told.read(&mut [0; 4096])? == 0 {
                    break;
                }
            }
            bail!("pasta has not configured its namespace")
        };
        let result = there();
        let _ = monitor.kill();
        let _ = monitor.wait();
        result
    })?
}
