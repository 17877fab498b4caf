use std::collections::BTreeMap;
use std::io::Write;

use proptest::prelude::*;

use super::*;
use crate::testing::{TarBuilder, digest_of, image_config, oci_layout};

const ROOT: &str = "etc/";

fn options(spool: &Path) -> Options {
    Options {
        platform: Platform::default(),
        limits: Limits {
            total: 64 << 20,
            ..Limits::default()
        },
        spool: spool.to_owned(),
        cancel: Cancel::default(),
    }
}

/// Opens these bytes as a file.
fn opened(bytes: &[u8]) -> Result<Contents, Error> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("archive");
    std::fs::write(&path, bytes).unwrap();
    let contents = open(&path, &options(dir.path()), &mut |_| {});
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "spool files have no names");
    contents
}

fn complaint(bytes: &[u8]) -> String {
    let text = opened(bytes).unwrap_err().to_string();
    assert!(!text.contains('\n'), "{text}");
    text
}

fn images(bytes: &[u8]) -> Vec<Image> {
    match opened(bytes).unwrap() {
        Contents::Images(images) => images,
        other => panic!("{other:?}"),
    }
}

fn layer() -> Vec<u8> {
    TarBuilder::new().file("hello", b"world").finish()
}

/// What `docker save` writes.
fn docker(names: &str, layer_name: &str) -> TarBuilder {
    let config = image_config(&[digest_of(&layer())], "{}");
    let name = format!("{}.json", &digest_of(config.as_bytes())[7..]);
    let manifest =
        format!(r#"[{{"Config": "{name}", "RepoTags": {names}, "Layers": ["{layer_name}"]}}]"#);
    TarBuilder::new()
        .file(&name, config.as_bytes())
        .file("manifest.json", manifest.as_bytes())
}

#[test]
fn an_archive_of_docker() {
    let tar = docker(r#"["app:1", "app:2"]"#, "abc/layer.tar");
    let tar = tar.file("abc/layer.tar", &layer()).finish();
    let found = images(&tar);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].names, ["app:1", "app:2"]);
    assert_eq!(found[0].layers[0].piece.read(1 << 20).unwrap(), layer());
}

/// One configuration can be listed many times.
#[test]
fn configurations_do_not_fill_memory() {
    let config = format!(r#"{{"x":"{}"}}"#, " ".repeat(7 << 20));
    let listed = [r#"{"Config":"c","RepoTags":["a:1"],"Layers":[]}"#; 12].join(",");
    let archive = TarBuilder::new()
        .file("manifest.json", format!("[{listed}]").as_bytes())
        .file("c", config.as_bytes())
        .finish();
    let complaint = complaint(&archive);
    assert!(complaint.contains("in all"), "{complaint}");
    let names = [r#""a:1""#; 12].join(",");
    let listed = format!(r#"[{{"Config":"c","RepoTags":[{names}],"Layers":[]}}]"#);
    let archive = TarBuilder::new()
        .file("manifest.json", listed.as_bytes())
        .file("c", config.as_bytes())
        .finish();
    let complaint = self::complaint(&archive);
    assert!(complaint.contains("in all"), "{complaint}");
}

#[test]
fn layers_by_links_as_older_dockers_have_them() {
    let tar = docker("null", "abc/layer.tar")
        .file("def/layer.tar", &layer())
        .link(b'2', "abc/layer.tar", "../def/layer.tar");
    assert_eq!(images(&tar.finish())[0].layers.len(), 1);
    let tar = docker("null", "abc/layer.tar")
        .file("def/layer.tar", &layer())
        .link(b'1', "abc/layer.tar", "def/layer.tar");
    assert_eq!(images(&tar.finish())[0].layers.len(), 1);
    for target in ["../../../etc/passwd", "/etc/passwd", "layer.tar", "."] {
        let tar = docker("null", "abc/layer.tar").link(b'2', "abc/layer.tar", target);
        let text = complaint(&tar.finish());
        assert!(text.contains("abc/layer.tar"), "{target}: {text}");
    }
}

#[test]
fn the_last_of_several_members_counts() {
    let tar = docker("null", "l.tar")
        .file("l.tar", b"something else")
        .file("./l.tar", &layer());
    let found = images(&tar.finish());
    assert_eq!(found[0].layers[0].piece.read(1 << 20).unwrap(), layer());
}

#[test]
fn a_layout_as_tar_and_directory() {
    let files = oci_layout(&[("app:1", &[layer()], "{}")]);
    let mut tar = TarBuilder::new();
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in &files {
        tar = tar.file(name, bytes);
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    let from_tar = images(&tar.finish());
    let contents = open(dir.path(), &options(dir.path()), &mut |_| {}).unwrap();
    let Contents::Images(from_directory) = contents else {
        panic!("{contents:?}")
    };
    for found in [from_tar, from_directory] {
        assert_eq!(found[0].names, ["app:1"]);
        assert!(found[0].manifest.is_some());
        assert_eq!(found[0].layers[0].digest, Some(digest_of(&layer())));
    }
}

fn tar_of(files: &BTreeMap<String, Vec<u8>>) -> Vec<u8> {
    let add = |tar: TarBuilder, (name, bytes): (&String, &Vec<u8>)| tar.file(name, bytes);
    files.iter().fold(TarBuilder::new(), add).finish()
}

#[test]
fn blobs_that_are_missing_or_other_than_they_should_be() {
    let files = oci_layout(&[("app:1", &[layer()], "{}")]);
    for name in files.keys() {
        let mut without = files.clone();
        without.remove(name);
        complaint(&tar_of(&without));
        let mut longer = files.clone();
        longer.get_mut(name).unwrap().push(b'x');
        if name != "oci-layout" {
            complaint(&tar_of(&longer));
        }
        let mut other = files.clone();
        for byte in other.get_mut(name).unwrap() {
            *byte = b'x';
        }
        // What a layer holds is checked while it is read as a whole.
        if name != "oci-layout" && *name != format!("blobs/sha256/{}", &digest_of(&layer())[7..]) {
            complaint(&tar_of(&other));
        }
    }
}

#[test]
fn a_name_that_promises_a_digest_has_to_keep_it() {
    let tar = docker("null", "l.tar").file("l.tar", &layer()).finish();
    let at = tar.windows(8).position(|w| w == b"diff_ids").unwrap();
    let mut tar = tar;
    tar[at + 14] ^= 1;
    let text = complaint(&tar);
    assert!(text.contains("damaged"), "{text}");
}

#[test]
fn root_file_systems() {
    let tar = TarBuilder::new()
        .directory(ROOT)
        .file("etc/passwd", b"x")
        .finish();
    assert!(matches!(opened(&tar).unwrap(), Contents::Root(_)));
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&tar).unwrap();
    let Contents::Root(layer) = opened(&gzip.finish().unwrap()).unwrap() else {
        panic!("no root")
    };
    assert_eq!(layer.piece.read(1 << 20).unwrap(), tar);
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("usr")).unwrap();
    let contents = open(dir.path(), &options(dir.path()), &mut |_| {}).unwrap();
    assert!(matches!(contents, Contents::Directory(_)));
}

#[test]
fn what_is_no_image_is_told_with_what_would_be() {
    let notes = TarBuilder::new().file("notes.txt", b"x").finish();
    for bytes in [
        &b""[..],
        b"x",
        &[0; 4096],
        &[b'x'; 4096],
        b"\xfd7zXZ\0\0\0",
        b"BZh91AY",
        b"PK\x03\x04aaaaaaaa",
        &notes,
    ] {
        let text = complaint(bytes);
        assert!(text.contains("holds no image"), "{text}");
        assert!(text.contains("docker save"), "{text}");
    }
    let dir = tempfile::tempdir().unwrap();
    let error = open(dir.path(), &options(dir.path()), &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("OCI layout"), "{error}");
    assert!(complaint(b"\x1f\x8b\x08\x00 not gzip").contains("unpack"));
    let cut = docker("null", "l.tar").file("l.tar", &layer()).finish();
    assert!(complaint(&cut[..cut.len() - 2048]).contains("is truncated: it ends at byte"));
}

#[test]
fn what_unpacks_to_too_much_is_refused() {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    for _ in 0..65 {
        gzip.write_all(&vec![0; 1 << 20]).unwrap();
    }
    let text = complaint(&gzip.finish().unwrap());
    assert!(text.contains("more than the 64 MiB"), "{text}");
}

#[test]
fn a_pipe_is_as_good_as_a_file() {
    let tar = docker(r#"["app:1"]"#, "l.tar")
        .file("l.tar", &layer())
        .finish();
    let (reader, mut writer) = std::io::pipe().unwrap();
    let sender = std::thread::spawn(move || writer.write_all(&tar).unwrap());
    let dir = tempfile::tempdir().unwrap();
    let file = File::from(std::os::fd::OwnedFd::from(reader));
    let contents = open_file(file, "pipe", &options(dir.path()), &mut |_| {}).unwrap();
    sender.join().unwrap();
    assert!(matches!(contents, Contents::Images(images) if images[0].names == ["app:1"]));
}

#[test]
fn an_archive_that_no_disk_can_hold_unpacked_is_not_begun() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("archive");
    std::fs::write(&path, b"\x1f\x8b\x08\x00").unwrap();
    let free = crate::room::free(dir.path()).unwrap();
    // All but its beginning is a hole.
    let file = File::options().write(true).open(&path).unwrap();
    file.set_len(free + (1 << 36)).unwrap();
    let error = open(&path, &options(dir.path()), &mut |_| {}).unwrap_err();
    assert!(matches!(error, Error::NoRoom { .. }), "{error}");
    assert!(error.to_string().contains("image gc"), "{error}");
}

/// What an index says of platforms is text from strangers.
#[test]
fn platforms_are_shown_without_control_characters() {
    let mut files = oci_layout(&[("app:1", &[layer()], "{}")]);
    let index = files.get_mut("index.json").unwrap();
    let text = String::from_utf8(index.clone()).unwrap();
    let platform = r#""platform": {"os": "li\u001b[31mnux\n", "architecture": "\u009b2J\u202e"},"#;
    *index = text
        .replace(r#""annotations""#, &format!(r#"{platform} "annotations""#))
        .into_bytes();
    let text = complaint(&tar_of(&files));
    assert!(text.contains("it has li [31mnux/2j"), "{text:?}");
    assert!(
        !text.chars().any(|c| c.is_control() || c == '\u{202e}'),
        "{text:?}"
    );
}

/// Who cancels does not wait for the end of what comes.
#[test]
fn unpacking_that_is_cancelled_ends() {
    let (reader, mut writer) = std::io::pipe().unwrap();
    let sender = std::thread::spawn(move || while writer.write_all(&[1; 4096]).is_ok() {});
    let dir = tempfile::tempdir().unwrap();
    let options = options(dir.path());
    let mut cancel = |_| options.cancel.cancel();
    let file = File::from(std::os::fd::OwnedFd::from(reader));
    let error = open_file(file, "pipe", &options, &mut cancel).unwrap_err();
    assert!(matches!(error, Error::Cancelled), "{error}");
    sender.join().unwrap();
}

proptest! {
    /// Whatever a byte is changed to, nothing worse than an error comes of it.
    #[test]
    fn archives_with_a_fault(at in 0_usize..6000, value: u8, cut in 0_usize..6000) {
        let files = oci_layout(&[("app:1", &[layer()], "{}")]);
        for mut tar in [
            tar_of(&files),
            docker("null", "l.tar").file("l.tar", &layer()).finish(),
        ] {
            let length = tar.len();
            tar[at % length] = value;
            tar.truncate(length - cut % length);
            if let Err(error) = opened(&tar) {
                prop_assert!(!error.to_string().contains('\n'));
            }
        }
    }
}
