use super::*;
use std::io::Write;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

fn unpacked(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    Decompressor::new(bytes, Compression::of_bytes(bytes)).read_to_end(&mut out)?;
    Ok(out)
}

fn text() -> Vec<u8> {
    (0..100_000)
        .flat_map(|n: u32| format!("{n} ").into_bytes())
        .collect()
}

const SKIPPABLE: &[u8] = b"\x50\x2a\x4d\x18\x03\0\0\0abc";

#[test]
fn streams_are_told_by_their_first_bytes() {
    assert_eq!(Compression::of_bytes(&gzip(b"")), Compression::Gzip);
    assert_eq!(Compression::of_bytes(&zstd(b"x")), Compression::Zstd);
    assert_eq!(Compression::of_bytes(SKIPPABLE), Compression::Zstd);
    for plain in [
        &b""[..],
        b"\x1f\x8b",
        b"\x1f\x8b\x07\0",
        b"./usr",
        &[0; 512],
    ] {
        assert_eq!(Compression::of_bytes(plain), Compression::None);
    }
}

#[test]
fn members_and_frames_follow_each_other() {
    let text = text();
    let (first, second) = text.split_at(12_345);
    let members = [gzip(first), gzip(b""), gzip(second)].concat();
    assert_eq!(unpacked(&members).unwrap(), text);
    let frames = [
        SKIPPABLE,
        &zstd(first),
        SKIPPABLE,
        SKIPPABLE,
        &zstd(second),
        SKIPPABLE,
    ]
    .concat();
    assert_eq!(unpacked(&frames).unwrap(), text);
    assert_eq!(unpacked(SKIPPABLE).unwrap(), b"");
}

#[test]
fn an_early_end_is_told_from_wrong_bytes() {
    for whole in [gzip(&text()), zstd(&text()), SKIPPABLE.to_vec()] {
        for length in [whole.len() - 1, whole.len() / 2, 5] {
            let error = unpacked(&whole[..length]).unwrap_err();
            assert_eq!(
                error.kind(),
                io::ErrorKind::UnexpectedEof,
                "{length}: {error}"
            );
        }
    }
    for whole in [gzip(&text()), zstd(&text())] {
        let error = unpacked(&[&whole[..], b"and more that is nothing"].concat()).unwrap_err();
        assert_ne!(error.kind(), io::ErrorKind::UnexpectedEof, "{error}");
    }
}

#[test]
fn a_part_of_a_file_ends_with_the_file_or_before() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"0123456789").unwrap();
    let file = Arc::new(file);
    let read = |offset, length| {
        let mut out = Vec::new();
        Part::new(Arc::clone(&file), offset, length)
            .read_to_end(&mut out)
            .unwrap();
        out
    };
    assert_eq!(read(2, 3), b"234");
    assert_eq!(read(8, u64::MAX), b"89");
    assert_eq!(read(20, 1), b"");
}
