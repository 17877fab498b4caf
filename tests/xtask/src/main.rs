//! Development commands: lab, tests, benchmarks.

fn main() {}
