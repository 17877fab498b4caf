#![no_main]

#[path = "../src/edit.rs"]
mod edit;

libfuzzer_sys::fuzz_target!(|data: &[u8]| edit::edit(data));
