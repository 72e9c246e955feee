//! Signs what a batch did: one signature per batch, over the exact bytes.
//!
//! The payload is encoded once; what is signed is what is sent and stored. The
//! key is the host's identity key (ECDSA P-256 with SHA-256). A result that
//! waited longer than its signer lived is signed anew; its payload stays.

use prost::Message;
use reseal_proto::v1::{BatchResult, EvidencePayload, TargetProof};

use crate::identity::Identity;
use crate::journal::Batch;
use crate::key::KeyError;

/// Of all targets of a batch: a coordinator keeps them in one small record.
const MOST_BYTES: usize = 28 * 1024;

/// Makes the signed result of a finished batch; its inventory is added when it is sent.
pub fn sign(batch: &Batch, finished_at: i64, identity: &Identity) -> Result<BatchResult, KeyError> {
    let order = batch.order.clone().unwrap_or_default();
    let mut targets: Vec<TargetProof> =
        batch.entries.iter().filter_map(|entry| entry.proof.clone()).collect();
    shorten(&mut targets);
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

/// Words first, then endpoints beyond the first few: every target keeps its
/// state, its fingerprints and its grade.
fn shorten(targets: &mut [TargetProof]) {
    for (reason, endpoints) in [(1000, 50), (300, 12), (150, 4), (80, 1)] {
        for target in &mut *targets {
            if let Some(failure) = &mut target.failure
                && let Some((end, _)) = failure.reason.char_indices().nth(reason)
            {
                failure.reason.truncate(end);
            }
            target.endpoints.truncate(endpoints);
            target.reloads.truncate(endpoints);
        }
        if targets.iter().map(Message::encoded_len).sum::<usize>() <= MOST_BYTES {
            return;
        }
    }
}

/// The result as this identity vouches for it: the same payload, signed anew
/// when another identity had signed it. `None` when it is of another host.
pub fn vouched(result: BatchResult, identity: &Identity) -> Result<Option<BatchResult>, KeyError> {
    let ours = EvidencePayload::decode(result.payload.as_slice())
        .is_ok_and(|payload| payload.fleet == identity.fleet && payload.host == identity.host);
    if !ours {
        return Ok(None);
    }
    if result.identity == identity.chain[0].as_ref() {
        return Ok(Some(result));
    }
    let signature = identity.key.sign_bytes(&result.payload)?;
    Ok(Some(BatchResult { signature, identity: identity.chain[0].to_vec(), ..result }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{Slot, tests::enrolled};
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
    use reseal_proto::v1::{EndpointProof, Failure, Order};

    #[test]
    fn a_result_that_waited_is_signed_by_the_present_identity() {
        let (before, now) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let identity = |dir: &tempfile::TempDir| enrolled(dir.path()).load(Slot::Current).unwrap().unwrap();
        let (former, present) = (identity(&before), identity(&now));
        let order = Some(Order { batch: "r1.0".into(), ..Order::default() });
        let batch = Batch { order, started_at: 5, entries: Vec::new(), fleet: String::new() };
        let waited = sign(&batch, 9, &former).unwrap();
        assert_eq!(vouched(waited.clone(), &former).unwrap(), Some(waited.clone()), "not signed twice");
        let anew = vouched(waited.clone(), &present).unwrap().unwrap();
        assert_eq!((&anew.payload, &anew.batch), (&waited.payload, &waited.batch));
        assert_eq!(anew.identity, present.chain[0].as_ref());
        let leaf = reseal_proto::facts::parse(&anew.identity).unwrap();
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &leaf.public_key().subject_public_key.data)
            .verify(&anew.payload, &anew.signature)
            .unwrap();
        // Of the time when this machine was another host: nobody would take it.
        let mut foreign = present;
        foreign.host = "h2".into();
        assert_eq!(vouched(waited, &foreign).unwrap(), None);
    }

    #[test]
    fn what_is_said_of_fifty_targets_is_bounded() {
        let long = TargetProof {
            failure: Some(Failure { reason: "\u{e9}".repeat(4000), ..Failure::default() }),
            endpoints: vec![EndpointProof { address: "10.0.0.1:443".into(), ..Default::default() }; 60],
            after: vec![7; 32],
            ..TargetProof::default()
        };
        let mut one = [long.clone()];
        shorten(&mut one);
        assert_eq!(one[0].endpoints.len(), 50, "a single one says a lot");
        assert_eq!(one[0].failure.as_ref().unwrap().reason.chars().count(), 1000);
        let mut many = vec![long; 50];
        shorten(&mut many);
        assert!(many.iter().map(Message::encoded_len).sum::<usize>() <= MOST_BYTES);
        assert!(many.iter().all(|one| one.after == [7; 32] && !one.endpoints.is_empty()));
    }
}
