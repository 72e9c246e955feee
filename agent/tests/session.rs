//! The agent against a coordinator and an engine, whole: enrol, report, renew, fail, resume.

#[path = "session/adopt.rs"]
mod adopt;
#[path = "session/reload.rs"]
mod reload;
mod support;

use std::collections::BTreeSet;

use prost::Message as _;
use reseal_agent::app;
use reseal_agent::identity::{IdentityError, Slot};
use reseal_proto::facts::sha256;
use reseal_proto::v1::{
    BatchResult, CsrBatch, EvidencePayload, Failure, Grade, InventoryDelta, Issued, ResultAck, Stage,
    TargetProof, TargetState, agent_message::Body, coordinator_message,
};
use support::World;
use support::coordinator::Coordinator;
use support::engine::Meanwhile;

async fn csrs(world: &mut World) -> CsrBatch {
    world
        .next("CSRs", |body| match body {
            Body::Csrs(csrs) => Some(csrs),
            _ => None,
        })
        .await
}

async fn inventory(world: &mut World) -> InventoryDelta {
    world
        .next("inventory with an installation", |body| match body {
            Body::Inventory(delta) if !delta.upserted.is_empty() => Some(delta),
            _ => None,
        })
        .await
}

/// The next result, its signature checked; acknowledged when `acknowledge` says so.
async fn result(world: &mut World, acknowledge: bool) -> (BatchResult, EvidencePayload) {
    let result = world
        .next("result", |body| match body {
            Body::Result(result) => Some(result),
            _ => None,
        })
        .await;
    let identity = reseal_proto::facts::parse(&result.identity).unwrap();
    let key = aws_lc_rs::signature::UnparsedPublicKey::new(
        &aws_lc_rs::signature::ECDSA_P256_SHA256_ASN1,
        identity.public_key().subject_public_key.data.as_ref(),
    );
    key.verify(&result.payload, &result.signature).expect("the evidence is signed by the identity key");
    let payload = EvidencePayload::decode(result.payload.as_slice()).unwrap();
    assert_eq!((payload.fleet.as_str(), payload.host.as_str()), ("f", "h1"));
    if acknowledge {
        let ack = ResultAck { batch: result.batch.clone() };
        world.coordinator.send(coordinator_message::Body::ResultAck(ack)).await;
    }
    (result, payload)
}

/// Order, CSR, chain, result: the plain way.
async fn renew(world: &mut World, batch: &str, installation: &str) -> TargetProof {
    world.coordinator.order(batch, "r1", &[installation]).await;
    let asked = csrs(world).await;
    world.coordinator.issue(&asked).await;
    let (_, payload) = result(world, true).await;
    payload.targets.into_iter().next().unwrap()
}

/// An agent with one service that runs and serves a first certificate.
async fn running() -> (World, String, TargetProof) {
    let mut world = World::enrolled().await;
    let mount = world.mount("tls");
    let id = world.engine.create("web", &mount, &[]).await;
    world.start();
    inventory(&mut world).await;
    let first = renew(&mut world, "n1", &id).await;
    assert_eq!(first.state(), TargetState::Unserved);
    world.engine.start_container("web");
    let (_, late) = result(&mut world, true).await;
    (world, id, late.targets.into_iter().next().unwrap())
}

#[tokio::test]
async fn unserved_then_started_then_renewed() {
    let (mut world, id, late) = running().await;
    // The late proof is for the same certificate, now seen in handshakes.
    assert_eq!((late.state(), late.grade()), (TargetState::Verified, Grade::Probe));
    assert!(late.before.is_empty());
    let second = renew(&mut world, "r1.0", &id).await;
    assert_eq!((second.state(), second.grade()), (TargetState::Verified, Grade::Probe));
    assert_eq!(second.before, late.after);
    let endpoint = &second.endpoints[0];
    assert!(endpoint.chain_valid && endpoint.served == second.after && endpoint.handshakes == 9);
    assert_eq!(second.reloads[0].method, "signal HUP");
    let file = std::fs::read(&id).unwrap();
    let chain = reseal_agent::pem::read_certificates(&file).unwrap();
    assert_eq!(sha256(&chain[0]).as_slice(), second.after);
    assert_eq!(chain[1], world.coordinator.intermediate());
    assert_eq!(chain.len(), 2, "the root is not sent");
    // Nothing was done that a filtering proxy would refuse.
    assert_eq!(world.engine.forbidden_calls(), Vec::<String>::new());
}

#[tokio::test]
async fn what_does_not_reload_is_rolled_back() {
    let (mut world, id, first) = running().await;
    world.engine.change("web", |web| web.obeys = false);
    let proof = renew(&mut world, "r1.0", &id).await;
    assert_eq!((proof.state(), proof.grade()), (TargetState::RolledBack, Grade::Probe));
    assert_eq!(proof.after, first.after, "the earlier certificate is back");
    let failure = proof.failure.unwrap();
    assert_eq!((failure.stage(), failure.code.as_str()), (Stage::Verify, "served-differs"));
    let chain = reseal_agent::pem::read_certificates(&std::fs::read(&id).unwrap()).unwrap();
    assert_eq!(sha256(&chain[0]).as_slice(), first.after);
}

#[tokio::test]
async fn a_configuration_that_is_refused_is_never_reloaded() {
    let (mut world, id, _) = running().await;
    world.engine.change("web", |web| web.check = 1);
    let signals = world.engine.calls("/kill");
    let proof = renew(&mut world, "r1.0", &id).await;
    assert_eq!(proof.state(), TargetState::RolledBack);
    let failure = proof.failure.unwrap();
    assert_eq!((failure.stage(), failure.code.as_str()), (Stage::Reload, "check-refused"));
    assert!(failure.reason.contains("what the check says"), "{}", failure.reason);
    assert_eq!(world.engine.calls("/kill"), signals);
}

#[tokio::test]
async fn refused_unknown_and_oversized_orders_end_as_failed() {
    let (mut world, id, first) = running().await;
    world.coordinator.order("r1.0", "r1", &[&id]).await;
    let asked = csrs(&mut world).await;
    let refusal = Failure { reason: "no policy admits it".into(), ..Failure::default() };
    let issued = Issued { installation: id.clone(), refusal: Some(refusal), ..Issued::default() };
    let mut chains = world.coordinator.chains(&asked);
    chains.issued = vec![issued];
    world.coordinator.send(coordinator_message::Body::Chains(chains)).await;
    let (_, payload) = result(&mut world, true).await;
    let failure = payload.targets[0].failure.clone().unwrap();
    assert_eq!(payload.targets[0].state(), TargetState::Failed);
    assert_eq!((failure.stage(), failure.reason.as_str()), (Stage::Issue, "no policy admits it"));

    world.coordinator.order("r1.1", "r1", &["/etc/shadow"]).await;
    let (_, payload) = result(&mut world, true).await;
    assert_eq!(payload.targets[0].failure.clone().unwrap().code, "unknown-installation");

    let many: Vec<String> = (0..51).map(|n| format!("/x/{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    world.coordinator.order("r1.2", "r1", &many).await;
    let (_, payload) = result(&mut world, true).await;
    assert!(payload.targets.iter().all(|target| target.failure.as_ref().unwrap().code == "order-refused"));

    world.coordinator.order("r1.3", "r1", &[&id, &id]).await;
    let (_, payload) = result(&mut world, true).await;
    assert_eq!(payload.targets[0].failure.clone().unwrap().code, "order-refused");
    let chain = reseal_agent::pem::read_certificates(&std::fs::read(&id).unwrap()).unwrap();
    assert_eq!(sha256(&chain[0]).as_slice(), first.after, "nothing has changed");
}

#[tokio::test]
async fn a_certificate_for_another_key_or_root_is_not_installed() {
    let (mut world, id, first) = running().await;
    let stranger = Coordinator::start().await;
    world.coordinator.order("r1.0", "r1", &[&id]).await;
    let asked = csrs(&mut world).await;
    let foreign = stranger.chains(&asked);
    world.coordinator.send(coordinator_message::Body::Chains(foreign)).await;
    let (_, payload) = result(&mut world, true).await;
    let failure = payload.targets[0].failure.clone().unwrap();
    assert_eq!((failure.stage(), failure.code.as_str()), (Stage::Validate, "chain-invalid"));

    world.coordinator.order("r1.1", "r1", &[&id]).await;
    let next = csrs(&mut world).await;
    // A late answer to the batch before is for another key, and no answer.
    let mut late = world.coordinator.chains(&asked);
    late.batch.clone_from(&next.batch);
    world.coordinator.send(coordinator_message::Body::Chains(late)).await;
    world.coordinator.issue(&next).await;
    let (_, payload) = result(&mut world, true).await;
    assert_eq!(payload.targets[0].state(), TargetState::Verified);
    assert_eq!(payload.targets[0].before, first.after);
}

#[tokio::test]
async fn the_session_may_break_at_any_time() {
    let (mut world, id, _) = running().await;
    world.coordinator.order("r1.0", "r1", &[&id]).await;
    let asked = csrs(&mut world).await;
    world.coordinator.hang_up();
    // After the reconnect the same request comes again: same key, same batch.
    let again = csrs(&mut world).await;
    assert_eq!(again.csrs, asked.csrs);
    world.coordinator.issue(&again).await;
    let (first, _) = result(&mut world, false).await;
    // The answer got lost: the result comes again, bit for bit.
    world.coordinator.hang_up();
    let (second, payload) = result(&mut world, false).await;
    assert_eq!((&second.payload, &second.signature), (&first.payload, &first.signature));
    assert_eq!(payload.targets[0].state(), TargetState::Verified);
    // The order comes again: answered with the result, nothing is done twice.
    world.coordinator.order("r1.0", "r1", &[&id]).await;
    let (third, _) = result(&mut world, true).await;
    assert_eq!(third.payload, first.payload);
}

#[tokio::test]
async fn a_killed_agent_goes_on_with_the_same_key() {
    let (mut world, id, _) = running().await;
    world.coordinator.order("r1.0", "r1", &[&id]).await;
    let asked = csrs(&mut world).await;
    world.kill();
    world.start();
    let again = csrs(&mut world).await;
    let key = |csrs: &CsrBatch| {
        use x509_parser::prelude::FromDer as _;
        let (_, csr) = x509_parser::prelude::X509CertificationRequest::from_der(&csrs.csrs[0].der).unwrap();
        sha256(csr.certification_request_info.subject_pki.raw)
    };
    assert_eq!(key(&again), key(&asked));
    world.coordinator.issue(&again).await;
    let (_, payload) = result(&mut world, true).await;
    assert_eq!(payload.targets[0].state(), TargetState::Verified);
}

#[tokio::test]
async fn the_canary_goes_first_and_alone() {
    let (mut world, id, _) = running().await;
    let mut ids = vec![id];
    for name in ["two", "three"] {
        let mount = world.mount(name);
        ids.push(world.engine.create(name, &mount, &[]).await);
        inventory(&mut world).await;
    }
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    world.coordinator.order("r1.0", "r1", &ids).await;
    let asked = csrs(&mut world).await;
    let asked_for: BTreeSet<&str> = asked.csrs.iter().map(|csr| csr.installation.as_str()).collect();
    assert_eq!(asked_for, ids.iter().copied().collect(), "one message for the whole host");
    world.coordinator.issue(&asked).await;
    let (_, payload) = result(&mut world, true).await;
    assert_eq!(payload.targets.len(), 3);
    assert_eq!(payload.targets[0].state(), TargetState::Verified, "{payload:?}");

    // A canary that breaks after the switch ends the batch on this host.
    world.engine.change("web", |web| web.obeys = false);
    world.coordinator.order("r1.1", "r1", &ids).await;
    let asked = csrs(&mut world).await;
    world.coordinator.issue(&asked).await;
    let (_, payload) = result(&mut world, true).await;
    let states: Vec<_> = payload.targets.iter().map(TargetProof::state).collect();
    assert_eq!(states, [TargetState::RolledBack, TargetState::Failed, TargetState::Failed]);
    assert_eq!(payload.targets[2].failure.clone().unwrap().code, "canary-failed");
}

#[tokio::test]
async fn an_older_epoch_is_refused() {
    let (mut world, id, _) = running().await;
    world.coordinator.set_epoch(support::coordinator::EPOCH - 1);
    world.coordinator.order("r1.0", "r1", &[&id]).await;
    // Of the right epoch: it is answered, the one before never is.
    world.coordinator.set_epoch(support::coordinator::EPOCH);
    world.coordinator.order("r1.1", "r1", &["/unknown"]).await;
    let (answered, _) = result(&mut world, true).await;
    assert_eq!(answered.batch, "r1.1");
    // A coordinator that was restored from an old copy gets no session.
    world.coordinator.set_epoch(support::coordinator::EPOCH - 1);
    world.coordinator.hang_up();
    world.next("a refused session", |body| matches!(body, Body::Hello(_)).then_some(())).await;
    world.coordinator.set_epoch(support::coordinator::EPOCH + 1);
    world.next("the next session", |body| matches!(body, Body::Hello(_)).then_some(())).await;
}

#[tokio::test]
async fn bundles_are_delivered() {
    let mut world = World::enrolled().await;
    let mount = world.mount("tls");
    let labels = [("reseal.trust.ca.bundle", "managed-root"), ("reseal.trust.ca.path", "/tls/ca.pem")];
    world.engine.create("web", &mount, &labels).await;
    world.start();
    let delta = inventory(&mut world).await;
    assert_eq!(delta.trust_stores[0].path, mount.join("ca.pem").to_str().unwrap());
    let deadline = std::time::Instant::now() + support::LONG;
    let written = loop {
        if let Ok(text) = std::fs::read(mount.join("ca.pem")) {
            break text;
        }
        assert!(std::time::Instant::now() < deadline, "no bundle was written");
        tokio::task::yield_now().await;
    };
    assert_eq!(reseal_agent::pem::read_certificates(&written).unwrap(), [world.coordinator.root()]);
}

#[tokio::test]
async fn enrolment_retries_with_the_same_key_and_refuses_strangers() {
    let world = World::new().await;
    world.coordinator.lose_answers(1);
    let token = world.coordinator.token("h1");
    let lost = world.identities.enrol(&token, app::now()).await;
    assert!(matches!(lost, Err(IdentityError::Refused(_))), "{lost:?}");
    world.identities.enrol(&token, app::now()).await.unwrap();
    let keys = world.coordinator.enrolments();
    assert_eq!(keys.len(), 2);
    assert_eq!(keys[0], keys[1], "a token is bound to its first key");
    // The coordinator only ever answers for h1 here.
    let other = World::new().await;
    let wrong = other.identities.enrol(&other.coordinator.token("h2"), app::now()).await;
    assert!(matches!(wrong, Err(IdentityError::Reply(_))), "{wrong:?}");
    // Nor to one whose certificate has expired, whatever the pin says.
    let expired = World::with(Coordinator::with_expired_certificate().await).await;
    let refused = expired.identities.enrol(&expired.coordinator.token("h1"), app::now()).await;
    assert!(matches!(refused, Err(IdentityError::Connect { .. })), "{refused:?}");
    // A coordinator with another CA than the token pins is not spoken to.
    let stranger = World::new().await;
    let mut pinned = reseal_proto::token::decode(&other.coordinator.token("h1")).unwrap();
    pinned.coordinators = vec![stranger.coordinator.address.clone()];
    let refused = other.identities.enrol(&reseal_proto::token::encode(&pinned), app::now()).await;
    assert!(matches!(refused, Err(IdentityError::Connect { .. })), "{refused:?}");
    assert!(stranger.coordinator.enrolments().is_empty());
    // Somebody else's token does not take an enrolled host over.
    let foreign = world.identities.enrol(&world.coordinator.token("h9"), app::now()).await;
    assert!(matches!(foreign, Err(IdentityError::Enrolled { .. })), "{foreign:?}");
}

#[tokio::test]
async fn the_identity_is_renewed_and_taken_into_use() {
    let mut world = World::new().await;
    world.coordinator.set_lifetime(3);
    let token = world.coordinator.token("h1");
    let first = world.identities.enrol(&token, app::now()).await.unwrap().not_after;
    world.coordinator.set_lifetime(86_400);
    world.start();
    let hello = |body| matches!(body, Body::Hello(_)).then_some(());
    world.next("the first session", hello).await;
    world.next("the session with the new identity", hello).await;
    assert_eq!(world.coordinator.renewals(), 1);
    assert_eq!(world.coordinator.identities_seen(), 2);
    let deadline = std::time::Instant::now() + support::LONG;
    while world.identities.load(Slot::Next).unwrap().is_some() {
        assert!(std::time::Instant::now() < deadline, "the new identity was not taken into use");
        tokio::task::yield_now().await;
    }
    let current = world.identities.load(Slot::Current).unwrap().unwrap();
    assert!(current.not_after > first);
}

/// Sends the host away for longer than its identity lives.
async fn off_for_a_month(world: &mut World) {
    world.kill();
    world.coordinator.set_age(30 * 86_400);
    world.identities.enrol(&world.coordinator.token("h1"), app::now()).await.unwrap();
    world.coordinator.set_age(0);
    assert!(matches!(world.identities.usable(app::now()), Err(IdentityError::Expired { .. })));
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + support::LONG;
    while !done() {
        assert!(std::time::Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_month_away_costs_an_invitation_and_nothing_else() {
    let (mut world, id, _) = running().await;
    world.coordinator.order("r1.0", "r1", &[&id]).await;
    let asked = csrs(&mut world).await;
    world.coordinator.issue(&asked).await;
    let (waiting, payload) = result(&mut world, false).await;
    let pair = std::fs::read(&id).unwrap();
    off_for_a_month(&mut world).await;
    world.start();
    until("a refused session", || world.coordinator.refused() > 0).await;
    // The way back, while the agent runs: nothing has to be started again.
    let token = world.coordinator.token("h1");
    let present = world.identities.enrol(&token, app::now()).await.unwrap();
    // What waited comes with the same words, and somebody who can be believed now.
    let (again, same) = result(&mut world, true).await;
    assert_eq!((&again.payload, same), (&waiting.payload, payload));
    assert_ne!(again.identity, waiting.identity);
    assert_eq!(again.identity, present.chain[0].as_ref());
    assert_eq!(std::fs::read(&id).unwrap(), pair, "nothing was lost or replaced");
    // What came due meanwhile is renewed as ever.
    let proof = renew(&mut world, "n2", &id).await;
    assert_eq!((proof.state(), &proof.before), (TargetState::Verified, &same_after(&again)));
}

fn same_after(result: &BatchResult) -> Vec<u8> {
    EvidencePayload::decode(result.payload.as_slice()).unwrap().targets[0].after.clone()
}

#[tokio::test]
async fn an_identity_ends_its_session_and_is_asked_for_no_more_than_once_a_minute() {
    let mut world = World::new().await;
    world.coordinator.set_lifetime(3);
    world.coordinator.refuse_renewals();
    world.identities.enrol(&world.coordinator.token("h1"), app::now()).await.unwrap();
    world.start();
    world.next("a session", |body| matches!(body, Body::Hello(_)).then_some(())).await;
    // Nobody speaks, and yet it does not go on with an identity that has ended.
    until("an attempt with an expired identity", || world.coordinator.refused() > 0).await;

    // Due from the first moment, and again as soon as it is renewed.
    let mut world = World::new().await;
    world.coordinator.set_age(23 * 3600);
    world.identities.enrol(&world.coordinator.token("h1"), app::now()).await.unwrap();
    let id = world.engine.create("web", &world.mount("tls"), &[]).await;
    world.start();
    until("a renewed identity", || world.coordinator.identities_seen() == 2).await;
    inventory(&mut world).await;
    assert_eq!(renew(&mut world, "n1", &id).await.state(), TargetState::Unserved);
    assert_eq!(world.coordinator.renewals(), 1);
}

#[tokio::test]
async fn a_wrong_clock_decides_nothing_and_proves_nothing() {
    let mut world = World::new().await;
    // This host's clock is 20 hours ahead: by itself it would renew for ever.
    world.coordinator.set_ahead(-20 * 3600);
    world.identities.enrol(&world.coordinator.token("h1"), app::now()).await.unwrap();
    let id = world.engine.create("web", &world.mount("tls"), &[]).await;
    world.start();
    let skewed = |body| match body {
        Body::Inventory(delta) => delta.findings.into_iter().find(|found| found.id == "clock-skew"),
        _ => None,
    };
    let found = world.next("a finding about the clock", skewed).await;
    assert!(found.message.contains("ahead of the coordinator's"), "{found:?}");
    assert_eq!(renew(&mut world, "n1", &id).await.state(), TargetState::Unserved);
    world.engine.start_container("web");
    let proof = renew(&mut world, "r1.0", &id).await;
    let failure = proof.failure.clone().unwrap();
    assert_eq!((proof.state(), failure.code.as_str()), (TargetState::Unserved, "clock-skew"));
    let chain = reseal_agent::pem::read_certificates(&std::fs::read(&id).unwrap()).unwrap();
    assert_eq!(sha256(&chain[0]).as_slice(), proof.after, "installed all the same");
    assert_eq!(world.coordinator.renewals(), 0);
    // Somebody sets the clock: the proof is completed by itself.
    world.coordinator.set_ahead(0);
    world.coordinator.hang_up();
    let (late, payload) = result(&mut world, true).await;
    assert_eq!(late.batch, "r1.0");
    assert_eq!((payload.targets[0].state(), &payload.targets[0].failure), (TargetState::Verified, &None));
    assert_eq!(payload.targets[0].after, proof.after);
}

#[tokio::test]
async fn after_a_crash_nothing_is_judged_before_the_time_is_known() {
    let (mut world, id, first) = running().await;
    // This host is slow, if not by too much: what is made now is not good yet by its own clock.
    world.coordinator.set_ahead(200);
    world.coordinator.hang_up();
    world.next("a new session", |body| matches!(body, Body::Hello(_)).then_some(())).await;
    world.engine.change("web", |web| web.obeys = false);
    world.coordinator.order("r1.0", "r1", &[&id]).await;
    let asked = csrs(&mut world).await;
    world.coordinator.issue(&asked).await;
    let installed = || {
        let chain = reseal_agent::pem::read_certificates(&std::fs::read(&id).unwrap()).unwrap();
        sha256(&chain[0]).to_vec()
    };
    until("the switch", || installed() != first.after).await;
    world.kill();
    // A coordinator from the past gets no session, and does not say what time it is.
    world.coordinator.set_epoch(support::coordinator::EPOCH - 1);
    world.engine.change("web", |web| web.obeys = true);
    world.start();
    let stored = world.config.state_dir.join("results/r1.0.pb");
    until("the result", || stored.exists()).await;
    let kept = BatchResult::decode(std::fs::read(&stored).unwrap().as_slice()).unwrap();
    let kept = EvidencePayload::decode(kept.payload.as_slice()).unwrap().targets.remove(0);
    let failure = kept.failure.clone().expect("it says what it waits for");
    assert_eq!((kept.state(), failure.code.as_str()), (TargetState::Unserved, "clock-unknown"), "{kept:?}");
    assert_eq!((&kept.after, kept.endpoints[0].chain_valid), (&installed(), false));
    // The time is known: the proof is completed.
    world.coordinator.set_epoch(support::coordinator::EPOCH);
    let late = loop {
        let (_, mut payload) = result(&mut world, true).await;
        let target = payload.targets.remove(0);
        if target.state() != TargetState::Unserved {
            break target;
        }
    };
    assert_eq!((late.state(), late.failure), (TargetState::Verified, None));
    assert_eq!((late.after, late.endpoints[0].chain_valid), (installed(), true));
}

#[tokio::test]
async fn a_late_proof_stays_until_it_is_acknowledged_itself() {
    let mut world = World::enrolled().await;
    let id = world.engine.create("web", &world.mount("tls"), &[]).await;
    world.start();
    inventory(&mut world).await;
    world.coordinator.order("n1", "r1", &[&id]).await;
    let asked = csrs(&mut world).await;
    world.coordinator.issue(&asked).await;
    let (first, _) = result(&mut world, false).await;
    world.coordinator.order("n1", "r1", &[&id]).await;
    assert_eq!(result(&mut world, false).await.0.payload, first.payload, "ordered again, told again");
    world.engine.start_container("web");
    let (late, _) = result(&mut world, false).await;
    assert_ne!(late.payload, first.payload);
    // Two acknowledgements of what went first; then an order, to see that they were read.
    for _ in 0..2 {
        let ack = ResultAck { batch: "n1".into() };
        world.coordinator.send(coordinator_message::Body::ResultAck(ack)).await;
    }
    world.coordinator.order("n1", "r1", &[&id]).await;
    assert_eq!(result(&mut world, true).await.0.payload, late.payload, "it is still there");
}

#[tokio::test]
async fn an_order_that_waits_is_not_taken_twice() {
    let (mut world, id, _) = running().await;
    world.coordinator.order("r1.0", "r1", &[&id]).await;
    let first = csrs(&mut world).await;
    // While one is worked on the session breaks, and all is ordered again, and again.
    world.coordinator.hang_up();
    assert_eq!(csrs(&mut world).await.csrs, first.csrs);
    for _ in 0..200 {
        for batch in ["r1.0", "r2.0", "r3.0"] {
            world.coordinator.order(batch, "r", &[&id]).await;
        }
    }
    world.coordinator.issue(&first).await;
    let mut sessions = 0;
    for expected in ["r1.0", "r2.0", "r3.0"] {
        if expected != "r1.0" {
            let asked = csrs(&mut world).await;
            world.coordinator.issue(&asked).await;
        }
        let done = world
            .next("result", |body| match body {
                Body::Hello(_) => {
                    sessions += 1;
                    None
                }
                Body::Result(result) => Some(result.batch),
                _ => None,
            })
            .await;
        assert_eq!((done.as_str(), sessions), (expected, 0), "six hundred orders are not too many");
        world.coordinator.send(coordinator_message::Body::ResultAck(ResultAck { batch: done })).await;
    }
    // Nothing is left of the repetitions: what comes next is what is ordered next.
    world.coordinator.order("r4.0", "r", &[&id]).await;
    assert_eq!(csrs(&mut world).await.batch, "r4.0");
}

#[tokio::test]
async fn a_full_queue_says_so_and_asks_again_when_there_is_room() {
    let (mut world, id, _) = running().await;
    world.coordinator.order("first", "r", &[&id]).await;
    let asked = csrs(&mut world).await;
    for n in 0..300 {
        world.coordinator.order(&format!("b{n}"), "r", &["/unknown"]).await;
    }
    let full = |body| match body {
        Body::Inventory(delta) => delta.findings.into_iter().find(|found| found.id == "too-many-orders"),
        _ => None,
    };
    let found = world.next("a finding about the orders", full).await;
    assert!(found.message.contains("256 orders wait"), "{found:?}");
    world.coordinator.issue(&asked).await;
    world.next("a new session", |body| matches!(body, Body::Hello(_)).then_some(())).await;
}

#[tokio::test]
async fn a_container_that_is_stopped_before_its_reload_is_unserved() {
    let mut world = World::enrolled().await;
    let id = world.engine.create("web", &world.mount("tls"), &[]).await;
    world.engine.change("web", |web| {
        web.running = true;
        web.meanwhile = Meanwhile::Stopped;
    });
    world.start();
    inventory(&mut world).await;
    let proof = renew(&mut world, "n1", &id).await;
    assert_eq!((proof.state(), proof.grade()), (TargetState::Unserved, Grade::FileOnly), "{proof:?}");
    world.engine.start_container("web");
    let (_, late) = result(&mut world, true).await;
    assert_eq!(late.targets[0].state(), TargetState::Verified);
}

#[tokio::test]
async fn a_container_that_is_made_anew_in_the_middle_is_found_by_its_mount() {
    let (mut world, id, first) = running().await;
    world.engine.change("web", |web| web.meanwhile = Meanwhile::Recreated);
    let proof = renew(&mut world, "r1.0", &id).await;
    assert_eq!((proof.state(), proof.grade()), (TargetState::Verified, Grade::Probe), "{proof:?}");
    assert_ne!(proof.after, first.after);
    assert_eq!(proof.reloads.last().unwrap().container, "web-2");
}
