#![no_main]

#[path = "../src/network.rs"]
mod network;

libfuzzer_sys::fuzz_target!(|data: &[u8]| network::network(data));
