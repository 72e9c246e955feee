//! The coordinator's disk fills up, and fails under it. New work is refused loudly, what is on
//! record stays, and the rotation that was under way ends when there is room, or a repair.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use reseal_proto::v1::agent_message::Body as ToCoordinator;
use reseal_proto::v1::{CsrBatch, RotationState, TargetState};
use reseal_tests::fault::disk::Disk;
use reseal_tests::invariants::{Ledger, nothing_stuck};
use reseal_tests::process::{turn, wait_for};
use reseal_tests::wire::ask::{in_state, of_hosts, runtime, settings, show};
use reseal_tests::wire::{Coordinator, Puppet, an_order, chains};

#[test]
fn a_disk_that_is_full_or_fails_loses_nothing() -> Result<()> {
    let _turn = turn()?;
    let disk = Disk::new(128)?;
    runtime().block_on(async {
        let mut coordinator = Coordinator::start_in(settings()?, disk.path().join("store")).await?;
        let mut ledger = Ledger::default();
        full(&coordinator, &disk, &mut ledger).await.context("a full disk")?;
        failing(&mut coordinator, &disk, &mut ledger).await.context("a failing disk")
    })
}

/// It fills up in the middle of a rotation.
async fn full(coordinator: &Coordinator, disk: &Disk, ledger: &mut Ledger) -> Result<()> {
    let ask = |words: &[&str]| coordinator.json(words);
    let mut operator = coordinator.operator().await?;
    let mut puppet = Puppet::enrol(coordinator, "h1", 2).await?;
    let mut session = puppet.connect().await?;
    puppet.serve(&mut session).await?;
    let id = operator.rotate(of_hosts("h1", "100%", 1)).await?.into_inner().id;
    let order = session.next_that(an_order).await?;
    ledger.note(&ask)?;

    disk.fill(4)?;
    // Loudly: to operators, and to hosts.
    let words: [&[&str]; 3] = [
        &["host", "invite", "h2"],
        &["policy", "remove", "wire"],
        &["authority", "taint", "b", "--reason", "scenario"],
    ];
    for words in words {
        let output = coordinator.reseal(words).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success() && said.contains("full"), "{words:?}: {said}");
    }
    let batch = CsrBatch { batch: order.batch.clone(), csrs: puppet.request(&order)?, ..CsrBatch::default() };
    session.send(ToCoordinator::Csrs(batch)).await?;
    match session.next_that(chains).await {
        Ok(answer) => {
            let refused = answer.issued.iter().all(|issued| issued.refusal.is_some());
            ensure!(refused, "a certificate that is not on record was given out");
        }
        Err(error) => ensure!(format!("{error:#}").contains("full"), "{error:#}"),
    }
    // What is on record can be read.
    ledger.note(&ask)?;
    ask(&["certs"])?;

    disk.empty()?;
    let mut session = puppet.connect().await?;
    let order = session.next_that(an_order).await?;
    puppet.obtain(&mut session, &order).await?;
    puppet.report(&mut session, &order, TargetState::Verified).await?;
    in_state(&operator, &id, RotationState::Completed).await?;
    ledger.note(&ask)?;
    nothing_stuck(&ask)
}

/// The kernel makes it read-only in the middle of a rotation; somebody repairs it.
async fn failing(coordinator: &mut Coordinator, disk: &Disk, ledger: &mut Ledger) -> Result<()> {
    let mut operator = coordinator.operator().await?;
    let mut puppet = Puppet::enrol(coordinator, "h3", 1).await?;
    let mut session = puppet.connect().await?;
    puppet.serve(&mut session).await?;
    let id = operator.rotate(of_hosts("h3", "100%", 2)).await?.into_inner().id;
    ledger.note(&|words: &[&str]| coordinator.json(words))?;

    disk.fail()?;
    let output = coordinator.reseal(&["host", "invite", "h4"]).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success() && said.contains("restart reseal"), "{said}");
    // Nothing is answered that may be wrong.
    if let Err(error) = ledger.clone().note(&|words: &[&str]| coordinator.json(words)) {
        ensure!(format!("{error:#}").contains("restart reseal"), "{error:#}");
    }

    // A restart does not help before the disk is repaired, and says so.
    coordinator.kill();
    coordinator.run(&[])?;
    wait_for("its end", Duration::from_secs(20), || Ok(coordinator.has_ended()?.then_some(())))?;
    let log = coordinator.log();
    let last = log.lines().last().unwrap_or_default();
    ensure!(last.to_lowercase().contains("read-only"), "it does not say why it ended: {log}");
    coordinator.kill();
    disk.repair()?;
    coordinator.run(&[])?;
    let operator = coordinator.operator().await?;
    ledger.note(&|words: &[&str]| coordinator.json(words))?;
    puppet
        .serve_until(async || {
            let mut operator = operator.clone();
            Ok(show(&mut operator, &id).await?.state() == RotationState::Completed)
        })
        .await?;
    nothing_stuck(&|words: &[&str]| coordinator.json(words))
}
