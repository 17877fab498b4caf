//! The device against a guest that the tests play, and real host streams.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::cast_lossless
)] // Sizes in tests are small and chosen here.

mod bulk;
mod closing;
mod connecting;
mod credit;
mod driver;
mod event_loop;
mod hostile;
mod random;
mod snapshot;
mod socket;
