//! A VMM and a guest agent made of a few lines: they speak the real protocols
//! over the real sockets, from a process of their own. A program for tests, as an
//! example: Cargo builds those before it runs tests, where they can find them.
#![allow(
    missing_docs,
    unsafe_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Mutex;

use flashpan_guest_init::serve::{Service, serve as serve_with_agent};
use flashpan_protocol::agent::{
    BOOT_PORT, EXEC_PORT, GuestMessage, HostMessage, MAGIC, MAX_FRAME, VERSION,
};
use flashpan_protocol::control::{
    self, BootFailure, BootFailureKind, CONTROL_FD, Event, ExitReason, ExitReport, FullDisk,
    MAX_PACKET, Request, Stamp, Stats, VmSpec,
};
use flashpan_protocol::file::FILE_PORT;
use flashpan_protocol::forward::FORWARD_PORT;
use flashpan_protocol::frame::{self, Decoder};
use flashpan_protocol::phase::{ExitRequest, Phase};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

mod card;
mod files;
mod programs;

/// PID 1's connection once it is ready.
static BOOT: Mutex<Option<UnixStream>> = Mutex::new(None);

/// The control socket of a VMM.
struct Control(OwnedFd);

impl Control {
    /// The same socket, for another thread.
    fn another(&self) -> Self {
        Self(self.0.try_clone().unwrap())
    }

    fn send(&self, event: &Event, fd: Option<RawFd>) {
        self.send_bytes(&control::encode(event).unwrap(), fd);
    }

    fn send_bytes(&self, bytes: &[u8], fd: Option<RawFd>) {
        let fds: Vec<RawFd> = fd.into_iter().collect();
        let rights = [ControlMessage::ScmRights(&fds)];
        let ancillary = if fds.is_empty() { &[][..] } else { &rights[..] };
        let io = [IoSlice::new(bytes)];
        sendmsg::<()>(
            self.0.as_raw_fd(),
            &io,
            ancillary,
            MsgFlags::MSG_NOSIGNAL,
            None,
        )
        .unwrap();
    }

    fn receive(&self) -> Option<(Request, Vec<OwnedFd>)> {
        let mut buffer = vec![0; MAX_PACKET];
        let mut ancillary = nix::cmsg_space!([RawFd; 32]);
        let mut io = [IoSliceMut::new(&mut buffer)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message =
            recvmsg::<()>(self.0.as_raw_fd(), &mut io, Some(&mut ancillary), flags).unwrap();
        let mut fds = Vec::new();
        for part in message.cmsgs().unwrap() {
            if let ControlMessageOwned::ScmRights(numbers) = part {
                // SAFETY: just installed by the kernel for this process.
                fds.extend(
                    numbers
                        .into_iter()
                        .map(|n| unsafe { OwnedFd::from_raw_fd(n) }),
                );
            }
        }
        let length = message.bytes;
        (length > 0).then(|| (control::decode(&buffer[..length]).unwrap(), fds))
    }

    /// Speaks the last word and ends the process.
    fn exit(&self, reason: ExitReason) -> ! {
        let stats = Stats {
            full_disks: full_disks(),
            ..Stats::default()
        };
        let report = ExitReport {
            reason,
            at_ns: 9,
            stats,
        };
        self.send(&Event::Exited(Box::new(report)), None);
        std::process::exit(0)
    }
}

/// What the report of the end says of disks.
fn full_disks() -> Vec<FullDisk> {
    match std::env::var("FLASHPAN_FAKE_VMM").as_deref() {
        // The root's upper layer, the first disk beside it, one that there is not.
        Ok("full-disks") => [(1, 3), (2, 1), (99, 1)]
            .map(|(disk, failures)| FullDisk { disk, failures })
            .to_vec(),
        _ => Vec::new(),
    }
}

fn main() {
    play(&std::env::var("FLASHPAN_FAKE_VMM").expect("started by vmm.sh"))
}

/// What the process does after it was started as the VMM of `scenario`.
fn play(scenario: &str) -> ! {
    check_descriptors();
    if scenario == "held" {
        be_held();
    }
    // SAFETY: the supervisor placed the control socket there for this process.
    let control = Control(unsafe { OwnedFd::from_raw_fd(CONTROL_FD) });
    assert_eq!(
        control.receive().unwrap().0,
        Request::Hello {
            version: control::VERSION
        }
    );
    let version = if scenario == "other-version" {
        999
    } else {
        control::VERSION
    };
    if scenario == "garbage" {
        control.send_bytes(&[0xff; 100], None);
    }
    control.send(
        &Event::Hello {
            version,
            pid: std::process::id(),
        },
        None,
    );
    let (Request::Boot(spec), mut fds) = control.receive().unwrap() else {
        panic!("no Boot")
    };
    let parts = "kernel, initramfs, console, disks";
    assert_eq!(fds.len(), 3 + spec.disks.len(), "{parts}");
    let _disks = fds.split_off(3);
    let (mut console, initramfs, kernel) = (
        File::from(fds.pop().unwrap()),
        File::from(fds.pop().unwrap()),
        File::from(fds.pop().unwrap()),
    );
    check_initramfs(initramfs);
    // Whoever can lock the kernel knows that this process is gone.
    let _lock = Flock::lock(kernel.try_clone().unwrap(), FlockArg::LockExclusive).unwrap();
    match scenario {
        "boot-failed" => {
            let message = format!("not a kernel ({} MiB asked for)", spec.memory_mib);
            let kind = BootFailureKind::Kernel;
            control.send(&Event::BootFailed(BootFailure { kind, message }), None);
            std::process::exit(1)
        }
        "crash" => {
            eprintln!("first line\nlast words");
            std::process::exit(3)
        }
        "panic" => {
            console
                .write_all(b"[ 1.0] Kernel panic - not syncing: VFS: no root\n")
                .unwrap();
            control.exit(ExitReason::Reset)
        }
        // PID 1 of a kernel without vsock.
        "no-vsock" => {
            console
                .write_all(
                    b"[ 0.3] flashpan-init: connect to the supervisor (vsock CID 2, port \
                      1024): Address family not supported by protocol\n",
                )
                .unwrap();
            control.exit(ExitReason::Requested(ExitRequest::PowerOff))
        }
        "silent" => {
            control.send(
                &Event::Phase(Stamp {
                    phase: Phase::KernelEntry,
                    at_ns: 5,
                }),
                None,
            );
            console.write_all(b"booting...\n").unwrap();
            serve(&control, scenario, &spec)
        }
        // Asks much, hears nothing, and does not end when it is asked to.
        "stuffed" => {
            call_home(&control, scenario);
            let second = nix::sys::time::TimeVal::new(1, 0);
            nix::sys::socket::setsockopt(
                &control.0,
                nix::sys::socket::sockopt::SendTimeout,
                &second,
            )
            .unwrap();
            let question = control::encode(&Event::Incoming { id: 1, port: 1 }).unwrap();
            // Until there is no room for another question, because nobody here
            // takes the answers.
            while nix::sys::socket::send(control.0.as_raw_fd(), &question, MsgFlags::MSG_NOSIGNAL)
                .is_ok()
            {}
            console.write_all(b"stuffed\n").unwrap();
            loop {
                std::thread::park();
            }
        }
        // Hears nothing, and does not end when it is asked to.
        "deaf" => {
            call_home(&control, scenario);
            loop {
                std::thread::park();
            }
        }
        _ => {
            call_home(&control, scenario);
            serve(&control, scenario, &spec)
        }
    }
}

/// Nothing but standard streams and the control socket may be open, and the
/// environment has only what the wrapper script adds.
fn check_descriptors() {
    let open: Vec<RawFd> = (4..256)
        .filter(|fd| {
            let flags = nix::fcntl::fcntl(
                // SAFETY: F_GETFD on a closed number is an error, no more.
                unsafe { std::os::fd::BorrowedFd::borrow_raw(*fd) },
                nix::fcntl::FcntlArg::F_GETFD,
            );
            // What this process opened for itself is close-on-exec.
            flags.is_ok_and(|flags| flags & 1 == 0)
        })
        .collect();
    assert!(open.is_empty(), "inherited descriptors {open:?}");
    for name in ["HOME", "PATH_OF_THE_EMBEDDER"] {
        assert!(std::env::var_os(name).is_none(), "inherited {name}");
    }
}

/// Has another process hold this one when it is killed, as a disk does that never
/// answers: until that has the lock of the file `hold`.
fn be_held() {
    // SAFETY: integer arguments only. Elsewhere only parents may trace.
    unsafe { nix::libc::prctl(nix::libc::PR_SET_PTRACER, nix::libc::PR_SET_PTRACER_ANY) };
    let place = std::env::var_os("FLASHPAN_FAKE_DIR").unwrap();
    let file = File::open(Path::new(&place).join("hold")).unwrap();
    let (mut holds, held) = std::io::pipe().unwrap();
    let ourselves = nix::unistd::getpid();
    // SAFETY: this process has one thread, so the child may do anything.
    match unsafe { nix::unistd::fork() }.unwrap() {
        nix::unistd::ForkResult::Parent { .. } => {
            drop(held);
            holds.read_exact(&mut [0]).unwrap();
        }
        nix::unistd::ForkResult::Child => {
            let options = nix::sys::ptrace::Options::PTRACE_O_TRACEEXIT;
            nix::sys::ptrace::seize(ourselves, options).unwrap();
            (&held).write_all(b"x").unwrap();
            // Nobody is to wait for these.
            for fd in [2, CONTROL_FD] {
                // SAFETY: nothing in this process uses them.
                drop(unsafe { OwnedFd::from_raw_fd(fd) });
            }
            let lock = Flock::lock(file, FlockArg::LockExclusive);
            std::process::exit(i32::from(lock.is_err()))
        }
    }
}

fn check_initramfs(mut file: File) {
    assert!(file.write(b"x").is_err(), "the initramfs can be written to");
    let mut start = [0; 6];
    std::io::Seek::rewind(&mut file).unwrap();
    file.read_exact(&mut start).unwrap();
    assert_eq!(&start, b"070701");
}

/// PID 1 connects to the supervisor.
fn call_home(control: &Control, scenario: &str) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    control.send(
        &Event::Incoming {
            id: 7,
            port: BOOT_PORT + 1,
        },
        Some(theirs.as_raw_fd()),
    );
    assert_eq!(control.receive().unwrap().0, Request::Reject { id: 7 });
    control.send(
        &Event::Incoming {
            id: 8,
            port: BOOT_PORT,
        },
        Some(theirs.as_raw_fd()),
    );
    assert_eq!(control.receive().unwrap().0, Request::Accept { id: 8 });
    let scenario = scenario.to_owned();
    std::thread::spawn(move || init(ours, &scenario));
}

/// Serves the control socket until it closes.
fn serve(control: &Control, scenario: &str, spec: &VmSpec) -> ! {
    while let Some((request, mut fds)) = control.receive() {
        match request {
            Request::Connect { id, port } => {
                assert!(matches!(port, EXEC_PORT | FILE_PORT | FORWARD_PORT));
                let stream = UnixStream::from(fds.pop().unwrap());
                stream.set_nonblocking(false).unwrap();
                if scenario == "refuse" {
                    control.send(&Event::Refused { id }, None);
                } else {
                    control.send(&Event::Connected { id }, None);
                    std::thread::spawn(move || match port {
                        FILE_PORT => files::agent(stream),
                        FORWARD_PORT => serve_with_agent(Service::Forward, stream.into()).unwrap(),
                        _ => programs::agent(stream),
                    });
                }
            }
            Request::FlowOpen { id, port } => {
                let stream = UnixStream::from(fds.pop().unwrap());
                card::open(control, id, port, stream, scenario);
            }
            Request::FlowClose { id } => card::close(id),
            Request::Stats => {
                let vmm_resident_kib = u64::from(spec.memory_mib);
                let stats = Stats {
                    vmm_resident_kib,
                    ..Stats::default()
                };
                control.send(&Event::Stats(Box::new(stats)), None);
            }
            Request::Kill if scenario == "held" => {}
            // As one that is held up by a disk.
            Request::Pause if scenario == "slow-pause" => {}
            Request::Pause => control.send(&Event::Paused, None),
            Request::Resume => control.send(&Event::Resumed, None),
            Request::Kill => control.exit(ExitReason::Killed),
            other => panic!("unexpected {other:?}"),
        }
    }
    std::process::exit(0)
}

/// The guest's PID 1.
fn init(mut stream: UnixStream, scenario: &str) {
    let mut decoder = Decoder::new(MAX_FRAME);
    let version = if scenario == "other-agent" {
        999
    } else {
        VERSION
    };
    let hello = GuestMessage::Hello {
        magic: MAGIC,
        version,
        kernel_release: "6.12.0-fake".into(),
    };
    frame::write(&mut stream, &hello, MAX_FRAME).unwrap();
    let Ok(Some(HostMessage::Hello { .. })) = decoder.read_message(&mut stream) else {
        return;
    };
    let config = decoder.read_message(&mut stream).unwrap();
    let Some(HostMessage::Configure(config)) = config else {
        panic!("no Configure")
    };
    assert_eq!(config.hostname, "fake");
    if scenario == "setup-failed" {
        let warning = GuestMessage::Warning("the disk is old".into());
        frame::write(&mut stream, &warning, MAX_FRAME).unwrap();
        let what = "mount the root image /dev/vda".into();
        let failed = GuestMessage::Failed {
            what,
            why: "bad\x1b[1m magic".into(),
            errno: 22,
        };
        frame::write(&mut stream, &failed, MAX_FRAME).unwrap();
    }
    let warning = GuestMessage::Warning("no entropy\nyet".into());
    frame::write(&mut stream, &warning, MAX_FRAME).unwrap();
    if scenario == "gated" {
        // A FIFO: until the test opens it for writing.
        let gate = std::env::var_os("FLASHPAN_FAKE_DIR").unwrap();
        drop(File::open(Path::new(&gate).join("gate")).unwrap());
    }
    *BOOT.lock().unwrap() = Some(stream.try_clone().unwrap());
    frame::write(&mut stream, &GuestMessage::Ready, MAX_FRAME).unwrap();
    match decoder.read_message(&mut stream) {
        Ok(Some(HostMessage::Shutdown { .. })) if scenario != "stubborn" => {
            // SAFETY: the descriptor stays open until the process ends.
            let control = Control(unsafe { OwnedFd::from_raw_fd(CONTROL_FD) });
            control.exit(match scenario {
                "clumsy" => ExitReason::TripleFault,
                _ => ExitReason::Requested(ExitRequest::PowerOff),
            })
        }
        Ok(_) => loop {
            std::thread::park();
        },
        Err(e) => panic!("{e}"),
    }
}
