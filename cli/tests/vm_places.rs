//! Directories of VMs that are full, read-only, deep down or somebody else's.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

#[path = "support/fake.rs"]
mod fake;
#[path = "support/vms.rs"]
mod vms;

use std::fs;
use std::os::unix::fs::symlink;
use std::process::{Command, Output};

use vms::Vms;

#[test]
fn a_path_that_is_too_long_for_a_socket_is_none_for_a_vm() {
    let vms = Vms::new("normal");
    let deep = vms
        .0
        .path("state")
        .join("d".repeat(150))
        .join("e".repeat(150));
    fs::create_dir_all(&deep).unwrap();
    let there = |mut command: Command| {
        let output = command.env("XDG_STATE_HOME", &deep).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    there(vms.making(&["run", "-d"], &["--name", "web"], &["sleep"]));
    assert_eq!(there(vms.0.flashpan(&["exec", "web", "both"])), "out");
    there(vms.0.flashpan(&["stop", "web"]));
    there(vms.0.flashpan(&["rm", "web"]));
    vms.vmm_is_gone();
}

/// A script with the state directory on a file system of its own, of that size.
fn in_small_place(vms: &Vms, size: &str, script: &str) -> Output {
    let state = vms.0.path("state");
    fs::create_dir_all(&state).unwrap();
    let state = state.display();
    let script = format!("set -e; mount -t tmpfs -o size={size} none {state}; {script}");
    let mut unshare = Command::new("unshare");
    for (name, value) in vms.0.flashpan(&[]).get_envs() {
        unshare.env(name, value.unwrap());
    }
    unshare
        .env("FP", env!("CARGO_BIN_EXE_flashpan"))
        .env("ROOT", vms.0.path("root"))
        .args(["-r", "-m", "sh", "-c", &script]);
    unshare.output().unwrap()
}

#[test]
fn a_full_state_directory_is_told_and_nothing_is_left_in_it() {
    let vms = Vms::new("normal");
    // The template of the disk is elsewhere, and there before.
    vms.create(&["--disk-size", "16M"], &["both"]);
    vms.ok(&["prune"]);
    let script = "\
        mkdir -p $XDG_STATE_HOME/flashpan/vms; \
        head -c 40000 /dev/zero > $XDG_STATE_HOME/fill; \
        $FP create --rootfs $ROOT --hostname fake --disk-size 16M -- both && exit 9; \
        echo $? >&2; \
        ls -A $XDG_STATE_HOME/flashpan/vms; $FP ls -q";
    let output = in_small_place(&vms, "64k", script);
    assert_eq!(output.stdout, b"", "{output:?}");
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("No space left"), "{stderr}");
    assert!(stderr.contains("125\n"), "{stderr}");
    assert_eq!(stderr.matches("error: ").count(), 1, "{stderr}");
}

#[test]
fn the_end_of_a_vm_is_written_down_on_a_disk_that_is_full() {
    let vms = Vms::new("normal");
    vms.create(&[], &["both"]);
    let script = "\
        id=$($FP run -d --rootfs $ROOT --hostname fake --ephemeral -- sleep 2>/dev/null); \
        cat /dev/zero > $XDG_STATE_HOME/fill 2>/dev/null || true; \
        $FP pause $id >/dev/null; $FP ls --format '{{.Status}}'; \
        $FP stop $id >/dev/null; $FP ls --format '{{.Status}}'; \
        $FP inspect $id | grep orderly; \
        $FP rm $id >/dev/null; ls -A $XDG_STATE_HOME/flashpan/vms";
    let output = in_small_place(&vms, "256k", script);
    let stdout = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<_> = stdout.lines().map(str::trim).collect();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(
        lines,
        ["paused", "stopped", "\"orderly\": true,"],
        "{stderr}"
    );
}

#[test]
fn a_read_only_state_directory_can_be_looked_at() {
    let vms = Vms::new("normal");
    vms.create(&[], &["both"]);
    let script = "\
        id=$($FP create --rootfs $ROOT --hostname fake --name web --ephemeral -- both); \
        mount -o remount,ro $XDG_STATE_HOME; \
        $FP ls --format '{{.Name}} {{.Status}}'; $FP logs web; \
        $FP create --rootfs $ROOT -- both 2>&1 && exit 9; \
        for verb in 'rm web' 'start web' 'rename web db'; do \
            $FP $verb 2>&1 && exit 9; \
        done; exit 0";
    let output = in_small_place(&vms, "1m", script);
    assert!(output.status.success(), "{output:?}");
    let stdout = String::from_utf8(output.stdout).unwrap();
    let (first, rest) = stdout.split_once('\n').unwrap();
    assert_eq!(first, "web created");
    assert_eq!(rest.lines().count(), 4, "{rest}");
    for line in rest.lines() {
        assert!(
            line.contains("error: ") && line.contains("Read-only"),
            "{line}"
        );
    }
}

#[test]
fn a_directory_of_another_user_is_refused_in_one_line() {
    let vms = Vms::new("normal");
    fs::create_dir_all(vms.state()).unwrap();
    let list = vms.state().join("vms");
    if nix::unistd::geteuid().is_root() {
        fs::create_dir(&list).unwrap();
        std::os::unix::fs::chown(&list, Some(12_345), None).unwrap();
    } else {
        symlink("/", &list).unwrap();
    }
    for command in [
        &["ls"][..],
        &["inspect", "web"],
        &["prune"],
        &["kill", "--all"],
    ] {
        let line = vms.refused(command);
        assert!(line.contains("belongs to user"), "{line}");
    }
    let output = vms.making(&["create"], &[], &["both"]).output().unwrap();
    let line = fake::complaint(&output);
    assert!(line.contains("belongs to user"), "{line}");
}

#[test]
fn several_that_want_one_name_are_told_who_has_it() {
    let vms = Vms::new("normal");
    let children: Vec<_> = (0..6)
        .map(|_| {
            let options = ["--name", "web", "--ephemeral"];
            vms.making(&["create"], &options, &["both"])
                .spawn()
                .unwrap()
        })
        .collect();
    let outputs: Vec<_> = children
        .into_iter()
        .map(|child| child.wait_with_output().unwrap())
        .collect();
    let (won, lost): (Vec<_>, Vec<_>) = outputs.iter().partition(|o| o.status.success());
    assert_eq!(won.len(), 1, "{outputs:?}");
    let id = String::from_utf8(won[0].stdout.clone()).unwrap();
    for output in lost {
        let line = fake::complaint(output);
        assert!(
            line.contains(&format!("{} has the name \"web\"", id.trim())),
            "{line}"
        );
    }
    assert_eq!(vms.ok(&["ls", "-q"]), id);
    assert_eq!(vms.left().len(), 2, "{:?}", vms.left());
}

#[test]
fn a_volume_is_not_removed_under_a_vm_that_has_it() {
    let vms = Vms::new("normal");
    vms.ok(&["volume", "create", "kept", "--size", "16M"]);
    let disk = ["--name", "web", "--disk", "@kept:/data"];
    let id = vms.create(&disk, &["both"]);
    let line = vms.refused(&["volume", "rm", "kept"]);
    assert!(line.contains("the VM web has the volume kept"), "{line}");
    // Nor under one of which nobody knows what it has.
    let record = vms.state().join("vms").join(&id).join("vm.json");
    let text = std::fs::read(&record).unwrap();
    std::fs::write(&record, "{").unwrap();
    let line = vms.refused(&["volume", "rm", "kept"]);
    assert!(
        line.contains(&format!("the VM {id} has cannot be told")),
        "{line}"
    );
    std::fs::write(&record, text).unwrap();
    vms.ok(&["volume", "rm", "-f", "kept"]);
    let line = vms.refused(&["start", "web"]);
    assert!(line.contains("named volume not found: kept"), "{line}");
    vms.ok(&["volume", "create", "kept", "--size", "16M"]);
    vms.ok(&["rm", &id]);
    vms.ok(&["volume", "rm", "kept"]);
    vms.assert_nothing_left();
}
