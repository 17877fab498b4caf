use std::io::Write as _;
use std::process::{Command, Stdio};

use super::*;

/// What `cpio --list --verbose` says of an archive, one line per entry.
fn listing(archive: &[u8]) -> Vec<String> {
    let mut cpio = Command::new("cpio");
    cpio.args(["--list", "--verbose", "--numeric-uid-gid", "--quiet"])
        .env("TZ", "UTC")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let output = crate::child::start(|| {
        let mut cpio = cpio
            .spawn()
            .expect("cpio is needed by this test: apt-get install cpio");
        cpio.stdin.take().unwrap().write_all(archive).unwrap();
        cpio.wait_with_output().unwrap()
    });
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect()
}

#[test]
fn cpio_reads_what_build_writes() {
    let lines = listing(&build(b"\x7fELF init").unwrap());
    let want = [
        ("drwxr-xr-x", "dev"),
        ("crw-------", "dev/console"),
        ("crw-rw-rw-", "dev/null"),
        ("drwxr-xr-x", "proc"),
        ("drwxr-xr-x", "sys"),
        ("drwxr-xr-x", "run"),
        ("drwxr-xr-x", "newroot"),
        ("-rwxr-xr-x", "init"),
    ];
    assert_eq!(lines.len(), want.len(), "{lines:#?}");
    for (line, (mode, name)) in lines.iter().zip(want) {
        assert!(line.starts_with(mode), "{line}");
        assert!(line.ends_with(&format!(" {name}")), "{line}");
    }
    assert!(lines[1].contains("5,   1"), "{}", lines[1]);
    assert!(lines[2].contains("1,   3"), "{}", lines[2]);
}

#[test]
fn content_starts_aligned_and_is_unchanged() {
    let init: Vec<u8> = (0..=255).cycle().take(10_007).collect();
    let archive = build(&init).unwrap();
    let at = archive
        .windows(init.len())
        .position(|window| window == init)
        .unwrap();
    assert_eq!(at % 4, 0);
    assert_eq!(archive.len() % 4, 0);
}

#[test]
fn same_input_same_bytes() {
    assert_eq!(build(b"x").unwrap(), build(b"x").unwrap());
}

#[test]
fn an_empty_init_is_refused() {
    assert_eq!(build(b""), Err(Error::EmptyInit));
}

#[test]
fn paths_that_are_not_absolute_and_normal_are_refused() {
    let mut archive = Archive::new();
    let long = format!("/{}", "a".repeat(4096));
    for path in [
        "", "/", "dev", "//dev", "/dev/", "/a/../b", "/a/./b", "/a\0b", &long,
    ] {
        let refused = Err(Error::Path { path: path.into() });
        assert_eq!(archive.directory(path, 0o755), refused, "{path:?}");
        assert_eq!(archive.file(path, 0o755, b""), refused, "{path:?}");
        assert_eq!(archive.char_device(path, 0o600, 5, 1), refused, "{path:?}");
    }
    assert_eq!(listing(&archive.finish()), Vec::<String>::new());
}
