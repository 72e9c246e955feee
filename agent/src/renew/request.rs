//! Asks the coordinator for certificates and hands out what comes.
//!
//! One message for all targets of a group. It is sent again on each session
//! until every CSR has its answer; an answer to another key is none. Part of
//! [`super::Renewer`].

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::StreamExt;
use reseal_proto::facts::sha256;
use reseal_proto::telemetry;
use reseal_proto::v1::{Csr, CsrBatch, Order, Progress, TargetProgress, TargetState, agent_message};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::warn;

use super::{ASK_AGAIN, CONCURRENT, Renewer, is_broken, is_good, state_of};
use crate::app;
use crate::journal::{Journal, Phase};
use crate::link::Handle;
use crate::target::{self, Answer, Target, TargetError};

impl Renewer {
    /// Asks for certificates in one message, then installs what comes: with
    /// `canary` one target alone until one has proved itself, then the rest
    /// together. A certificate that is not installed after all harms nobody.
    pub(super) async fn request(
        &mut self,
        journal: &Journal,
        order: &Order,
        requests: Vec<(&Target<'_>, bool)>,
        canary: bool,
    ) {
        if requests.is_empty() {
            return;
        }
        intend(journal, &requests).await;
        let made: Vec<(&Target<'_>, Result<Vec<u8>, TargetError>)> = futures_util::stream::iter(requests)
            .map(|(target, reuse)| async move { (target, target.request(reuse).await) })
            .buffered(CONCURRENT)
            .collect()
            .await;
        let (mut waiting, mut csrs) = (Vec::new(), Vec::new());
        for (target, csr) in made {
            match csr {
                Ok(der) => {
                    csrs.push(Csr {
                        installation: target.installation.id.clone(),
                        der,
                        usage: target.installation.wanted.usage.into(),
                    });
                    waiting.push(target);
                }
                Err(error) => target.failed(error).await,
            }
        }
        let mut answers = self.ask(&order.batch, csrs).await;
        hint(
            &self.session,
            &order.batch,
            waiting.iter().map(|target| &target.installation.id),
            TargetState::Issued,
        );
        let mut answer =
            |target: &Target<'_>| answers.remove(&target.installation.id).ok_or(TargetError::NoAnswer);
        // Where nothing was before there is nothing to break, and a container may
        // need several certificates before it starts at all.
        let (fresh, rest): (Vec<_>, Vec<_>) =
            waiting.into_iter().partition(|target| target.installation.certificate.is_none());
        let fresh = fresh.into_iter().map(|target| (target, answer(target))).collect();
        self.take_together(order, fresh).await;
        let mut rest = rest.into_iter();
        while canary && let Some(first) = rest.next() {
            match self.take(order, first, answer(first)).await {
                Some(state) if is_good(state) => break,
                Some(state) if is_broken(state) && !order.rotation.is_empty() => {
                    for target in rest {
                        target.failed(TargetError::Canary(first.installation.id.clone())).await;
                    }
                    return;
                }
                // It never came to a switch, or it is a planned renewal: the next one goes alone.
                Some(_) | None => {}
            }
        }
        let rest = rest.map(|target| (target, answer(target))).collect();
        self.take_together(order, rest).await;
    }

    async fn take_together(&self, order: &Order, targets: Vec<(&Target<'_>, Result<Answer, TargetError>)>) {
        futures_util::stream::iter(targets)
            .for_each_concurrent(CONCURRENT, |(target, answer)| async move {
                self.take(order, target, answer).await;
            })
            .await;
    }

    /// Brings one target to its end, and tells of it.
    async fn take(
        &self,
        order: &Order,
        target: &Target<'_>,
        answer: Result<Answer, TargetError>,
    ) -> Option<TargetState> {
        target.answered(answer).await;
        let state = state_of(&target.journal.entry(target.at).await)?;
        hint(&self.session, &order.batch, [&target.installation.id], state);
        Some(state)
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
