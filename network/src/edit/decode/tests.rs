//! Codings as servers use them, and as attackers would.

use flate2::Compression;
use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
use ruzstd::encoding::{CompressionLevel, compress_to_vec};

use super::*;

fn text() -> Vec<u8> {
    let lines = (0..2000).map(|line| format!("line {line} of a text\n"));
    lines.collect::<String>().into_bytes()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zlib(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn raw(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    compress_to_vec(bytes, CompressionLevel::Fastest)
}

fn headers(coding: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_ENCODING, coding.parse().unwrap());
    headers
}

fn decoded(coding: &str, bytes: &[u8], step: usize) -> Result<Vec<u8>, Broken> {
    let mut decoder = decoder(&headers(coding), &Room::default())?.unwrap();
    let mut out = Vec::new();
    for piece in bytes.chunks(step) {
        decoder.push(piece, &mut out)?;
    }
    decoder.finish(&mut out)?;
    Ok(out)
}

#[test]
fn codings_are_undone_whatever_the_pieces() {
    let text = text();
    let stored: Vec<u8> = (0..=255).cycle().take(300_000).collect();
    let two = [gzip(b"one "), gzip(b"two")].concat();
    let frames = [zstd(b"one "), zstd(b"two")].concat();
    for (coding, bytes, plain) in [
        ("gzip", gzip(&text), &text[..]),
        ("X-Gzip", gzip(b""), b""),
        ("gzip", two, b"one two"),
        ("deflate", zlib(&text), &text),
        ("deflate", raw(&text), &text),
        ("zstd", zstd(&text), &text),
        ("zstd", zstd(&stored), &stored),
        ("zstd", zstd(b""), b""),
        ("zstd", frames, b"one two"),
        ("identity, gzip", gzip(&text), &text),
        ("br", Vec::new(), b""),
        ("gzip", Vec::new(), b""),
    ] {
        for step in [1, 7, 1000, usize::MAX] {
            let out = decoded(coding, &bytes, step);
            assert!(out.as_deref() == Ok(plain), "{coding} {step}");
        }
    }
}

/// What came can be seen at once: nothing waits for the end but with zstd.
#[test]
fn what_was_flushed_is_there() {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(b"data: 1\n\n").unwrap();
    encoder.flush().unwrap();
    let mut decoder = decoder(&headers("gzip"), &Room::default())
        .unwrap()
        .unwrap();
    let mut out = Vec::new();
    decoder.push(encoder.get_ref(), &mut out).unwrap();
    assert_eq!(out, b"data: 1\n\n");
}

#[test]
fn what_is_cut_off_or_wrong_is_refused() {
    let text = text();
    for (coding, bytes) in [
        ("gzip", gzip(&text)),
        ("deflate", zlib(&text)),
        ("deflate", raw(&text)),
        ("zstd", zstd(&text)),
    ] {
        let name = coding;
        for len in [1, 5, 12, bytes.len() / 2, bytes.len() - 1] {
            let out = decoded(coding, &bytes[..len], 100);
            assert_eq!(out.err(), Some(Broken::Malformed(name)), "{coding} {len}");
        }
        let longer = [&bytes[..], b"more"].concat();
        assert!(decoded(coding, &longer, 100).is_err(), "{coding}");
    }
    for coding in ["gzip", "deflate", "br", "zstd"] {
        let out = decoded(coding, &[0xff; 1000], 100);
        assert!(matches!(out, Err(Broken::Malformed(_))), "{coding}");
    }
}

#[test]
fn a_body_does_not_become_what_it_likes() {
    let zeros = vec![0; 64 << 20];
    // A frame with a window, and blocks of one byte 128 Ki times.
    let mut blocks = vec![0x28, 0xb5, 0x2f, 0xfd, 0, 0x38];
    for _ in 0..1000 {
        blocks.extend_from_slice(&((128_u32 << 10) << 3 | 2).to_le_bytes()[..3]);
        blocks.push(0);
    }
    for (coding, bytes) in [
        ("gzip", gzip(&zeros)),
        ("deflate", raw(&zeros)),
        ("zstd", blocks),
    ] {
        let out = decoded(coding, &bytes, 16 << 10);
        assert!(
            matches!(out, Err(Broken::Bomb(_))),
            "{coding}: {:?}",
            out.err()
        );
    }
    // A window of 16 MiB.
    let large = [
        0x28, 0xb5, 0x2f, 0xfd, 0, 0x70, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    assert_eq!(decoded("zstd", &large, 100), Err(Broken::Malformed("zstd")));
}

#[test]
fn what_cannot_be_undone_is_refused() {
    for coding in ["compress", "aws-chunked", "gzip, dcb", "gzip, gzip"] {
        let refused = decoder(&headers(coding), &Room::default());
        assert!(matches!(refused, Err(Broken::Coding(_))), "{coding}");
    }
    assert!(decoder(&headers("identity"), &Room::default()).is_ok_and(|chain| chain.is_none()));
    assert!(decoder(&HeaderMap::new(), &Room::default()).is_ok_and(|chain| chain.is_none()));
}

#[test]
fn a_server_is_asked_for_what_can_be_undone() {
    for (asked, left) in [
        (None, "identity"),
        (Some("gzip, deflate, br, zstd"), "gzip, br"),
        (Some("GZIP;q=0.5 , dcz"), "GZIP;q=0.5"),
        (Some("*"), "identity"),
        (Some("identity"), "identity"),
        (Some(""), "identity"),
    ] {
        let mut headers = HeaderMap::new();
        if let Some(asked) = asked {
            headers.insert(ACCEPT_ENCODING, asked.parse().unwrap());
        }
        restrict(&mut headers);
        assert_eq!(headers.get(ACCEPT_ENCODING).unwrap(), left, "{asked:?}");
    }
}

/// Of one piece no more than there is memory for, whatever came before it.
#[test]
fn a_piece_does_not_become_what_it_likes() {
    let mut state = 1_u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_be_bytes()[3]
    })
    .take(1 << 20)
    .collect();
    let whole = [noise, vec![0; 32 << 20]].concat();
    let bytes = gzip(&whole);
    let mut decoder = decoder(&headers("gzip"), &Room::default())
        .unwrap()
        .unwrap();
    let (mut len, mut most) = (0, 0);
    for piece in bytes.chunks(decoder.piece()) {
        let mut out = Vec::new();
        decoder.push(piece, &mut out).unwrap();
        len += out.len();
        most = most.max(out.len());
    }
    assert_eq!(len, whole.len());
    assert!(most <= 300 << 10, "{most}");
    // All of it would become more at once than a piece may.
    let whole = decoded("gzip", &bytes, usize::MAX);
    assert_eq!(whole, Err(Broken::Bomb("gzip")));
}

#[test]
fn decoders_that_need_much_are_few() {
    let room = Room::default();
    let another = |coding| decoder(&headers(coding), &room);
    let all: Vec<_> = (0..64).map(|_| another("br").unwrap()).collect();
    for coding in ["br", "zstd"] {
        assert_eq!(another(coding).err(), Some(Broken::Crowded(coding)));
    }
    assert!(another("gzip").is_ok());
    drop(all);
    assert!(another("zstd").is_ok());
}

/// Texts as the reference program writes them.
#[test]
fn brotli_is_undone() {
    let hello = from_hex("1b170000a4144072104594a9c373fa0b");
    for step in [1, 3, 100] {
        let out = decoded("br", &hello, step);
        assert_eq!(out.as_deref(), Ok(&b"hello hello hello hello\n"[..]));
    }
    for len in 1..hello.len() {
        let out = decoded("br", &hello[..len], 100);
        assert_eq!(out, Err(Broken::Malformed("br")), "{len}");
    }
    let longer = [&hello[..], b"more"].concat();
    assert!(decoded("br", &longer, 100).is_err());
    // An event, flushed, and the end of the stream after it.
    let mut decoder = decoder(&headers("br"), &Room::default()).unwrap().unwrap();
    let mut out = Vec::new();
    let event = from_hex("0b0480646174613a20310a0a");
    decoder.push(&event, &mut out).unwrap();
    assert_eq!(out, b"data: 1\n\n");
    // 64 MiB of zeros.
    let zeros = from_hex(concat!(
        "cbffff3ff82700e2b14020f7fe8fffff7ff04f00c4611180eefd1fffffffe09f0088c30200ddfb3f",
        "feffffc13f0110870500baf77ffcffff837f02200e0b0074effff8ffff07ff04401c1600e8defff1",
        "ffff0ffe0980382c00d0bdffe3ffff1ffc130071",
    ));
    assert_eq!(decoded("br", &zeros, 100), Err(Broken::Bomb("br")));
    // A window of 1 GiB, as only an extension of the format has it.
    let large = from_hex("111e0000000000");
    assert_eq!(decoded("br", &large, 100), Err(Broken::Malformed("br")));
}

fn from_hex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks(2);
    let byte = |pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.map(byte).collect()
}
