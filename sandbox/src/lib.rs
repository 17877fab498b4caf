//! Run untrusted programs in micro-VMs.
