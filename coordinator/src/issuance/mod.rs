//! CSRs in, chains out, intent first: the one module that gRPC and engine share.
//!
//! ```text
//! CSRs ─▶ parse, prove possession ─▶ policy ─▶ (commit intent) ─▶ sign ─▶ commit chains ─▶ answer
//! ```
//! The intent is the serial: a target's first one is on record with its batch
//! before it is ordered, any further one is committed here first. Commits are
//! guarded by the batch's and the authority's revision, so a taint between any
//! two steps fences what follows: a chain that is not on record is never
//! delivered. CSRs are not stored.

pub mod builtin;
pub mod ceremony;
pub mod control;
pub mod issuer;
pub mod keyring;
mod message;
pub mod profile;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use reseal_proto::facts::FactsError;
use reseal_proto::v1;
use tokio::sync::Semaphore;

use self::builtin::{Builtin, off_thread};
use self::issuer::Issuer as _;
use self::keyring::{Keyring, KeyringError};
use self::message::{Applicant, Message};
use self::profile::ProfileError;
use crate::domain::allowance::Allowance;
use crate::domain::csr::{self, Request};
use crate::domain::policy::Policy;
use crate::domain::{Now, rotation};
use crate::fail::point;
use crate::store::record::{self, Authority, Batch, Host, HostState, Issued};
use crate::store::{AuditDraft, Commit, Store, StoreError, Versioned, keys};

/// A guard may fail because something else was committed; this often we look again.
const TRIES: u32 = 5;

/// Nothing was issued at all, for a reason that is not one CSR's.
#[derive(Debug, thiserror::Error)]
pub enum IssuanceError {
    /// The batch is unknown, finished or not ordered.
    #[error("batch {batch} of host {host} {why}")]
    Batch {
        /// The host.
        host: String,
        /// The batch.
        batch: String,
        /// Such as "is not on record".
        why: String,
    },
    /// Banned or removed.
    #[error("host {0} is not enrolled (any more): nothing is issued for it")]
    Host(String),
    /// No authority can sign.
    #[error("authority {name} is {state}: it does not issue; see `reseal authority list`")]
    Authority {
        /// Its slot.
        name: String,
        /// Its state.
        state: &'static str,
    },
    /// None is active.
    #[error("no authority is active: activate one with `reseal authority activate`")]
    NoAuthority,
    /// A batch was asked for again and again.
    #[error(
        "batch {batch} of host {host} was asked for {MAX_MESSAGES} times, each time with other keys: no more is issued for it; look at the agent's log"
    )]
    Often {
        /// The host.
        host: String,
        /// The batch.
        batch: String,
    },
    /// Too many CSRs in one message.
    #[error("{0} CSRs in one message are more than the {MAX_CSRS} accepted")]
    Size(usize),
    /// The store refused.
    #[error("cannot record an issuance")]
    Store(#[from] StoreError),
    /// A key does not unwrap.
    #[error("cannot use an authority's key")]
    Keyring(#[from] KeyringError),
    /// An authority's certificate on record is not readable.
    #[error("an authority's certificate on record is damaged")]
    Facts(#[from] FactsError),
    /// A CA does not load.
    #[error("cannot load an authority")]
    Profile(#[from] ProfileError),
}

impl IssuanceError {
    fn batch(host: &str, batch: &str, why: &str) -> Self {
        Self::Batch { host: host.to_owned(), batch: batch.to_owned(), why: why.to_owned() }
    }
}

/// CSRs in one message at most: the targets of a batch.
pub const MAX_CSRS: usize = 50;
/// Messages with new keys that are answered for one batch: an agent that was
/// killed asks again, and not for ever.
pub const MAX_MESSAGES: usize = 32;

/// What a session has read of what it asks for. It spares reading it again, and
/// decides nothing: the guards of the commit say whether it still holds.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// The host's record.
    pub host: &'a Versioned<Host>,
    /// The batch.
    pub batch: &'a Versioned<Batch>,
}

/// The issuance of one coordinator. Cheap to clone.
#[derive(Clone)]
pub struct Issuance {
    store: Store,
    keyring: Arc<Keyring>,
    cores: Arc<Semaphore>,
    now: Now,
    cache: Arc<RwLock<Cache>>,
    refusals: Arc<Mutex<Allowance>>,
}

/// What every CSR needs and rarely changes. Stale entries are caught by the
/// guards of the commit, or dropped by [`Issuance::forget`].
#[derive(Default)]
struct Cache {
    /// Raised whenever something is forgotten: what was read before is not kept.
    generation: u64,
    builtin: Option<Arc<Builtin>>,
    policies: Option<Arc<[Policy]>>,
    /// State and wave of rotations that are being worked on.
    rotations: BTreeMap<String, (rotation::State, u32)>,
}

impl Issuance {
    /// `cores` is how many signatures may be computed at a time.
    pub fn new(store: Store, keyring: Arc<Keyring>, cores: usize, now: Now) -> Self {
        let cores = Arc::new(Semaphore::new(cores.max(1)));
        Self { store, keyring, cores, now, cache: Arc::default(), refusals: Arc::default() }
    }

    /// Policies, authorities or rotations changed: read them again before the next use.
    pub fn forget(&self) {
        let mut cache = self.cache.write().unwrap_or_else(PoisonError::into_inner);
        *cache = Cache { generation: cache.generation + 1, ..Cache::default() };
    }

    /// Issues for the CSRs of one message of a batch; refusals of single CSRs are in
    /// the answer. `known`: nobody else has asked for this batch, as far as the
    /// session can tell.
    #[tracing::instrument(skip_all, fields(host, batch = %request.batch, csrs = request.csrs.len()))]
    pub async fn issue(
        &self,
        host: &str,
        request: v1::CsrBatch,
        mut known: Option<Known<'_>>,
    ) -> Result<v1::Chains, IssuanceError> {
        if request.csrs.len() > MAX_CSRS {
            return Err(IssuanceError::Size(request.csrs.len()));
        }
        let batch_name = request.batch;
        let csrs = Arc::new(request.csrs);
        let parsing = csrs.clone();
        let parsed = off_thread(&self.cores, csrs.len(), move || {
            parsing.iter().map(|csr| Request::from_der(&csr.der)).collect::<Vec<_>>()
        })
        .await;
        let mut tries = 0;
        loop {
            tries += 1;
            match self.attempt(host, &batch_name, &csrs, &parsed, known.take()).await {
                Err(IssuanceError::Store(error)) if error.is_conflict() && tries < TRIES => self.forget(),
                other => return other,
            }
        }
    }

    async fn attempt(
        &self,
        host: &str,
        batch_name: &str,
        csrs: &[v1::Csr],
        parsed: &[Result<Request, csr::CsrError>],
        known: Option<Known<'_>>,
    ) -> Result<v1::Chains, IssuanceError> {
        let read;
        let from_session = known.is_some();
        let (known, earlier) = match known {
            Some(known) => (known, Vec::new()),
            None => {
                read = self.read(host, batch_name).await?;
                let earlier = self.store.range::<Issued>(&keys::issued_of(host, batch_name)).await?;
                (Known { host: &read.0, batch: &read.1 }, earlier)
            }
        };
        self.may_work(host, batch_name, &known.batch.value).await?;
        if known.host.value.state() != HostState::Enrolled {
            return Err(IssuanceError::Host(host.to_owned()));
        }
        let policies = self.policies().await?;
        let applicant = Applicant {
            host,
            labels: &known.host.value.labels,
            policies: &policies,
            batch: &known.batch.value,
            used: earlier
                .iter()
                .flat_map(|(_, issued)| &issued.value.leaves)
                .map(|leaf| &leaf.serial[..])
                .collect(),
        };
        let mut message = Message::judge(&applicant, batch_name, csrs, parsed);
        // What was read a while ago may grant, under guards; it does not refuse.
        if from_session && message.refuses() {
            return Err(IssuanceError::Store(StoreError::Conflict { key: keys::batch(host, batch_name) }));
        }
        if message.grants.is_empty() {
            self.audit_refusal(self.draft(host, batch_name, &message, "")).await?;
            return Ok(message.answer(Issued::default(), &[]));
        }
        let builtin = self.builtin().await?;
        let now = (self.now)();
        // The same keys again: the answer was lost, or the process died before there was one.
        let same = earlier.iter().find(|(_, issued)| message.is_for(&issued.value, &builtin.name));
        let key = match same {
            Some((path, issued)) => {
                if message.take_known(&issued.value) {
                    return Ok(message.answer(issued.value.clone(), builtin.intermediates()));
                }
                path.clone()
            }
            None if earlier.len() >= MAX_MESSAGES => {
                let refused = IssuanceError::Often { host: host.to_owned(), batch: batch_name.to_owned() };
                let detail = format!("{} refused: {refused}", csrs.len());
                let draft = self.draft(host, batch_name, &message, "");
                self.audit_refusal(AuditDraft { outcome: "refused".into(), detail, ..draft }).await?;
                return Err(refused);
            }
            None => keys::issued(host, batch_name, earlier.len()),
        };
        let mut before = same.map(|(_, issued)| issued.revision);
        let fenced = |before: Option<u64>| {
            let commit = Commit::new()
                .at(keys::batch(host, batch_name), known.batch.revision)
                .at(keys::authority(&builtin.name), builtin.revision)
                .at(keys::host(host), known.host.revision);
            match before {
                Some(revision) => commit.at(&key, revision),
                None => commit.absent(&key),
            }
        };
        point("issuance.before_intent");
        if message.needs_intent {
            let intent = fenced(before).put(&key, &message.intent(&builtin.name, now));
            before = Some(self.store.commit(intent).await?);
        }
        point("issuance.after_intent");
        let steps = builtin.step(std::mem::take(&mut message.grants), now).await;
        point("issuance.after_sign");
        message.take_steps(steps);
        let draft = self.draft(host, batch_name, &message, &builtin.name);
        let record = message.record(&builtin.name, now);
        let commit = fenced(before).put(&key, &record).audit(draft);
        let answer = message.answer(record, builtin.intermediates());
        self.store.commit(commit).await?;
        point("issuance.after_commit");
        Ok(answer)
    }

    /// Host and batch as they are on record.
    async fn read(
        &self,
        host: &str,
        batch: &str,
    ) -> Result<(Versioned<Host>, Versioned<Batch>), IssuanceError> {
        let Some(record) = self.store.get::<Host>(&keys::host(host)).await? else {
            return Err(IssuanceError::Host(host.to_owned()));
        };
        match self.store.get::<Batch>(&keys::batch(host, batch)).await? {
            Some(batch) => Ok((record, batch)),
            None => Err(IssuanceError::batch(host, batch, "is not on record")),
        }
    }

    /// Fails unless work on this batch may be done now.
    async fn may_work(&self, host: &str, name: &str, batch: &Batch) -> Result<(), IssuanceError> {
        let refuse = |why: &str| Err(IssuanceError::batch(host, name, why));
        if batch.finished_at != 0 {
            return refuse("is finished");
        }
        if batch.rotation.is_empty() {
            return Ok(());
        }
        let Some((state, reach)) = self.rotation(&batch.rotation).await? else {
            return refuse("belongs to a rotation that is not on record");
        };
        if !rotation::accepts_work(state) {
            return refuse(&format!(
                "belongs to rotation {}, which is {}",
                batch.rotation,
                rotation::word(state)
            ));
        }
        if batch.place > reach {
            return refuse("is in a wave that is not ordered yet");
        }
        Ok(())
    }

    /// State of a rotation and the hosts it has ordered. Kept while it takes work.
    async fn rotation(&self, id: &str) -> Result<Option<(rotation::State, u32)>, IssuanceError> {
        if let Some(known) = self.cached(|cache| cache.rotations.get(id).copied()) {
            return Ok(Some(known));
        }
        let generation = self.cached(|cache| Some(cache.generation));
        let Some(record) = self.store.get::<record::Rotation>(&keys::rotation(id)).await? else {
            return Ok(None);
        };
        let known = (record.value.state(), record.value.reach());
        let mut cache = self.cache.write().unwrap_or_else(PoisonError::into_inner);
        if Some(cache.generation) == generation && rotation::accepts_work(known.0) {
            cache.rotations.insert(id.to_owned(), known);
        }
        Ok(Some(known))
    }

    async fn policies(&self) -> Result<Arc<[Policy]>, IssuanceError> {
        if let Some(policies) = self.cached(|cache| cache.policies.clone()) {
            return Ok(policies);
        }
        let generation = self.cached(|cache| Some(cache.generation));
        let policies: Arc<[Policy]> = load_policies(&self.store).await?.into();
        let mut cache = self.cache.write().unwrap_or_else(PoisonError::into_inner);
        if Some(cache.generation) == generation {
            cache.policies = Some(policies.clone());
        }
        Ok(policies)
    }

    async fn builtin(&self) -> Result<Arc<Builtin>, IssuanceError> {
        if let Some(builtin) = self.cached(|cache| cache.builtin.clone()) {
            return Ok(builtin);
        }
        for (key, authority) in self.store.range::<Authority>(keys::AUTHORITIES).await? {
            if authority.value.state() == record::AuthorityState::Active {
                let name = key.trim_start_matches(keys::AUTHORITIES);
                let builtin = Arc::new(Builtin::load(name, &authority, &self.keyring, self.cores.clone())?);
                self.cache.write().unwrap_or_else(PoisonError::into_inner).builtin = Some(builtin.clone());
                return Ok(builtin);
            }
        }
        Err(IssuanceError::NoAuthority)
    }

    fn cached<T>(&self, pick: impl FnOnce(&Cache) -> Option<T>) -> Option<T> {
        pick(&self.cache.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Within bounds: a host that asks for what it may not have must not fill the audit log.
    async fn audit_refusal(&self, draft: AuditDraft) -> Result<(), IssuanceError> {
        if self.refusals.lock().unwrap_or_else(PoisonError::into_inner).take(draft.at) {
            self.store.commit(Commit::new().audit(draft)).await?;
        }
        Ok(())
    }

    fn draft(&self, host: &str, batch: &str, message: &Message, issuer: &str) -> AuditDraft {
        let (issued, refusals) = message.outcome();
        let mut detail = format!("{issued} issued");
        if issued > 0 {
            detail.push_str(&format!(" by builtin/{issuer}"));
        }
        if !refusals.is_empty() {
            let shown: Vec<&str> = refusals.iter().take(3).copied().collect();
            detail.push_str(&format!(", {} refused: {}", refusals.len(), shown.join("; ")));
        }
        AuditDraft {
            at: (self.now)(),
            actor: format!("host/{host}"),
            action: "certificates.issue".into(),
            object: format!("batch/{host}/{batch}"),
            outcome: if refusals.is_empty() { "done" } else { "refused" }.into(),
            detail,
        }
    }
}

/// Every policy, in the order of their names.
pub async fn load_policies(store: &Store) -> Result<Vec<Policy>, StoreError> {
    let records = store.range::<v1::Policy>(keys::POLICIES).await?;
    Ok(records
        .iter()
        .filter_map(|(key, policy)| {
            Policy::try_from(&policy.value)
                .inspect_err(|error| tracing::error!(%key, %error, "policy on record is unusable"))
                .ok()
        })
        .collect())
}
