//! Every program of the table that a Debian package brings, all at once on one real Docker
//! host, described by labels only: first certificates, a rotation of all of them, then one of
//! each alone, under new connections all the time from a client that speaks each program's
//! own protocol. Nothing fails and nothing is restarted but the one that cannot reload.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use reseal_tests::fleet::Fleet;
use reseal_tests::openssl::{self, Certificate};
use reseal_tests::process::turn;
use reseal_tests::product::Binaries;
use reseal_tests::programs::{self, EXPECTED, RESTART};
use reseal_tests::services::Service;
use reseal_tests::world::World;
use reseal_tests::{probe, proof};

const LONG: Duration = Duration::from_secs(90);
/// New connections to each endpoint.
const PER_SECOND: u32 = 4;
/// Of the one that is restarted twice, each time for some seconds.
const MOST_FAILED: u64 = 2 * 10 * PER_SECOND as u64;

fn cast(fleet: &Fleet) -> Result<Vec<Service>> {
    programs::all(fleet.host("one")?)
}

#[test]
fn every_program_takes_new_certificates_and_serves_meanwhile() -> Result<()> {
    let _turn = turn()?;
    let world = World::start(&["one"], Binaries::built()?, cast, &mut |_| {})?;
    let client = probe::Client::start(&world.endpoints(), &world.root, PER_SECOND)?;
    let (old, began) = (leaves(&world)?, lives(&world)?);

    let begun = Instant::now();
    let id = world.coordinator.rotate(&["--host-label", "env=demo", "--waves", "100%"])?;
    world.coordinator.completed(&id, LONG)?;
    eprintln!("{} programs at once: {:.1} s", world.services.len(), begun.elapsed().as_secs_f64());
    let new = leaves(&world)?;
    for (endpoint, certificate) in &new {
        ensure!(old[endpoint].key != certificate.key, "{endpoint} has its old key");
    }
    proof::no_mismatched_pair(&world)?;

    for service in &world.services {
        let begun = Instant::now();
        let id = world.coordinator.rotate(&["--name", &service.endpoint.sni, "--waves", "100%"])?;
        world.coordinator.completed(&id, LONG).with_context(|| service.name.clone())?;
        eprintln!("{}: renewed and verified in {:.2} s", service.name, begun.elapsed().as_secs_f64());
    }
    let newest = leaves(&world)?;
    for (endpoint, certificate) in &newest {
        ensure!(new[endpoint].key != certificate.key, "{endpoint} was not renewed alone");
    }

    each_was_reloaded_as_the_table_says(&world)?;
    let restarted: Vec<&str> =
        EXPECTED.iter().filter(|(_, method)| *method == RESTART).map(|(name, _)| *name).collect();
    for (service, life) in lives(&world)? {
        let same = began[&service] == life;
        ensure!(same != restarted.contains(&service.as_str()), "{service} began at {life}");
    }
    for (endpoint, seen) in client.stop() {
        eprintln!("{endpoint}: {} connections, {} failed", seen.attempted, seen.failed);
        if restarted.contains(&endpoint.as_str()) {
            ensure!(seen.failed <= MOST_FAILED, "{endpoint}: {:?}", seen.reasons);
        } else {
            ensure!(seen.failed == 0, "{endpoint}: {:?}", seen.reasons);
        }
    }
    Ok(())
}

/// What OpenSSL is served at each endpoint: a chain that it accepts, and the very bytes that
/// are in the container's file.
fn leaves(world: &World) -> Result<BTreeMap<String, Certificate>> {
    let mut all = BTreeMap::new();
    for service in &world.services {
        let host = world.fleet.host(&service.host)?;
        let file = service.certificate_file(host);
        let name = file.file_name().context("a file")?.to_string_lossy().into_owned();
        let inside = host.engine.docker(&["exec", &service.name, "cat", &format!("/tls/{name}")])?;
        let inside = openssl::certificates(&inside)?;
        for endpoint in service.endpoints() {
            let served = openssl::served(&endpoint, &world.root)?;
            openssl::verify_strict(&served, &world.root).with_context(|| endpoint.service.clone())?;
            ensure!(served.chain == inside, "{} serves something else than its file", endpoint.service);
            all.insert(endpoint.service, served.leaf().clone());
        }
    }
    Ok(all)
}

/// When each container began its present life.
fn lives(world: &World) -> Result<BTreeMap<String, String>> {
    let began = |service: &Service| {
        let words = ["inspect", "--format", "{{.State.StartedAt}}", &service.name];
        let began = world.fleet.host(&service.host)?.engine.docker(&words)?;
        Ok((service.name.clone(), began.trim().to_owned()))
    };
    world.services.iter().map(began).collect()
}

fn each_was_reloaded_as_the_table_says(world: &World) -> Result<()> {
    let log = std::fs::read_to_string(world.fleet.host("one")?.directory().join("agent.log"))?;
    for (service, expected) in EXPECTED {
        let container = format!("container={service:?}");
        let plain = format!("container={service} ");
        let method = format!("method={expected}");
        let reloads: Vec<&str> = log
            .lines()
            .filter(|line| line.contains("reloaded") && (line.contains(&container) || line.contains(&plain)))
            .collect();
        // One of all, one alone; the first certificate may have come before the first start.
        ensure!(reloads.len() >= 2, "{service} was reloaded {} times", reloads.len());
        let strangers: Vec<_> = reloads.iter().filter(|line| !line.contains(&method)).collect();
        ensure!(strangers.is_empty(), "{service} was reloaded otherwise: {strangers:#?}");
    }
    Ok(())
}
