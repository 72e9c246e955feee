//! Declarations that are no labels: the agent's own configuration, and what was adopted.
//!
//! [`tables`] reads `[[certificate]]` and `[[trust]]` (pure), [`adopted`] what
//! `reseal adopt` left behind (pure), [`source`] knows both on disk and reads
//! them anew for each look at the host. All three speak the language of labels
//! and are read by the same strict code ([`super::labels`]). A process of the
//! host itself is taken for a container that mounts the host's own directories
//! under their own names: from there on nothing tells the two apart but
//! [`HostProcess`].

pub mod adopted;
pub mod source;
pub mod tables;

use std::collections::BTreeMap;
use std::fmt;

use reseal_proto::v1::Finding;

use super::Container;
use super::labels::Declared;
use adopted::Adopted;

pub use source::Source;

/// Everything that is declared beside labels.
#[derive(Clone, Debug, Default)]
pub struct Declarations {
    /// May `reseal adopt` declare more?
    pub adopt: bool,
    /// For containers, by name.
    pub containers: BTreeMap<String, Declared>,
    /// Processes of the host.
    pub host: Vec<Container>,
    /// In the order of their ids.
    pub adopted: Vec<Adopted>,
    /// What is wrong with any of it.
    pub findings: Vec<Finding>,
}

/// How a process of the host is found.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HostProcess {
    /// The main process of a systemd unit.
    Unit(String),
    /// The one whose number is in a file; a path on the host.
    PidFile(String),
    /// Nobody says which: no signal can be sent to it.
    Unnamed,
}

impl fmt::Display for HostProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unit(unit) => write!(f, "host:{unit}"),
            Self::PidFile(path) => write!(f, "host:{path}"),
            Self::Unnamed => f.write_str("host"),
        }
    }
}
