use std::fs;
use std::os::unix::fs::symlink;

use super::*;

struct Fixture {
    dir: tempfile::TempDir,
    vms: Vms,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let vms = Vms::at(dir.path().join("flashpan"));
        Self { dir, vms }
    }

    fn create(&self, name: Option<&str>) -> String {
        let mut record = Record::new(serde_json::json!({"kept": true}));
        record.name = name.map(str::to_owned);
        let vm = self.vms.create().unwrap().publish(record).unwrap();
        assert_eq!(vm.status(), Status::Created);
        vm.id().to_owned()
    }

    fn status(&self, id: &str) -> Status {
        self.vms.find(id).unwrap().status()
    }

    fn claim(&self, id: &str) -> Result<Claim> {
        self.vms.claim(id, false).map(|(claim, _listener)| claim)
    }

    /// A run that ends as it should.
    fn run(&self, id: &str) {
        let claim = self.claim(id).unwrap();
        let exit = ExitRecord::new(claim.run(), Err("told so"), None);
        claim.end(&exit, false).unwrap();
    }

    /// Everything in the directory of VMs, and all names.
    fn left(&self) -> Vec<String> {
        let mut left = Vec::new();
        for directory in ["vms", "names"] {
            let entries = fs::read_dir(self.dir.path().join("flashpan").join(directory));
            left.extend(
                entries
                    .unwrap()
                    .map(|entry| entry.unwrap().file_name().into_string().unwrap()),
            );
        }
        left
    }
}

#[test]
fn a_vm_is_made_runs_crashes_runs_again_and_is_removed() {
    let fixture = Fixture::new();
    assert!(fixture.vms.list().unwrap().vms.is_empty());
    let id = fixture.create(Some("web"));
    assert_eq!(fixture.status(&id), Status::Created);

    let claim = fixture.claim(&id).unwrap();
    assert_eq!(fixture.status(&id), Status::Starting);
    for (activity, status) in [
        (Activity::Running, Status::Running),
        (Activity::Paused, Status::Paused),
        (Activity::Stopping, Status::Stopping),
    ] {
        claim.say(activity);
        assert_eq!(fixture.status(&id), status);
    }
    let twice = fixture.claim(&id).unwrap_err();
    assert!(twice.to_string().contains("is stopping; "), "{twice}");
    let refused = fixture.vms.remove(&id).unwrap_err();
    assert!(refused.to_string().contains("rm -f"), "{refused}");
    // As when it is killed.
    drop(claim);
    assert_eq!(fixture.status(&id), Status::Crashed);

    fixture.run(&id);
    let vm = fixture.vms.find("web").unwrap();
    assert_eq!(vm.status(), Status::Stopped);
    assert_eq!(vm.run().unwrap().number, 2);
    assert_eq!(vm.exit().unwrap().message, "told so");
    assert_eq!(vm.record().launch["kept"], true);

    // Killed again: the end of the run before says nothing of this one.
    drop(fixture.claim(&id).unwrap());
    let vm = fixture.vms.find(&id).unwrap();
    assert_eq!((vm.status(), vm.exit()), (Status::Crashed, None));

    fixture.vms.remove(&id).unwrap();
    assert!(matches!(
        fixture.vms.remove(&id),
        Err(StateError::NotFound(_))
    ));
    assert_eq!(fixture.left(), [""; 0]);
}

use flashpan_protocol::supervisor::Activity;

#[test]
fn a_supervisor_that_removes_its_vm_leaves_nothing() {
    let fixture = Fixture::new();
    let id = fixture.create(Some("gone"));
    let claim = fixture.claim(&id).unwrap();
    let exit = ExitRecord::new(claim.run(), Err("told so"), None);
    claim.end(&exit, true).unwrap();
    assert_eq!(fixture.left(), [""; 0]);
}

#[test]
fn ids_may_be_shortened_and_names_go_before_them() {
    let fixture = Fixture::new();
    let ids = ["vm-aa000001", "vm-aa000002", "vm-bb000003"];
    for id in ids {
        let made = fixture.create(None);
        let (from, to) = (fixture.vms.directory(&made), fixture.vms.directory(id));
        fs::rename(from, &to).unwrap();
        let text = fs::read_to_string(to.join("vm.json")).unwrap();
        fs::write(to.join("vm.json"), text.replace(&made, id)).unwrap();
    }
    let resolve = |text: &str| fixture.vms.resolve(text).map_err(|error| error.to_string());
    for text in ["vm-bb000003", "vm-b", "bb", "b"] {
        assert_eq!(resolve(text).unwrap(), ids[2], "{text}");
    }
    assert_eq!(resolve("aa000001").unwrap(), ids[0]);
    let ambiguous = fixture.vms.resolve("vm-aa").unwrap_err();
    let StateError::Ambiguous { ids: several, .. } = &ambiguous else {
        panic!("{ambiguous}")
    };
    assert_eq!(several, &ids[..2]);
    assert!(!ambiguous.to_string().contains('\n'));
    for text in [
        "",
        "vm-",
        "vm",
        "v",
        "c",
        "vm-c",
        "../vms/vm-bb000003",
        "a\nb",
        "web",
    ] {
        let unknown = fixture.vms.resolve(text).unwrap_err();
        assert!(matches!(unknown, StateError::NotFound(_)), "{text:?}");
        assert!(!unknown.to_string().contains('\n'), "{unknown}");
    }
    // A name that is the beginning of another's id.
    let named = fixture.create(Some("bb"));
    assert_eq!(resolve("bb").unwrap(), named);
    assert_eq!(resolve("vm-bb").unwrap(), ids[2]);
}

#[test]
fn a_name_is_given_once_however_many_want_it() {
    let fixture = Fixture::new();
    let results: Vec<_> = std::thread::scope(|scope| {
        let make = || {
            let mut record = Record::new(serde_json::Value::Null);
            record.name = Some("web".to_owned());
            fixture.vms.create().unwrap().publish(record)
        };
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(make)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    let winners: Vec<_> = results.iter().flatten().map(Vm::id).collect();
    assert_eq!(winners.len(), 1);
    for error in results.iter().filter_map(|result| result.as_ref().err()) {
        assert!(
            matches!(error, StateError::NameTaken { id, .. } if id == winners[0]),
            "{error}"
        );
    }
    assert_eq!(fixture.vms.list().unwrap().vms.len(), 1);
    assert_eq!(fixture.left().len(), 2, "{:?}", fixture.left());
}

#[test]
fn a_vm_gets_another_name_and_the_old_one_is_free() {
    let fixture = Fixture::new();
    let (one, two) = (fixture.create(Some("one")), fixture.create(None));
    fixture.vms.rename(&one, "first").unwrap();
    assert_eq!(fixture.vms.resolve("first").unwrap(), one);
    assert!(fixture.vms.resolve("one").is_err());
    fixture.vms.rename(&two, "one").unwrap();
    let taken = fixture.vms.rename(&two, "first").unwrap_err();
    assert!(matches!(taken, StateError::NameTaken { .. }), "{taken}");
    // Its own name again, and while it runs.
    fixture.vms.rename(&two, "one").unwrap();
    let claim = fixture.claim(&two).unwrap();
    fixture.vms.rename(&two, "second").unwrap();
    assert_eq!(fixture.vms.find("second").unwrap().id(), two);
    drop(claim);
    assert!(matches!(
        fixture.vms.rename(&two, "vm-1"),
        Err(StateError::Name(_))
    ));
}

#[test]
fn what_a_killed_command_left_misleads_nobody_and_goes() {
    let fixture = Fixture::new();
    let id = fixture.create(Some("web"));
    let (list, names) = (fixture.dir.path().join("flashpan/vms"), &fixture.vms.names);
    // Killed while it made a VM, while it gave one a name, while it renamed one (before
    // and after the record was written), while it removed one.
    fs::create_dir(list.join(".new-vm-00000001")).unwrap();
    fs::write(list.join(".new-vm-00000001/lock"), "").unwrap();
    fs::create_dir(list.join(".new-vm-00000002")).unwrap();
    symlink("vm-00000003", names.join("nobody")).unwrap();
    symlink(&id, names.join("not-yet")).unwrap();
    fs::create_dir(list.join(".rm-vm-00000004-00000000")).unwrap();
    fs::write(list.join(".rm-vm-00000004-00000000/upper.ext4"), "").unwrap();
    // Somebody is making this one.
    let new = fixture.vms.create().unwrap();

    assert_eq!(fixture.vms.list().unwrap().vms.len(), 1);
    for stale in ["nobody", "not-yet"] {
        assert!(fixture.vms.resolve(stale).is_err(), "{stale}");
    }
    let other = fixture.create(Some("nobody"));
    let third = fixture.create(Some("not-yet"));
    assert_eq!(fixture.vms.resolve("nobody").unwrap(), other);
    assert_eq!(fixture.vms.resolve("not-yet").unwrap(), third);
    assert!(new.directory().is_dir());
    new.publish(Record::new(serde_json::Value::Null)).unwrap();
    for vm in fixture.vms.list().unwrap().vms {
        fixture.vms.remove(vm.id()).unwrap();
    }
    assert_eq!(fixture.left(), [""; 0]);
}

#[test]
fn only_what_has_ended_is_pruned() {
    let fixture = Fixture::new();
    let (created, stopped, crashed, running) = (
        fixture.create(None),
        fixture.create(Some("stopped")),
        fixture.create(None),
        fixture.create(None),
    );
    fixture.run(&stopped);
    drop(fixture.claim(&crashed).unwrap());
    let _claim = fixture.claim(&running).unwrap();
    let (mut pruned, failures) = fixture.vms.prune().unwrap();
    assert!(failures.is_empty());
    pruned.sort();
    let mut expected = [stopped, crashed];
    expected.sort();
    assert_eq!(pruned, expected);
    let left = fixture.vms.list().unwrap().vms;
    let mut left: Vec<_> = left.iter().map(Vm::id).collect();
    left.sort_unstable();
    let mut expected = [created.as_str(), running.as_str()];
    expected.sort_unstable();
    assert_eq!(left, expected);
}

#[test]
fn a_damaged_vm_is_told_and_can_be_removed_by_its_name() {
    let fixture = Fixture::new();
    let (good, bad) = (fixture.create(None), fixture.create(Some("bad")));
    let file = fixture.vms.directory(&bad).join("vm.json");
    for damage in [
        "",
        "{",
        r#"{"version": 1, "id": "vm-00000000"}"#,
        r#"{"version": 9}"#,
    ] {
        fs::write(&file, damage).unwrap();
        let listing = fixture.vms.list().unwrap();
        assert_eq!(listing.vms.len(), 1, "{damage}");
        assert_eq!(listing.vms[0].id(), good);
        let (id, error) = &listing.damaged[0];
        assert_eq!(id, &bad);
        assert!(error.to_string().contains("vm.json"), "{error}");
        assert!(fixture.claim(&bad).is_err());
    }
    let id = fixture.vms.resolve("bad").unwrap();
    fixture.vms.remove(&id).unwrap();
    assert!(fixture.vms.resolve("bad").is_err());
}

#[test]
fn a_directory_of_another_user_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("flashpan");
    fs::create_dir_all(&base).unwrap();
    if nix::unistd::geteuid().is_root() {
        fs::create_dir(base.join("vms")).unwrap();
        let other = Some(nix::unistd::Uid::from_raw(12_345));
        nix::unistd::chown(&base.join("vms"), other, None).unwrap();
    } else {
        symlink("/", base.join("vms")).unwrap();
    }
    let vms = Vms::at(&base);
    for error in [
        vms.list().unwrap_err(),
        vms.resolve("web").unwrap_err(),
        vms.create().map(drop).unwrap_err(),
        vms.prune().unwrap_err(),
    ] {
        assert!(matches!(error, StateError::Owner { .. }), "{error}");
    }
}

#[test]
fn what_takes_room_is_counted() {
    let fixture = Fixture::new();
    let id = fixture.create(None);
    let vm = fixture.vms.find(&id).unwrap();
    let before = vm.disk_bytes().unwrap();
    fs::write(vm.directory().join("upper.ext4"), vec![1; 1 << 20]).unwrap();
    assert!(vm.disk_bytes().unwrap() >= before + (1 << 20));
}

/// Whatever a reader has read when the VM is started again: nothing that it is told is
/// of the run before.
#[test]
fn a_vm_that_starts_again_is_never_seen_with_the_end_of_its_last_run() {
    let fixture = Fixture::new();
    let id = fixture.create(None);
    let directory = fixture.vms.directory(&id);
    let claim = fixture.claim(&id).unwrap();
    let command = CommandEnd {
        code: 7,
        signal: None,
    };
    claim.say(Activity::Stopping);
    claim.command_ended(command).unwrap();
    let exit = ExitRecord::new(claim.run(), Err("told so"), Some(command));
    claim.end(&exit, false).unwrap();
    let vm = fixture.vms.find(&id).unwrap();
    assert_eq!(vm.run().unwrap().command, Some(command));

    // Its supervisor has taken the lock, and written nothing yet.
    let life = lock::LifeLock::take(&directory.join("lock"), || Ok(()))
        .unwrap()
        .unwrap();
    let vm = fixture.vms.find(&id).unwrap();
    assert_eq!(vm.status(), Status::Starting);
    assert_eq!((vm.run(), vm.exit()), (None, None));
    drop(life);
    // It was killed there: nothing has begun.
    let vm = fixture.vms.find(&id).unwrap();
    assert_eq!(vm.status(), Status::Stopped);
    assert_eq!(vm.exit(), Some(&exit));

    // It is started when a reader has read what was there.
    let mut claim = None;
    let (status, run, exit) = vm::look_between(&directory, || {
        claim = fixture.claim(&id).ok();
    })
    .unwrap();
    let run = run.unwrap();
    assert_eq!((status, run.number), (Status::Starting, 2));
    assert_eq!((run.command, exit), (None, None));
    assert!(claim.is_some());
}

#[test]
fn whoever_sees_a_supervisor_can_speak_to_it() {
    use std::os::unix::net::UnixStream;
    let fixture = Fixture::new();
    let id = fixture.create(None);
    let directory = fixture.vms.directory(&id);
    let (lock, socket) = (directory.join("lock"), directory.join("control.sock"));
    let stale = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    drop(stale);
    let life = lock::LifeLock::take(&lock, || {
        // What is done here nobody has seen.
        assert_eq!(fixture.status(&id), Status::Created);
        Ok(())
    });
    drop(life.unwrap().unwrap());

    let (claim, listener) = fixture.vms.claim(&id, false).unwrap();
    assert_eq!(fixture.status(&id), Status::Starting);
    // Somebody who starts it as well is not in the way.
    assert!(fixture.claim(&id).is_err());
    let client = UnixStream::connect(&socket).unwrap();
    let (server, _) = listener.accept().unwrap();
    drop((client, server, claim));
}
