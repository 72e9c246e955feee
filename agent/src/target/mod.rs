//! One target of a batch, step by step: request, validate, install, reload, verify.
//!
//! Each step is journalled before its effect. A failure up to the switch
//! leaves everything as it was; after it, the generation before comes back and
//! is proved to be served again, unless the order says to hold. Nothing here
//! talks to the coordinator: certificates come in as arguments, proofs go out
//! as journal entries.

mod error;
mod ladder;
mod prove;
mod roll_back;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use reseal_proto::v1::{
    EndpointProof, Failure, Grade, Issued, OnFailure, ReloadProof, TargetProof, TargetState,
};
use rustls_pki_types::CertificateDer;
use tracing::{Instrument, info, info_span};

use crate::chain;
use crate::clock::Clock;
use crate::config::Config;
use crate::discover::watch::Discovery;
use crate::discover::{Consumer, Endpoint, Installation};
use crate::install::{Files, InstallError};
use crate::journal::{Entry, Journal, Phase};
use crate::key::PrivateKey;
use crate::reload::Reloader;
use crate::state::Session;
use crate::unserved::Unserved;

/// What every target needs.
#[derive(Clone)]
pub struct Tools {
    /// Settings.
    pub config: Arc<Config>,
    /// The picture of the host.
    pub discovery: Discovery,
    /// Reloads, one at a time per container.
    pub reloader: Arc<Reloader>,
    /// Targets that nothing could prove yet.
    pub unserved: Arc<Unserved>,
    /// Anchors.
    pub session: Arc<Session>,
    /// The coordinator's time.
    pub clock: Arc<Clock>,
    /// Held while a batch runs: only the batch may remove generations then.
    pub busy: Arc<tokio::sync::Mutex<()>>,
    /// Held for reading while a container reloads, for writing while files that
    /// are mounted by themselves change.
    pub windows: Arc<tokio::sync::RwLock<()>>,
}

pub use error::{CLOCK_SKEW, CLOCK_UNKNOWN, TargetError};

/// Is there a running consumer that is declared to serve and that nobody can dial?
/// Every one of them must have been seen before anything is proved.
pub fn unseen(consumers: &[Consumer]) -> bool {
    consumers.iter().any(|consumer| consumer.running && consumer.serves && consumer.endpoints.is_empty())
}

/// What the coordinator answered to one CSR.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The leaf, or why there is none.
    pub issued: Issued,
    /// Between leaf and root, issuer of the leaf first, DER.
    pub intermediates: Vec<Vec<u8>>,
}

/// A target that is being worked on.
pub struct Target<'a> {
    /// What it works with.
    pub tools: &'a Tools,
    /// Where its steps are written.
    pub journal: &'a Journal,
    /// Its place in the batch.
    pub at: usize,
    /// What it is about.
    pub installation: &'a Installation,
    /// What happens after a failure.
    pub on_failure: OnFailure,
}

/// What reload and verification showed.
#[derive(Default)]
struct Shown {
    reloads: Vec<ReloadProof>,
    endpoints: Vec<EndpointProof>,
    /// Ids of the containers that were reloaded or looked at.
    seen: BTreeSet<String>,
}

impl Target<'_> {
    /// Runs file operations off the async threads.
    async fn files<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Files) -> Result<T, InstallError> + Send + 'static,
    ) -> Result<T, TargetError> {
        let (config, installation) = (self.tools.config.clone(), self.installation.clone());
        tokio::task::spawn_blocking(move || work(&Files::open(&config, &installation)?))
            .await
            .expect("file operations do not panic")
            .map_err(TargetError::Install)
    }

    async fn update(&self, change: impl FnOnce(&mut Entry)) {
        let at = self.at;
        self.journal.update(|entries| change(&mut entries[at])).await;
    }

    /// How far the disk is.
    pub async fn progress(&self) -> Result<crate::install::Progress, TargetError> {
        let generation = self.journal.entry(self.at).await.generation;
        if generation.is_empty() {
            return Ok(crate::install::Progress::Absent);
        }
        self.files(move |files| files.progress(&generation)).await
    }

    /// Makes or takes up the key; gives the CSR. The journal already names
    /// the generation.
    pub async fn request(&self, reuse: bool) -> Result<Vec<u8>, TargetError> {
        let generation = self.journal.entry(self.at).await.generation;
        let wanted = self.installation.wanted.clone();
        let (config, installation) = (self.tools.config.clone(), self.installation.clone());
        let work = move || {
            let files = Files::open(&config, &installation).map_err(TargetError::Install)?;
            let stored = match reuse {
                true => files.pending_key(&generation).map_err(TargetError::Install)?,
                false => None,
            };
            let stored = stored.and_then(|pkcs8| PrivateKey::from_pkcs8(wanted.key_type, &pkcs8).ok());
            let key = match stored {
                Some(key) => key,
                None => {
                    let key = PrivateKey::generate(wanted.key_type).map_err(TargetError::Key)?;
                    let pkcs8 = key.to_pkcs8().map_err(TargetError::Key)?;
                    files.seen_by(&installation.consumers).map_err(TargetError::Install)?;
                    files.prepare(&generation, &pkcs8).map_err(TargetError::Install)?;
                    files.check_readers(&installation.consumers).map_err(TargetError::Install)?;
                    crate::fail_point("agent.after_key_written");
                    key
                }
            };
            key.request(&wanted.names, wanted.usage).map_err(TargetError::Key)
        };
        tokio::task::spawn_blocking(work)
            .instrument(self.span("request"))
            .await
            .expect("making a key does not panic")
    }

    /// The certificate is here, or the refusal: everything that follows.
    pub async fn answered(&self, answer: Result<Answer, TargetError>) {
        let outcome = match answer {
            Ok(answer) => self.install(answer).await,
            Err(error) => Err(error),
        };
        match outcome {
            Ok(()) => self.prove().await,
            Err(error) => self.failed(error).await,
        }
    }

    /// Validates and switches.
    async fn install(&self, answer: Answer) -> Result<(), TargetError> {
        let Answer { issued, intermediates } = answer;
        if let Some(refusal) = issued.refusal {
            return Err(TargetError::Refused(refusal));
        }
        let span = self.span("validate");
        let chain: Vec<CertificateDer<'static>> =
            std::iter::once(issued.certificate).chain(intermediates).map(CertificateDer::from).collect();
        let found = span.in_scope(|| {
            let anchors = self.tools.session.anchors();
            chain::validate(
                &chain,
                &self.installation.wanted,
                &issued.spki_sha256,
                &anchors,
                self.tools.clock.unix_time(),
            )
            .and_then(|found| chain::begun(&found, crate::app::now()).map(|()| found))
            .map_err(TargetError::Chain)
        })?;
        drop(span);
        async {
            let generation = self.journal.entry(self.at).await.generation;
            // As they are now: what cannot read the key must not be told to.
            let consumers = self.consumers().await.unwrap_or_default();
            let stage = move |files: &Files| {
                files.check_readers(&consumers)?;
                files.stage(&generation, &chain)
            };
            let previous = self.files(stage).await?;
            self.update(|entry| {
                entry.phase = Phase::Installing.into();
                entry.previous = previous;
                entry.new = found.fingerprint;
            })
            .await;
            self.switch().await
        }
        .instrument(self.span("install"))
        .await
    }

    async fn switch(&self) -> Result<(), TargetError> {
        let generation = self.journal.entry(self.at).await.generation;
        crate::fail_point("agent.before_switch");
        let _alone = self.alone().await;
        self.files(move |files| files.switch(&generation)).await?;
        crate::fail_point("agent.after_switch");
        Ok(())
    }

    /// Where files change one after the other, no reload may fall between them.
    async fn alone(&self) -> Option<tokio::sync::RwLockWriteGuard<'_, ()>> {
        match self.installation.place.in_place() {
            true => Some(self.tools.windows.write().await),
            false => None,
        }
    }

    /// After a crash: the pair is complete and validated, but not current.
    pub async fn resume_switch(&self) {
        match self.switch().instrument(self.span("install")).await {
            Ok(()) => self.prove().await,
            Err(error) => self.failed(error).await,
        }
    }

    async fn done(
        &self,
        entry: Entry,
        state: TargetState,
        grade: Grade,
        failure: Option<Failure>,
        after: Vec<u8>,
        shown: Shown,
    ) {
        info!(installation = %self.installation.id, state = state.as_str_name(), "target ended");
        let proof = TargetProof {
            installation: entry.installation,
            label: self.installation.label.clone(),
            before: entry.before,
            after,
            state: state.into(),
            failure,
            grade: grade.into(),
            endpoints: shown.endpoints,
            reloads: shown.reloads,
        };
        finish(self.journal, self.at, proof).await;
    }

    fn span(&self, step: &'static str) -> tracing::Span {
        let installation = self.installation.id.as_str();
        // Span names are constants: traces are searched by them.
        match step {
            "request" => info_span!("request", installation),
            "validate" => info_span!("validate", installation),
            "install" => info_span!("install", installation),
            "reload" => info_span!("reload", installation),
            _ => info_span!("verify", installation),
        }
    }
}

/// Writes a target's end.
pub async fn finish(journal: &Journal, at: usize, proof: TargetProof) {
    journal
        .update(|entries| {
            entries[at].phase = Phase::Done.into();
            entries[at].proof = Some(proof);
        })
        .await;
}

/// Every address of every running consumer, each once.
pub fn endpoints_of(consumers: &[Consumer]) -> Vec<Endpoint> {
    let mut endpoints: Vec<Endpoint> = consumers
        .iter()
        .filter(|consumer| consumer.running)
        .flat_map(|consumer| consumer.endpoints.iter().cloned())
        .collect();
    endpoints.sort();
    endpoints.dedup();
    endpoints
}

/// How long a coordinator with a live session may take to answer a CSR.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(600);
