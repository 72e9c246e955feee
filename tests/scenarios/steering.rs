//! Steering a rotation while it runs: hosts taken out, another pace, ends that
//! nothing can prove any more. The coordinator is real, the agents are clients.

use anyhow::{Context as _, Result, ensure};
use reseal_proto::v1::agent_message::Body as ToCoordinator;
use reseal_proto::v1::{
    ControlRotationRequest, CsrBatch, ExcludeHostRequest, ListRotationsRequest, Order, PaceRotationRequest,
    PlanRequest, Rotation, RotationAction, RotationState, TargetState,
};
use reseal_tests::process::run;
use reseal_tests::wire::ask::{as_released, audit, from_a, of_hosts, runtime, shown};
use reseal_tests::wire::{Coordinator, Operator, Puppet, Session, an_order, chains};
use tonic::Code;

/// A coordinator, and hosts that each have one certificate of `a`.
async fn fleet(hosts: &[&str]) -> Result<(Coordinator, Vec<(Puppet, Session)>)> {
    let coordinator = Coordinator::start(as_released()?).await?;
    let mut all = Vec::new();
    for host in hosts {
        let mut puppet = Puppet::enrol(&coordinator, host, 1).await?;
        let mut session = puppet.connect().await?;
        puppet.serve(&mut session).await.context("the first certificate")?;
        all.push((puppet, session));
    }
    Ok((coordinator, all))
}

async fn audited(operator: &mut Operator, wanted: &str) -> Result<usize> {
    Ok(audit(operator).await?.iter().filter(|(action, ..)| action == wanted).count())
}

fn number(rotation: &Rotation, state: TargetState) -> u32 {
    rotation.targets.get(&(state as u32)).copied().unwrap_or_default()
}

#[test]
fn an_excluded_host_is_named_and_taken_in_again() -> Result<()> {
    runtime().block_on(async {
        let (coordinator, mut hosts) = fleet(&["h1", "h2", "h3"]).await?;
        let mut operator = coordinator.operator().await?;
        let id = operator.rotate(from_a("1,100%")).await?.into_inner().id;
        let (mut silent, mut to_silent) = hosts.pop().context("three hosts")?;
        for (puppet, session) in &mut hosts {
            puppet.serve(session).await?;
        }
        // The third one has its order and says nothing: it holds up the end.
        let order: Order = to_silent.next_that(an_order).await?;
        let request = |host: &str| ExcludeHostRequest {
            rotation: id.clone(),
            host: host.into(),
            reason: "its disk is replaced".into(),
        };
        let nobody = operator.exclude_host(request("h9")).await.err().context("h9 is nobody")?;
        ensure!(nobody.code() == Code::NotFound, "{nobody}");
        operator.exclude_host(request("h3")).await?;
        operator.exclude_host(request("h3")).await.context("said twice")?;
        ensure!(audited(&mut operator, "rotation.exclude").await? == 1, "audited once");
        let left = shown(&operator, &id, 30, |shown| shown.state() == RotationState::Trailing).await?;
        ensure!(number(&left, TargetState::Excluded) == 1 && number(&left, TargetState::Verified) == 2);
        let row = left.excluded.first().context("it is named")?;
        let why = row.failure.clone().unwrap_or_default();
        ensure!(row.host == "h3" && why.code == "excluded", "{row:?}");
        ensure!(why.reason.contains("its disk is replaced"), "{row:?}");
        ensure!(row.next.contains("--excluded"), "{row:?}");
        ensure!(
            left.excluded_hosts.iter().any(|excluded| excluded.host == "h3" && excluded.operator == "alice")
        );

        // It gets nothing more in this rotation.
        let csrs = silent.request(&order)?;
        let batch = CsrBatch { batch: order.batch.clone(), csrs, ..CsrBatch::default() };
        to_silent.send(ToCoordinator::Csrs(batch)).await?;
        let answer = to_silent.next_that(chains).await?;
        ensure!(answer.issued.iter().all(|issued| issued.refusal.is_some()), "{answer:?}");

        // What it shows is not replaced, and everybody says so.
        to_silent.send(silent.inventory()?).await?;
        let plan = PlanRequest { selection: from_a("").selection, ..PlanRequest::default() };
        let plan = operator.plan(plan).await?.into_inner();
        ensure!(plan.hosts.iter().any(|host| host.name == "h3"), "{plan:?}");
        ensure!(
            plan.warnings.iter().any(|line| line.contains("h3 was excluded from rotation r1")),
            "{plan:?}"
        );
        let file = coordinator.data().with_file_name("r1.json");
        let path = file.to_string_lossy();
        let said = run(
            &mut coordinator.reseal(&["rotation", "evidence", &id, "--file", &path, "--output", "json"])
        )?;
        let said: serde_json::Value = serde_json::from_str(&said)?;
        ensure!(said["valid"] == true && said["replaced"] == false, "{said}");
        ensure!(
            said["summary"]["excluded"] == 1 && said["residual"]["excluded"][0]["host"] == "h3",
            "{said}"
        );

        let again = ControlRotationRequest {
            id: id.clone(),
            action: RotationAction::Retry.into(),
            excluded: true,
            ..ControlRotationRequest::default()
        };
        operator.control_rotation(again).await?;
        silent.serve(&mut to_silent).await?;
        let ended = shown(&operator, &id, 30, |shown| shown.state() == RotationState::Completed).await?;
        ensure!(number(&ended, TargetState::Verified) == 3 && ended.excluded_hosts.is_empty(), "{ended:?}");
        ensure!(audited(&mut operator, "rotation.extend").await? == 0, "it joined by itself");
        Ok(())
    })
}

#[test]
fn another_pace_counts_for_what_is_not_ordered() -> Result<()> {
    runtime().block_on(async {
        let (coordinator, mut hosts) = fleet(&["h1", "h2", "h3", "h4"]).await?;
        let mut operator = coordinator.operator().await?;
        let id = operator.rotate(from_a("1,100%")).await?.into_inner().id;
        let pace = |waves: &str, max_failures: &str| PaceRotationRequest {
            id: id.clone(),
            waves: waves.into(),
            max_failures: max_failures.into(),
            ..PaceRotationRequest::default()
        };
        for (waves, threshold) in [("", ""), ("50%", ""), ("0,100%", ""), ("", "101%"), ("x", "")] {
            let refused = operator.pace_rotation(pace(waves, threshold)).await.err();
            let refused = refused.with_context(|| format!("{waves:?} {threshold:?} was taken"))?;
            ensure!(refused.code() == Code::InvalidArgument, "{refused}");
        }
        let slow = operator.pace_rotation(pace("1,2,3,100%", "3")).await?.into_inner();
        ensure!(slow.waves.iter().map(|wave| wave.hosts).collect::<Vec<_>>() == [1, 1, 1, 1], "{slow:?}");
        ensure!(slow.max_failures == "3", "{slow:?}");
        // One host after the other, each in its own wave.
        for (at, (puppet, session)) in hosts.iter_mut().enumerate() {
            let wave = u32::try_from(at + 1)?;
            let now = shown(&operator, &id, 30, |shown| shown.wave == wave).await?;
            ensure!(number(&now, TargetState::Pending) == 3 - u32::try_from(at)?, "{now:?}");
            if wave == 4 {
                let late = operator.pace_rotation(pace("100%", "")).await.err().context("all are ordered")?;
                ensure!(late.code() == Code::FailedPrecondition, "{late}");
            }
            puppet.serve(session).await?;
        }
        shown(&operator, &id, 30, |shown| shown.state() == RotationState::Completed).await?;
        let ended = operator.pace_rotation(pace("", "5")).await.err().context("it has ended")?;
        ensure!(ended.code() == Code::FailedPrecondition, "{ended}");
        ensure!(audited(&mut operator, "rotation.pace").await? == 1);
        Ok(())
    })
}

#[test]
fn what_was_renewed_since_is_not_waited_for() -> Result<()> {
    runtime().block_on(async {
        let (coordinator, mut hosts) = fleet(&["h1"]).await?;
        let mut operator = coordinator.operator().await?;
        let (mut puppet, mut session) = hosts.pop().context("a host")?;
        let first = operator.rotate(of_hosts("h1", "100%", 1)).await?.into_inner().id;
        let order = session.next_that(an_order).await?;
        puppet.obtain(&mut session, &order).await?;
        puppet.report(&mut session, &order, TargetState::Unserved).await?;
        let waits = shown(&operator, &first, 30, |shown| shown.state() == RotationState::Trailing).await?;
        ensure!(waits.unserved.iter().all(|row| row.next.contains("start its container")), "{waits:?}");
        let second = operator.rotate(of_hosts("h1", "100%", 2)).await?.into_inner().id;
        puppet.serve(&mut session).await?;
        shown(&operator, &second, 30, |shown| shown.state() == RotationState::Completed).await?;
        // Long before its deadline, and not as if it had been proved.
        let ended = shown(&operator, &first, 30, |shown| shown.state() == RotationState::Expired).await?;
        ensure!(
            number(&ended, TargetState::Unserved) == 1 && ended.note.contains("renewed since"),
            "{ended:?}"
        );
        ensure!(ended.unserved.iter().all(|row| row.next.contains("rotate its name once more")), "{ended:?}");
        Ok(())
    })
}

#[test]
fn an_ended_rotation_is_what_it_was_after_a_restart_and_takes_what_comes_late() -> Result<()> {
    runtime().block_on(async {
        let (mut coordinator, mut hosts) = fleet(&["h1", "h2", "h3"]).await?;
        let mut operator = coordinator.operator().await?;
        let id = operator.rotate(of_hosts("h*", "1,2,100%", 1)).await?.into_inner().id;
        let (first, session) = &mut hosts[0];
        first.serve(session).await?;
        let (second, session) = &mut hosts[1];
        let order = session.next_that(an_order).await?;
        second.obtain(session, &order).await?;
        let abort = ControlRotationRequest {
            id: id.clone(),
            action: RotationAction::Abort.into(),
            reason: "test".into(),
            ..ControlRotationRequest::default()
        };
        operator.control_rotation(abort).await?;
        let before = shown(&operator, &id, 20, |shown| shown.state() == RotationState::Aborted).await?;
        ensure!(number(&before, TargetState::Verified) == 1 && before.hosts == 3, "{before:?}");
        ensure!(before.targets.values().sum::<u32>() == 3 && before.waves.len() == 3, "{before:?}");

        // The first start may find nothing but the batches, the second finds what the first has put on record.
        for start in 1..=2 {
            coordinator.kill();
            coordinator.run(&[])?;
            operator = coordinator.operator().await?;
            let after = shown(&operator, &id, 20, |_| true).await?;
            let listed = operator.list_rotations(ListRotationsRequest {}).await?.into_inner().rotations;
            for after in [&after, &listed[0]] {
                let same = (&after.targets, &after.waves, after.hosts)
                    == (&before.targets, &before.waves, before.hosts);
                ensure!(same, "start {start}: {before:?} became {after:?}");
            }
        }
        let (second, _) = &hosts[1];
        let mut session = second.connect().await?;
        second.report(&mut session, &order, TargetState::Verified).await?;
        shown(&operator, &id, 20, |shown| number(shown, TargetState::Verified) == 2).await?;
        Ok(())
    })
}
