//! Credentials: who gets them, and who does not.

use std::fs;
use std::sync::{Arc, Mutex};

use flashpan_rootfs::registry::{Credentials, Download, Error, Login, Options, Progress, Secret};

use crate::image::{Image, noise};
use crate::server::{Reply, Request, Server};
use crate::{client, content, fetch, file_with, line, name, options, with_notices};

/// `me:hunter2` in base64.
const BASIC: &str = "Basic bWU6aHVudGVyMg==";
const SECRETS: [&str; 3] = ["hunter2", "bWU6aHVudGVyMg", "first-token"];

fn password() -> Login {
    Login::Password {
        user: "me".to_owned(),
        password: Secret::new("hunter2".to_owned()),
    }
}

fn logged_in(server: &Server, login: Login) -> Options {
    let mut options = options(&[&server.name()]);
    options.credentials = Credentials::default().add(&server.name(), login);
    options
}

fn no_secrets(text: &str) {
    for secret in SECRETS {
        assert!(!text.contains(secret), "{text}");
    }
}

fn unauthorised(reply: &mut Reply, challenge: &str) {
    let body = br#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#;
    reply.send(401, &[("www-authenticate", challenge)], body);
}

/// A registry that takes this header only, and gives tokens by this function.
fn registry(
    header: &'static str,
    tokens: impl Fn(&Request, &mut Reply) + Send + Sync + 'static,
) -> (Server, Image) {
    let image = Image::new((1..5).map(|seed| noise(1000, seed)).collect());
    let served = image.clone();
    let server = Server::start(move |request, reply| {
        if request.path.starts_with("/token") {
            return tokens(request, reply);
        }
        if request.header("authorization") == Some(header) {
            return served.serve(request, reply);
        }
        let here = request.header("host").unwrap();
        let challenge = match header.split_once(' ').unwrap().0 {
            "Basic" => "Basic realm=\"Registry\"".to_owned(),
            _ => format!(
                "Bearer realm=\"http://{here}/token?x=1\",service=\"the registry\",\
                 scope=\"repository:app:pull,push\""
            ),
        };
        unauthorised(reply, &challenge);
    });
    (server, image)
}

#[tokio::test]
async fn a_registry_that_wants_a_password_gets_it() {
    let (server, image) = registry(BASIC, |_, _| {});
    let client = client(logged_in(&server, password()));
    let resolved = client
        .resolve(&name(&format!("{}/app", server.name())))
        .await
        .unwrap();
    assert_eq!(resolved.manifest_digest, image.digest());
    // It is known from then on that it has to be sent.
    client.fetch_config(&resolved).await.unwrap();
    let sent: Vec<_> = server
        .seen()
        .iter()
        .map(|it| it.headers.contains_key("authorization"))
        .collect();
    assert_eq!(sent, [false, true, true]);
}

#[tokio::test]
async fn a_token_is_got_once_for_all_layers_at_once() {
    let (server, image) = registry("Bearer first-token", |_, reply| {
        reply.send(200, &[], br#"{"token":"first-token","expires_in":300}"#);
    });
    let client = client(logged_in(&server, password()));
    let reference = name(&format!("{}/app", server.name()));
    let mut files: Vec<_> = image.layers.iter().map(|_| file_with(b"")).collect();
    let blobs: Vec<_> = (0..image.layers.len()).map(|n| image.layer(n)).collect();
    let downloads = blobs.iter().zip(&mut files);
    let downloads = downloads
        .map(|(blob, file)| Download { blob, file })
        .collect();
    let done = Mutex::new(0);
    let progress = |it: Progress<'_>| {
        if it.done == it.total {
            *done.lock().unwrap() += 1;
        }
    };
    client
        .fetch_all(&reference, downloads, 4, &progress)
        .await
        .unwrap();
    assert_eq!(done.into_inner().unwrap(), 4);
    for (file, layer) in files.iter_mut().zip(&image.layers) {
        assert_eq!(content(file), *layer);
    }
    let asked = server.seen_for("/token");
    assert_eq!(asked.len(), 1, "{asked:?}");
    // Ours to choose: reading, and nothing more.
    assert_eq!(
        asked[0].path,
        "/token?x=1&service=the+registry&scope=repository%3Aapp%3Apull"
    );
    assert_eq!(asked[0].header("authorization"), Some(BASIC));
    // The password went nowhere else.
    for request in server.seen_for("/v2/") {
        assert_ne!(request.header("authorization"), Some(BASIC));
    }
}

#[tokio::test]
async fn tokens_are_got_without_credentials_and_anew_when_they_are_over() {
    // Over as soon as it is used, and under the other name that tokens have.
    let (server, _) = registry("Bearer first-token", |request, reply| {
        assert_eq!(request.header("authorization"), None);
        let body = br#"{"access_token":"first-token","expires_in":1}"#;
        reply.send(200, &[], body);
    });
    let client = client(options(&[&server.name()]));
    let reference = name(&format!("{}/app", server.name()));
    for tokens in 1..3 {
        client.resolve(&reference).await.unwrap();
        assert_eq!(server.seen_for("/token").len(), tokens);
    }

    let (server, _) = registry("Bearer first-token", |request, reply| {
        let token = if request.before == 0 {
            "old"
        } else {
            "first-token"
        };
        let body = format!(r#"{{"token":"","access_token":"{token}"}}"#);
        reply.send(200, &[], body.as_bytes());
    });
    let client = self::client(options(&[&server.name()]));
    let reference = name(&format!("{}/app", server.name()));
    let first = client.resolve(&reference).await;
    assert!(
        matches!(first, Err(Error::Unauthorised { .. })),
        "{first:?}"
    );
    // The registry does not take it any more: another one is got.
    client.resolve(&reference).await.unwrap();
    assert_eq!(server.seen_for("/token").len(), 2);
}

#[tokio::test]
async fn an_identity_token_is_exchanged() {
    let (server, image) = registry("Bearer first-token", |_, reply| {
        reply.send(200, &[], br#"{"access_token":"first-token"}"#);
    });
    let login = Login::Identity(Secret::new("hunter2&x".to_owned()));
    let client = client(logged_in(&server, login));
    let resolved = client
        .resolve(&name(&format!("{}/app", server.name())))
        .await
        .unwrap();
    assert_eq!(resolved.manifest_digest, image.digest());
    let asked = &server.seen_for("/token")[0];
    assert_eq!(
        (asked.method.as_str(), asked.path.as_str()),
        ("POST", "/token?x=1")
    );
    assert_eq!(
        asked.body,
        "grant_type=refresh_token&service=the+registry&client_id=flashpan&\
         scope=repository%3Aapp%3Apull&refresh_token=hunter2%26x"
    );
}

#[tokio::test]
async fn who_is_not_let_in_is_told_what_to_do_and_asks_once() {
    let closed = || Server::start(|_, reply| unauthorised(reply, "Basic realm=\"x\""));
    let broken = || Server::start(|_, reply| reply.send(403, &[], b"hunter2"));
    let odd = || Server::start(|_, reply| unauthorised(reply, "Negotiate"));
    let tokens = || registry("Bearer x", |_, reply| reply.send(401, &[], b"hunter2")).0;
    for (server, login, requests, hint) in [
        (closed(), None, 1, "wants a login"),
        (
            closed(),
            Some(password()),
            2,
            "does not accept our credentials",
        ),
        (broken(), None, 1, "wants a login"),
        (
            broken(),
            Some(password()),
            1,
            "does not accept our credentials",
        ),
        (odd(), Some(password()), 1, "how to log in"),
        (tokens(), None, 2, "wants a login"),
        (
            tokens(),
            Some(password()),
            2,
            "does not accept our credentials",
        ),
    ] {
        let options = match login {
            Some(login) => logged_in(&server, login),
            None => options(&[&server.name()]),
        };
        let image = name(&format!("{}/app", server.name()));
        let error = client(options).resolve(&image).await.unwrap_err();
        assert!(matches!(error, Error::Unauthorised { .. }), "{error}");
        let text = line(&error);
        assert!(text.contains(hint), "{text}");
        assert!(text.contains(&server.name()), "{text}");
        if hint != "how to log in" {
            let login = format!("`docker login {}`", server.name());
            assert!(text.contains(&login), "{text}");
        }
        no_secrets(&format!("{text} {error:?}"));
        assert_eq!(server.seen().len(), requests, "{text}");
    }
}

#[tokio::test]
async fn stored_credentials_are_used_and_broken_stores_named() {
    let (server, _) = registry(BASIC, |_, _| {});
    let directory = tempfile::tempdir().unwrap();
    let (broken, good) = (
        directory.path().join("broken"),
        directory.path().join("good"),
    );
    fs::write(&broken, "{").unwrap();
    let auth = BASIC.strip_prefix("Basic ").unwrap();
    fs::write(
        &good,
        format!(
            r#"{{"auths":{{"{}/app":{{"auth":"{auth}"}}}}}}"#,
            server.name()
        ),
    )
    .unwrap();
    let reference = name(&format!("{}/app", server.name()));

    let (mut options, notices) = with_notices(options(&[&server.name()]));
    options.credentials = Credentials::default().add_file(&broken).add_file(&good);
    client(options).resolve(&reference).await.unwrap();
    let notices: Vec<_> = notices
        .lock()
        .unwrap()
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(notices.len(), 1, "{notices:?}");
    assert!(notices[0].contains(broken.to_str().unwrap()), "{notices:?}");

    let mut options = self::options(&[&server.name()]);
    options.credentials = Credentials::default().add_file(&broken);
    let error = client(options).resolve(&reference).await.unwrap_err();
    assert!(line(&error).contains(broken.to_str().unwrap()), "{error}");
}

/// A server that sends requests for blobs to another place.
fn sends_to(target: impl Fn(&Request) -> String + Send + Sync + 'static, image: &Image) -> Server {
    let served = image.clone();
    Server::start(move |request, reply| {
        if request.header("authorization") != Some(BASIC) {
            unauthorised(reply, "Basic realm=\"x\"");
        } else if request.path.contains("/blobs/") && !request.path.contains("/elsewhere/") {
            reply.send(307, &[("location", &target(request))], b"");
        } else {
            served.serve(request, reply);
        }
    })
}

fn blob_path(request: &Request) -> String {
    request.path.split("/blobs/").nth(1).unwrap().to_owned()
}

#[tokio::test]
async fn credentials_do_not_follow_to_other_hosts() {
    let image = Image::new(vec![noise(1000, 1)]);
    let (served, mut file) = (image.clone(), file_with(&image.layers[0][..10]));
    let store = Server::start(move |request, reply| served.serve(request, reply));
    let to = store.name();
    let server = sends_to(
        move |it| format!("http://{to}/signed/{}", blob_path(it)),
        &image,
    );
    let mut options = logged_in(&server, password());
    options.insecure.push(store.name());
    // Even if we could log in there.
    options.credentials = options.credentials.add(&store.name(), password());
    let reference = format!("{}/app", server.name());
    fetch(&client(options), &reference, &image.layer(0), &mut file)
        .await
        .unwrap();
    assert_eq!(content(&mut file), image.layers[0]);
    let seen = store.seen();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].header("authorization"), None, "{seen:?}");
    assert_eq!(seen[0].from(), Some(10), "the range does");
}

#[tokio::test]
async fn credentials_follow_on_the_same_host() {
    let image = Image::new(vec![noise(1000, 1)]);
    let server = sends_to(
        |it| format!("/v2/elsewhere/blobs/{}", blob_path(it)),
        &image,
    );
    let client = client(logged_in(&server, password()));
    let mut file = file_with(b"");
    let reference = format!("{}/app", server.name());
    fetch(&client, &reference, &image.layer(0), &mut file)
        .await
        .unwrap();
    assert_eq!(content(&mut file), image.layers[0]);
}

#[tokio::test]
async fn nobody_is_followed_into_plain_http_or_in_circles() {
    let image = Image::new(vec![noise(1000, 1)]);
    let other = Server::start(|_, reply| reply.send(500, &[], b""));
    let to = other.name();
    for (target, why) in [
        (format!("http://{to}/?signature=hunter2"), "plain HTTP"),
        ("ftp://x/?signature=hunter2".to_owned(), "not HTTP"),
        ("https://[".to_owned(), "no address"),
    ] {
        let server = sends_to(move |_| target.clone(), &image);
        let client = client(logged_in(&server, password()));
        let reference = format!("{}/app", server.name());
        let error = fetch(&client, &reference, &image.layer(0), &mut file_with(b""))
            .await
            .unwrap_err();
        assert!(matches!(error, Error::Redirect { .. }), "{error}");
        assert!(line(&error).contains(why), "{error}");
        no_secrets(&format!("{error} {error:?}"));
        // The question, the credentials, and no attempt after that.
        assert_eq!(server.seen().len(), 2);
    }
    assert!(other.seen().is_empty());
    let server = sends_to(|request| request.path.clone(), &image);
    let client = client(logged_in(&server, password()));
    let reference = format!("{}/app", server.name());
    let error = fetch(&client, &reference, &image.layer(0), &mut file_with(b""))
        .await
        .unwrap_err();
    assert!(line(&error).contains("on and on"), "{error}");
}

#[tokio::test]
async fn credentials_are_not_sent_to_token_servers_in_plain_http() {
    let tokens = Server::start(|_, reply| reply.send(200, &[], br#"{"token":"t"}"#));
    let realm = Arc::new(format!("Bearer realm=\"http://{}/token\"", tokens.name()));
    let server = Server::start(move |_, reply| unauthorised(reply, &realm));
    let client = client(logged_in(&server, password()));
    let error = client
        .resolve(&name(&format!("{}/app", server.name())))
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Redirect { .. }), "{error}");
    let text = line(&error);
    assert!(
        text.contains(&tokens.name()) && text.contains("insecure"),
        "{text}"
    );
    assert!(tokens.seen().is_empty());
}

#[tokio::test]
async fn answers_of_token_servers_that_make_no_sense_are_not_repeated() {
    for body in [
        &b"hunter2"[..],
        b"{}",
        br#"{"token":5,"x":"hunter2"}"#,
        br#"{"token":""}"#,
    ] {
        let (server, _) = registry("Bearer x", move |_, reply| reply.send(200, &[], body));
        let client = client(options(&[&server.name()]));
        let error = client
            .resolve(&name(&format!("{}/app", server.name())))
            .await
            .unwrap_err();
        assert!(matches!(error, Error::Malformed { .. }), "{error}");
        no_secrets(&format!("{} {error:?}", line(&error)));
    }
    // Nor read for ever.
    let (server, _) = registry("Bearer x", |_, reply| {
        reply.chunks(&[], false);
        while reply.chunk(&[b' '; 4096]) {}
    });
    let client = client(options(&[&server.name()]));
    let error = client
        .resolve(&name(&format!("{}/app", server.name())))
        .await
        .unwrap_err();
    assert!(matches!(error, Error::TooLarge { .. }), "{error}");
}

/// Whoever is on the way of plain HTTP can name a token server of his own.
#[tokio::test]
async fn credentials_stay_with_a_registry_in_plain_http() {
    let tokens = Server::start(|_, reply| reply.send(200, &[], br#"{"token":"t"}"#));
    // Another host by its name, the same machine.
    let elsewhere = tokens.name().replace("127.0.0.1", "localhost");
    let realm = Arc::new(format!("Bearer realm=\"http://{elsewhere}/token\""));
    let server = Server::start(move |_, reply| unauthorised(reply, &realm));
    let reference = name(&format!("{}/app", server.name()));
    let mut options = logged_in(&server, password());
    options.insecure.push(elsewhere.clone());
    let error = client(options.clone())
        .resolve(&reference)
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Redirect { .. }), "{error}");
    assert!(line(&error).contains("registry's own host"), "{error}");
    no_secrets(&format!("{error} {error:?}"));
    assert!(tokens.seen().is_empty());
    // Without a secret there is nothing to lose.
    options.credentials = Credentials::default();
    let error = client(options).resolve(&reference).await.unwrap_err();
    assert!(matches!(error, Error::Unauthorised { .. }), "{error}");
    assert_eq!(tokens.seen().len(), 1);
}
