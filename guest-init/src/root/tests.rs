use super::device_path;

mod privileged;

#[test]
fn device_names_cannot_be_paths() {
    let path = |name| device_path(name, |_| String::new());
    assert_eq!(path("vda").unwrap(), "/dev/vda");
    for name in ["", ".", "..", "a/b", "../vda", "vd\0a"] {
        assert!(path(name).is_err(), "{name:?}");
    }
}
