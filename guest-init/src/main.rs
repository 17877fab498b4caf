//! Static PID 1 of the guest: mounts, agent.

fn main() {}
