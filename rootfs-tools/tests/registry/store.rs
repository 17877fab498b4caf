//! Images in the store as pulls bring and mend them.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, mpsc};

use flashpan_rootfs::cache::Cache;
use flashpan_rootfs::layers;
use flashpan_rootfs::oci::image::Digest;
use flashpan_rootfs::registry::{Client, sha256};
use flashpan_rootfs::store::{Error, Event, Listener, PullOptions, Pulled, Store};

use crate::image::{Image, noise};
use crate::server::Server;
use crate::{client, name, options};

/// An image of two layers that can be converted.
fn image() -> Image {
    let layer = |file: &str| {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(file), vec![b'x'; 100_000]).unwrap();
        let tar = Command::new("tar")
            .args(["--create", "--directory"])
            .args([dir.path(), Path::new(file)])
            .output()
            .unwrap();
        assert!(tar.status.success());
        tar.stdout
    };
    Image::convertible(vec![layer("one"), layer("two")])
}

async fn pull(store: &Store, client: &Client, image: &str) -> Result<Pulled, Error> {
    let listener: Listener = Arc::new(|_| {});
    let options = PullOptions::default();
    store.pull(client, &name(image), &options, &listener).await
}

fn blob(store: &Store, digest: &Digest) -> PathBuf {
    store.path().join("blobs/sha256").join(digest.digest())
}

/// How often the blob of that digest was asked for.
fn asked(server: &Server, digest: &Digest) -> usize {
    let seen = server.seen();
    let asked = seen.iter().filter(|it| it.path.ends_with(digest.as_ref()));
    asked.count()
}

#[tokio::test]
async fn what_was_damaged_is_fetched_again_by_the_next_pull() {
    let image = image();
    let served = image.clone();
    let server = Server::start(move |request, reply| served.serve(request, reply));
    let name = format!("{}/app:1", server.name());
    let client = client(options(&[&server.name()]));
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&Cache::at(dir.path())).unwrap();
    assert!(pull(&store, &client, &name).await.unwrap().changed);
    assert!(!pull(&store, &client, &name).await.unwrap().changed);

    for digest in [image.config_digest(), image.digest()] {
        let path = blob(&store, &digest);
        let sound = fs::read(&path).unwrap();
        // Of the same size, and of another.
        for damaged in [vec![b' '; sound.len()], Vec::new()] {
            fs::write(&path, damaged).unwrap();
            assert!(pull(&store, &client, &name).await.unwrap().changed);
            assert_eq!(fs::read(&path).unwrap(), sound);
        }
    }
    // A layer is needed again only when its root image is gone.
    let layer = image.layer(1).digest().clone();
    let info = store.get(&name).unwrap().info;
    fs::write(blob(&store, &layer), vec![b' '; image.layers[1].len()]).unwrap();
    fs::remove_file(store.root_path(&info)).unwrap();
    assert!(pull(&store, &client, &name).await.unwrap().changed);
    assert_eq!(fs::read(blob(&store, &layer)).unwrap(), image.layers[1]);
    assert_eq!(asked(&server, image.layer(0).digest()), 1);
}

#[tokio::test]
async fn what_was_fetched_before_a_registry_broke_off_is_kept() {
    let image = image();
    let (served, breaking) = (image.clone(), image.layer(1).digest().to_string());
    let (tell, there) = mpsc::channel();
    let there = Mutex::new(there);
    let server = Server::start(move |request, reply| {
        if request.path.ends_with(&breaking) && request.before == 0 {
            let layer = &served.layers[1];
            reply.head(200, &[("content-length", &layer.len().to_string())]);
            reply.raw(&layer[..512]);
            // Not before the other layer is in the store.
            there.lock().unwrap().recv().unwrap();
        } else {
            served.serve(request, reply);
        }
    });
    let name = format!("{}/app:1", server.name());
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&Cache::at(dir.path())).unwrap();
    let mut options = options(&[&server.name()]);
    options.retry.attempts = 1;
    let client = client(options);
    let listener: Listener = Arc::new(move |event| {
        if matches!(event, Event::Downloaded { .. }) {
            // The second time nobody waits for it.
            let _ = tell.send(());
        }
    });
    let pull = async || {
        let options = PullOptions::default();
        let reference = crate::name(&name);
        store.pull(&client, &reference, &options, &listener).await
    };
    let error = pull().await.unwrap_err();
    assert!(error.to_string().contains("broke in the middle"), "{error}");
    assert!(pull().await.unwrap().changed);
    assert_eq!(asked(&server, image.layer(0).digest()), 1);
    assert_eq!(asked(&server, image.layer(1).digest()), 2);
}

/// Its programs would run on files that its maker may not see.
#[tokio::test]
async fn an_image_that_claims_the_contents_of_another_has_to_bring_them() {
    let theirs = image();
    let config = String::from_utf8(theirs.config.clone()).unwrap();
    let thief = Image::new(vec![noise(2000, 1), noise(2000, 2)]).with_config(&config);
    // The same contents in other blobs: gzip of them.
    let packed = theirs.layers.iter().map(|layer| gzip(layer)).collect();
    let owner = Image::new(packed).with_config(&config);
    let served = [theirs, thief, owner];
    let server = Server::start(move |request, reply| {
        let names = ["theirs", "thief", "owner"];
        let asked = |name: &&str| request.path.contains(*name);
        let number = names.iter().position(asked).unwrap();
        served[number].serve(request, reply);
    });
    let client = client(options(&[&server.name()]));
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&Cache::at(dir.path())).unwrap();
    let name = |image: &str| format!("{}/{image}:1", server.name());
    let first = pull(&store, &client, &name("theirs")).await.unwrap();
    let error = pull(&store, &client, &name("thief")).await.unwrap_err();
    assert!(matches!(error, Error::Convert { .. }), "{error}");
    assert!(store.get(&name("thief")).is_err());
    // Who has them shares the root image.
    let owner = pull(&store, &client, &name("owner")).await.unwrap();
    assert_eq!(owner.image.info.root, first.image.info.root);
}

#[tokio::test]
async fn what_no_disk_can_hold_is_not_downloaded() {
    let image = image();
    // As large as a layer may be said to be, and more than this disk has.
    let manifest = String::from_utf8(image.manifest.clone()).unwrap();
    let size = format!("\"size\":{}", image.layers[1].len());
    let manifest = manifest.replace(&size, "\"size\":60000000000000");
    let served = Image {
        manifest: manifest.into_bytes(),
        ..image
    };
    let server = Server::start(move |request, reply| served.serve(request, reply));
    let mut options = options(&[&server.name()]);
    options.limits.blob = u64::MAX;
    let client = client(options);
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&Cache::at(dir.path())).unwrap();
    let mut options = PullOptions::default();
    options.conversion.limits.total = u64::MAX;
    let name = name(&format!("{}/app:1", server.name()));
    let error = store
        .pull(&client, &name, &options, &(Arc::new(|_| {}) as _))
        .await
        .unwrap_err();
    assert!(matches!(error, Error::NoRoom { .. }), "{error}");
    assert_eq!(server.seen_for("/blobs/").len(), 1, "the configuration");
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test]
async fn layers_that_are_too_large_together_are_not_downloaded() {
    let mut image = Image::new(vec![noise(3000, 1), noise(2001, 2)]);
    let ids: Vec<_> = image.layers.iter().map(|layer| sha256(layer)).collect();
    let config = String::from_utf8(image.config.clone()).unwrap();
    let ids = format!(r#""diff_ids":["{}","{}"]"#, ids[0], ids[1]);
    image = image.with_config(&config.replace(r#""diff_ids":[]"#, &ids));
    let served = image.clone();
    let server = Server::start(move |request, reply| served.serve(request, reply));
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&Cache::at(directory.path())).unwrap();
    let mut pull = PullOptions::default();
    pull.conversion.limits.total = 5000;
    let reference = name(&format!("{}/app", server.name()));
    let client = client(options(&[&server.name()]));
    let error = store
        .pull(&client, &reference, &pull, &(Arc::new(|_| {}) as _))
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            Error::Convert {
                source: layers::Error::Packed {
                    size: 5001,
                    limit: 5000
                },
                ..
            }
        ),
        "{error}"
    );
    // The configuration and nothing else.
    assert_eq!(server.seen_for("/blobs/").len(), 1);
}
