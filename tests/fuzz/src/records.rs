//! What is on disk of a VM, whoever wrote it. The same runs over the corpus in
//! `sandbox/tests/fuzz_corpus.rs`.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;

use flashpan::state::{Record, Status, Vms};

/// Between the documents: no byte of UTF-8.
const CUT: u8 = 0xff;

/// `vm.json`, `run.json` and `exit.json` of a VM, the file `lock`, and a text to
/// find it by and to call it: the VM is understood or said to be damaged, and one
/// that is understood can be renamed and removed and stays the same otherwise.
pub fn records(data: &[u8]) {
    let base = tempfile::tempdir_in("/dev/shm").unwrap();
    let vms = Vms::at(base.path().join("state"));
    let vm = vms
        .create()
        .unwrap()
        .publish(Record::new(().into()))
        .unwrap();
    let (id, directory) = (vm.id().to_owned(), vm.directory().to_owned());
    let mut parts = data.split(|byte| *byte == CUT);
    for file in ["vm.json", "run.json", "exit.json", "lock"] {
        if let Some(part) = parts.next().filter(|part| !part.is_empty()) {
            let text = String::from_utf8_lossy(part).replace("$ID", &id);
            let mut options = OpenOptions::new();
            let options = options.write(true).create(true).truncate(true).mode(0o600);
            let mut file = options.open(directory.join(file)).unwrap();
            std::io::Write::write_all(&mut file, text.as_bytes()).unwrap();
        }
    }
    let text = String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
    let sentinel = base.path().join("sentinel");
    fs::write(&sentinel, "not of a VM").unwrap();

    let listing = vms.list().unwrap();
    assert_eq!(listing.vms.len() + listing.damaged.len(), 1);
    for (damaged, error) in &listing.damaged {
        assert_eq!(damaged, &id);
        harmless(&error.to_string());
    }
    match vms.find(&id) {
        Ok(found) => {
            assert_eq!(found.id(), id);
            assert!(!found.status().is_alive(), "nobody holds its lock");
            let ended = found.status() == Status::Stopped;
            assert_eq!(found.exit().is_some(), ended);
            if let Some(exit) = found.exit() {
                assert_eq!(Some(exit.run), found.run().map(|run| run.number));
            }
            found.must_live().unwrap_err();
            serde_json::to_string(&found).unwrap();
            let record = found.record();
            if let Some(command) = record.programs.own_command() {
                // Whatever it is, it can be kept as it was.
                let kept = flashpan::state::Programs::of(&command).unwrap();
                assert_eq!(kept.command, record.programs.command);
            }
            let mut renamed = record.clone();
            if vms.rename(&id, &text).is_ok() {
                renamed.name = Some(text.clone());
                assert_eq!(vms.find(&text).unwrap().id(), id);
                vms.check_free(&text).unwrap_err();
            }
            let found = vms.find(&id).unwrap();
            // Without ports, addresses say nothing and are not kept.
            if found.record().publish.is_empty() && renamed.publish.is_empty() {
                renamed.publish = found.record().publish.clone();
            }
            assert_eq!(found.record(), &renamed);
        }
        Err(error) => {
            assert_eq!(listing.damaged.len(), 1);
            harmless(&error.to_string());
        }
    }
    match vms.resolve(&text) {
        Ok(found) => assert_eq!(found, id),
        Err(error) => harmless(&error.to_string()),
    }
    if let Err(error) = vms.check_free(&text) {
        harmless(&error.to_string());
    }
    vms.remove(&id).unwrap();
    assert!(vms.list().unwrap().vms.is_empty() && !directory.exists());
    assert_eq!(fs::read(&sentinel).unwrap(), b"not of a VM");
    let names = base.path().join("state/names");
    assert_eq!(fs::read_dir(names).into_iter().flatten().count(), 0);
    assert_eq!(fs::read_dir(base.path()).unwrap().count(), 2);
}

/// A complaint is one line and has an end.
fn harmless(text: &str) {
    assert!(!text.contains(char::is_control), "{text:?}");
    assert!(text.len() < 4096, "{text}");
}
