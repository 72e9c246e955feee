//! What Reseal decides, without doing anything: no I/O, no clock, no randomness.
//!
//! Time and jitter are arguments. Every state machine is one enum with one
//! `apply(event)`, and every `match` over it names all states. The engine, the
//! issuance and the gRPC services ask; nobody here knows of them.

use std::time::Duration;

pub(crate) mod allowance;
pub mod authority;
pub mod csr;
pub mod evidence;
pub mod host;
pub mod listing;
pub mod name;
pub mod policy;
pub mod remedy;
pub mod renewal;
pub mod rotation;
pub mod selection;
pub mod shared;
pub mod target;
pub mod unmanaged;
pub mod waves;

/// The clock, handed down from `app`: seconds since the Unix epoch.
pub type Now = fn() -> i64;

/// By how many seconds that clock was put forward (or back, negative) between two
/// looks at it, when a clock that nobody sets says how much time passed between them.
pub fn put_forward(before: i64, now: i64, passed: Duration) -> i64 {
    now.saturating_sub(before).saturating_sub(i64::try_from(passed.as_secs()).unwrap_or(i64::MAX))
}
