//! What a guest says first in TLS. The same runs over the corpus in
//! `network/tests/fuzz_corpus.rs`.

use flashpan_network::host::Name;
use flashpan_network::tls::hello::{Hello, parse};
use rustls::server::Acceptor;

/// Whatever is read is read in the same way when it comes in pieces, and as the one who
/// answers it reads it.
pub fn hello(data: &[u8]) {
    let whole = parse(data);
    for len in (0..data.len()).rev().take(64) {
        let part = parse(data.get(..len).unwrap());
        match (&part, &whole) {
            // More is needed, of which something is known.
            (Ok(None), _) => {}
            (Ok(Some(part)), Ok(Some(whole))) => assert_eq!(part, whole),
            (Err(part), Err(whole)) => assert_eq!(part.to_string(), whole.to_string()),
            (part, whole) => panic!("{part:?} of {whole:?}"),
        }
    }
    let Ok(Some(ours)) = whole else {
        return;
    };
    if let Some(theirs) = read_by_others(data) {
        assert_eq!(ours.server_name, theirs.server_name);
        assert_eq!(ours.alpn, theirs.alpn);
    }
}

/// The same, as rustls reads it.
fn read_by_others(mut data: &[u8]) -> Option<Hello> {
    let mut acceptor = Acceptor::default();
    let accepted = loop {
        match acceptor.accept() {
            Ok(Some(accepted)) => break accepted,
            Ok(None) => {}
            Err(_) => return None,
        }
        if acceptor.read_tls(&mut data).ok()? == 0 {
            return None;
        }
    };
    let hello = accepted.client_hello();
    let protocols = hello.alpn();
    Some(Hello {
        server_name: hello
            .server_name()
            .map(|name| name.parse::<Name>().unwrap()),
        alpn: protocols.map_or_else(Vec::new, |all| all.map(<[u8]>::to_vec).collect()),
        is_encrypted: false,
    })
}
