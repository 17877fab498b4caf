//! Questions in datagrams and in streams.

use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::server::{Say, record};
use super::*;
use crate::message::Messages;

const PATIENCE: Duration = Duration::from_secs(20);

fn sockets() -> (Messages, OwnedFd) {
    let flags = SockFlag::SOCK_CLOEXEC;
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
    (Messages::new(ours).unwrap(), theirs)
}

fn bytes(id: u16, name: &str) -> Vec<u8> {
    let mut question = question(name, RecordType::A);
    question.metadata.id = id;
    question.to_vec().unwrap()
}

fn framed(id: u16, name: &str) -> Vec<u8> {
    let question = bytes(id, name);
    let len = u16::try_from(question.len()).unwrap().to_be_bytes();
    [&len[..], &question].concat()
}

async fn received(messages: &Messages) -> Message {
    let mut buffer = [0; 2048];
    let len = timeout(PATIENCE, messages.receive(&mut buffer)).await;
    Message::from_vec(&buffer[..len.unwrap().unwrap()]).unwrap()
}

async fn read(stream: &mut DuplexStream) -> Message {
    let read = async {
        let mut answer = vec![0; stream.read_u16().await.unwrap().into()];
        stream.read_exact(&mut answer).await.unwrap();
        Message::from_vec(&answer).unwrap()
    };
    timeout(PATIENCE, read).await.unwrap()
}

/// A guest, and a name that has an address when it is told to.
async fn held() -> (Guest, Arc<Notify>) {
    let guest = Guest::new(&["slow.test", "fast.test"]).await;
    let until = Arc::new(Notify::new());
    let records = vec![record(
        "slow.test",
        RData::from(PUBLIC.parse::<IpAddr>().unwrap()),
    )];
    let say = Say::Held(Arc::clone(&until), records);
    guest.upstream.says("slow.test", RecordType::A, say);
    guest.upstream.has("fast.test", &[PUBLIC]);
    (guest, until)
}

#[tokio::test]
async fn a_datagram_that_takes_long_holds_up_no_other() {
    let (guest, until) = held().await;
    let (inside, socket) = sockets();
    let server = guest.server.clone();
    let serving = tokio::spawn(async move { server.serve_socket(socket).await });
    // What is no question is lost, a question that is cut off is none.
    for junk in [&b""[..], b"hello", &[0xff; 100]] {
        inside.send(junk).await.unwrap();
    }
    inside.send(&bytes(1, "slow.test.")).await.unwrap();
    inside.send(&bytes(2, "fast.test.")).await.unwrap();
    inside.send(&bytes(3, "evil.test.")).await.unwrap();
    let mut answers = [received(&inside).await, received(&inside).await];
    answers.sort_by_key(|answer| answer.id);
    assert_eq!((answers[0].id, answers[0].answers.len()), (2, 1));
    assert_eq!(
        (answers[1].id, answers[1].response_code),
        (3, ResponseCode::Refused)
    );
    until.notify_one();
    let answer = received(&inside).await;
    assert_eq!((answer.id, answer.answers.len()), (1, 1));
    drop(inside);
    timeout(PATIENCE, serving).await.unwrap().unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn who_is_silent_is_left() {
    let guest = Guest::new(&[]).await;
    let (_inside, socket) = sockets();
    guest.server.serve_socket(socket).await.unwrap();
    let (_inside, stream) = duplex(64);
    guest.server.serve_stream(stream).await.unwrap();
}

#[tokio::test]
async fn a_stream_has_many_questions_in_any_pieces() {
    let (guest, until) = held().await;
    let (mut inside, outside) = duplex(64 * 1024);
    let server = guest.server.clone();
    let serving = tokio::spawn(async move { server.serve_stream(outside).await });
    // Three at once, of which each is decided by itself.
    let three = [
        framed(1, "slow.test."),
        framed(2, "fast.test."),
        framed(3, "evil.test."),
    ];
    inside.write_all(&three.concat()).await.unwrap();
    let mut answers = [read(&mut inside).await, read(&mut inside).await];
    answers.sort_by_key(|answer| answer.id);
    assert_eq!((answers[0].id, answers[0].answers.len()), (2, 1));
    assert_eq!(
        (answers[1].id, answers[1].response_code),
        (3, ResponseCode::Refused)
    );
    // One in many pieces.
    for byte in framed(4, "fast.test.") {
        inside.write_all(&[byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    assert_eq!(read(&mut inside).await.id, 4);
    // What is still to be answered is answered, when the guest has said its last.
    inside.shutdown().await.unwrap();
    until.notify_one();
    let answer = read(&mut inside).await;
    assert_eq!((answer.id, answer.answers.len()), (1, 1));
    let ended = timeout(PATIENCE, inside.read_u8()).await.unwrap();
    assert!(ended.is_err());
    timeout(PATIENCE, serving).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn more_questions_than_are_answered_at_once_wait() {
    let (guest, until) = held().await;
    let (mut inside, outside) = duplex(256);
    let server = guest.server.clone();
    tokio::spawn(async move { server.serve_stream(outside).await });
    let (mut reader, mut writer) = tokio::io::split(inside);
    let writing = tokio::spawn(async move {
        for id in 0..100 {
            writer.write_all(&framed(id, "slow.test.")).await.unwrap();
        }
        writer
    });
    until.notify_one();
    let mut seen = Vec::new();
    for _ in 0..100 {
        let len = timeout(PATIENCE, reader.read_u16()).await.unwrap().unwrap();
        let mut answer = vec![0; len.into()];
        reader.read_exact(&mut answer).await.unwrap();
        seen.push(Message::from_vec(&answer).unwrap().id);
    }
    seen.sort_unstable();
    assert_eq!(seen, (0..100).collect::<Vec<u16>>());
    inside = reader.unsplit(writing.await.unwrap());
    drop(inside);
}

#[tokio::test]
async fn a_stream_of_something_else_ends() {
    for junk in [
        &b"SSH-2.0-OpenSSH_9.9\r\n"[..],
        b"\0\0",
        b"\0\x04abcd",
        b"\xff\xff\0\0",
        &[&[0, 16][..], &[0xff; 16]].concat(),
    ] {
        let guest = Guest::new(&[]).await;
        let (mut inside, outside) = duplex(1024);
        inside.write_all(junk).await.unwrap();
        let served = timeout(PATIENCE, guest.server.serve_stream(outside)).await;
        served.unwrap().unwrap();
        let mut rest = Vec::new();
        inside.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"");
    }
}
