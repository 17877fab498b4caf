//! Imports of archives that promise more than they bring, or bring too much.

use super::*;

/// A `docker save` archive of one image, as it says itself: its layers may be others.
fn docker(dir: &Path, names: &[String], diff_ids: &[String], layers: &[Vec<u8>]) -> Input {
    let files: Vec<String> = (0..layers.len())
        .map(|n| format!("{n}/layer.tar"))
        .collect();
    let list = format!(r#"[{{"Config": "c.json", "RepoTags": {names:?}, "Layers": {files:?}}}]"#);
    let config = crate::testing::image_config(diff_ids, "{}");
    let mut tar = TarBuilder::new()
        .file("manifest.json", list.as_bytes())
        .file("c.json", config.as_bytes());
    for (name, layer) in files.iter().zip(layers) {
        tar = tar.file(name, layer);
    }
    let path = dir.join("docker.tar");
    fs::write(&path, tar.finish()).unwrap();
    Input::Path(path)
}

/// A configuration can name any layers; only who brings them gets what was made
/// of them.
#[test]
fn a_root_is_only_for_images_that_bring_its_layers() {
    let (dir, store) = store();
    let (lower, upper) = (layer(b"private"), layer(b"too"));
    let ids = [digest_of(&lower), digest_of(&upper)];
    let name = |name: &str| [name.to_owned()];
    let layers = [lower, upper];
    let owner = import(&store, docker(dir.path(), &name("owner"), &ids, &layers)).unwrap();
    // The chain of both is a digest like any other.
    let chain = owner[0].info.root.split('-').next().unwrap();
    let chain = [format!("sha256:{chain}")];
    let other = [layer(b"other"), layer(b"too")];
    for (ids, layers) in [
        (&ids[..], &other[..]),
        (&ids, &[b"no tar".to_vec(), Vec::new()]),
        (&chain, &other[..1]),
    ] {
        let input = docker(dir.path(), &name("thief"), ids, layers);
        let error = import(&store, input).unwrap_err();
        assert!(matches!(error, Error::Convert { .. }), "{error}");
        assert!(error.to_string().contains("diff_id sha256:"), "{error}");
    }
    assert_eq!(names(&store), ["docker.io/library/owner:latest"]);
    // Who has them shares it, packed as they may be.
    let packed = layers.map(|layer| {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&layer).unwrap();
        gzip.finish().unwrap()
    });
    let shared = import(&store, docker(dir.path(), &name("friend"), &ids, &packed)).unwrap();
    assert_eq!(shared[0].info.root, owner[0].info.root);
}

#[test]
fn the_list_is_written_once_for_all_names_of_an_archive() {
    let (dir, store) = store();
    let names: Vec<String> = (0..3000).map(|n| format!("app:{n}")).collect();
    let layers = [layer(b"a")];
    let input = docker(dir.path(), &names, &[digest_of(&layers[0])], &layers);
    let imported = import(&store, input).unwrap();
    assert_eq!((imported.len(), store.list().unwrap().len()), (3000, 3000));
    assert_eq!(store.index.writes.load(Ordering::Relaxed), 1);
    let images = [("one", &b"a"[..]), ("two", b"b"), ("three", b"c")];
    import(&store, archive(dir.path(), &images)).unwrap();
    assert_eq!(store.index.writes.load(Ordering::Relaxed), 2);
}

#[test]
fn images_before_a_damaged_one_stay() {
    let (dir, store) = store();
    let whole = layer(b"a");
    let cut = layer(b"b")[..960].to_vec();
    let images = [("one", &[whole][..], "{}"), ("two", &[cut], "{}")];
    let files_of = oci_layout(&images);
    let add = |tar: TarBuilder, (name, bytes): (&String, &Vec<u8>)| tar.file(name, bytes);
    let path = dir.path().join("some.tar");
    fs::write(&path, files_of.iter().fold(TarBuilder::new(), add).finish()).unwrap();
    let error = import(&store, Input::Path(path)).unwrap_err();
    assert!(matches!(error, Error::Convert { .. }), "{error}");
    assert_eq!(names(&store), ["docker.io/library/one:latest"]);
    let one = store.get("one").unwrap();
    store.root(&one.info).unwrap();
}

#[test]
fn layers_that_are_too_large_as_they_are_packed_are_not_even_read() {
    let (dir, store) = store();
    let layers = [layer(b"a"), layer(b"b")];
    let ids = layers.each_ref().map(|layer| digest_of(layer));
    let mut options = ImportOptions::default();
    options.conversion.limits.total = 5000;
    let input = docker(dir.path(), &["app".to_owned()], &ids, &layers);
    let error = store.import(input, &options, &|_| {}).unwrap_err();
    let Error::Convert { source, .. } = &error else {
        panic!("{error}")
    };
    let packed = layers::Error::Packed {
        size: 5120,
        limit: 5000,
    };
    assert_eq!(source.to_string(), packed.to_string());
    let text = error.to_string();
    assert!(text.contains("5120") && text.contains("5000"), "{text}");
}

/// Wherever an import is when it is cancelled.
#[test]
fn an_import_is_cancelled_while_its_archive_is_unpacked() {
    let (dir, store) = store();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&layer(&vec![1; 4 << 20])).unwrap();
    let path = dir.path().join("root.tar.gz");
    fs::write(&path, gzip.finish().unwrap()).unwrap();
    let options = ImportOptions {
        name: Some("app".to_owned()),
        ..ImportOptions::default()
    };
    let steps = AtomicUsize::new(0);
    let stop = |event| {
        if matches!(event, Event::Unpacking(_)) {
            steps.fetch_add(1, Ordering::Relaxed);
            options.conversion.cancel.cancel();
        }
    };
    let error = store
        .import(Input::Path(path), &options, &stop)
        .unwrap_err();
    assert!(matches!(error, Error::Cancelled), "{error}");
    assert_eq!(steps.load(Ordering::Relaxed), 1);
    assert_eq!((names(&store).len(), files(&store)), (0, Vec::new()));
}

#[test]
fn layers_that_no_disk_can_hold_unpacked_are_not_begun() {
    let (_dir, store) = store();
    let mut file = tempfile::tempfile_in(store.path()).unwrap();
    file.write_all(b"\x1f\x8b\x08\x00").unwrap();
    let free = crate::room::free(store.path()).unwrap();
    file.set_len(free + (1 << 36)).unwrap();
    let piece = archive::Piece::whole(file).unwrap();
    let layers = [roots::Packed::blob("layer".to_owned(), piece)];
    let ids = [digest_of(b"")];
    let out = tempfile::tempfile().unwrap();
    let conversion = Conversion::default();
    let error = store
        .convert("app", &layers, &ids, &conversion, &out, &|_| {})
        .unwrap_err();
    assert!(matches!(error, Error::NoRoom { .. }), "{error}");
}
