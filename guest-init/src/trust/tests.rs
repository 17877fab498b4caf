//! Bundles, and stores that `keytool` of Java 17 made, and what becomes of them: `plain.*`
//! have the certificate `other`, in `plain.p12` without encryption and seal; `key.jks` has a
//! private key too; `password.jks` and `sealed.p12` are not changed. `authority.*` are
//! `plain.*` with the authority, as `keytool -list` shows both certificates of.

use super::java::{StoreError, with_authority};

const AUTHORITY: &str = include_str!("stores/authority.pem");
const OTHER: &str = include_str!("stores/other.pem");
const JKS: &[u8] = include_bytes!("stores/plain.jks");
const PKCS12: &[u8] = include_bytes!("stores/plain.p12");
const WITH: [(&[u8], &[u8]); 2] = [
    (JKS, include_bytes!("stores/authority.jks")),
    (PKCS12, include_bytes!("stores/authority.p12")),
];
const NOW: u64 = 1_700_000_000_000;

#[test]
fn the_authority_is_added_as_java_reads_it() {
    for (store, expected) in WITH {
        let with = with_authority(store, AUTHORITY, NOW).unwrap();
        assert!(with == expected, "{}", with.escape_ascii());
    }
}

#[test]
fn a_store_has_the_last_authority_once() {
    for (store, expected) in WITH {
        let before = with_authority(store, OTHER, NOW).unwrap();
        assert!(before != expected);
        for earlier in [&before, expected] {
            let with = with_authority(earlier, AUTHORITY, NOW).unwrap();
            assert!(with == expected, "{}", with.escape_ascii());
        }
    }
}

#[test]
fn an_empty_store_gets_its_first_certificate() {
    // What it is after the authority was added to it: the same without the other one.
    let (_, with) = WITH[0];
    let entry = JKS.len() - 32;
    let mut empty = vec![0xfe, 0xed, 0xfe, 0xed, 0, 0, 0, 2, 0, 0, 0, 0];
    empty.extend(
        b"\xe2\x68\x6e\x45\xfb\x43\xdf\xa4\xd9\x92\xdd\x41\xce\xb6\xb2\x1c\x63\x30\xd7\x92",
    );
    let first = with_authority(&empty, AUTHORITY, NOW).unwrap();
    assert_eq!(first[8..12], [0, 0, 0, 1]);
    assert_eq!(
        first[12..first.len() - 20],
        with[12 + entry..with.len() - 20]
    );
}

#[test]
fn a_private_key_stays_as_it_is() {
    let store = include_bytes!("stores/key.jks");
    let with = with_authority(store, AUTHORITY, NOW).unwrap();
    assert_eq!(with[8..12], [0, 0, 0, 3]);
    let entries = &store[12..store.len() - 20];
    assert_eq!(with[12..12 + entries.len()], *entries);
}

#[test]
fn a_store_of_another_password_stays_as_it_is() {
    let password = include_bytes!("stores/password.jks");
    let sealed = include_bytes!("stores/sealed.p12");
    let of = |store| with_authority(store, AUTHORITY, NOW);
    assert_eq!(of(&password[..]), Err(StoreError::Password));
    assert_eq!(of(&sealed[..]), Err(StoreError::Sealed));
}

#[test]
fn a_store_that_is_cut_off_or_goes_on_stays_as_it_is() {
    for store in [JKS, PKCS12, include_bytes!("stores/key.jks")] {
        for len in 0..store.len() {
            let cut = with_authority(&store[..len], AUTHORITY, NOW);
            let of_format = matches!(cut, Err(StoreError::Damaged { .. } | StoreError::Unknown));
            assert!(of_format, "{len}: {cut:?}");
        }
        let more = [store, b"\0"].concat();
        assert!(with_authority(&more, AUTHORITY, NOW).is_err());
    }
}

#[test]
fn lengths_that_lie_are_found_out() {
    for store in [JKS, PKCS12, include_bytes!("stores/key.jks")] {
        for at in 0..store.len() {
            for value in [0, 0x7f, 0x80, 0x84, 0x88, 0xff] {
                let mut changed = store.to_vec();
                if std::mem::replace(&mut changed[at], value) == value {
                    continue;
                }
                let with = with_authority(&changed, AUTHORITY, NOW);
                // There is no digest in the other format; certificates are not looked at.
                assert!(with.is_err() || store == PKCS12, "{at} {value}");
            }
        }
    }
}

#[test]
fn a_bundle_has_the_last_authority_once() {
    let first = super::with_authority("A\nB", "1\n");
    assert_eq!(first, "A\nB\n# flashpan: begin\n1\n# flashpan: end\n");
    let second = super::with_authority(&first, "2");
    assert_eq!(second, "A\nB\n# flashpan: begin\n2\n# flashpan: end\n");
    // What was added behind it stays.
    let more = super::with_authority(&format!("{second}C\n"), "3\n");
    assert_eq!(more, "A\nB\nC\n# flashpan: begin\n3\n# flashpan: end\n");
    assert_eq!(
        super::with_authority("", "1\n"),
        "# flashpan: begin\n1\n# flashpan: end\n"
    );
}

/// Where a store is, an image may have anything.
#[test]
fn a_store_that_may_never_say_anything_is_not_waited_for() {
    let path = std::env::temp_dir().join(format!("pipe-{}", crate::testing::unique()));
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let error = super::read(&path).unwrap_err();
    assert_eq!(error.to_string(), "it is no file");
    std::fs::remove_file(path).unwrap();
}
