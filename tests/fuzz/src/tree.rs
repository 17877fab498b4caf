//! Trees from a peer that means ill. The same runs over the corpus in
//! `tree-copy/tests/fuzz_corpus.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use flashpan_protocol::agent::Bytes;
use flashpan_protocol::file::{FileStat, MAX_TREE_DEPTH, MAX_TREE_ENTRIES, TreeEntry};
use flashpan_tree_copy::{Failure, Options, Owner, Reader, Step, Writer};
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

/// What is wrong with a name, or at least not usual. `OUTSIDE` stands for the path
/// of what must not be touched.
const NAMES: [&[u8]; 24] = [
    b"a",
    b"b",
    b"c",
    b"dir",
    b"file",
    b"link-out",
    b"link-to-sentinel",
    b"link-within",
    b"pipe",
    b".",
    b"..",
    b"/",
    b"",
    b"a/b",
    b"../outside",
    b"../outside/sentinel",
    b"link-out/sentinel",
    b"dir/../../outside/sentinel",
    b"OUTSIDE",
    b"OUTSIDE/sentinel",
    b"/dev/null",
    b"\0",
    b"\xff\n",
    b".flashpan-",
];

/// What the fuzzer has decided, read from the front.
struct Choices<'a>(&'a [u8]);

impl Choices<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        let (bytes, rest) = self.0.split_at(most.min(self.0.len()));
        self.0 = rest;
        bytes.to_vec()
    }

    fn number(&mut self) -> u32 {
        let mut four = [0; 4];
        let bytes = self.bytes(4);
        four[..bytes.len()].copy_from_slice(&bytes);
        u32::from_le_bytes(four)
    }

    /// One of the names above, one of any length, or one of the peer's own.
    fn name(&mut self, outside: &Path) -> Vec<u8> {
        let choice = self.byte().unwrap_or(0);
        match NAMES.get(usize::from(choice)) {
            Some(name) => match name.strip_prefix(b"OUTSIDE") {
                Some(rest) => [outside.as_os_str().as_bytes(), rest].concat(),
                None => name.to_vec(),
            },
            None if choice == 255 => vec![b'x'; usize::from(self.byte().unwrap_or(0)) * 20],
            None => self.bytes(usize::from(choice % 16)),
        }
    }

    fn stat(&mut self, kind: u32) -> FileStat {
        FileStat {
            mode: kind | (self.number() & 0o7777),
            // Only root can give files away, and only it has to be kept from it.
            uid: self.number() % 3,
            gid: self.number() % 3,
            size: u64::from(self.number()),
            modified: i64::from(self.number()) - i64::from(u32::MAX / 2),
            modified_ns: self.number(),
        }
    }
}

/// Where trees land, and what lies beside that.
struct Scene {
    all: tempfile::TempDir,
    place: PathBuf,
    outside: PathBuf,
}

impl Scene {
    fn new() -> Self {
        let all = tempfile::tempdir_in("/dev/shm").unwrap();
        let (place, outside) = (all.path().join("place"), all.path().join("outside"));
        fs::create_dir(&place).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("sentinel"), "nobody writes here").unwrap();
        fs::create_dir(outside.join("empty")).unwrap();
        fs::create_dir(place.join("dir")).unwrap();
        fs::write(place.join("file"), "there already").unwrap();
        symlink(&outside, place.join("link-out")).unwrap();
        symlink(outside.join("sentinel"), place.join("link-to-sentinel")).unwrap();
        symlink("dir", place.join("link-within")).unwrap();
        let mode = Mode::from_bits_truncate(0o600);
        nix::unistd::mkfifo(&place.join("pipe"), mode).unwrap();
        Self {
            all,
            place,
            outside,
        }
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        // Permissions may keep even their owner out.
        let mut left = vec![self.all.path().to_owned()];
        while let Some(directory) = left.pop() {
            let _ = fs::set_permissions(&directory, PermissionsExt::from_mode(0o700));
            for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    left.push(entry.path());
                }
            }
        }
    }
}

/// A stream of whatever steps: it is written or refused, nothing beside the place
/// is touched, nothing half written stays, no file runs with more rights than it
/// should, and what was written can be read and written again.
pub fn tree(data: &[u8]) {
    let scene = Scene::new();
    let before = touched(&scene.outside);
    let mut choices = Choices(data);
    let flags = choices.byte().unwrap_or(0);
    let options = Options {
        owner: match flags & 3 {
            0 => Owner::AsSent,
            1 => Owner::Of(1, 2),
            _ => Owner::Writer,
        },
        special_bits: flags & 4 != 0,
        follow_place: flags & 64 == 0,
        again: flags & 128 == 0,
        entries: MAX_TREE_ENTRIES,
        depth: MAX_TREE_DEPTH,
    };
    let mut own_names = BTreeSet::new();
    let written = write(&scene, &mut choices, flags, options, &mut own_names);
    assert_eq!(
        touched(&scene.outside),
        before,
        "what lies beside the place"
    );
    for (path, metadata) in below(&scene.place) {
        let name = path.file_name().unwrap().as_bytes();
        let half = name.starts_with(b".flashpan-") && !own_names.contains(name);
        assert!(!half, "{} was left", path.display());
        if !options.special_bits && !metadata.is_symlink() {
            assert_eq!(metadata.mode() & 0o7000, 0, "{}", path.display());
        }
        if options.owner == Owner::Writer {
            let own = nix::unistd::geteuid().as_raw();
            assert_eq!(metadata.uid(), own, "{}", path.display());
        }
    }
    if written.is_ok() {
        read_again(&scene);
    }
}

/// Does what the peer sends; `Ok` if all of a tree came.
fn write(
    scene: &Scene,
    choices: &mut Choices<'_>,
    flags: u8,
    options: Options,
    names: &mut BTreeSet<Vec<u8>>,
) -> Result<(), Failure> {
    let to = match flags >> 3 & 3 {
        0 => scene.place.clone(),
        1 => scene.place.join("new"),
        2 => scene.place.join("dir"),
        _ => scene.place.join("file"),
    };
    let contents = flags & 32 != 0;
    let mut writer: Option<Writer> = None;
    while let Some(step) = choices.byte() {
        let kind = match step % 8 {
            0 | 1 => 0o040_000,
            2 => 0o100_000,
            3 => 0o120_000,
            4 => {
                let bytes = choices.bytes(usize::from(step) * 4);
                writer.as_mut().map_or(Ok(()), |open| open.data(&bytes))?;
                continue;
            }
            5 if step >= 128 => {
                let (name, path) = (choices.name(&scene.outside), choices.name(&scene.outside));
                names.insert(name.clone());
                let link = |open: &mut Writer| open.hard_link(&name, &path);
                writer.as_mut().map_or(Ok(()), link)?;
                continue;
            }
            5 => {
                writer.as_mut().map_or(Ok(()), Writer::close)?;
                continue;
            }
            6 => {
                // Until then a link in the place of what is named is followed.
                if writer.is_some() {
                    interfere(scene, choices);
                }
                continue;
            }
            _ => choices.number() & 0o170_000,
        };
        let entry = TreeEntry {
            name: Bytes::from(choices.name(&scene.outside)),
            stat: choices.stat(kind),
            target: match kind {
                0o120_000 => Bytes::from(choices.name(&scene.outside)),
                _ => Bytes::new(),
            },
        };
        names.insert(entry.name.to_vec());
        match &mut writer {
            Some(writer) if kind == 0o040_000 && step >= 128 => writer.enter(&entry)?,
            Some(writer) => writer.entry(&entry)?,
            None => {
                let path = to.as_os_str().as_bytes();
                // The guest's agent takes the peer's word for the name of the root.
                let own = &entry.name;
                writer = Some(Writer::new(&open, path, contents, &entry, own, options)?);
            }
        }
    }
    match writer {
        Some(writer) if writer.is_finished() => Ok(()),
        _ => Err(Failure {
            path: Vec::new(),
            what: "",
            why: flashpan_tree_copy::Why::Protocol("it did not end"),
        }),
    }
}

/// Somebody puts a link that leads out in the place of a directory meanwhile.
fn interfere(scene: &Scene, choices: &mut Choices<'_>) {
    let mut place = scene.place.clone();
    if choices.byte().unwrap_or(0) & 1 == 1 {
        place.push("new");
    }
    let name = NAMES[usize::from(choices.byte().unwrap_or(0)) % 5];
    let path = place.join(OsStr::from_bytes(name));
    let is_directory = path.symlink_metadata().is_ok_and(|there| there.is_dir());
    if is_directory && fs::rename(&path, place.join("moved")).is_ok() {
        let _ = symlink(&scene.outside, &path);
    }
}

/// A tree that lies here can be taken apart, and put together elsewhere it is equal.
fn read_again(scene: &Scene) {
    let options = Options {
        owner: Owner::AsSent,
        special_bits: true,
        follow_place: true,
        again: true,
        entries: MAX_TREE_ENTRIES,
        depth: MAX_TREE_DEPTH,
    };
    let (from, to) = (&scene.place, scene.all.path().join("copy"));
    let copied = || -> Result<(), Failure> {
        let path = from.as_os_str().as_bytes();
        let mut reader = Reader::new(&open, path, false, b"place")?;
        let mut writer: Option<Writer> = None;
        let mut buffer = [0; 700];
        while let Some(step) = reader.next(&mut buffer)? {
            match (step, &mut writer) {
                (Step::Entry(root), None) => {
                    let to = to.as_os_str().as_bytes();
                    let new = Writer::new(&open, to, false, &root, b"place", options)?;
                    writer = Some(new);
                }
                (Step::Entry(entry), Some(writer)) => writer.entry(&entry)?,
                (Step::Data(n), Some(writer)) => writer.data(&buffer[..n])?,
                (Step::Close, Some(writer)) => writer.close()?,
                (Step::Skipped(entry), Some(_)) => {
                    assert_eq!(entry.stat.mode & 0o170_000, 0o010_000, "{entry:?}");
                }
                (step, None) => panic!("{step:?} before the root"),
            }
        }
        assert!(writer.is_some_and(|writer| writer.is_finished()));
        Ok(())
    };
    match copied() {
        Ok(()) => assert_eq!(kept(&to), kept(from), "a copy of what was written"),
        // What a peer forbids to everybody only root can read.
        Err(failure) => assert!(!nix::unistd::geteuid().is_root(), "{failure:?}"),
    }
}

fn open(path: &[u8], flags: OFlag) -> nix::Result<OwnedFd> {
    nix::fcntl::open(OsStr::from_bytes(path), flags, Mode::empty())
}

/// Everything below `root`, and what it is.
fn below(root: &Path) -> BTreeMap<PathBuf, fs::Metadata> {
    let mut all = BTreeMap::new();
    let mut left = vec![root.to_owned()];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let metadata = entry.metadata().unwrap();
            if metadata.is_dir() {
                left.push(entry.path());
            }
            all.insert(entry.path(), metadata);
        }
    }
    all
}

/// What changes of a file with everything that is done to it but reading.
type Touched = (u64, u32, u64, (u32, u32), (i64, i64), Vec<u8>);

fn touched(root: &Path) -> BTreeMap<PathBuf, Touched> {
    let mut all = below(root);
    all.insert(root.to_owned(), root.symlink_metadata().unwrap());
    let of = |(path, metadata): (PathBuf, fs::Metadata)| {
        let content = fs::read(&path).unwrap_or_default();
        let touched = (
            metadata.ino(),
            metadata.mode(),
            metadata.nlink(),
            (metadata.uid(), metadata.gid()),
            (metadata.ctime(), metadata.ctime_nsec()),
            content,
        );
        (path, touched)
    };
    all.into_iter().map(of).collect()
}

/// What a copy keeps.
type Kept = (u32, (u32, u32), (i64, i64), Vec<u8>);

fn kept(root: &Path) -> BTreeMap<PathBuf, Kept> {
    let of = |(path, metadata): (PathBuf, fs::Metadata)| {
        let content = match () {
            () if metadata.is_symlink() => {
                fs::read_link(&path).unwrap().into_os_string().into_vec()
            }
            () if metadata.is_file() => fs::read(&path).unwrap(),
            () if metadata.is_dir() => Vec::new(),
            () => return None,
        };
        let mode = match metadata.is_symlink() {
            true => 0o120_000,
            false => metadata.mode(),
        };
        let kept = (
            mode,
            (metadata.uid(), metadata.gid()),
            (metadata.mtime(), metadata.mtime_nsec()),
            content,
        );
        Some((path.strip_prefix(root).unwrap().to_owned(), kept))
    };
    below(root).into_iter().filter_map(of).collect()
}
