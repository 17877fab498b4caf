//! Stub.
#![allow(missing_docs, missing_debug_implementations)]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("stub")]
    Stub,
}
