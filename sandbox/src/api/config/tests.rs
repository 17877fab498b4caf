use super::*;
use crate::api::{MountConfig, Secret};

#[test]
fn ids_are_made_once() {
    let mut config = Config::default();
    let id = config.id_or_new().unwrap().to_owned();
    let digits = id.strip_prefix("vm-").unwrap();
    assert_eq!(digits.len(), 8);
    assert!(
        digits
            .bytes()
            .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')),
        "{id}"
    );
    assert_eq!(config.id_or_new().unwrap(), id);
    assert_eq!(config.id, id);
    assert_ne!(Config::default().id_or_new().unwrap(), id);
}

#[test]
fn the_guest_is_named_after_the_vm_unless_it_has_a_name() {
    let mut config = Config::default();
    let name = config.hostname_or_id().unwrap().to_owned();
    assert_eq!(config.id, name);

    let mut named = Config::with_defaults();
    named.network.as_mut().unwrap().hostname = "build-7".to_owned();
    assert_eq!(named.hostname_or_id().unwrap(), "build-7");
    assert_eq!(named.id, "");
}

#[test]
fn defaults_have_no_files_of_the_host() {
    for mut config in [Config::default(), Config::with_defaults()] {
        assert_eq!(config.workspace(), None);
        assert!(!config.has_vfs_mounts());
        config.vfs = Some(VfsConfig::default());
        assert!(!config.has_vfs_mounts());
        let vfs = config.vfs.as_mut().unwrap();
        vfs.workspace = "/workspace".to_owned();
        vfs.mounts
            .insert("/workspace".to_owned(), MountConfig::memory());
        assert_eq!(config.workspace(), Some("/workspace"));
        assert!(config.has_vfs_mounts());
    }
}

#[test]
fn defaults_are_those_of_the_interface() {
    let json = concat!(
        r#"{"resources":{"cpus":1,"memory_mb":512,"disk_size_mb":5120,"timeout_seconds":300},"#,
        r#""network":{"block_private_ips":true,"mtu":1500}}"#
    );
    assert_eq!(
        serde_json::to_string(&Config::with_defaults()).unwrap(),
        json
    );
    assert_eq!(serde_json::to_string(&Config::default()).unwrap(), "{}");
}

#[test]
fn json_has_the_names() {
    let json = concat!(
        r#"{"id":"vm-00000000","image":"alpine","privileged":true,"launch_entrypoint":true,"#,
        r#""resources":{},"network":{},"vfs":{},"env":{"A":"1"},"#,
        r#""extra_disks":[{"host_path":"/d","guest_mount":"/d"}],"image_config":{}}"#
    );
    let config: Config = serde_json::from_str(json).unwrap();
    assert_eq!(serde_json::to_string(&config).unwrap(), json);
}

#[test]
fn a_redacted_configuration_has_no_secrets_left() {
    let mut config = Config::with_defaults();
    let secret = Secret::new("hunter2".to_owned(), ["a.com"]);
    let secrets = &mut config.network.as_mut().unwrap().secrets;
    secrets.insert("KEY".to_owned(), secret);
    let shown = format!("{config:?}");
    assert!(
        shown.contains("KEY") && !shown.contains("hunter2"),
        "{shown}"
    );
    let stored = serde_json::to_string(&config.redacted()).unwrap();
    assert!(
        stored.contains("KEY") && !stored.contains("hunter2"),
        "{stored}"
    );
    assert!(config.redacted().validate().is_err());
    assert!(serde_json::to_string(&config).unwrap().contains("hunter2"));
}
