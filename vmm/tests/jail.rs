//! The jail, proved from the outside: what it forbids ends the process, what
//! the VMM needs goes on. Each case runs in a process of its own: the test started
//! again, which then is the case.

#![allow(unsafe_code)] // Makes the calls that no safe wrapper makes.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::panic,
    clippy::print_stdout,
    clippy::exit,
    missing_docs
)]

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::num::NonZeroU64;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::sync::Barrier;
use std::thread;

use flashpan_devices::rate_limit::Throttle;
use flashpan_protocol::control::{IoRate, Rate};
use flashpan_vmm::file_size;
use flashpan_vmm::jail::{self, Stage};
use flashpan_vmm::memory::GuestMemory;

/// Says to a test which case it is to be.
const CASE: &str = "FLASHPAN_JAIL_CASE";

/// No file of a case may become longer.
const FILE_SIZE: u64 = 64 << 20;

/// What a case does after it was jailed.
type Deed = fn(&mut File);

/// Each case with whether a VMM needs it.
const CASES: [(&str, Stage, bool, Deed); 22] = [
    ("open", Stage::Building, false, |_| {
        drop(File::open("/dev/null"));
    }),
    ("socket", Stage::Building, false, |_| {
        // SAFETY: integer arguments.
        unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0) };
    }),
    // Of something else: the filter comes first.
    ("connect", Stage::Building, false, |file| {
        // SAFETY: no address is read of length 0.
        unsafe { libc::connect(file.as_raw_fd(), std::ptr::null(), 0) };
    }),
    ("exec", Stage::Building, false, |_| {
        let arguments = [c"/bin/true".as_ptr(), std::ptr::null()];
        // SAFETY: strings and a list of them that ends with null.
        unsafe { libc::execve(arguments[0], arguments.as_ptr(), &raw const arguments[1]) };
    }),
    ("more descriptors", Stage::Building, false, |_| {
        flashpan_vmm::descriptors::raise_limit();
    }),
    ("datagram pair", Stage::Building, false, |_| {
        drop(UnixDatagram::pair());
    }),
    ("send to a name", Stage::Building, false, |_| {
        send_to_a_name();
    }),
    ("open later", Stage::Running, false, |_| {
        drop(File::open("/dev/null"));
    }),
    ("thread later", Stage::Running, false, |_| {
        drop(thread::spawn(|| ()).join());
    }),
    ("seal later", Stage::Running, false, |file| {
        fcntl(file, libc::F_ADD_SEALS, libc::F_SEAL_GROW);
    }),
    // KVM_CREATE_VM, on something else: the filter comes first.
    ("another machine later", Stage::Running, false, |file| {
        ioctl(file, 0xae01);
    }),
    // KVM_SET_REGS.
    ("registers later", Stage::Running, false, |file| {
        ioctl(file, 0x4090_ae82);
    }),
    // KVM_SET_GUEST_DEBUG.
    ("what no VMM needs of KVM", Stage::Building, false, |file| {
        ioctl(file, 0x4048_ae9b);
    }),
    ("thread", Stage::Building, true, |_| {
        thread::spawn(|| ()).join().unwrap();
    }),
    ("memory", Stage::Building, true, |_| {
        GuestMemory::new(16, false).unwrap();
        GuestMemory::new(16, true).unwrap();
    }),
    ("files", Stage::Running, true, |file| {
        file.write_all(b"x").unwrap();
        file.rewind().unwrap();
        file.read_exact(&mut [0]).unwrap();
    }),
    // The kernel would send SIGXFSZ.
    ("file size", Stage::Running, true, |file| {
        let end = file.seek(SeekFrom::Start(FILE_SIZE)).unwrap();
        let error = file.write(b"x").unwrap_err();
        assert_eq!((end, error.kind()), (FILE_SIZE, ErrorKind::FileTooLarge));
    }),
    ("streams", Stage::Running, true, |_| {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        ours.write_all(b"x").unwrap();
        File::from(OwnedFd::from(theirs))
            .read_exact(&mut [0])
            .unwrap();
    }),
    ("messages", Stage::Running, true, |_| {
        socketpair(libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC);
    }),
    ("memory of many threads", Stage::Building, true, |_| {
        many_threads_allocate();
    }),
    ("limits of a disk", Stage::Building, true, |_| {
        limits_hold();
    }),
    // KVM_RUN, on something else: past the filter.
    ("run", Stage::Running, true, |file| ioctl(file, 0xae80)),
];

fn socketpair(kind: libc::c_int) {
    let mut fds = [-1; 2];
    // SAFETY: the pointer is to room for two descriptors.
    unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()) };
}

/// As many vCPU threads as there can be, each of which first allocates when the
/// guest runs.
fn many_threads_allocate() {
    let started = Barrier::new(33);
    let jailed = Barrier::new(33);
    thread::scope(|scope| {
        for _ in 0..32 {
            scope.spawn(|| {
                started.wait();
                jailed.wait();
                drop(std::hint::black_box(vec![1_u8; 3000]));
            });
        }
        started.wait();
        jail::enter(Stage::Running).unwrap();
        jailed.wait();
    });
}

/// A timer that is made with the machine and set while the guest runs.
fn limits_hold() {
    let one = Rate {
        per_second: NonZeroU64::MIN,
        burst: NonZeroU64::MIN,
    };
    let rate = IoRate {
        bytes: Some(one),
        operations: None,
    };
    let mut throttle = Throttle::new(rate).unwrap().unwrap();
    jail::enter(Stage::Running).unwrap();
    assert!(throttle.spend(1 << 20));
    assert!(throttle.holds().unwrap());
    throttle.expired();
    assert!(throttle.holds().unwrap());
}

/// What reaches any datagram socket of the host that has a name, without one
/// that was connected to it.
fn send_to_a_name() {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let name = libc::sockaddr_un {
        sun_family: libc::AF_UNIX as libc::sa_family_t,
        sun_path: [0; 108],
    };
    // SAFETY: the pointers are to one byte and to an address of that length.
    unsafe {
        libc::sendto(
            ours.as_raw_fd(),
            [0_u8].as_ptr().cast(),
            1,
            0,
            (&raw const name).cast(),
            16,
        )
    };
}

fn fcntl(file: &File, command: libc::c_int, argument: libc::c_int) {
    // SAFETY: integer arguments on our own descriptor.
    unsafe { libc::fcntl(file.as_raw_fd(), command, argument) };
}

fn ioctl(file: &File, request: libc::c_ulong) {
    // SAFETY: a file knows no such request, and does not look at the argument.
    unsafe { libc::ioctl(file.as_raw_fd(), request, 0) };
}

/// Runs the cases that a VMM needs, or those that it does not; `check` is given
/// what became of each. The name is that of the test that calls this.
fn each(test: &str, needed: bool, check: fn(&str, ExitStatus)) {
    if let Ok(case) = std::env::var(CASE) {
        be(&case);
    }
    for (case, ..) in CASES.iter().filter(|case| case.2 == needed) {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args([test, "--exact", "--test-threads=1", "--quiet"])
            .env(CASE, case);
        check(case, command.output().unwrap().status);
    }
}

fn be(case: &str) -> ! {
    let (_, stage, _, deed) = CASES.iter().find(|(name, ..)| *name == case).unwrap();
    let mut file = vmm_sys_util::tempfile::TempFile::new().unwrap().into_file();
    let limit = libc::rlimit {
        rlim_cur: FILE_SIZE,
        rlim_max: FILE_SIZE,
    };
    // SAFETY: the pointer is to `limit`.
    unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit) };
    file_size::let_writes_fail();
    jail::enter(Stage::Building).unwrap();
    if *stage == Stage::Running {
        jail::enter(Stage::Running).unwrap();
    }
    deed(&mut file);
    std::process::exit(77);
}

#[test]
fn what_a_vmm_does_not_need_ends_it() {
    each("what_a_vmm_does_not_need_ends_it", false, |case, status| {
        assert_eq!(status.signal(), Some(libc::SIGSYS), "{case}: {status}");
    });
}

#[test]
fn what_a_vmm_needs_goes_on() {
    each("what_a_vmm_needs_goes_on", true, |case, status| {
        assert_eq!(status.code(), Some(77), "{case}: {status}");
    });
}
