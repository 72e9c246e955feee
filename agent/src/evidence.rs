//! Signs what a batch did: one signature per batch, over the exact bytes.
//!
//! The payload is encoded once; what is signed is what is sent and stored. The
//! key is the host's identity key (ECDSA P-256 with SHA-256).

use prost::Message;
use reseal_proto::v1::{BatchResult, EvidencePayload, TargetProof};

use crate::identity::Identity;
use crate::journal::Batch;
use crate::key::KeyError;

/// Makes the signed result of a finished batch; its inventory is added when it is sent.
pub fn sign(batch: &Batch, finished_at: i64, identity: &Identity) -> Result<BatchResult, KeyError> {
    let order = batch.order.clone().unwrap_or_default();
    let targets: Vec<TargetProof> = batch.entries.iter().filter_map(|entry| entry.proof.clone()).collect();
    let payload = EvidencePayload {
        format: 1,
        fleet: identity.fleet.clone(),
        host: identity.host.clone(),
        rotation: order.rotation,
        batch: order.batch.clone(),
        epoch: order.epoch,
        started_at: batch.started_at,
        finished_at,
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        targets,
    }
    .encode_to_vec();
    let signature = identity.key.sign_bytes(&payload)?;
    Ok(BatchResult {
        batch: order.batch,
        payload,
        signature,
        identity: identity.chain[0].to_vec(),
        inventory: None,
    })
}
