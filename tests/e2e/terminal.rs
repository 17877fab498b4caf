//! `flashpan run -it`: a shell in a guest, as one uses it.

#![allow(clippy::unwrap_used, clippy::panic)]

use flashpan_tests::{Flashpan, Home, Terminal, fixtures};

fn debian_shell(home: &Home) -> Terminal {
    let debian = fixtures::debian().display().to_string();
    // No prompt of Debian's own: the tests wait for this one.
    let mut shell = Terminal::start(
        home,
        [
            "run",
            "-it",
            "--rootfs",
            &debian,
            "--env",
            "PS1=ready> ",
            "--",
            "sh",
        ],
    );
    shell.wait_for("ready> ");
    shell
}

#[test]
fn a_shell_is_usable() {
    let home = Home::new();
    let mut shell = debian_shell(&home);
    shell.press("tty; echo $((6 * 7)) $TERM\r");
    shell.wait_for("/dev/pts/");
    shell.wait_for("42 xterm");
    shell.press("exit 3\r");
    assert_eq!(shell.finish(), Some(3));
}

#[test]
fn the_size_of_the_terminal_is_passed_on_and_so_are_its_changes() {
    let home = Home::new();
    let mut shell = debian_shell(&home);
    shell.press("stty size\r");
    shell.wait_for("24 80");
    // Without job control: with it the loop's `sleep` alone would be told.
    shell
        .press("set +m; trap 'echo now: $(stty size)' WINCH; while echo again; do sleep 1; done\r");
    shell.wait_for("\nagain");
    shell.resize(50, 132);
    shell.wait_for("now: 50 132");
    shell.press("\x03");
    shell.wait_for("ready> ");
    shell.press("exit\r");
    // The shell's status is that of the loop that SIGINT ended.
    assert_eq!(shell.finish(), Some(130));
}

#[test]
fn an_interrupt_ends_the_foreground_program_and_not_the_shell() {
    let home = Home::new();
    let mut shell = debian_shell(&home);
    shell.press("cat\r");
    // Once by the terminal, once by the program: it is in the foreground.
    shell.press("echoed\r");
    shell.wait_for("echoed\r\nechoed\r\n");
    shell.press("\x03");
    shell.wait_for("ready> ");
    shell.press("echo alive; exit 0\r");
    shell.wait_for("\r\nalive");
    assert_eq!(shell.finish(), Some(0));
}

#[test]
fn vim_opens_and_writes_a_file() {
    let home = Home::new();
    let mut shell = debian_shell(&home);
    shell.press("vi /tmp/note\r");
    shell.wait_for("~");
    shell.press("ihello from vim\x1b:wq\r");
    shell.wait_for("written");
    shell.wait_for("ready> ");
    shell.press("cat /tmp/note; exit 0\r");
    shell.wait_for("hello from vim\r\n");
    assert_eq!(shell.finish(), Some(0));
}

#[test]
fn keys_without_a_terminal_are_refused() {
    let home = Home::new();
    Flashpan::run(&home, ["-it"], ["true"])
        .finish()
        .expect_status(125)
        .expect_complaint(&["-it"]);
}
