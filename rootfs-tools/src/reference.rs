//! Stub.
#![allow(missing_docs, missing_debug_implementations)]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("stub")]
    Stub,
}
pub struct Reference(String);
impl std::str::FromStr for Reference {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self, Error> {
        Ok(Self(s.to_owned()))
    }
}
impl std::fmt::Display for Reference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
