#![no_main]

#[path = "../src/hello.rs"]
mod hello;

libfuzzer_sys::fuzz_target!(|data: &[u8]| hello::hello(data));
