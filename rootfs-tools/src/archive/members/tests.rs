use std::io::Write;

use super::*;
use crate::testing::TarBuilder;

fn piece(bytes: &[u8]) -> Piece {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    Piece::whole(file).unwrap()
}

fn scanned(bytes: &[u8]) -> Result<Members, ScanError> {
    Members::scan(&piece(bytes))
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
    let read = |name: &str| {
        members
            .file(&tar, name)
            .map(|piece| piece.read(2000).unwrap())
    };
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
        let found = members.file(&piece(&tar), &long).unwrap();
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
    assert!(matches!(scanned(&huge.finish()), Err(ScanError::Truncated)));
    let odd = TarBuilder::new().pax(&[("size", "-1")]).file("x", b"1");
    assert!(matches!(
        scanned(&odd.finish()),
        Err(ScanError::Malformed(_))
    ));
    // A name of four gigabytes.
    let mut long = TarBuilder::new().gnu_long("x").finish();
    long[124..136].copy_from_slice(b"77777777777\0");
    TarBuilder::seal(&mut long[..512]);
    assert!(matches!(scanned(&long), Err(ScanError::Malformed(_))));
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
    assert!(members.file(&tar, "a/b").is_some());
    assert!(members.file(&tar, "hard").is_some());
    assert!(members.file(&tar, "up").is_none());
    assert!(members.file(&tar, "round").is_none());
    assert!(members.file(&tar, "../f").is_none());
}

#[test]
fn what_is_no_tar_is_told_from_what_is_broken() {
    assert!(matches!(scanned(b"short"), Err(ScanError::NotTar(0))));
    assert!(matches!(scanned(&[0; 1024]), Err(ScanError::NotTar(0))));
    assert!(matches!(scanned(&[b'x'; 1024]), Err(ScanError::NotTar(0))));
    let mut tar = TarBuilder::new().file("a", b"1").finish();
    tar[1024..1030].copy_from_slice(b"broken");
    assert!(matches!(scanned(&tar), Err(ScanError::NotTar(1024))));
}
