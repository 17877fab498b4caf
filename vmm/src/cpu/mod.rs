//! A virtual CPU: what it is ([`cpuid`]), how it begins ([`entry`]), how it
//! runs ([`run`]) and what it can be saved as ([`state`]).

pub mod cpuid;
pub mod entry;
pub mod run;
pub mod state;
