//! The jailed VMM process.

fn main() {}
