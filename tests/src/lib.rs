//! End-to-end tests that boot real VMs.
