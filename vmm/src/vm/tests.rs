//! What is refused before anything is built.

use flashpan_protocol::control::{BootProtocol, DiskSpec, IoRate};

use super::*;

/// What `check` says of a machine with disks of these identifiers.
fn checked(ids: &[&str]) -> Result<(), BootError> {
    let disk = |id: &&str| DiskSpec {
        volatile: false,
        read_only: true,
        id: (*id).to_owned(),
        rate: IoRate::default(),
    };
    let file = || vmm_sys_util::tempfile::TempFile::new().unwrap().into_file();
    let spec = VmSpec {
        vcpus: 1,
        memory_mib: 128,
        boot_protocol: BootProtocol::Auto,
        initramfs: false,
        console: Console::Off,
        kernel_args: String::new(),
        disks: ids.iter().map(disk).collect(),
        rng: false,
        network: None,
        network_rate: IoRate::default(),
        shared_memory: false,
    };
    let resources = Resources {
        kernel: file(),
        initramfs: None,
        console: None,
        disks: ids.iter().map(|_| file()).collect(),
    };
    check(&spec, &resources)
}

/// A guest gets an identifier as it was given, or not at all: two that are cut
/// may be the same.
#[test]
fn identifiers_that_would_be_cut_are_refused() {
    let longest = "x".repeat(MAX_DISK_ID);
    checked(&["", &longest]).unwrap();
    let error = checked(&["root", &format!("{longest}y")]).unwrap_err();
    assert_eq!(error.kind, BootFailureKind::BadRequest);
    assert_eq!(
        error.message,
        "the identifier of disk 1 has 21 bytes: give at most 20"
    );
}
