//! Registries that cannot be reached.

use std::fs;
use std::net::TcpListener;

use flashpan_rootfs::registry::{Client, Error, Options, Tls};

use crate::server::Server;
use crate::{client, line, name, options, with_notices};

#[tokio::test]
async fn a_port_where_nobody_listens() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let registry = listener.local_addr().unwrap().to_string();
    drop(listener);
    let (options, notices) = with_notices(options(&[&registry]));
    let error = client(options)
        .resolve(&name(&format!("{registry}/app")))
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Connect { .. }), "{error}");
    let text = line(&error);
    assert!(
        text.contains(&registry) && text.contains("connection refused"),
        "{text}"
    );
    assert_eq!(notices.lock().unwrap().len(), 2, "it is tried three times");
}

#[tokio::test]
async fn a_name_that_does_not_exist() {
    let (options, notices) = with_notices(options(&[]));
    // RFC 6761: never in the domain name system; no server is asked.
    let error = client(options)
        .resolve(&name("registry.invalid/app"))
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Name { .. }), "{error}");
    assert!(line(&error).contains("registry.invalid"), "{error}");
    assert!(notices.lock().unwrap().is_empty());
}

#[tokio::test]
async fn localhost_is_found_in_the_hosts_file() {
    let server = Server::start(|_, reply| reply.send(404, &[], b""));
    let port = server.name().rsplit_once(':').unwrap().1.to_owned();
    let registry = format!("localhost:{port}");
    let client = client(options(&[&registry]));
    let error = client
        .resolve(&name(&format!("{registry}/app")))
        .await
        .unwrap_err();
    assert!(matches!(error, Error::NoSuchImage { .. }), "{error}");
}

#[tokio::test]
async fn plain_http_has_to_be_asked_for_on_loopback_too() {
    let server = Server::start(|_, reply| reply.send(200, &[], b""));
    let client = client(options(&[]));
    let error = client
        .resolve(&name(&format!("{}/app", server.name())))
        .await
        .unwrap_err();
    assert!(
        matches!(
            &error,
            Error::Tls {
                why: Tls::PlainHttp,
                ..
            }
        ),
        "{error}"
    );
    assert!(
        line(&error).contains("name the registry insecure"),
        "{error}"
    );
    assert!(server.seen().is_empty(), "nothing was said to it");
}

#[test]
fn files_of_certificates_that_are_none() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ca.pem");
    for content in [
        None,
        Some("no certificate"),
        Some("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
    ] {
        if let Some(content) = content {
            fs::write(&path, content).unwrap();
        }
        let options = Options {
            ca_files: vec![path.clone()],
            ..Options::default()
        };
        let error = Client::new(options).unwrap_err();
        assert!(matches!(error, Error::Certificates { .. }), "{error}");
        assert!(line(&error).contains(path.to_str().unwrap()), "{error}");
    }
}
