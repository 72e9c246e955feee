//! What must hold, checked at every commit and every message.
//!
//! A mirror of the coordinator's disk is kept from the commits alone; what a
//! service served comes from the hosts. The first violation is kept and ends
//! the seed. What each rule stands for is said where it is checked; the letters
//! are those of the project's list of invariants.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prost::Message;
use reseal::store::kv::Write;
use reseal::store::record::{self, Authority, Batch, Inventory, Issued, Rotation};
use reseal::store::simulated::Disk;
use reseal_proto::v1::coordinator_message::Body;
use reseal_proto::v1::{CertificateFacts, Chains, Order, RotationAction};
use tokio::time::Instant;

use super::history::History;
use super::host::{FOUND, Host};
use super::network::described;
use super::records;

/// Seconds within which a banned host is cut off.
const BAN_BOUND: u64 = 5;

/// The rules, and what they are checked against. Clones share it.
#[derive(Clone)]
pub struct Checker {
    pub(super) history: History,
    hosts: Arc<Vec<Host>>,
    mirror: Arc<Mutex<Mirror>>,
}

/// The coordinator's disk, decoded, and what cannot be read from it.
#[derive(Default)]
pub(super) struct Mirror {
    pub(super) hosts: BTreeMap<String, record::Host>,
    pub(super) authorities: BTreeMap<String, Authority>,
    pub(super) rotations: BTreeMap<String, Rotation>,
    /// By host and name.
    pub(super) batches: BTreeMap<(String, String), Batch>,
    /// Names that were used, also by batches that are gone.
    pub(super) batch_names: BTreeSet<(String, String)>,
    /// By host, batch and message.
    pub(super) issued: BTreeMap<(String, String, String), Issued>,
    /// Head chunks; a simulated host has one.
    pub(super) inventories: BTreeMap<String, (Inventory, Option<Instant>)>,
    pub(super) policies: BTreeMap<String, (record::Policy, Instant)>,
    pub(super) epoch: u64,
    pub(super) chain: Option<reseal::store::audit::Chain>,
    /// Fingerprint of the certificate that each serial was signed into.
    pub(super) serials: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Target of each serial that was set aside.
    pub(super) intents: BTreeMap<Vec<u8>, String>,
    /// Fingerprints of everything on record as issued: host, batch, installation.
    pub(super) certificates: BTreeMap<Vec<u8>, (String, String, String)>,
    /// Steps that operators were told are done: what the audit must say.
    pub(super) steps: Vec<(String, String)>,
    pub(super) audited: Vec<(String, String)>,
    started: BTreeMap<Vec<u8>, String>,
    pub(super) banned: BTreeMap<String, Instant>,
    /// Hosts that were removed: until they report again nothing is known of them.
    pub(super) removed: BTreeSet<String>,
    results: BTreeSet<(String, String)>,
    violation: Option<String>,
    /// Counts of what happened, to show that something did.
    pub(super) seen: BTreeMap<&'static str, u64>,
}

impl Checker {
    /// Begins with what is on the disk.
    pub fn new(history: History, hosts: Vec<Host>, disk: &Disk) -> Self {
        let checker = Self { history, hosts: Arc::new(hosts), mirror: Arc::default() };
        for (key, entry) in disk.entries() {
            checker.commit(entry.revision, &[Write::Put(key, entry.value)]);
        }
        checker
    }

    /// The first rule that was broken.
    pub fn violation(&self) -> Option<String> {
        self.mirror().violation.clone()
    }

    /// Breaks a rule.
    pub fn fail(&self, rule: impl Display) {
        let rule = rule.to_string();
        self.history.note("VIOLATION", &rule);
        self.mirror().violation.get_or_insert(rule);
    }

    /// Counts of what happened.
    pub fn seen(&self) -> BTreeMap<&'static str, u64> {
        self.mirror().seen.clone()
    }

    /// Names of the authorities.
    pub fn authorities(&self) -> Vec<String> {
        self.mirror().authorities.keys().cloned().collect()
    }

    /// Number of the newest rotation.
    pub fn rotations(&self) -> u64 {
        let mirror = self.mirror();
        mirror.rotations.keys().filter_map(|id| id.strip_prefix('r')?.parse().ok()).max().unwrap_or(0)
    }

    pub(super) fn mirror(&self) -> MutexGuard<'_, Mirror> {
        self.mirror.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn host(&self, name: &str) -> Option<&Host> {
        self.hosts.iter().find(|host| &*host.name == name)
    }

    /// A commit is on disk.
    pub fn commit(&self, revision: u64, writes: &[Write]) {
        let mut noted = Vec::new();
        let mut broken = Vec::new();
        {
            let mut mirror = self.mirror();
            for write in writes {
                let (key, value) = match write {
                    Write::Put(key, value) => (key, Some(value.as_slice())),
                    Write::Delete(key) => (key, None),
                };
                let mut change = records::Change { mirror: &mut mirror, checker: self, broken: &mut broken };
                noted.push(change.take(key, value));
            }
            let mut change = records::Change { mirror: &mut mirror, checker: self, broken: &mut broken };
            change.whole();
        }
        self.history.note("store", format!("{:x} {}", revision & 0xff_ffff_ffff, noted.join(" | ")));
        for rule in broken {
            self.fail(rule);
        }
    }

    /// The coordinator says something to a host.
    pub fn said(&self, host: &str, body: &Body) {
        self.history.note(host, format!("<- {}", described(body)));
        let banned = self.mirror().banned.get(host).copied();
        if banned.is_some_and(|at| at.elapsed().as_secs() >= BAN_BOUND) {
            self.fail(format!("(g) {host} is banned and still told {}", described(body)));
        }
        if let Body::Chains(chains) = body {
            let mirror = self.mirror();
            let unknown = chains.issued.iter().find(|issued| {
                issued.refusal.is_none()
                    && !mirror.certificates.contains_key(&fingerprint(&issued.certificate))
            });
            let unknown = unknown.map(|issued| issued.installation.clone());
            drop(mirror);
            if let Some(installation) = unknown {
                self.fail(format!("{host} is given a certificate for {installation} that is not on record"));
            }
        }
    }

    /// A host was welcomed.
    pub fn welcomed(&self, host: &Host, epoch: u64) {
        let known = host.disk().epoch;
        if epoch < known {
            self.fail(format!("(e) {} saw epoch {known} and then {epoch}", host.name));
        }
    }

    /// An order arrived.
    pub fn ordered(&self, host: &Host, order: &Order) {
        let known = self.mirror().batch_names.contains(&(host.name.to_string(), order.batch.clone()));
        if !known {
            self.fail(format!("{} is ordered {}, which was never on record", host.name, order.batch));
        }
        if !host.lies && order.installations.iter().any(|id| id == FOUND) {
            self.fail(format!("{} is ordered to renew {FOUND}, which nobody declares", host.name));
        }
        self.count("orders");
    }

    /// Certificates arrived.
    pub fn delivered(&self, host: &Host, chains: &Chains) {
        self.count("answers");
        for issued in chains.issued.iter().filter(|issued| issued.refusal.is_none()) {
            let place = self.mirror().certificates.get(&fingerprint(&issued.certificate)).cloned();
            let right = place.as_ref().is_some_and(|(h, b, i)| {
                **h == *host.name && *b == chains.batch && *i == issued.installation
            });
            if !right {
                self.fail(format!(
                    "{} got for {} what was issued for {place:?}",
                    host.name, issued.installation
                ));
            }
        }
    }

    /// A certificate is put beside its key.
    pub fn staged(&self, host: &Host, id: &str, fits: bool, names: &[String], facts: &CertificateFacts) {
        if !fits {
            self.fail(format!("(h) {} has a certificate for {id} that does not match its key", host.name));
        }
        if facts.names != names && !host.lies {
            self.fail(format!("{} asked {names:?} for {id} and got {:?}", host.name, facts.names));
        }
        self.count("installed");
    }

    /// A result was acknowledged: it must be on record.
    pub fn acknowledged(&self, host: &Host, batch: &str) {
        self.count("acknowledged results");
        let key = (host.name.to_string(), batch.to_owned());
        let open = self.mirror().batches.get(&key).is_some_and(|batch| batch.finished_at == 0);
        if open {
            self.fail(format!("(b) {} was acknowledged {batch}, which has no result on record", host.name));
        }
        self.mirror().results.insert(key);
    }

    /// The operator was told that a rotation has begun.
    pub fn rotate_acknowledged(&self, key: &[u8], id: &str) {
        self.count("rotations");
        let before = self.mirror().started.insert(key.to_vec(), id.to_owned());
        if before.as_ref().is_some_and(|before| before != id) {
            self.fail(format!("one order began {before:?} and {id}"));
        }
        if !self.mirror().rotations.contains_key(id) {
            self.fail(format!("(b) {id} was acknowledged and is not on record"));
        }
        self.mirror().steps.push(("rotation.start".into(), format!("rotation/{id}")));
    }

    /// The operator was told that a step was taken.
    pub fn control_acknowledged(&self, id: &str, action: RotationAction) {
        self.count("steered");
        let word = match action {
            RotationAction::Pause => "rotation.pause",
            RotationAction::Resume => "rotation.resume",
            RotationAction::Abort => "rotation.abort",
            RotationAction::Retry | RotationAction::Unspecified => "rotation.retry",
        };
        self.mirror().steps.push((word.into(), format!("rotation/{id}")));
    }

    /// The operator was told that a host is banned.
    pub fn ban_acknowledged(&self, host: &str) {
        let mut mirror = self.mirror();
        mirror.banned.entry(host.to_owned()).or_insert_with(Instant::now);
        mirror.steps.push(("host.ban".into(), format!("host/{host}")));
    }

    pub(super) fn count(&self, what: &'static str) {
        *self.mirror().seen.entry(what).or_insert(0) += 1;
    }

    /// At the end: what was acknowledged is on record still.
    pub fn nothing_acknowledged_is_lost(&self) {
        let mut lost = Vec::new();
        {
            let mirror = self.mirror();
            for id in mirror.started.values().filter(|id| !mirror.rotations.contains_key(*id)) {
                lost.push(format!("(b) {id} was acknowledged and is gone"));
            }
            let mut audited = mirror.audited.clone();
            for step in &mirror.steps {
                match audited.iter().position(|entry| entry == step) {
                    Some(at) => drop(audited.remove(at)),
                    // Asked twice, begun once.
                    None if step.0 == "rotation.start" => {}
                    None => lost.push(format!("(b) {step:?} was acknowledged and is not in the audit")),
                }
            }
            for (host, batch) in &mirror.results {
                let key = (host.clone(), batch.clone());
                if mirror.batches.get(&key).is_some_and(|batch| batch.finished_at == 0) {
                    lost.push(format!("(b) the result of {batch} on {host} was acknowledged and is gone"));
                }
            }
        }
        for rule in lost {
            self.fail(rule);
        }
    }
}

/// SHA-256 of a certificate.
pub(super) fn fingerprint(der: &[u8]) -> Vec<u8> {
    reseal_proto::facts::sha256(der).to_vec()
}

/// Decodes a record.
pub(super) fn decode<M: Message + Default>(key: &str, value: &[u8]) -> M {
    record::decode(key, value).expect("the coordinator writes records")
}
