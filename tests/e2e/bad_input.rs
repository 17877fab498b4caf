//! Whatever is wrong with what the user gave: one line that says what, where
//! and what to do, and the exit status that docker has for it.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::Path;

use flashpan_tests::{Flashpan, Home, fixtures};

/// What the VMM says of a kernel whose segments go beyond its end.
const CUT_SHORT: &str = "could not load";

/// `flashpan run` with these options fails, saying all these words.
#[track_caller]
fn fails(home: &Home, options: &[&str], words: &[&str]) {
    let run = Flashpan::run(home, options, ["true"]).finish();
    run.expect_status(125).expect_complaint(words);
    assert!(run.stdout.is_empty(), "{run}");
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

#[test]
fn kernels_that_are_none() {
    let home = Home::new();
    fails(
        &home,
        &["--kernel", "/nowhere/vmlinux"],
        &["/nowhere/vmlinux: No such file", "flashpan kernel build"],
    );

    let rubbish = home.file("rubbish");
    fs::write(&rubbish, vec![b'x'; 100_000]).unwrap();
    let why = "it is neither an ELF file nor an x86 bzImage; give it";
    fails(&home, &["--kernel", &text(&rubbish)], &["/rubbish: ", why]);

    let empty = home.file("empty");
    fs::write(&empty, "").unwrap();
    fails(&home, &["--kernel", &text(&empty)], &["/empty: ", why]);

    fails(
        &home,
        &["--kernel", "/tmp"],
        &["kernel /tmp: ", "not a regular file"],
    );
}

#[test]
fn a_kernel_for_another_architecture() {
    let home = Home::new();
    let mut elf = fs::read(fixtures::kernel()).unwrap();
    // e_machine of the ELF header: 183 is AArch64.
    elf[18..20].copy_from_slice(&183u16.to_le_bytes());
    let other = home.file("arm64");
    fs::write(&other, elf).unwrap();
    fails(&home, &["--kernel", &text(&other)], &["x86"]);
}

#[test]
fn a_kernel_cut_short() {
    let home = Home::new();
    let elf = fs::read(fixtures::kernel()).unwrap();
    let cut = home.file("cut");
    fs::write(&cut, &elf[..elf.len() / 2]).unwrap();
    fails(&home, &["--kernel", &text(&cut)], &["/cut: ", CUT_SHORT]);
}

#[test]
fn root_file_systems_that_are_none() {
    let home = Home::new();
    fails(
        &home,
        &["--rootfs", "/nowhere/root"],
        &["/nowhere/root: No such file"],
    );

    let rubbish = home.file("rubbish");
    fs::write(&rubbish, vec![b'x'; 100_000]).unwrap();
    fails(&home, &["--rootfs", &text(&rubbish)], &["rubbish", "EROFS"]);

    let image = fs::read(fixtures::debian()).unwrap();
    let cut = home.file("cut.erofs");
    fs::write(&cut, &image[..image.len() / 3]).unwrap();
    fails(
        &home,
        &["--rootfs", &text(&cut)],
        &["/cut.erofs is truncated: "],
    );
}

#[test]
fn processors_and_memory_out_of_range() {
    let home = Home::new();
    fails(&home, &["--cpus", "0"], &["cpus"]);
    fails(&home, &["--cpus", "1000"], &["cpus", "32"]);
    fails(&home, &["--memory", "1M"], &["memory"]);
    fails(&home, &["--memory", "100000G"], &["memory"]);
}

#[test]
fn commands_that_cannot_be_run() {
    const NO_OPTIONS: [&str; 0] = [];
    let home = Home::new();
    let run = Flashpan::run(&home, NO_OPTIONS, ["no-such-command"]).finish();
    run.expect_status(127)
        .expect_complaint(&["no-such-command"]);
    let run = Flashpan::run(&home, NO_OPTIONS, ["/etc/passwd"]).finish();
    run.expect_status(126).expect_complaint(&["/etc/passwd"]);
    let run = Flashpan::run(&home, NO_OPTIONS, NO_OPTIONS).finish();
    run.expect_status(125).expect_complaint(&["command"]);
}

#[test]
fn users_and_directories_that_the_guest_does_not_have() {
    let home = Home::new();
    let run = Flashpan::run(&home, ["--user", "nobody-at-all"], ["true"]).finish();
    run.expect_status(125)
        .expect_complaint(&["no user \"nobody-at-all\" in the image's /etc/passwd"]);
    let run = Flashpan::run(&home, ["--workdir", "/no/such/place"], ["true"]).finish();
    run.expect_status(125)
        .expect_complaint(&["working directory \"/no/such/place\": No such file"]);
}

#[test]
fn no_kvm_device() {
    let home = Home::new();
    // A mount namespace whose /dev is empty but for what programs need.
    let script = format!(
        "mount -t tmpfs none /mnt && touch /mnt/null && mount --bind /dev/null /mnt/null \
         && mount --rbind /mnt /dev && exec {} run -- true",
        fixtures::flashpan().display()
    );
    let run = Flashpan::program(&home, "unshare", ["-r", "-m", "sh", "-c", &script]).finish();
    run.expect_status(125).expect_complaint(&["/dev/kvm"]);
}
