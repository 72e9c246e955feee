//! CSRs in, chains out, intent first: the one module that gRPC and engine share.
//!
//! ```text
//! CSRs ─▶ parse, prove possession ─▶ policy ─▶ commit intent ─▶ sign ─▶ commit chains ─▶ answer
//! ```
//! Both commits are guarded by the batch's and the authority's revision, so a
//! taint between any two steps fences what follows: a chain that is not on
//! record is never delivered. CSRs are not stored.

pub mod builtin;
pub mod ceremony;
pub mod control;
pub mod issuer;
pub mod keyring;
pub mod profile;

use std::sync::{Arc, RwLock};

use reseal_proto::facts::FactsError;
use reseal_proto::v1::{self, Stage};
use tokio::sync::Semaphore;

use self::builtin::{Builtin, off_thread};
use self::issuer::{Grant, Issuer as _, Step};
use self::keyring::{Keyring, KeyringError};
use self::profile::ProfileError;
use crate::domain::csr::{self, Request};
use crate::domain::policy::{self, Policy};
use crate::domain::{Now, rotation};
use crate::fail::point;
use crate::store::audit::Draft;
use crate::store::record::{self, Authority, Batch, Host, Issued, IssuedLeaf};
use crate::store::{Commit, Store, StoreError, Versioned, keys};

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

/// CSRs in one message at most: the targets of a batch.
pub const MAX_CSRS: usize = 50;

/// The issuance of one coordinator. Cheap to clone.
#[derive(Clone)]
pub struct Issuance {
    store: Store,
    keyring: Arc<Keyring>,
    cores: Arc<Semaphore>,
    now: Now,
    cache: Arc<RwLock<Cache>>,
}

/// What every CSR needs and rarely changes. Stale entries are caught by the
/// guards of the commit, or dropped by [`Issuance::forget`].
#[derive(Default)]
struct Cache {
    builtin: Option<Arc<Builtin>>,
    policies: Option<Arc<[Policy]>>,
}

impl Issuance {
    /// `cores` is how many signatures may be computed at a time.
    pub fn new(store: Store, keyring: Arc<Keyring>, cores: usize, now: Now) -> Self {
        Self { store, keyring, cores: Arc::new(Semaphore::new(cores.max(1))), now, cache: Arc::default() }
    }

    /// Policies or authorities changed: read them again before the next use.
    pub fn forget(&self) {
        *self.cache.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Cache::default();
    }

    /// Issues for the CSRs of one message of a batch; refusals of single CSRs are in the answer.
    #[tracing::instrument(skip_all, fields(host, batch = %request.batch, csrs = request.csrs.len()))]
    pub async fn issue(&self, host: &str, request: v1::CsrBatch) -> Result<v1::Chains, IssuanceError> {
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
            match self.attempt(host, &batch_name, &csrs, &parsed).await {
                Err(IssuanceError::Store(error)) if error.is_conflict() && tries < TRIES => self.forget(),
                other => return other.map(|issued| v1::Chains { batch: batch_name, issued }),
            }
        }
    }

    async fn attempt(
        &self,
        host: &str,
        batch_name: &str,
        csrs: &[v1::Csr],
        parsed: &[Result<Request, csr::CsrError>],
    ) -> Result<Vec<v1::Issued>, IssuanceError> {
        let (batch, revision) = self.ordered_batch(host, batch_name).await?;
        let labels = self
            .store
            .get::<Host>(&keys::host(host))
            .await?
            .map(|host| host.value.labels)
            .unwrap_or_default();
        let policies = self.policies().await?;
        let mut grants = Vec::with_capacity(csrs.len());
        let mut intent = Issued::default();
        let mut answers: Vec<v1::Issued> = Vec::with_capacity(csrs.len());
        let mut granted: Vec<usize> = Vec::with_capacity(csrs.len());
        for (csr, parsed) in csrs.iter().zip(parsed) {
            let mut answer = v1::Issued { installation: csr.installation.clone(), ..v1::Issued::default() };
            let grant = match parsed {
                Ok(request) => {
                    answer.spki_sha256 = request.spki_sha256.to_vec();
                    grant(host, &labels, &policies, &batch, csr, request)
                }
                Err(error) => {
                    Err(refusal("bad-csr", format!("host {host}, {}: {}", csr.installation, chain(error))))
                }
            };
            match grant {
                Ok(grant) => {
                    intent.leaves.push(IssuedLeaf {
                        installation: csr.installation.clone(),
                        serial: grant.serial.clone(),
                        spki_sha256: answer.spki_sha256.clone(),
                        certificate: Vec::new(),
                    });
                    granted.push(answers.len());
                    grants.push(grant);
                }
                Err(failure) => answer.refusal = Some(failure),
            }
            answers.push(answer);
        }
        if grants.is_empty() {
            self.audit_refusals(host, batch_name, &answers).await?;
            return Ok(answers);
        }
        let builtin = self.builtin().await?;
        let now = (self.now)();
        intent.authority.clone_from(&builtin.name);
        intent.at = now;
        let message = self.store.range::<Issued>(&keys::issued_of(host, batch_name)).await?.len();
        let key = keys::issued(host, batch_name, u32::try_from(message).unwrap_or(u32::MAX));
        let fence = || {
            Commit::new()
                .at(&keys::batch(host, batch_name), revision)
                .at(&keys::authority(&builtin.name), builtin.revision)
        };
        point("issuance.before_intent");
        let intent_revision = self.store.commit(fence().absent(&key).put(&key, &intent)).await?;
        point("issuance.after_intent");
        let steps = builtin.step(grants, now).await;
        point("issuance.after_sign");
        for ((step, leaf), at) in steps.into_iter().zip(&mut intent.leaves).zip(&granted) {
            let answer = &mut answers[*at];
            match step {
                Step::Issued { certificate } => {
                    leaf.certificate.clone_from(&certificate);
                    answer.certificate = certificate;
                    answer.intermediates = builtin.intermediates().to_vec();
                }
                Step::Refused { reason } => answer.refusal = Some(refusal("issuer-refused", reason)),
                Step::Waiting { retry_after, .. } => {
                    let reason = format!("the issuer asks to wait {} seconds", retry_after.as_secs());
                    answer.refusal = Some(refusal("issuer-waiting", reason));
                }
            }
        }
        let refused = answers.iter().filter(|answer| answer.refusal.is_some()).count();
        let draft = Draft {
            at: now,
            actor: format!("host/{host}"),
            action: "certificates.issue".into(),
            object: format!("batch/{host}/{batch_name}"),
            outcome: if refused == 0 { "done" } else { "refused" }.into(),
            detail: format!(
                "{} issued by builtin/{}, {refused} refused",
                answers.len() - refused,
                builtin.name
            ),
        };
        self.store.commit(fence().at(&key, intent_revision).put(&key, &intent).audit(draft)).await?;
        point("issuance.after_commit");
        Ok(answers)
    }

    /// The batch, if work on it may be done now, and its revision.
    async fn ordered_batch(&self, host: &str, name: &str) -> Result<(Batch, u64), IssuanceError> {
        let refuse = |why: &str| IssuanceError::Batch {
            host: host.to_owned(),
            batch: name.to_owned(),
            why: why.to_owned(),
        };
        let Some(Versioned { value: batch, revision }) =
            self.store.get::<Batch>(&keys::batch(host, name)).await?
        else {
            return Err(refuse("is not on record"));
        };
        if batch.finished_at != 0 {
            return Err(refuse("is finished"));
        }
        if !batch.rotation.is_empty() {
            let rotation = self.store.get::<record::Rotation>(&keys::rotation(&batch.rotation)).await?;
            let Some(rotation) = rotation.map(|rotation| rotation.value) else {
                return Err(refuse("belongs to a rotation that is not on record"));
            };
            if !rotation::accepts_work(rotation.state()) {
                return Err(refuse(&format!(
                    "belongs to rotation {}, which is {}",
                    batch.rotation,
                    rotation::word(rotation.state())
                )));
            }
            if batch.wave > rotation.wave {
                return Err(refuse("is in a wave that is not ordered yet"));
            }
        }
        Ok((batch, revision))
    }

    async fn policies(&self) -> Result<Arc<[Policy]>, IssuanceError> {
        if let Some(policies) = self.cached(|cache| cache.policies.clone()) {
            return Ok(policies);
        }
        let policies: Arc<[Policy]> = load_policies(&self.store).await?.into();
        self.cache.write().unwrap_or_else(std::sync::PoisonError::into_inner).policies =
            Some(policies.clone());
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
                self.cache.write().unwrap_or_else(std::sync::PoisonError::into_inner).builtin =
                    Some(builtin.clone());
                return Ok(builtin);
            }
        }
        Err(IssuanceError::NoAuthority)
    }

    fn cached<T>(&self, pick: impl FnOnce(&Cache) -> Option<T>) -> Option<T> {
        pick(&self.cache.read().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    async fn audit_refusals(
        &self,
        host: &str,
        batch: &str,
        answers: &[v1::Issued],
    ) -> Result<(), IssuanceError> {
        let reasons = answers
            .iter()
            .filter_map(|answer| answer.refusal.as_ref())
            .map(|refusal| refusal.reason.as_str());
        let draft = Draft {
            at: (self.now)(),
            actor: format!("host/{host}"),
            action: "certificates.issue".into(),
            object: format!("batch/{host}/{batch}"),
            outcome: "refused".into(),
            detail: reasons.take(3).collect::<Vec<_>>().join("; "),
        };
        self.store.commit(Commit::new().audit(draft)).await?;
        Ok(())
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

fn grant(
    host: &str,
    labels: &std::collections::BTreeMap<String, String>,
    policies: &[Policy],
    batch: &Batch,
    csr: &v1::Csr,
    request: &Request,
) -> Result<Grant, v1::Failure> {
    if !batch.targets.iter().any(|target| target.installation == csr.installation) {
        return Err(refusal("not-ordered", format!("{} is not a target of this batch", csr.installation)));
    }
    let usage = csr.usage();
    let wanted = policy::Request { host, labels, names: &request.names, key_type: &request.key_type, usage };
    let admission = policy::admit(policies, &wanted)
        .map_err(|error| refusal("policy-refused", format!("host {host}, {}: {error}", csr.installation)))?;
    Ok(Grant {
        names: request.names.clone(),
        spki: request.spki.clone(),
        usage,
        lifetime: admission.lifetime,
        serial: profile::serial().to_vec(),
    })
}

fn refusal(code: &str, reason: String) -> v1::Failure {
    v1::Failure { stage: Stage::Issue.into(), code: code.into(), reason }
}

/// An error with its sources, once.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
