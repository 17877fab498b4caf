//! What a builder takes, and what it refuses.

use super::*;

fn builder() -> SandboxBuilder {
    let root = Root::new("root.erofs", FsType::Erofs);
    SandboxBuilder::new("vmlinux".into(), root)
}

fn file() -> File {
    File::open("/dev/null").unwrap()
}

#[test]
fn disks_have_the_names_that_the_guest_gives_them() {
    let plain = builder().disk(Disk::new(file(), "/a").read_only(true));
    let config = plain.guest_config();
    assert_eq!(config.root.upper, agent::Upper::Tmpfs);
    assert_eq!(config.mounts.len(), 1);
    assert_eq!(config.mounts[0].device, "vdb");
    assert!(config.mounts[0].read_only);
    let specs = plain.vm_spec().unwrap().disks;
    assert!(specs[0].read_only && specs[1].read_only);
    assert_eq!(plain.disk_roles(), [DiskRole::Root, DiskRole::Added(0)]);

    let all = builder()
        .upper(Upper::Scratch(file()))
        .disk(Disk::new(file(), "/a"))
        .disk(Disk::new(file(), "/b"));
    let config = all.guest_config();
    assert_eq!(config.root.upper, agent::Upper::Disk("vdb".to_owned()));
    let devices: Vec<_> = config.mounts.iter().map(|m| m.device.as_str()).collect();
    assert_eq!(devices, ["vdc", "vdd"]);
    let specs = all.vm_spec().unwrap().disks;
    let volatile: Vec<_> = specs.iter().map(|disk| disk.volatile).collect();
    assert_eq!(volatile, [false, true, false, false]);
    let (upper, added) = (DiskRole::Upper, [0, 1].map(DiskRole::Added));
    assert_eq!(
        all.disk_roles(),
        [DiskRole::Root, upper, added[0], added[1]]
    );
}

#[test]
fn disks_are_bounded() {
    let mut many = builder();
    for n in 0..MAX_DISKS {
        many = many.disk(Disk::new(file(), format!("/d{n}")));
    }
    assert!(refusal(&many).starts_with("disks: 17 with those of the root"));
    let twice = builder()
        .disk(Disk::new(file(), "/a"))
        .disk(Disk::new(file(), "/a"));
    assert!(refusal(&twice).contains("two disks at /a"));
}

fn refusal(builder: &SandboxBuilder) -> String {
    builder.validate().unwrap_err().to_string()
}

#[test]
fn defaults_are_valid() {
    builder().validate().unwrap();
}

#[test]
fn cpus_are_bounded() {
    for (cpus, shown) in [
        (0.0, "0"),
        (-0.5, "-0.5"),
        (1000.0, "1000"),
        (32.5, "32.5"),
        (f64::NAN, "NaN"),
        (f64::INFINITY, "inf"),
    ] {
        assert_eq!(
            refusal(&builder().cpus(cpus)),
            format!("cpus: {shown} is not more than 0 and at most 32")
        );
    }
    builder().cpus(32).validate().unwrap();
}

#[test]
fn memory_is_bounded_by_the_kernel_and_the_host() {
    assert!(refusal(&builder().memory_mib(1)).contains("48 MiB or more"));
    assert!(refusal(&builder().memory_mib(u64::MAX)).contains("more than the"));
    assert!(check_memory(4096, Some(4096)).is_ok());
    assert!(check_memory(4097, Some(4096)).is_err());
    assert!(check_memory(u64::MAX, None).is_err());
}

#[test]
fn host_names_are_what_dns_allows() {
    for bad in ["", "a b", "a\0", "ä", &"x".repeat(65)] {
        assert!(
            refusal(&builder().hostname(bad)).starts_with("hostname: "),
            "{bad:?}"
        );
    }
    builder().hostname("build-7.example").validate().unwrap();
}

#[test]
fn kernel_arguments_are_one_printable_line() {
    for bad in ["a\nb", "a\0", "ä", &"x".repeat(1025)] {
        assert!(refusal(&builder().kernel_args(bad)).starts_with("kernel arguments: "));
    }
}
