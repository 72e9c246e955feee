//! What a host says when it has been taken over: forged proofs, foreign batches,
//! foreign names, inventories of nothing.
//!
//! It holds its own identity, so everything is signed as it should be.

use prost::Message as _;
use reseal_agent::key::{KeyType, PrivateKey};
use reseal_proto::v1::agent_message::Body;
use reseal_proto::v1::{
    BatchResult, CsrBatch, EndpointProof, EvidencePayload, Grade, InventoryDelta, Management, TargetProof,
    TargetState, Usage,
};

use super::host::Host;
use super::runner::pkcs8;
use super::world::World;

/// Changes a result before it is sent.
pub(super) fn about_result(world: &World, host: &Host, result: &mut BatchResult) {
    let Ok(mut payload) = EvidencePayload::decode(&result.payload[..]) else { return };
    match world.random.below(8) {
        0 => {
            // Something it was never given.
            let forged = world.random.bytes().to_vec();
            for proof in &mut payload.targets {
                verified(proof, forged.clone());
            }
        }
        1 => {
            // What was there before, as if it were new.
            for proof in &mut payload.targets {
                let before = proof.before.clone();
                verified(proof, before);
            }
        }
        2 => {
            let other = world.random.pick(&world.hosts).clone();
            let foreign = other.disk().journal.keys().next().cloned();
            if let Some(foreign) = foreign {
                payload.batch.clone_from(&foreign);
                result.batch = foreign;
            }
        }
        3 => drop(payload.targets.pop()),
        4 => payload.targets.extend(payload.targets.clone().pop()),
        5 => payload.host = "h0".into(),
        _ => return,
    }
    world.history.note(&host.name, "lies about a result");
    sign(host, payload, result);
}

fn verified(proof: &mut TargetProof, fingerprint: Vec<u8>) {
    proof.set_state(TargetState::Verified);
    proof.set_grade(Grade::PeerObserved);
    proof.failure = None;
    proof.endpoints =
        vec![EndpointProof { served: fingerprint.clone(), handshakes: 3, ..EndpointProof::default() }];
    proof.after = fingerprint;
}

fn sign(host: &Host, payload: EvidencePayload, result: &mut BatchResult) {
    let Some(identity) = host.disk().identity.clone() else { return };
    let key = PrivateKey::from_pkcs8(KeyType::EcdsaP256, &identity.pkcs8).expect("a P-256 key");
    result.payload = payload.encode_to_vec();
    result.signature = key.sign_bytes(&result.payload).expect("it signs");
}

/// Changes a message of CSRs before it is sent.
pub(super) fn about_csrs(world: &World, host: &Host, message: &mut CsrBatch) {
    let Some(csr) = message.csrs.first_mut() else { return };
    match world.random.below(8) {
        0 => csr.der = request(world, &["s0.h0.sim.test"]),
        1 => csr.der = request(world, &["bank.example"]),
        2 => csr.installation = "/srv/9/site.crt".into(),
        3 => csr.der.truncate(40),
        4 => {
            let twice = csr.clone();
            message.csrs.push(twice);
        }
        _ => return,
    }
    world.history.note(&host.name, "lies about a CSR");
}

fn request(world: &World, names: &[&str]) -> Vec<u8> {
    let key = PrivateKey::from_pkcs8(KeyType::EcdsaP256, &pkcs8(&world.random.bytes())).expect("a P-256 key");
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    key.request(&names, Usage::Server).expect("a request")
}

/// Changes an inventory before it is sent.
pub(super) fn about_inventory(world: &World, delta: &mut InventoryDelta) {
    match world.random.below(8) {
        0 => delta.base_digest = world.random.bytes().to_vec(),
        1 => delta.upserted.clear(),
        2 => {
            for installation in &mut delta.upserted {
                if let Some(facts) = &mut installation.certificate {
                    facts.issuer_spki_sha256 = world.random.bytes().to_vec();
                    facts.not_after = 0;
                }
            }
        }
        // What is declared was only found, and the other way round.
        3 | 4 => {
            for installation in &mut delta.upserted {
                installation.set_management(match installation.management() {
                    Management::Discovered => Management::Adopted,
                    Management::Labels | Management::Configuration | Management::Adopted => {
                        Management::Discovered
                    }
                });
            }
        }
        _ => {}
    }
}

/// Says something that nobody has asked for.
pub(super) fn unasked(world: &World, host: &Host) -> Option<Body> {
    let other = world.random.pick(&world.hosts).clone();
    let (results, batch) = {
        let disk = other.disk();
        let batch = disk.journal.keys().chain(&disk.acknowledged).next().cloned();
        (disk.results.values().cloned().collect::<Vec<_>>(), batch)
    };
    let body = match world.random.below(3) {
        // Another host's result, as it was signed.
        0 => Body::Result(results.first()?.clone()),
        // Another host's batch.
        1 => {
            let mut message = CsrBatch { batch: batch?, ..CsrBatch::default() };
            message.csrs.push(reseal_proto::v1::Csr {
                installation: "/srv/0/site.crt".into(),
                der: request(world, &[&format!("s0.{}.sim.test", host.name)]),
                usage: Usage::Server.into(),
            });
            Body::Csrs(message)
        }
        _ => {
            let payload = EvidencePayload {
                format: 1,
                fleet: super::world::FLEET.into(),
                host: host.name.to_string(),
                batch: batch?,
                targets: vec![TargetProof {
                    installation: "/srv/0/site.crt".into(),
                    state: TargetState::Verified.into(),
                    ..TargetProof::default()
                }],
                ..EvidencePayload::default()
            };
            let identity = host.disk().identity.clone()?.certificate;
            let mut result = BatchResult { batch: payload.batch.clone(), identity, ..BatchResult::default() };
            sign(host, payload, &mut result);
            Body::Result(result)
        }
    };
    world.history.note(&host.name, "says what nobody asked for");
    Some(body)
}
