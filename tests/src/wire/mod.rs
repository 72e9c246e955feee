//! The wire, spoken by hand: a real coordinator on loopback and agents that are
//! nothing but a client, so that they can misbehave.
//!
//! What a real agent never does (forged proofs, foreign batches, silence in the
//! wrong moment) is tried from here, and the fleet simulator measures from here.

mod agent;
pub mod ask;
mod collector;
mod coordinator;
mod puppet;

pub use agent::{Identity, Session, csr, facts_of, installation, inventory, now, open_token};
pub use collector::{Collector, Seen};
pub use coordinator::{Coordinator, Operator, Settings};
pub use puppet::{Puppet, an_ack, an_order, chains};
