//! The batches of a model agent, one after the other: journal before effect.
//!
//! What is next for a target is decided by `reseal-agent`'s own
//! [`reseal_agent::plan`], its journal entries are the real ones, its CSRs and
//! its signed evidence too; files, reload and handshakes are a [`Host`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use reseal_agent::install::Progress;
use reseal_agent::journal::{Batch, Entry, Phase};
use reseal_agent::key::{KeyType, PrivateKey};
use reseal_agent::plan::{self, Next};
use reseal_agent::{evidence, identity};
use reseal_proto::facts::{self, sha256};
use reseal_proto::v1::agent_message::Body;
use reseal_proto::v1::{
    Chains, Csr, CsrBatch, EndpointProof, Failure, Grade, Issued, OnFailure, Order, ReloadProof, Stage,
    TargetProgress, TargetProof, TargetState, Usage,
};
use rustls_pki_types::CertificateDer;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::agent::Live;
use super::host::{Generation, Host};
use super::liar;
use super::world::{World, now};

/// An answer is waited for so long on a live session, then asked for again.
const ASK_AGAIN: Duration = Duration::from_secs(60);
/// How long all answers may take on live sessions.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(600);

pub(super) struct Runner {
    world: Arc<World>,
    host: Host,
    session: watch::Receiver<Option<Live>>,
    orders: mpsc::Receiver<Order>,
    chains: mpsc::Receiver<Chains>,
}

/// A certificate with its intermediates, or a refusal.
type Answer = (Issued, Vec<Vec<u8>>);

impl Runner {
    pub(super) fn new(
        world: Arc<World>,
        host: Host,
        session: watch::Receiver<Option<Live>>,
        orders: mpsc::Receiver<Order>,
        chains: mpsc::Receiver<Chains>,
    ) -> Self {
        Self { world, host, session, orders, chains }
    }

    pub(super) async fn run(mut self) {
        let unfinished: Vec<String> = self.host.disk().journal.keys().cloned().collect();
        for batch in unfinished {
            self.batch(&batch).await;
        }
        let mut picture = self.host.picture();
        self.look().await;
        loop {
            tokio::select! {
                           biased;
                           order = self.orders.recv() => {
                               let Some(order) = order else { return };
                               if self.known(&order.batch) {
                                   continue;
                               }
                               let batch = order.batch.clone();
                               let entries = order.installations.iter();
                               let entries = entries.map(|id| Entry { installation: id.clone(), ..Entry::default() });
                               let begun = Batch {
            entries: entries.collect(),
            order: Some(order),
            started_at: now(),
            ..Batch::default()
            };
                               self.host.disk().journal.insert(batch.clone(), begun);
                               self.batch(&batch).await;
                           }
                           () = picture.next() => self.look().await,
                       }
        }
    }

    fn known(&self, batch: &str) -> bool {
        let disk = self.host.disk();
        disk.results.contains_key(batch) || disk.acknowledged.contains(batch)
    }

    /// A moment in which the agent may be killed.
    async fn step(&self) {
        self.world.pause(0, 400).await;
    }

    async fn batch(&mut self, batch: &str) {
        if self.known(batch) {
            self.host.disk().journal.remove(batch);
            return;
        }
        let order = self.journal(batch).order.unwrap_or_default();
        self.world.history.note(&self.host.name, format!("works on {batch}"));
        loop {
            let entries = self.journal(batch).entries;
            let open: Vec<usize> =
                (0..entries.len()).filter(|at| entries[*at].phase() != Phase::Done).collect();
            let state = |entry: &Entry| entry.proof.as_ref().map(TargetProof::state);
            let passed = entries
                .iter()
                .any(|entry| matches!(state(entry), Some(TargetState::Verified | TargetState::Unserved)));
            let broken = entries
                .iter()
                .any(|entry| matches!(state(entry), Some(TargetState::RolledBack | TargetState::Held)));
            let Some(first) = open.first() else { break };
            if broken && !passed && !order.rotation.is_empty() {
                for at in open {
                    self.failed(batch, at, failure(Stage::Request, "canary-failed"), TargetState::Failed)
                        .await;
                }
                continue;
            }
            let group = if passed { open } else { vec![*first] };
            self.group(batch, &order, group).await;
        }
        self.report(batch).await;
    }

    /// Brings some targets to their end.
    async fn group(&mut self, batch: &str, order: &Order, group: Vec<usize>) {
        let mut requests = Vec::new();
        for at in group {
            let entry = self.journal(batch).entries[at].clone();
            let disk = self.progress(&entry);
            let Some(disk) = disk else {
                self.failed(batch, at, failure(Stage::Request, "unknown-installation"), TargetState::Failed)
                    .await;
                continue;
            };
            match plan::next(entry.phase(), disk) {
                Next::Request { reuse } => requests.push((at, reuse)),
                Next::Switch => {
                    self.switch(batch, at).await;
                    self.prove(batch, at, order).await;
                }
                Next::Prove => self.prove(batch, at, order).await,
                Next::RollBack => self.roll_back(batch, at).await,
                Next::Report => {}
            }
        }
        if requests.is_empty() {
            return;
        }
        let csrs: Vec<Csr> = requests.iter().map(|(at, reuse)| self.request(batch, *at, *reuse)).collect();
        self.step().await;
        let mut answers = self.ask(batch, csrs).await;
        for (at, _) in requests {
            let installation = self.journal(batch).entries[at].installation.clone();
            match answers.remove(&installation) {
                Some((Issued { refusal: Some(refusal), .. }, _)) => {
                    self.failed(batch, at, refusal, TargetState::Failed).await;
                }
                Some((issued, intermediates)) => {
                    self.stage(batch, at, &issued, &intermediates);
                    self.step().await;
                    self.switch(batch, at).await;
                    self.prove(batch, at, order).await;
                }
                None => self.failed(batch, at, failure(Stage::Issue, "no-answer"), TargetState::Failed).await,
            }
        }
    }

    fn journal(&self, batch: &str) -> Batch {
        self.host.disk().journal.get(batch).cloned().unwrap_or_default()
    }

    fn update(&self, batch: &str, at: usize, change: impl FnOnce(&mut Entry)) {
        if let Some(journal) = self.host.disk().journal.get_mut(batch) {
            change(&mut journal.entries[at]);
        }
    }

    fn progress(&self, entry: &Entry) -> Option<Progress> {
        let disk = self.host.disk();
        let installation = disk.installations.get(&entry.installation)?;
        Some(match installation.generations.get(&entry.generation) {
            _ if entry.generation.is_empty() => Progress::Absent,
            None => Progress::Absent,
            Some(_) if installation.current.as_ref() == Some(&entry.generation) => Progress::Live,
            Some(Generation { facts: Some(_), .. }) => Progress::Staged,
            Some(_) => Progress::Keyed,
        })
    }

    /// The key is on disk before anything is asked for.
    fn request(&self, batch: &str, at: usize, reuse: bool) -> Csr {
        let entry = self.journal(batch).entries[at].clone();
        let id = entry.installation.clone();
        let mut disk = self.host.disk();
        let installation = disk.installations.get_mut(&id).expect("looked up before");
        let before = installation.facts().map(|facts| facts.fingerprint).unwrap_or_default();
        let generation = if reuse {
            entry.generation.clone()
        } else {
            let pkcs8 = pkcs8(&self.world.random.bytes());
            let key = PrivateKey::from_pkcs8(KeyType::EcdsaP256, &pkcs8).expect("a P-256 key");
            let name = format!("{}-{:08x}", now(), self.world.random.next() as u32);
            let spki_sha256 = key.spki_sha256().to_vec();
            installation.generations.insert(name.clone(), Generation { pkcs8, spki_sha256, facts: None });
            name
        };
        let key = &installation.generations[&generation].pkcs8;
        let key = PrivateKey::from_pkcs8(KeyType::EcdsaP256, key).expect("a P-256 key");
        let der = key.request(&installation.names, Usage::Server).expect("a request");
        drop(disk);
        self.update(batch, at, |entry| {
            if entry.phase() == Phase::Ordered {
                entry.before = before;
            }
            entry.generation = generation;
            entry.phase = Phase::Requested.into();
        });
        Csr { installation: id, der, usage: Usage::Server.into() }
    }

    /// Sends CSRs and waits for every answer; again after each reconnect and each silence.
    async fn ask(&mut self, batch: &str, csrs: Vec<Csr>) -> BTreeMap<String, Answer> {
        let mut open: BTreeMap<String, Csr> =
            csrs.into_iter().map(|csr| (csr.installation.clone(), csr)).collect();
        let mut answers = BTreeMap::new();
        let mut waited = Duration::ZERO;
        while !open.is_empty() && waited < ANSWER_TIMEOUT {
            let Ok(live) = self.session.wait_for(Option::is_some).await.map(|live| live.clone()) else {
                break;
            };
            let Some(live) = live else { continue };
            let mut message = CsrBatch {
                batch: batch.into(),
                csrs: open.values().cloned().collect(),
                ..CsrBatch::default()
            };
            if self.host.lies {
                liar::about_csrs(&self.world, &self.host, &mut message);
            }
            self.world.history.note(&self.host.name, format!("asks {batch} for {}", message.csrs.len()));
            let began = Instant::now();
            if live.send(Body::Csrs(message)).await.is_ok() {
                self.collect(batch, &mut open, &mut answers, live.number).await;
            }
            waited += began.elapsed().max(Duration::from_millis(1));
            self.step().await;
        }
        answers
    }

    async fn collect(
        &mut self,
        batch: &str,
        open: &mut BTreeMap<String, Csr>,
        answers: &mut BTreeMap<String, Answer>,
        number: u64,
    ) {
        let keys: BTreeMap<String, Vec<u8>> =
            open.keys().map(|id| (id.clone(), self.key_of(batch, id))).collect();
        let silent = tokio::time::sleep(ASK_AGAIN);
        tokio::pin!(silent);
        while !open.is_empty() {
            tokio::select! {
                biased;
                () = &mut silent => return,
                _ = self.session.wait_for(|live| live.as_ref().is_none_or(|live| live.number != number)) => return,
                chains = self.chains.recv() => {
                    let Some(chains) = chains else { return };
                    if chains.batch != batch {
                        continue;
                    }
                    for issued in chains.issued {
                        let key = keys.get(&issued.installation);
                        let ours = open.contains_key(&issued.installation)
                            && (issued.refusal.is_some() || key == Some(&issued.spki_sha256));
                        if ours {
                            open.remove(&issued.installation);
                            answers.insert(issued.installation.clone(), (issued, chains.intermediates.clone()));
                        }
                    }
                }
            }
        }
    }

    /// SHA-256 over the public key that the batch is about to use for an installation.
    fn key_of(&self, batch: &str, installation: &str) -> Vec<u8> {
        let entries = self.journal(batch).entries;
        let entry = entries.iter().find(|entry| entry.installation == installation);
        let disk = self.host.disk();
        let generations = disk.installations.get(installation).map(|known| &known.generations);
        let found = entry.and_then(|entry| generations?.get(&entry.generation));
        found.map(|generation| generation.spki_sha256.clone()).unwrap_or_default()
    }

    fn stage(&self, batch: &str, at: usize, issued: &Issued, intermediates: &[Vec<u8>]) {
        let entry = self.journal(batch).entries[at].clone();
        let found = facts::of_chain(&issued.certificate, intermediates.iter().map(Vec::as_slice));
        let found = found.expect("the coordinator gives certificates");
        let mut disk = self.host.disk();
        let installation = disk.installations.get_mut(&entry.installation).expect("looked up before");
        let previous = installation.current.clone();
        let names = installation.names.clone();
        let generation = installation.generations.get_mut(&entry.generation).expect("made before");
        let spki = {
            let certificate = facts::parse(&issued.certificate).expect("parsed before");
            sha256(certificate.public_key().raw).to_vec()
        };
        self.world.checker.staged(
            &self.host,
            &entry.installation,
            spki == generation.spki_sha256,
            &names,
            &found,
        );
        generation.facts = Some(found.clone());
        drop(disk);
        self.update(batch, at, |entry| {
            entry.phase = Phase::Installing.into();
            entry.previous = previous;
            entry.new = found.fingerprint;
        });
    }

    async fn switch(&self, batch: &str, at: usize) {
        let entry = self.journal(batch).entries[at].clone();
        if let Some(installation) = self.host.disk().installations.get_mut(&entry.installation) {
            installation.current = Some(entry.generation);
        }
        self.host.changed();
        self.step().await;
    }

    /// Reloads, looks, ends the target.
    async fn prove(&self, batch: &str, at: usize, order: &Order) {
        let entry = self.journal(batch).entries[at].clone();
        let (running, broken) = {
            let mut disk = self.host.disk();
            let installation = disk.installations.get_mut(&entry.installation).expect("looked up before");
            let broken = installation.running && installation.broken;
            if !broken {
                installation.reload();
            }
            (installation.running, broken)
        };
        self.step().await;
        if broken && !(order.on_failure() == OnFailure::Hold || entry.previous.is_none()) {
            self.update(batch, at, |entry| {
                entry.phase = Phase::RollingBack.into();
                entry.failure = Some(failure(Stage::Verify, "served-differs"));
            });
            self.step().await;
            return self.roll_back(batch, at).await;
        }
        let new = entry.new.clone();
        let (state, grade, failure) = match (broken, running) {
            (true, _) => (TargetState::Held, Grade::Probe, Some(failure(Stage::Verify, "served-differs"))),
            (false, true) => (TargetState::Verified, Grade::Probe, None),
            (false, false) => (TargetState::Unserved, Grade::FileOnly, None),
        };
        self.done(batch, at, state, grade, failure, new).await;
    }

    async fn roll_back(&self, batch: &str, at: usize) {
        let entry = self.journal(batch).entries[at].clone();
        if let Some(installation) = self.host.disk().installations.get_mut(&entry.installation) {
            installation.current.clone_from(&entry.previous);
            installation.reload();
        }
        self.host.changed();
        self.step().await;
        let failure = entry.failure.clone().unwrap_or_default();
        self.done(batch, at, TargetState::RolledBack, Grade::Probe, Some(failure), entry.before).await;
    }

    async fn failed(&self, batch: &str, at: usize, failure: Failure, state: TargetState) {
        let before = self.journal(batch).entries[at].before.clone();
        self.done(batch, at, state, Grade::Unknown, Some(failure), before).await;
    }

    async fn done(
        &self,
        batch: &str,
        at: usize,
        state: TargetState,
        grade: Grade,
        failure: Option<Failure>,
        after: Vec<u8>,
    ) {
        let what = failure.as_ref().map(|failure| failure.code.clone()).unwrap_or_default();
        let id = self.journal(batch).entries[at].installation.clone();
        self.world.history.note(&self.host.name, format!("{batch} {id} {} {what}", state.as_str_name()));
        let endpoints = if grade == Grade::Probe { vec![seen(&after)] } else { Vec::new() };
        let reloads = if endpoints.is_empty() { Vec::new() } else { vec![ReloadProof::default()] };
        self.update(batch, at, |entry| {
            entry.phase = Phase::Done.into();
            entry.proof = Some(TargetProof {
                installation: entry.installation.clone(),
                before: entry.before.clone(),
                after,
                state: state.into(),
                failure,
                grade: grade.into(),
                endpoints,
                reloads,
                ..TargetProof::default()
            });
        });
        let live = self.session.borrow().clone();
        if let Some(live) = live {
            let targets = vec![TargetProgress { installation: id, state: state.into() }];
            let progress = reseal_proto::v1::Progress { batch: batch.into(), targets };
            let message = reseal_proto::v1::AgentMessage { body: Some(Body::Progress(progress)) };
            let _ = live.sender.try_send(message);
        }
        self.step().await;
    }

    /// Signs the result; outbox first, then the journal is forgotten.
    async fn report(&self, batch: &str) {
        let journal = self.journal(batch);
        self.wait_for_consumers(&journal);
        let signed = evidence::sign(&journal, now(), &self.identity()).expect("it signs");
        self.host.keep(signed);
        self.step().await;
        self.host.disk().journal.remove(batch);
        self.look().await;
    }

    /// Remembers what waits for its consumer; what it replaces waits no more.
    fn wait_for_consumers(&self, journal: &Batch) {
        let mut disk = self.host.disk();
        let replaced = |id: &str| {
            let mut proofs = journal.entries.iter().filter_map(|entry| entry.proof.as_ref());
            proofs.any(|proof| proof.installation == id && proof.after != proof.before)
        };
        for known in disk.unserved.values_mut() {
            for proof in known.entries.iter_mut().filter_map(|entry| entry.proof.as_mut()) {
                if replaced(&proof.installation) {
                    proof.grade = Grade::Unknown.into();
                }
            }
        }
        let batch = journal.order.as_ref().map(|order| order.batch.clone()).unwrap_or_default();
        disk.unserved.insert(batch, journal.clone());
        disk.unserved
            .retain(|_, known| known.entries.iter().any(|entry| entry.proof.as_ref().is_some_and(waits)));
    }

    /// Looks at consumers that run by now, and completes the proofs.
    async fn look(&self) {
        let mut completed = Vec::new();
        {
            let mut disk = self.host.disk();
            let contents = &mut *disk;
            for (name, known) in &mut contents.unserved {
                let mut changed = false;
                for proof in known.entries.iter_mut().filter_map(|entry| entry.proof.as_mut()) {
                    let served =
                        contents.installations.get(&proof.installation).map(|one| one.served.clone());
                    if waits(proof) && served.as_ref() == Some(&proof.after) {
                        proof.set_state(TargetState::Verified);
                        proof.set_grade(Grade::Probe);
                        proof.endpoints = vec![seen(&proof.after)];
                        changed = true;
                    }
                }
                if changed {
                    completed.push((name.clone(), known.clone()));
                }
            }
            contents
                .unserved
                .retain(|_, known| known.entries.iter().any(|entry| entry.proof.as_ref().is_some_and(waits)));
        }
        for (name, journal) in completed {
            self.world.history.note(&self.host.name, format!("{name} is proved now"));
            self.host.keep(evidence::sign(&journal, now(), &self.identity()).expect("it signs"));
        }
    }

    fn identity(&self) -> identity::Identity {
        let known = self.host.disk().identity.clone().expect("enrolled");
        identity::Identity {
            fleet: known.fleet,
            host: self.host.name.to_string(),
            coordinators: Vec::new(),
            ca: CertificateDer::from(Vec::new()),
            chain: vec![CertificateDer::from(known.certificate)],
            key: PrivateKey::from_pkcs8(KeyType::EcdsaP256, &known.pkcs8).expect("a P-256 key"),
            not_before: 0,
            not_after: i64::MAX,
        }
    }
}

fn waits(proof: &TargetProof) -> bool {
    proof.state() == TargetState::Unserved && proof.grade() != Grade::Unknown
}

fn seen(fingerprint: &[u8]) -> EndpointProof {
    EndpointProof {
        address: "172.17.0.2:443".into(),
        vantage: "host".into(),
        handshakes: 3,
        served: fingerprint.to_vec(),
        chain_valid: true,
        at: now(),
        ..EndpointProof::default()
    }
}

fn failure(stage: Stage, code: &str) -> Failure {
    Failure { stage: stage.into(), code: code.into(), reason: code.into() }
}

/// A P-256 private key as a PKCS#8 document (RFC 5958, RFC 5915).
pub(super) fn pkcs8(scalar: &[u8; 32]) -> Vec<u8> {
    const BEFORE: &[u8] = &[
        0x30, 0x41, 0x02, 0x01, 0x00, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06,
        0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x04, 0x27, 0x30, 0x25, 0x02, 0x01, 0x01, 0x04,
        0x20,
    ];
    [BEFORE, scalar].concat()
}
