//! A coordinator and its agents on one thread, by a simulated clock: thousands
//! of histories with crashes, cuts, delays, liars and an operator who interferes.
//!
//! Real are the coordinator's store, audit, issuance, engine, projection,
//! sessions and its three services, with every signature; on the agents' side
//! plan, journal entries, keys, CSRs and signed evidence. Simulated are the
//! disk below the store, the network, TLS, hosts and their services.
//!
//! - [`random`], [`history`]: chance and what came of it; one seed, one history. [`bell`] wakes in order.
//! - [`world`]: what a seed decides, and the coordinator's life.
//! - [`network`], [`host`]: what lies between and below.
//! - [`agent`], [`runner`]: the model agent. [`liar`]: one that was taken over.
//! - [`operator`], [`chaos`]: what happens to them.
//! - [`check`], [`records`]: what must hold, always. [`rest`]: and at the end.
//! - [`seed`]: one seed from beginning to end.

pub mod agent;
pub mod bell;
pub mod chaos;
pub mod check;
pub mod history;
pub mod host;
mod liar;
pub mod network;
pub mod operator;
pub mod random;
mod records;
pub mod rest;
pub mod runner;
pub mod seed;
pub mod world;

pub use seed::{Outcome, make_fleet, run};
