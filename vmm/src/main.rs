//! The VMM process: one virtual machine, jailed.
//!
//! Started by a supervisor with its control socket as descriptor 3. It takes
//! no paths and no options that name any: kernel, initramfs and disks arrive as
//! open descriptors. `--probe` instead tries whether KVM runs a guest.

use std::os::fd::{FromRawFd, OwnedFd};
use std::process::ExitCode;
use std::sync::Arc;

use flashpan_protocol::control::{CONTROL_FD, Event};
use flashpan_protocol::phase::Phase;
use flashpan_vmm::control::{Control, ControlSubscriber};
use flashpan_vmm::jail::{self, Stage};
use flashpan_vmm::vm::stamp;
use flashpan_vmm::{Host, Observer, Vm, VmEvent, descriptors, file_size, probe};

const USAGE: &str = "flashpan-vmm is started by flashpan with a control socket as descriptor 3; \
run `flashpan run` instead, or `flashpan-vmm --probe` to try KVM";

fn main() -> ExitCode {
    let spawned = stamp(Phase::VmmSpawned);
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let words: Vec<_> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        [] => {}
        ["--die-with-parent"] => die_with_parent(),
        ["--probe"] => {
            let report = probe::run();
            println!("{}", report.json());
            return if report.works() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            };
        }
        ["--version"] => {
            println!("flashpan-vmm {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        _ => {
            eprintln!("flashpan-vmm: error: {USAGE}");
            return ExitCode::from(2);
        }
    }
    match serve(spawned) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("flashpan-vmm: error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the one machine that the supervisor asks for.
fn serve(spawned: flashpan_protocol::control::Stamp) -> Result<(), Box<dyn std::error::Error>> {
    let control = Control::new(control_fd()?)?;
    descriptors::raise_limit();
    file_size::let_writes_fail();
    let host = Host::open();
    jail::enter(Stage::Building)?;
    let (spec, resources) = control.handshake()?;
    control.set_nonblocking(true)?;
    control.event(VmEvent::Phase(spawned));
    let observer: Arc<dyn Observer> = Arc::new(control.clone());
    let booted = host.and_then(|host| Vm::boot(host, &spec, resources, observer));
    let mut vm = match booted {
        Ok(vm) => vm,
        Err(error) => {
            control.finish(&Event::BootFailed(error.into()))?;
            return Ok(());
        }
    };
    vm.subscribe(Box::new(ControlSubscriber::new(
        control.clone(),
        vm.handle()?,
    )?));
    jail::enter(Stage::Running)?;
    let report = vm.run();
    // A supervisor that is gone needs no report; one that is not finds in our
    // last lines why there is none.
    if let Err(error) = control.finish(&Event::Exited(Box::new(report))) {
        eprintln!("flashpan-vmm: error: could not report the machine's end: {error}");
    }
    // The process ends now: the kernel takes everything back at once, where we
    // would join threads and unmap memory piece by piece.
    std::mem::forget(vm);
    Ok(())
}

/// The control socket, if there is one.
#[allow(unsafe_code)] // Descriptor 3 is the contract with whoever started us.
fn control_fd() -> Result<OwnedFd, Box<dyn std::error::Error>> {
    let mut kind: libc::c_int = 0;
    let mut len = libc::socklen_t::try_from(size_of::<libc::c_int>())?;
    // SAFETY: the pointers are to `kind` and `len`, of the right sizes.
    let got = unsafe {
        libc::getsockopt(
            CONTROL_FD,
            libc::SOL_SOCKET,
            libc::SO_TYPE,
            (&raw mut kind).cast(),
            &raw mut len,
        )
    };
    if got != 0 || kind != libc::SOCK_SEQPACKET {
        return Err(format!("descriptor 3 is not a control socket: {USAGE}").into());
    }
    // SAFETY: nothing in this process has opened or will use it otherwise.
    let fd = unsafe { OwnedFd::from_raw_fd(CONTROL_FD) };
    // SAFETY: integer arguments on our own descriptor.
    unsafe { libc::fcntl(CONTROL_FD, libc::F_SETFD, libc::FD_CLOEXEC) };
    Ok(fd)
}

/// Asks the kernel to end us with our parent, even if we hang.
#[allow(unsafe_code)] // prctl(2) has no safe wrapper in std.
fn die_with_parent() {
    // SAFETY: integer arguments only.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
}
