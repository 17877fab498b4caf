//! Messages that nobody means well with.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// A question with this header, and what follows.
fn message(flags: u16, counts: [u16; 4], rest: &[u8]) -> Vec<u8> {
    let mut message = vec![0x12, 0x34];
    message.extend(flags.to_be_bytes());
    for count in counts {
        message.extend(count.to_be_bytes());
    }
    message.extend(rest);
    message
}

const A_TEST: &[u8] = b"\x01a\x04test\0\0\x01\0\x01";
const QUERY: u16 = 0x0100;

#[tokio::test]
async fn what_is_no_question_gets_no_answer() {
    let guest = Guest::new(&["a.test"]).await;
    let response = message(0x8180, [1, 0, 0, 0], A_TEST);
    for nothing in [&b""[..], b"\0", &[0; 11], &response] {
        for transport in [Transport::Udp, Transport::Tcp] {
            assert_eq!(guest.server.answer(transport, nothing).await, None);
        }
    }
}

#[tokio::test]
async fn what_cannot_be_read_is_an_error() {
    let guest = Guest::new(&["*.test"]).await;
    let opcode = |code: u16| QUERY | code << 11;
    let option = b"\0\0\x29\x10\0\0\0\0\0\0\0";
    let new_version = b"\0\0\x29\x10\0\0\x01\0\0\0\0";
    let with = |more: &[u8]| [A_TEST, more].concat();
    for (what, asked, code) in [
        (
            "no question",
            message(QUERY, [0; 4], b""),
            ResponseCode::FormErr,
        ),
        (
            "two",
            message(QUERY, [2, 0, 0, 0], &with(A_TEST)),
            ResponseCode::FormErr,
        ),
        (
            "too few",
            message(QUERY, [1, 0, 0, 0], b""),
            ResponseCode::FormErr,
        ),
        (
            "cut off",
            message(QUERY, [1, 0, 0, 0], &A_TEST[..8]),
            ResponseCode::FormErr,
        ),
        (
            "an answer",
            message(QUERY, [1, 1, 0, 0], &with(option)),
            ResponseCode::FormErr,
        ),
        (
            "a loop",
            message(QUERY, [1, 0, 0, 0], b"\xc0\x0c\0\x01\0\x01"),
            ResponseCode::FormErr,
        ),
        (
            "a long loop",
            message(QUERY, [1, 0, 0, 0], b"\x01a\xc0\x0c\0\x01\0\x01"),
            ResponseCode::FormErr,
        ),
        (
            "a pointer ahead",
            message(QUERY, [1, 0, 0, 0], b"\xc0\xff\0\x01\0\x01"),
            ResponseCode::FormErr,
        ),
        (
            "a label of 64",
            message(QUERY, [1, 0, 0, 0], &[64; 80]),
            ResponseCode::FormErr,
        ),
        (
            "a name of 300",
            message(QUERY, [1, 0, 0, 0], &b"\x02ab".repeat(100)),
            ResponseCode::FormErr,
        ),
        (
            "more than there is",
            message(QUERY, [1, 0, 0, 9], A_TEST),
            ResponseCode::FormErr,
        ),
        (
            "two sets of options",
            message(QUERY, [1, 0, 0, 2], &with(&option.repeat(2))),
            ResponseCode::FormErr,
        ),
        (
            "oversize",
            message(QUERY, [1, 0, 0, 0], &with(&[0; 4096])),
            ResponseCode::FormErr,
        ),
        (
            "status",
            message(opcode(2), [1, 0, 0, 0], A_TEST),
            ResponseCode::NotImp,
        ),
        (
            "notify",
            message(opcode(4), [1, 0, 0, 0], A_TEST),
            ResponseCode::NotImp,
        ),
        (
            "update",
            message(opcode(5), [1, 0, 0, 0], A_TEST),
            ResponseCode::NotImp,
        ),
        (
            "unknown",
            message(opcode(15), [1, 0, 0, 0], A_TEST),
            ResponseCode::NotImp,
        ),
        (
            "a new version",
            message(QUERY, [1, 0, 0, 1], &with(new_version)),
            ResponseCode::BADVERS,
        ),
    ] {
        for transport in [Transport::Udp, Transport::Tcp] {
            let answer = guest.server.answer(transport, &asked).await.unwrap();
            assert!(answer.len() <= 512);
            let answer = Message::from_vec(&answer).unwrap();
            let number = |code: ResponseCode| u16::from(code);
            assert_eq!(number(answer.response_code), number(code), "{what}");
            assert_eq!(
                (answer.id, answer.message_type),
                (0x1234, MessageType::Response)
            );
        }
    }
    assert_eq!(guest.upstream.had(), []);
}

/// What any message is answered: nothing, or what a client can read.
fn answered(message: &[u8]) {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().start_paused(true).build().unwrap();
    let (reporter, _reports) = report::channel(1);
    let resolver = Resolver::new(Settings {
        servers: vec!["127.0.0.1:1".parse().unwrap()],
        hosts: vec![(name("a.test"), PUBLIC.parse().unwrap())],
        synthetic: message.len().is_multiple_of(2),
    });
    let policy = allowing(&["a.test"]);
    let names = Names::new();
    for (transport, most) in [(Transport::Udp, 1232), (Transport::Tcp, 65_535)] {
        let answer = resolver.answer(&policy, &names, &reporter, transport, message);
        let Some(answer) = runtime.block_on(answer) else {
            continue;
        };
        assert!(answer.len() <= most);
        assert_eq!(answer[..2], message[..2]);
        let answer = Message::from_vec(&answer).unwrap();
        assert_eq!(answer.message_type, MessageType::Response);
        for record in &answer.answers {
            assert_eq!(record.name, answer.queries[0].name);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn anything_is_answered_or_not(message in vec(any::<u8>(), 0..600)) {
        answered(&message);
    }

    #[test]
    fn anything_that_begins_like_a_question(
        counts in any::<[u8; 4]>(),
        rest in vec(prop_oneof![Just(0xc0), Just(0x0c), Just(0), Just(1), any::<u8>()], 0..300),
    ) {
        let counts = counts.map(|count| u16::from(count % 3));
        answered(&message(QUERY, counts, &rest));
        answered(&message(QUERY, [1, 0, 0, counts[0]], &rest));
    }

    #[test]
    fn a_question_with_a_few_bytes_changed(
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        option in vec(any::<u8>(), 0..64),
    ) {
        let mut asked = question("a.test.", RecordType::A);
        let option = EdnsOption::Unknown(65_001, option);
        asked.edns.as_mut().unwrap().options_mut().insert(option);
        let mut asked = asked.to_vec().unwrap();
        for (place, byte) in changes {
            let place = place.index(asked.len());
            asked[place] = byte;
        }
        answered(&asked);
    }
}
