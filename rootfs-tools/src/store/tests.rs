use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, mpsc};

use super::*;
use crate::probe::{RootImage, probe};
use crate::testing::{TarBuilder, digest_of, oci_layout};

mod archives;

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&Cache::at(dir.path())).unwrap();
    (dir, store)
}

fn layer(contents: &[u8]) -> Vec<u8> {
    TarBuilder::new()
        .directory("etc/")
        .file("etc/hostname", contents)
        .finish()
}

/// A tar of a layout with images of one layer each.
fn archive(dir: &Path, images: &[(&str, &[u8])]) -> Input {
    let layers: Vec<[Vec<u8>; 1]> = images.iter().map(|(_, c)| [layer(c)]).collect();
    let images: Vec<(&str, &[Vec<u8>], &str)> = images
        .iter()
        .zip(&layers)
        .map(|((name, _), layers)| (*name, &layers[..], r#"{"Cmd": ["x"]}"#))
        .collect();
    let files = oci_layout(&images);
    let add = |tar: TarBuilder, (name, bytes): (&String, &Vec<u8>)| tar.file(name, bytes);
    let tar = files.iter().fold(TarBuilder::new(), add).finish();
    let path = dir.join("archive.tar");
    fs::write(&path, tar).unwrap();
    Input::Path(path)
}

fn import(store: &Store, input: Input) -> Result<Vec<Image>, Error> {
    store.import(input, &ImportOptions::default(), &|_| {})
}

fn names(store: &Store) -> Vec<String> {
    let images = store.list().unwrap();
    images.into_iter().map(|image| image.name).collect()
}

/// Every file of the store but its list and its lock.
fn files(store: &Store) -> Vec<String> {
    let mut found = Vec::new();
    for folder in ["blobs/sha256", "roots", "work"] {
        for entry in fs::read_dir(store.path().join(folder)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            found.push(format!("{folder}/{name}"));
        }
    }
    found.sort();
    found
}

#[test]
fn an_imported_image_is_found_by_every_spelling_and_by_digest() {
    let (dir, store) = store();
    let imported = import(&store, archive(dir.path(), &[("app:1", b"a")])).unwrap();
    let info = &imported[0].info;
    assert_eq!(info.name, "docker.io/library/app:1");
    assert_eq!(imported[0].config.run.cmd, ["x"]);
    let id = &info.id["sha256:".len()..];
    let manifest = info.manifest.as_deref().unwrap();
    for name in [
        "app:1",
        "library/app:1",
        "docker.io/library/app:1",
        "index.docker.io/app:1",
        &id[..12],
        &info.id,
        manifest,
    ] {
        assert_eq!(store.get(name).unwrap(), imported[0], "{name}");
    }
    for name in ["app", "app:2", "ap", &id[..3], "0000000000", "a b"] {
        let error = store.get(name).unwrap_err();
        assert_eq!(error.to_string(), format!("image not found: {name:?}"));
    }
    let root = store.root(info).unwrap();
    assert!(
        matches!(probe(root.path()).unwrap(), RootImage::Erofs { size, .. } if size == info.size)
    );
}

#[test]
fn a_digest_names_an_image_alone_and_in_its_repository() {
    let (dir, store) = store();
    let imported = import(&store, archive(dir.path(), &[("app:1", b"a")])).unwrap();
    let manifest = imported[0].info.manifest.clone().unwrap();
    let index = sha256(b"an index");
    let by_digest = format!("docker.io/library/by@{index}");
    for name in ["quay.io/team/app:2", &by_digest] {
        let info = ImageInfo {
            name: name.to_owned(),
            index: Some(index.clone()),
            ..imported[0].info.clone()
        };
        assert_eq!(info.digest(), Some(index.as_str()));
        store.add([info], &|_| {}).unwrap();
    }
    let short = &index[..19];
    for (wish, name) in [
        (index.clone(), by_digest.as_str()),
        (short.to_owned(), &by_digest),
        (format!("quay.io/team/app@{index}"), "quay.io/team/app:2"),
        (format!("quay.io/team/app@{short}"), "quay.io/team/app:2"),
        (format!("quay.io/team/app@{manifest}"), "quay.io/team/app:2"),
        (format!("quay.io/team/app:1@{index}"), "quay.io/team/app:2"),
        (format!("app@{manifest}"), "docker.io/library/app:1"),
        (format!("by@{index}"), &by_digest),
        (format!("by@{short}"), &by_digest),
    ] {
        assert_eq!(store.get(&wish).unwrap().info.name, name, "{wish}");
    }
    let id = &imported[0].info.id;
    for wish in [
        format!("app@{index}"),
        format!("quay.io/team/other@{index}"),
        format!("team/app@{index}"),
        format!("app@{id}"),
        "by@sha256:".to_owned(),
        format!("by@sha512:{}", &index["sha256:".len()..]),
    ] {
        let error = store.get(&wish).unwrap_err();
        assert!(matches!(error, Error::NotFound(_)), "{wish}: {error}");
    }
}

#[test]
fn a_digest_with_several_names_is_removed_only_by_force() {
    let (dir, store) = store();
    let images = [("app:1", &b"a"[..]), ("other", b"b")];
    let imported = import(&store, archive(dir.path(), &images)).unwrap();
    store.tag("app:1", "base", &|_| {}).unwrap();
    let id = &imported[0].info.id;
    let error = store.remove(&id[..19], false).unwrap_err();
    let both = ["docker.io/library/app:1", "docker.io/library/base:latest"];
    for name in both {
        assert!(error.to_string().contains(name), "{error}");
    }
    assert_eq!(names(&store).len(), 3);
    // One name of it goes without the other.
    store.tag("app:1", "third", &|_| {}).unwrap();
    store.remove("third", false).unwrap();
    assert_eq!(store.remove(id, true).unwrap(), both);
    assert_eq!(names(&store), ["docker.io/library/other:latest"]);
    // Of one name it needs no force.
    store.remove(&imported[1].info.id, false).unwrap();
    assert_eq!(files(&store), [""; 0]);
}

#[test]
fn a_root_that_is_made_again_replaces_only_a_damaged_one_that_nobody_uses() {
    use std::os::unix::fs::{FileExt, MetadataExt};
    let (dir, store) = store();
    let imported = import(&store, archive(dir.path(), &[("app", b"a")])).unwrap();
    let info = &imported[0].info;
    let path = store.root_path(info);
    let bytes = fs::read(&path).unwrap();
    let again = || {
        store.root_or_make(&info.root, "app", true, &|_| {}, |out| {
            out.write_all_at(&bytes, 0).unwrap();
            Ok(())
        })
    };
    let inode = || fs::metadata(&path).unwrap().ino();
    let before = inode();
    let vm = store.root(info).unwrap();
    drop(again().unwrap());
    assert_eq!(inode(), before);
    assert!(matches!(store.remove("app", false), Err(Error::InUse(_))));

    let writer = fs::File::options().write(true).open(&path).unwrap();
    writer.write_all_at(b"damage", 1024).unwrap();
    let refused = again().unwrap_err();
    assert!(matches!(refused, Error::DamagedInUse(_)), "{refused}");
    assert_eq!(inode(), before);
    assert!(matches!(store.remove("app", false), Err(Error::InUse(_))));
    drop(vm);
    let made = again().unwrap();
    assert_ne!(inode(), before);
    assert_eq!(fs::read(&path).unwrap(), bytes);
    assert!(matches!(store.remove("app", false), Err(Error::InUse(_))));
    drop(made);
    // No work is left behind by any of it.
    assert_eq!(
        store.gc(&Gc::all()).unwrap().files,
        [""; 0].map(PathBuf::from)
    );
}

#[test]
fn images_with_the_same_layers_share_their_root() {
    let (dir, store) = store();
    let images = [("one", &b"a"[..]), ("two", b"a"), ("three", b"b")];
    let imported = import(&store, archive(dir.path(), &images)).unwrap();
    assert_eq!(imported[0].info.root, imported[1].info.root);
    assert_ne!(imported[0].info.root, imported[2].info.root);
    assert_eq!(fs::read_dir(store.path().join("roots")).unwrap().count(), 2);
    store.remove("one", false).unwrap();
    store.root(&imported[1].info).unwrap();
    store.remove("two", false).unwrap();
    assert!(matches!(
        store.root(&imported[1].info),
        Err(Error::Missing { .. })
    ));
    store.root(&imported[2].info).unwrap();
}

/// By then no command but `gc` can do anything about it.
#[test]
fn an_image_that_loses_its_last_name_to_another_is_told() {
    let (dir, store) = store();
    let told = Mutex::new(Vec::new());
    let events = |event| {
        if let Event::Nameless(image) = event {
            told.lock().unwrap().push((image.name, image.id));
        }
    };
    let import = |images: &[(&str, &[u8])]| {
        let input = archive(dir.path(), images);
        let imported = store.import(input, &ImportOptions::default(), &events);
        imported.unwrap().remove(0).info.id
    };
    let told = || std::mem::take(&mut *told.lock().unwrap());
    let first = import(&[("app", b"a")]);
    // The same image again, and one that keeps another name.
    import(&[("app", b"a")]);
    store.tag("app", "base", &events).unwrap();
    let second = import(&[("app", b"b")]);
    assert_eq!(told(), []);
    let before = files(&store);
    store.tag("app", "base", &events).unwrap();
    assert_eq!(
        told(),
        [("docker.io/library/base:latest".to_owned(), first.clone())]
    );
    assert!(matches!(store.get(&first), Err(Error::NotFound(_))));
    // Its files stay: a VM may run on them, and a pull use its layers.
    assert_eq!(files(&store), before);
    store.remove("base", false).unwrap();
    assert_ne!(files(&store), before);
    import(&[("app", b"c")]);
    assert_eq!(
        told(),
        [("docker.io/library/app:latest".to_owned(), second)]
    );
    let collected = store.gc(&Gc::all()).unwrap();
    assert!(!collected.files.is_empty());
}

#[test]
fn removing_the_last_name_removes_everything() {
    let (dir, store) = store();
    import(&store, archive(dir.path(), &[("app", b"a")])).unwrap();
    let tagged = store.tag("app", "quay.io/other/name:v2", &|_| {}).unwrap();
    assert_eq!(tagged.source, Source::Tag);
    assert_eq!(
        names(&store),
        ["docker.io/library/app:latest", "quay.io/other/name:v2"]
    );
    let before = files(&store);
    assert_eq!(
        store.remove("app", false).unwrap(),
        ["docker.io/library/app:latest"]
    );
    assert_eq!(files(&store), before);
    store.remove("quay.io/other/name:v2", false).unwrap();
    assert_eq!(files(&store), [""; 0]);
    let error = store.remove("app", true).unwrap_err();
    assert!(matches!(error, Error::NotFound(_)));
}

#[test]
fn what_a_vm_uses_stays() {
    let (dir, store) = store();
    let imported = import(&store, archive(dir.path(), &[("app", b"a")])).unwrap();
    let root = store.root(&imported[0].info).unwrap();
    assert!(matches!(store.remove("app", false), Err(Error::InUse(_))));
    assert_eq!(names(&store).len(), 1);
    store.remove("app", true).unwrap();
    assert_eq!(names(&store).len(), 0);
    assert!(root.path().exists());
    let collected = store.gc(&Gc::all()).unwrap();
    assert_eq!((collected.files.len(), collected.in_use), (0, 1));
    // Imported again while it is in use: the same root.
    let again = import(&store, archive(dir.path(), &[("app", b"a")])).unwrap();
    assert_eq!(again[0].info.root, imported[0].info.root);
    store.remove("app", true).unwrap();
    drop(root);
    assert_eq!(store.gc(&Gc::all()).unwrap().files.len(), 1);
    assert_eq!(files(&store), [""; 0]);
}

#[test]
fn gc_removes_what_killed_processes_left_and_nothing_that_lives() {
    let (dir, store) = store();
    import(&store, archive(dir.path(), &[("app", b"a")])).unwrap();
    let good = files(&store);
    for name in ["blobs/sha256/0123", "roots/4567-1.erofs", "work/89ab"] {
        fs::write(store.path().join(name), "left").unwrap();
    }
    fs::write(store.path().join("index.json.new"), "{").unwrap();
    let busy = Work::take(&store.path().join("work/busy"), &mut || {}).unwrap();
    let dry = store.gc(&Gc::all().with_dry_run(true)).unwrap();
    assert_eq!((dry.files.len(), dry.in_use), (4, 1));
    let collected = store.gc(&Gc::all()).unwrap();
    assert_eq!(collected, dry);
    drop(busy);
    assert_eq!(files(&store), good);
    assert!(!store.path().join("index.json.new").exists());
    store.get("app").unwrap();
}

#[test]
fn a_list_that_is_damaged_is_told_and_nothing_is_removed() {
    let (dir, store) = store();
    import(&store, archive(dir.path(), &[("app", b"a")])).unwrap();
    let before = files(&store);
    let index = store.path().join("index.json");
    let sound = fs::read_to_string(&index).unwrap();
    let odd_root = sound.replace(".erofs", "/../../x");
    let later = sound.replace("\"version\": 1", "\"version\": 99");
    for bad in [
        "",
        "{",
        "null",
        &sound[..sound.len() / 2],
        &odd_root,
        &later,
    ] {
        fs::write(&index, bad).unwrap();
        for error in [
            store.list().unwrap_err(),
            store.get("app").unwrap_err(),
            store.gc(&Gc::all()).unwrap_err(),
            store.remove("app", true).unwrap_err(),
        ] {
            let text = error.to_string();
            assert!(
                text.contains("index.json") && text.contains("remove it"),
                "{text}"
            );
            assert!(!text.contains('\n'), "{text}");
        }
        assert_eq!(files(&store), before);
    }
}

#[test]
fn a_blob_that_is_damaged_is_told() {
    let (dir, store) = store();
    let imported = import(&store, archive(dir.path(), &[("app", b"a")])).unwrap();
    let path = store.blob(&imported[0].info.id);
    fs::write(&path, "{}").unwrap();
    let error = store.get("app").unwrap_err();
    assert!(matches!(error, Error::CorruptBlob { .. }), "{error}");
    fs::remove_file(&path).unwrap();
    assert!(matches!(store.get("app"), Err(Error::Missing { .. })));
}

#[test]
fn an_import_that_fails_leaves_nothing() {
    let (dir, store) = store();
    let tar = layer(b"a");
    let broken = &tar[..tar.len() - 1600];
    let layers = [broken.to_vec()];
    let files_of = oci_layout(&[("app", &layers, "{}")]);
    let add = |tar: TarBuilder, (name, bytes): (&String, &Vec<u8>)| tar.file(name, bytes);
    let path = dir.path().join("broken.tar");
    fs::write(&path, files_of.iter().fold(TarBuilder::new(), add).finish()).unwrap();
    let error = import(&store, Input::Path(path)).unwrap_err();
    assert!(matches!(error, Error::Convert { .. }), "{error}");
    assert_eq!((names(&store).len(), files(&store)), (0, Vec::new()));
}

#[test]
fn several_images_and_one_name() {
    let (dir, store) = store();
    let images = [("one", &b"a"[..]), ("two", b"b")];
    let with = |name: &str| {
        let options = ImportOptions {
            name: Some(name.to_owned()),
            ..ImportOptions::default()
        };
        store.import(archive(dir.path(), &images), &options, &|_| {})
    };
    assert_eq!(with("two").unwrap().len(), 1);
    assert_eq!(names(&store), ["docker.io/library/two:latest"]);
    let text = with("three").unwrap_err().to_string();
    assert!(
        text.contains("one:latest") && text.contains("two:latest"),
        "{text}"
    );
}

#[test]
fn root_file_systems_get_the_name_that_is_given() {
    let (dir, store) = store();
    let tar = dir.path().join("root.tar");
    fs::write(&tar, layer(b"a")).unwrap();
    let root = dir.path().join("root");
    fs::create_dir_all(root.join("etc")).unwrap();
    for place in [tar, root] {
        let error = import(&store, Input::Path(place.clone())).unwrap_err();
        assert!(matches!(error, Error::Nameless(_)), "{error}");
        let options = ImportOptions {
            name: Some("mine".to_owned()),
            ..ImportOptions::default()
        };
        let imported = store.import(Input::Path(place), &options, &|_| {}).unwrap();
        assert_eq!(imported[0].info.platform, "linux/amd64");
        store.root(&imported[0].info).unwrap();
        assert_eq!(store.get("mine").unwrap(), imported[0]);
    }
}

#[test]
fn of_many_imports_at_once_one_makes_the_root() {
    let (dir, store) = store();
    let archive = match archive(dir.path(), &[("app", b"a")]) {
        Input::Path(path) => path,
        other => panic!("{other:?}"),
    };
    let made = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let first = AtomicUsize::new(0);
                let count = |event| {
                    if matches!(event, Event::Converting { .. })
                        && first.fetch_add(1, Ordering::Relaxed) == 0
                    {
                        made.fetch_add(1, Ordering::Relaxed);
                    }
                };
                let options = ImportOptions::default();
                let input = Input::Path(archive.clone());
                store.import(input, &options, &count).unwrap();
            });
        }
    });
    assert_eq!(made.load(Ordering::Relaxed), 1);
    assert_eq!(names(&store).len(), 1);
    assert_eq!(store.gc(&Gc::all()).unwrap().files.len(), 0);
}

#[test]
fn who_waits_for_a_root_is_told_and_gets_it() {
    let (dir, store) = store();
    let input = archive(dir.path(), &[("app", b"a")]);
    let root = roots::name(&[digest_of(&layer(b"a"))]);
    let busy = Work::take(&store.path().join("work").join(root), &mut || {}).unwrap();
    let (tell, told) = mpsc::channel();
    let waiter = store.clone();
    let thread = std::thread::spawn(move || {
        let options = ImportOptions::default();
        waiter.import(input, &options, &|event| {
            if matches!(event, Event::Waiting { .. }) {
                tell.send(()).unwrap();
            }
        })
    });
    told.recv().unwrap();
    drop(busy);
    thread.join().unwrap().unwrap();
    store.get("app").unwrap();
}

#[test]
fn work_that_is_cancelled_leaves_nothing() {
    let (dir, store) = store();
    let cancel = Cancel::default();
    cancel.cancel();
    let options = ImportOptions {
        conversion: Conversion {
            cancel,
            ..Conversion::default()
        },
        ..ImportOptions::default()
    };
    let input = archive(dir.path(), &[("app", b"a")]);
    let error = store.import(input, &options, &|_| {}).unwrap_err();
    assert!(matches!(error, Error::Cancelled), "{error}");
    assert_eq!((names(&store).len(), files(&store)), (0, Vec::new()));
}

/// The files of a user's own archive are not the store's: who writes them while
/// they are imported changes no root image that others will trust.
#[test]
fn an_archive_that_is_changed_while_it_is_imported_gives_what_was_verified() {
    let (dir, trusting) = store();
    let contents = [b'g'; 100_000];
    let good = import(&trusting, archive(dir.path(), &[("app", &contents)])).unwrap();
    let good = fs::read(trusting.root_path(&good[0].info)).unwrap();
    let (_kept, store) = self::store();
    let input = archive(dir.path(), &[("app", &contents)]);
    let path = dir.path().join("archive.tar");
    let bytes = fs::read(&path).unwrap();
    let evil: Vec<u8> = bytes
        .iter()
        .map(|byte| if *byte == b'g' { b'e' } else { *byte })
        .collect();
    let changed = AtomicUsize::new(0);
    let change = |event| {
        // The first half is reading, the second is writing the image.
        if matches!(event, Event::Converting { done, total } if done >= total / 2) {
            fs::write(&path, &evil).unwrap();
            changed.fetch_add(1, Ordering::Relaxed);
        }
    };
    let options = ImportOptions::default();
    let imported = store.import(input, &options, &change).unwrap();
    assert!(changed.load(Ordering::Relaxed) > 0);
    let root = fs::read(store.root_path(&imported[0].info)).unwrap();
    assert!(root == good, "the image has bytes that were not verified");
}
