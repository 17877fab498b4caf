//! What is wrong with a layer is said once and clearly, and nothing is made.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used
)]
#![allow(clippy::panic, clippy::indexing_slicing)]

#[path = "support/archive.rs"]
#[allow(dead_code)]
mod archive;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use archive::{
    Item, directory, file, filtered, flatten_with, hard_link, layer, seal, symlink, tar,
};
use flashpan_rootfs::layers::{self, Error, Limits, Options, Progress};

fn error(bytes: &[u8]) -> String {
    error_with(bytes, Limits::default())
}

fn error_with(bytes: &[u8], limits: Limits) -> String {
    let error = flatten_with(&[bytes.to_vec()], limits).unwrap_err();
    let text = error.to_string();
    assert!(
        !text.contains('\n') && text.starts_with("layer test: "),
        "{text}"
    );
    text.trim_start_matches("layer test: ").to_owned()
}

fn of(items: &[Item]) -> String {
    error(&tar(items))
}

#[test]
fn not_a_tar() {
    for bytes in [&b"hello"[..], &[b'x'; 5000], b"{\"schemaVersion\": 2}"] {
        assert_eq!(error(bytes), "it is not a tar archive");
    }
}

#[test]
fn a_truncated_tar() {
    let whole = tar(&[file("a", "1"), file("some/file", &"x".repeat(2000))]);
    for length in [1500, 1536, 2000, 3535] {
        let text = error(&whole[..length]);
        assert!(
            text.starts_with("the tar is truncated: it ends at byte "),
            "{text}"
        );
    }
    assert!(error(&whole[..2000]).contains("some/file"));
    let mut pax = Item::new("x", b'x');
    pax.data = b"10 path=a\n".to_vec();
    let mut only_pax = Vec::new();
    pax.plain(&mut only_pax);
    assert!(error(&only_pax).contains("truncated"));
}

#[test]
fn a_wrong_check_sum() {
    let mut bytes = tar(&[file("a", "1"), file("b", "2")]);
    bytes[1024 + 3] ^= 1;
    assert_eq!(
        error(&bytes),
        "the tar is corrupt: no entry at byte 1024, after a"
    );
}

#[test]
fn corrupt_and_truncated_compression() {
    let text: String = (0..60_000).map(|n| format!("{n} ")).collect();
    let whole = tar(&[file("a", &text)]);
    for (program, format) in [("gzip", "gzip"), ("zstd", "zstd")] {
        let good = filtered(program, &["-c"], &whole);
        let cut = error(&good[..good.len() / 2]);
        assert_eq!(
            cut,
            format!("its {format} stream is truncated: only a part of it is there")
        );
        let cut = error(&good[..good.len() - 1]);
        assert!(cut.contains("truncated"), "{cut}");
        let mut flipped = good.clone();
        let middle = flipped.len() / 2;
        flipped[middle] ^= 0xff;
        let text = error(&flipped);
        // Which of the two notices first depends on where the damage is.
        assert!(
            text.contains("corrupt") || text.contains("truncated"),
            "{text}"
        );
        // The sum at the end: content that decompresses but is another.
        let mut sum = good.clone();
        let at = sum.len() - if format == "gzip" { 8 } else { 2 };
        sum[at] ^= 1;
        let text = error(&sum);
        assert!(
            text.starts_with(&format!("its {format} stream is corrupt: ")),
            "{text}"
        );
        let text = error(&[&good[..], b"rubbish after the end"].concat());
        assert!(
            text.contains("corrupt") || text.contains("truncated"),
            "{text}"
        );
    }
}

#[test]
fn absurd_sizes() {
    // 8 EiB less one byte, in GNU's base 256, and one more, which is negative.
    let mut bytes = tar(&[file("huge", "x")]);
    bytes[124..136].copy_from_slice(b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff");
    seal(&mut bytes[..512]);
    assert_eq!(
        error(&bytes),
        "huge: the file has 9223372036854775807 bytes, the limit is 34359738368"
    );
    bytes[124..136].copy_from_slice(b"\x80\0\0\0\x80\0\0\0\0\0\0\0");
    seal(&mut bytes[..512]);
    assert_eq!(
        error(&bytes),
        "huge: the tar has a size that cannot be read"
    );
    let mut pax = Item::new("x", b'x');
    pax.data = b"28 size=9223372036854775808\n".to_vec();
    bytes.clear();
    pax.plain(&mut bytes);
    file("huge", "x").plain(&mut bytes);
    assert_eq!(
        error(&bytes),
        "huge: the tar has a size that cannot be read"
    );
    // A sparse file that is nearly all hole.
    pax.data = b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n\
                 43 GNU.sparse.realsize=9000000000000000000\n"
        .to_vec();
    bytes.clear();
    pax.plain(&mut bytes);
    file("hole", "0\n").plain(&mut bytes);
    bytes.truncate(bytes.len() - 512);
    bytes.extend(tar(&[]));
    let text = error(&bytes);
    assert!(text.starts_with("hole: "), "{text}");
}

#[test]
fn more_than_the_limits() {
    let limits = Limits {
        total: 1 << 20,
        file: 100_000,
        entries: 10,
        metadata: 1000,
        header: 2000,
    };
    let with = |items: &[Item]| error_with(&tar(items), limits.clone());
    let long = "x".repeat(100_001);
    assert!(with(&[file("big", &long)]).contains("big: the file has 100001 bytes"));
    let bomb: Vec<_> = (0..9)
        .map(|n| file("again", &"x".repeat(99_999 + n / 9)))
        .collect();
    assert!(flatten_with(&[tar(&bomb)], limits.clone()).is_ok());
    let bomb = filtered("gzip", &["-9"], &vec![0; 40 << 20]);
    assert!(bomb.len() < 50_000);
    assert_eq!(
        error_with(&bomb, limits.clone()),
        "the image unpacks to more than the limit of 1048576 bytes"
    );
    let many: Vec<_> = (0..11).map(|n| file(&n.to_string(), "")).collect();
    assert_eq!(with(&many), "the image has more than the limit of 10 files");
    let deep = file("a/b/c/d/e/f/g/h/i/j/k", "");
    assert_eq!(
        with(&[deep]),
        "the image has more than the limit of 10 files"
    );
    let names = [file(&"n".repeat(600), ""), file(&"m".repeat(600), "")];
    assert!(with(&names).contains("more than the limit of 1000 bytes"));
    let header = file(&"n/".repeat(1900), "");
    assert!(with(&[header]).contains("extended header of"));
    // All layers of an image count together. No other limit is near.
    let half: Vec<_> = (0..5)
        .map(|n| file("again", &"x".repeat(99_000 + n)))
        .collect();
    let less = Limits {
        total: 900_000,
        ..limits
    };
    assert!(flatten_with(&[tar(&half)], less.clone()).is_ok());
    let both = flatten_with(&[tar(&half), tar(&half)], less).unwrap_err();
    assert!(both.to_string().contains("900000"), "{both}");
}

#[test]
fn names_that_no_file_system_takes() {
    assert!(of(&[file(&"n".repeat(256), "")]).contains("1 to 255 bytes"));
    assert!(of(&[file(&"n/".repeat(2048), "")]).contains("has 4096 bytes, Linux takes 4095"));
    // Through links, a short path can be a long one.
    let far = "d/".repeat(1500);
    let items = [
        symlink("l", &far),
        file("l/x", ""),
        symlink(&format!("{far}m"), "."),
        symlink("d/k", &far),
    ];
    let through = [
        &items[..],
        &[
            file("l/d/x", ""),
            file(&format!("l/{}x", "e/".repeat(700)), ""),
        ],
    ]
    .concat();
    assert!(of(&through).contains("Linux takes 4095"));
    assert!(of(&[symlink("l", &"t".repeat(4096))]).contains("target of 4096 bytes"));
    assert!(of(&[symlink("l", "")]).contains("target of 0 bytes"));
    let mut item = file("a", "");
    item.xattrs = vec![(b"user.a".to_vec(), vec![1; 65_536])];
    assert!(of(&[item]).contains("a: extended attribute \"user.a\": value of 65536 bytes"));
}

#[test]
fn paths_that_lead_nowhere() {
    let circle = [symlink("a", "b"), symlink("b", "a"), file("a/x", "")];
    assert_eq!(
        of(&circle),
        "a/x: the path leads through too many symbolic links"
    );
    let own = [symlink("a", "a/a"), file("a/x", "")];
    assert_eq!(
        of(&own),
        "a/x: the path leads through too many symbolic links"
    );
    let under = [file("f", ""), file("f/x", "")];
    assert_eq!(of(&under), "f/x: a part of the path is not a directory");
    let through = [file("f", ""), symlink("l", "f"), file("l/x", "")];
    assert_eq!(of(&through), "l/x: a part of the path is not a directory");
    let wrong = "a hard link to gone, which is not there or is a directory";
    assert_eq!(of(&[hard_link("h", "gone")]), format!("h: {wrong}"));
    assert!(of(&[directory("d"), hard_link("h", "d")]).contains("is a directory"));
    assert!(of(&[hard_link("h", "/")]).contains("is a directory"));
    assert!(of(&[file("h", ""), hard_link("h", "h")]).contains("not there"));
    assert_eq!(
        of(&[file("./", "")]),
        "./: the root of an image has to be a directory"
    );
    assert_eq!(
        of(&[symlink("a/..", "/etc")]),
        "a/..: the root of an image has to be a directory"
    );
    for name in [".wh.", ".wh..", ".wh...", "d/.wh..."] {
        assert_eq!(
            of(&[directory("d"), file(name, "")]),
            format!("{name}: a whiteout that names no file")
        );
    }
}

#[test]
fn entries_of_no_known_type() {
    assert_eq!(
        of(&[Item::new("a", b'M')]),
        "a: tar entries of type 'M' are not supported"
    );
    // Nothing from an archive reaches the terminal as it is.
    assert_eq!(
        of(&[Item::new(b"\x1b[31m\n", b'?')]),
        "\\u{1b}[31m\\n: tar entries of type '?' are not supported"
    );
}

#[test]
fn another_layer_than_the_configuration_says() {
    let layers = [layer(&tar(&[file("a", "")])), layer(&tar(&[file("b", "")]))];
    let cancel = AtomicBool::new(false);
    let options = Options::new(Path::new("/tmp"), &cancel);
    let right = layers::flatten(&layers, &[], &options, &|_| {})
        .unwrap()
        .diff_ids;
    assert!(layers::flatten(&layers, &right, &options, &|_| {}).is_ok());
    let wrong = [right[0], [0xab; 32]];
    let error = layers::flatten(&layers, &wrong, &options, &|_| {}).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("expected sha256:abababab"), "{text}");
    let error = layers::flatten(&layers, &right[..1], &options, &|_| {}).unwrap_err();
    assert!(matches!(
        error,
        Error::Count {
            layers: 2,
            diff_ids: 1
        }
    ));
}

#[test]
fn a_file_that_is_shorter_than_its_layer() {
    let mut layer = layer(&tar(&[file("a", "")]));
    layer.length += 1 << 20;
    let cancel = AtomicBool::new(false);
    let options = Options::new(Path::new("/tmp"), &cancel);
    let error = layers::flatten(&[layer], &[], &options, &|_| {}).unwrap_err();
    assert!(
        error.to_string().starts_with("layer test: cannot read it"),
        "{error}"
    );
}

#[test]
fn no_room_for_the_spool() {
    let layer = layer(&filtered("gzip", &[], &tar(&[file("a", "")])));
    let cancel = AtomicBool::new(false);
    let options = Options::new(Path::new("/nowhere"), &cancel);
    let error = layers::flatten(&[layer], &[], &options, &|_| {}).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("layer test: cannot make a spool file in /nowhere: "),
        "{error}"
    );
}

#[test]
fn a_conversion_that_is_cancelled_stops_and_leaves_no_image() {
    let items: Vec<_> = (0..40)
        .map(|n| file(&n.to_string(), &"x".repeat(100_000)))
        .collect();
    let bytes = filtered("gzip", &["-1"], &tar(&items));
    let writing = |progress: &Progress| matches!(progress, Progress::Writing(_));
    let unpacking = |progress: &Progress| matches!(progress, Progress::Unpacking { .. });
    for when in [writing as fn(&Progress) -> bool, unpacking] {
        let cancel = AtomicBool::new(false);
        let options = Options::new(Path::new("/tmp"), &cancel);
        let output = tempfile::tempfile().unwrap();
        let stop = |progress: Progress| cancel.fetch_or(when(&progress), Ordering::Relaxed);
        let progress = |progress: Progress| {
            stop(progress);
        };
        let result = layers::convert(&[layer(&bytes)], &[], &options, &output, &progress);
        assert!(matches!(result, Err(Error::Cancelled)), "{result:?}");
        let mut super_block = [0; 4];
        let _ = std::os::unix::fs::FileExt::read_at(&output, &mut super_block, 1024);
        assert_eq!(super_block, [0; 4], "something that passes for an image");
    }
}
