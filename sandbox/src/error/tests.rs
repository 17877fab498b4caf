//! What people are told.

use super::*;

#[test]
fn a_boot_timeout_says_how_far_it_got() {
    let error = Error::BootTimeout {
        after: Duration::from_secs(60),
        reached: Some(Phase::KernelEntry),
        console: Some("VFS: cannot open root".into()),
    };
    assert_eq!(
        error.to_string(),
        "guest was not ready within 60s (it got as far as kernel_entry); \
         last on its console: VFS: cannot open root; \
         allow it more time if this host is busy"
    );
}

#[test]
fn names_that_a_guest_chose_are_shown_on_one_line() {
    let path = PathBuf::from("/here/a\u{1b}[2J\nb");
    let below_a_copy = Error::HostFile {
        what: "write it",
        path: path.clone(),
        source: io::Error::other("no"),
    };
    let from_a_listing = Error::CopyTooLong { path, limit: 1 };
    for error in [below_a_copy, from_a_listing] {
        let text = error.to_string();
        assert!(text.contains("/here/a?[2J b"), "{text:?}");
        assert!(!text.contains(char::is_control), "{text:?}");
    }
}

#[test]
fn a_guest_that_gave_up_is_quoted_and_its_kernel_suspected() {
    let mut error = Error::GaveUp {
        message: Some("connect to the supervisor: not supported".into()),
        console: None,
        connected: false,
    };
    let text = error.to_string();
    assert!(
        text.starts_with(
            "guest gave up before it was ready: it could not connect to the \
             supervisor: not supported; its kernel needs VSOCKETS, "
        ),
        "{text}"
    );
    assert!(!text.contains("  "), "{text}");
    error = Error::GaveUp {
        message: None,
        console: Some("last".into()),
        connected: true,
    };
    assert_eq!(
        error.to_string(),
        "guest gave up before it was ready; last on its console: last"
    );
}

#[test]
fn messages_are_one_line() {
    let error = Error::ProgramNotFound {
        name: "flashpan-vmm",
        variable: "FLASHPAN_VMM",
        why: "it is not beside this program".into(),
    };
    assert!(!error.to_string().contains('\n'));
    assert!(error.to_string().contains("FLASHPAN_VMM"));
}
