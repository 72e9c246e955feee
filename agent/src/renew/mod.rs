//! Runs batches, one after the other: the canary, then the rest together.
//!
//! A batch is journalled before anything is done and resumed after a crash.
//! Its first target goes alone; while one fails after it was installed, a
//! rotation attempts no further target here, a planned renewal tries the next
//! one alone. The rest share one CSR message and run side by side. The result
//! is signed, put into the outbox, and only then the journal goes. Without a
//! session only the wait for certificates stands still.

mod request;

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use reseal_proto::telemetry;
use reseal_proto::v1::{Chains, Failure, Grade, Order, Stage, TargetProof, TargetState};
use tokio::sync::{mpsc, watch};
use tracing::{Instrument, error, info, info_span};

use crate::app;
use crate::discover::Installation;
use crate::evidence;
use crate::identity::{IdentityStore, Slot};
use crate::install::Files;
use crate::journal::{Entry, Journal, Phase};
use crate::link::Handle;
use crate::link::orders::Orders;
use crate::outbox::Outbox;
use crate::plan::{self, Next};
use crate::target::{self, Target, TargetError, Tools};

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
    pub orders: Arc<Orders>,
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
        let fleet = self.fleet();
        match Journal::unfinished(&self.tools.config.state_dir, fleet.as_deref()) {
            Ok(journals) => {
                for journal in journals {
                    info!("resuming a batch that was interrupted");
                    self.batch(journal).await;
                }
            }
            Err(error) => error!(error = %crate::chain_of(&error), "the journal cannot be read"),
        }
        self.recover().await;
        drop(resuming);
        loop {
            let order = self.orders.next().await;
            self.order(order).await;
        }
    }

    /// Files that a crash left half written although no journal names them: it may
    /// have been in memory only.
    async fn recover(&self) {
        let host = self.tools.discovery.host().unwrap_or_default();
        let config = self.tools.config.clone();
        let work = move || {
            for installation in host.installations.values().filter(|one| one.place.in_place()) {
                let recovered = Files::open(&config, installation).and_then(|files| files.recover());
                if let Err(error) = recovered {
                    error!(error = %crate::chain_of(&error), "half-written files could not be finished");
                }
            }
        };
        let _ = tokio::task::spawn_blocking(work).await;
    }

    async fn order(&mut self, order: Order) {
        // Delivered while what a crash left of it was resumed.
        if self.outbox.known(&order.batch).is_some() {
            return;
        }
        let state_dir = self.tools.config.state_dir.clone();
        let busy = self.tools.busy.clone();
        let _held = busy.lock().await;
        let journal =
            Journal::begin(&state_dir, &self.fleet().unwrap_or_default(), accepted(order), app::now());
        self.batch(journal).await;
    }

    /// This host's own.
    fn fleet(&self) -> Option<String> {
        self.identities.load(Slot::Current).ok().flatten().map(|ours| ours.fleet)
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
            let broken = entries.iter().find(|entry| state_of(entry).is_some_and(is_broken));
            match (passed, broken) {
                (false, Some(canary)) if !order.rotation.is_empty() => {
                    let failure = TargetError::Canary(canary.installation.clone()).failure();
                    return not_attempted(journal, &open, &failure).await;
                }
                _ => self.group(journal, order, &open, !passed).await,
            }
        }
    }

    /// Brings the given targets to their end, side by side; with `canary` one goes
    /// first. What is left open has to be looked at again.
    async fn group(&mut self, journal: &Journal, order: &Order, group: &[usize], canary: bool) {
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
        let wait = canary && !ready.is_empty();
        if wait {
            ready.truncate(1);
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
        if !wait {
            self.request(journal, order, requests, canary).await;
        }
    }

    /// Signs the result and hands it over.
    async fn report(&self, journal: &Journal) {
        // The result shows the host as it is now.
        self.tools.discovery.scan().await;
        let batch = journal.batch().await;
        self.tools.unserved.keep(&batch);
        let signed = match self.identities.load(Slot::Current) {
            Ok(Some(identity)) => evidence::sign(&batch, app::now(), &identity),
            Ok(None) => return error!("no identity to sign the result with; it is kept in the journal"),
            Err(error) => {
                return error!(error = %crate::chain_of(&error), "no identity to sign the result with; it is kept in the journal");
            }
        };
        let stored = match signed {
            Ok(signed) => self.outbox.put(signed),
            Err(error) => {
                return error!(error = %crate::chain_of(&error), "the result cannot be signed; it is kept in the journal");
            }
        };
        crate::fail_point("agent.after_result");
        // Where it could not be stored the journal stays: after a restart the result is made again.
        let finished = match stored {
            Ok(()) => journal.finish().await,
            Err(error) => Err(error),
        };
        if let Err(error) = finished {
            error!(error = %crate::chain_of(&error), "the result is sent, but this host cannot remember it");
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

/// Its new certificate was switched to, and did not work.
fn is_broken(state: TargetState) -> bool {
    matches!(state, TargetState::RolledBack | TargetState::Held)
}

fn is_good(state: TargetState) -> bool {
    matches!(state, TargetState::Verified | TargetState::Unserved)
}
