//! Images from the distribution's registry, put there by skopeo.

use std::fs;

use base64::Engine as _;
use flashpan_rootfs::registry::{
    Client, Credentials, Download, Error, Options, Resolved, Tls, sha256,
};

use crate::distribution::{Layout, PASSWORD, Registry, USER};
use crate::image::{INDEX, MANIFEST, index, noise};
use crate::{client, content, fetch, file_with, line, name, options};

/// Fetches all of an image and checks every part against the manifest. (That is
/// against the layout as well: by digests.)
pub(crate) async fn pull(client: &Client, image: &str) -> Resolved {
    let resolved = client
        .resolve(&name(image))
        .await
        .unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(sha256(&resolved.manifest_bytes), resolved.manifest_digest);
    let (bytes, config) = client.fetch_config(&resolved).await.unwrap();
    assert_eq!(sha256(&bytes), *resolved.config().digest());
    assert_eq!(config.rootfs().diff_ids().len(), resolved.layers().len());
    let mut files: Vec<_> = resolved.layers().iter().map(|_| file_with(b"")).collect();
    let downloads = resolved.layers().iter().zip(&mut files);
    let downloads = downloads
        .map(|(blob, file)| Download { blob, file })
        .collect();
    client
        .fetch_all(&resolved.reference, downloads, 3, &|_| {})
        .await
        .unwrap();
    for (layer, file) in resolved.layers().iter().zip(&mut files) {
        let content = content(file);
        assert_eq!(content.len() as u64, layer.size());
        assert_eq!(sha256(&content), *layer.digest());
    }
    resolved
}

#[tokio::test]
async fn images_of_all_formats_by_tag_and_digest() {
    let registry = Registry::open();
    let mut layout = Layout::new();
    let (big, small) = (noise(3_000_000, 1), noise(100, 2));
    let gzip = layout.image("amd64", &[("gzip", &big), ("gzip", &small)]);
    layout.tag(MANIFEST, &gzip, "gzip");
    let zstd = layout.image("amd64", &[("zstd", &big), ("gzip", &small)]);
    layout.tag(MANIFEST, &zstd, "zstd");
    registry.push(&layout, "gzip", "app:gzip", &[]);
    registry.push(&layout, "zstd", "app:zstd", &[]);
    registry.push(&layout, "gzip", "team/app:docker", &["--format", "v2s2"]);

    let at = registry.name();
    let client = client(options(&[&at]));
    let resolved = pull(&client, &format!("{at}/app:gzip")).await;
    assert_eq!(resolved.manifest_bytes, gzip);
    assert_eq!(resolved.index_digest, None);
    let resolved = pull(&client, &format!("{at}/app:zstd")).await;
    assert_eq!(resolved.manifest_bytes, zstd);
    let digest = sha256(&gzip);
    let resolved = pull(&client, &format!("{at}/app:ignored@{digest}")).await;
    assert_eq!(resolved.manifest_bytes, gzip);
    let docker = pull(&client, &format!("{at}/team/app:docker")).await;
    let media_type = docker.manifest.media_type().as_ref().unwrap().to_string();
    assert_eq!(
        media_type,
        "application/vnd.docker.distribution.manifest.v2+json"
    );
    assert_eq!(docker.layers().len(), 2);

    // A download that was interrupted.
    let layer = &docker.layers()[0];
    let mut whole = file_with(b"");
    fetch(&client, &format!("{at}/team/app"), layer, &mut whole)
        .await
        .unwrap();
    let whole = content(&mut whole);
    let mut half = file_with(&whole[..whole.len() / 2]);
    fetch(&client, &format!("{at}/team/app"), layer, &mut half)
        .await
        .unwrap();
    assert_eq!(content(&mut half), whole);

    for missing in [
        "app:nothing",
        "nothing",
        &format!("app@{}", sha256(b"nothing")),
    ] {
        let error = client
            .resolve(&name(&format!("{at}/{missing}")))
            .await
            .unwrap_err();
        assert!(matches!(error, Error::NoSuchImage { .. }), "{error}");
        assert!(
            line(&error).contains(missing.split(':').next().unwrap()),
            "{error}"
        );
    }
    let mut gone = layer.clone();
    gone.set_digest(sha256(b"nothing"));
    let fetched = fetch(&client, &format!("{at}/app"), &gone, &mut file_with(b"")).await;
    assert!(matches!(fetched, Err(Error::Missing { .. })), "{fetched:?}");
}

#[tokio::test]
async fn an_image_for_several_platforms() {
    let registry = Registry::open();
    let mut layout = Layout::new();
    let images = ["amd64", "arm64"].map(|it| layout.image(it, &[("gzip", it.as_bytes())]));
    let top = index(&[
        (MANIFEST, &images[1], "linux", "arm64"),
        (MANIFEST, &images[0], "linux", "amd64"),
    ]);
    layout.tag(INDEX, &top, "all");
    registry.push(&layout, "all", "app", &["--all"]);
    let image = format!("{}/app", registry.name());
    for (platform, manifest) in [("linux/amd64", &images[0]), ("linux/arm64", &images[1])] {
        let mut options = options(&[&registry.name()]);
        options.platform = platform.parse().unwrap();
        let resolved = pull(&client(options), &image).await;
        assert_eq!(resolved.manifest_bytes, *manifest);
        assert_eq!(resolved.index_digest, Some(sha256(&top)));
    }
}

#[tokio::test]
async fn a_registry_with_a_login_and_an_authority_of_its_own() {
    let registry = Registry::closed();
    let mut layout = Layout::new();
    let manifest = layout.image("amd64", &[("gzip", &noise(10_000, 1))]);
    layout.tag(MANIFEST, &manifest, "1");
    registry.push(&layout, "1", "team/app:1", &[]);
    let at = registry.name();
    let image = format!("{at}/team/app:1");

    // Nobody is trusted without a reason.
    let error = client(options(&[]))
        .resolve(&name(&image))
        .await
        .unwrap_err();
    assert!(
        matches!(
            &error,
            Error::Tls {
                why: Tls::UnknownAuthority,
                ..
            }
        ),
        "{error}"
    );
    assert!(line(&error).contains("authority"), "{error}");
    // Naming it insecure means plain HTTP, and not that anybody is trusted.
    let error = client(options(&[&at]))
        .resolve(&name(&image))
        .await
        .unwrap_err();
    assert!(
        line(&error).contains("named insecure and speaks HTTPS"),
        "{error}"
    );

    let trusting = || Options {
        ca_files: vec![registry.authority()],
        ..options(&[])
    };
    let error = client(trusting()).resolve(&name(&image)).await.unwrap_err();
    assert!(matches!(error, Error::Unauthorised { .. }), "{error}");
    assert!(
        line(&error).contains(&format!("docker login {at}")),
        "{error}"
    );

    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("config.json");
    let login = |password: &str| {
        let pair = format!("{USER}:{password}");
        let auth = base64::engine::general_purpose::STANDARD.encode(pair);
        fs::write(
            &file,
            format!(r#"{{"auths":{{"{at}":{{"auth":"{auth}"}}}}}}"#),
        )
        .unwrap();
        Options {
            credentials: Credentials::default().add_file(&file),
            ..trusting()
        }
    };
    let error = client(login("wrong"))
        .resolve(&name(&image))
        .await
        .unwrap_err();
    assert!(
        line(&error).contains("does not accept our credentials"),
        "{error}"
    );
    let resolved = pull(&client(login(PASSWORD)), &image).await;
    assert_eq!(resolved.manifest_bytes, manifest);

    // The certificate is for the address only.
    let local = image.replace("127.0.0.1", "localhost");
    let error = client(login(PASSWORD))
        .resolve(&name(&local))
        .await
        .unwrap_err();
    assert!(
        matches!(
            &error,
            Error::Tls {
                why: Tls::WrongName,
                ..
            }
        ),
        "{error}"
    );
    line(&error);
}

#[tokio::test]
async fn a_mirror_that_has_the_image_until_it_stops() {
    let (mirror, registry) = (Registry::open(), Registry::open());
    let mut layout = Layout::new();
    let manifest = layout.image("amd64", &[("gzip", &noise(10_000, 1))]);
    layout.tag(MANIFEST, &manifest, "1");
    mirror.push(&layout, "1", "cache/app:1", &[]);
    let (at, of) = (mirror.name(), registry.name());
    let mut options = options(&[&at, &of]);
    options.mirrors = [(of.clone(), vec![format!("{at}/cache")])].into();
    let client = client(options);
    // The registry has not got it.
    let resolved = pull(&client, &format!("{of}/app:1")).await;
    assert_eq!(resolved.manifest_bytes, manifest);
    drop(mirror);
    let error = client
        .resolve(&name(&format!("{of}/app:1")))
        .await
        .unwrap_err();
    assert!(matches!(error, Error::NoSuchImage { .. }), "{error}");
}
