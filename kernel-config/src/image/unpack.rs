//! The payload of a bzImage, unpacked by its magic.

use std::error::Error;
use std::fs::File;
use std::io::{self, Read};

use lzma_rust2::XzReader;
use ruzstd::decoding::{FrameDecoder, StreamingDecoder};

use super::{ImageProblem, MAX_BYTES, MemoryFile};

/// What streams are copied through, in bytes.
const BUFFER_BYTES: usize = 256 << 10;

/// Start of a frame of `lz4 -l`.
const LZ4_MAGIC: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];
/// What a block of a legacy frame unpacks to at most.
const LZ4_BLOCK_BYTES: usize = 8 << 20;

/// Most memory for the dictionary of xz, in KiB. The kernel uses 128 MiB at
/// most (`scripts/xz_wrap.sh`).
const XZ_KIB: u32 = 256 << 10;

/// Compressions by their magic (`lib/decompress.c` of Linux), and what unpacks
/// them; `None` for those that no distribution uses any more.
const COMPRESSIONS: [(&[u8], &str, Option<Decoder>); 7] = [
    (&[0x1f, 0x8b], "gzip", Some(gzip)),
    (&LZ4_MAGIC, "lz4", Some(lz4)),
    (&[0x28, 0xb5, 0x2f, 0xfd], "zstd", Some(zstd)),
    (b"\xfd7zXZ\0", "xz", Some(xz)),
    (b"BZh", "bzip2", None),
    (&[0x5d, 0x00, 0x00], "lzma", None),
    (b"\x89LZO", "lzo", None),
];

type Decoder = fn(&[u8], &mut MemoryFile) -> Result<(), Fault>;

/// Why unpacking stopped.
enum Fault {
    Corrupt(String),
    Memory(io::Error),
}

/// Unpacks the payload, which was found at byte `at`.
///
/// Its last four bytes are the length of what is in it: the kernel's build
/// appends them where the format does not end with them anyway (`size_append`
/// in `scripts/Makefile.lib`), and its own decompressor relies on them.
pub(super) fn unpack(at: u64, payload: &[u8]) -> Result<File, ImageProblem> {
    let &(_, compression, decoder) = COMPRESSIONS
        .iter()
        .find(|(magic, ..)| payload.starts_with(magic))
        .ok_or(ImageProblem::UnknownCompression { at })?;
    let decode = decoder.ok_or(ImageProblem::Unsupported(compression))?;
    let corrupt = |why| ImageProblem::Corrupt { compression, why };

    let (_, length) = payload
        .split_last_chunk()
        .ok_or_else(|| corrupt("it is too short".to_owned()))?;
    let length = u64::from(u32::from_le_bytes(*length));
    if length > MAX_BYTES {
        return Err(ImageProblem::TooLarge(length));
    }
    let mut out = MemoryFile::new(length).map_err(ImageProblem::Memory)?;
    decode(payload, &mut out).map_err(|fault| match fault {
        Fault::Corrupt(why) => corrupt(why),
        Fault::Memory(error) => ImageProblem::Memory(error),
    })?;
    if out.written != length {
        let why = format!("it holds {} bytes instead of {length}", out.written);
        return Err(corrupt(why));
    }
    out.seal().map_err(ImageProblem::Memory)
}

/// Gzip ends with the length itself.
fn gzip(payload: &[u8], out: &mut MemoryFile) -> Result<(), Fault> {
    copy(&mut flate2::bufread::GzDecoder::new(payload), out)
}

fn xz(payload: &[u8], out: &mut MemoryFile) -> Result<(), Fault> {
    let one_stream = false;
    let mut reader = XzReader::new_mem_limit(without_length(payload), one_stream, XZ_KIB);
    copy(&mut reader, out)
}

fn zstd(payload: &[u8], out: &mut MemoryFile) -> Result<(), Fault> {
    let mut decoder = FrameDecoder::new();
    // `zstd -22` of a pipe: a window of 128 MiB, whatever is in it.
    decoder.set_max_window_size(MAX_BYTES);
    let mut reader = StreamingDecoder::new_with_decoder(without_length(payload), decoder)
        .map_err(Fault::corrupt)?;
    copy(&mut reader, out)?;
    // The decoder computes the checksum and leaves it to us to compare.
    let decoder = reader.into_frame_decoder();
    match decoder.get_checksum_from_data() {
        Some(sum) if Some(sum) != decoder.get_calculated_checksum() => {
            Err(Fault::corrupt("its checksum does not match"))
        }
        _ => Ok(()),
    }
}

/// A legacy frame is blocks after their lengths, with neither end nor checksum.
fn lz4(payload: &[u8], out: &mut MemoryFile) -> Result<(), Fault> {
    let mut rest = without_length(payload)
        .strip_prefix(&LZ4_MAGIC)
        .unwrap_or_default();
    let mut unpacked = vec![0; LZ4_BLOCK_BYTES];
    while !rest.is_empty() {
        let (block, after) = rest
            .split_first_chunk()
            .and_then(|(length, after)| {
                after.split_at_checked(usize::try_from(u32::from_le_bytes(*length)).ok()?)
            })
            .ok_or_else(|| Fault::corrupt("it ends within a block"))?;
        let length =
            lz4_flex::block::decompress_into(block, &mut unpacked).map_err(Fault::corrupt)?;
        append(unpacked.get(..length).unwrap_or_default(), out)?;
        rest = after;
    }
    Ok(())
}

fn without_length(payload: &[u8]) -> &[u8] {
    payload
        .split_last_chunk::<4>()
        .map_or(&[], |(rest, _)| rest)
}

fn copy(reader: &mut dyn Read, out: &mut MemoryFile) -> Result<(), Fault> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        // All input is in memory: nothing but the data can make this fail.
        match reader.read(&mut buffer).map_err(Fault::corrupt)? {
            0 => return Ok(()),
            length => append(buffer.get(..length).unwrap_or_default(), out)?,
        }
    }
}

fn append(piece: &[u8], out: &mut MemoryFile) -> Result<(), Fault> {
    match out.append(piece).map_err(Fault::Memory)? {
        true => Ok(()),
        false => Err(Fault::Corrupt(format!(
            "it holds more than the {} bytes it declares",
            out.length
        ))),
    }
}

impl Fault {
    fn corrupt(why: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Corrupt(why.into().to_string())
    }
}
