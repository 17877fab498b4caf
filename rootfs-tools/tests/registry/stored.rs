//! Images in the store as pulls bring and mend them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, mpsc};

use flashpan_rootfs::cache::Cache;
use flashpan_rootfs::oci::image::Digest;
use flashpan_rootfs::registry::Client;
use flashpan_rootfs::store::{Error, Event, Listener, PullOptions, Pulled, Store};

use crate::image::Image;
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
