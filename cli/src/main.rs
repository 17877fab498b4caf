//! The flashpan command.

fn main() {}
