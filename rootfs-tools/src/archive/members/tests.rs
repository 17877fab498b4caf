use std::io::Write;

use super::*;
use crate::testing::TarBuilder;

fn piece(bytes: &[u8]) -> Piece {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    Piece::whole(file).unwrap()
}

fn scanned(bytes: &[u8]) -> Result<Members, ScanError> {
    Members::scan(&piece(bytes), 1 << 20, &Cancel::default())
}

fn file(members: &Members, tar: &Piece, name: &str) -> Option<Piece> {
    members.file(tar, name).unwrap()
}

#[test]
fn names_near_the_root_are_found_and_contents_are_where_they_are() {
    let tar = TarBuilder::new()
        .file("./a", b"one")
        .directory("d/")
        .file("d/e/f", &[7; 1000])
        .file("d/e/f/deep", b"x")
        .file("/abs", b"two")
        .finish();
    let members = scanned(&tar).unwrap();
    assert_eq!(members.count, 5);
    let tar = piece(&tar);
    let read = |name: &str| file(&members, &tar, name).map(|piece| piece.read(2000).unwrap());
    assert_eq!(read("a"), Some(b"one".to_vec()));
    assert_eq!(read("abs"), Some(b"two".to_vec()));
    assert_eq!(read("d/e/f"), Some(vec![7; 1000]));
    assert_eq!(read("d"), None);
    assert!(members.has("d") && !members.has("d/e/f/deep"));
}

#[test]
fn long_names_of_both_kinds() {
    let long = format!("blobs/{}", "n".repeat(150));
    for tar in [
        TarBuilder::new().gnu_long(&long).file("x", b"gnu"),
        TarBuilder::new().pax(&[("path", &long)]).file("x", b"gnu"),
    ] {
        let tar = tar.file("y", b"next").finish();
        let members = scanned(&tar).unwrap();
        let found = file(&members, &piece(&tar), &long).unwrap();
        assert_eq!(found.read(10).unwrap(), b"gnu");
        assert!(members.has("y") && !members.has("x"));
    }
}

#[test]
fn names_without_end_are_not_remembered_without_end() {
    let mut tar = TarBuilder::new();
    for index in 0..40 {
        // Each within what one header may have.
        let name = format!("{index}{}", "n".repeat(1 << 19));
        tar = tar.gnu_long(&name).file("x", b"");
    }
    let members = scanned(&tar.finish()).unwrap();
    assert!(members.crowded);
    assert_eq!(members.found.len(), 0);

    let mut members = Members::default();
    let target = vec![b't'; NAME_MAX];
    for index in 0..20_000 {
        let name = index.to_string();
        members.add(name.as_bytes(), Member::Link(target.clone()));
    }
    assert!(members.crowded);
    assert!(members.found.len() * NAME_MAX <= NAMES_MAX);
}

#[test]
fn impossible_sizes_are_errors() {
    let huge = TarBuilder::new()
        .pax(&[("size", "9223372036854775807")])
        .file("x", b"1");
    let truncated =
        |error: &ScanError| matches!(error, ScanError::Tar(tar::Error::Truncated { .. }));
    assert!(truncated(&scanned(&huge.finish()).unwrap_err()));
    let odd = TarBuilder::new().pax(&[("size", "-1")]).file("x", b"1");
    assert!(matches!(
        scanned(&odd.finish()),
        Err(ScanError::Tar(tar::Error::Field { .. }))
    ));
    // A name of eight gigabytes.
    let mut long = TarBuilder::new().gnu_long("x").finish();
    long[124..136].copy_from_slice(b"77777777777\0");
    TarBuilder::seal(&mut long[..512]);
    assert!(matches!(
        scanned(&long),
        Err(ScanError::Tar(tar::Error::HeaderSize { .. }))
    ));
}

#[test]
fn links_lead_to_files_of_the_archive_only_and_not_in_circles() {
    let tar = TarBuilder::new()
        .file("f", b"1")
        .link(b'2', "a/b", "../f")
        .link(b'2', "up", "../f")
        .link(b'2', "round", "round")
        .link(b'1', "hard", "f")
        .finish();
    let members = scanned(&tar).unwrap();
    let tar = piece(&tar);
    assert!(file(&members, &tar, "a/b").is_some());
    assert!(file(&members, &tar, "hard").is_some());
    assert!(file(&members, &tar, "up").is_none());
    assert!(file(&members, &tar, "round").is_none());
    assert!(file(&members, &tar, "../f").is_none());
}

#[test]
fn what_is_no_tar_is_told_from_what_is_broken() {
    let not_tar = |error: &ScanError| matches!(error, ScanError::Tar(tar::Error::NotTar));
    assert!(not_tar(&scanned(b"short").unwrap_err()));
    assert!(not_tar(&scanned(&[b'x'; 1024]).unwrap_err()));
    let mut tar = TarBuilder::new().file("a", b"1").finish();
    tar[1024..1030].copy_from_slice(b"broken");
    assert!(matches!(
        scanned(&tar),
        Err(ScanError::Tar(tar::Error::Header { position: 1024, .. }))
    ));
}

/// What is found is what the reader of layers finds, whatever wrote the archive.
#[test]
fn every_dialect_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    std::fs::write(root.join("plain"), "found").unwrap();
    let holes = std::fs::File::create(root.join("holes")).unwrap();
    holes.set_len(5 << 20).unwrap();
    // GNU's first header has room for four pieces, the next for 21.
    for piece in 0..60 {
        holes.write_all_at(&[1; 5000], piece * (80 << 10)).unwrap();
    }
    for options in [
        &["--format=gnu", "--sparse"][..],
        &["--format=gnu", "-V", "label"],
        &["--format=pax", "-V", "label"],
        &["--format=pax", "--sparse"],
        &["--format=pax", "--sparse", "--sparse-version=0.0"],
    ] {
        let mut tar = std::process::Command::new("tar");
        tar.args(options)
            .arg("-C")
            .arg(root)
            .args(["-cf", "-", "./holes", "./plain"]);
        let tar = crate::child::output(&mut tar).expect("tar is needed by this test");
        let members = scanned(&tar.stdout).unwrap();
        let tar = piece(&tar.stdout);
        assert_eq!(members.count, 2, "{options:?}");
        let found = file(&members, &tar, "plain").unwrap();
        assert_eq!(found.read(10).unwrap(), b"found", "{options:?}");
        let sparse = options.contains(&"--sparse");
        let holes = members.file(&tar, "holes");
        assert_eq!(holes.is_err(), sparse, "{options:?}: {holes:?}");
    }
}

#[test]
fn numbers_and_check_sums_of_old_are_read() {
    let mut tar = TarBuilder::new()
        .file("a", &[1; 600])
        .file("b", b"2")
        .finish();
    // The size in base 256.
    tar[124..136].copy_from_slice(b"\x80\0\0\0\0\0\0\0\0\0\x02\x58");
    TarBuilder::seal(&mut tar[..512]);
    let members = scanned(&tar).unwrap();
    let found = file(&members, &piece(&tar), "b").unwrap();
    assert_eq!(found.read(10).unwrap(), b"2");
    // A sum of signed characters.
    let mut tar = TarBuilder::new().file("\u{ff}", b"1").finish();
    tar[148..156].fill(b' ');
    let sum: i32 = tar[..512]
        .iter()
        .map(|byte| i32::from(byte.cast_signed()))
        .sum();
    tar[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    assert!(scanned(&tar).unwrap().has("\u{ff}"));
}

#[test]
fn a_scan_that_is_cancelled_ends() {
    let cancel = Cancel::default();
    cancel.cancel();
    let tar = piece(&TarBuilder::new().file("a", b"1").finish());
    let ended = Members::scan(&tar, 1 << 20, &cancel);
    assert!(matches!(ended, Err(ScanError::Cancelled)), "{ended:?}");
}
