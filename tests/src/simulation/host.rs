//! A simulated host: what is on its disk, and what its services serve.
//!
//! The disk outlives the agent. What a service serves is the truth that a proof
//! is compared with: the coordinator never sees it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prost::Message as _;
use reseal_agent::inventory::Report;
use reseal_agent::journal::Batch;
use reseal_proto::facts::sha256;
use reseal_proto::v1::{self, BatchResult, CertificateFacts};

use super::bell::{Bell, Listener};
use crate::wire::installation;

/// Where a certificate lies that nobody declares.
pub const FOUND: &str = "/found/copy.crt";

/// Who this host is, as enrolment said.
#[derive(Clone)]
pub struct Identity {
    /// The fleet.
    pub fleet: String,
    /// Its certificate, DER.
    pub certificate: Vec<u8>,
    /// Its key, PKCS#8 DER.
    pub pkcs8: Vec<u8>,
}

/// A pair, or a key that waits for its certificate.
#[derive(Clone, Default)]
pub struct Generation {
    /// The key, PKCS#8 DER.
    pub pkcs8: Vec<u8>,
    /// SHA-256 over its public key.
    pub spki_sha256: Vec<u8>,
    /// What the inventory says of its certificate.
    pub facts: Option<CertificateFacts>,
}

/// An installation and its one consumer.
#[derive(Clone, Default)]
pub struct Installation {
    /// Names its certificate is for.
    pub names: Vec<String>,
    /// On disk.
    pub generations: BTreeMap<String, Generation>,
    /// The one in use.
    pub current: Option<String>,
    /// Its consumer runs.
    pub running: bool,
    /// It does not survive a reload with a new certificate.
    pub broken: bool,
    /// Fingerprint of what it serves; empty: nothing.
    pub served: Vec<u8>,
    /// Everything it ever served.
    pub ever_served: BTreeSet<Vec<u8>>,
}

impl Installation {
    /// What the inventory says of the certificate in use.
    pub fn facts(&self) -> Option<CertificateFacts> {
        self.generations.get(self.current.as_ref()?)?.facts.clone()
    }

    /// The consumer takes what is in use, if it runs.
    pub fn reload(&mut self) {
        if self.running {
            self.served = self.facts().map(|facts| facts.fingerprint).unwrap_or_default();
            self.ever_served.insert(self.served.clone());
        }
    }
}

/// The disk.
#[derive(Default)]
pub struct Contents {
    /// Absent before enrolment.
    pub identity: Option<Identity>,
    /// By id.
    pub installations: BTreeMap<String, Installation>,
    /// A copy of its first certificate that somebody left at [`FOUND`]: it is seen, and nobody's.
    pub found: Option<CertificateFacts>,
    /// Highest epoch seen.
    pub epoch: u64,
    /// Digest of the inventory last sent.
    pub digest: Vec<u8>,
    /// Batches under way.
    pub journal: BTreeMap<String, Batch>,
    /// Results that were not acknowledged.
    pub results: BTreeMap<String, BatchResult>,
    /// Batches that were.
    pub acknowledged: BTreeSet<String>,
    /// Batches with a target that waits for its consumer.
    pub unserved: BTreeMap<String, Batch>,
    /// The agent's state was lost: what waited for a proof waits for ever.
    pub forgot: bool,
}

/// A host. Clones share it.
#[derive(Clone)]
pub struct Host {
    /// Its name.
    pub name: Arc<str>,
    /// Its agent says what is not true.
    pub lies: bool,
    contents: Arc<Mutex<Contents>>,
    picture: Bell,
    results: Bell,
}

impl Host {
    /// With this many installations and nothing on its disk.
    pub fn new(name: &str, installations: usize, lies: bool) -> Self {
        let one = |at| {
            let names = vec![format!("s{at}.{name}.sim.test")];
            (format!("/srv/{at}/site.crt"), Installation { names, running: true, ..Installation::default() })
        };
        let contents =
            Contents { installations: (0..installations).map(one).collect(), ..Contents::default() };
        Self {
            name: name.into(),
            lies,
            contents: Arc::new(Mutex::new(contents)),
            picture: Bell::default(),
            results: Bell::default(),
        }
    }

    /// The disk; not over an await.
    pub fn disk(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Rings when containers or certificates changed.
    pub fn picture(&self) -> Listener {
        self.picture.listen()
    }

    /// Containers or certificates changed.
    pub fn changed(&self) {
        self.picture.ring();
    }

    /// Rings when there is a result to send.
    pub fn results(&self) -> Listener {
        self.results.listen()
    }

    /// Keeps a result until it is acknowledged.
    pub fn keep(&self, result: BatchResult) {
        self.disk().results.insert(result.batch.clone(), result);
        self.results.ring();
    }

    /// Was this certificate ever served for this installation?
    pub fn ever_served(&self, installation: &str, fingerprint: &[u8]) -> bool {
        let disk = self.disk();
        disk.installations.get(installation).is_some_and(|known| known.ever_served.contains(fingerprint))
    }

    /// The agent's state is lost, save who it is; what is in use stays.
    pub fn forget(&self) {
        let mut disk = self.disk();
        let Contents { identity, mut installations, found, .. } = std::mem::take(&mut *disk);
        for one in installations.values_mut() {
            let current = one.current.clone();
            one.generations.retain(|name, _| Some(name) == current.as_ref());
        }
        *disk = Contents { identity, installations, found, forgot: true, ..Contents::default() };
    }

    /// The inventory, as the agent sees it.
    pub fn report(&self) -> Report {
        let mut disk = self.disk();
        let mut installations: BTreeMap<String, v1::Installation> =
            disk.installations.iter().map(|(id, one)| (id.clone(), message(id, one))).collect();
        if disk.found.is_none() {
            disk.found = disk.installations.values().find_map(Installation::facts);
        }
        if let Some(facts) = disk.found.clone() {
            let mut copy = installation(FOUND, &facts.names[0], Some(facts.clone()));
            copy.set_management(v1::Management::Discovered);
            installations.insert(FOUND.into(), copy);
        }
        let bytes: Vec<u8> =
            installations.values().flat_map(|one| one.encode_length_delimited_to_vec()).collect();
        Report { digest: sha256(&bytes).to_vec(), installations, ..Report::default() }
    }
}

fn message(id: &str, one: &Installation) -> v1::Installation {
    let mut message = installation(id, &one.names[0], one.facts());
    message.names.clone_from(&one.names);
    message.consumers[0].running = one.running;
    message
}
