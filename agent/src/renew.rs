//! Runs batches, one after the other: the canary, then the rest together.
//!
//! A batch is journalled before anything is done and resumed after a crash.
//! Its first target goes alone; while one fails after it was installed, a
//! rotation attempts no further target here, a planned renewal tries the next
//! one alone. The rest share one CSR message and run side by side. The result
//! is signed, put into the outbox, and only then the journal goes. Without a
//! session only the wait for certificates stands still.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use reseal_proto::facts::sha256;
use reseal_proto::telemetry;
use reseal_proto::v1::{
    Chains, Csr, CsrBatch, Failure, Grade, Order, Progress, Stage, TargetProgress, TargetProof, TargetState,
    agent_message,
};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::{Instrument, error, info, info_span, warn};

use crate::app;
use crate::discover::Installation;
use crate::evidence;
use crate::identity::{IdentityStore, Slot};
use crate::journal::{Entry, Journal, Phase};
use crate::link::Handle;
use crate::outbox::Outbox;
use crate::plan::{self, Next};
use crate::target::{self, Answer, Target, TargetError, Tools};

/// Installations in one order.
pub const MAX_TARGETS: usize = 50;
/// Targets that are worked on side by side.
const CONCURRENT: usize = 8;
/// A live session that does not answer is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(60);

/// The batch runner.
pub struct Renewer {
    /// For the targets.
    pub tools: Tools,
    /// Signs the evidence.
    pub identities: IdentityStore,
    /// Takes the results.
    pub outbox: Arc<Outbox>,
    /// The live session.
    pub session: watch::Receiver<Option<Handle>>,
    /// What to do.
    pub orders: mpsc::Receiver<Order>,
    /// Answers to CSRs.
    pub chains: mpsc::Receiver<Chains>,
}

impl Renewer {
    /// Finishes what a crash left behind, then runs orders as they come.
    pub async fn run(mut self, resuming: tokio::sync::OwnedMutexGuard<()>) {
        // Nothing can be resumed or ordered before the host is known.
        let mut host = self.tools.discovery.watch();
        if host.wait_for(Option::is_some).await.is_err() {
            return;
        }
        drop(host);
        match Journal::unfinished(&self.tools.config.state_dir) {
            Ok(journals) => {
                for journal in journals {
                    info!("resuming a batch that was interrupted");
                    self.batch(journal).await;
                }
            }
            Err(error) => error!(error = %crate::chain_of(&error), "the journal cannot be read"),
        }
        drop(resuming);
        while let Some(order) = self.orders.recv().await {
            self.order(order).await;
        }
    }

    async fn order(&mut self, order: Order) {
        // Delivered twice while the first was running.
        if self.outbox.known(&order.batch).is_some() {
            return;
        }
        let state_dir = self.tools.config.state_dir.clone();
        let journal = Journal::begin(&state_dir, accepted(order), app::now());
        self.batch(journal).await;
    }

    async fn batch(&mut self, journal: Journal) {
        let batch = journal.batch().await;
        let order = batch.order.clone().unwrap_or_default();
        if self.outbox.known(&order.batch).is_some() {
            let _ = journal.finish().await;
            return;
        }
        let identity = self.identities.load(Slot::Current).ok().flatten();
        let host = identity.map_or_else(String::new, |identity| identity.host);
        let span = info_span!("order", %host, rotation = %order.rotation, batch = %order.batch);
        telemetry::continue_trace(&span, &order.traceparent);
        let busy = self.tools.busy.clone();
        let _held = busy.lock().await;
        async {
            self.run_targets(&journal, &order).await;
            self.report(&journal).await;
        }
        .instrument(span)
        .await;
    }

    async fn run_targets(&mut self, journal: &Journal, order: &Order) {
        if let Some(failure) = refused(order) {
            let all: Vec<usize> = (0..journal.batch().await.entries.len()).collect();
            return not_attempted(journal, &all, &failure).await;
        }
        // Fresh, so that an order that follows a label change finds it.
        self.tools.discovery.scan().await;
        loop {
            let entries = journal.batch().await.entries;
            let open: Vec<usize> =
                (0..entries.len()).filter(|at| entries[*at].phase() != Phase::Done).collect();
            if open.is_empty() {
                return;
            }
            let passed = entries.iter().any(|entry| state_of(entry).is_some_and(is_good));
            let broken = entries
                .iter()
                .find(|entry| matches!(state_of(entry), Some(TargetState::RolledBack | TargetState::Held)));
            match (passed, broken) {
                (true, _) => self.group(journal, order, &open).await,
                (false, Some(canary)) if !order.rotation.is_empty() => {
                    let failure = Failure {
                        stage: Stage::Request.into(),
                        code: "canary-failed".to_owned(),
                        reason: format!(
                            "not attempted: {} went first on this host and failed; see its reason",
                            canary.installation
                        ),
                    };
                    return not_attempted(journal, &open, &failure).await;
                }
                (false, _) => self.group(journal, order, &open[..1]).await,
            }
        }
    }

    /// Brings the given targets to their end, side by side.
    async fn group(&mut self, journal: &Journal, order: &Order, group: &[usize]) {
        let host = self.tools.discovery.host().unwrap_or_default();
        let entries = journal.batch().await.entries;
        let mut known: Vec<(usize, Installation)> = Vec::new();
        for at in group {
            let id = &entries[*at].installation;
            match host.installations.get(id) {
                Some(installation) => known.push((*at, installation.clone())),
                None => {
                    let error = TargetError::Unknown(id.clone());
                    target::finish(journal, *at, failed_proof(&entries[*at], error.failure())).await;
                }
            }
        }
        let tools = self.tools.clone();
        let targets: Vec<Target<'_>> = known
            .iter()
            .map(|(at, installation)| Target {
                tools: &tools,
                journal,
                at: *at,
                installation,
                on_failure: order.on_failure(),
            })
            .collect();
        // What a crash left half-way needs no coordinator and goes first.
        let (mut requests, mut ready) = (Vec::new(), Vec::new());
        for target in &targets {
            let phase = entries[target.at].phase();
            match target.progress().await {
                Ok(disk) => match plan::next(phase, disk) {
                    Next::Request { reuse } => requests.push((target, reuse)),
                    next => ready.push((target, next)),
                },
                Err(error) => target.failed(error).await,
            }
        }
        futures_util::stream::iter(ready)
            .for_each_concurrent(CONCURRENT, |(target, next)| async move {
                match next {
                    Next::Switch => target.resume_switch().await,
                    Next::Prove => target.prove().await,
                    Next::RollBack => target.resume_roll_back().await,
                    Next::Report | Next::Request { .. } => {}
                }
            })
            .await;
        self.request(journal, order, requests).await;
    }

    /// Asks for certificates in one message, then installs what comes.
    async fn request(&mut self, journal: &Journal, order: &Order, requests: Vec<(&Target<'_>, bool)>) {
        if requests.is_empty() {
            return;
        }
        intend(journal, &requests).await;
        let made: Vec<(&Target<'_>, Result<Vec<u8>, TargetError>)> = futures_util::stream::iter(requests)
            .map(|(target, reuse)| async move { (target, target.request(reuse).await) })
            .buffered(CONCURRENT)
            .collect()
            .await;
        let mut waiting = BTreeMap::new();
        for (target, csr) in made {
            match csr {
                Ok(der) => {
                    waiting.insert(target.installation.id.clone(), (target, der));
                }
                Err(error) => target.failed(error).await,
            }
        }
        let csrs = waiting
            .iter()
            .map(|(id, (target, der))| Csr {
                installation: id.clone(),
                der: der.clone(),
                usage: target.installation.wanted.usage.into(),
            })
            .collect();
        let mut answers = self.ask(&order.batch, csrs).await;
        self.hint(order, waiting.keys(), TargetState::Issued);
        let session = self.session.clone();
        futures_util::stream::iter(waiting)
            .for_each_concurrent(CONCURRENT, |(id, (target, _))| {
                let answer = answers.remove(&id).ok_or(TargetError::NoAnswer);
                let session = session.clone();
                async move {
                    target.answered(answer).await;
                    let entry = target.journal.entry(target.at).await;
                    if let Some(state) = state_of(&entry) {
                        hint(&session, &order.batch, [&id], state);
                    }
                }
            })
            .await;
    }

    /// Sends CSRs and waits for every answer; again after each reconnect, and
    /// again when a live session stays silent.
    async fn ask(&mut self, batch: &str, csrs: Vec<Csr>) -> BTreeMap<String, Answer> {
        let mut open: BTreeMap<String, Csr> =
            csrs.into_iter().map(|csr| (csr.installation.clone(), csr)).collect();
        let mut answers = BTreeMap::new();
        let mut waited = Duration::ZERO;
        while !open.is_empty() && waited < target::ANSWER_TIMEOUT {
            let Ok(handle) = self.session.wait_for(Option::is_some).await.map(|live| live.clone()) else {
                return answers;
            };
            let Some(handle) = handle else { continue };
            let message = CsrBatch {
                batch: batch.to_owned(),
                csrs: open.values().cloned().collect(),
                traceparent: telemetry::traceparent(),
            };
            crate::fail_point("agent.before_csr");
            let began = Instant::now();
            if handle.send(agent_message::Body::Csrs(message)).await.is_ok() {
                self.collect(batch, &mut open, &mut answers, handle.number).await;
            }
            waited += began.elapsed();
            if !open.is_empty() {
                // The dead session may not have been taken away yet.
                tokio::task::yield_now().await;
            }
        }
        answers
    }

    /// Takes answers until all are there, the session changes or nothing came for a while.
    async fn collect(
        &mut self,
        batch: &str,
        open: &mut BTreeMap<String, Csr>,
        answers: &mut BTreeMap<String, Answer>,
        number: u64,
    ) {
        let silent = tokio::time::sleep(ASK_AGAIN);
        tokio::pin!(silent);
        while !open.is_empty() {
            tokio::select! {
                () = &mut silent => {
                    warn!(batch, "no answer to the certificate request; asking again");
                    return;
                }
                changed = self.session.wait_for(|live| live.as_ref().is_none_or(|live| live.number != number)) => {
                    let _ = changed;
                    return;
                }
                chains = self.chains.recv() => {
                    let Some(chains) = chains else { return };
                    if chains.batch != batch {
                        continue;
                    }
                    for issued in chains.issued {
                        let ours = open.get(&issued.installation).is_some_and(|csr| {
                            issued.refusal.is_some() || spki_of(&csr.der).as_deref() == Some(issued.spki_sha256.as_slice())
                        });
                        // An answer to an earlier key is no answer.
                        if ours {
                            open.remove(&issued.installation);
                            let intermediates = chains.intermediates.clone();
                            answers.insert(issued.installation.clone(), Answer { issued, intermediates });
                        }
                    }
                }
            }
        }
    }

    fn hint<'a>(&self, order: &Order, ids: impl IntoIterator<Item = &'a String>, state: TargetState) {
        hint(&self.session, &order.batch, ids, state);
    }

    /// Signs the result and hands it over.
    async fn report(&self, journal: &Journal) {
        // The result shows the host as it is now.
        self.tools.discovery.scan().await;
        let batch = journal.batch().await;
        let identity = match self.identities.load(Slot::Current) {
            Ok(Some(identity)) => identity,
            Ok(None) => return error!("no identity to sign the result with; it is kept in the journal"),
            Err(error) => {
                return error!(error = %crate::chain_of(&error), "no identity to sign the result with; it is kept in the journal");
            }
        };
        let signed = match evidence::sign(&batch, app::now(), &identity) {
            Ok(signed) => signed,
            Err(error) => {
                return error!(error = %crate::chain_of(&error), "the result cannot be signed; it is kept in the journal");
            }
        };
        if let Err(error) = self.outbox.put(signed) {
            // The journal stays: after a restart the result is made again.
            return error!(error = %crate::chain_of(&error), "the result is sent but could not be stored");
        }
        if let Err(error) = journal.finish().await {
            warn!(error = %crate::chain_of(&error), "the journal of a finished batch could not be removed");
        }
    }
}

/// An order larger than any we take is cut before it is journalled; it is
/// refused all the same.
fn accepted(mut order: Order) -> Order {
    order.installations.truncate(MAX_TARGETS + 1);
    order
}

/// Why an order as a whole is not carried out.
fn refused(order: &Order) -> Option<Failure> {
    let mut seen = std::collections::BTreeSet::new();
    let twice = order.installations.iter().find(|id| !seen.insert(*id));
    let reason = if order.installations.len() > MAX_TARGETS {
        format!("the order names more than {MAX_TARGETS} installations and is refused as a whole")
    } else {
        format!("the order names {} twice and is refused as a whole", twice?)
    };
    Some(Failure { stage: Stage::Request.into(), code: "order-refused".to_owned(), reason })
}

/// Names the generations and what is there before, in one write.
async fn intend(journal: &Journal, requests: &[(&Target<'_>, bool)]) {
    let now = app::now();
    journal
        .update(|entries| {
            for (target, reuse) in requests {
                let entry = &mut entries[target.at];
                if entry.phase() == Phase::Ordered {
                    let certificate = target.installation.certificate.as_ref();
                    entry.before = certificate.map_or_else(Vec::new, |c| c.fingerprint.clone());
                    entry.label = target.installation.label.clone();
                }
                if !reuse {
                    let salt = format!("{} {} {}", target.installation.id, now, app::random());
                    let salt = hex::encode(&sha256(salt.as_bytes())[..4]);
                    entry.generation = format!("{now}-{salt}");
                }
                entry.phase = Phase::Requested.into();
            }
        })
        .await;
}

/// SHA-256 over the SubjectPublicKeyInfo of a CSR.
fn spki_of(csr: &[u8]) -> Option<Vec<u8>> {
    use x509_parser::prelude::FromDer;
    let (_, csr) = x509_parser::certification_request::X509CertificationRequest::from_der(csr).ok()?;
    Some(sha256(csr.certification_request_info.subject_pki.raw).to_vec())
}

fn hint<'a>(
    session: &watch::Receiver<Option<Handle>>,
    batch: &str,
    ids: impl IntoIterator<Item = &'a String>,
    state: TargetState,
) {
    let targets = ids.into_iter().map(|id| TargetProgress { installation: id.clone(), state: state.into() });
    let progress = Progress { batch: batch.to_owned(), targets: targets.collect() };
    if let Some(handle) = session.borrow().as_ref() {
        handle.hint(agent_message::Body::Progress(progress));
    }
}

async fn not_attempted(journal: &Journal, targets: &[usize], failure: &Failure) {
    for at in targets {
        let entry = journal.entry(*at).await;
        if entry.phase() != Phase::Done {
            target::finish(journal, *at, failed_proof(&entry, failure.clone())).await;
        }
    }
}

fn failed_proof(entry: &Entry, failure: Failure) -> TargetProof {
    TargetProof {
        installation: entry.installation.clone(),
        label: entry.label.clone(),
        before: entry.before.clone(),
        after: entry.before.clone(),
        state: TargetState::Failed.into(),
        failure: Some(failure),
        grade: Grade::Unknown.into(),
        endpoints: Vec::new(),
        reloads: Vec::new(),
    }
}

fn state_of(entry: &Entry) -> Option<TargetState> {
    entry.proof.as_ref().map(TargetProof::state)
}

fn is_good(state: TargetState) -> bool {
    matches!(state, TargetState::Verified | TargetState::Unserved)
}
