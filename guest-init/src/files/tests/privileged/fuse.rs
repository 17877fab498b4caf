//! A file system that a program serves, and then no longer does.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::mpsc;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::super::*;
use crate::testing::in_own_namespaces;

/// Requests of the kernel, `enum fuse_opcode` of linux/fuse.h.
const LOOKUP: u32 = 1;
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const READ: u32 = 15;
const INIT: u32 = 26;

/// A file system of which every name is a file that can be opened. Nothing else
/// that is asked of it is ever answered, neither a read nor a close.
struct Silent {
    at: Directory,
    /// What was asked, by its number.
    asked: mpsc::Receiver<u32>,
}

impl Silent {
    fn mount() -> Self {
        let at = Directory::new();
        let device = File::options().read(true).write(true).open("/dev/fuse");
        let device = device.unwrap();
        let options = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0",
            device.as_raw_fd()
        );
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("silent"), &at.0, Some("fuse"), flags, Some(&*options)).unwrap();
        let (sender, asked) = mpsc::channel();
        std::thread::spawn(move || answer(device, &sender));
        Self { at, asked }
    }

    fn wait_for(&self, request: u32) {
        while self.asked.recv_timeout(PATIENCE).unwrap() != request {}
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        // Fails whatever waits for an answer.
        let _ = umount2(&self.at.0, MntFlags::MNT_FORCE);
        let _ = umount2(&self.at.0, MntFlags::MNT_DETACH);
    }
}

/// Serves the file system until it is unmounted.
fn answer(mut device: File, asked: &mpsc::Sender<u32>) {
    let mut request = vec![0; 64 << 10];
    while let Ok(length) = device.read(&mut request) {
        let number = |at: usize| u32::from_le_bytes(request[at..at + 4].try_into().unwrap());
        assert!(length >= 40);
        let (what, node) = (number(4), number(16));
        let words: &[u32] = match what {
            // Version 7.31; writes of at most 4096 bytes.
            INIT => &[7, 31, 0, 0, 0, 4096, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            // Node 2, for an hour.
            LOOKUP => &[2, 0, 0, 0, 3600, 0, 3600, 0, 0, 0],
            GETATTR => &[3600, 0, 0, 0],
            // To be asked for every read (FOPEN_DIRECT_IO).
            OPEN => &[0, 0, 1, 0],
            _ => &[],
        };
        let mut body: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        if matches!(what, LOOKUP | GETATTR) {
            body.extend(attributes(what == LOOKUP || node == 2));
        }
        if !body.is_empty() {
            let length = u32::try_from(16 + body.len()).unwrap();
            let mut reply = [length.to_le_bytes(), [0; 4]].concat();
            reply.extend_from_slice(&request[8..16]);
            reply.extend(body);
            device.write_all(&reply).unwrap();
        }
        if asked.send(what).is_err() {
            return;
        }
    }
}

/// `struct fuse_attr` of a file of 4096 bytes, or of the root.
fn attributes(is_file: bool) -> Vec<u8> {
    let (node, mode) = if is_file {
        (2, 0o100_644)
    } else {
        (1, 0o040_755)
    };
    let mut words = [0_u32; 22];
    (words[0], words[2], words[15], words[16]) = (node, 4096, mode, 1);
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// The files of an operation that hangs are nobody else's: a program that is
/// started would have to close them, and to wait for the answer to that.
#[test]
#[ignore = "needs root and /dev/fuse"]
fn programs_start_while_a_file_system_does_not_answer() {
    in_own_namespaces(
        "files::tests::privileged::fuse::programs_start_while_a_file_system_does_not_answer",
        || {
            let silent = Silent::mount();
            let mut session = Session::start(FileRequest::Read {
                path: bytes(silent.at.path("file")),
                offset: 0,
                length: None,
            });
            let Some(FileOutput::Info(_)) = session.next() else {
                panic!("it cannot be opened");
            };
            silent.wait_for(READ);
            let (sender, ended) = mpsc::channel();
            let program = std::thread::spawn(move || {
                let _ = sender.send(Command::new("true").status().unwrap().success());
            });
            let started = ended.recv_timeout(PATIENCE / 4);
            // Ends whatever hangs.
            drop(silent);
            program.join().unwrap();
            session.finish().unwrap_err();
            assert_eq!(started, Ok(true), "it waits for the file system");
        },
    );
}
