//! The main job: an intermediate is compromised, three real Docker hosts move to another,
//! and a client outside the product sees it happen without losing a connection.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result, ensure};
use reseal_tests::process::turn;
use reseal_tests::product::{Binaries, rotate};
use reseal_tests::world::{HOSTS, World, ten_services};
use reseal_tests::{openssl, probe, proof};

#[test]
fn a_compromised_intermediate_is_replaced_everywhere() -> Result<()> {
    let _turn = turn()?;
    let world = World::start(&HOSTS, Binaries::built()?, ten_services, &mut |_| {})?;
    let coordinator = &world.coordinator;
    let (a, b) = (coordinator.authority("builtin/a")?, coordinator.authority("builtin/b")?);
    let before = proof::sealed_under(&world, &a)?;
    let old_secrets = proof::secrets(&world)?;
    let stolen = tempfile::tempdir()?;
    let gateway = service(&world, "gateway")?;
    let oslo = world.fleet.host("oslo-1")?;
    for name in ["client.crt", "client.key"] {
        fs::copy(gateway.tls_directory(oslo).join(name), stolen.path().join(name))?;
    }

    // The plan changes nothing and names everything.
    let audit = coordinator.json(&["audit", "list"])?;
    let plan = coordinator.json(&["plan", "--compromised-issuer", "a"])?;
    assert_eq!(plan["targets"], world.certificates());
    assert_eq!(plan["containers"], world.services.len());
    assert_eq!(plan["hosts"].as_array().map(Vec::len), Some(3));
    assert_eq!(plan["hosts_offline"], 0);
    assert_eq!(coordinator.json(&["audit", "list"])?, audit, "a plan leaves no trace");
    let by_fingerprint = coordinator.json(&["plan", "--compromised-issuer", &a])?;
    assert_eq!(by_fingerprint["targets"], plan["targets"]);

    // The rotation, with clients that connect to every endpoint all the time.
    let client = probe::Client::start(&world.endpoints(), &world.root, 20)?;
    let words = rotate("scenario", &["--compromised-issuer", "a", "--waves", "1,100%", "--output", "json"]);
    let said = coordinator.output(&words)?;
    let text = String::from_utf8(said.stdout)?;
    let errors = String::from_utf8_lossy(&said.stderr).into_owned();
    assert_eq!(said.status.code(), Some(6), "replaced, not contained: {text}{errors}");
    let last = text.lines().last().context("a summary line")?;
    let summary: serde_json::Value = serde_json::from_str(last)?;
    assert_eq!(summary["type"], "summary");
    assert_eq!(summary["replaced"], true);
    assert_eq!(summary["contained"], false);
    assert_eq!(summary["verified_targets"], world.certificates());
    let id = summary["id"].as_str().context("an id")?.to_owned();

    let after = proof::sealed_under(&world, &b)?;
    let tally = client.stop();
    for (name, seen) in &tally {
        assert_eq!(seen.failed, 0, "{name}: {:?}", seen.reasons);
        let met: BTreeSet<_> = seen.issuers.keys().cloned().collect();
        assert_eq!(met, BTreeSet::from([a.clone(), b.clone()]), "{name} was met under A and B");
    }
    assert_eq!(tally.len(), world.services.len());

    // New keys, new certificates, and the old keys are gone from every disk.
    let mut keys = BTreeSet::new();
    for (name, served) in &after {
        let old = before.get(name).context("served before")?;
        assert_ne!(old.leaf().key, served.leaf().key, "{name} kept its key");
        ensure!(keys.insert(served.leaf().key.clone()), "{name} shares its key");
    }
    let directories: Vec<_> = world
        .services
        .iter()
        .map(|service| Ok(service.tls_directory(world.fleet.host(&service.host)?)))
        .collect::<Result<_>>()?;
    ensure!(proof::nowhere_below(&directories, &old_secrets)? > 0, "nothing was searched");
    let new_secrets = proof::secrets(&world)?;
    let found = proof::nowhere_below(&directories, &new_secrets);
    ensure!(found.is_err(), "the search would not find a key where one is");

    // No private key is where none may be.
    let mut places = proof::forbidden_places(&world)?;
    let evidence = world.coordinator.directory().join("evidence.json").display().to_string();
    coordinator.text(&["rotation", "evidence", &id, "--file", &evidence])?;
    places.push(evidence.clone().into());
    let all: Vec<_> = old_secrets.iter().chain(&new_secrets).cloned().collect();
    ensure!(proof::nowhere_below(&places, &all)? > 10, "too little was searched");

    // Evidence holds offline, for this anchor and these bytes only.
    let anchor = &coordinator.anchor;
    let verified = coordinator.json(&["evidence", "verify", &evidence, "--anchor", anchor])?;
    assert_eq!(verified["valid"], true);
    assert_eq!(verified["summary"]["verified"], world.certificates());
    coordinator.refused(1, &["evidence", "verify", &evidence, "--anchor", &"ab".repeat(32)])?;
    let good = fs::read(&evidence)?;
    for at in (0..good.len()).step_by(good.len() / 40) {
        let mut bad = good.clone();
        bad[at] ^= 1;
        let file = stolen.path().join("changed.json").display().to_string();
        fs::write(&file, bad)?;
        let verdict = coordinator.output(&["evidence", "verify", &file, "--anchor", anchor])?;
        assert!(!verdict.status.success(), "evidence with byte {at} changed was accepted");
    }

    // Replaced is not contained, and the summary must not say otherwise: the API still lets
    // the thief in. The new client certificate is let in, too.
    let api = service(&world, "api")?;
    let tls = gateway.tls_directory(oslo);
    for directory in [stolen.path(), tls.as_path()] {
        let (chain, key) = (directory.join("client.crt"), directory.join("client.key"));
        let client = openssl::Client { chain: &chain, key: &key };
        assert_eq!(openssl::status(&api.endpoint, &world.root, Some(client))?, 200);
    }
    assert_eq!(openssl::status(&api.endpoint, &world.root, None)?, 400);

    // Once.
    assert_eq!(coordinator.audited("rotation.start")?.len(), 1);
    let again = coordinator.refused(1, &rotate("scenario", &["--compromised-issuer", "a"]))?;
    assert!(again.contains("matches no"), "{again}");
    Ok(())
}

fn service<'a>(world: &'a World, name: &str) -> Result<&'a reseal_tests::services::Service> {
    let found = world.services.iter().find(|service| service.name == name);
    found.with_context(|| format!("no service {name}"))
}
