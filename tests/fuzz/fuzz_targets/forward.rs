#![no_main]

#[path = "../src/forward.rs"]
mod forward;

libfuzzer_sys::fuzz_target!(|data: &[u8]| forward::forward(data));
