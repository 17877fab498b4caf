use std::path::PathBuf;

use super::*;
use crate::RateLimit;
use crate::api::{DiskMount, ErrorCode};
use crate::launch::{ImageSource, PullPolicy, Silent, UpperSource};

/// A directory with a file that passes for a kernel.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("vmlinux"), "\x7fELF").unwrap();
        Self(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn options(&self) -> HostOptions {
        HostOptions::new(self.path("vmlinux"))
            .root(RootSource::BuiltIn)
            .upper(UpperSource::Memory)
    }
}

fn config(json: &str) -> Config {
    Config::from_json(json.as_bytes()).unwrap().config
}

#[track_caller]
fn refusal(config: Config, options: HostOptions) -> (ErrorCode, String) {
    let error = Launch::check(config, options, Arc::new(Silent)).unwrap_err();
    (error.code(), error.to_string())
}

#[test]
fn what_is_wrong_is_told_in_order_and_by_name() {
    let place = Place::new();
    let text = place.path("text");
    std::fs::write(&text, "no kernel").unwrap();
    let no_kernel = HostOptions::new(&text).root(RootSource::BuiltIn);
    let missing = r#"{"extra_disks":[{"host_path":"/nowhere/d","guest_mount":"/d"}]}"#;
    for (json, options, code, words) in [
        // Before everything: mistakes in the configuration, all of them.
        (
            r#"{"resources":{"memory_mb":1,"cpus":99},"network":{"intercept":true}}"#,
            no_kernel.clone(),
            ErrorCode::ConfigInvalid,
            &["resources.memory_mb", "resources.cpus"][..],
        ),
        (
            r#"{"vfs":{"direct_mounts":{"/d":{"host_path":"/d"}}}}"#,
            no_kernel.clone(),
            ErrorCode::Unsupported,
            &["vfs.direct_mounts: not supported by this version"],
        ),
        (
            r#"{"resources":{"memory_mb":4294967295}}"#,
            no_kernel.clone(),
            ErrorCode::ConfigInvalid,
            &["memory: "],
        ),
        (missing, no_kernel, ErrorCode::KernelUnusable, &["/text: "]),
        (
            missing,
            place.options(),
            ErrorCode::DiskUnusable,
            &["/nowhere/d"],
        ),
        (
            r#"{"extra_disks":[{"host_path":"@no/name","guest_mount":"/d"}]}"#,
            place.options(),
            ErrorCode::DiskUnusable,
            &["invalid volume name"],
        ),
        (
            "{}",
            HostOptions::default().root(RootSource::BuiltIn),
            ErrorCode::ConfigInvalid,
            &["kernel: "],
        ),
        (
            "{}",
            HostOptions::new(place.path("vmlinux")),
            ErrorCode::ImageRequired,
            &["image is required"],
        ),
        (
            r#"{"image":"alpine"}"#,
            place.options(),
            ErrorCode::ConfigInvalid,
            &["image: alpine is named, and another root"],
        ),
    ] {
        let (found, text) = refusal(config(json), options);
        assert_eq!(found, code, "{json}: {text}");
        for word in words {
            assert!(text.contains(word), "{json}: {text}");
        }
        assert!(!text.contains('\n'), "{text}");
    }
}

#[test]
fn disks_are_locked_as_long_as_it_is_there() {
    let place = Place::new();
    let cache = flashpan_rootfs::cache::Cache::at(place.path("cache"));
    let path = place.path("disk.ext4");
    drop(flashpan_rootfs::disk::kept(&path, 16 << 20, &cache).unwrap());
    let mut with_disk = Config::default();
    let disk = DiskMount::new(path.display().to_string(), "/d");
    with_disk.extra_disks.push(disk);
    let checked = Launch::check(with_disk.clone(), place.options(), Arc::new(Silent)).unwrap();
    let (code, text) = refusal(with_disk.clone(), place.options());
    assert_eq!(code, ErrorCode::DiskUnusable);
    assert!(text.contains("is in use"), "{text}");
    drop(checked);
    Launch::check(with_disk, place.options(), Arc::new(Silent)).unwrap();
}

#[test]
fn a_vm_without_a_name_gets_an_id() {
    let place = Place::new();
    let checked = |json| Launch::check(config(json), place.options(), Arc::new(Silent)).unwrap();
    let unnamed = checked("{}");
    assert_eq!(unnamed.hostname, unnamed.config.id);
    assert!(unnamed.hostname.starts_with("vm-"));
    assert_eq!(checked(r#"{"network":{"hostname":"h"}}"#).hostname, "h");
    assert_eq!(checked(r#"{"id":"vm-0123abcd"}"#).hostname, "vm-0123abcd");
}

#[test]
fn the_time_limit_is_the_configuration_s_unless_the_host_says_another() {
    let place = Place::new();
    let limit = |json, limit| {
        let mut options = place.options();
        options.time_limit = limit;
        bare(&config(json), &options, "h", no_root()).time_limit
    };
    let seconds = |n| Some(std::time::Duration::from_secs(n));
    assert_eq!(limit("{}", TimeLimit::Configured), seconds(300));
    let ten = r#"{"resources":{"timeout_seconds":10}}"#;
    assert_eq!(limit(ten, TimeLimit::Configured), seconds(10));
    let after = TimeLimit::After(std::time::Duration::from_secs(2));
    assert_eq!(limit(ten, after), seconds(2));
    assert_eq!(limit(ten, TimeLimit::Unlimited), None);
}

#[test]
fn the_host_limits_disks() {
    let place = Place::new();
    let with = |limit| {
        let mut options = place.options();
        options.disk_rate = Some(limit);
        options
    };
    let limit = RateLimit::default().operations_per_second(7);
    let spec = bare(&config("{}"), &with(limit), "h", no_root()).vm_spec();
    let rate = spec.unwrap().disks[0].rate.operations.unwrap();
    assert_eq!((rate.per_second.get(), rate.burst.get()), (7, 7));
    let (_, text) = refusal(config("{}"), with(limit.bytes_per_second(0)));
    assert!(text.starts_with("disk rate: bytes_per_second: 0"), "{text}");
}

#[test]
fn an_image_that_may_not_be_pulled_has_to_be_there() {
    let place = Place::new();
    let source = ImageSource {
        pull: PullPolicy::Never,
        ..ImageSource::default()
    };
    let options = place.options().root(RootSource::Image(source));
    let image = r#"{"image":"flashpan.invalid/never/there:1"}"#;
    let (code, text) = refusal(config(image), options);
    assert_eq!(code, ErrorCode::ImageUnusable);
    assert!(text.contains("--pull never"), "{text}");
    let (code, text) = refusal(
        config(r#"{"image":"UPPER"}"#),
        place.options().root(RootSource::default()),
    );
    assert_eq!(code, ErrorCode::ImageUnusable);
    assert!(text.contains("lower case"), "{text}");
}
