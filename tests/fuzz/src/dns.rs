//! What a guest sends to a name server. The same runs over the corpus in
//! `network/tests/fuzz_corpus.rs`.

use std::sync::Arc;
use std::time::Duration;

use flashpan_network::dns::{Resolver, Server, Settings, Transport};
use flashpan_network::names::Names;
use flashpan_network::policy::Policy;
use flashpan_network::report;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::sync::watch;
use tokio::time::timeout;

/// More than anything here takes: waiting this long is a hang.
const PATIENCE: Duration = Duration::from_secs(600);

/// The first byte says how it comes; then there are messages, each with its length in two
/// bytes before it, as in a stream.
pub fn dns(data: &[u8]) {
    let [choice, rest @ ..] = data else {
        return;
    };
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let server = server(choice & 1 != 0);
        match choice & 2 {
            0 => messages(&server, rest).await,
            _ => stream(&server, rest, usize::from(choice >> 2) + 1).await,
        }
    });
}

/// Somebody who knows two names, and asks nobody.
fn server(synthetic: bool) -> Server {
    let hosts = [("a.test", "93.184.215.14"), ("b.test", "10.0.0.1")];
    let hosts = hosts.map(|(name, address)| (name.parse().unwrap(), address.parse().unwrap()));
    let policy = Policy {
        allow: vec!["a.test".parse().unwrap(), "b.test".parse().unwrap()],
        ..Policy::default()
    };
    let (reporter, _) = report::channel(1);
    let (_, policy) = watch::channel(Arc::new(policy));
    Server {
        resolver: Arc::new(Resolver::new(Settings {
            servers: vec!["127.0.0.1:1".parse().unwrap()],
            hosts: hosts.to_vec(),
            synthetic,
        })),
        names: Arc::new(Names::new()),
        reporter,
        policy,
    }
}

async fn messages(server: &Server, mut rest: &[u8]) {
    while let [high, low, more @ ..] = rest {
        let len = usize::from(u16::from_be_bytes([*high, *low])).min(more.len());
        let (message, after) = more.split_at(len);
        rest = after;
        for (transport, most) in [(Transport::Udp, 1232), (Transport::Tcp, 65_535)] {
            if let Some(answer) = server.answer(transport, message).await {
                assert!((12..=most).contains(&answer.len()));
                is_answer(message, &answer);
            }
        }
    }
}

/// An answer has the number of its question, and says that it is one.
fn is_answer(message: &[u8], answer: &[u8]) {
    assert_eq!(answer[..2], message[..2]);
    assert!(answer[2] & 0x80 != 0 && message[2] & 0x80 == 0);
    // As many questions as were read, and nothing that is not of an answer.
    assert!(answer[4..6] == [0, 0] || answer[4..6] == [0, 1]);
    assert_eq!(answer[8..10], [0, 0]);
}

async fn stream(server: &Server, data: &[u8], step: usize) {
    let (inside, outside) = duplex(4096);
    let (mut reader, mut writer) = tokio::io::split(inside);
    let write = async move {
        for piece in data.chunks(step) {
            // It may have ended.
            if writer.write_all(piece).await.is_err() {
                break;
            }
        }
        let _ = writer.shutdown().await;
    };
    let read = async move {
        let mut answers = Vec::new();
        reader.read_to_end(&mut answers).await.unwrap();
        answers
    };
    let served = async { tokio::join!(server.serve_stream(outside), write, read) };
    let (_, (), answers) = timeout(PATIENCE, served).await.unwrap();
    // Whole messages, whatever came.
    let mut rest = answers.as_slice();
    while let [high, low, more @ ..] = rest {
        let len = usize::from(u16::from_be_bytes([*high, *low]));
        assert!(len >= 12);
        rest = &more[len..];
    }
    assert!(rest.is_empty());
}
