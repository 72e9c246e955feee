//! Signed results of agents, checked before they are kept.
//!
//! An agent speaks for its own host only. A target is *verified* on record only
//! if the fingerprint it shows is one that was issued for that very target; the
//! coordinator adds its own time by countersigning what it took.

use std::collections::BTreeMap;
use std::sync::Arc;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use prost::Message as _;
use reseal_proto::facts::{self, sha256};
use reseal_proto::identity::{Identity, Role};
use reseal_proto::v1::{self, EvidencePayload, Failure, Grade, Stage, TargetState};
use tonic::{Code, Status};

use super::convert::{chain, status};
use super::inventory::Inventories;
use super::tls::PeerIdentity;
use crate::domain::Now;
use crate::domain::target::{self, Event};
use crate::fail::point;
use crate::issuance::IssuanceError;
use crate::issuance::control::ControlPlane;
use crate::metrics::{Metrics, ends};
use crate::store::record::{Batch, Issued};
use crate::store::{Commit, Store, StoreError, Versioned, keys};

/// A batch between its order and its result, as its session knows it: spares
/// reading it again. Guards say whether it still holds.
pub(crate) struct Work {
    /// As it was sent.
    pub(crate) batch: Versioned<Batch>,
    /// What this session has answered with.
    pub(crate) issued: Fingerprints,
    /// Nobody can have asked for it before this session did.
    pub(crate) fresh: bool,
}

/// Which certificates were issued for which installation: SHA-256 over the DER.
#[derive(Default)]
pub(crate) struct Fingerprints(Vec<(Box<str>, [u8; 32])>);

impl Fingerprints {
    /// Adds one; an empty certificate is none.
    pub(crate) fn add(&mut self, installation: &str, certificate: &[u8]) {
        if !certificate.is_empty() {
            self.0.push((installation.into(), sha256(certificate)));
        }
    }

    /// Was what this proof shows issued for its very target?
    fn has(&self, proof: &v1::TargetProof) -> bool {
        let same = |(installation, fingerprint): &(Box<str>, [u8; 32])| {
            **installation == *proof.installation && fingerprint[..] == proof.after[..]
        };
        self.0.iter().any(same)
    }
}

/// What became of a result.
enum Taken {
    /// It is on record, and its inventory with it; true: the whole inventory is wanted.
    With(bool),
    /// It adds nothing.
    Nothing,
}

/// Takes reports into the store. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Results {
    store: Store,
    control: Arc<ControlPlane>,
    metrics: Metrics,
    now: Now,
    inventories: Inventories,
}

impl Results {
    /// Over this store.
    pub(crate) fn new(store: Store, control: Arc<ControlPlane>, metrics: Metrics, now: Now) -> Self {
        let inventories = Inventories::new(store.clone(), now);
        Self { store, control, metrics, now, inventories }
    }

    /// Takes a result; true when its inventory does not fit and the whole is wanted.
    /// `work`: what the session has read and sent of the batch.
    pub(crate) async fn take(
        &self,
        host: &str,
        peer: &PeerIdentity,
        mut result: v1::BatchResult,
        work: Option<Work>,
    ) -> Result<bool, Status> {
        let inventory = result.inventory.take();
        match self.record(host, peer, &result, inventory.as_ref(), work).await {
            Ok(Taken::With(wanted)) => Ok(wanted),
            Ok(Taken::Nothing) => self.inventory_alone(host, inventory).await,
            // It would be sent again for ever, and never be taken.
            Err(refusal) if refusal.code() == Code::OutOfRange => {
                self.give_up(host, &result.batch, refusal.message()).await?;
                self.inventory_alone(host, inventory).await
            }
            Err(error) => Err(error),
        }
    }

    /// Takes it. `OutOfRange`: it is of this host, and unusable for good.
    async fn record(
        &self,
        host: &str,
        peer: &PeerIdentity,
        result: &v1::BatchResult,
        inventory: Option<&v1::InventoryDelta>,
        work: Option<Work>,
    ) -> Result<Taken, Status> {
        let payload = self.authentic(host, peer, result)?;
        let key = keys::batch(host, &result.batch);
        let (mut known, issued) = work.map(|work| (work.batch, work.issued)).unzip();
        for _ in 0..5 {
            let record = match known.take() {
                Some(record) => Some(record),
                None => self.store.get::<Batch>(&key).await.map_err(|error| status(&error))?,
            };
            // Removed long ago: the agent may forget it too.
            let Some(Versioned { value: batch, revision }) = record else { return Ok(Taken::Nothing) };
            let before = ends(&batch);
            let renewed = batch.finished_at == 0 && keys::rotation_of(&result.batch).is_none();
            let fingerprints = match &issued {
                Some(issued) if claims(&payload).all(|proof| issued.has(proof)) => issued,
                _ => &self.issued(host, &result.batch).await?,
            };
            let Some(finished) = self.finish(host, batch, &payload, result, fingerprints)? else {
                return Ok(Taken::Nothing);
            };
            point("results.before_commit");
            let mut commit = Commit::new();
            let mut wanted = false;
            if let Some(delta) = inventory {
                match self.inventories.merge(host, delta).await {
                    // The head comes with the batch, so that neither is seen without the other.
                    Ok(Some(head)) => commit = head,
                    Ok(None) => wanted = true,
                    // Another session of the host wrote in between.
                    Err(error) if error.code() == Code::Aborted => continue,
                    Err(error) => return Err(error),
                }
            }
            if renewed {
                commit = commit.delete(keys::renewing(host));
            }
            match self.store.commit(commit.at(&key, revision).put(&key, &finished)).await {
                Ok(_) => {
                    point("results.after_commit");
                    self.metrics.finished(&before, &finished);
                    return Ok(Taken::With(wanted));
                }
                Err(error) if error.is_conflict() => {}
                Err(error @ StoreError::Limit { .. }) => return Err(Status::out_of_range(chain(&error))),
                Err(error) => return Err(status(&error)),
            }
        }
        Err(Status::aborted(format!(
            "batch {} of host {host} keeps changing; send the result again",
            result.batch
        )))
    }

    /// Everything that was issued for a batch.
    async fn issued(&self, host: &str, batch: &str) -> Result<Fingerprints, Status> {
        let issued = self.store.range::<Issued>(&keys::issued_of(host, batch)).await;
        let mut fingerprints = Fingerprints::default();
        for leaf in
            issued.map_err(|error| status(&error))?.iter().flat_map(|(_, issued)| &issued.value.leaves)
        {
            fingerprints.add(&leaf.installation, &leaf.certificate);
        }
        Ok(fingerprints)
    }

    /// Fails what is open in a batch whose result cannot be taken.
    async fn give_up(&self, host: &str, batch_name: &str, why: &str) -> Result<(), Status> {
        let key = keys::batch(host, batch_name);
        let Some(record) = self.store.get::<Batch>(&key).await.map_err(|error| status(&error))? else {
            return Ok(());
        };
        let (mut batch, revision) = (record.value, record.revision);
        if batch.finished_at != 0 {
            return Ok(());
        }
        tracing::error!(host, batch = %key, why, "a result cannot be taken");
        let before = ends(&batch);
        for target in &mut batch.targets {
            if let Ok(state) = target::apply(target.state(), Event::Report(TargetState::Failed)) {
                target.set_state(state);
                target.failure = Some(failure("result-refused", why.chars().take(500).collect()));
            }
        }
        batch.finished_at = (self.now)();
        let mut commit = Commit::new().at(&key, revision).put(&key, &batch);
        if keys::rotation_of(batch_name).is_none() {
            commit = commit.delete(keys::renewing(host));
        }
        self.store.commit(commit).await.map_err(|error| status(&error))?;
        self.metrics.finished(&before, &batch);
        Ok(())
    }

    /// The result adds nothing, but what came with it may.
    async fn inventory_alone(&self, host: &str, delta: Option<v1::InventoryDelta>) -> Result<bool, Status> {
        match delta {
            Some(delta) => Ok(!self.inventories.apply(host, &delta).await?),
            None => Ok(false),
        }
    }

    /// The payload, once its signature and its claims about itself hold.
    fn authentic(
        &self,
        host: &str,
        peer: &PeerIdentity,
        result: &v1::BatchResult,
    ) -> Result<EvidencePayload, Status> {
        let refuse = |why: String| {
            Status::invalid_argument(format!("result of batch {} from host {host}: {why}", result.batch))
        };
        if result.identity != peer.certificate {
            self.former_identity(host, &result.identity).map_err(refuse)?;
        }
        // Evidence is judged at the time it was taken: an expired signer would spoil the whole file.
        let certificate = facts::parse(&result.identity).map_err(|error| refuse(chain(&error)))?;
        let key = UnparsedPublicKey::new(
            &ECDSA_P256_SHA256_ASN1,
            &certificate.public_key().subject_public_key.data,
        );
        key.verify(&result.payload, &result.signature)
            .map_err(|_| refuse("the signature does not verify".into()))?;
        let payload =
            EvidencePayload::decode(&result.payload[..]).map_err(|error| refuse(error.to_string()))?;
        if payload.host != host || payload.batch != result.batch || payload.fleet != self.control.fleet {
            return Err(refuse(format!("it speaks of host {:?}, batch {:?}", payload.host, payload.batch)));
        }
        if certificate.validity().not_after.timestamp() < (self.now)() {
            return Err(Status::out_of_range(format!(
                "the result of batch {} was signed by an identity of host {host} that has expired since",
                result.batch
            )));
        }
        if payload.targets.len() > target::PER_BATCH {
            return Err(refuse(format!("{} targets are too many", payload.targets.len())));
        }
        Ok(payload)
    }

    /// An identity that was renewed since it signed: still of this host, from our CA.
    fn former_identity(&self, host: &str, certificate: &[u8]) -> Result<(), String> {
        let parsed = facts::parse(certificate).map_err(|error| chain(&error))?;
        let ca = facts::parse(&self.control.ca_certificate).map_err(|error| chain(&error))?;
        parsed
            .verify_signature(Some(ca.public_key()))
            .map_err(|_| "its identity is not of this fleet's CA".to_owned())?;
        let identity = Identity::of_certificate(certificate).map_err(|error| error.to_string())?;
        if identity.fleet == self.control.fleet && identity.role == Role::Host(host.to_owned()) {
            Ok(())
        } else {
            Err(format!("it is signed by {identity}"))
        }
    }

    /// The batch with its result; `None` when it has one already and this adds nothing.
    fn finish(
        &self,
        host: &str,
        mut batch: Batch,
        payload: &EvidencePayload,
        result: &v1::BatchResult,
        issued: &Fingerprints,
    ) -> Result<Option<Batch>, Status> {
        for (at, proof) in payload.targets.iter().enumerate() {
            let ours = batch.targets.iter().any(|target| target.installation == proof.installation);
            let twice = payload.targets[..at].iter().any(|before| before.installation == proof.installation);
            if !ours || twice {
                return Err(Status::out_of_range(format!(
                    "the result of batch {} from host {host} speaks of a target that is not in it, or twice of one",
                    result.batch
                )));
            }
        }
        let proofs: BTreeMap<&str, &v1::TargetProof> =
            payload.targets.iter().map(|proof| (proof.installation.as_str(), proof)).collect();
        // The payload replaces the one before: what is verified has to be proved by this one, too.
        let mut verified = batch.targets.iter().filter(|target| target.state() == TargetState::Verified);
        let contradicted = verified.find(|target| {
            let proof = proofs.get(target.installation.as_str());
            proof.is_none_or(|proof| judge(proof, issued).0 != TargetState::Verified)
        });
        if let Some(target) = contradicted {
            tracing::warn!(
                host,
                batch = %result.batch,
                installation = %target.installation,
                "a later result does not prove what an earlier one did; the earlier one stays"
            );
            return Ok(None);
        }
        let mut changed = false;
        for target in batch.targets.iter_mut().filter(|target| !target.superseded) {
            let (state, failure, grade) = match proofs.get(target.installation.as_str()) {
                Some(proof) => judge(proof, issued),
                None if batch.finished_at != 0 => continue,
                None => (
                    TargetState::Failed,
                    Some(failure("not-reported", "the agent's result does not speak of it".into())),
                    0,
                ),
            };
            if let Ok(next) = target::apply(target.state(), Event::Report(state)) {
                changed |= next != target.state();
                target.set_state(next);
                target.failure = failure;
                target.grade = grade;
            }
        }
        if !changed {
            return Ok(None);
        }
        let now = (self.now)();
        let digest = sha256(&[&result.payload[..], &result.signature, &result.identity].concat()).to_vec();
        let countersignature =
            v1::Countersignature { digest, received_at: now, epoch: self.store.epoch() }.encode_to_vec();
        batch.countersignature_signature = self.control.sign_evidence(&countersignature);
        batch.countersignature = countersignature;
        batch.payload.clone_from(&result.payload);
        batch.signature.clone_from(&result.signature);
        batch.identity.clone_from(&result.identity);
        batch.finished_at = now;
        Ok(Some(batch))
    }
}

/// Refuses every CSR of a message for one reason.
pub(crate) fn refuse_all(batch: String, installations: Vec<String>, error: &IssuanceError) -> v1::Chains {
    let issued = installations
        .into_iter()
        .map(|installation| v1::Issued {
            installation,
            refusal: Some(Failure {
                stage: Stage::Issue.into(),
                code: "not-issued".into(),
                reason: chain(error),
            }),
            ..v1::Issued::default()
        })
        .collect();
    v1::Chains { batch, issued, intermediates: Vec::new() }
}

/// Proofs that say a new certificate is there.
fn claims(payload: &EvidencePayload) -> impl Iterator<Item = &v1::TargetProof> {
    payload.targets.iter().filter(|proof| claims_new(proof))
}

fn claims_new(proof: &v1::TargetProof) -> bool {
    matches!(proof.state(), TargetState::Verified | TargetState::Unserved | TargetState::Held)
}

/// What a proof is worth: state, failure, grade.
fn judge(proof: &v1::TargetProof, issued: &Fingerprints) -> (TargetState, Option<Failure>, i32) {
    if claims_new(proof) && !issued.has(proof) {
        let reason = format!("the agent shows {}, which was not issued for it", hex::encode(&proof.after));
        return (TargetState::Failed, Some(failure("not-issued", reason)), 0);
    }
    let shows = |endpoint: &v1::EndpointProof| endpoint.served == proof.after && endpoint.handshakes > 0;
    if proof.state() == TargetState::Verified && !proof.endpoints.iter().all(shows) {
        let reason = "the agent calls it verified, but an endpoint shows another certificate".to_owned();
        return (TargetState::Failed, Some(failure("not-served", reason)), 0);
    }
    match proof.state() {
        state if target::is_end(state) && state != TargetState::Excluded => {
            // Without an endpoint nobody has seen it served.
            let most = if proof.endpoints.is_empty() { Grade::ReloadObserved } else { Grade::PeerObserved };
            (state, proof.failure.clone(), proof.grade.min(most.into()))
        }
        state => (
            TargetState::Failed,
            Some(failure("not-finished", format!("the agent left it {}", state.as_str_name()))),
            0,
        ),
    }
}

fn failure(code: &str, reason: String) -> Failure {
    Failure { stage: Stage::Verify.into(), code: code.into(), reason }
}
