//! What the end-to-end tests are written with.
//!
//! `cargo xtask test --e2e` runs them where VMs run, which may be the lab, and
//! tells them by the environment what to test with ([`fixtures`]). [`Home`] is
//! a home of its own for a test, in which and around which nothing may be left;
//! [`Flashpan`] is a run of our program in it.
//! [`internet`] is one that a test has for itself. [`payload`] is for tests of the
//! VMM as a library.

// A helper of tests fails as tests do: by a panic that says what is wrong.
#![allow(
    clippy::panic,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::unwrap_used
)]

mod autopsy;
pub mod fixtures;
mod flashpan;
mod home;
pub mod internet;
pub mod payload;
mod terminal;

pub use autopsy::autopsy;
pub use flashpan::{Finished, Flashpan, Running};
pub use home::Home;
pub use terminal::Terminal;
