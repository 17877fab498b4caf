//! What only root can make.

use std::process::Command;

use super::super::probe;

#[test]
#[ignore = "needs root: makes a device"]
fn block_devices_are_refused_with_advice() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("device");
    let made = Command::new("mknod")
        .arg(&path)
        .args(["b", "7", "0"])
        .status();
    assert!(made.unwrap().success());
    let error = probe(&path).unwrap_err().to_string();
    assert!(error.contains("it is a block device; copy it"), "{error}");
}
