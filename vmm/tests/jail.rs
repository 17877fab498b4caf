//! The jail, proved from the outside: what it forbids ends the process, what
//! the VMM needs goes on. Each case runs in a process of its own, this test
//! program started again.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::exit,
    missing_docs
)]

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::thread;

use flashpan_vmm::jail::{self, Stage};

/// Says to the test program which case it is to be.
const CASE: &str = "FLASHPAN_JAIL_CASE";

/// What a case does after it was jailed.
type Deed = fn(&mut File);

const CASES: [(&str, Stage, Deed); 8] = [
    ("open", Stage::Building, |_| drop(File::open("/dev/null"))),
    ("connect", Stage::Building, |_| {
        drop(TcpListener::bind("127.0.0.1:0"));
    }),
    ("exec", Stage::Building, |_| {
        drop(Command::new("/bin/true").status());
    }),
    ("open later", Stage::Running, |_| {
        drop(File::open("/dev/null"));
    }),
    ("thread later", Stage::Running, |_| {
        drop(thread::spawn(|| ()).join());
    }),
    ("thread", Stage::Building, |_| {
        thread::spawn(|| ()).join().unwrap();
    }),
    ("files", Stage::Running, |file| {
        file.write_all(b"x").unwrap();
        file.rewind().unwrap();
        file.read_exact(&mut [0]).unwrap();
    }),
    ("streams", Stage::Running, |_| {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        ours.write_all(b"x").unwrap();
        theirs.read_exact(&mut [0]).unwrap();
    }),
];

/// Not a test of its own: what the cases are run by.
#[test]
fn case() {
    let Ok(wanted) = std::env::var(CASE) else {
        return;
    };
    let (_, stage, deed) = CASES.iter().find(|(name, ..)| *name == wanted).unwrap();
    let mut file = vmm_sys_util::tempfile::TempFile::new().unwrap().into_file();
    jail::enter(Stage::Building).unwrap();
    if *stage == Stage::Running {
        jail::enter(Stage::Running).unwrap();
    }
    deed(&mut file);
    std::process::exit(77);
}

fn run(case: &str) -> ExitStatus {
    let program = std::env::current_exe().unwrap();
    let mut command = Command::new(program);
    command
        .args(["case", "--exact", "--test-threads=1", "--quiet"])
        .env(CASE, case);
    command.output().unwrap().status
}

#[test]
fn what_a_vmm_does_not_need_ends_it() {
    for case in ["open", "connect", "exec", "open later", "thread later"] {
        let status = run(case);
        assert_eq!(status.signal(), Some(libc::SIGSYS), "{case}: {status}");
    }
}

#[test]
fn what_a_vmm_needs_goes_on() {
    for case in ["thread", "files", "streams"] {
        let status = run(case);
        assert_eq!(status.code(), Some(77), "{case}: {status}");
    }
}
