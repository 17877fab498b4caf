//! VMs that outlive the commands of a test, and the images that they are made from,
//! against the fake VMM of the library's tests. No KVM is needed.
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
#[path = "support/registry.rs"]
mod registry;
#[path = "support/vms.rs"]
mod vms;

use vms::Vms;

#[test]
fn a_vm_keeps_to_the_image_that_it_was_made_from() {
    let vms = Vms::new("normal");
    let root = vms.0.path("image");
    std::fs::create_dir_all(root.join("bin")).unwrap();
    let import = |content: &str| {
        std::fs::write(root.join("file"), content).unwrap();
        vms.ok(&["image", "import", "app", root.to_str().unwrap()]);
    };
    import("one");
    let make = [
        "run",
        "-d",
        "--hostname",
        "fake",
        "--image",
        "app",
        "--name",
        "web",
    ];
    let begin = |end: &[&str]| vms.ok(&[&make[..], end].concat());
    // The image has no command, so the VM has none.
    begin(&[]);
    assert_eq!(
        vms.ok(&["ls", "--format", "{{.Image}} {{.Command}}"]),
        "app \n"
    );
    let pinned = vms.inspect("web")["launch"]["config"]["image"].clone();
    assert!(pinned.as_str().unwrap().starts_with("sha256:"), "{pinned}");
    let kept = vms.inspect("web");
    assert_eq!(kept["launch"]["config"]["id"], kept["id"], "{kept}");
    vms.ok(&["stop", "web"]);
    vms.ok(&["start", "web"]);
    vms.ok(&["stop", "web"]);
    // Another image of that name is another image, and the VM keeps its own.
    import("two");
    vms.ok(&["image", "gc"]);
    let id = vms.inspect("web")["id"].as_str().unwrap().to_owned();
    let images = vms.ok(&["image", "ls"]);
    assert!(images.contains(&format!("flashpan.vm/{id}")), "{images}");
    vms.ok(&["start", "web"]);
    vms.ok(&["stop", "web"]);
    // Unless somebody takes it away.
    vms.ok(&["image", "rm", "-f", &format!("flashpan.vm/{id}")]);
    let gone = vms.refused(&["start", "web"]);
    assert!(gone.contains("not in the store any more"), "{gone}");
    assert_eq!(vms.status(&id), "stopped");
    vms.ok(&["rm", "web"]);
    begin(&["--", "exit", "4"]);
    assert_eq!(vms.ok(&["wait", "web"]), "4\n");
    assert_eq!(
        vms.output(&["exec", "web", "exit", "5"]).status.code(),
        Some(5)
    );
    vms.ok(&["rm", "-f", "web"]);
    assert_eq!(vms.ok(&["image", "ls"]).lines().count(), 2);
}

#[test]
fn the_command_is_stopped_by_the_signal_that_its_image_wants() {
    let vms = Vms::new("normal");
    let (root, layer, layout) = (vms.0.path("r"), vms.0.path("l.tar"), vms.0.path("layout"));
    std::fs::create_dir_all(root.join("bin")).unwrap();
    registry::tar(&root, &layer);
    let config = ["--config.cmd", "sleep", "--config.stopsignal", "SIGQUIT"];
    registry::make_layout(&layout, "app", &[layer], &config);
    vms.ok(&["image", "import", "app", layout.to_str().unwrap()]);
    let options = ["--hostname", "fake", "--name", "web", "--image", "app"];
    vms.ok(&[&["run", "-d"][..], &options].concat());
    vms.ok(&["stop", "web"]);
    let stopped = vms.inspect("web");
    assert_eq!(stopped["exit"]["command"]["signal"], 3, "{stopped}");
    assert_eq!(stopped["exit"]["orderly"], true, "{stopped}");
}
