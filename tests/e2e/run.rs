//! `flashpan run`: a program runs in a guest as it would here.

#![allow(clippy::unwrap_used, clippy::panic)]

use flashpan_tests::{Flashpan, Home, fixtures};

const NO_OPTIONS: [&str; 0] = [];

fn debian() -> [String; 2] {
    [
        "--rootfs".to_owned(),
        fixtures::debian().display().to_string(),
    ]
}

#[test]
fn a_program_runs_on_our_kernel_without_any_root_file_system() {
    let home = Home::new();
    let run = Flashpan::run(&home, NO_OPTIONS, ["uname", "-sr"]).finish();
    run.expect_status(0);
    assert!(run.text().starts_with("Linux 6.12."), "{run}");
    assert!(run.stderr.is_empty(), "{run}");
}

#[test]
fn exit_codes_pass_through() {
    let home = Home::new();
    for code in [0, 1, 42, 137, 255] {
        let command = ["sh".to_owned(), "-c".to_owned(), format!("exit {code}")];
        Flashpan::run(&home, NO_OPTIONS, command)
            .finish()
            .expect_status(code);
    }
}

#[test]
fn a_signal_is_128_and_its_number() {
    let home = Home::new();
    let command = ["sh", "-c", "kill -TERM $$"];
    Flashpan::run(&home, NO_OPTIONS, command)
        .finish()
        .expect_status(128 + 15);
}

#[test]
fn standard_output_and_error_stay_apart() {
    let home = Home::new();
    let run = Flashpan::script(&home, "echo out; echo err >&2").finish();
    run.expect_status(0).expect_stdout("out\n");
    assert_eq!(run.stderr, "err\n");
}

#[test]
fn a_guest_has_as_many_processors_as_it_was_given() {
    let home = Home::new();
    // More than eight is more than the host's C library takes for granted, and
    // 32 is the most.
    for cpus in ["1", "3", "9", "32"] {
        // Where two processors emulate them, 32 start slowly.
        let options = ["--cpus", cpus, "--memory", "256M", "--boot-timeout", "5m"];
        Flashpan::run(&home, options, ["nproc"])
            .finish()
            .expect_status(0)
            .expect_stdout(&format!("{cpus}\n"));
    }
}

#[test]
fn python_of_debian_computes() {
    let home = Home::new();
    let command = ["python3", "-c", "print(6*7)"];
    Flashpan::run(&home, debian(), command)
        .finish()
        .expect_status(0)
        .expect_stdout("42\n");
}

#[test]
fn a_directory_is_a_root_file_system_too() {
    let home = Home::new();
    let options = [
        "--rootfs".into(),
        fixtures::debian_directory().into_os_string(),
    ];
    let run = Flashpan::run(&home, options, ["cat", "/etc/debian_version"]).finish();
    run.expect_status(0).expect_stdout(
        &std::fs::read_to_string(fixtures::debian_directory().join("etc/debian_version")).unwrap(),
    );
}

#[test]
fn sixty_four_mebibytes_arrive_as_they_were_sent() {
    let home = Home::new();
    let mut word = 0x9e37_79b9_7f4a_7c15_u64;
    let input: Vec<u8> = std::iter::repeat_with(|| {
        // xorshift64: no page or block looks like another.
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        word.to_le_bytes()
    })
    .take((64 << 20) / 8)
    .flatten()
    .collect();
    let run = Flashpan::run(&home, ["-i"], ["cat"])
        .input(input.clone())
        .finish();
    run.expect_status(0);
    assert_eq!(run.stdout.len(), input.len());
    assert!(run.stdout == input, "the bytes differ");
}

#[test]
fn environment_working_directory_and_user_are_what_was_asked_for() {
    let home = Home::new();
    let mut options = debian().to_vec();
    options.extend(
        [
            "--env",
            "GREETING=hello world",
            "--workdir",
            "/usr",
            "--user",
            "nobody",
        ]
        .map(str::to_owned),
    );
    let script = "echo \"$GREETING\"; pwd; id -un; id -gn";
    let run = Flashpan::run(&home, options, ["sh", "-c", script]).finish();
    run.expect_status(0)
        .expect_stdout("hello world\n/usr\nnobody\nnogroup\n");
}
