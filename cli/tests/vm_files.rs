//! Files, ports and events of VMs that stay, against the fake VMM of the library's tests
//! and the real agent: files and ports of this machine play those of the guest.
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
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::process::{Output, Stdio};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::signal::Signal;
use vms::Vms;

/// A VM, and a directory of this machine that plays one of its guest.
fn vm_with_place() -> (Vms, String) {
    let vms = Vms::new("normal");
    vms.run(&["--name", "web"], &["sleep"]);
    let place = vms.0.path("guest");
    fs::create_dir(&place).unwrap();
    let place = place.to_str().unwrap().to_owned();
    (vms, place)
}

#[test]
fn a_tree_goes_in_and_comes_out_as_it_was() {
    let (vms, place) = vm_with_place();
    let project = vms.0.path("project");
    fs::create_dir_all(project.join("src/empty")).unwrap();
    fs::write(project.join("src/main"), b"#!/bin/sh\n").unwrap();
    fs::set_permissions(project.join("src/main"), fs::Permissions::from_mode(0o751)).unwrap();
    symlink("main", project.join("src/link")).unwrap();
    let from = project.to_str().unwrap();
    let output = vms.output(&["cp", from, &format!("web:{place}/")]);
    assert!(output.status.success(), "{output:?}");
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(told, "Copied 5 entries, 10 B\n");
    assert_eq!(output.stdout, b"");
    let out = vms.0.path("out");
    let quiet = vms.output(&[
        "cp",
        "-q",
        &format!("web:{place}/project/."),
        out.to_str().unwrap(),
    ]);
    assert!(
        quiet.status.success() && quiet.stderr.is_empty(),
        "{quiet:?}"
    );
    let main = out.join("src/main");
    assert_eq!(fs::read(&main).unwrap(), b"#!/bin/sh\n");
    assert_eq!(fs::metadata(&main).unwrap().mode() & 0o7777, 0o751);
    assert_eq!(
        fs::read_link(out.join("src/link")).unwrap().to_str(),
        Some("main")
    );
    assert!(out.join("src/empty").is_dir());
    // A link that is named, and what it points to.
    let link = format!("web:{place}/project/src/link");
    for (options, is_link) in [(&["cp"][..], true), (&["cp", "-L"], false)] {
        let to = vms.0.path(if is_link { "as-link" } else { "as-file" });
        vms.ok(&[options, &[&link, to.to_str().unwrap()]].concat());
        assert_eq!(fs::symlink_metadata(&to).unwrap().is_symlink(), is_link);
    }
}

#[test]
fn what_cannot_be_copied_is_said_in_one_line() {
    let (vms, place) = vm_with_place();
    let there = vms.0.path("there");
    fs::write(&there, b"x").unwrap();
    let there = there.to_str().unwrap();
    let guest = |path: &str| format!("web:{place}/{path}");
    vms.create(&["--name", "asleep"], &["sleep"]);
    for (source, target, says) in [
        (
            "/nowhere/file",
            &*guest("x"),
            "cannot copy /nowhere/file: there is no such file or directory",
        ),
        (
            "/nowhere/..",
            &*guest("x"),
            "cannot copy /nowhere/..: there is no such file or directory",
        ),
        (
            &*guest("missing"),
            "/tmp",
            "/guest/missing in the guest: there is no such file or directory",
        ),
        (
            there,
            &*guest("no/such/place"),
            "in the guest: there is no such directory to put it into",
        ),
        (
            there,
            &*guest("missing/"),
            "in the guest: there is no such directory to put it into",
        ),
        (
            &*guest(""),
            "/nowhere/x",
            "cannot copy /nowhere/x: there is no such directory to put it into",
        ),
        (there, "nobody:/tmp", "no VM has the id or name"),
        (there, "asleep:/tmp", "is created; start it"),
        (there, "./x:y", "neither is in a VM"),
        (&*guest("a"), "asleep:/tmp", "both are in VMs"),
        ("-", "-", "both are archives"),
        ("-", "./x", "an archive goes into a VM or comes out of one"),
        ("./x", "-", "an archive goes into a VM or comes out of one"),
        (
            &*guest("missing"),
            "-",
            "there is no such file or directory",
        ),
        (&*guest(""), "/proc/nothing/x", "/proc/nothing"),
    ] {
        let line = vms.refused(&["cp", source, target]);
        assert!(line.contains(says), "{source} {target}: {line}");
    }
    vms.ok(&["pause", "web"]);
    let line = vms.refused(&["cp", there, &guest("x")]);
    assert!(line.contains("is paused"), "{line}");
}

/// `flashpan cp` with an archive on its standard input.
fn unpack(vms: &Vms, place: &str, archive: &[u8]) -> Output {
    let mut cp = vms
        .0
        .flashpan(&["cp", "-", place])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = cp.stdin.take().unwrap();
    // It need not want all of it.
    let _ = stdin.write_all(archive);
    drop(stdin);
    cp.wait_with_output().unwrap()
}

#[test]
fn an_archive_comes_out_on_standard_output_and_goes_in_on_standard_input() {
    let (vms, place) = vm_with_place();
    let tree = vms.0.path("guest/tree");
    fs::create_dir_all(tree.join("sub")).unwrap();
    fs::write(tree.join("sub/long"), vec![7; 1 << 20]).unwrap();
    fs::set_permissions(tree.join("sub/long"), fs::Permissions::from_mode(0o4751)).unwrap();
    symlink("long", tree.join("sub/link")).unwrap();
    let output = vms.output(&["cp", &format!("web:{place}/tree"), "-"]);
    assert!(output.status.success(), "{output:?}");
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(told, "Copied 4 entries, 1.0 MB\n");
    let archive = output.stdout;
    fs::create_dir(vms.0.path("guest/again")).unwrap();
    let again = format!("web:{place}/again");
    let output = unpack(&vms, &again, &archive);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(output.stdout, b"");
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(told, "Copied 4 entries, 1.0 MB\n");
    for path in ["tree", "tree/sub", "tree/sub/long"] {
        let [was, is] = ["", "again/"].map(|above| {
            let path = vms.0.path(&format!("guest/{above}{path}"));
            let meta = fs::metadata(path).unwrap();
            (
                meta.mode(),
                meta.uid(),
                meta.gid(),
                meta.mtime(),
                meta.mtime_nsec(),
            )
        });
        assert_eq!(is, was, "{path}");
    }
    let long = fs::read(vms.0.path("guest/again/tree/sub/long")).unwrap();
    assert_eq!(long, vec![7; 1 << 20]);
    let link = fs::read_link(vms.0.path("guest/again/tree/sub/link")).unwrap();
    assert_eq!(link.to_str(), Some("long"));

    // What is no archive, or half of one, and no place for one.
    let half = &archive[..archive.len() / 2];
    for (place, archive, says) in [
        (&*again, &b"no archive"[..], "it is not a tar archive"),
        (&*again, half, "the tar is truncated"),
        (&*again, b"", "not one byte came"),
        (&*format!("{again}/none"), &*archive, "no such file"),
        (
            &*format!("{again}/tree/sub/long"),
            &*archive,
            "it is not a directory",
        ),
    ] {
        let output = unpack(&vms, place, archive);
        assert_eq!(output.status.code(), Some(125), "{output:?}");
        let line = fake::complaint(&output);
        assert!(line.contains(says), "{says}: {line}");
    }
}

#[test]
fn an_archive_for_nobody_and_one_that_does_not_end_leave_nothing_waiting() {
    let (vms, place) = vm_with_place();
    fs::write(vms.0.path("guest/long"), vec![7; 4 << 20]).unwrap();
    let source = format!("web:{place}/long");
    // Whoever reads has had enough.
    let mut cp = vms
        .0
        .flashpan(&["cp", &source, "-"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = cp.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 4096]).unwrap();
    drop(stdout);
    let output = cp.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(141), "{output:?}");
    assert_eq!(output.stderr, b"");
    // Neither who takes nothing nor who gives nothing holds a signal back.
    let mut cp = vms
        .0
        .flashpan(&["cp", &source, "-"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    cp.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    fake::signal(&cp, Signal::SIGINT);
    assert_eq!(cp.wait().unwrap().code(), Some(130));
    let changes = Inotify::init(InitFlags::IN_CLOEXEC).unwrap();
    let guest = vms.0.path("guest");
    changes.add_watch(&guest, AddWatchFlags::IN_CREATE).unwrap();
    let mut cp = vms
        .0
        .flashpan(&["cp", "-", &format!("web:{place}")])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut header = [0; 512];
    header[..5].copy_from_slice(b"begun");
    header[100..107].copy_from_slice(b"0000644");
    header[124..135].copy_from_slice(b"00000010000");
    header[148..156].copy_from_slice(b"        ");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:07o}").as_bytes());
    cp.stdin.as_mut().unwrap().write_all(&header).unwrap();
    // The guest has begun to write what will not come.
    changes.read_events().unwrap();
    fake::signal(&cp, Signal::SIGINT);
    let _held = cp.stdin.take();
    let output = cp.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{output:?}");
}

#[test]
fn a_copy_that_takes_longer_than_it_may_is_given_up() {
    let (vms, _) = vm_with_place();
    let to = vms.0.path("to");
    for to in [to.to_str().unwrap(), "-"] {
        let from = "web:/fake/tree:stalled";
        let output = vms.output(&["cp", "--timeout", "300ms", from, to]);
        assert_eq!(output.status.code(), Some(124), "{output:?}");
        let line = fake::complaint(&output);
        assert!(line.contains("finish the copy"), "{line}");
    }
    // One that ends in time does not hear of it.
    fs::write(vms.0.path("guest/file"), "x").unwrap();
    let from = format!("web:{}", vms.0.path("guest/file").display());
    vms.ok(&[
        "cp",
        "--timeout",
        "1h",
        &from,
        vms.0.path("file").to_str().unwrap(),
    ]);
    // An archive that does not come.
    let mut cp = vms
        .0
        .flashpan(&["cp", "--timeout", "300ms", "-", &from.replace("/file", "")])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let held = cp.stdin.take();
    let output = cp.wait_with_output().unwrap();
    drop(held);
    assert_eq!(output.status.code(), Some(124), "{output:?}");
    let line = vms.refused(&["cp", "--timeout", "0", &from, "/nowhere"]);
    assert!(line.contains("--timeout"), "{line}");
}

#[test]
fn what_was_copied_is_said_as_json_where_no_archive_is() {
    let (vms, place) = vm_with_place();
    fs::create_dir(vms.0.path("guest/tree")).unwrap();
    fs::write(vms.0.path("guest/tree/file"), "content").unwrap();
    nix::unistd::mkfifo(
        &vms.0.path("guest/tree/fifo"),
        nix::sys::stat::Mode::S_IRWXU,
    )
    .unwrap();
    let from = format!("web:{place}/tree");
    let to = vms.0.path("out");
    let json = |text: &[u8]| -> serde_json::Value {
        assert_eq!(text.iter().filter(|byte| **byte == b'\n').count(), 1);
        serde_json::from_slice(text).unwrap()
    };
    let expected = serde_json::json!({
        "entries": 2,
        "bytes": 7,
        "skipped": ["fifo"],
        "skipped_count": 1,
        "shrunk": [],
        "shrunk_count": 0,
    });
    let output = vms.output(&["cp", "--json", &from, to.to_str().unwrap()]);
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{output:?}"
    );
    assert_eq!(json(&output.stdout), expected);
    let output = vms.output(&["cp", "--json", &from, "-"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(json(&output.stderr), expected);
    // The archive is one, and nothing else.
    assert!(output.stdout.ends_with(&[0; 1024]));
    fs::create_dir(vms.0.path("guest/again")).unwrap();
    let again = unpack(&vms, &format!("web:{place}/again"), &output.stdout);
    assert!(again.status.success(), "{again:?}");
    // What became shorter.
    let output = vms.output(&["cp", "--json", "web:/fake/tree:shrunk", "-"]);
    assert!(output.status.success(), "{output:?}");
    let told = json(&output.stderr);
    assert_eq!(
        (&told["shrunk"][0], &told["shrunk_count"]),
        (&"big".into(), &1.into())
    );
}

#[test]
fn an_archive_is_not_for_a_terminal() {
    let (vms, place) = vm_with_place();
    let terminal = nix::pty::openpty(None, None).unwrap();
    let output = vms
        .0
        .flashpan(&["cp", &format!("web:{place}"), "-"])
        .stdout(terminal.slave.try_clone().unwrap())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(125));
    let line = fake::complaint(&output);
    assert!(line.contains("standard output is a terminal"), "{line}");
    let output = vms
        .0
        .flashpan(&["cp", "-", &format!("web:{place}")])
        .stdin(terminal.slave)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(125));
    let line = fake::complaint(&output);
    assert!(line.contains("standard input is a terminal"), "{line}");
}

#[test]
fn events_are_kept_and_shown() {
    let vms = Vms::new("normal");
    let id = vms.run(&["--name", "web"], &["sleep"]);
    let exec = vms.output(&["exec", "web", "tells", "a b"]);
    assert_eq!(exec.status.code(), Some(5));
    let mut follow = vms
        .0
        .flashpan(&["events", "-f", "web"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(follow.stdout.take().unwrap()).lines();
    let mut next = || {
        let line = lines.next()?.unwrap();
        let (_, event) = line.split_once(&format!(" {id} ")).unwrap();
        Some(event.to_owned())
    };
    assert_eq!(next().unwrap(), "starting");
    assert_eq!(next().unwrap(), "running");
    assert_eq!(
        next().unwrap(),
        "exec started (pid 42, uid 1000): tells 'a b'"
    );
    assert_eq!(next().unwrap(), "at least 3 events are missing");
    assert_eq!(
        next().unwrap(),
        "exec ended with 5 after 2000 ms (pid 42): tells 'a b'"
    );
    // And as it goes on, to its end.
    vms.ok(&["pause", "web"]);
    assert_eq!(next().unwrap(), "paused");
    vms.ok(&["unpause", "web"]);
    assert_eq!(next().unwrap(), "running");
    vms.ok(&["stop", "web"]);
    assert_eq!(next().unwrap(), "stopping");
    assert!(next().unwrap().starts_with("stopped: "));
    assert_eq!(next(), None);
    assert!(follow.wait().unwrap().success());
    // They are there as long as the VM is, and the last ones alone if wanted.
    let all = vms.ok(&["events", "--json"]);
    let all: Vec<serde_json::Value> = all
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(all.len(), 9, "{all:?}");
    let exec = all.iter().find(|event| event["type"] == "exec").unwrap();
    assert_eq!(exec["exec"]["command"], "tells 'a b'");
    assert_eq!(exec["exec"]["exit_code"], 5);
    assert_eq!(exec["vm"], id.as_str());
    assert!(exec["timestamp"].as_i64().unwrap() > 1_700_000_000_000);
    assert_eq!(vms.ok(&["events", "-n", "1"]).lines().count(), 1);
    assert_eq!(vms.ok(&["events", "-f", "web"]).lines().count(), 9);
    vms.ok(&["rm", "web"]);
    assert_eq!(vms.ok(&["events"]), "");
}

#[test]
fn events_of_all_vms_are_followed_also_of_new_ones() {
    let vms = Vms::new("normal");
    let mut follow = vms
        .0
        .flashpan(&["events", "-f"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(follow.stdout.take().unwrap()).lines();
    for _ in 0..2 {
        let id = vms.run(&[], &["sleep"]);
        let line = lines.next().unwrap().unwrap();
        assert!(line.ends_with(&format!(" {id} starting")), "{line}");
        let line = lines.next().unwrap().unwrap();
        assert!(line.ends_with(&format!(" {id} running")), "{line}");
        // Of a world of this kind one VM runs at a time.
        vms.ok(&["kill", &id]);
        let line = lines.next().unwrap().unwrap();
        assert!(line.ends_with(&format!(" {id} stopping")), "{line}");
        let line = lines.next().unwrap().unwrap();
        assert!(line.contains(&format!(" {id} stopped: ")), "{line}");
    }
    fake::signal(&follow, Signal::SIGINT);
    follow.wait().unwrap();
}

#[test]
fn ports_lead_into_a_vm_until_that_is_interrupted_or_the_vm_ends() {
    let vms = Vms::new("normal");
    vms.run(&["--name", "web"], &["sleep"]);
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let remote = server.local_addr().unwrap().port();
    let start = || {
        // It was free a moment ago.
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let local = free.local_addr().unwrap().port();
        drop(free);
        let ports = format!("{local}:{remote}");
        let mut forward = vms
            .0
            .flashpan(&["port-forward", "web", &ports])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut told = BufReader::new(forward.stderr.take().unwrap());
        let mut line = String::new();
        told.read_line(&mut line).unwrap();
        assert_eq!(
            line,
            format!("Forwarding 127.0.0.1:{local} -> sandbox:{remote}\n")
        );
        (forward, told, local)
    };
    let (mut forward, _told, local) = start();
    let mut client = TcpStream::connect(("127.0.0.1", local)).unwrap();
    client.write_all(b"hello").unwrap();
    let (mut served, _) = server.accept().unwrap();
    let mut heard = [0; 5];
    served.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"hello");
    fake::signal(&forward, Signal::SIGINT);
    assert_eq!(forward.wait().unwrap().code(), Some(130));
    TcpStream::connect(("127.0.0.1", local)).unwrap_err();

    let (mut forward, mut told, _) = start();
    vms.ok(&["stop", "web"]);
    assert_eq!(forward.wait().unwrap().code(), Some(0));
    let mut line = String::new();
    told.read_line(&mut line).unwrap();
    assert_eq!(line, "");
    let line = vms.refused(&["port-forward", "web", "80"]);
    assert!(line.contains("is stopped; start it"), "{line}");
}
