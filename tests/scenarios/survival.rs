//! The coordinator dies with SIGKILL, in the middle of a wave and at every fail point. The
//! rotation completes by itself, and nothing is done twice.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use reseal_tests::fleet::Fleet;
use reseal_tests::process::{Daemon, turn, wait_until};
use reseal_tests::product::{self, Binaries};
use reseal_tests::services::Service;
use reseal_tests::world::{HOSTS, World, ten_services};
use reseal_tests::{openssl, probe, proof};

const LONG: Duration = Duration::from_secs(90);

#[test]
fn a_kill_in_the_middle_of_a_wave_loses_and_repeats_nothing() -> Result<()> {
    let _turn = turn()?;
    let mut world = World::start(&HOSTS, Binaries::built()?, ten_services, &mut |_| {})?;
    let b = world.coordinator.authority("builtin/b")?;
    let client = probe::Client::start(&world.endpoints(), &world.root, 10)?;

    // One agent stands still with its session up, so that wave 2 cannot end.
    let paused = world.fleet.hosts.iter().position(|host| host.name == "paris-1");
    let paused = paused.context("a host paris-1")?;
    world.agents[paused].pause();
    let id = world.coordinator.rotate(&["--compromised-issuer", "a", "--waves", "1,100%"])?;
    let others = world.services.iter().filter(|service| service.host != "paris-1");
    let done: usize = others.map(|service| service.certificates).sum();
    wait_until("all that can be done", LONG, || {
        let rotation = world.coordinator.rotation(&id)?;
        ensure!(rotation["targets_by_state"]["verified"] == done, "{rotation}");
        ensure!(rotation["state"] == "running", "{rotation}");
        Ok(())
    })?;
    let before = leaves(&world, |service| service.host != "paris-1")?;
    let issued_before = issued(&world)?;

    world.coordinator.kill();
    world.agents[paused].resume();
    world.coordinator.start(&[])?;
    let rotation = world.coordinator.completed(&id, LONG)?;
    assert_eq!(rotation["replaced"], true);

    proof::sealed_under(&world, &b)?;
    for (name, leaf) in before {
        let now = leaves(&world, |service| service.name == name)?;
        assert_eq!(now[0].1, leaf, "{name} was verified before the kill and is issued again");
    }
    let tally = client.stop();
    for (name, seen) in &tally {
        assert_eq!(seen.failed, 0, "{name}: {:?}", seen.reasons);
    }
    assert_eq!(world.coordinator.audited("rotation.start")?.len(), 1);
    // The paused host's certificates, once each, and nothing else.
    let more = world.certificates() - done;
    assert_eq!(issued(&world)? - issued_before, more as u64, "certificates issued after the kill");
    Ok(())
}

#[test]
fn a_kill_at_every_fail_point_is_survived() -> Result<()> {
    const POINTS: [&str; 11] = [
        "rotate.before_batches",
        "rotate.after_batches",
        "rotate.after_reveal",
        "engine.before_step",
        "engine.after_step",
        "issuance.before_intent",
        "issuance.after_intent",
        "issuance.after_sign",
        "issuance.after_commit",
        "results.before_commit",
        "results.after_commit",
    ];
    let _turn = turn()?;
    let binaries = Binaries::with_fail_points()?;
    let mut world = World::start(&["one", "two"], binaries, four_services, &mut |_| {})?;
    let client = probe::Client::start(&world.endpoints(), &world.root, 5)?;
    for (round, point) in POINTS.into_iter().enumerate() {
        let before = leaves(&world, |_| true)?;
        world.coordinator.kill();
        world.coordinator.start(&[("RESEAL_FAILPOINTS", point)])?;
        product::wait_for_sessions(&world.coordinator, &mut world.agents)?;
        // The operator's command lives through it: it asks again with the same key.
        let reason = format!("killed at {point}");
        let words = ["--host-label", "env=demo", "--waves", "1,100%", "--detach"];
        let rotate = world.coordinator.command(&product::rotate(&reason, &words));
        let log = world.fleet.directory().join("rotate.log");
        let mut rotate = Daemon::start("reseal rotate", &rotate, &log)?;
        wait_until(&format!("the end at {point}"), LONG, || {
            ensure!(world.coordinator.has_ended()?, "it still runs");
            Ok(())
        })?;
        world.coordinator.start(&[])?;
        rotate.wait(LONG)?;
        let newest = world.coordinator.newest_rotation()?;
        assert_eq!(newest["reason"], reason.as_str(), "the rotation was started");
        let id = newest["id"].as_str().context("an id")?;
        let rotation = world.coordinator.completed(id, LONG).context(point)?;
        assert_eq!(rotation["replaced"], true, "{point}");
        assert_eq!(rotation["targets"], world.certificates(), "{point}");
        assert_eq!(world.coordinator.audited("rotation.start")?.len(), round + 1, "{point}");

        let authority = world.coordinator.authority("builtin/a")?;
        proof::sealed_under(&world, &authority).context(point)?;
        for (old, new) in before.iter().zip(leaves(&world, |_| true)?) {
            assert_ne!(old.1, new.1, "{} was replaced in spite of {point}", old.0);
        }
    }
    for (name, seen) in client.stop() {
        assert_eq!(seen.failed, 0, "{name}: {:?}", seen.reasons);
    }
    Ok(())
}

fn four_services(fleet: &Fleet) -> Result<Vec<Service>> {
    let (one, two) = (fleet.host("one")?, fleet.host("two")?);
    let api = Service::mtls_api(one, "api", 8443);
    let gateway = Service::gateway(two, "gateway", 443, &api.endpoint);
    Ok(vec![api, gateway, Service::site(one, "shop", 443, "ecdsa-p256"), Service::haproxy(two, "edge", 8443)])
}

/// Service and served leaf of the services that are wanted.
fn leaves(world: &World, wanted: impl Fn(&Service) -> bool) -> Result<Vec<(String, String)>> {
    let services = world.services.iter().filter(|service| wanted(service));
    services
        .map(|service| {
            let served = openssl::served(&service.endpoint, &world.root)?;
            Ok((service.name.clone(), served.leaf().fingerprint.clone()))
        })
        .collect()
}

/// Certificates issued so far, by the audit log.
fn issued(world: &World) -> Result<u64> {
    let entries = world.coordinator.audited("certificates.issue")?;
    let count = |entry: &serde_json::Value| {
        let detail = entry["detail"].as_str()?;
        detail.split(' ').next()?.parse::<u64>().ok()
    };
    Ok(entries.iter().filter_map(count).sum())
}
