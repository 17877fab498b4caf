//! What `--user` means, on account files as images have them.

use super::{Accounts, Identity, UserError};

fn accounts() -> Accounts {
    Accounts {
        passwd: b"root:x:0:0:root:/root:/bin/sh\n\
            daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\n\
            # a comment\n\
            broken line\n\
            :x:7:7::/:\n\
            negative:x:-1:7::/:\n\
            1000:x:0:0:root in disguise:/root:/bin/sh\n\
            4711:x:0:0:and again:/root:/bin/sh\n\
            alice:x:1000:1001:Alice:/home/alice:/bin/bash\n\
            nohome:x:5:5:::\n\
            short:x:6:6"
            .to_vec(),
        group: b"root:x:0:root\n\
            adm:x:4:alice,daemon\n\
            staff:x:50:\n\
            alice:x:1001:\n\
            docker:x:999:bob,alice\n\
            77:x:0:\n\
            again:x:999:alice\n\
            bad:x:many:alice\n"
            .to_vec(),
    }
}

fn identity(uid: u32, gid: u32, groups: &[u32], home: &str) -> Identity {
    Identity {
        uid,
        gid,
        groups: groups.to_vec(),
        home: home.into(),
    }
}

#[test]
fn no_user_is_root_with_its_groups_and_home() {
    assert_eq!(accounts().resolve(None), Ok(identity(0, 0, &[0], "/root")));
}

#[test]
fn a_name_brings_primary_and_supplementary_groups_and_home() {
    let alice = identity(1000, 1001, &[4, 999, 1001], "/home/alice");
    assert_eq!(accounts().resolve(Some("alice")), Ok(alice));
}

#[test]
fn a_number_is_never_taken_for_the_name_of_another_user() {
    let alice = identity(1000, 1001, &[4, 999, 1001], "/home/alice");
    assert_eq!(accounts().resolve(Some("1000")), Ok(alice));
    // No user has this number, and one who is root has it as a name.
    assert_eq!(
        accounts().resolve(Some("4711")),
        Ok(identity(4711, 0, &[0], "/"))
    );
    assert_eq!(
        accounts().resolve(Some("alice:77")),
        Ok(identity(1000, 77, &[77], "/home/alice"))
    );
}

#[test]
fn a_known_number_is_the_user_and_an_unknown_one_has_group_zero() {
    assert_eq!(
        accounts().resolve(Some("1")),
        Ok(identity(1, 1, &[1, 4], "/usr/sbin"))
    );
    assert_eq!(
        accounts().resolve(Some("4712")),
        Ok(identity(4712, 0, &[0], "/"))
    );
}

#[test]
fn a_given_group_replaces_all_others() {
    assert_eq!(
        accounts().resolve(Some("alice:staff")),
        Ok(identity(1000, 50, &[50], "/home/alice"))
    );
    assert_eq!(
        accounts().resolve(Some("5:77")),
        Ok(identity(5, 77, &[77], "/"))
    );
}

#[test]
fn short_lines_and_missing_files_are_no_obstacle() {
    assert_eq!(
        accounts().resolve(Some("short")),
        Ok(identity(6, 6, &[6], "/"))
    );
    assert_eq!(
        Accounts::default().resolve(None),
        Ok(identity(0, 0, &[0], "/"))
    );
    assert_eq!(
        Accounts::default().resolve(Some("5:6")),
        Ok(identity(5, 6, &[6], "/"))
    );
}

#[test]
fn what_is_not_there_is_named() {
    let resolve = |spec: &str| accounts().resolve(Some(spec)).unwrap_err();
    assert_eq!(resolve("bob"), UserError::NoUser("bob".into()));
    assert_eq!(resolve("alice:bad"), UserError::NoGroup("bad".into()));
    assert_eq!(resolve("negative"), UserError::NoUser("negative".into()));
    assert_eq!(resolve("-1"), UserError::NoUser("-1".into()));
    assert_eq!(
        resolve("4294967295"),
        UserError::IdTooLarge("4294967295".into())
    );
    assert_eq!(
        resolve("99999999999999999999"),
        UserError::IdTooLarge("99999999999999999999".into())
    );
    for spec in ["", ":", ":root", "root:", "root:root:root"] {
        assert_eq!(resolve(spec), UserError::Malformed(spec.into()));
    }
}
