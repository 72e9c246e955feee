//! Orders that meet: two rotations over one target, a renewal that falls due in a rotation, a
//! policy changed, an authority tainted, a host banned in the middle. What is decided last
//! counts for what follows, nothing is done twice, and nothing waits for ever.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use reseal_proto::v1::agent_message::Body as ToCoordinator;
use reseal_proto::v1::{
    AuthorityRequest, BanHostRequest, ControlRotationRequest, CsrBatch, Issued, Order, PlanRequest, Policy,
    RemovePolicyRequest, RotateRequest, Rotation, RotationAction, RotationState, TaintAuthorityRequest,
    TargetState, Usage,
};
use reseal_tests::invariants::{Ledger, nothing_stuck};
use reseal_tests::wire::ask::{from_a, in_state, of_hosts, one_host, runtime, settings, show, until};
use reseal_tests::wire::{Coordinator, Operator, Puppet, Session, an_order, chains, now};
use tonic::Code;

fn policy(lifetime_seconds: u64) -> Policy {
    Policy {
        name: "wire".into(),
        names: vec!["**.wire.test".into()],
        key_types: vec!["ecdsa-p256".into()],
        usages: vec![Usage::Server.into()],
        lifetime_seconds,
        ..Policy::default()
    }
}

async fn control(operator: &mut Operator, id: &str, action: RotationAction) -> Result<()> {
    let request = ControlRotationRequest {
        id: id.into(),
        action: action.into(),
        reason: "scenario".into(),
        ..ControlRotationRequest::default()
    };
    operator.control_rotation(request).await?;
    Ok(())
}

/// Asks for everything in the order; installs nothing.
async fn ask(puppet: &Puppet, session: &mut Session, order: &Order) -> Result<Vec<Issued>> {
    let csrs = puppet.request(order)?;
    session
        .send(ToCoordinator::Csrs(CsrBatch { batch: order.batch.clone(), csrs, ..CsrBatch::default() }))
        .await?;
    Ok(session.next_that(chains).await?.issued)
}

fn all_refused(issued: &[Issued]) -> Result<String> {
    let reasons: Vec<String> =
        issued.iter().filter_map(|one| one.refusal.as_ref()).map(|refusal| refusal.reason.clone()).collect();
    ensure!(!issued.is_empty() && reasons.len() == issued.len(), "a certificate was given out: {issued:?}");
    Ok(reasons.join("; "))
}

#[test]
fn of_rotations_that_race_for_a_target_one_is_ordered() -> Result<()> {
    runtime().block_on(async {
        let coordinator = Coordinator::start(settings()?).await?;
        let (operator, mut puppet, mut session) = one_host(&coordinator, 2).await?;
        let race: Vec<_> = (0..8_u8)
            .map(|key| {
                let mut operator = operator.clone();
                let request = RotateRequest { idempotency_key: vec![key; 16], ..from_a("100%") };
                tokio::spawn(async move { operator.rotate(request).await })
            })
            .collect();
        let mut won = Vec::new();
        let mut lost = Vec::new();
        for task in race {
            match task.await? {
                Ok(reply) => won.push(reply.into_inner().id),
                Err(status) => lost.push(status),
            }
        }
        ensure!(won.len() == 1, "{won:?} were ordered over the same targets");
        for status in &lost {
            let named = status.message().contains(&won[0]);
            ensure!(status.code() == Code::FailedPrecondition && named, "{status}");
        }
        let order = puppet.serve(&mut session).await?;
        ensure!(order.rotation == won[0], "{order:?}");
        in_state(&operator, &won[0], RotationState::Completed).await?;
        nothing_stuck(&|words: &[&str]| coordinator.json(words))
    })
}

/// The first certificates of a host are under way when it is rotated: both are done, in order.
#[test]
fn a_rotation_over_a_renewal_that_is_under_way() -> Result<()> {
    runtime().block_on(async {
        let coordinator = Coordinator::start(settings()?).await?;
        let mut operator = coordinator.operator().await?;
        let mut puppet = Puppet::enrol(&coordinator, "h1", 2).await?;
        let mut session = puppet.connect().await?;
        let planned = session.next_that(an_order).await?;
        ensure!(planned.rotation.is_empty(), "{planned:?}");
        let id = operator.rotate(of_hosts("h1", "100%", 1)).await?.into_inner().id;
        let rotation = session.next_that(an_order).await?;
        ensure!(rotation.rotation == id, "{rotation:?}");
        for order in [&planned, &rotation] {
            puppet.obtain(&mut session, order).await?;
            puppet.report(&mut session, order, TargetState::Verified).await?;
        }
        in_state(&operator, &id, RotationState::Completed).await?;
        nothing_stuck(&|words: &[&str]| coordinator.json(words))
    })
}

#[test]
fn a_policy_that_changes_in_the_middle_counts_for_the_next_request() -> Result<()> {
    runtime().block_on(async {
        let coordinator = Coordinator::start(settings()?).await?;
        let (mut operator, mut puppet, mut session) = one_host(&coordinator, 2).await?;
        let id = operator.rotate(from_a("100%")).await?.into_inner().id;
        let order = session.next_that(an_order).await?;
        operator.remove_policy(RemovePolicyRequest { name: "wire".into() }).await?;
        let why = all_refused(&ask(&puppet, &mut session, &order).await?)?;
        ensure!(why.contains("s0.h1.wire.test"), "{why}");
        puppet.report(&mut session, &order, TargetState::Failed).await?;
        let halted = in_state(&operator, &id, RotationState::Halted).await?;
        ensure!(halted.failures.len() == 2, "{halted:?}");

        operator.set_policy(policy(86_400)).await?;
        control(&mut operator, &id, RotationAction::Retry).await?;
        puppet.serve(&mut session).await?;
        in_state(&operator, &id, RotationState::Completed).await?;
        let facts = puppet.held[0].2.clone().context("issued")?;
        let lifetime = facts.not_after - now();
        ensure!((86_000..=86_400).contains(&lifetime), "{lifetime} s are left, not the new policy's day");
        nothing_stuck(&|words: &[&str]| coordinator.json(words))
    })
}

#[test]
fn nothing_is_issued_by_an_authority_that_is_tainted_in_the_middle() -> Result<()> {
    runtime().block_on(async {
        let coordinator = Coordinator::start(settings()?).await?;
        let (mut operator, mut puppet, mut session) = one_host(&coordinator, 2).await?;
        // From a to a: nobody knows yet.
        let id = operator.rotate(of_hosts("h1", "100%", 1)).await?.into_inner().id;
        let order = session.next_that(an_order).await?;
        let taint = TaintAuthorityRequest { name: "a".into(), reason: "stolen".into() };
        operator.taint_authority(taint).await?;
        all_refused(&ask(&puppet, &mut session, &order).await?)?;
        puppet.report(&mut session, &order, TargetState::Failed).await?;
        in_state(&operator, &id, RotationState::Halted).await?;
        // The way out: this rotation ends, another authority takes over.
        let b = AuthorityRequest { name: "b".into() };
        let refusal = operator.activate_authority(b.clone()).await.err().context("under its feet")?;
        ensure!(refusal.message().contains(&id), "{refusal}");
        control(&mut operator, &id, RotationAction::Abort).await?;
        operator.activate_authority(b).await?;
        let away = RotateRequest { idempotency_key: vec![2; 16], ..from_a("100%") };
        let id = operator.rotate(away).await?.into_inner().id;
        puppet.serve(&mut session).await?;
        in_state(&operator, &id, RotationState::Completed).await?;
        for (_, name, facts) in &puppet.held {
            let issuer = facts.clone().map(|facts| facts.issuer).unwrap_or_default();
            ensure!(issuer.contains("issuing b"), "{name} is from {issuer}");
        }
        let request = PlanRequest { selection: from_a("").selection, ..PlanRequest::default() };
        let left = operator.plan(request).await?.into_inner();
        ensure!(left.targets == 0, "{left:?}");
        nothing_stuck(&|words: &[&str]| coordinator.json(words))
    })
}

#[test]
fn a_renewal_due_and_a_ban_in_the_middle_of_a_rotation() -> Result<()> {
    runtime().block_on(async {
        let coordinator = Coordinator::start(settings()?).await?;
        let mut ledger = Ledger::default();
        let mut operator = coordinator.operator().await?;
        // A minute, so that the renewal falls due while the rotation is held up.
        operator.set_policy(policy(60)).await?;
        let (mut one, mut two) =
            (Puppet::enrol(&coordinator, "h1", 1).await?, Puppet::enrol(&coordinator, "h2", 1).await?);
        let (mut first, mut second) = (one.connect().await?, two.connect().await?);
        one.serve(&mut first).await?;
        two.serve(&mut second).await?;
        let id = operator.rotate(from_a("100%")).await?.into_inner().id;
        let order = first.next_that(an_order).await?;
        let theirs = second.next_that(an_order).await?;
        two.obtain(&mut second, &theirs).await?;
        ledger.note(&|words: &[&str]| coordinator.json(words))?;

        // The second host is banned with certificates in its hands.
        let ban = BanHostRequest { name: "h2".into(), reason: "stolen".into() };
        operator.ban_host(ban).await?;
        let result = two.identity.sign(&two.payload(&theirs, TargetState::Verified)?)?;
        let _ = second.send(ToCoordinator::Result(result)).await;
        ensure!(second.next_that(an_order).await.is_err(), "a banned host has a session");
        ensure!(two.connect().await.is_err(), "a banned host came back");

        // The first takes its time: its old certificate falls due, and is not ordered twice.
        let facts = one.held[0].2.clone().context("issued")?;
        let due = facts.not_after - (facts.not_after - facts.not_before) / 3;
        let early = tokio::time::timeout(Duration::from_secs(60), async {
            tokio::select! {
                twice = first.next_that(an_order) => twice.map(Some),
                past = until("the due time", 60, async || Ok((now() > due + 2).then_some(()))) => past.map(|()| None),
            }
        });
        let early = early.await??;
        ensure!(early.is_none(), "ordered while the rotation works on it: {early:?}");
        one.obtain(&mut first, &order).await?;
        one.report(&mut first, &order, TargetState::Verified).await?;

        // What the banned host had is named, not waited for, and not counted as done.
        let trailing = in_state(&operator, &id, RotationState::Trailing).await?;
        ensure!(trailing.stragglers.len() == 1 && trailing.stragglers[0].host == "h2", "{trailing:?}");
        ensure!(verified(&trailing) == 1, "{trailing:?}");
        ledger.note(&|words: &[&str]| coordinator.json(words))?;
        nothing_stuck(&|words: &[&str]| coordinator.json(words))?;
        control(&mut operator, &id, RotationAction::Abort).await?;
        let ended = show(&mut operator, &id).await?;
        ensure!(ended.state() == RotationState::Aborted && verified(&ended) == 1, "{ended:?}");
        Ok(())
    })
}

fn verified(rotation: &Rotation) -> u32 {
    rotation.targets.get(&(TargetState::Verified as u32)).copied().unwrap_or_default()
}
