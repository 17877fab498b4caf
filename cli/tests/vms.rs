//! VMs that outlive their commands, as their user sees them, against the fake VMM of the
//! library's tests. No KVM is needed.
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

use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use vms::{LONG, Vms};

#[test]
fn a_vm_runs_stops_runs_again_and_is_removed() {
    let vms = Vms::new("normal");
    let id = vms.run(&["--name", "web"], &["both"]);
    assert_eq!(vms.status(&id), "running");
    for (command, code) in [
        (&["exit", "0"][..], 0),
        (&["exit", "42"], 42),
        (&["missing"], 127),
    ] {
        let mut exec = vec!["exec", "web"];
        exec.extend(command);
        assert_eq!(vms.output(&exec).status.code(), Some(code), "{command:?}");
    }
    assert_eq!(vms.ok(&["wait", "web"]), "0\n");
    assert_eq!(vms.ok(&["logs", "web"]).len(), "outerr".len());
    // Known while the VM goes on.
    assert_eq!(
        vms.ok(&["ls", "--format", "{{.Status}} {{.Exit}}"]),
        "running 0\n"
    );

    let refused = vms.refused(&["rm", "web"]);
    assert!(refused.contains("is running; stop it first"), "{refused}");
    assert_eq!(vms.ok(&["stop", "web"]), "web\n");
    assert_eq!(vms.status(&id), "stopped");
    let stopped = vms.inspect("web");
    assert_eq!(stopped["exit"]["reason"]["kind"], "power_off");
    assert_eq!(stopped["exit"]["orderly"], true);
    assert_eq!(stopped["exit"]["command"]["code"], 0);
    let refused = vms.refused(&["exec", "web", "exit", "0"]);
    assert!(refused.contains("is stopped; start it"), "{refused}");

    // The first digits of its id without the prefix.
    vms.ok(&["start", &id[3..7]]);
    assert_eq!(vms.ok(&["wait", "web"]), "0\n");
    assert_eq!(vms.inspect("web")["run"]["number"], 2);
    assert!(vms.inspect("web")["exit"].is_null());
    assert_eq!(vms.ok(&["logs", "web"]).len(), 2 * "outerr".len());
    let twice = vms.refused(&["start", "web"]);
    assert!(twice.contains("started already"), "{twice}");

    assert_eq!(vms.ok(&["rm", "-f", "web"]), "web\n");
    let gone = vms.refused(&["inspect", "web"]);
    assert!(gone.contains("no VM has the id or name \"web\""), "{gone}");
    vms.assert_nothing_left();
}

#[test]
fn a_vm_that_was_created_waits_to_be_started() {
    let vms = Vms::new("normal");
    let id = vms.create(&["--name", "later"], &["exit", "7"]);
    assert_eq!(vms.status(&id), "created");
    for early in [
        &["exec", "later", "both"][..],
        &["wait", "later"],
        &["ps", "later"],
    ] {
        let refused = vms.refused(early);
        assert!(refused.contains("is created; start it"), "{refused}");
    }
    // Whom a start would not help is not told to.
    for early in ["stop", "kill", "pause", "unpause"] {
        let refused = vms.refused(&[early, "later"]);
        let says = format!("the VM {id} does not run: it is created");
        assert!(refused.ends_with(&says), "{refused}");
    }
    vms.ok(&["start", "later"]);
    assert_eq!(vms.ok(&["wait", "later"]), "7\n");
    vms.ok(&["stop", "later"]);
    assert_eq!(vms.ok(&["wait", "later"]), "7\n");
    assert_eq!(vms.ok(&["ls", "--format", "{{.Exit}}"]), "7\n");
    assert_eq!(vms.ok(&["prune"]), format!("{id}\nPruned 1 VM\n"));
    vms.assert_nothing_left();
}

#[test]
fn a_paused_vm_runs_nothing_and_says_so_at_once() {
    let vms = Vms::new("normal");
    let id = vms.run(&["--name", "web"], &["sleep"]);
    let refused = vms.refused(&["unpause", "web"]);
    assert!(refused.contains("is not paused"), "{refused}");
    assert_eq!(vms.ok(&["pause", "web"]), "web\n");
    assert_eq!(vms.status(&id), "paused");
    let begun = Instant::now();
    for command in [
        &["exec", "web", "both"][..],
        &["exec", "-d", "web", "both"],
        &["ps", "web"],
        &["pause", "web"],
    ] {
        let refused = vms.refused(command);
        assert!(refused.contains(&format!("{id} is paused")), "{refused}");
    }
    assert!(begun.elapsed() < LONG, "it waited for the guest");
    assert_eq!(vms.ok(&["unpause", &id]), format!("{id}\n"));
    assert_eq!(vms.ok(&["exec", "web", "both"]), "out");
    // One that is paused can be ended in order.
    vms.ok(&["pause", "web"]);
    vms.ok(&["stop", "web"]);
    assert_eq!(vms.inspect("web")["exit"]["orderly"], true);
}

#[test]
fn a_vm_with_rm_ends_with_its_command_and_nothing_stays() {
    let vms = Vms::new("normal");
    vms.run(&["--rm", "--name", "once"], &["exit", "3"]);
    vms.wait_until_nothing_is_left();
    let id = vms.run(&["--rm"], &["sleep"]);
    vms.ok(&["stop", &id]);
    vms.assert_nothing_left();
}

#[test]
fn a_run_with_rm_false_exits_as_its_command_and_leaves_the_vm() {
    let vms = Vms::new("normal");
    let output = vms
        .0
        .output(&["--rm=false", "--name", "dev"], &["exit", "9"]);
    assert_eq!(output.status.code(), Some(9), "{output:?}");
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("flashpan exec -it vm-"), "{stderr}");
    assert_eq!(vms.ok(&["exec", "dev", "both"]), "out");
    // The command was that of the run; nothing else ran it.
    assert_eq!(vms.ok(&["logs", "dev"]), "");
    vms.ok(&["rm", "-f", "dev"]);
    let named = vms.0.output(&["--name", "dev"], &["both"]);
    assert_eq!(named.status.code(), Some(125));
    vms.assert_nothing_left();
}

#[test]
fn a_vm_that_does_not_come_up_says_why_and_is_gone() {
    for (scenario, command, code, says) in [
        (
            "normal",
            &["missing"][..],
            127,
            "missing: not found in PATH",
        ),
        ("boot-failed", &["both"], 125, "not a kernel"),
        ("setup-failed", &["both"], 125, "mount the root image"),
    ] {
        let vms = Vms::new(scenario);
        let output = vms
            .making(&["run", "-d"], &["--name", "web"], command)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        let line = fake::complaint(&output);
        assert!(line.contains(says), "{line}");
        vms.assert_nothing_left();
    }
    // One that was there before stays, and tells it to who asks later.
    let vms = Vms::new("boot-failed");
    let id = vms.create(&[], &["both"]);
    let line = vms.refused(&["start", &id]);
    assert!(line.contains("not a kernel"), "{line}");
    assert_eq!(vms.status(&id), "stopped");
    let message = vms.inspect(&id)["exit"]["message"].clone();
    assert!(message.as_str().unwrap().contains("not a kernel"));
}

#[test]
fn waiting_is_for_the_command_or_for_the_vm() {
    let vms = Vms::new("normal");
    vms.run(&["--name", "web"], &["sleep"]);
    let wait = vms.0.flashpan(&["wait", "web"]).spawn().unwrap();
    vms.ok(&["kill", "web"]);
    // Its command did not end, the VM did.
    let output = wait.wait_with_output().unwrap();
    assert_eq!(output.stdout, b"125\n", "{output:?}");
    assert_eq!(vms.inspect("web")["exit"]["reason"]["kind"], "killed");
    assert_eq!(vms.inspect("web")["exit"]["orderly"], false);
}

#[test]
fn the_time_of_a_vm_is_limited() {
    let vms = Vms::new("normal");
    // Long enough for the command to start.
    let id = vms.run(&["--timeout", "500ms"], &["sleep"]);
    vms.ok(&["wait", &id]);
    let exit = vms.inspect(&id)["exit"].clone();
    assert_eq!(
        (&exit["timed_out"], &exit["orderly"]),
        (&true.into(), &true.into())
    );
}

#[test]
fn a_supervisor_obeys_signals() {
    let vms = Vms::new("normal");
    let id = vms.run(&[], &["sleep"]);
    let wait = vms.0.flashpan(&["wait", &id]).spawn().unwrap();
    kill(vms.supervisor(&id), Signal::SIGTERM).unwrap();
    wait.wait_with_output().unwrap();
    assert_eq!(vms.inspect(&id)["exit"]["orderly"], true);
    // A guest that does not shut down: the second signal means now.
    let vms = Vms::new("stubborn");
    let id = vms.run(&[], &["sleep"]);
    let wait = vms.0.flashpan(&["wait", &id]).spawn().unwrap();
    let supervisor = vms.supervisor(&id);
    kill(supervisor, Signal::SIGTERM).unwrap();
    let deadline = Instant::now() + LONG;
    while vms.status(&id) != "stopping" {
        assert!(Instant::now() < deadline);
    }
    kill(supervisor, Signal::SIGINT).unwrap();
    wait.wait_with_output().unwrap();
    assert_eq!(vms.inspect(&id)["exit"]["reason"]["kind"], "killed");
}

/// One whose disks stay may take five minutes.
#[test]
fn nobody_waits_long_for_a_guest_of_which_nothing_stays() {
    let vms = Vms::new("stubborn");
    let id = vms.run(&["--rm"], &["sleep"]);
    let begun = Instant::now();
    assert_eq!(vms.ok(&["stop", "-t", "1", &id]), format!("{id}\n"));
    assert!(begun.elapsed() < LONG, "{:?}", begun.elapsed());
    vms.assert_nothing_left();
}

#[test]
fn a_supervisor_that_is_stuck_is_ended_with_its_vm() {
    let vms = Vms::new("normal");
    let id = vms.run(&[], &["sleep"]);
    kill(vms.supervisor(&id), Signal::SIGSTOP).unwrap();
    assert_eq!(vms.status(&id), "running");
    vms.ok(&["rm", "-f", &id]);
    vms.assert_nothing_left();
}

#[test]
fn a_vm_whose_time_is_up_ends_in_order_also_if_it_is_paused() {
    let vms = Vms::new("normal");
    let id = vms.run(&["--timeout", "1s"], &["sleep"]);
    vms.ok(&["pause", &id]);
    vms.ok(&["wait", &id]);
    let ended = vms.inspect(&id);
    assert_eq!(ended["exit"]["timed_out"], true, "{ended}");
    assert_eq!(ended["exit"]["reason"]["kind"], "timed_out", "{ended}");
    // In the foreground it is a status of its own.
    let options = ["--rm=false", "--timeout", "1s"];
    let output = vms.making(&["run"], &options, &["sleep"]).output().unwrap();
    assert_eq!(output.status.code(), Some(124), "{output:?}");
}

#[test]
fn a_vm_whose_files_are_damaged_can_be_ended_and_removed() {
    let vms = Vms::new("normal");
    let id = vms.run(&[], &["sleep"]);
    std::fs::write(vms.state().join("vms").join(&id).join("vm.json"), "{").unwrap();
    let refused = vms.refused(&["stop", &id]);
    assert!(refused.contains("vm.json"), "{refused}");
    let refused = vms.refused(&["rm", &id]);
    assert!(refused.contains("flashpan rm -f"), "{refused}");
    vms.ok(&["rm", "-f", &id]);
    vms.assert_nothing_left();
}

#[test]
fn a_vm_that_stays_has_a_disk_however_it_is_made_unless_it_is_to_have_none() {
    let vms = Vms::new("normal");
    let upper = |id: &str| vms.state().join("vms").join(id).join("upper.ext4");
    for (options, is_there) in [(&[][..], true), (&["--ephemeral"], false)] {
        for id in [vms.create(options, &["both"]), vms.run(options, &["sleep"])] {
            assert_eq!(upper(&id).exists(), is_there, "{options:?}");
            vms.ok(&["rm", "-f", &id]);
        }
    }
    vms.assert_nothing_left();
}

#[test]
fn a_vm_has_one_id_and_gets_it_when_it_is_made() {
    let vms = Vms::new("normal");
    let file = vms.0.path("sandbox.json");
    std::fs::write(&file, "{}").unwrap();
    let root = vms.0.path("root");
    let make = [
        "create",
        "--rootfs",
        root.to_str().unwrap(),
        "-f",
        file.to_str().unwrap(),
        "--",
        "exit",
        "0",
    ];
    let id = vms.ok(&make).trim().to_owned();
    assert_eq!(vms.inspect(&id)["launch"]["config"]["id"], id.as_str());
    vms.ok(&["rm", &id]);
    vms.assert_nothing_left();
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_made() {
    let vms = Vms::new("normal");
    for (options, says) in [
        (&["-d", "-i"][..], "cannot be used with"),
        (&["-d", "--timeline", "-"], "cannot be used with"),
        (&["--rm=false", "--timeline", "-"], "--timeline is of"),
        (&["-d", "--name", "a b"], "invalid name"),
        (&["-d", "--name", "vm-12345678"], "invalid name"),
        (
            &["-d", "--disk-size", "1M"],
            "error: --disk-size: 1 MiB is too little",
        ),
        (&["-d", "-w", "relative"], "absolute path"),
    ] {
        let output = vms.0.output(options, &["both"]);
        let line = fake::complaint(&output);
        assert_eq!(output.status.code(), Some(125), "{line}");
        assert!(line.contains(says), "{options:?}: {line}");
    }
    let line = vms.refused(&["create", "-t", "--", "both"]);
    assert!(line.contains("has no terminal"), "{line}");
    for unknown in [
        &["start", "web"][..],
        &["logs", "web"],
        &["rename", "web", "x"],
        &["rm", "web"],
    ] {
        let line = vms.refused(unknown);
        assert!(line.contains("no VM has the id or name"), "{line}");
    }
    vms.assert_nothing_left();
}

#[test]
fn a_restart_is_a_stop_and_a_start() {
    let vms = Vms::new("normal");
    let id = vms.run(&["--name", "web"], &["sleep"]);
    assert_eq!(vms.ok(&["restart", "-t", "1", "web"]), "web\n");
    assert_eq!(vms.status(&id), "running");
    assert_eq!(vms.inspect(&id)["run"]["number"], 2);
    // One that does not run is started.
    vms.ok(&["stop", "web"]);
    assert_eq!(vms.ok(&["restart", "web"]), "web\n");
    assert_eq!(vms.inspect(&id)["run"]["number"], 3);
    vms.ok(&["rm", "-f", "web"]);
    // One that would be gone goes on.
    let once = vms.run(&["--rm"], &["sleep"]);
    let refused = vms.refused(&["restart", &once]);
    assert!(refused.contains("removed when it ends (--rm)"), "{refused}");
    assert_eq!(vms.status(&once), "running");
}

#[test]
fn a_restart_without_a_secret_that_was_not_kept_stops_nothing() {
    let vms = Vms::new("normal");
    let secret = ["--secret", "KEY=hunter2@api.example.com", "--name", "web"];
    let id = vms.run(&secret, &["sleep"]);
    let refused = vms.refused(&["restart", "web"]);
    assert!(refused.contains("KEY"), "{refused}");
    assert!(!refused.contains("hunter2"), "{refused}");
    assert_eq!(vms.status(&id), "running");
    assert_eq!(vms.inspect(&id)["run"]["number"], 1);
    vms.ok(&["restart", "--secret", "KEY=hunter3", "web"]);
    assert_eq!(vms.inspect(&id)["run"]["number"], 2);
    vms.ok(&["rm", "-f", "web"]);
    vms.assert_nothing_left();
}

#[test]
fn a_command_names_what_it_has_done_something_to_as_its_user_did() {
    let vms = Vms::new("normal");
    let id = vms.run(&["--name", "web"], &["sleep"]);
    let digits = id.strip_prefix("vm-").unwrap();
    for words in [
        ["pause", "web"],
        ["unpause", digits],
        ["stop", "web"],
        ["start", &id],
        ["restart", digits],
        ["kill", "web"],
        ["rm", digits],
    ] {
        assert_eq!(vms.ok(&words), format!("{}\n", words[1]), "{words:?}");
    }
    let id = vms.run(&[], &["sleep"]);
    assert_eq!(vms.ok(&["rename", &id, "new"]), "");
    assert_eq!(vms.ok(&["kill", "--all"]), format!("{id}\n"));
    // It is as it was to be; why nothing was done is told.
    let again = vms.output(&["stop", "new"]);
    assert_eq!(again.stdout, b"new\n", "{again:?}");
    let note = String::from_utf8(again.stderr).unwrap();
    assert!(note.ends_with(" does not run: it is stopped\n"), "{note}");
    let refused = vms.refused(&["kill", "new"]);
    assert!(
        refused.ends_with(" does not run: it is stopped"),
        "{refused}"
    );
    assert_eq!(vms.ok(&["rm", "--stopped"]), format!("{id}\n"));
    vms.assert_nothing_left();
}
