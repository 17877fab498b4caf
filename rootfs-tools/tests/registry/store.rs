//! What the store takes from registries.

use std::sync::Arc;

use flashpan_rootfs::cache::Cache;
use flashpan_rootfs::layers;
use flashpan_rootfs::registry::sha256;
use flashpan_rootfs::store::{Error, PullOptions, Store};

use crate::image::{Image, noise};
use crate::server::Server;
use crate::{client, name, options};

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
