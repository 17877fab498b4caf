//! Trees of files on their way between host and guest.
//!
//! [`Reader`] takes a tree apart into the frames of
//! [`flashpan_protocol::file`], [`Writer`] puts one together from them. Host
//! and guest use the same two, each for one direction; neither trusts what the
//! other sends.
//!
//! Both work with the descriptors of the directories that are open and with
//! single names in them, and follow no symbolic link below the root. So whatever
//! is sent, nothing is written outside of the place that was asked for; and
//! whatever programs do to the tree meanwhile, nothing outside of it is read.
//! Whether a link at the place itself is followed is for [`Options`] to say.

mod failure;
mod place;
mod read;
mod temporary;
mod write;

pub use failure::{Failure, Why};
pub use place::Open;
pub use read::{Reader, Step, has_books};
pub use temporary::{Temporary, rename_from};
pub use write::{Options, Owner, Writer};
