use super::*;

#[test]
fn the_uuid_is_of_the_chain_and_says_its_version() {
    let one = uuid(&[[1; 32], [2; 32]]);
    assert_eq!(one, uuid(&[[1; 32], [2; 32]]));
    assert_ne!(one, uuid(&[[2; 32], [1; 32]]));
    assert_ne!(one, uuid(&[[1; 32]]));
    assert_eq!((one[6] >> 4, one[8] >> 6), (8, 2));
}

#[test]
fn the_defaults_are_those_of_the_documentation() {
    let cancel = AtomicBool::new(false);
    let options = Options::new(Path::new("/tmp"), &cancel);
    assert_eq!(options.limits, Limits::default());
    assert!(options.inline_files);
    assert_eq!(options.limits.total, 64 << 30);
}
