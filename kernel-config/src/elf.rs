//! From the vmlinux that the linker wrote to one that is all kernel.
//!
//! `strip` removes symbols and debug information, and leaves two kinds of
//! filler: segments are placed at multiples of 2 MiB in the file, and the text is
//! padded with `int3` to multiples of 2 MiB, so that the guest can map it with
//! large pages. Of 16 MiB, half is filler. Here only what has contents is
//! written: program headers that skip runs of filler, no sections. A loader
//! copies less, and the host pages under the filler are never touched; the
//! addresses stay as they are.

use std::io;
use std::ops::Range;

/// What is wrong with an ELF file.
#[derive(Debug, thiserror::Error)]
pub enum ElfError {
    /// Ends before something that its headers promise.
    #[error("vmlinux ends before byte {0}, which its headers speak of")]
    Truncated(u64),
    /// Not a linked 64-bit x86 program.
    #[error("vmlinux is not a linked ELF file for x86-64 ({0})")]
    Kind(&'static str),
    /// The PVH boot protocol's note is missing: CONFIG_PVH is off, or the note
    /// was stripped.
    #[error("vmlinux has no ELF note with the PVH entry point (Xen, type 18)")]
    NoPvhNote,
    /// The result could not be written.
    #[error("cannot write the kernel: {0}")]
    Write(#[from] io::Error),
}

const EHDR_BYTES: usize = 64;
const PHDR_BYTES: usize = 56;
const PAGE: usize = 4096;
/// Shortest run of filler that is worth a program header.
const MIN_HOLE_PAGES: usize = 16;
/// `int3`, with which the linker script of x86 fills gaps in the text.
const INT3: u8 = 0xcc;

const ET_EXEC: u16 = 2;
const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// `XEN_ELFNOTE_PHYS32_ENTRY`: where PVH enters the kernel.
const NOTE_PVH_ENTRY: u32 = 18;

/// A program header (ELF-64 object file format, figure 8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segment {
    kind: u32,
    flags: u32,
    offset: u64,
    vaddr: u64,
    paddr: u64,
    filesz: u64,
    memsz: u64,
}

/// Writes the kernel in `image` without its filler, and returns its length.
pub(crate) fn compact(image: &[u8], out: &mut dyn io::Write) -> Result<u64, ElfError> {
    let segments = segments(image)?;
    if !has_pvh_note(image, &segments)? {
        return Err(ElfError::NoPvhNote);
    }
    let mut pieces = Vec::new();
    for segment in segments.iter().filter(|segment| segment.kind == PT_LOAD) {
        pieces.extend(split(image, segment)?);
    }
    let notes: Vec<_> = segments
        .iter()
        .filter(|segment| segment.kind == PT_NOTE)
        .collect();

    let header = EHDR_BYTES + PHDR_BYTES * (pieces.len() + notes.len());
    let mut table = Vec::new();
    let mut body = vec![0; header.next_multiple_of(PAGE) - header];
    for piece in pieces {
        let offset = to_u64(header + body.len());
        body.extend_from_slice(bytes(image, piece.offset, piece.filesz)?);
        // Pieces start and end at pages, so that a loader may map the file.
        body.resize((header + body.len()).next_multiple_of(PAGE) - header, 0);
        push_segment(&mut table, Segment { offset, ..piece }, to_u64(PAGE));
    }
    for note in notes {
        let offset = to_u64(header + body.len());
        body.extend_from_slice(bytes(image, note.offset, note.filesz)?);
        push_segment(&mut table, Segment { offset, ..*note }, 4);
    }

    let mut start = bytes(image, 0, to_u64(EHDR_BYTES))?.to_vec();
    let count =
        u16::try_from(table.len() / PHDR_BYTES).map_err(|_| ElfError::Kind("too many segments"))?;
    put(&mut start, 32, &to_u64(EHDR_BYTES).to_le_bytes()); // e_phoff
    put(&mut start, 40, &[0; 8]); // e_shoff: no sections
    put(&mut start, 56, &count.to_le_bytes()); // e_phnum
    put(&mut start, 60, &[0; 4]); // e_shnum, e_shstrndx
    for part in [&start, &table, &body] {
        out.write_all(part)?;
    }
    Ok(to_u64(header + body.len()))
}

/// The program headers of an executable for x86-64.
fn segments(image: &[u8]) -> Result<Vec<Segment>, ElfError> {
    let ident = bytes(image, 0, 7)?;
    if ident != [0x7f, b'E', b'L', b'F', 2, 1, 1] {
        return Err(ElfError::Kind("not 64-bit little-endian ELF"));
    }
    if u16_at(image, 16)? != ET_EXEC || u16_at(image, 18)? != EM_X86_64 {
        return Err(ElfError::Kind("another type or machine"));
    }
    if usize::from(u16_at(image, 54)?) != PHDR_BYTES {
        return Err(ElfError::Kind("program headers of another size"));
    }
    let table = u64_at(image, 32)?;
    (0..u16_at(image, 56)?)
        .map(|index| {
            let at = table.saturating_add(u64::from(index) * to_u64(PHDR_BYTES));
            let field = |offset| u64_at(image, at.saturating_add(offset));
            Ok(Segment {
                kind: u32_at(image, at)?,
                flags: u32_at(image, at.saturating_add(4))?,
                offset: field(8)?,
                vaddr: field(16)?,
                paddr: field(24)?,
                filesz: field(32)?,
                memsz: field(40)?,
            })
        })
        .collect()
}

/// Whether a note of type 18 by `Xen` is in a PT_NOTE segment.
fn has_pvh_note(image: &[u8], segments: &[Segment]) -> Result<bool, ElfError> {
    for segment in segments.iter().filter(|segment| segment.kind == PT_NOTE) {
        let mut rest = bytes(image, segment.offset, segment.filesz)?;
        while rest.len() >= 12 {
            let name = u64::from(u32_at(rest, 0)?);
            let desc = u64::from(u32_at(rest, 4)?);
            if u32_at(rest, 8)? == NOTE_PVH_ENTRY && bytes(rest, 12, name)? == b"Xen\0" {
                return Ok(true);
            }
            let next = 12 + name.next_multiple_of(4) + desc.next_multiple_of(4);
            rest = usize::try_from(next)
                .ok()
                .and_then(|next| rest.get(next..))
                .unwrap_or(&[]);
        }
    }
    Ok(false)
}

/// A segment as pieces that leave filler out of the file. Each piece's memory
/// reaches to the next, so that together they ask for the memory of the segment,
/// with zeros where the file has nothing.
fn split(image: &[u8], segment: &Segment) -> Result<Vec<Segment>, ElfError> {
    let mut runs = runs(bytes(image, segment.offset, segment.filesz)?);
    if runs.first().is_none_or(|first| first.start > 0) {
        runs.insert(0, 0..0);
    }
    let starts = runs.iter().skip(1).map(|run| to_u64(run.start));
    let ends = starts.chain([segment.memsz]).collect::<Vec<_>>();
    let pieces = runs.iter().zip(ends).map(|(run, end)| {
        let skipped = to_u64(run.start);
        Segment {
            offset: segment.offset.saturating_add(skipped),
            vaddr: segment.vaddr.wrapping_add(skipped),
            paddr: segment.paddr.wrapping_add(skipped),
            filesz: to_u64(run.len()),
            memsz: end.saturating_sub(skipped),
            ..*segment
        }
    });
    Ok(pieces.collect())
}

/// Ranges of whole pages with contents, left after taking out long runs of filler.
fn runs(contents: &[u8]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    let mut position = 0;
    for page in contents.chunks(PAGE) {
        let end = position + page.len();
        let filler = page.iter().all(|byte| *byte == 0) || page.iter().all(|byte| *byte == INT3);
        if !filler {
            match runs.last_mut() {
                Some(last) if position - last.end < MIN_HOLE_PAGES * PAGE => last.end = end,
                _ => runs.push(position..end),
            }
        }
        position = end;
    }
    runs
}

fn push_segment(table: &mut Vec<u8>, segment: Segment, align: u64) {
    table.extend(segment.kind.to_le_bytes());
    table.extend(segment.flags.to_le_bytes());
    let Segment {
        offset,
        vaddr,
        paddr,
        filesz,
        memsz,
        ..
    } = segment;
    for field in [offset, vaddr, paddr, filesz, memsz, align] {
        table.extend(field.to_le_bytes());
    }
}

fn put(target: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = target.get_mut(at..at + value.len()) {
        place.copy_from_slice(value);
    }
}

fn bytes(image: &[u8], at: u64, length: u64) -> Result<&[u8], ElfError> {
    let end = at.saturating_add(length);
    let range = usize::try_from(at).ok().zip(usize::try_from(end).ok());
    range
        .and_then(|(at, end)| image.get(at..end))
        .ok_or(ElfError::Truncated(end))
}

fn array<const N: usize>(image: &[u8], at: u64) -> Result<[u8; N], ElfError> {
    let found = bytes(image, at, to_u64(N))?;
    found.try_into().map_err(|_| ElfError::Truncated(at))
}

fn u16_at(image: &[u8], at: u64) -> Result<u16, ElfError> {
    array(image, at).map(u16::from_le_bytes)
}

fn u32_at(image: &[u8], at: u64) -> Result<u32, ElfError> {
    array(image, at).map(u32::from_le_bytes)
}

fn u64_at(image: &[u8], at: u64) -> Result<u64, ElfError> {
    array(image, at).map(u64::from_le_bytes)
}

/// Lengths in memory are at most 64 bits wide on every machine that builds.
fn to_u64(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

#[cfg(test)]
pub(crate) mod tests;
