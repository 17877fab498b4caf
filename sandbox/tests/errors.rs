//! Errors that programs are told to go by, got as their users get them.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::collections::BTreeSet;
use std::fs;

use flashpan::api::{ErrorCode, NetworkEvent};
use flashpan::state::{Record, Vm, Vms};
use flashpan::{Error, Sandbox};

/// The page that explains the codes.
const PAGE: &str = include_str!("../../docs/config.md");

fn vms(directory: &tempfile::TempDir) -> Vms {
    Vms::at(directory.path())
}

fn created(vms: &Vms, name: Option<&str>) -> Result<Vm, Error> {
    let mut record = Record::new(serde_json::Value::Null);
    record.name = name.map(str::to_owned);
    Ok(vms.create()?.publish(record)?)
}

fn find(vms: &Vms, text: &str) -> Result<Vm, Error> {
    Ok(vms.find(text)?)
}

#[test]
fn a_vm_that_is_not_there_is_an_error_of_its_own() {
    let directory = tempfile::tempdir().unwrap();
    let vms = vms(&directory);
    let error = find(&vms, "web").unwrap_err();
    assert!(
        matches!(&error, Error::NotFound { id } if id == "web"),
        "{error:?}"
    );
    assert_eq!(error.code(), ErrorCode::VmNotFound);
    assert_eq!(error.to_string(), vms.find("web").unwrap_err().to_string());
}

#[test]
fn names_and_ids_that_cannot_be_used_have_codes_of_their_own() {
    let directory = tempfile::tempdir().unwrap();
    let vms = vms(&directory);
    created(&vms, Some("web")).unwrap();
    let taken = created(&vms, Some("web")).unwrap_err();
    assert_eq!(taken.code(), ErrorCode::VmNameTaken);
    let invalid = created(&vms, Some("-")).unwrap_err();
    assert_eq!(invalid.code(), ErrorCode::VmNameInvalid);
    // Of 17 ids two begin with the same of 16 digits.
    let mut beginnings = BTreeSet::new();
    let twice = (0..17).find_map(|_| {
        let beginning = created(&vms, None).unwrap().id()[..4].to_owned();
        (!beginnings.insert(beginning.clone())).then_some(beginning)
    });
    let ambiguous = find(&vms, &twice.unwrap()).unwrap_err();
    assert_eq!(ambiguous.code(), ErrorCode::VmAmbiguous);
    let damaged = created(&vms, Some("broken")).unwrap();
    fs::write(damaged.directory().join("vm.json"), "{").unwrap();
    let damaged = find(&vms, damaged.id()).unwrap_err();
    assert_eq!(damaged.code(), ErrorCode::VmState);
}

#[tokio::test]
async fn a_vm_that_does_not_run_is_not_reached() {
    let directory = tempfile::tempdir().unwrap();
    let vms = vms(&directory);
    let vm = created(&vms, None).unwrap();
    let error = Sandbox::attach(&vm).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::VmNotRunning);
    let text = error.to_string();
    assert!(text.contains(&format!("{} is created", vm.id())), "{text}");
}

#[test]
fn what_the_network_refused_is_an_error_for_those_who_want_one() {
    let event = |json: &str| serde_json::from_str::<NetworkEvent>(json).unwrap();
    for (reason, code) in [
        ("request blocked by policy", ErrorCode::Blocked),
        ("host not in allowlist", ErrorCode::HostNotAllowed),
        (
            "secret placeholder sent to unauthorized host",
            ErrorCode::SecretLeak,
        ),
    ] {
        let json = format!(r#"{{"host":"a\nb","blocked":true,"block_reason":"{reason}"}}"#);
        let refusal = event(&json).refusal().unwrap();
        assert_eq!(refusal.code(), code);
        assert_eq!(refusal.to_string(), format!("{reason}: a b"));
    }
    assert!(event(r#"{"host":"a"}"#).refusal().is_none());
}

#[test]
fn every_code_is_explained() {
    let explained: BTreeSet<_> = PAGE.split('`').skip(1).step_by(2).collect();
    for code in ErrorCode::ALL {
        assert!(explained.contains(code.as_str()), "{code}");
    }
}
