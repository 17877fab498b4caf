//! Servers that break off, lie, hang and go on and on.

use std::sync::Arc;
use std::time::Duration;

use flashpan_rootfs::oci::image::Digest;
use flashpan_rootfs::registry::{Client, Error, Notice, Options, Progress, Retry, sha256};
use tokio::sync::Notify;

use crate::image::{INDEX, Image, MANIFEST, descriptor, index, json, noise, serve_blob};
use crate::server::{Reply, Request, Server};
use crate::{client, content, fetch, file_with, impatient, line, name, options, with_notices};

const SIZE: usize = 300_000;

/// A server of an image with one layer, which it serves in a way of its own.
fn server(
    handler: impl Fn(&Image, &Request, &mut Reply) + Send + Sync + 'static,
) -> (Server, Image, Client, String) {
    let image = Image::new(vec![noise(SIZE, 1)]);
    let shared = image.clone();
    let server = Server::start(move |request, reply| {
        if request.path.contains(sha256(&shared.layers[0]).as_ref()) {
            handler(&shared, request, reply);
        } else {
            shared.serve(request, reply);
        }
    });
    let client = client(options(&[&server.name()]));
    let name = format!("{}/app", server.name());
    (server, image, client, name)
}

/// What was asked for, as first bytes.
fn ranges(server: &Server) -> Vec<Option<usize>> {
    server
        .seen_for("/blobs/")
        .iter()
        .map(Request::from)
        .collect()
}

#[tokio::test]
async fn a_download_that_breaks_off_is_taken_up_where_it_was() {
    let (server, image, client, name) = server(|image, request, reply| {
        let layer = &image.layers[0];
        match request.before {
            0 => {
                reply.head(200, &[("content-length", &layer.len().to_string())]);
                reply.raw(&layer[..100_000]);
            }
            _ => serve_blob(layer, request, reply),
        }
    });
    let mut file = file_with(b"");
    fetch(&client, &name, &image.layer(0), &mut file)
        .await
        .unwrap();
    assert_eq!(content(&mut file), image.layers[0]);
    let ranges = ranges(&server);
    assert_eq!(ranges.len(), 2);
    // All that came, unless the end of the connection overtook it.
    assert!(
        ranges[1].unwrap() > 0 && ranges[1].unwrap() <= 100_000,
        "{ranges:?}"
    );
}

#[tokio::test]
async fn only_what_a_file_does_not_hold_is_asked_for() {
    let (server, image, client, name) = server(|image, request, reply| {
        serve_blob(&image.layers[0], request, reply);
    });
    let layer = &image.layers[0];
    let mut file = file_with(&layer[..200_000]);
    let mut steps = Vec::new();
    let mut record = |it: Progress<'_>| steps.push((it.done, it.total));
    let (name, blob) = (self::name(&name), image.layer(0));
    client
        .fetch_blob(&name, &blob, &mut file, &mut record)
        .await
        .unwrap();
    assert_eq!(content(&mut file), *layer);
    assert_eq!(ranges(&server), [Some(200_000)]);
    assert_eq!(steps.first(), Some(&(200_000, SIZE as u64)));
    assert_eq!(steps.last(), Some(&(SIZE as u64, SIZE as u64)));
    assert!(steps.is_sorted(), "{steps:?}");
    // And nothing at all if it holds everything.
    client
        .fetch_blob(&name, &blob, &mut file, &mut |_| {})
        .await
        .unwrap();
    assert_eq!(ranges(&server).len(), 1);
}

#[tokio::test]
async fn servers_that_know_no_ranges_or_the_wrong_ones_start_anew() {
    let whole: fn(&[u8], &mut Reply) = |layer, reply| reply.send(200, &[], layer);
    let other: fn(&[u8], &mut Reply) =
        |layer, reply| reply.send(206, &[("content-range", "bytes 7-9/300000")], &layer[7..10]);
    let none: fn(&[u8], &mut Reply) = |_, reply| reply.send(416, &[], b"");
    for (answer, asked) in [
        (whole, &[Some(1000)][..]),
        (other, &[Some(1000), None]),
        (none, &[Some(1000), None]),
    ] {
        let (server, image, client, name) =
            server(move |image, request, reply| match request.from() {
                Some(_) => answer(&image.layers[0], reply),
                None => serve_blob(&image.layers[0], request, reply),
            });
        let mut file = file_with(&image.layers[0][..1000]);
        fetch(&client, &name, &image.layer(0), &mut file)
            .await
            .unwrap();
        assert_eq!(content(&mut file), image.layers[0]);
        assert_eq!(ranges(&server), asked);
    }
}

#[tokio::test]
async fn what_a_file_wrongly_holds_does_no_harm() {
    let (server, image, client, name) = server(|image, request, reply| {
        serve_blob(&image.layers[0], request, reply);
    });
    for (prefix, asked) in [
        (noise(1000, 2), &[Some(1000), None][..]),
        (noise(SIZE, 2), &[None]),
        (noise(SIZE + 1, 1), &[None]),
    ] {
        let before = ranges(&server).len();
        let mut file = file_with(&prefix);
        fetch(&client, &name, &image.layer(0), &mut file)
            .await
            .unwrap();
        assert_eq!(content(&mut file), image.layers[0]);
        assert_eq!(&ranges(&server)[before..], asked);
    }
}

#[tokio::test]
async fn content_with_another_digest_is_refused_at_once() {
    let (server, image, client, name) = server(|_, _, reply| reply.send(200, &[], &noise(SIZE, 3)));
    let mut file = file_with(b"");
    let error = fetch(&client, &name, &image.layer(0), &mut file)
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Digest { .. }), "{error}");
    let text = line(&error);
    assert!(text.contains(sha256(&noise(SIZE, 3)).as_ref()), "{text}");
    assert!(text.contains(image.layer(0).digest().as_ref()), "{text}");
    assert_eq!(content(&mut file), b"");
    assert_eq!(ranges(&server), [None]);
}

#[tokio::test]
async fn sha512_is_checked_as_well() {
    let layer = noise(SIZE, 1);
    let digest = |bytes: &[u8]| {
        let zeros: Digest = format!("sha512:{}", "0".repeat(128)).parse().unwrap();
        flashpan_rootfs::registry::Verifier::digest_like(&zeros, bytes).unwrap()
    };
    let served = layer.clone();
    let server = Server::start(move |_, reply| reply.send(200, &[], &served));
    let client = client(options(&[&server.name()]));
    let image = format!("{}/app", server.name());
    let mut blob = descriptor("x", &layer);
    blob.set_digest(digest(&layer).parse().unwrap());
    let mut file = file_with(b"");
    fetch(&client, &image, &blob, &mut file).await.unwrap();
    assert_eq!(content(&mut file), layer);
    blob.set_digest(digest(b"other").parse().unwrap());
    let error = fetch(&client, &image, &blob, &mut file_with(b""))
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Digest { .. }), "{error}");
}

#[tokio::test]
async fn no_byte_more_than_the_manifest_says_is_taken() {
    let announced: fn(&mut Reply) = |reply| reply.send(200, &[], &noise(SIZE + 1, 1));
    let endless: fn(&mut Reply) = |reply| {
        reply.chunks(&[], false);
        while reply.chunk(&noise(50_000, 1)) {}
    };
    for answer in [announced, endless] {
        let (server, image, client, name) = server(move |_, _, reply| answer(reply));
        let mut file = file_with(b"");
        let mut most = 0;
        let mut record = |it: Progress<'_>| most = most.max(it.done);
        let (name, blob) = (self::name(&name), image.layer(0));
        let fetched = client
            .fetch_blob(&name, &blob, &mut file, &mut record)
            .await;
        let error = fetched.unwrap_err();
        assert!(matches!(error, Error::Size { .. }), "{error}");
        line(&error);
        assert!(most <= SIZE as u64);
        assert_eq!(content(&mut file), b"");
        assert_eq!(ranges(&server), [None]);
    }
}

#[tokio::test]
async fn a_blob_that_is_always_too_short_fails_after_some_attempts() {
    let (server, image, client, name) = server(|image, request, reply| {
        let from = request.from().unwrap_or_default();
        let range = format!("bytes {from}-299999/300000");
        let status = if from > 0 { 206 } else { 200 };
        let headers = [("transfer-encoding", "chunked"), ("content-range", &range)];
        reply.head(status, &headers);
        // A good end of a body, too early.
        reply.chunk(&image.layers[0][from..from + 1000]);
        reply.raw(b"0\r\n\r\n");
    });
    let mut file = file_with(b"");
    let error = fetch(&client, &name, &image.layer(0), &mut file)
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            Error::Truncated {
                got: 3000,
                size: 300_000,
                ..
            }
        ),
        "{error}"
    );
    line(&error);
    assert_eq!(ranges(&server), [None, Some(1000), Some(2000)]);
    // What is there is good.
    assert_eq!(content(&mut file), &image.layers[0][..3000]);
}

#[tokio::test]
async fn a_blob_with_another_length_than_its_manifest_says_fails_at_once() {
    let (server, image, client, name) =
        server(|image, _, reply| reply.send(200, &[], &image.layers[0][..1000]));
    let error = fetch(&client, &name, &image.layer(0), &mut file_with(b""))
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            Error::Size {
                got: Some(1000),
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(ranges(&server), [None]);
}

#[tokio::test]
async fn dropping_a_download_leaves_a_beginning_that_can_be_used() {
    let (server, image, client, name) = server(|image, request, reply| {
        let layer = &image.layers[0];
        match request.before {
            0 => {
                reply.head(200, &[("content-length", &layer.len().to_string())]);
                reply.raw(&layer[..100_000]);
                reply.wait_for_hangup();
            }
            _ => serve_blob(layer, request, reply),
        }
    });
    let mut file = file_with(b"");
    let (name, blob) = (self::name(&name), image.layer(0));
    let half = Arc::new(Notify::new());
    let told = half.clone();
    let mut watch = move |it: Progress<'_>| {
        if it.done == 100_000 {
            told.notify_one();
        }
    };
    tokio::select! {
        done = client.fetch_blob(&name, &blob, &mut file, &mut watch) => panic!("{done:?}"),
        () = half.notified() => {}
    }
    assert_eq!(content(&mut file), &image.layers[0][..100_000]);
    client
        .fetch_blob(&name, &blob, &mut file, &mut |_| {})
        .await
        .unwrap();
    assert_eq!(content(&mut file), image.layers[0]);
    assert_eq!(ranges(&server), [None, Some(100_000)]);
}

#[tokio::test]
async fn servers_that_are_busy_are_asked_again() {
    for status in [408, 429, 500, 502, 503, 504] {
        let image = Image::new(vec![]);
        let served = image.clone();
        let server = Server::start(move |request, reply| match request.before {
            0 => reply.send(status, &[("retry-after", "0")], b"busy"),
            1 => reply.send(status, &[], b""),
            _ => served.serve(request, reply),
        });
        let (options, notices) = with_notices(options(&[&server.name()]));
        let reference = name(&format!("{}/app", server.name()));
        let resolved = client(options).resolve(&reference).await.unwrap();
        assert_eq!(resolved.manifest_digest, image.digest());
        assert_eq!(server.seen().len(), 3, "{status}");
        let notices = notices.lock().unwrap();
        assert_eq!(notices.len(), 2, "{notices:?}");
        assert!(
            matches!(
                &notices[0],
                Notice::Retry {
                    wait: Duration::ZERO,
                    made: 1,
                    most: 3,
                    ..
                }
            ),
            "{notices:?}"
        );
    }
}

#[tokio::test]
async fn servers_that_stay_busy_are_given_up() {
    for (status, after, requests) in [
        (503, "0", 3),
        (429, "0", 3),
        (429, "3600", 1),
        (503, "6", 1),
    ] {
        let server =
            Server::start(move |_, reply| reply.send(status, &[("retry-after", after)], b""));
        let client = client(options(&[&server.name()]));
        let error = client
            .resolve(&name(&format!("{}/app", server.name())))
            .await
            .unwrap_err();
        match status {
            429 => assert!(matches!(error, Error::RateLimited { .. }), "{error}"),
            _ => assert!(
                matches!(error, Error::Status { status: 503, .. }),
                "{error}"
            ),
        }
        line(&error);
        assert_eq!(server.seen().len(), requests, "{status} {after}");
    }
}

#[tokio::test]
async fn a_server_that_hangs_is_left() {
    let silent: fn(&mut Reply) = Reply::wait_for_hangup;
    let stuck: fn(&mut Reply) = |reply| {
        reply.head(200, &[("content-length", "300000")]);
        reply.raw(&noise(5000, 1));
        reply.wait_for_hangup();
    };
    // A byte now and then is no progress.
    let dripping: fn(&mut Reply) = |reply| {
        let pace = Duration::from_millis(10);
        reply.stream().set_read_timeout(Some(pace)).unwrap();
        reply.head(200, &[("content-length", "300000")]);
        while reply.raw(b"x") {
            reply.wait_for_hangup();
        }
    };
    for (answer, most) in [(silent, 0), (stuck, 5000), (dripping, 1023)] {
        let (server, image, _, name) = server(move |_, _, reply| answer(reply));
        let client = client(impatient(&[&server.name()]));
        let mut file = file_with(b"");
        let error = fetch(&client, &name, &image.layer(0), &mut file)
            .await
            .unwrap_err();
        assert!(matches!(error, Error::TimedOut { .. }), "{error}");
        line(&error);
        assert!(content(&mut file).len() <= most);
    }
    // A document has a deadline as a whole.
    let server = Server::start(move |_, reply| dripping(reply));
    let mut options = impatient(&[&server.name()]);
    options.deadlines.document = Duration::from_millis(100);
    let image = name(&format!("{}/app", server.name()));
    let error = client(options).resolve(&image).await.unwrap_err();
    assert!(matches!(error, Error::TimedOut { .. }), "{error}");
}

/// Each piece comes in time, and all of them would take for ever.
#[tokio::test]
async fn a_server_that_trickles_is_left_and_asked_again() {
    let (server, image, _, name) = server(|image, request, reply| {
        let layer = &image.layers[0];
        match request.from() {
            None => {
                let pace = Duration::from_millis(20);
                reply.stream().set_read_timeout(Some(pace)).unwrap();
                reply.head(200, &[("content-length", &layer.len().to_string())]);
                for piece in layer.chunks(1024) {
                    if !reply.raw(piece) {
                        break;
                    }
                    // For so long, unless the client goes.
                    reply.wait_for_hangup();
                }
            }
            Some(_) => serve_blob(layer, request, reply),
        }
    });
    let mut slow = options(&[&server.name()]);
    slow.deadlines.pace = Duration::from_millis(200);
    let (slow, notices) = with_notices(slow);
    let mut file = file_with(b"");
    fetch(&client(slow.clone()), &name, &image.layer(0), &mut file)
        .await
        .unwrap();
    // What had come was good.
    assert_eq!(content(&mut file), image.layers[0]);
    let asked = ranges(&server);
    assert!(matches!(asked[..], [None, Some(1..=16_384)]), "{asked:?}");
    let notices: Vec<_> = notices.lock().unwrap().drain(..).collect();
    assert!(
        matches!(&notices[..], [Notice::Retry { why, .. }] if why.contains("too slowly")),
        "{notices:?}"
    );
    let once = Retry {
        attempts: 1,
        ..slow.retry
    };
    let slow = Options {
        retry: once,
        ..slow
    };
    let error = fetch(&client(slow), &name, &image.layer(0), &mut file_with(b""))
        .await
        .unwrap_err();
    assert!(
        matches!(error, Error::Slow { least: 16_384, .. }),
        "{error}"
    );
    line(&error);
}

#[tokio::test]
async fn endless_and_huge_documents_are_cut_off() {
    let endless: fn(&mut Reply) = |reply| {
        reply.chunks(&[], false);
        while reply.chunk(&[b' '; 65536]) {}
    };
    let huge: fn(&mut Reply) = |reply| {
        reply.head(200, &[("content-length", "99999999999")]);
        reply.wait_for_hangup();
    };
    for answer in [endless, huge] {
        let server = Server::start(move |_, reply| answer(reply));
        let client = client(options(&[&server.name()]));
        let image = name(&format!("{}/app", server.name()));
        let error = client.resolve(&image).await.unwrap_err();
        assert!(
            matches!(
                error,
                Error::TooLarge {
                    limit: 4_194_304,
                    ..
                }
            ),
            "{error}"
        );
        line(&error);
        assert_eq!(server.seen().len(), 1);
    }
    // What explains an error is not read for ever either.
    let server = Server::start(|_, reply| {
        reply.head(400, &[("transfer-encoding", "chunked")]);
        while reply.chunk(b"\x1b[31mno\r\n") {}
    });
    let client = client(options(&[&server.name()]));
    let image = name(&format!("{}/app", server.name()));
    let error = client.resolve(&image).await.unwrap_err();
    assert!(
        matches!(error, Error::Status { status: 400, .. }),
        "{error}"
    );
    line(&error);
}

/// What resolving by tag or digest fails with when this is served for manifests.
async fn refused(by_digest: bool, headers: &[(&str, &str)], body: &[u8]) -> Error {
    let headers: Vec<_> = headers
        .iter()
        .map(|(a, b)| (a.to_string(), b.to_string()))
        .collect();
    let body = body.to_vec();
    let server = Server::start(move |_, reply| {
        let headers: Vec<_> = headers
            .iter()
            .map(|(a, b)| (a.as_str(), b.as_str()))
            .collect();
        reply.send(200, &headers, &body);
    });
    let client = client(options(&[&server.name()]));
    let mut image = name(&format!("{}/app:1", server.name()));
    if by_digest {
        image = image.with_digest(&Image::new(vec![]).digest());
    }
    let error = client.resolve(&image).await.unwrap_err();
    line(&error);
    assert_eq!(server.seen().len(), 1, "{error}");
    error
}

#[tokio::test]
async fn manifests_that_are_not_what_was_asked_for_are_refused() {
    let other = Image::new(vec![noise(10, 1)]);
    let error = refused(true, &[("content-type", MANIFEST)], &other.manifest).await;
    assert!(matches!(error, Error::Digest { .. }), "{error}");
    let wrong = sha256(b"something else").to_string();
    let headers = [
        ("content-type", MANIFEST),
        ("docker-content-digest", &wrong),
    ];
    let error = refused(false, &headers, &other.manifest).await;
    assert!(matches!(error, Error::Digest { .. }), "{error}");
    let error = refused(false, &[("content-type", "text/html")], b"<html>Log in").await;
    assert!(matches!(error, Error::MediaType { .. }), "{error}");
    let error = refused(false, &[("content-type", MANIFEST)], b"{").await;
    assert!(matches!(error, Error::Malformed { .. }), "{error}");
    let huge = json("application/vnd.oci.image.layer.v1.tar", b"x")
        .replace("\"size\":1", "\"size\":9223372036854775808");
    let manifest = String::from_utf8(other.manifest.clone()).unwrap();
    let (head, _) = manifest.split_once("\"layers\"").unwrap();
    let bomb = format!("{head}\"layers\":[{huge}]}}");
    let error = refused(false, &[("content-type", MANIFEST)], bomb.as_bytes()).await;
    assert!(matches!(error, Error::TooLarge { .. }), "{error}");
}

#[tokio::test]
async fn indexes_that_lie_or_lead_nowhere_are_refused() {
    let image = Image::new(vec![]);
    let serve = |documents: Vec<Vec<u8>>, first: Vec<u8>| {
        Server::start(move |request, reply| {
            let found = documents
                .iter()
                .find(|it| request.path.ends_with(sha256(it).as_ref()));
            let document = if request.path.ends_with("/1") {
                Some(&first)
            } else {
                found
            };
            match document {
                Some(document) => reply.send(200, &[], document),
                None => reply.send(404, &[], b""),
            }
        })
    };
    let resolve = async |server: &Server| {
        let client = client(options(&[&server.name()]));
        let name = name(&format!("{}/app:1", server.name()));
        let error = client.resolve(&name).await.unwrap_err();
        line(&error);
        error
    };
    // An index in an index in an index is enough.
    let mut documents = vec![image.manifest.clone()];
    let mut top = index(&[(MANIFEST, &image.manifest, "linux", "amd64")]);
    for _ in 0..4 {
        documents.push(top.clone());
        top = index(&[(INDEX, &top, "linux", "amd64")]);
    }
    let server = serve(documents, top);
    assert!(matches!(resolve(&server).await, Error::Malformed { .. }));
    assert_eq!(server.seen().len(), 5);

    let honest = index(&[(MANIFEST, &image.manifest, "linux", "amd64")]);
    let text = String::from_utf8(honest.clone()).unwrap();
    let size = format!("\"size\":{}", image.manifest.len());
    let shorter = text.replace(&size, "\"size\":5").into_bytes();
    let server = serve(vec![image.manifest.clone()], shorter);
    assert!(matches!(resolve(&server).await, Error::Size { .. }));
    let huge = text.replace(&size, "\"size\":5000000").into_bytes();
    let server = serve(vec![image.manifest.clone()], huge);
    assert!(matches!(resolve(&server).await, Error::TooLarge { .. }));
    // What the index names is not there.
    let server = serve(vec![], honest);
    assert!(matches!(resolve(&server).await, Error::NoSuchImage { .. }));
}

#[tokio::test]
async fn what_is_absurd_is_not_even_asked_for() {
    let server = Server::start(|_, reply| reply.send(500, &[], b""));
    let client = client(options(&[&server.name()]));
    let mut blob = descriptor("x", b"x");
    blob.set_size(8 << 60);
    let image = format!("{}/app", server.name());
    let error = fetch(&client, &image, &blob, &mut file_with(b""))
        .await
        .unwrap_err();
    assert!(matches!(error, Error::TooLarge { .. }), "{error}");
    line(&error);
    assert!(server.seen().is_empty());
}
