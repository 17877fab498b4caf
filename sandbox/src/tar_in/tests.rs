//! What an archive becomes on its way to a guest.

use flashpan_rootfs::tar::{Entry, Member, MemberKind};
use flashpan_rootfs::tree::Timestamp;

use super::*;

fn entry(path: &str, kind: Kind, size: u64) -> Entry {
    Entry {
        path: path.as_bytes().to_vec(),
        kind,
        permissions: 0o644,
        uid: 1,
        gid: 2,
        modified: Timestamp::default(),
        xattrs: Vec::new(),
        size,
        position: 0,
        stored: size,
        sparse: None,
    }
}

/// What is sent of a tree that these entries are, without the root: `+name`,
/// `=content`, `0length` of a hole, `/name` of a directory that the archive says nothing
/// of there, `@name:path` of a hard link, and `-` for an end.
fn sent(events: Vec<Event<'_>>) -> Result<Vec<String>> {
    let mut unpacker = Unpacker::new()?;
    for event in events {
        unpacker.take(event)?;
    }
    unpacker.finish()?;
    let mut decoder = frame::Decoder::new(MAX_FILE_FRAME);
    let mut words = Vec::new();
    for piece in unpacker.queue {
        let frame = match piece {
            Piece::Zeros(length) => {
                words.push(format!("0{length}"));
                continue;
            }
            Piece::Frame(frame) => frame,
        };
        decoder.extend(&frame);
        words.push(match decoder.next_message().unwrap().unwrap() {
            FileInput::Entry(entry) => format!("+{}", String::from_utf8_lossy(&entry.name)),
            FileInput::Data(bytes) => format!("={}", String::from_utf8_lossy(&bytes)),
            FileInput::Close => "-".to_owned(),
            FileInput::Enter(entry) => format!("/{}", String::from_utf8_lossy(&entry.name)),
            FileInput::HardLink { name, path } => format!(
                "@{}:{}",
                String::from_utf8_lossy(&name),
                String::from_utf8_lossy(&path)
            ),
            other => panic!("{other:?}"),
        });
    }
    assert_eq!(words.first().map(String::as_str), Some("+root"));
    assert_eq!(words.pop().as_deref(), Some("-"));
    Ok(words.split_off(1))
}

#[test]
fn entries_with_paths_become_a_tree_with_names() {
    let directory = |path| Event::Entry(entry(path, Kind::Directory, 0));
    let link = |path| Event::Entry(entry(path, Kind::Symlink(b"/to".to_vec()), 0));
    let hard = |path, to: &str| Event::Entry(entry(path, Kind::HardLink(to.into()), 0));
    for (events, words) in [
        (vec![], ""),
        (vec![directory("./")], ""),
        (vec![directory("a/"), link("a/b"), link("c")], "+a +b - +c"),
        // What the archive does not have, what it has later, and what it comes back to.
        (
            vec![link("a/b"), directory("a"), directory("a"), link("a/c")],
            "/a +b - +a - +a +c -",
        ),
        (
            vec![link("a/b"), hard("./a/c/d", "a//b"), hard("e", "a/c/d")],
            "/a +b /c @d:a/b - - @e:a/c/d",
        ),
        (vec![link("a/b/c"), link("a/d")], "/a /b +c - +d -"),
        (
            vec![link("a/b"), link("c"), link("./a//d")],
            "/a +b - +c /a +d -",
        ),
        (
            vec![
                Event::Entry(entry("a/f", Kind::Regular, 3)),
                Event::Data(b"x"),
                Event::Data(b"yz"),
                Event::Entry(entry("g", Kind::Regular, 0)),
            ],
            "/a +f =x =yz - - +g -",
        ),
    ] {
        assert_eq!(sent(events).unwrap().join(" "), words);
    }
}

#[test]
fn holes_are_zeros_that_are_not_kept() {
    let segment = |offset, length| Segment { offset, length };
    let sparse = |size, map| Entry {
        sparse: Some(map),
        ..entry("f", Kind::Regular, size)
    };
    let map = vec![
        segment(10, 2),
        segment(12, 1),
        segment(20, 3),
        segment(40, 0),
    ];
    let events = vec![
        Event::Entry(sparse(1 << 50, map)),
        Event::Data(b"abcd"),
        Event::Data(b"ef"),
    ];
    let end = (1_u64 << 50) - 23;
    let words = sent(events).unwrap().join(" ");
    assert_eq!(words, format!("+f 010 =ab =c 07 =d =ef 0{end} -"));
    let words = sent(vec![Event::Entry(sparse(5, Vec::new()))]).unwrap();
    assert_eq!(words, ["+f", "05", "-"]);
}

#[test]
fn what_leads_out_or_is_no_file_is_refused() {
    let long = format!("a/{}", "n".repeat(256));
    let deep = "d/".repeat(257);
    let link = |target: &[u8]| Kind::Symlink(target.to_vec());
    let hard = |target: &str| Kind::HardLink(target.into());
    for (path, kind, says) in [
        ("/etc/passwd", Kind::Regular, "is an absolute path"),
        ("..", Kind::Directory, "leads out"),
        ("a/../../b", Kind::Regular, "leads out"),
        ("a/..", link(b"x"), "leads out"),
        (".", Kind::Regular, "has the name of one"),
        (&long, Kind::Regular, "255 bytes"),
        (&deep, Kind::Directory, "nested too deep"),
        (&format!("{deep}f"), Kind::Regular, "nested too deep"),
        ("l", link(b""), "where the link points"),
        ("l", link(&[b'x'; 4096]), "where the link points"),
        (
            "h",
            hard("none"),
            "h: it is a hard link to none, and no file of",
        ),
        // Itself, and the directory that all goes to.
        ("h", hard("h"), "no file of that name is before it"),
        ("h", hard("."), "no file of that name is before it"),
        ("h", hard(""), "no file of that name is before it"),
        (
            "h",
            hard("/l"),
            "what it is a hard link to is an absolute path",
        ),
        ("h", hard("a/../l"), "what it is a hard link to has `..`"),
        (
            "h",
            hard(&long),
            "what it is a hard link to is none: 255 bytes",
        ),
        (".", hard("l"), "has the name of one"),
        (&format!("{deep}h"), hard("l"), "nested too deep"),
        ("c", Kind::CharDevice(1, 3), "devices are not"),
        ("b", Kind::BlockDevice(1, 3), "devices are not"),
        ("p", Kind::Fifo, "FIFOs are not"),
    ] {
        let error = sent(vec![Event::Entry(entry(path, kind, 0))]).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(says), "{path}: {text}");
        assert!(text.starts_with("cannot unpack the archive: "), "{text}");
    }
    let most = &deep[2..];
    let file = format!("{most}f");
    for entry in [
        entry(most, Kind::Directory, 0),
        entry(&file, Kind::Regular, 0),
    ] {
        assert!(sent(vec![Event::Entry(entry)]).is_ok());
    }
    // Nothing is a link to a directory, even of this archive.
    let directory = Event::Entry(entry("d", Kind::Directory, 0));
    let error = sent(vec![directory, Event::Entry(entry("h", hard("d"), 0))]).unwrap_err();
    assert!(
        error.to_string().contains("no file of that name"),
        "{error}"
    );
}

#[test]
fn an_archive_is_unpacked_whatever_pieces_it_comes_in() {
    let mut archive = Vec::new();
    for (path, kind) in [
        (&b"d"[..], MemberKind::Directory),
        (b"d/f", MemberKind::Regular(3)),
    ] {
        let member = Member {
            path,
            kind,
            permissions: 0o644,
            uid: 0,
            gid: 0,
            modified: Timestamp::default(),
        };
        member.write(&mut archive);
    }
    archive.extend_from_slice(b"xyz");
    archive.resize(archive.len() + tar::padding(3), 0);
    for size in [1, 7, 512, 4096] {
        let mut reader = Reader::new(HEADER_MAX);
        let mut unpacker = Unpacker::new().unwrap();
        for piece in archive.chunks(size) {
            reader
                .push(piece, &mut |event| unpacker.take(event))
                .unwrap();
        }
        reader.finish().unwrap();
        unpacker.finish().unwrap();
        assert_eq!((unpacker.copied.entries, unpacker.copied.bytes), (2, 3));
    }
}
