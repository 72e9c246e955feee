//! The Reseal coordinator and operator CLI, in the order work flows through it.
//!
//! - [`cli`]: what an operator types; a client of the operator service.
//! - [`config`], [`init`], [`restore`], [`app`]: a file becomes a configuration,
//!   a fleet is made or comes back, the parts are wired and run.
//! - [`grpc`]: the wire; checks who calls, meets the rest in the store.
//! - [`store`]: where everything is; one way to change it.
//! - [`view`]: what the store says, small enough for memory.
//! - [`engine`]: what is due, done once, under the lease.
//! - [`issuance`]: CSRs in, chains out, intent first.
//! - [`domain`]: decisions, without I/O, clock or randomness.
//! - [`metrics`], [`monitor`]: numbers for Prometheus.
//!
//! The feature `simulation` adds a module of that name: all of it without threads, disk and TLS.

pub mod app;
pub mod cli;
pub mod config;
pub mod domain;
pub mod engine;
mod fail;
pub mod grpc;
pub mod init;
pub mod issuance;
pub mod metrics;
pub mod monitor;
pub mod restore;
#[cfg(feature = "simulation")]
pub mod simulation;
pub mod store;
pub mod view;
