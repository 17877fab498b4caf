//! The emulated machine.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::Options;
use crate::image::Kernel;
use crate::wire::PORT_NAME;

/// `mitigations=off`: nobody attacks the lab, and they cost a third of its speed.
/// `panic=-1` with `-no-reboot`: a panic ends QEMU at once. `no_timer_check`: the
/// check counts ticks against a loop of the CPU, and panics where a busy machine
/// lets QEMU's timer come too late for it.
const KERNEL_COMMAND_LINE: &str =
    "console=ttyS0 quiet mitigations=off panic=-1 nokaslr audit=0 no_timer_check";

/// How much of the console is kept for the report when the lab dies.
const CONSOLE_LINES: usize = 60;

/// A QEMU process, killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Machine {
    qemu: Child,
    /// The other end of the lab's virtio-serial port.
    pub(crate) port: UnixStream,
    console: UnixStream,
    lines: Arc<Mutex<VecDeque<String>>>,
}

impl Machine {
    pub(crate) fn start(
        options: &Options,
        kernel: &Kernel,
        agent: &Path,
        scratch: &Path,
        plugin: &Path,
    ) -> Result<Self> {
        // QEMU inherits these; no path has to be made, named or removed.
        let initramfs = memory_file(&kernel.initramfs(agent)?)?;
        let (port, port_end) = UnixStream::pair()?;
        let (console, console_end) = UnixStream::pair()?;
        for end in [initramfs.as_fd(), port_end.as_fd(), console_end.as_fd()] {
            fcntl(end, FcntlArg::F_SETFD(FdFlag::empty()))?;
        }

        // setpriv: should we die of whatever reason, QEMU dies too.
        let mut qemu = Command::new("setpriv");
        qemu.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]);
        qemu.args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
        ]);
        qemu.args(["-M", "q35", "-cpu", "max,+svm,+npt"]);
        if options.icount {
            qemu.args([
                "-accel",
                "tcg,thread=single",
                "-icount",
                "shift=0,sleep=off",
            ]);
            qemu.args(["-smp", "1"]);
        } else {
            qemu.args([
                "-accel",
                "tcg,thread=multi",
                "-smp",
                &options.cpus.to_string(),
            ]);
        }
        qemu.args(["-m", &options.memory.to_string()]);
        qemu.arg("-kernel").arg(kernel.image());
        qemu.arg("-initrd")
            .arg(format!("/proc/self/fd/{}", initramfs.as_raw_fd()));
        qemu.args(["-append", KERNEL_COMMAND_LINE]);

        // Only root may give files any owner.
        let root = nix::unistd::geteuid().is_root();
        let model = if root { "passthrough" } else { "none" };
        qemu.arg("-fsdev");
        qemu.arg(format!(
            "local,id=root,path=/,security_model={model},multidevs=remap"
        ));
        qemu.args(["-device", "virtio-9p-pci,fsdev=root,mount_tag=root"]);

        // A comma in a value is written twice.
        let escaped = |path: &Path| path.display().to_string().replace(',', ",,");
        let (scratch, plugin) = (escaped(scratch), escaped(plugin));
        qemu.arg("-plugin").arg(format!("file={plugin}"));
        qemu.arg("-drive");
        qemu.arg(format!(
            "if=virtio,format=raw,cache=unsafe,discard=unmap,file={scratch}"
        ));

        qemu.arg("-chardev")
            .arg(format!("socket,id=console,fd={}", console_end.as_raw_fd()));
        qemu.args(["-serial", "chardev:console"]);
        qemu.arg("-chardev")
            .arg(format!("socket,id=port,fd={}", port_end.as_raw_fd()));
        qemu.args(["-device", "virtio-serial-pci", "-device"]);
        qemu.arg(format!("virtserialport,chardev=port,name={PORT_NAME}"));

        // A process group of its own: Ctrl-C at the terminal is not for QEMU.
        let qemu = qemu
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn();
        let qemu = qemu.context("cannot start setpriv, of util-linux, to start QEMU")?;
        Ok(Self {
            qemu,
            port,
            console,
            lines: Arc::default(),
        })
    }

    /// Starts to read the console, in a thread.
    pub(crate) fn watch_console(&self, show: bool) -> Result<()> {
        let (console, lines) = (self.console.try_clone()?, Arc::clone(&self.lines));
        thread::spawn(move || keep_last_lines(console, &lines, show));
        Ok(())
    }

    /// What the lab's kernel said last.
    pub(crate) fn last_console_lines(&self) -> String {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.is_empty() {
            return "its console is empty".to_owned();
        }
        let lines: Vec<_> = lines.iter().map(|line| format!("  | {line}")).collect();
        format!("its console ends:\n{}", lines.join("\n"))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have ended by itself; either way it is reaped here.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

fn memory_file(content: &[u8]) -> Result<File> {
    let mut file = File::from(memfd_create(c"initramfs", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(content)?;
    Ok(file)
}

/// Reads to the end, since a full console would stop the lab.
fn keep_last_lines(console: UnixStream, keep: &Mutex<VecDeque<String>>, show: bool) {
    let mut console = BufReader::new(console);
    let mut line = Vec::new();
    // A line without end is cut where it would become a burden.
    while let Ok(1..) = std::io::Read::take(&mut console, 4096).read_until(b'\n', &mut line) {
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        line.clear();
        if show {
            eprintln!("console: {text}");
        }
        let mut keep = keep.lock().unwrap_or_else(PoisonError::into_inner);
        keep.push_back(text);
        if keep.len() > CONSOLE_LINES {
            keep.pop_front();
        }
    }
}
