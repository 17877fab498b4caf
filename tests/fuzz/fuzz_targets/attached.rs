#![no_main]

#[path = "../src/attached.rs"]
mod attached;

libfuzzer_sys::fuzz_target!(|data: &[u8]| attached::attached(data));
