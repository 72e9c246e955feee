//! The wire of Reseal, in reading order.
//!
//! - [`v1`]: the messages and services generated from `reseal/v1/*.proto`.
//! - [`identity`]: who is speaking: SPIFFE IDs of hosts, operators and the coordinator.
//! - [`token`]: the one-time join token, as text.
//! - [`facts`]: what an X.509 certificate says, as a message.
//! - [`findings`]: every kind of finding, and its remedy.
//! - [`channel`]: a gRPC channel to the coordinator over mutual TLS.
//! - [`telemetry`]: logs, traces and the W3C trace context.
//! - [`codec`]: protobuf with buffers for many quiet streams.
//! - [`error`]: an error and what is below it, as one line.
//! - [`fail`]: named points at which a test kills the process.
//!
//! Coordinator and agent share this crate and nothing else.

pub mod channel;
pub mod codec;
pub mod error;
pub mod facts;
pub mod fail;
pub mod findings;
pub mod identity;
pub mod telemetry;
pub mod token;

/// Messages and services, generated; the comments in the `.proto` files are the API documentation.
#[allow(missing_docs, clippy::all, unreachable_pub)]
pub mod v1 {
    tonic::include_proto!("reseal.v1");
}
