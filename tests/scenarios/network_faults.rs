//! The network between three Docker hosts and the coordinator fails: packets are lost, answers
//! are lost at each step of a renewal, a peer vanishes without a word, hosts are cut off before,
//! during and after their wave. The rotation names who is missing, holds up nobody for them,
//! and ends by itself when they are back.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use reseal_tests::fault::link::{Detour, Lossy, Relay, appear, vanish};
use reseal_tests::fleet::{Fleet, Host};
use reseal_tests::invariants::{self, Ledger};
use reseal_tests::process::{run, turn, wait_until};
use reseal_tests::product::{Binaries, wait_for_sessions};
use reseal_tests::services::Service;
use reseal_tests::world::{HOSTS, World};
use reseal_tests::{openssl, probe, proof};

const LONG: Duration = Duration::from_secs(90);
/// Until both sides have noticed that a peer is gone, and the absence counts: 50 s and 30 s.
const ABSENCE: Duration = Duration::from_secs(120);
/// Hosts go by name: `lima-1` is the first wave.
const EVERYTHING: [&str; 4] = ["--host-label", "env=demo", "--waves", "1,100%"];

fn cast(fleet: &Fleet) -> Result<Vec<Service>> {
    let [paris, oslo, lima] = HOSTS.map(|name| fleet.host(name));
    Ok(vec![
        Service::site(paris?, "shop", 443, "ecdsa-p256"),
        Service::site(oslo?, "docs", 443, "ecdsa-p256").with_a_gate(),
        Service::haproxy(lima?, "edge", 443),
    ])
}

#[test]
fn a_network_that_fails_delays_and_loses_nothing() -> Result<()> {
    let _turn = turn()?;
    let mut world = World::start(&HOSTS, Binaries::built()?, cast, &mut |_| {})?;
    let mut ledger = Ledger::default();
    every_third_packet_is_lost(&world).context("every third packet is lost")?;
    invariants::hold(&world, &mut ledger)?;
    hosts_are_away_before_during_and_after_their_wave(&mut world).context("hosts are away")?;
    invariants::hold(&world, &mut ledger)
}

fn every_third_packet_is_lost(world: &World) -> Result<()> {
    let hosts: Vec<&Host> = HOSTS.iter().map(|name| world.fleet.host(name)).collect::<Result<_>>()?;
    let _lossy: Vec<Lossy> = hosts.into_iter().map(Lossy::every_third).collect::<Result<_>>()?;
    let client = probe::Client::start(&world.endpoints(), &world.root, 2)?;
    let id = world.coordinator.rotate(&EVERYTHING)?;
    let rotation = world.coordinator.completed(&id, LONG)?;
    assert_eq!(rotation["targets_by_state"]["verified"], world.certificates(), "{rotation}");
    proof::sealed_under(world, &world.coordinator.authority("builtin/a")?)?;
    // Clients do not come through the lossy part, and a reload loses none of them.
    for (name, seen) in client.stop() {
        assert_eq!(seen.failed, 0, "{name}: {:?}", seen.reasons);
    }
    Ok(())
}

/// The first piece of the coordinator's answers to a host is lost with its connection, then the
/// second, and so on, until a renewal needs no more of them.
fn an_answer_is_lost_at_each_step(world: &mut World) -> Result<()> {
    let relay = Relay::start(world.fleet.gateway(), world.coordinator.address())?;
    let lima = world.fleet.host("lima-1")?;
    let _detour = Detour::new(lima, world.coordinator.address(), &relay)?;
    let at = HOSTS.iter().position(|name| *name == "lima-1").context("a host lima-1")?;
    // A new connection takes the new way.
    world.agents[at].kill();
    world.agents[at].start(lima, &[])?;
    wait_for_sessions(&world.coordinator, &mut world.agents)?;
    let edge = service(world, "edge")?;
    for step in 0.. {
        ensure!(step < 40, "a renewal takes no end of answers");
        let before = openssl::served(&edge.endpoint, &world.root)?;
        let lost = relay.lost();
        relay.lose_after(step);
        let id = world.coordinator.rotate(&["--name", &edge.endpoint.sni])?;
        let what = || format!("answer {step} was lost");
        let rotation = world.coordinator.completed(&id, LONG).with_context(what)?;
        assert_eq!(rotation["replaced"], true, "{}", what());
        let after = openssl::served(&edge.endpoint, &world.root)?;
        ensure!(before.leaf().key != after.leaf().key, "{}, and the old certificate stayed", what());
        let none = relay.lost() == lost;
        relay.pass_all();
        if none {
            // Order, chain and acknowledgement at least came one by one.
            ensure!(step >= 3, "only {step} answers could be lost");
            return Ok(());
        }
    }
    Ok(())
}

fn hosts_are_away_before_during_and_after_their_wave(world: &mut World) -> Result<()> {
    let (id, before) = begin_with_two_away(world)?;
    // Time has to pass until they are missed; lima has its own troubles meanwhile.
    an_answer_is_lost_at_each_step(world).context("an answer is lost at each step")?;
    end_when_they_are_back(world, &id, &before)
}

/// What was in the files of shop and docs.
struct Before {
    shop: String,
    docs: String,
}

/// Paris is away before its wave, oslo is cut off during it, lima for a moment after it. Gives
/// the rotation that waits for the first two.
fn begin_with_two_away(world: &World) -> Result<(String, Before)> {
    let [paris, oslo, lima] = HOSTS.map(|name| world.fleet.host(name));
    let (paris, oslo, lima) = (paris?, oslo?, lima?);
    let (shop, docs, edge) = (service(world, "shop")?, service(world, "docs")?, service(world, "edge")?);
    let before = Before { shop: on_disk(world, shop)?, docs: on_disk(world, docs)? };
    let edge_before = on_disk(world, edge)?;

    // Before: paris is gone without a word, its connection half open.
    vanish(paris)?;
    docs.hold(oslo)?;
    let id = world.coordinator.rotate(&EVERYTHING)?;
    // During: oslo has installed and waits to reload, then its cable is pulled.
    wait_until("oslo to be in the middle", LONG, || {
        ensure!(docs.is_held(oslo)?, "it is not");
        Ok(())
    })?;
    oslo.cut()?;
    // After: lima is through, and nobody minds.
    lima.cut()?;
    let rotation = world.coordinator.rotation(&id)?;
    assert_eq!(rotation["targets_by_state"]["verified"], 1, "{rotation}");
    ensure!(on_disk(world, edge)? != edge_before, "lima was not done");

    // What oslo has begun it finishes alone: seen from inside, nobody else gets there.
    docs.let_go(oslo)?;
    let installed = on_disk(world, docs)?;
    ensure!(installed != before.docs, "oslo has not installed anything");
    wait_until("oslo to finish without a coordinator", LONG, || {
        ensure!(served_inside(oslo, docs)?.contains(&installed), "it serves something else");
        Ok(())
    })?;
    lima.heal()?;
    Ok((id, before))
}

fn end_when_they_are_back(world: &World, id: &str, before: &Before) -> Result<()> {
    let (shop, docs) = (service(world, "shop")?, service(world, "docs")?);
    let trailing = world.coordinator.in_state(id, "trailing", ABSENCE)?;
    let stragglers = trailing["stragglers"].as_array().context("stragglers")?;
    let mut missing: Vec<&str> = stragglers.iter().filter_map(|row| row["host"].as_str()).collect();
    missing.sort_unstable();
    assert_eq!(missing, ["oslo-1", "paris-1"], "{trailing}");
    assert_eq!(on_disk(world, shop)?, before.shop, "paris got something without a network");
    let installed = on_disk(world, docs)?;

    appear(world.fleet.host("paris-1")?)?;
    world.fleet.host("oslo-1")?.heal()?;
    let rotation = world.coordinator.completed(id, LONG)?;
    assert_eq!(rotation["targets_by_state"]["verified"], 3, "{rotation}");
    assert_eq!(on_disk(world, docs)?, installed, "oslo did its work twice");
    ensure!(on_disk(world, shop)? != before.shop, "paris was not done");
    proof::sealed_under(world, &world.coordinator.authority("builtin/a")?).map(drop)
}

/// The leaf in a service's file, as PEM.
fn on_disk(world: &World, service: &Service) -> Result<String> {
    let file = service.certificate_file(world.fleet.host(&service.host)?);
    let chain = openssl::certificates(&std::fs::read_to_string(&file)?)?;
    Ok(chain.into_iter().next().context("an empty file")?.pem)
}

/// What a client on the host itself is served.
fn served_inside(host: &Host, service: &Service) -> Result<String> {
    let address = service.endpoint.address.to_string();
    let words = ["5", "openssl", "s_client", "-connect", &address, "-servername", &service.endpoint.sni];
    run(&mut host.command("timeout".as_ref(), &words))
}

fn service<'a>(world: &'a World, name: &str) -> Result<&'a Service> {
    let found = world.services.iter().find(|service| service.name == name);
    found.with_context(|| format!("no service {name}"))
}
