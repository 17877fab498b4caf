//! Mirrors, proxies, platforms and layers at once.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};

use flashpan_rootfs::registry::{Download, Error, Notice, Proxies};

use crate::image::{Image, MANIFEST, index, noise, serve_blob};
use crate::server::{Reply, Server};
use crate::{client, content, fetch, file_with, line, name, options, with_notices};

#[tokio::test]
async fn mirrors_are_asked_in_order_and_then_the_registry() {
    let image = Image::new(vec![noise(300_000, 1)]);
    let served = image.clone();
    let upstream = Server::start(move |request, reply| served.serve(request, reply));
    // One that has nothing, one that breaks off, and one that lies.
    let empty = Server::start(|_, reply| reply.send(404, &[], b""));
    let broken = {
        let image = image.clone();
        Server::start(
            move |request, reply| match request.path.contains("/blobs/") {
                true => {
                    reply.head(200, &[("content-length", "300000")]);
                    reply.raw(&image.layers[0][..1000]);
                }
                false => reply.send(403, &[], b""),
            },
        )
    };
    let liar = Server::start(|_, reply| reply.send(200, &[("content-type", MANIFEST)], b"{}"));
    let all = [&upstream, &empty, &broken, &liar].map(Server::name);
    let all: Vec<_> = all.iter().map(String::as_str).collect();
    let (mut options, notices) = with_notices(options(&all));
    let mirrors = vec![
        format!("{}/cache/hub", empty.name()),
        broken.name(),
        liar.name(),
    ];
    options.mirrors = [(upstream.name(), mirrors)].into();
    let client = client(options);

    let reference = name(&format!("{}/app:1", upstream.name()));
    let resolved = client.resolve(&reference).await.unwrap();
    assert_eq!(resolved.manifest_digest, image.digest());
    assert_eq!(resolved.reference, reference);
    assert_eq!(empty.seen()[0].path, "/v2/cache/hub/app/manifests/1");
    let told: Vec<_> = notices.lock().unwrap().drain(..).collect();
    let mirrors: Vec<_> = told
        .iter()
        .filter_map(|it| match it {
            Notice::Mirror { mirror, .. } => Some(mirror.clone()),
            _ => None,
        })
        .collect();
    assert_eq!(
        mirrors,
        [empty.name(), broken.name(), liar.name()],
        "{told:?}"
    );

    // What a mirror began well, the registry ends.
    let mut file = file_with(b"");
    let blob = image.layer(0);
    fetch(&client, &reference.to_string(), &blob, &mut file)
        .await
        .unwrap();
    assert_eq!(content(&mut file), image.layers[0]);
    assert!(!broken.seen_for("/blobs/").is_empty());
    assert_eq!(upstream.seen_for("/blobs/").len(), 1);
}

#[tokio::test]
async fn a_mirror_that_has_the_image_is_enough() {
    let image = Image::new(vec![noise(1000, 1)]);
    let served = image.clone();
    let mirror = Server::start(move |request, reply| served.serve(request, reply));
    let mut options = options(&[&mirror.name()]);
    // The registry itself cannot be reached: its name means nothing.
    options.mirrors = [("reg.invalid".to_owned(), vec![mirror.name()])].into();
    let client = client(options);
    let resolved = client.resolve(&name("reg.invalid/app")).await.unwrap();
    client.fetch_config(&resolved).await.unwrap();
    let mut file = file_with(b"");
    fetch(&client, "reg.invalid/app", &resolved.layers()[0], &mut file)
        .await
        .unwrap();
    assert_eq!(content(&mut file), image.layers[0]);
}

#[tokio::test]
async fn proxies_are_used_and_their_passwords_not_shown() {
    let image = Image::new(vec![]);
    let served = image.clone();
    let proxy = Server::start(move |request, reply| match request.method.as_str() {
        "CONNECT" => reply.send(403, &[], b""),
        _ => served.serve(request, reply),
    });
    let url = Some(format!("http://me:hunter2@{}", proxy.name()));
    let mut options = options(&["plain.invalid:5000", "direct.invalid"]);
    options.proxies = Proxies {
        http: url.clone(),
        https: url,
        none: Some("direct.invalid".to_owned()),
        ..Proxies::default()
    };
    options.retry.attempts = 1;
    let client = client(options);

    // The proxy resolves the name: nobody else could.
    client
        .resolve(&name("plain.invalid:5000/app"))
        .await
        .unwrap();
    let asked = &proxy.seen()[0];
    assert_eq!(
        asked.path,
        "http://plain.invalid:5000/v2/app/manifests/latest"
    );
    let authorization = asked.header("proxy-authorization");
    assert_eq!(authorization, Some("Basic bWU6aHVudGVyMg=="));

    let error = client
        .resolve(&name("secret.invalid/app"))
        .await
        .unwrap_err();
    assert_eq!(proxy.seen()[1].path, "secret.invalid:443");
    assert!(matches!(error, Error::Connect { .. }), "{error}");
    let text = line(&error);
    assert!(
        text.contains(&format!(
            "through the proxy http://{} (HTTPS_PROXY)",
            proxy.name()
        )),
        "{text}"
    );
    assert!(
        !format!("{text} {error:?} {client:?}").contains("hunter2"),
        "{text}"
    );

    let error = client
        .resolve(&name("direct.invalid/app"))
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Name { .. }), "{error}");
    assert_eq!(proxy.seen().len(), 2);
}

#[tokio::test]
async fn the_image_for_the_platform_is_taken() {
    let images = ["amd64", "arm64"].map(|it| Image::of(it, vec![noise(10, it.len() as u64)]));
    let [amd64, arm64] = &images;
    let top = index(&[
        (MANIFEST, &arm64.manifest, "linux", "arm64"),
        (MANIFEST, &amd64.manifest, "linux", "amd64"),
        (MANIFEST, b"{}", "unknown", "unknown"),
    ]);
    let (served, document) = (images.clone(), top.clone());
    let server = Server::start(move |request, reply| {
        if request.path.ends_with("/manifests/1") {
            return reply.send(200, &[], &document);
        }
        let named = |it: &&Image| {
            [it.digest(), it.config_digest()]
                .iter()
                .any(|digest| request.path.ends_with(digest.as_ref()))
        };
        match served.iter().find(named) {
            Some(image) => image.serve(request, reply),
            // By tag, the one for another processor alone.
            None => served[1].serve(request, reply),
        }
    });
    let reference = name(&format!("{}/app:1", server.name()));
    for (platform, image) in [("linux/amd64", amd64), ("linux/arm64/v8", arm64)] {
        let mut options = options(&[&server.name()]);
        options.platform = platform.parse().unwrap();
        let client = client(options);
        let resolved = client.resolve(&reference).await.unwrap();
        assert_eq!(resolved.manifest_digest, image.digest());
        assert_eq!(
            resolved.index_digest,
            Some(flashpan_rootfs::registry::sha256(&top))
        );
        assert_eq!(resolved.manifest_bytes, image.manifest);
        let (bytes, config) = client.fetch_config(&resolved).await.unwrap();
        assert_eq!(bytes, image.config);
        assert!(platform.contains(&config.architecture().to_string()));
    }
    let mut other = options(&[&server.name()]);
    other.platform = "linux/s390x".parse().unwrap();
    let error = client(other).resolve(&reference).await.unwrap_err();
    assert!(
        line(&error).contains("nothing for linux/s390x; it has linux/amd64, linux/arm64"),
        "{error}"
    );
    // Without an index it shows in the configuration only.
    let client = client(options(&[&server.name()]));
    let resolved = client
        .resolve(&name(&format!("{}/app:2", server.name())))
        .await
        .unwrap();
    let error = client.fetch_config(&resolved).await.unwrap_err();
    assert!(
        line(&error).contains("nothing for linux/amd64; it has linux/arm64"),
        "{error}"
    );
}

#[tokio::test]
async fn layers_are_fetched_at_once_but_not_more_than_wanted() {
    let image = Image::new((1..7).map(|seed| noise(1000, seed)).collect());
    let (served, active) = (image.clone(), Arc::new(AtomicUsize::new(0)));
    let most = Arc::new(AtomicUsize::new(0));
    let (now, record, pair) = (active.clone(), most.clone(), Barrier::new(2));
    let server = Server::start(move |request, reply| {
        let at_once = now.fetch_add(1, Ordering::SeqCst) + 1;
        record.fetch_max(at_once, Ordering::SeqCst);
        // Nobody gets an answer before there are two to get one.
        pair.wait();
        now.fetch_sub(1, Ordering::SeqCst);
        served.serve(request, reply);
    });
    let client = client(options(&[&server.name()]));
    let blobs: Vec<_> = (0..6).map(|number| image.layer(number)).collect();
    let mut files: Vec<_> = blobs.iter().map(|_| file_with(b"")).collect();
    let downloads = blobs
        .iter()
        .zip(&mut files)
        .map(|(blob, file)| Download { blob, file });
    let reference = name(&format!("{}/app", server.name()));
    let downloads = downloads.collect();
    client
        .fetch_all(&reference, downloads, 2, &|_| {})
        .await
        .unwrap();
    assert_eq!(most.load(Ordering::SeqCst), 2);
    for (file, layer) in files.iter_mut().zip(&image.layers) {
        assert_eq!(content(file), *layer);
    }
}

#[tokio::test]
async fn layers_that_registries_do_not_have_are_explained() {
    let layer = noise(1000, 1);
    let has: fn(&[u8], &mut Reply) = |layer, reply| reply.send(200, &[], layer);
    let has_not: fn(&[u8], &mut Reply) = |_, reply| reply.send(404, &[], b"");
    for (answer, there) in [(has, true), (has_not, false)] {
        let content = layer.clone();
        let server = Server::start(move |_, reply| answer(&content, reply));
        let media_type = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
        let mut blob = crate::image::descriptor(media_type, &layer);
        // An address in a manifest is no place to go to.
        blob.set_urls(Some(vec!["http://evil.invalid/layer".to_owned()]));
        let client = client(options(&[&server.name()]));
        let image = format!("{}/app", server.name());
        match fetch(&client, &image, &blob, &mut file_with(b"")).await {
            Ok(()) => assert!(there),
            Err(error) => {
                assert!(!there && matches!(error, Error::Foreign { .. }), "{error}");
                line(&error);
            }
        }
        assert_eq!(server.seen().len(), 1);
    }
}

#[tokio::test]
async fn futures_can_go_to_other_threads() {
    let image = Image::new(vec![noise(1000, 1)]);
    let layer = image.layers[0].clone();
    let server = Server::start(move |request, reply| serve_blob(&layer, request, reply));
    let client = client(options(&[&server.name()]));
    let (reference, blob) = (format!("{}/app", server.name()), image.layer(0));
    let task = tokio::spawn(async move {
        let mut file = file_with(b"");
        fetch(&client, &reference, &blob, &mut file).await.unwrap();
        let mut other = file_with(b"");
        let downloads = vec![Download {
            blob: &blob,
            file: &mut other,
        }];
        client
            .fetch_all(&name(&reference), downloads, 3, &|_| {})
            .await
            .unwrap();
        (content(&mut file), content(&mut other))
    });
    let (one, other) = task.await.unwrap();
    assert_eq!(one, image.layers[0]);
    assert_eq!(other, image.layers[0]);
}
