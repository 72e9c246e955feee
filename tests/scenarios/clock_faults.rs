//! Clocks that are hours off, and that jump while programs run. A certificate that is not valid
//! yet is never installed, a service is never disturbed, nothing waits for the hours to pass,
//! and when the clock is right again a retry ends it well.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use reseal_proto::v1::agent_message::Body as ToCoordinator;
use reseal_proto::v1::{RotationState, TargetState};
use reseal_tests::fault::clock::Clock;
use reseal_tests::fleet::Fleet;
use reseal_tests::invariants::{self, Ledger};
use reseal_tests::process::{turn, wait_until};
use reseal_tests::product::{Binaries, wait_for_sessions};
use reseal_tests::services::Service;
use reseal_tests::wire::{self, ask};
use reseal_tests::world::World;
use reseal_tests::{openssl, probe, proof};

const LONG: Duration = Duration::from_secs(60);
const HOUR: i64 = 3600;
const EVERYTHING: [&str; 4] = ["--host-label", "env=demo", "--waves", "100%"];

fn cast(fleet: &Fleet) -> Result<Vec<Service>> {
    let one = fleet.host("one")?;
    Ok(vec![Service::site(one, "shop", 443, "ecdsa-p256"), Service::haproxy(one, "edge", 8443)])
}

#[test]
fn a_clock_that_jumps_breaks_no_service_and_holds_up_nothing() -> Result<()> {
    let _turn = turn()?;
    let mut world = World::start(&["one"], Binaries::built()?, cast, &mut |_| {})?;
    let directory = tempfile::tempdir()?;
    for name in ["coordinator", "agent"] {
        std::fs::create_dir(directory.path().join(name))?;
    }
    let coordinators = Clock::new(&directory.path().join("coordinator"))?;
    let agents = Clock::new(&directory.path().join("agent"))?;
    world.coordinator.kill();
    world.coordinator.start(&coordinators.environment())?;
    start_agent(&mut world, &agents)?;
    let mut ledger = Ledger::default();
    let client = probe::Client::start(&world.endpoints(), &world.root, 5)?;

    coordinator_ahead(&mut world, &coordinators, &agents).context("the coordinator's clock is ahead")?;
    invariants::hold(&world, &mut ledger)?;
    coordinator_behind(&world, &coordinators).context("the coordinator's clock is behind")?;
    invariants::hold(&world, &mut ledger).context("after the coordinator's clock was behind")?;
    agent_ahead(&mut world, &agents).context("the agent's clock is ahead")?;
    invariants::hold(&world, &mut ledger)?;
    agent_behind(&mut world, &agents).context("the agent's clock is behind")?;
    invariants::hold(&world, &mut ledger)?;

    for (name, seen) in client.stop() {
        assert_eq!(seen.failed, 0, "{name}: {:?}", seen.reasons);
    }
    Ok(())
}

/// It jumps six hours ahead: what it issues is not valid yet for anybody else.
fn coordinator_ahead(world: &mut World, coordinators: &Clock, agents: &Clock) -> Result<()> {
    let before = leaves(world)?;
    coordinators.set(6 * HOUR)?;
    coordinators.check()?;
    let id = world.coordinator.rotate(&EVERYTHING)?;
    let halted = world.coordinator.in_state(&id, "halted", LONG)?;
    let failures = halted["failures"].as_array().context("failures")?;
    ensure!(failures.len() == world.certificates(), "{halted}");
    ensure!(failures.iter().all(|failure| failure["stage"] == "validate"), "{halted}");
    assert_eq!(leaves(world)?, before, "a certificate that is not valid yet was installed");
    // The host goes away by the wrong clock; the clock is put right. It is missed within a
    // minute, not in six hours.
    world.agents[0].kill();
    wait_until("the end of the session", LONG, || {
        ensure!(world.coordinator.json(&["status"])?["hosts_connected"] == 0, "it is there");
        Ok(())
    })?;
    world.coordinator.text(&["rotation", "retry", &id])?;
    coordinators.set(0)?;
    world.coordinator.in_state(&id, "trailing", LONG)?;
    start_agent(world, agents)?;
    world.coordinator.completed(&id, LONG)?;
    all_replaced(world, &before)
}

/// It jumps six hours back: nobody's identity is valid yet. What is open goes on; the rest waits.
fn coordinator_behind(world: &World, coordinators: &Clock) -> Result<()> {
    let before = leaves(world)?;
    coordinators.set(-6 * HOUR)?;
    let said = world.coordinator.output(&["status"])?;
    ensure!(!said.status.success(), "an operator got in before the credentials are valid");
    coordinators.set(0)?;
    let id = world.coordinator.rotate(&EVERYTHING)?;
    world.coordinator.completed(&id, LONG)?;
    all_replaced(world, &before)
}

/// Three hours ahead: told to the operator, kept out of decisions.
fn agent_ahead(world: &mut World, agents: &Clock) -> Result<()> {
    let before = leaves(world)?;
    agents.set(3 * HOUR)?;
    start_agent(world, agents)?;
    let host = world.coordinator.json(&["host", "show", "one"])?;
    let skew = host["host"]["clock_skew_seconds"].as_i64();
    let skew = skew.with_context(|| format!("no skew: {host}"))?;
    ensure!((skew - 3 * HOUR).abs() < 60, "the clock is shown as {skew} s off");
    let id = world.coordinator.rotate(&EVERYTHING)?;
    let waiting = world.coordinator.in_state(&id, "trailing", LONG)?;
    let unserved = waiting["unserved"].as_array().context("unserved")?;
    ensure!(unserved.len() == world.certificates(), "{waiting}");
    ensure!(unserved.iter().all(|target| target["code"] == "clock-skew"), "{waiting}");
    // Installed and served; called verified only when the clock is right again.
    agents.set(0)?;
    world.coordinator.completed(&id, 2 * LONG)?;
    all_replaced(world, &before)
}

/// It jumps three hours back while the agent runs: a new certificate is not valid yet there.
fn agent_behind(world: &mut World, agents: &Clock) -> Result<()> {
    start_agent(world, agents)?;
    let before = leaves(world)?;
    agents.set(-3 * HOUR)?;
    let id = world.coordinator.rotate(&EVERYTHING)?;
    let halted = world.coordinator.in_state(&id, "halted", LONG)?;
    let failures = halted["failures"].as_array().context("failures")?;
    ensure!(failures.iter().all(|failure| failure["stage"] == "validate"), "{halted}");
    assert_eq!(leaves(world)?, before, "it was installed all the same");
    agents.set(0)?;
    world.coordinator.text(&["rotation", "retry", &id])?;
    world.coordinator.completed(&id, LONG)?;
    all_replaced(world, &before)
}

/// A host is at work when the coordinator's clock jumps: it is not given up for hours that did
/// not pass.
#[test]
fn a_clock_put_forward_gives_nobody_up() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let clock = Clock::new(directory.path())?;
    ask::runtime().block_on(async {
        let mut coordinator = wire::Coordinator::start(ask::settings()?).await?;
        coordinator.kill();
        coordinator.run(&clock.environment())?;
        let mut operator = coordinator.operator().await?;
        let mut puppet = wire::Puppet::enrol(&coordinator, "h1", 1).await?;
        let mut session = puppet.connect().await?;
        puppet.serve(&mut session).await?;
        let id = operator.rotate(ask::of_hosts("h1", "100%", 1)).await?.into_inner().id;
        let order = session.next_that(wire::an_order).await?;
        clock.set(6 * HOUR)?;
        // The engine has seen it.
        ask::until("the engine to notice", 20, async || {
            Ok(coordinator.log().contains("put forward").then_some(()))
        })
        .await?;
        puppet.obtain(&mut session, &order).await?;
        puppet.report(&mut session, &order, TargetState::Verified).await?;
        let done = ask::in_state(&operator, &id, RotationState::Completed).await?;
        ensure!(done.failures.is_empty(), "{done:?}");
        Ok(())
    })
}

fn start_agent(world: &mut World, clock: &Clock) -> Result<()> {
    world.agents[0].kill();
    world.agents[0].start(world.fleet.host("one")?, &clock.environment())?;
    wait_for_sessions(&world.coordinator, &mut world.agents)
}

fn leaves(world: &World) -> Result<Vec<String>> {
    let leaf = |service: &Service| {
        let served = openssl::served(&service.endpoint, &world.root)?;
        Ok(served.leaf().key.clone())
    };
    world.services.iter().map(leaf).collect()
}

fn all_replaced(world: &World, before: &[String]) -> Result<()> {
    let now = leaves(world)?;
    ensure!(now.iter().zip(before).all(|(new, old)| new != old), "a key stayed");
    proof::sealed_under(world, &world.coordinator.authority("builtin/a")?).map(drop)
}

/// A result counts until the identity that signed it expires; after that nobody could check it.
#[test]
fn a_result_signed_by_an_identity_that_expired_since_is_refused() -> Result<()> {
    ask::runtime().block_on(async {
        let mut coordinator = wire::Coordinator::start(ask::settings()?).await?;
        let directory = tempfile::tempdir()?;
        let clock = Clock::new(directory.path())?;
        coordinator.kill();
        coordinator.run(&clock.environment())?;
        coordinator.operator().await?;
        let mut puppet = wire::Puppet::enrol(&coordinator, "h1", 1).await?;
        let mut session = puppet.connect().await?;
        let order = session.next_that(wire::an_order).await?;
        puppet.obtain(&mut session, &order).await?;
        let result = puppet.identity.sign(&puppet.payload(&order, TargetState::Verified)?)?;
        // An identity is for 24 hours.
        clock.set(23 * HOUR)?;
        puppet.identity = puppet.identity.renew().await?;
        clock.set(25 * HOUR)?;
        let mut session = puppet.connect().await?;
        session.send(ToCoordinator::Result(result)).await?;
        let batch = session.next_that(wire::an_ack).await?;
        ensure!(batch == order.batch, "{batch}");
        let ended = |how: &str| coordinator.metric(&format!("reseal_targets_total{{state=\"{how}\"}}"));
        ensure!(ended("result-refused")? == 1 && ended("verified")? == 0, "{}", coordinator.log());
        ensure!(coordinator.log().contains("that has expired since"), "{}", coordinator.log());
        Ok(())
    })
}
