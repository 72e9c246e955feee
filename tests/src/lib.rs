//! The fleet harness: real Docker hosts on one machine, the real binaries, and clients from outside.
//!
//! In reading order:
//! - [`process`]: commands, daemons, waiting for a condition, Ctrl-C.
//! - [`machine`]: what the machine must have, and how it gets it.
//! - [`image`]: the images that service containers run.
//! - [`network`]: a bridge and a network namespace per host.
//! - [`engine`]: one Docker Engine per host.
//! - [`fleet`]: hosts put together, and taken down whatever happens; [`clean`] finds what a killed run left.
//! - [`services`]: nginx, HAProxy and an mTLS pair across hosts; [`programs`]: one of each that reloads.
//! - [`layouts`]: containers whose certificates lie as they do in the field.
//! - [`openssl`] and [`probe`]: what a client outside the product sees; [`talk`]: what it speaks.
//! - [`product`]: the coordinator, the agents and the command line, run as users run them.
//! - [`world`]: all of it together, up to the moment when every certificate is issued.
//! - [`wire`]: agents that are nothing but a client, so that they can misbehave; the simulator uses them too.
//! - [`capture`]: traffic, captured and decrypted.
//! - [`proof`]: what must hold after a rotation, and after a crash; [`invariants`] is the list for every fault.
//! - [`fault`]: links that lose, clocks that are wrong, disks that fail.
//! - [`demo`]: what `deploy/demo` shows.
//! - `simulation`, with the feature of that name: coordinator and model agents on one thread, by a simulated clock.
//! - [`pki`]: a CA made with the `openssl` program, for tests of the harness and for forgeries.
//!
//! Nothing here looks inside the product; a scenario believes only what a client sees.

pub mod capture;
pub mod clean;
pub mod demo;
pub mod engine;
pub mod fault;
pub mod fleet;
pub mod image;
pub mod invariants;
pub mod layouts;
pub mod machine;
pub mod network;
pub mod openssl;
pub mod pki;
pub mod probe;
pub mod process;
pub mod product;
pub mod programs;
pub mod proof;
pub mod servers;
pub mod services;
#[cfg(feature = "simulation")]
pub mod simulation;
pub mod talk;
pub mod wire;
pub mod world;
