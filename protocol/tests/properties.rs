//! Round trips, and what broken or hostile input does: never a panic, never a
//! wrong message, never more memory than was sent.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, missing_docs)]

use std::num::NonZeroU64;

use flashpan_protocol::agent::{
    Bytes, Command, ExecInput, ExecOutput, ExecRequest, ExitStatus, GuestMessage, HostMessage,
    MAX_DATA, MAX_FRAME, StartFailure, StartFailureKind, TerminalSize,
};
use flashpan_protocol::control::{self, Console, DiskSpec, Event, IoRate, Rate, Request, VmSpec};
use flashpan_protocol::file::{
    Change, ChangeKind, Entry, FileFailure, FileFailureKind, FileInput, FileOutput, FileRequest,
    FileStat, MAX_ENTRIES, MAX_FILE_FRAME, MAX_NAME, MAX_PATH, TreeEntry, TreeInRequest,
    WriteRequest,
};
use flashpan_protocol::forward::{
    ForwardAnswer, ForwardFailure, ForwardFailureKind, ForwardStart, MAX_FORWARD_FRAME, Transport,
};
use flashpan_protocol::frame::{Decoder, FrameError, encode, from_bytes};
use flashpan_protocol::privilege::{Capabilities, Confinement, Scope};
use proptest::prelude::*;

fn bytes() -> impl Strategy<Value = Bytes> {
    proptest::collection::vec(any::<u8>(), 0..64).prop_map(Bytes::from)
}

fn terminal() -> impl Strategy<Value = TerminalSize> {
    (any::<u16>(), any::<u16>()).prop_map(|(rows, columns)| TerminalSize { rows, columns })
}

fn confinement() -> impl Strategy<Value = Confinement> {
    let scope = || prop_oneof![Just(Scope::Private), Just(Scope::Vm)];
    let switches = (any::<bool>(), any::<bool>(), any::<bool>());
    (any::<u64>(), any::<u64>(), switches, scope(), scope()).prop_map(
        |(capabilities, ambient, switches, processes, mounts)| Confinement {
            capabilities: Capabilities(capabilities),
            ambient: Capabilities(ambient),
            no_new_privileges: switches.0,
            system_call_filter: switches.1,
            system_paths: switches.2,
            processes,
            mounts,
        },
    )
}

fn request() -> impl Strategy<Value = ExecRequest> {
    let command = prop_oneof![
        proptest::collection::vec(bytes(), 0..8).prop_map(Command::Argv),
        bytes().prop_map(Command::Shell),
    ];
    (
        command,
        proptest::collection::vec((bytes(), bytes()), 0..8),
        proptest::option::of(bytes()),
        any::<bool>(),
        proptest::option::of(".{0,20}"),
        any::<bool>(),
        proptest::option::of(terminal()),
        (any::<bool>(), confinement()),
    )
        .prop_map(
            |(
                command,
                env,
                working_dir,
                make_working_dir,
                user,
                stdin,
                terminal,
                (linger, confinement),
            )| {
                ExecRequest {
                    command,
                    env,
                    working_dir,
                    make_working_dir,
                    user,
                    stdin,
                    terminal,
                    linger,
                    confinement,
                }
            },
        )
}

fn input() -> impl Strategy<Value = ExecInput> {
    prop_oneof![
        request().prop_map(|r| ExecInput::Start(Box::new(r))),
        proptest::collection::vec(any::<u8>(), 0..2048).prop_map(ExecInput::Stdin),
        Just(ExecInput::StdinEof),
        any::<i32>().prop_map(ExecInput::Signal),
        terminal().prop_map(ExecInput::Resize),
        any::<u32>().prop_map(|grace_ms| ExecInput::Cancel { grace_ms }),
    ]
}

fn output() -> impl Strategy<Value = ExecOutput> {
    prop_oneof![
        any::<u32>().prop_map(|pid| ExecOutput::Started { pid }),
        ".{0,40}".prop_map(|message| ExecOutput::StartFailed(StartFailure {
            kind: StartFailureKind::NotFound,
            message
        })),
        proptest::collection::vec(any::<u8>(), 0..2048).prop_map(ExecOutput::Stdout),
        proptest::collection::vec(any::<u8>(), 0..2048).prop_map(ExecOutput::Stderr),
        any::<u32>().prop_map(ExecOutput::StdinCredit),
        any::<u8>().prop_map(|c| ExecOutput::Exited(ExitStatus::Code(c))),
        any::<i32>().prop_map(|s| ExecOutput::Exited(ExitStatus::Signal(s))),
    ]
}

fn file_request() -> impl Strategy<Value = FileRequest> {
    let id = || proptest::option::of(any::<u32>());
    prop_oneof![
        (bytes(), id(), id(), id(), any::<bool>()).prop_map(|(path, mode, uid, gid, parents)| {
            FileRequest::Write(WriteRequest {
                path,
                mode,
                uid,
                gid,
                parents,
            })
        }),
        (bytes(), any::<u64>(), proptest::option::of(any::<u64>())).prop_map(
            |(path, offset, length)| FileRequest::Read {
                path,
                offset,
                length
            }
        ),
        bytes().prop_map(|path| FileRequest::List { path }),
        (bytes(), any::<bool>()).prop_map(|(path, follow)| FileRequest::Stat { path, follow }),
        (bytes(), any::<u32>(), any::<bool>()).prop_map(|(path, mode, parents)| {
            FileRequest::MakeDirectory {
                path,
                mode,
                parents,
            }
        }),
        (bytes(), any::<bool>())
            .prop_map(|(path, recursive)| FileRequest::Remove { path, recursive }),
        (bytes(), bytes()).prop_map(|(from, to)| FileRequest::Rename { from, to }),
        (bytes(), any::<bool>(), any::<Option<(u32, u32)>>()).prop_map(
            |(path, contents, owner)| FileRequest::TreeIn(TreeInRequest {
                path,
                contents,
                owner
            })
        ),
        (bytes(), any::<bool>()).prop_map(|(path, follow)| FileRequest::TreeOut { path, follow }),
        (bytes(), any::<bool>(), any::<u32>()).prop_map(|(path, recursive, most)| {
            FileRequest::Watch {
                path,
                recursive,
                most,
            }
        }),
    ]
}

fn file_input() -> impl Strategy<Value = FileInput> {
    prop_oneof![
        file_request().prop_map(FileInput::Start),
        proptest::collection::vec(any::<u8>(), 0..2048).prop_map(FileInput::Data),
        Just(FileInput::End),
        tree_entry().prop_map(FileInput::Entry),
        Just(FileInput::Close),
    ]
}

fn tree_entry() -> impl Strategy<Value = TreeEntry> {
    (bytes(), stat(), bytes()).prop_map(|(name, stat, target)| TreeEntry { name, stat, target })
}

fn change() -> impl Strategy<Value = Change> {
    let kind = prop_oneof![
        Just(ChangeKind::Created),
        Just(ChangeKind::Moved),
        Just(ChangeKind::Overflow)
    ];
    (kind, bytes(), bytes(), any::<bool>()).prop_map(|(kind, path, to, directory)| Change {
        kind,
        path,
        to,
        directory,
    })
}

fn forward_start() -> impl Strategy<Value = ForwardStart> {
    let transport = prop_oneof![Just(Transport::Tcp), Just(Transport::Udp)];
    let address = any::<std::net::IpAddr>();
    (transport, address, any::<u16>()).prop_map(|(transport, address, port)| ForwardStart {
        transport,
        address,
        port,
    })
}

fn stat() -> impl Strategy<Value = FileStat> {
    let numbers = (any::<u32>(), any::<u32>(), any::<u32>());
    (numbers, any::<u64>(), any::<i64>(), any::<u32>()).prop_map(
        |((mode, uid, gid), size, modified, modified_ns)| FileStat {
            mode,
            uid,
            gid,
            size,
            modified,
            modified_ns,
        },
    )
}

fn file_output() -> impl Strategy<Value = FileOutput> {
    let entry = (bytes(), stat()).prop_map(|(name, stat)| Entry { name, stat });
    prop_oneof![
        stat().prop_map(FileOutput::Info),
        proptest::collection::vec(any::<u8>(), 0..2048).prop_map(FileOutput::Data),
        proptest::collection::vec(entry, 0..8).prop_map(FileOutput::Entries),
        Just(FileOutput::Done),
        (any::<i32>(), ".{0,40}").prop_map(|(errno, message)| FileOutput::Failed(FileFailure {
            kind: FileFailureKind::NoSpace,
            errno,
            message
        })),
        tree_entry().prop_map(FileOutput::Entry),
        Just(FileOutput::Close),
        (bytes(), stat()).prop_map(|(name, stat)| FileOutput::Skipped(Entry { name, stat })),
        proptest::collection::vec(change(), 0..8).prop_map(FileOutput::Changes),
    ]
}

fn spec() -> impl Strategy<Value = VmSpec> {
    (
        any::<u8>(),
        any::<u32>(),
        any::<bool>(),
        ".{0,64}",
        proptest::collection::vec((any::<bool>(), ".{0,20}", io_rate()), 0..8),
    )
        .prop_map(|(vcpus, memory_mib, rng, kernel_args, disks)| VmSpec {
            vcpus,
            memory_mib,
            boot_protocol: control::BootProtocol::Auto,
            initramfs: true,
            console: Console::Panic,
            kernel_args,
            disks: disks
                .into_iter()
                .map(|(read_only, id, rate)| DiskSpec {
                    volatile: !read_only,
                    read_only,
                    id,
                    rate,
                })
                .collect(),
            rng,
            network: None,
            network_rate: IoRate::default(),
            shared_memory: rng,
        })
}

fn io_rate() -> impl Strategy<Value = IoRate> {
    let rate = || {
        let rate = (any::<NonZeroU64>(), any::<NonZeroU64>());
        proptest::option::of(rate.prop_map(|(per_second, burst)| Rate { per_second, burst }))
    };
    (rate(), rate()).prop_map(|(bytes, operations)| IoRate { bytes, operations })
}

proptest! {
    /// Whatever the pieces in which a stream arrives, the messages are the same.
    #[test]
    fn frames_survive_any_fragmentation(
        messages in proptest::collection::vec(input(), 1..6),
        piece in 1_usize..97,
    ) {
        let stream: Vec<u8> =
            messages.iter().flat_map(|m| encode(m, MAX_FRAME).unwrap()).collect();
        let mut decoder = Decoder::new(MAX_FRAME);
        let mut seen = Vec::new();
        for part in stream.chunks(piece) {
            decoder.extend(part);
            while let Some(message) = decoder.next_message::<ExecInput>().unwrap() {
                seen.push(message);
            }
        }
        prop_assert_eq!(seen, messages);
        prop_assert!(decoder.is_empty());
    }

    #[test]
    fn exec_output_round_trips(message in output()) {
        let frame = encode(&message, MAX_FRAME).unwrap();
        prop_assert_eq!(from_bytes::<ExecOutput>(&frame[4..]).unwrap(), message);
    }

    #[test]
    fn file_messages_round_trip(input in file_input(), output in file_output()) {
        let frame = encode(&input, MAX_FILE_FRAME).unwrap();
        prop_assert_eq!(from_bytes::<FileInput>(&frame[4..]).unwrap(), input);
        let frame = encode(&output, MAX_FILE_FRAME).unwrap();
        prop_assert_eq!(from_bytes::<FileOutput>(&frame[4..]).unwrap(), output);
    }

    #[test]
    fn forward_messages_round_trip(start in forward_start(), errno: i32, message in ".{0,40}") {
        let frame = encode(&start, MAX_FORWARD_FRAME).unwrap();
        prop_assert_eq!(from_bytes::<ForwardStart>(&frame[4..]).unwrap(), start);
        let kind = ForwardFailureKind::Refused;
        let failure = ForwardFailure { kind, errno, message };
        let answer = ForwardAnswer::Failed(failure);
        let frame = encode(&answer, MAX_FORWARD_FRAME).unwrap();
        prop_assert_eq!(from_bytes::<ForwardAnswer>(&frame[4..]).unwrap(), answer);
    }

    /// A message cut anywhere is an error, not another message.
    #[test]
    fn truncated_file_messages_are_refused(
        input in file_input(),
        output in file_output(),
        cut in any::<prop::sample::Index>(),
    ) {
        let frame = encode(&input, MAX_FILE_FRAME).unwrap();
        prop_assert!(from_bytes::<FileInput>(&frame[4..][..cut.index(frame.len() - 4)]).is_err());
        let frame = encode(&output, MAX_FILE_FRAME).unwrap();
        prop_assert!(from_bytes::<FileOutput>(&frame[4..][..cut.index(frame.len() - 4)]).is_err());
    }

    #[test]
    fn control_round_trips(spec in spec()) {
        let message = Request::Boot(Box::new(spec));
        let packet = control::encode(&message).unwrap();
        prop_assert_eq!(control::decode::<Request>(&packet).unwrap(), message);
    }

    /// A packet cut anywhere is an error, not another message.
    #[test]
    fn truncated_packets_are_refused(spec in spec(), cut in any::<prop::sample::Index>()) {
        let packet = control::encode(&Request::Boot(Box::new(spec))).unwrap();
        let short = &packet[..cut.index(packet.len())];
        prop_assert!(control::decode::<Request>(short).is_err());
    }

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        let _ = control::decode::<Request>(&bytes);
        let _ = control::decode::<Event>(&bytes);
        let _ = from_bytes::<GuestMessage>(&bytes);
        let _ = from_bytes::<HostMessage>(&bytes);
        let _ = from_bytes::<FileInput>(&bytes);
        let _ = from_bytes::<FileOutput>(&bytes);
        let _ = from_bytes::<ForwardStart>(&bytes);
        let _ = from_bytes::<ForwardAnswer>(&bytes);
        let mut decoder = Decoder::new(MAX_FRAME);
        decoder.extend(&bytes);
        while let Ok(Some(_)) = decoder.next_message::<ExecInput>() {}
    }
}

#[test]
fn a_frame_over_the_limit_is_refused_by_its_prefix_alone() {
    let mut decoder = Decoder::new(16);
    decoder.extend(&17_u32.to_le_bytes());
    let error = decoder.next_message::<ExecInput>().unwrap_err();
    assert!(
        matches!(error, FrameError::TooLong { len: 17, max: 16 }),
        "{error}"
    );
}

#[test]
fn a_message_over_the_limit_is_not_sent() {
    let error = encode(&ExecInput::Stdin(vec![0; 100]), 50).unwrap_err();
    assert!(
        matches!(error, FrameError::TooLong { max: 50, .. }),
        "{error}"
    );
}

/// The limits of the parts add up to less than the limit of the whole.
#[test]
fn the_longest_file_messages_fit_into_a_frame() {
    let path = Bytes::from(vec![b'x'; MAX_PATH]);
    let input = |input: FileInput| encode(&input, MAX_FILE_FRAME).unwrap();
    input(FileInput::Data(vec![0; MAX_DATA]));
    input(FileInput::Start(FileRequest::Rename {
        from: path.clone(),
        to: path.clone(),
    }));
    let stat = FileStat {
        mode: u32::MAX,
        uid: u32::MAX,
        gid: u32::MAX,
        size: u64::MAX,
        modified: i64::MIN,
        modified_ns: u32::MAX,
    };
    let entry = TreeEntry {
        name: Bytes::from(vec![b'x'; MAX_NAME]),
        stat,
        target: path,
    };
    input(FileInput::Entry(entry));
    let change = Change {
        kind: ChangeKind::Overflow,
        path: Bytes::from(vec![b'x'; MAX_DATA / 3 / MAX_ENTRIES]),
        to: Bytes::new(),
        directory: true,
    };
    let changes = FileOutput::Changes(vec![change; MAX_ENTRIES]);
    encode(&changes, MAX_FILE_FRAME).unwrap();
    let name = Bytes::from(vec![b'x'; MAX_DATA / 2 / MAX_ENTRIES]);
    let entries = vec![Entry { name, stat }; MAX_ENTRIES];
    encode(&FileOutput::Entries(entries), MAX_FILE_FRAME).unwrap();
    encode(&FileOutput::Data(vec![0; MAX_DATA]), MAX_FILE_FRAME).unwrap();
}

#[test]
fn bytes_after_a_message_are_an_error() {
    let mut packet = control::encode(&Request::Kill).unwrap();
    packet.push(0);
    assert!(matches!(
        control::decode::<Request>(&packet),
        Err(FrameError::Trailing(1))
    ));
}

#[test]
fn a_stream_that_ends_inside_a_frame_is_told_from_one_that_ends_between() {
    let frame = encode(&ExecInput::Signal(15), MAX_FRAME).unwrap();
    let mut decoder = Decoder::new(MAX_FRAME);
    let mut whole = frame.as_slice();
    assert!(
        decoder
            .read_message::<ExecInput>(&mut whole)
            .unwrap()
            .is_some()
    );
    assert!(
        decoder
            .read_message::<ExecInput>(&mut whole)
            .unwrap()
            .is_none()
    );
    let mut cut = &frame[..frame.len() - 1];
    let error = decoder.read_message::<ExecInput>(&mut cut).unwrap_err();
    assert!(matches!(error, FrameError::Truncated), "{error}");
}

#[test]
fn shell_codes_follow_the_shell() {
    assert_eq!(ExitStatus::Code(42).shell_code(), 42);
    assert_eq!(ExitStatus::Signal(9).shell_code(), 137);
    assert_eq!(ExitStatus::Signal(-1).shell_code(), 255);
}
