//! The rules about single records, checked when they change.

use std::collections::BTreeSet;

use prost::Message as _;
use reseal::domain::target::{self, Event};
use reseal::domain::{authority, rotation};
use reseal::store::audit::Chain;
use reseal::store::keys;
use reseal::store::record::{
    AuditEntry, Authority, AuthorityState, Batch, Counter, Host, HostState, Inventory, Issued, Policy,
    Rotation,
};
use reseal_proto::facts;
use reseal_proto::v1::{EvidencePayload, RotationState, TargetState};
use tokio::time::Instant;

use super::check::{Checker, Mirror, decode, fingerprint};
use super::host::FOUND;

/// One commit on its way into the mirror.
pub(super) struct Change<'a> {
    pub(super) mirror: &'a mut Mirror,
    pub(super) checker: &'a Checker,
    pub(super) broken: &'a mut Vec<String>,
}

/// Seconds after which a policy counts for what is signed.
const POLICY_BOUND: u64 = 10;

/// Every event a rotation knows.
const ROTATION_EVENTS: [rotation::Event; 9] = [
    rotation::Event::Start,
    rotation::Event::Pause,
    rotation::Event::Resume,
    rotation::Event::Halt,
    rotation::Event::Retry,
    rotation::Event::Trail,
    rotation::Event::Complete,
    rotation::Event::Expire,
    rotation::Event::Abort,
];

/// Every event an authority knows.
const AUTHORITY_EVENTS: [authority::Event; 5] = [
    authority::Event::Sign,
    authority::Event::Activate,
    authority::Event::Retire,
    authority::Event::Taint,
    authority::Event::Revoke,
];

impl Change<'_> {
    /// Takes one write; gives a line for the history.
    pub(super) fn take(&mut self, key: &str, value: Option<&[u8]>) -> String {
        let what = match key.split_once('/').unwrap_or_default() {
            ("meta", "epoch") => self.epoch(key, value),
            ("host", name) => self.host(name, key, value),
            ("authority", name) => self.authority(name, key, value),
            ("policy", name) => self.policy(name, key, value),
            ("rotation", id) => self.rotation(id, key, value),
            ("batch" | "renewal", _) => self.batch(key, value),
            ("outcome", _) => String::new(),
            ("issued", rest) => self.issued(rest, key, value),
            ("inventory", rest) => self.inventory(rest, key, value),
            ("audit", _) => self.audit(key, value),
            _ => String::new(),
        };
        let verb = if value.is_some() { "" } else { " deleted" };
        // A token's name is random.
        let shown = if key.starts_with("token/") { "token" } else { key };
        format!("{shown}{verb} {what}").trim_end().to_owned()
    }

    fn broken(&mut self, rule: String) {
        self.broken.push(rule);
    }

    fn epoch(&mut self, key: &str, value: Option<&[u8]>) -> String {
        let epoch = value.map_or(0, |value| decode::<Counter>(key, value).value);
        if epoch <= self.mirror.epoch {
            self.broken(format!("(e) the epoch goes from {} to {epoch}", self.mirror.epoch));
        }
        self.mirror.epoch = epoch;
        epoch.to_string()
    }

    fn host(&mut self, name: &str, key: &str, value: Option<&[u8]>) -> String {
        let Some(record) = value.map(|value| decode::<Host>(key, value)) else {
            self.mirror.hosts.remove(name);
            self.mirror.banned.remove(name);
            self.mirror.removed.insert(name.to_owned());
            return String::new();
        };
        let shown = format!("{:?}", record.state());
        let before = self.mirror.hosts.insert(name.to_owned(), record.clone());
        if before.is_some_and(|before| before.state() == HostState::Banned)
            && record.state() != HostState::Banned
        {
            self.broken(format!("(g) {name} was banned and is {shown}"));
        }
        shown
    }

    fn authority(&mut self, name: &str, key: &str, value: Option<&[u8]>) -> String {
        let Some(record) = value.map(|value| decode::<Authority>(key, value)) else {
            self.broken(format!("authority {name} is gone"));
            return String::new();
        };
        let (state, shown) = (record.state(), format!("{:?}", record.state()));
        if let Some(before) = self.mirror.authorities.insert(name.to_owned(), record) {
            let steps =
                AUTHORITY_EVENTS.iter().filter_map(|event| authority::apply(before.state(), *event).ok());
            if before.state() != state && !steps.into_iter().any(|next| next == state) {
                self.broken(format!("authority {name} goes from {:?} to {shown}", before.state()));
            }
        }
        shown
    }

    fn policy(&mut self, name: &str, key: &str, value: Option<&[u8]>) -> String {
        match value.map(|value| decode::<Policy>(key, value)) {
            Some(record) => drop(self.mirror.policies.insert(name.to_owned(), (record, Instant::now()))),
            None => drop(self.mirror.policies.remove(name)),
        }
        String::new()
    }

    fn rotation(&mut self, id: &str, key: &str, value: Option<&[u8]>) -> String {
        let Some(record) = value.map(|value| decode::<Rotation>(key, value)) else {
            self.broken(format!("(b) rotation {id} is gone"));
            return String::new();
        };
        let shown = format!("{} wave {}/{}", rotation::word(record.state()), record.wave, record.waves.len());
        let before = self.mirror.rotations.insert(id.to_owned(), record.clone());
        let Some(before) = before else {
            return shown;
        };
        let steps = ROTATION_EVENTS.iter().filter_map(|event| rotation::apply(before.state(), *event).ok());
        if before.state() != record.state() && !steps.into_iter().any(|next| next == record.state()) {
            self.broken(format!("rotation {id} goes from {:?} to {shown}", before.state()));
        }
        if record.wave < before.wave || record.batches < before.batches {
            self.broken(format!("rotation {id} goes back: wave {} to {shown}", before.wave));
        }
        if record.state() == RotationState::Completed {
            self.completed(id, &record);
        }
        shown
    }

    /// (d): every target is proved, and nothing that was meant is left out.
    fn completed(&mut self, id: &str, record: &Rotation) {
        let mut covered = BTreeSet::new();
        let mut open = Vec::new();
        for ((host, name), batch) in self.mirror.batches.iter().filter(|(_, batch)| batch.rotation == id) {
            for target in batch.targets.iter().filter(|target| !target.superseded) {
                covered.insert((host.clone(), target.installation.clone()));
                if target.state() != TargetState::Verified {
                    open.push(format!("{} of {name} on {host} is {:?}", target.installation, target.state()));
                }
            }
        }
        for left in open {
            self.broken(format!("(d) {id} is complete, but {left}"));
        }
        let means_all =
            record.selection.as_ref().is_some_and(reseal::domain::selection::means_every_certificate);
        let compromised = self.mirror.authorities.get(&record.compromised).filter(|_| means_all);
        let Some(issuer) = compromised.map(|authority| facts::of_chain(&authority.certificate, [])) else {
            return;
        };
        let issuer = issuer.expect("an authority has a certificate").spki_sha256;
        let mut missed = Vec::new();
        for (host, (inventory, at)) in &self.mirror.inventories {
            // What came in this very moment could not be seen yet.
            let seen = at.is_none_or(|at| at.elapsed().as_secs() >= 5);
            let enrolled =
                self.mirror.hosts.get(host).is_some_and(|host| host.state() == HostState::Enrolled);
            let managed = inventory.installations.iter().filter(|one| one.is_managed());
            for installation in managed.filter(|_| seen && enrolled) {
                let old =
                    installation.certificate.as_ref().is_some_and(|facts| facts.issuer_spki_sha256 == issuer);
                if old && !covered.contains(&(host.clone(), installation.id.clone())) {
                    missed.push(format!("{} on {host}", installation.id));
                }
            }
        }
        for installation in missed {
            self.broken(format!("(d) {id} is complete, but {installation} still has the old issuer"));
        }
    }

    fn batch(&mut self, key: &str, value: Option<&[u8]>) -> String {
        let (host, name) = keys::host_and_batch(key).expect("a batch's key");
        let place = (host.to_owned(), name.to_owned());
        let Some(record) = value.map(|value| decode::<Batch>(key, value)) else {
            self.mirror.batches.remove(&place);
            return String::new();
        };
        let states: Vec<String> =
            record.targets.iter().map(|target| format!("{:?}", target.state())).collect();
        let shown = format!("place {} {}", record.place, states.join(","));
        let before = self.mirror.batches.insert(place.clone(), record.clone());
        match before {
            None => {
                if !self.mirror.batch_names.insert(place) {
                    self.broken(format!("batch {name} of {host} comes a second time"));
                }
                let honest = self.checker.host(host).is_some_and(|host| !host.lies);
                if honest && record.targets.iter().any(|target| target.installation == FOUND) {
                    self.broken(format!("batch {name} of {host} means {FOUND}, which nobody declares"));
                }
                for target in &record.targets {
                    self.intend(&target.serial, &format!("{host}/{name}/{}", target.installation));
                }
            }
            Some(before) => self.batch_changed(host, name, &before, &record),
        }
        self.proved(host, name, &record);
        shown
    }

    fn batch_changed(&mut self, host: &str, name: &str, before: &Batch, after: &Batch) {
        let at = format!("batch {name} of {host}");
        if before.finished_at != 0 && after.finished_at == 0 {
            self.broken(format!("(b) {at} has lost its result"));
        }
        if before.targets.len() != after.targets.len() || before.rotation != after.rotation {
            self.broken(format!("{at} has become another"));
        }
        for (old, new) in before.targets.iter().zip(&after.targets) {
            let events = [Event::Order, Event::Lose, Event::Exclude, Event::Report(new.state())];
            let mut steps = events.iter().filter_map(|event| target::apply(old.state(), *event).ok());
            if old.state() != new.state() && !steps.any(|next| next == new.state()) {
                self.broken(format!(
                    "{at}: {} goes from {:?} to {:?}",
                    old.installation,
                    old.state(),
                    new.state()
                ));
            }
            if old.superseded && (!new.superseded || old.state() != new.state()) {
                self.broken(format!("{at}: {} was superseded and counts again", old.installation));
            }
            if old.serial != new.serial || old.installation != new.installation {
                self.broken(format!("{at}: {} has become another", old.installation));
            }
        }
    }

    /// Nothing is *verified* that was not issued for that very target, and, where
    /// the agent is honest, served there.
    fn proved(&mut self, host: &str, name: &str, record: &Batch) {
        let payload = EvidencePayload::decode(&record.payload[..]).unwrap_or_default();
        for target in record.targets.iter().filter(|target| target.state() == TargetState::Verified) {
            let proof = payload.targets.iter().find(|proof| proof.installation == target.installation);
            let after = proof.map(|proof| proof.after.clone()).unwrap_or_default();
            let place = (host.to_owned(), name.to_owned(), target.installation.clone());
            if self.mirror.certificates.get(&after) != Some(&place) {
                self.broken(format!("{place:?} is verified with a certificate not issued for it"));
            }
            let honest = self.checker.host(host).filter(|host| !host.lies);
            if honest.is_some_and(|host| !host.ever_served(&target.installation, &after)) {
                self.broken(format!("{place:?} is verified and was never served"));
            }
            *self.mirror.seen.entry("verified").or_insert(0) += 1;
        }
    }

    /// A serial is set aside for one target only.
    fn intend(&mut self, serial: &[u8], place: &str) {
        let before = self.mirror.intents.insert(serial.to_vec(), place.to_owned());
        if let Some(before) = before.filter(|before| before != place) {
            self.broken(format!("one serial is meant for {before} and for {place}"));
        }
    }

    /// An issued serial is never used twice; every one was on record before; fenced by
    /// host, batch, rotation and authority.
    fn issued(&mut self, rest: &str, key: &str, value: Option<&[u8]>) -> String {
        let mut parts = rest.splitn(3, '/').map(str::to_owned);
        let mut part = || parts.next().unwrap_or_default();
        let (batch, host) = (part(), part());
        let place = (host, batch, part());
        let Some(record) = value.map(|value| decode::<Issued>(key, value)) else {
            self.mirror.issued.remove(&place);
            return String::new();
        };
        let before = self.mirror.issued.insert(place.clone(), record.clone()).unwrap_or_default();
        let (host, batch, _) = place;
        let mut names = Vec::new();
        for leaf in &record.leaves {
            let target = format!("{host}/{batch}/{}", leaf.installation);
            names.push(self.checker.history.name(&leaf.serial));
            if leaf.certificate.is_empty() {
                self.intend(&leaf.serial, &target);
                continue;
            }
            if before.leaves.iter().any(|old| old.certificate == leaf.certificate) {
                continue;
            }
            if self.mirror.intents.get(&leaf.serial) != Some(&target) {
                self.broken(format!("a serial for {target} was signed before it was on record"));
            }
            let print = fingerprint(&leaf.certificate);
            let parsed = facts::parse(&leaf.certificate).expect("a certificate");
            let serial = parsed.raw_serial().to_vec();
            if serial != leaf.serial {
                self.broken(format!("the certificate for {target} has another serial than its record"));
            }
            if let Some(other) = self.mirror.serials.insert(serial, print.clone())
                && other != print
            {
                self.broken(format!("a serial was used twice, now for {target}"));
            }
            let installed = (host.clone(), batch.clone(), leaf.installation.clone());
            self.mirror.certificates.insert(print, installed);
            *self.mirror.seen.entry("certificates").or_insert(0) += 1;
            self.fenced(&host, &batch, &record.authority, &facts::names(&parsed));
        }
        format!("{} from {}", names.join(","), record.authority)
    }

    fn fenced(&mut self, host: &str, batch: &str, authority: &str, names: &[String]) {
        let at = format!("batch {batch} of {host}");
        let active = self
            .mirror
            .authorities
            .get(authority)
            .is_some_and(|known| known.state() == AuthorityState::Active);
        if !active {
            self.broken(format!("(a) {at} is issued by {authority}, which is not active"));
        }
        let enrolled = self.mirror.hosts.get(host).is_some_and(|known| known.state() == HostState::Enrolled);
        if !enrolled {
            self.broken(format!("(g) {at} is issued to a host that is not enrolled"));
        }
        match self.mirror.batches.get(&(host.to_owned(), batch.to_owned())) {
            None => self.broken(format!("{at} is issued and not on record")),
            Some(record) if record.finished_at != 0 => self.broken(format!("{at} is issued and finished")),
            Some(_) => {}
        }
        let (policy, since) = &self.mirror.policies["default"];
        if !policy.hosts.iter().any(|admitted| admitted == host) && since.elapsed().as_secs() >= POLICY_BOUND
        {
            self.broken(format!("{at} is issued, and no policy admits {host}"));
        }
        if names.iter().any(|name| !name.ends_with(&format!(".{host}.sim.test"))) {
            self.broken(format!("{at} is issued for {names:?}, which no policy ever gave that host"));
        }
    }

    fn inventory(&mut self, rest: &str, key: &str, value: Option<&[u8]>) -> String {
        let (host, _) = rest.split_once('/').unwrap_or_default();
        match value.map(|value| decode::<Inventory>(key, value)) {
            Some(record) => {
                let shown = format!("{} installations", record.installations.len());
                if record.installations.iter().any(|one| !one.is_managed()) {
                    *self.mirror.seen.entry("discovered").or_insert(0) += 1;
                }
                self.mirror.inventories.insert(host.to_owned(), (record, Some(Instant::now())));
                shown
            }
            None => {
                self.mirror.inventories.remove(host);
                String::new()
            }
        }
    }

    fn audit(&mut self, key: &str, value: Option<&[u8]>) -> String {
        let Some(entry) = value.map(|value| decode::<AuditEntry>(key, value)) else {
            self.broken(format!("{key} is gone"));
            return String::new();
        };
        let chain = self.mirror.chain.get_or_insert_with(|| Chain::empty(&entry.chain));
        if let Err(error) = chain.follow(&entry) {
            self.broken(error.to_string());
        }
        if entry.outcome == "done" {
            self.mirror.audited.push((entry.action.clone(), entry.object.clone()));
        }
        format!("{} {}", entry.action, entry.outcome)
    }

    /// What must hold between records, once a commit is whole.
    pub(super) fn whole(&mut self) {
        let active = self.mirror.authorities.values();
        let active = active.filter(|authority| authority.state() == AuthorityState::Active).count();
        if active > 1 {
            self.broken("two authorities are active".into());
        }
    }
}
