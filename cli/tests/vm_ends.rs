//! VMs that end by themselves at the moment in which somebody ends them: their supervisor
//! is played by the test, so that it goes exactly then.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

#[path = "support/fake.rs"]
mod fake;
#[path = "support/vms.rs"]
mod vms;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::thread;

use flashpan_protocol::frame::{self, Decoder};
use flashpan_protocol::supervisor::{Answer, MAX_ANSWER, MAX_REQUEST, Request, VERSION};
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use vms::{LONG, Vms};

/// A VM that ran and ended in order, and seems to run again.
struct Ending {
    vms: Vms,
    id: String,
    lock: Option<File>,
}

impl Ending {
    fn new() -> Self {
        let vms = Vms::new("normal");
        let id = vms.run(&["--name", "web"], &["sleep"]);
        vms.ok(&["stop", "web"]);
        let mut ending = Self {
            vms,
            id,
            lock: None,
        };
        ending.run_again();
        ending
    }

    fn path(&self, name: &str) -> PathBuf {
        self.vms.state().join("vms").join(&self.id).join(name)
    }

    /// Takes the lock of its life, and says that it runs.
    fn run_again(&mut self) {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).open(self.path("lock"));
        let file = file.unwrap();
        fcntl(&file, FcntlArg::F_OFD_SETLK(&whole(libc::F_WRLCK))).unwrap();
        file.write_all_at(b"r", 0).unwrap();
        self.lock = Some(file);
        assert_eq!(self.vms.status(&self.id), "running");
    }

    fn listen(&self) -> UnixListener {
        let socket = self.path("control.sock");
        let _ = fs::remove_file(&socket);
        UnixListener::bind(socket).unwrap()
    }

    /// Runs a command on the VM that `meet` hears of, with what the command then says.
    fn meet(
        &mut self,
        command: &str,
        meet: impl FnOnce(UnixStream) -> Option<UnixStream> + Send,
        at_last: impl FnOnce() + Send,
    ) -> Output {
        let listener = self.listen();
        let lock = self.lock.take();
        thread::scope(|scope| {
            scope.spawn(move || {
                let (stream, _) = listener.accept().unwrap();
                stream.set_read_timeout(Some(LONG)).unwrap();
                let stream = meet(stream);
                // As a process that ends closes what it has; the socket first, as whoever
                // listens may be killed.
                drop(listener);
                at_last();
                drop((lock, stream));
            });
            self.vms.output(&[command, "web"])
        })
    }
}

fn whole(kind: libc::c_int) -> libc::flock {
    libc::flock {
        l_type: kind.try_into().unwrap(),
        l_whence: libc::SEEK_SET.try_into().unwrap(),
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

/// Shows who it is, and says no more.
fn only_hello(mut stream: UnixStream) -> Option<UnixStream> {
    let mut decoder = Decoder::new(MAX_REQUEST);
    for _ in 0..2 {
        let request: Option<Request> = decoder.read_message(&mut stream).unwrap();
        request.unwrap();
    }
    let hello = Answer::Hello { version: VERSION };
    let hello = frame::encode(&hello, MAX_ANSWER).unwrap();
    stream.write_all(&hello).unwrap();
    Some(stream)
}

#[track_caller]
fn assert_ended(output: &Output) {
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(output.stdout, b"web\n", "{output:?}");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(!told.contains("error"), "{told}");
}

#[test]
fn a_vm_whose_supervisor_goes_without_an_answer_has_been_ended() {
    let mut ending = Ending::new();
    for command in ["stop", "kill"] {
        assert_ended(&ending.meet(command, Some, || {}));
        ending.run_again();
        assert_ended(&ending.meet(command, only_hello, || {}));
        assert_eq!(ending.vms.status(&ending.id), "stopped");
        ending.run_again();
    }
    // One that has not written down how it ended has not ended in order.
    fs::remove_file(ending.path("exit.json")).unwrap();
    let output = ending.meet("stop", only_hello, || {});
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    let told = fake::complaint(&output);
    assert!(told.contains("did not shut down in order"), "{told}");
    // Unless it was removed.
    ending.run_again();
    let record = ending.path("vm.json");
    let mut vm: serde_json::Value = serde_json::from_slice(&fs::read(&record).unwrap()).unwrap();
    vm["remove"] = true.into();
    fs::write(&record, vm.to_string()).unwrap();
    let directory = record.parent().unwrap().to_owned();
    let removed = || fs::remove_dir_all(&directory).unwrap();
    assert_ended(&ending.meet("stop", only_hello, removed));
}

#[test]
fn a_vm_whose_socket_is_gone_is_ended_as_soon_as_its_supervisor_is() {
    for command in ["stop", "kill"] {
        let mut ending = Ending::new();
        let looks = Inotify::init(InitFlags::IN_CLOEXEC).unwrap();
        let looked = AddWatchFlags::IN_CLOSE_NOWRITE;
        looks.add_watch(&ending.path("lock"), looked).unwrap();
        assert!(!ending.path("control.sock").exists());
        let mut command = ending.vms.0.flashpan(&[command, "web"]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = child.spawn().unwrap();
        // It has seen the VM run.
        let mut fds = [PollFd::new(looks.as_fd(), PollFlags::POLLIN)];
        let long = PollTimeout::try_from(LONG).unwrap();
        assert_eq!(poll(&mut fds, long), Ok(1));
        ending.lock = None;
        assert_ended(&child.wait_with_output().unwrap());
        assert_eq!(ending.vms.status(&ending.id), "stopped");
    }
}
