use super::*;

fn tree(directory: &Path) {
    fs::write(
        directory.join("Makefile"),
        "# SPDX\nVERSION = 6\nPATCHLEVEL = 12\nSUBLEVEL = 117\nEXTRAVERSION =\nNAME = x\n",
    )
    .unwrap();
    fs::write(directory.join("Kconfig"), "mainmenu \"x\"\n").unwrap();
}

fn open(path: &Path) -> Result<Source, SourceError> {
    let memory = tempfile::tempdir().unwrap();
    Source::open(path, &memory.path().join("sources.json"))
}

#[test]
fn a_tree_is_identified_by_its_files() {
    let directory = tempfile::tempdir().unwrap();
    tree(directory.path());
    let first = open(directory.path()).unwrap();
    assert_eq!(first.kind, SourceKind::Directory);
    assert_eq!(version(&first.path).unwrap(), "6.12.117");
    assert_eq!(open(directory.path()).unwrap(), first);
    fs::write(directory.path().join("Kconfig"), "mainmenu \"edited\"\n").unwrap();
    assert_ne!(open(directory.path()).unwrap().identity, first.identity);
}

#[test]
fn a_tree_with_other_links_or_an_edit_that_hides_is_another() {
    let directory = tempfile::tempdir().unwrap();
    tree(directory.path());
    let (link, kconfig) = (
        directory.path().join("link"),
        directory.path().join("Kconfig"),
    );
    std::os::unix::fs::symlink("aa", &link).unwrap();
    let first = open(directory.path()).unwrap();
    // As long as before, and with the time of before.
    let time = fs::metadata(&kconfig).unwrap().modified().unwrap();
    fs::write(&kconfig, "mainmenu \"y\"\n").unwrap();
    let file = fs::File::options().write(true).open(&kconfig).unwrap();
    file.set_modified(time).unwrap();
    let second = open(directory.path()).unwrap();
    assert_ne!(second.identity, first.identity);
    fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink("bb", &link).unwrap();
    assert_ne!(open(directory.path()).unwrap().identity, second.identity);
    assert!(first.verify(&directory.path().join("memory")).is_err());
}

#[test]
fn a_tree_that_was_built_in_is_refused_with_the_cure() {
    let directory = tempfile::tempdir().unwrap();
    tree(directory.path());
    fs::write(directory.path().join(".config"), "").unwrap();
    let error = open(directory.path()).unwrap_err().to_string();
    assert!(error.contains("make mrproper"), "{error}");
}

#[test]
fn what_is_no_source_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    assert!(matches!(
        open(directory.path()),
        Err(SourceError::NotSource(_))
    ));
    let zip = directory.path().join("linux.zip");
    fs::write(&zip, "PK").unwrap();
    assert!(matches!(open(&zip), Err(SourceError::NotSource(_))));
    assert!(matches!(
        open(Path::new("/nonexistent")),
        Err(SourceError::Read { .. })
    ));
}

#[test]
fn what_is_no_file_is_not_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let fifo = |name| {
        let path = directory.path().join(name);
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        path
    };
    let error = open(&fifo("linux.tar")).unwrap_err().to_string();
    assert!(error.contains("linux.tar: it is not a"), "{error}");
    tree(directory.path());
    fs::remove_file(directory.path().join("Makefile")).unwrap();
    fifo("Makefile");
    assert!(matches!(
        open(directory.path()),
        Err(SourceError::NotSource(_))
    ));
}

#[test]
fn the_distributions_tarball_is_found_and_others_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let other = directory.path().join("linux-source-6.1.tar.xz");
    fs::write(&other, "").unwrap();
    assert_eq!(installed(directory.path()), None);
    let others = others(directory.path());
    let error = SourceError::NotFound { others }.to_string();
    assert!(
        error.contains("apt-get install linux-source-6.12"),
        "{error}"
    );
    assert!(
        error.contains("linux-source-6.1.tar.xz is there"),
        "{error}"
    );
    let wanted = directory.path().join("linux-source-6.12.tar.xz");
    fs::write(&wanted, "").unwrap();
    assert_eq!(installed(directory.path()), Some(wanted));
}

#[test]
fn a_tarball_is_hashed_once_and_again_when_it_changes() {
    let directory = tempfile::tempdir().unwrap();
    let (path, memory) = (
        directory.path().join("linux.tar.xz"),
        directory.path().join("m/s.json"),
    );
    fs::write(&path, "one").unwrap();
    let first = Source::open(&path, &memory).unwrap();
    assert_eq!(
        first.identity,
        format!("sha256:{}", hex(&Sha256::digest("one")))
    );
    assert_eq!(first.programs(), [("xz", "xz-utils")]);

    // Answered from memory: a forged entry is believed as long as the file is the same.
    let forged = fs::read_to_string(&memory)
        .unwrap()
        .replace(&first.identity[7..], "remembered");
    fs::write(&memory, forged).unwrap();
    assert_eq!(
        Source::open(&path, &memory).unwrap().identity,
        "sha256:remembered"
    );
    fs::write(&path, "another").unwrap();
    let second = Source::open(&path, &memory).unwrap();
    assert_eq!(
        second.identity,
        format!("sha256:{}", hex(&Sha256::digest("another")))
    );
}

#[test]
fn the_upstream_tarball_is_known_before_it_is_there_and_checked_when_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let memory = directory.path().join("memory.json");
    let upstream = Upstream::default().with_pin("1", &hex(&Sha256::digest("linux")));
    let find = || {
        Source::find(
            &SourceChoice::Upstream,
            &upstream,
            directory.path(),
            &memory,
        )
        .unwrap()
    };
    let missing = find();
    assert!(missing.fetch);
    assert_eq!(missing.programs(), [("curl", "curl"), ("xz", "xz-utils")]);
    fs::write(&missing.path, "linus").unwrap();
    assert!(find().fetch);
    fs::write(&missing.path, "linux").unwrap();
    let there = find();
    assert!(!there.fetch);
    assert_eq!(there.identity, missing.identity);
    // The same as if the user had given the file.
    assert_eq!(Source::open(&there.path, &memory).unwrap(), there);
}
