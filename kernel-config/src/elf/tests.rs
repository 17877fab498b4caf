use super::*;

const TEXT: u64 = 0xffff_ffff_8100_0000;

fn note(kind: u32) -> Vec<u8> {
    let mut note = Vec::new();
    for word in [4_u32, 4, kind] {
        note.extend(word.to_le_bytes());
    }
    note.extend(b"Xen\0");
    note.extend(0x100_0000_u32.to_le_bytes());
    note
}

/// An executable with one loadable segment at file offset 2 MiB, and a note.
fn image(contents: &[u8], memsz: u64, note: &[u8]) -> Vec<u8> {
    let mut image = vec![0x7f, b'E', b'L', b'F', 2, 1, 1];
    image.resize(EHDR_BYTES, 0);
    put(&mut image, 16, &ET_EXEC.to_le_bytes());
    put(&mut image, 18, &EM_X86_64.to_le_bytes());
    put(&mut image, 24, &0x100_0123_u64.to_le_bytes());
    put(&mut image, 32, &to_u64(EHDR_BYTES).to_le_bytes());
    put(&mut image, 40, &12345_u64.to_le_bytes());
    put(&mut image, 54, &56_u16.to_le_bytes());
    put(&mut image, 56, &2_u16.to_le_bytes());
    put(&mut image, 60, &40_u16.to_le_bytes());
    let load = Segment {
        kind: PT_LOAD,
        flags: 5,
        offset: 0x20_0000,
        vaddr: TEXT,
        paddr: 0x100_0000,
        filesz: to_u64(contents.len()),
        memsz,
    };
    let at_note = load.offset + load.filesz;
    let length = to_u64(note.len());
    push_segment(&mut image, load, 0x20_0000);
    push_segment(
        &mut image,
        Segment {
            kind: PT_NOTE,
            offset: at_note,
            filesz: length,
            memsz: length,
            ..load
        },
        4,
    );
    image.resize(0x20_0000, 0);
    image.extend(contents);
    image.extend(note);
    image
}

/// What a loader makes of a file: (physical address, byte) of all that is not zero.
fn load(image: &[u8]) -> Vec<(u64, u8)> {
    let mut memory = Vec::new();
    for segment in segments(image)
        .unwrap()
        .iter()
        .filter(|segment| segment.kind == PT_LOAD)
    {
        let contents = bytes(image, segment.offset, segment.filesz).unwrap();
        let placed = (segment.paddr..).zip(contents.iter().copied());
        memory.extend(placed.filter(|(_, byte)| *byte != 0));
    }
    memory
}

/// The smallest kernel that [`compact`] takes.
pub(crate) fn small_kernel() -> Vec<u8> {
    image(&[1; 10], 10, &note(NOTE_PVH_ENTRY))
}

#[test]
fn filler_is_left_out_and_contents_stay_where_they_were() {
    let mut contents = vec![1; 3 * PAGE];
    contents.resize(600 * PAGE, INT3);
    contents.extend([2; 100]);
    let original = image(
        &contents,
        to_u64(contents.len()) + 5000,
        &note(NOTE_PVH_ENTRY),
    );
    let mut compacted = Vec::new();
    let length = compact(&original, &mut compacted).unwrap();
    assert_eq!(length, to_u64(compacted.len()));
    assert!(length < 8 * to_u64(PAGE), "{length}");

    let kept: Vec<_> = load(&original)
        .into_iter()
        .filter(|(_, byte)| *byte != INT3)
        .collect();
    assert_eq!(load(&compacted), kept);
    let segments = segments(&compacted).unwrap();
    assert_eq!(
        segments
            .iter()
            .filter(|segment| segment.kind == PT_LOAD)
            .count(),
        2
    );
    // The end of memory, entry point and note survive; offsets can be mapped.
    let end = segments
        .iter()
        .filter(|s| s.kind == PT_LOAD)
        .map(|s| s.paddr + s.memsz)
        .max();
    assert_eq!(end, Some(0x100_0000 + to_u64(contents.len()) + 5000));
    assert_eq!(u64_at(&compacted, 24).unwrap(), 0x100_0123);
    assert!(has_pvh_note(&compacted, &segments).unwrap());
    let page = to_u64(PAGE);
    for one in segments.iter().filter(|segment| segment.kind == PT_LOAD) {
        assert_eq!(one.offset % page, one.vaddr % page);
    }
    // No section table is promised.
    assert_eq!(u64_at(&compacted, 40).unwrap(), 0);
}

#[test]
fn short_runs_stay_and_zeros_become_memory() {
    let mut contents = vec![1; PAGE];
    contents.resize(4 * PAGE, INT3);
    contents.resize(5 * PAGE, 1);
    let [only] = &runs(&contents)[..] else {
        panic!("one run")
    };
    assert_eq!(*only, 0..5 * PAGE);
    let zeros = image(
        &vec![0; 40 * PAGE],
        50 * to_u64(PAGE),
        &note(NOTE_PVH_ENTRY),
    );
    let mut compacted = Vec::new();
    compact(&zeros, &mut compacted).unwrap();
    let load = segments(&compacted).unwrap()[0];
    assert_eq!((load.filesz, load.memsz), (0, 50 * to_u64(PAGE)));

    let mut late = vec![0; 20 * PAGE];
    late.resize(21 * PAGE, 1);
    let pieces = image(&late, to_u64(late.len()), &note(NOTE_PVH_ENTRY));
    let mut compacted = Vec::new();
    compact(&pieces, &mut compacted).unwrap();
    let sizes: Vec<_> = segments(&compacted)
        .unwrap()
        .iter()
        .map(|s| (s.filesz, s.memsz))
        .collect();
    let page = to_u64(PAGE);
    assert_eq!(sizes[..2], [(0, 20 * page), (page, page)]);
}

#[test]
fn a_kernel_without_pvh_is_refused() {
    let other = image(&[1; 10], 10, &note(17));
    assert!(matches!(
        compact(&other, &mut Vec::new()),
        Err(ElfError::NoPvhNote)
    ));
}

#[test]
fn what_is_no_kernel_is_refused_at_every_length() {
    let good = small_kernel();
    for length in (0..good.len()).filter(|length| *length < 300 || *length > good.len() - 50) {
        assert!(
            compact(&good[..length], &mut Vec::new()).is_err(),
            "{length}"
        );
    }
    let mut arm = good.clone();
    put(&mut arm, 18, &183_u16.to_le_bytes());
    assert!(matches!(
        compact(&arm, &mut Vec::new()),
        Err(ElfError::Kind(_))
    ));
}
