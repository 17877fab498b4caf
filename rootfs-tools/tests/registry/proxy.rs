//! A registry that is reached through proxies only: its name means nothing to
//! anybody but them.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::{env, thread};

use flashpan_rootfs::registry::{Error, Options, Proxies};

use crate::distribution::{Layout, Registry};
use crate::image::{MANIFEST, noise};
use crate::pull::pull;
use crate::{client, line, name, options};

/// What the certificate of the registry is for, and no name server knows.
const IMAGE: &str = "registry.test:5000/app:1";

/// What a proxy wants to hear: that of `me:hunter2`.
const LOGIN: &str = "Basic bWU6aHVudGVyMg==";

#[derive(Clone, Copy)]
enum Kind {
    /// `CONNECT` of HTTP.
    Http,
    Socks,
}

/// Leads to one address, whatever it is asked for, until it is dropped.
struct Proxy {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
}

impl Proxy {
    fn start(kind: Kind, to: &str, login: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = Self {
            address: listener.local_addr().unwrap(),
            asked: Arc::default(),
            stop: Arc::default(),
        };
        let (asked, stop, to) = (proxy.asked.clone(), proxy.stop.clone(), to.to_owned());
        thread::spawn(move || {
            for client in listener.incoming() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let (client, asked, to) = (client.unwrap(), asked.clone(), to.clone());
                thread::spawn(move || {
                    let wish = match kind {
                        Kind::Http => http(&client, login),
                        Kind::Socks => socks(&client, login),
                    };
                    // What is no wish has been answered, or the client has gone.
                    if let Ok(Some((wish, answer))) = wish {
                        asked.lock().unwrap().push(wish);
                        let server = TcpStream::connect(&to).unwrap();
                        if (&client).write_all(answer).is_ok() {
                            join(client, server);
                        }
                    }
                });
            }
        });
        proxy
    }

    /// A URL for it.
    fn url(&self, scheme: &str, login: &str) -> String {
        format!("{scheme}://{login}{}", self.address)
    }

    /// Where it was to lead to: once each.
    fn asked(&self) -> Vec<String> {
        let mut asked = self.asked.lock().unwrap().clone();
        asked.dedup();
        asked
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
    }
}

/// Copies what the two say to each other, until both have ended.
fn join(client: TcpStream, server: TcpStream) {
    let copy = |mut from: TcpStream, mut to: TcpStream| {
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    };
    let other = (client.try_clone().unwrap(), server.try_clone().unwrap());
    let there = thread::spawn(move || copy(other.0, other.1));
    copy(server, client);
    there.join().unwrap();
}

type Wish = io::Result<Option<(String, &'static [u8])>>;

fn http(client: &TcpStream, login: bool) -> Wish {
    let mut lines = BufReader::new(client).lines();
    let request = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    let Some(wish) = request.strip_prefix("CONNECT ") else {
        return Ok(None);
    };
    let mut let_in = !login;
    for line in lines {
        let line = line?;
        if line.is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(": ") {
            let_in |= name.eq_ignore_ascii_case("proxy-authorization") && value == LOGIN;
        }
    }
    if !let_in {
        let mut client = client;
        client.write_all(
            b"HTTP/1.1 407 Who are you\r\nproxy-authenticate: Basic realm=\"p\"\r\n\
              content-length: 0\r\nconnection: close\r\n\r\n",
        )?;
        return Ok(None);
    }
    let wish = wish.trim_end_matches(" HTTP/1.1").to_owned();
    Ok(Some((wish, b"HTTP/1.1 200 Connected\r\n\r\n")))
}

/// RFC 1928 and 1929.
fn socks(mut client: &TcpStream, login: bool) -> Wish {
    fn take<const N: usize>(mut from: &TcpStream) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        from.read_exact(&mut bytes)?;
        Ok(bytes)
    }
    fn text(from: &TcpStream) -> io::Result<String> {
        let [length] = take(from)?;
        let mut bytes = vec![0; usize::from(length)];
        let mut from = from;
        from.read_exact(&mut bytes)?;
        Ok(String::from_utf8(bytes).unwrap())
    }
    let [5, methods] = take(client)? else {
        return Ok(None);
    };
    let mut offered = vec![0; usize::from(methods)];
    client.read_exact(&mut offered)?;
    let method = if login { 2 } else { 0 };
    if !offered.contains(&method) {
        client.write_all(&[5, 0xff])?;
        return Ok(None);
    }
    client.write_all(&[5, method])?;
    if login {
        let [1] = take(client)? else {
            return Ok(None);
        };
        let right = (text(client)?, text(client)?) == ("me".to_owned(), "hunter2".to_owned());
        client.write_all(&[1, u8::from(!right)])?;
        if !right {
            return Ok(None);
        }
    }
    let [5, 1, 0, kind] = take(client)? else {
        return Ok(None);
    };
    // A name, as the registry has no address that we could know.
    assert_eq!(kind, 3);
    let host = text(client)?;
    let port = u16::from_be_bytes(take(client)?);
    let answer = &[5, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    Ok(Some((format!("{host}:{port}"), answer)))
}

/// A registry over TLS with an image, and the options that trust it.
fn registry() -> (Registry, Vec<u8>, Options) {
    let registry = Registry::secure();
    let mut layout = Layout::new();
    let manifest = layout.image("amd64", &[("gzip", &noise(100_000, 1))]);
    layout.tag(MANIFEST, &manifest, "1");
    registry.push(&layout, "1", "app:1", &[]);
    let options = Options {
        ca_files: vec![registry.authority()],
        ..options(&[])
    };
    (registry, manifest, options)
}

fn through(options: &Options, proxies: Proxies) -> Options {
    Options {
        proxies,
        ..options.clone()
    }
}

fn https(url: String) -> Proxies {
    Proxies {
        https: Some(url),
        ..Proxies::default()
    }
}

#[tokio::test]
async fn images_come_through_a_tunnel_of_http() {
    let (registry, manifest, options) = registry();
    for (login, user) in [(false, ""), (true, "me:hunter2@")] {
        let proxy = Proxy::start(Kind::Http, &registry.name(), login);
        let options = through(&options, https(proxy.url("http", user)));
        let resolved = pull(&client(options), IMAGE).await;
        assert_eq!(resolved.manifest_bytes, manifest);
        assert_eq!(proxy.asked(), ["registry.test:5000"]);
    }
}

#[tokio::test]
async fn images_come_through_socks() {
    let (registry, manifest, options) = registry();
    for (login, user) in [(false, ""), (true, "me:hunter2@")] {
        let proxy = Proxy::start(Kind::Socks, &registry.name(), login);
        let all = Proxies {
            all: Some(proxy.url("socks5h", user)),
            ..Proxies::default()
        };
        let resolved = pull(&client(through(&options, all)), IMAGE).await;
        assert_eq!(resolved.manifest_bytes, manifest);
        assert_eq!(proxy.asked(), ["registry.test:5000"]);
    }
}

/// `socks5://` means that names are looked up here, as curl has it.
#[tokio::test]
async fn a_name_for_socks_that_nobody_here_knows() {
    let (registry, _, options) = registry();
    let proxy = Proxy::start(Kind::Socks, &registry.name(), false);
    let all = Proxies {
        all: Some(proxy.url("socks5", "")),
        ..Proxies::default()
    };
    let client = client(through(&options, all));
    let error = client.resolve(&name(IMAGE)).await.unwrap_err();
    let text = line(&error);
    assert!(matches!(error, Error::Name { .. }), "{text}");
    assert!(text.contains("address of registry.test:5000"), "{text}");
    assert!(text.contains("socks5h://"), "{text}");
    assert_eq!(proxy.asked(), [""; 0]);
}

#[tokio::test]
async fn no_proxy_means_none() {
    let (registry, manifest, options) = registry();
    let proxy = Proxy::start(Kind::Http, &registry.name(), false);
    let proxies = |none: &str| Proxies {
        none: Some(none.to_owned()),
        ..https(proxy.url("http", ""))
    };
    for none in [".test", "other.example, registry.test:5000", "*"] {
        let client = client(through(&options, proxies(none)));
        let error = client.resolve(&name(IMAGE)).await.unwrap_err();
        assert!(matches!(error, Error::Name { .. }), "{none}: {error}");
        assert!(!line(&error).contains("proxy"), "{error}");
    }
    // This host is reached without one, named or not.
    let here = format!("{}/app:1", registry.name());
    let resolved = pull(&client(through(&options, proxies(""))), &here).await;
    assert_eq!(resolved.manifest_bytes, manifest);
    assert_eq!(proxy.asked(), [""; 0]);
    pull(
        &client(through(&options, proxies("registry.test:5001"))),
        IMAGE,
    )
    .await;
    assert_eq!(proxy.asked(), ["registry.test:5000"]);
}

#[tokio::test]
async fn what_a_proxy_does_not_do_is_told_without_its_password() {
    let (registry, _, options) = registry();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = closed.local_addr().unwrap();
    drop(closed);
    for (kind, scheme) in [(Kind::Http, "http"), (Kind::Socks, "socks5h")] {
        let proxy = Proxy::start(kind, &registry.name(), true);
        let none = format!("{scheme}://me:secret7@{nobody}");
        for (url, at, says) in [
            (
                proxy.url(scheme, "me:secret7@"),
                proxy.address,
                "wants a user",
            ),
            (proxy.url(scheme, ""), proxy.address, "wants a user"),
            (none, nobody, "does it run?"),
        ] {
            let client = client(through(&options, https(url)));
            let error = client.resolve(&name(IMAGE)).await.unwrap_err();
            let text = line(&error);
            assert!(matches!(error, Error::Connect { .. }), "{text}");
            let named = format!("through the proxy {scheme}://{at} (HTTPS_PROXY)");
            assert!(text.contains(&named), "{text}");
            assert!(text.contains(says), "{text}");
            let all = format!("{text} {error:?} {client:?}");
            assert!(!all.contains("secret7"), "{all}");
        }
        assert_eq!(proxy.asked(), [""; 0]);
    }
    // It is the proxy whose name is unknown, and not the registry.
    let url = "http://me:secret7@proxy.invalid:3128".to_owned();
    let client = client(through(&options, https(url)));
    let error = client.resolve(&name(IMAGE)).await.unwrap_err();
    assert!(
        line(&error).contains("address of the proxy http://proxy.invalid:3128 (HTTPS_PROXY)"),
        "{error}"
    );
    assert!(!line(&error).contains("registry.test"), "{error}");
}

/// The variables are those of a process, so this test is run once more in one
/// of its own.
#[tokio::test]
async fn the_environment_names_proxies_and_authorities() {
    const HERE: &str = "proxy::the_environment_names_proxies_and_authorities";
    const CHILD: &str = "FLASHPAN_TEST_OF_THE_ENVIRONMENT";
    if env::var_os(CHILD).is_some() {
        let environment = Options::from_environment();
        let client = client(Options {
            proxies: environment.proxies,
            ..options(&[])
        });
        match client.resolve(&name(IMAGE)).await {
            Ok(resolved) => println!("found {}", resolved.manifest_digest),
            Err(error) => println!("error: {error}"),
        }
        return;
    }
    let (registry, manifest, _) = registry();
    let http = Proxy::start(Kind::Http, &registry.name(), true);
    let socks = Proxy::start(Kind::Socks, &registry.name(), false);
    let child = |variables: &[(&str, String)]| {
        let mut command = Command::new(env::current_exe().unwrap());
        command
            .args(["--exact", HERE, "--nocapture"])
            .env(CHILD, "1");
        for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"] {
            command.env_remove(name).env_remove(name.to_lowercase());
        }
        command
            .env_remove("SSL_CERT_FILE")
            .env_remove("SSL_CERT_DIR");
        command.envs(variables.iter().map(|(name, value)| (name, value)));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let authority = || ("SSL_CERT_FILE", registry.authority().display().to_string());
    let found = format!("found {}", flashpan_rootfs::registry::sha256(&manifest));

    let proxy = ("https_proxy", http.url("http", "me:hunter2@"));
    let said = child(&[proxy.clone(), authority()]);
    assert!(said.contains(&found), "{said}");
    assert_eq!(http.asked(), ["registry.test:5000"]);

    let said = child(&[("ALL_PROXY", socks.url("socks5h", "")), authority()]);
    assert!(said.contains(&found), "{said}");
    assert_eq!(socks.asked(), ["registry.test:5000"]);

    // Nobody vouches for the registry, and then nobody is asked the way.
    let said = child(std::slice::from_ref(&proxy));
    assert!(said.contains("signed by no authority"), "{said}");
    assert!(said.contains("through the proxy"), "{said}");
    let said = child(&[proxy.clone(), authority(), ("no_proxy", ".test".to_owned())]);
    assert!(
        said.contains("cannot find the address of registry.test"),
        "{said}"
    );

    // A file that is not there is no authority either, and is told.
    let missing = ("SSL_CERT_FILE", "/nonexistent/ca.pem".to_owned());
    let said = child(&[proxy, missing]);
    assert!(said.contains("/nonexistent/ca.pem"), "{said}");
}
