//! The Reseal agent, one per Docker host, in the order in which things flow.
//!
//! - [`config`] reads the settings, [`app`] wires everything and reads the clock; [`clock`] knows how far it is off.
//! - [`identity`] is who this host is; [`key`] makes and holds private keys; [`pem`] is their text form,
//!   [`keystore`] what Java and others keep them in.
//! - [`discover`] turns containers, labels and mounts into installations, and finds what nobody
//!   declared; [`inventory`] reports them.
//! - [`link`] is the session with the coordinator; [`outbox`] keeps results until they are acknowledged.
//! - [`adopt`] takes on what was discovered, where the host allows it.
//! - [`state`] is what is on disk between two runs, [`room`] what is kept free for it.
//! - [`renew`] runs a batch, [`target`] one target of it: [`plan`] says what is next, [`journal`] remembers it.
//! - [`chain`] validates, [`install`] writes (through [`dir`]),
//!   [`inside`] looks at it from a container, [`reload`] reloads, [`verify`] proves.
//! - [`served`] looks after consumers that start later ([`unserved`]), [`trust`] writes bundles, [`evidence`] signs.
//! - [`host_process`] finds and reloads processes of the host itself, where the configuration declares them.
//! - [`scan`] and [`doctor`] are the two commands for people; [`metrics`] is for Prometheus.
//!
//! The coordinator only ever names installations that the host declared itself:
//! nothing that comes over the wire is a path, a command or a signal.

pub mod adopt;
pub mod app;
pub mod chain;
pub mod clock;
pub mod config;
pub mod dir;
pub mod discover;
pub mod doctor;
pub mod evidence;
pub mod host_process;
pub mod identity;
pub mod inside;
pub mod install;
pub mod inventory;
pub mod journal;
pub mod key;
pub mod keystore;
pub mod link;
pub mod metrics;
pub mod outbox;
pub mod pem;
pub mod plan;
pub mod reload;
pub mod renew;
pub mod room;
pub mod scan;
pub mod served;
pub mod state;
pub mod target;
pub mod trust;
pub mod unserved;
pub mod verify;

pub use reseal_proto::error::chain as chain_of;

/// A place where a test kills the process; nothing in a release.
pub(crate) fn fail_point(name: &str) {
    #[cfg(feature = "failpoints")]
    reseal_proto::fail::point(name);
    let _ = name;
}
