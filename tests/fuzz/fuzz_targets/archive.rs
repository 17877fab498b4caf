#![no_main]

#[path = "../src/entry.rs"]
#[allow(dead_code)]
mod entry;
#[path = "../../../rootfs-tools/tests/support/mod.rs"]
#[allow(dead_code)]
mod support;

libfuzzer_sys::fuzz_target!(|data: &[u8]| entry::archive(data));
