use super::*;

/// A header of `ustar`, with a check sum.
fn header(path: &str, kind: u8, size: u64) -> [u8; 512] {
    let mut block = [0; 512];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, path.as_bytes());
    put(100, b"0000644\x000000001\x000000002\0");
    put(124, format!("{size:011o}\0").as_bytes());
    put(136, b"00000000007\0        ");
    put(156, &[kind]);
    put(257, b"ustar\x0000");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

fn padded(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn pax(records: &[u8]) -> Vec<u8> {
    let size = u64::try_from(records.len()).unwrap();
    [&header("pax", b'x', size)[..], &padded(records)].concat()
}

fn read(archive: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, Error> {
    let mut found: Vec<(Entry, Vec<u8>)> = Vec::new();
    let mut reader = Reader::new(1000);
    reader.push::<Error>(archive, &mut |event| {
        match event {
            Event::Entry(entry) => found.push((entry, Vec::new())),
            Event::Data(bytes) => found.last_mut().unwrap().1.extend_from_slice(bytes),
        }
        Ok(())
    })?;
    reader.finish()?;
    Ok(found)
}

#[test]
fn an_entry_has_what_its_header_says() {
    let archive = [&header("a/b", b'0', 3)[..], &padded(b"xyz"), &[0; 1024]].concat();
    let found = read(&archive).unwrap();
    let entry = Entry {
        path: b"a/b".to_vec(),
        kind: Kind::Regular,
        permissions: 0o644,
        uid: 1,
        gid: 2,
        modified: Timestamp {
            seconds: 7,
            nanoseconds: 0,
        },
        xattrs: Vec::new(),
        size: 3,
        position: 512,
        stored: 3,
        sparse: None,
    };
    assert_eq!(found, [(entry, b"xyz".to_vec())]);
}

#[test]
fn records_are_for_one_entry_and_global_ones_for_all() {
    let global = b"10 uid=77\n10 gid=88\n";
    let archive = [
        &header("g", b'g', 20)[..],
        &padded(global),
        &pax(b"10 uid=99\n12 path=own\n"),
        &header("x", b'0', 0),
        &header("next", b'0', 0),
        &[0; 1024],
    ]
    .concat();
    let found = read(&archive).unwrap();
    let seen: Vec<_> = found
        .iter()
        .map(|(e, _)| (&e.path[..], e.uid, e.gid))
        .collect();
    assert_eq!(seen, [(&b"own"[..], 99, 88), (b"next", 77, 88)]);
}

/// However many headers come before an entry or before all, what is kept of them
/// is no more than one may have.
#[test]
fn extended_headers_do_not_pile_up() {
    let archive = [
        &header("g", b'g', 29)[..],
        &padded(b"29 SCHILY.xattr.user.all=yes\n"),
        &pax(b"29 SCHILY.xattr.user.one=yes\n"),
        &pax(b"29 SCHILY.xattr.user.two=yes\n"),
        &header("x", b'0', 0),
        &[0; 1024],
    ]
    .concat();
    let found = read(&archive).unwrap();
    let names: Vec<_> = found[0].0.xattrs.iter().map(|(name, _)| name).collect();
    assert_eq!(names, [b"user.two"]);
}

#[test]
fn only_regular_files_have_data() {
    // Some programs write sizes for links and directories.
    let archive = [
        header("d", b'5', 700),
        header("l", b'1', 700),
        header("f", b'0', 0),
    ]
    .concat();
    assert_eq!(read(&archive).unwrap().len(), 3);
    let old = [header("directory/", 0, 0), header("file", 0, 0)].concat();
    let kinds: Vec<_> = read(&old)
        .unwrap()
        .into_iter()
        .map(|(entry, _)| entry.kind)
        .collect();
    assert_eq!(kinds, [Kind::Directory, Kind::Regular]);
}

#[test]
fn signed_check_sums_of_old_are_taken() {
    let mut block = header("\u{ff}", b'0', 0);
    block[148..156].fill(b' ');
    let sum: i32 = block.iter().map(|byte| i32::from(byte.cast_signed())).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    assert_eq!(read(&block).unwrap().len(), 1);
}

#[test]
fn extended_headers_are_bounded_before_they_are_read() {
    let error = read(&header("x", b'x', 1001)).unwrap_err();
    assert!(matches!(
        error,
        Error::HeaderSize {
            size: 1001,
            limit: 1000,
            ..
        }
    ));
    assert!(matches!(
        read(&header("L", b'L', 1 << 32)),
        Err(Error::HeaderSize { .. })
    ));
}

#[test]
fn one_block_of_zeros_is_an_end_only_at_the_end() {
    let one = [&header("a", b'0', 0)[..], &[0; 512]].concat();
    assert_eq!(read(&one).unwrap().len(), 1);
    let more = [&one[..], &header("b", b'0', 0)].concat();
    assert!(matches!(
        read(&more),
        Err(Error::Header { position: 1024, .. })
    ));
    assert!(read(b"").unwrap().is_empty());
}

#[test]
fn paths_are_shown_on_one_line_and_not_endless() {
    assert_eq!(shown(b"a\nb\x1b\xff"), "a\\nb\\u{1b}\u{fffd}");
    assert!(shown(&[b'x'; 5000]).len() < 300);
}

/// As Go's archive/tar has it, by which images are made and unpacked.
#[test]
fn of_two_kinds_of_long_names_the_one_of_gnu_counts() {
    let gnu = |kind, name: &[u8]| {
        let size = u64::try_from(name.len()).unwrap();
        [&header("././@LongLink", kind, size)[..], &padded(name)].concat()
    };
    let records = pax(b"12 path=pax\n16 linkpath=pax\n");
    let names = [gnu(b'L', b"gnu\0"), gnu(b'K', b"target\0")].concat();
    let is = |archive: &[u8], path: &[u8], target: &[u8]| {
        let found = read(&[archive, &header("h", b'2', 0)].concat()).unwrap();
        assert_eq!(found[0].0.path, path);
        assert_eq!(found[0].0.kind, Kind::Symlink(target.to_vec()));
    };
    is(&[&names[..], &records].concat(), b"gnu", b"target");
    is(&[&records[..], &names].concat(), b"gnu", b"target");
    // One that says nothing counts for nothing.
    let empty = [gnu(b'L', b"\0"), gnu(b'K', b"\0")].concat();
    is(&[&empty[..], &records].concat(), b"pax", b"pax");
    // The name of a sparse file is one only if it is sparse.
    let only_name = pax(b"26 GNU.sparse.name=sparse\n12 path=pax\n");
    let found = read(&[&only_name[..], &header("h", b'0', 0)].concat()).unwrap();
    assert_eq!(found[0].0.path, b"pax");
}

#[test]
fn the_label_of_an_archive_is_no_file() {
    let archive = [
        &header("label", b'V', 0)[..],
        &header("a", b'0', 1),
        &padded(b"x"),
        // None has data; if it says so, that is nobody's.
        &header("label", b'V', 3),
        &padded(b"yyy"),
        &header("b", b'0', 0),
        &[0; 1024],
    ]
    .concat();
    let found = read(&archive).unwrap();
    let seen: Vec<_> = found
        .iter()
        .map(|(entry, data)| (&entry.path[..], &data[..]))
        .collect();
    assert_eq!(seen, [(&b"a"[..], &b"x"[..]), (b"b", b"")]);
    let cut = [&header("a", b'0', 0)[..], &header("label", b'V', 900)].concat();
    assert!(matches!(read(&cut), Err(Error::Truncated { .. })));
}

#[test]
fn the_last_padding_may_be_missing() {
    let archive = [&header("a", b'0', 3)[..], b"xyz"].concat();
    assert_eq!(read(&archive).unwrap().len(), 1);
    let cut = [&header("a", b'0', 3)[..], b"xy"].concat();
    assert!(matches!(read(&cut), Err(Error::Truncated { .. })));
    let only_records = [&header("pax", b'x', 10)[..], b"10 path=a\n"].concat();
    assert!(matches!(read(&only_records), Err(Error::Truncated { .. })));
}

#[test]
fn who_wants_no_data_can_pass_it_over() {
    let archive = [
        &header("a", b'0', 2000)[..],
        &padded(&[7; 2000]),
        &header("b", b'0', 0),
        &[0; 1024],
    ]
    .concat();
    let mut reader = Reader::new(1000);
    let (mut at, mut paths) = (0, Vec::new());
    while at < archive.len() {
        let ahead = usize::try_from(reader.passable()).unwrap_or(usize::MAX);
        if ahead > 0 {
            reader.pass(u64::try_from(ahead.min(archive.len() - at)).unwrap());
            at = at.saturating_add(ahead);
            continue;
        }
        reader
            .push::<Error>(&archive[at..at + 1], &mut |event| {
                match event {
                    Event::Entry(entry) => paths.push((entry.path, entry.position)),
                    Event::Data(data) => panic!("{data:?}"),
                }
                Ok(())
            })
            .unwrap();
        at += 1;
    }
    reader.finish().unwrap();
    assert_eq!(paths, [(b"a".to_vec(), 512), (b"b".to_vec(), 3072)]);
    // No further than there is data.
    let mut reader = Reader::new(1000);
    reader.pass(512);
    assert!(matches!(
        reader.push::<Error>(&[b'x'; 512], &mut |_| Ok(())),
        Err(Error::NotTar)
    ));
}
