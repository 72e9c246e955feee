//! The coordinator as agents and operators see it, without containers: agents
//! here are nothing but a client, so that they can misbehave.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use reseal_proto::v1::agent_message::Body as ToCoordinator;
use reseal_proto::v1::{
    BanHostRequest, ControlRotationRequest, Csr, CsrBatch, Hello, HostRequest, Policy, RotateRequest,
    RotationAction, RotationRequest, RotationState, TargetState, Usage,
};
use reseal_tests::product::rotate;
use reseal_tests::wire::ask::{audit, code, from_a, in_state, one_host, runtime, settings, show, until};
use reseal_tests::wire::{
    Collector, Coordinator, Identity, Puppet, Settings, an_ack, an_order, chains, csr, facts_of,
    installation, inventory, now, open_token,
};
use tonic::Code;

#[test]
fn a_bad_token_is_refused_and_audited() -> Result<()> {
    runtime().block_on(async {
        let coordinator = Coordinator::start(settings()?).await?;
        let other = Coordinator::start(Settings { fleet: "other".into(), ..settings()? }).await?;
        let refused = async |token, key: &rcgen::KeyPair| -> Result<()> {
            let error = Identity::enrol_with(token, key, None).await.err().context("it was let in")?;
            ensure!(code(&error) == Some(Code::PermissionDenied), "{error:#}");
            Ok(())
        };
        let (key, thief) = (rcgen::KeyPair::generate()?, rcgen::KeyPair::generate()?);

        let token = open_token(&coordinator.invite("h1", 0).await?)?;
        Identity::enrol_with(token.clone(), &key, None).await?;
        Identity::enrol_with(token.clone(), &key, None).await.context("the same key may try again")?;
        refused(token, &thief).await.context("used")?;

        let mut forged = open_token(&coordinator.invite("h2", 0).await?)?;
        forged.secret.replace_range(0..1, if forged.secret.starts_with('A') { "B" } else { "A" });
        refused(forged, &thief).await.context("forged")?;

        let brief = open_token(&coordinator.invite("h3", 1).await?)?;
        until("the token's end", 5, async || Ok((now() > brief.expires_at).then_some(()))).await?;
        refused(brief, &thief).await.context("expired")?;

        // A token of another fleet: the pin keeps the agent away before it has said anything.
        let mut foreign = open_token(&other.invite("h4", 0).await?)?;
        foreign.coordinators = vec![coordinator.address()];
        let error = Identity::enrol_with(foreign.clone(), &thief, None)
            .await
            .err()
            .context("it trusted another CA")?;
        ensure!(code(&error).is_none(), "it spoke to a coordinator it should not trust: {error:#}");
        // And one whose pin was exchanged too is unknown here.
        foreign.ca_pin = open_token(&coordinator.invite("h5", 0).await?)?.ca_pin;
        refused(foreign, &thief).await.context("foreign")?;

        let entries = audit(&mut coordinator.operator().await?).await?;
        for why in ["used", "forged", "expired", "unknown"] {
            let found = entries.iter().any(|(action, outcome, detail)| {
                action == "host.enrol" && outcome == "refused" && detail.contains(why)
            });
            ensure!(found, "no audit entry about a token that was {why}: {entries:?}");
        }
        Ok(())
    })
}

#[test]
fn of_two_agents_that_race_for_a_token_one_wins() -> Result<()> {
    runtime().block_on(async {
        let coordinator = Coordinator::start(settings()?).await?;
        let token = open_token(&coordinator.invite("h1", 0).await?)?;
        let race = (0..8).map(|_| {
            let token = token.clone();
            tokio::spawn(async move { Identity::enrol_with(token, &rcgen::KeyPair::generate()?, None).await })
        });
        let mut won = 0;
        for task in race.collect::<Vec<_>>() {
            won += usize::from(task.await?.is_ok());
        }
        ensure!(won == 1, "{won} agents got in");
        Ok(())
    })
}

#[test]
fn a_host_gets_what_policy_and_order_give_it_and_nothing_else() -> Result<()> {
    runtime().block_on(async {
        let coordinator = Coordinator::start(settings()?).await?;
        let mut puppet = Puppet::enrol(&coordinator, "h1", 3).await?;
        let mut session = puppet.connect().await?;
        let order = session.next_that(an_order).await?;
        ensure!(order.installations.len() == 3, "{order:?}");
        let mut broken = csr(&order.installations[1], "s1.h1.wire.test")?;
        let last = broken.der.len() - 1;
        broken.der[last] ^= 1;
        let csrs = vec![
            csr(&order.installations[0], "bank.example.com")?,
            broken,
            csr("/srv/elsewhere/site.crt", "x.wire.test")?,
            csr(&order.installations[2], "s2.h1.wire.test")?,
        ];
        session
            .send(ToCoordinator::Csrs(CsrBatch { batch: order.batch.clone(), csrs, ..CsrBatch::default() }))
            .await?;
        let answer = session.next_that(chains).await?;
        let answers = answer.issued;
        let codes: Vec<&str> = answers
            .iter()
            .map(|issued| issued.refusal.as_ref().map_or("", |refusal| refusal.code.as_str()))
            .collect();
        ensure!(codes == ["policy-refused", "bad-csr", "not-ordered", ""], "{codes:?}");
        let why = answers[0].refusal.as_ref().map(|refusal| refusal.reason.clone()).unwrap_or_default();
        ensure!(why.contains("bank.example.com") && why.contains("policy wire"), "{why}");

        // A certificate that was never issued proves nothing.
        puppet.held[2].2 = Some(facts_of(&answers[3], &answer.intermediates)?);
        let mut payload = puppet.payload(&order, TargetState::Verified)?;
        payload.targets[0].after = vec![7; 32];
        session.send(ToCoordinator::Result(puppet.identity.sign(&payload)?)).await?;
        session.next_that(an_ack).await?;

        // Nor does one host speak for another.
        let other = Puppet::enrol(&coordinator, "h2", 1).await?;
        let mut stream = other.connect().await?;
        stream.send(ToCoordinator::Result(puppet.identity.sign(&payload)?)).await?;
        let error = stream.next_that(an_ack).await.err().context("it spoke for another host")?;
        ensure!(code(&error) == Some(Code::InvalidArgument), "{error:#}");
        Ok(())
    })
}

#[test]
fn a_banned_host_is_cut_off_on_its_open_stream() -> Result<()> {
    runtime().block_on(async {
        let coordinator = Coordinator::start(settings()?).await?;
        let puppet = Puppet::enrol(&coordinator, "h1", 0).await?;
        let mut session = puppet.connect().await?;
        let mut operator = coordinator.operator().await?;
        operator.ban_host(BanHostRequest { name: "h1".into(), reason: "stolen".into() }).await?;
        let error = session.next_that(an_order).await.err().context("it went on")?;
        ensure!(code(&error) == Some(Code::PermissionDenied), "{error:#}");
        let error = puppet.connect().await.err().context("it came back")?;
        ensure!(
            code(&error) == Some(Code::PermissionDenied) && format!("{error:#}").contains("stolen"),
            "{error:#}"
        );
        Ok(())
    })
}

#[test]
fn hostile_frames_end_one_stream_only() -> Result<()> {
    runtime().block_on(async {
        let coordinator = Coordinator::start(settings()?).await?;
        let mut good = Puppet::enrol(&coordinator, "good", 1).await?;
        let bad = Puppet::enrol(&coordinator, "bad", 0).await?;
        let mut healthy = good.connect().await?;

        let mut stream = bad.connect().await?;
        let giant = Csr { der: vec![0; 4 << 20], ..Csr::default() };
        stream.send(ToCoordinator::Csrs(CsrBatch { csrs: vec![giant], ..CsrBatch::default() })).await?;
        ensure!(stream.next_that(chains).await.is_err(), "a frame of 4 MiB was taken");

        let mut stream = bad.connect().await?;
        let many = (0..51).map(|at| Csr { installation: at.to_string(), ..Csr::default() }).collect();
        stream
            .send(ToCoordinator::Csrs(CsrBatch { batch: "x".into(), csrs: many, ..CsrBatch::default() }))
            .await?;
        let answer = stream.next_that(chains).await?;
        ensure!(answer.issued.iter().all(|issued| issued.refusal.is_some()), "51 CSRs were taken");

        let mut stream = bad.connect().await?;
        stream.send(ToCoordinator::Hello(Hello::default())).await?;
        ensure!(stream.next_that(an_order).await.is_err(), "two Hellos were taken");

        let mut stream = bad.connect().await?;
        let crowd = (0..2_001).map(|at| installation(&format!("/{at}"), "x.wire.test", None)).collect();
        stream.send(ToCoordinator::Inventory(inventory(crowd))).await?;
        // One too many is left out and named; the others are looked after.
        stream.next_that(an_order).await?;
        let mut operator = coordinator.operator().await?;
        let shown = operator.show_host(HostRequest { name: "bad".into() }).await?.into_inner();
        ensure!(shown.installations.len() == 2_000, "{} were taken", shown.installations.len());
        ensure!(shown.findings.iter().any(|finding| finding.id == "left-out"), "{:?}", shown.findings);

        good.serve(&mut healthy).await.context("the other host was disturbed")?;
        Ok(())
    })
}

#[test]
fn a_failure_halts_the_rotation_and_a_retry_ends_it_well() -> Result<()> {
    runtime().block_on(async {
        let coordinator = Coordinator::start(settings()?).await?;
        let mut operator = coordinator.operator().await?;
        let (mut one, mut two) =
            (Puppet::enrol(&coordinator, "h1", 2).await?, Puppet::enrol(&coordinator, "h2", 2).await?);
        let (mut first, mut second) = (one.connect().await?, two.connect().await?);
        one.serve(&mut first).await?;
        two.serve(&mut second).await?;

        let id = operator.rotate(from_a("1,100%")).await?.into_inner().id;
        ensure!(
            operator.rotate(from_a("1,100%")).await?.into_inner().id == id,
            "the same request made another rotation"
        );
        let again = RotateRequest { idempotency_key: vec![2; 16], ..from_a("1,100%") };
        let refusal = operator.rotate(again).await.err().context("two rotations over the same target")?;
        ensure!(refusal.code() == Code::FailedPrecondition && refusal.message().contains(&id), "{refusal}");

        let order = first.next_that(an_order).await?;
        one.obtain(&mut first, &order).await?;
        let authority = one.held[0].2.as_ref().map(|facts| facts.issuer.clone()).unwrap_or_default();
        ensure!(authority.contains("issuing b"), "issued by {authority} after the taint of a");
        one.report(&mut first, &order, TargetState::RolledBack).await?;
        let halted = in_state(&operator, &id, RotationState::Halted).await?;
        ensure!(
            halted.wave == 1 && halted.failures.len() == 2 && halted.note.contains("retry"),
            "{halted:?}"
        );

        let request = ControlRotationRequest {
            id: id.clone(),
            action: RotationAction::Retry.into(),
            reason: "mended".into(),
            ..ControlRotationRequest::default()
        };
        operator.control_rotation(request).await?;
        one.serve(&mut first).await?;
        two.serve(&mut second).await?;
        let done = in_state(&operator, &id, RotationState::Completed).await?;
        ensure!(done.targets.get(&(TargetState::Verified as u32)) == Some(&4), "{:?}", done.targets);
        ensure!(!done.contained, "nobody proved that a is refused");

        let output = coordinator.reseal(&["rotation", "evidence", &id, "--out", "-"]).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    })
}

#[test]
fn an_absent_host_is_a_straggler_and_catches_up_by_itself() -> Result<()> {
    runtime().block_on(async {
        let coordinator = Coordinator::start(settings()?).await?;
        let mut operator = coordinator.operator().await?;
        let (mut one, mut two) =
            (Puppet::enrol(&coordinator, "h1", 1).await?, Puppet::enrol(&coordinator, "h2", 1).await?);
        let mut first = one.connect().await?;
        one.serve(&mut first).await?;
        let mut second = two.connect().await?;
        two.serve(&mut second).await?;
        drop(second);

        let id = operator.rotate(from_a("1,100%")).await?.into_inner().id;
        one.serve(&mut first).await?;
        let trailing = in_state(&operator, &id, RotationState::Trailing).await?;
        ensure!(trailing.stragglers.len() == 1 && trailing.stragglers[0].host == "h2", "{trailing:?}");

        let mut second = two.connect().await?;
        two.serve(&mut second).await?;
        in_state(&operator, &id, RotationState::Completed).await?;
        Ok(())
    })
}

#[test]
fn what_a_rotation_had_missed_joins_it() -> Result<()> {
    runtime().block_on(async {
        let coordinator = Coordinator::start(settings()?).await?;
        let (mut operator, mut puppet, mut session) = one_host(&coordinator, 2).await?;
        // One certificate of a is on the host, and the coordinator does not know of it.
        let hidden = puppet.held.pop().context("two installations")?;
        session.send(puppet.inventory()?).await?;
        until("the inventory", 10, || {
            let mut operator = operator.clone();
            async move {
                let plan = operator
                    .plan(reseal_proto::v1::PlanRequest {
                        selection: from_a("").selection,
                        ..Default::default()
                    })
                    .await?
                    .into_inner();
                Ok((plan.targets == 1).then_some(()))
            }
        })
        .await?;

        let id = operator.rotate(from_a("100%")).await?.into_inner().id;
        let order = session.next_that(an_order).await?;
        ensure!(order.installations.len() == 1, "{order:?}");
        puppet.held.push(hidden);
        session.send(puppet.inventory()?).await?;
        let late = session.next_that(an_order).await?;
        ensure!(late.rotation == id && late.installations == [puppet.held[1].0.clone()], "{late:?}");
        for order in [order, late] {
            puppet.obtain(&mut session, &order).await?;
            puppet.report(&mut session, &order, TargetState::Verified).await?;
        }
        let done = in_state(&operator, &id, RotationState::Completed).await?;
        ensure!(done.targets.get(&(TargetState::Verified as u32)) == Some(&2), "{:?}", done.targets);
        Ok(())
    })
}

#[test]
fn killed_anywhere_the_coordinator_goes_on_by_itself() -> Result<()> {
    let points = [
        "rotate.after_reveal",
        "issuance.before_intent",
        "issuance.after_intent",
        "issuance.after_sign",
        "issuance.after_commit",
        "results.before_commit",
        "results.after_commit",
        "engine.before_step",
        "engine.after_step",
    ];
    for point in points {
        runtime().block_on(killed_at(point)).with_context(|| format!("killed at {point}"))?;
    }
    Ok(())
}

async fn killed_at(point: &str) -> Result<()> {
    let mut coordinator = Coordinator::start(settings()?).await?;
    let mut puppet = Puppet::enrol(&coordinator, "h1", 3).await?;
    let mut session = puppet.connect().await?;
    puppet.serve(&mut session).await?;
    drop(session);
    coordinator.kill();

    coordinator.run(&[("RESEAL_FAILPOINTS", point)])?;
    let mut operator = coordinator.operator().await?;
    // The answer may be lost with the process.
    let _ = operator.rotate(from_a("100%")).await;
    let victim = tokio::time::timeout(Duration::from_secs(20), async {
        loop {
            if coordinator.has_ended()? {
                return Ok::<_, anyhow::Error>(());
            }
            if let Ok(mut session) = puppet.connect().await {
                let _ = tokio::time::timeout(Duration::from_millis(500), puppet.serve(&mut session)).await;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    victim.await.context("the fail point was never passed")??;

    coordinator.run(&[])?;
    let mut operator = coordinator.operator().await?;
    let id = operator.rotate(from_a("100%")).await?.into_inner().id;
    ensure!(id == "r1", "the repeated request made {id}");
    let watching = operator.clone();
    puppet
        .serve_until(async || {
            let mut operator = watching.clone();
            let shown = operator.show_rotation(RotationRequest { id: "r1".into() }).await;
            Ok(shown.is_ok_and(|shown| shown.into_inner().state() == RotationState::Completed))
        })
        .await?;
    let starts =
        audit(&mut operator).await?.into_iter().filter(|(action, ..)| action == "rotation.start").count();
    ensure!(starts == 1, "{starts} rotations were started");
    for (_, name, facts) in &puppet.held {
        let issuer = facts.clone().map(|facts| facts.issuer).unwrap_or_default();
        ensure!(issuer.contains("issuing b"), "{name} is still from {issuer}");
    }
    Ok(())
}

#[test]
fn killed_before_the_rotation_is_revealed_nothing_has_happened() -> Result<()> {
    for point in ["rotate.before_batches", "rotate.after_batches"] {
        runtime().block_on(async {
            let mut coordinator = Coordinator::start(settings()?).await?;
            let mut puppet = Puppet::enrol(&coordinator, "h1", 1).await?;
            let mut session = puppet.connect().await?;
            puppet.serve(&mut session).await?;
            coordinator.kill();
            coordinator.run(&[("RESEAL_FAILPOINTS", point)])?;
            let mut operator = coordinator.operator().await?;
            ensure!(operator.rotate(from_a("100%")).await.is_err(), "{point} did not kill");
            coordinator.wait_for_end(Duration::from_secs(10))?;
            coordinator.run(&[])?;
            let mut operator = coordinator.operator().await?;
            let authorities =
                operator.list_authorities(reseal_proto::v1::ListAuthoritiesRequest {}).await?.into_inner();
            ensure!(
                authorities.authorities.iter().any(|a| a.name == "builtin/a" && a.state == "active"),
                "{authorities:?}"
            );
            ensure!(show(&mut operator, "r1").await.is_err(), "a rotation is there");
            // And the way is free for a new one.
            let id = operator.rotate(from_a("100%")).await?.into_inner().id;
            let mut session = puppet.connect().await?;
            puppet.serve(&mut session).await?;
            in_state(&operator, &id, RotationState::Completed).await?;
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn a_certificate_is_renewed_on_its_threshold() -> Result<()> {
    runtime().block_on(async {
        let coordinator = Coordinator::start(settings()?).await?;
        let mut operator = coordinator.operator().await?;
        operator
            .set_policy(Policy {
                name: "brief".into(),
                names: vec!["**.wire.test".into()],
                key_types: vec!["ecdsa-p256".into()],
                usages: vec![Usage::Server.into()],
                lifetime_seconds: 60,
                ..Policy::default()
            })
            .await?;
        let mut puppet = Puppet::enrol(&coordinator, "h1", 1).await?;
        let mut session = puppet.connect().await?;
        puppet.serve(&mut session).await?;
        let first = puppet.held[0].2.clone().context("issued")?;
        let renewal = tokio::time::timeout(Duration::from_secs(60), puppet.serve(&mut session)).await??;
        ensure!(renewal.rotation.is_empty(), "{renewal:?}");
        let second = puppet.held[0].2.clone().context("issued")?;
        ensure!(first.spki_sha256 != second.spki_sha256, "the key stayed");
        Ok(())
    })
}

#[test]
fn a_role_allows_what_it_says() -> Result<()> {
    runtime().block_on(async {
        let coordinator = Coordinator::start(settings()?).await?;
        let directory = tempfile::tempdir()?;
        let file = directory.path().join("viewer.json");
        let path = file.display().to_string();
        let added =
            coordinator.reseal(&["operator", "add", "eve", "--role", "viewer", "--out", &path]).output()?;
        ensure!(added.status.success(), "{}", String::from_utf8_lossy(&added.stderr));
        let mut viewer = coordinator.operator_with(&file).await?;
        viewer.list_hosts(reseal_proto::v1::ListHostsRequest::default()).await?;
        let denied = [
            viewer
                .invite_host(reseal_proto::v1::InviteHostRequest { name: "x".into(), ..Default::default() })
                .await
                .err(),
            viewer.rotate(from_a("100%")).await.err(),
            viewer.set_policy(Policy::default()).await.err(),
            viewer
                .remove_policy(reseal_proto::v1::RemovePolicyRequest { name: "default".into() })
                .await
                .err(),
            viewer.ban_host(BanHostRequest::default()).await.err(),
            viewer.remove_host(reseal_proto::v1::HostRequest::default()).await.err(),
            viewer.control_rotation(ControlRotationRequest::default()).await.err(),
            viewer.prepare_authority(reseal_proto::v1::PrepareAuthorityRequest::default()).await.err(),
            viewer.install_authority(reseal_proto::v1::InstallAuthorityRequest::default()).await.err(),
            viewer.activate_authority(reseal_proto::v1::AuthorityRequest::default()).await.err(),
            viewer.taint_authority(reseal_proto::v1::TaintAuthorityRequest::default()).await.err(),
            viewer.add_operator(reseal_proto::v1::AddOperatorRequest::default()).await.err(),
            viewer.remove_operator(reseal_proto::v1::RemoveOperatorRequest::default()).await.err(),
            viewer.export_store(reseal_proto::v1::ExportStoreRequest::default()).await.err(),
        ];
        for (number, denied) in denied.into_iter().enumerate() {
            let denied = denied.with_context(|| format!("call {number} was let through"))?;
            ensure!(denied.code() == Code::PermissionDenied, "call {number}: {denied}");
        }
        // A removed operator is out at once, on a connection that is open.
        let removed = coordinator.reseal(&["operator", "remove", "eve"]).output()?;
        ensure!(removed.status.success(), "{}", String::from_utf8_lossy(&removed.stderr));
        let refusal = viewer
            .list_hosts(reseal_proto::v1::ListHostsRequest::default())
            .await
            .err()
            .context("still in")?;
        ensure!(refusal.code() == Code::PermissionDenied, "{refusal}");
        Ok(())
    })
}

#[test]
fn one_trace_leads_from_the_command_to_the_order_on_the_host() -> Result<()> {
    runtime().block_on(async {
        let (collector, endpoint) = Collector::start().await?;
        let coordinator =
            Coordinator::start(Settings { tracing: Some((endpoint.clone(), 1.0)), ..settings()? }).await?;
        let mut puppet = Puppet::enrol(&coordinator, "h1", 1).await?;
        let mut session = puppet.connect().await?;
        puppet.serve(&mut session).await?;
        let mut rotate = coordinator.reseal(&rotate("traced", &["--compromised-issuer", "a", "--detach"]));
        let rotate = rotate.env("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint).output()?;
        ensure!(rotate.status.success(), "{}", String::from_utf8_lossy(&rotate.stderr));
        let order = puppet.serve(&mut session).await?;
        let trace = order.traceparent.split('-').nth(1).context("the order carries no trace")?.to_owned();
        until("spans of both programs in the order's trace", 30, async || {
            let seen = collector.seen();
            let has = |service: &str| seen.iter().any(|(from, id, _)| from == service && *id == trace);
            Ok((has("reseal") && has("reseal-coordinator")).then_some(()))
        })
        .await
    })
}
