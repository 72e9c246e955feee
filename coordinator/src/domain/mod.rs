//! What Reseal decides, without doing anything: no I/O, no clock, no randomness.
//!
//! Time and jitter are arguments. Every state machine is one enum with one
//! `apply(event)`, and every `match` over it names all states. The engine, the
//! issuance and the gRPC services ask; nobody here knows of them.

pub(crate) mod allowance;
pub mod authority;
pub mod csr;
pub mod evidence;
pub mod host;
pub mod name;
pub mod policy;
pub mod remedy;
pub mod renewal;
pub mod rotation;
pub mod selection;
pub mod target;
pub mod waves;

/// The clock, handed down from `app`: seconds since the Unix epoch.
pub type Now = fn() -> i64;
