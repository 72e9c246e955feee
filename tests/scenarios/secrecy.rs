//! Never on the wire: every byte between agents and coordinator, decrypted, has no private
//! key in it, neither while certificates are first issued nor in a rotation.

use anyhow::{Context, Result, ensure};
use reseal_tests::capture::Capture;
use reseal_tests::fleet::Fleet;
use reseal_tests::process::turn;
use reseal_tests::product::{self, Binaries, Coordinator};
use reseal_tests::services::Service;
use reseal_tests::{openssl, proof, world};

#[test]
fn no_private_key_travels() -> Result<()> {
    let _turn = turn()?;
    let fleet = Fleet::start(&["one"])?;
    let mut coordinator = Coordinator::init(&fleet, Binaries::with_fail_points()?)?;
    let scratch = coordinator.directory().to_owned();
    let capture = Capture::start(&fleet.bridge(), 7443, &scratch)?;
    let keys = scratch.join("tls-keys");
    coordinator.start(&[("SSLKEYLOGFILE", &keys.display().to_string())])?;
    coordinator.set_policy()?;
    let root = coordinator.root()?;
    let agents = product::agents(&fleet, &coordinator)?;
    let one = fleet.host("one")?;
    let services = vec![
        Service::site(one, "shop", 443, "ecdsa-p256"),
        Service::haproxy(one, "edge", 8443),
        Service::site(one, "docs", 8444, "rsa-2048"),
    ];
    for service in &services {
        service.start(one)?;
    }
    let mut world = world::World { agents, coordinator, fleet, services, root };
    world.wait_for_certificates("a")?;
    let a = world.coordinator.authority("builtin/a")?;
    let mut secrets = proof::secrets(&world)?;
    let mut served = proof::sealed_under(&world, &a)?;
    let output = world.coordinator.output(&product::rotate("scenario", &["--compromised-issuer", "a"]))?;
    assert_eq!(output.status.code(), Some(6));
    secrets.extend(proof::secrets(&world)?);
    let b = world.coordinator.authority("builtin/b")?;
    let after = proof::sealed_under(&world, &b)?;
    assert_eq!(secrets.len(), 6);

    ensure!(keys.exists(), "this build of reseal logs no TLS keys");
    let streams = capture.decrypted(&keys)?;
    // The proof that this search finds what is there: each certificate travelled.
    for (name, old) in &mut served {
        let new = after.get(name).context("served before and after")?;
        for certificate in [old.leaf(), new.leaf()] {
            let der = openssl::der(certificate)?;
            let seen = streams.iter().any(|bytes| memchr::memmem::find(bytes, &der).is_some());
            ensure!(seen, "the certificate of {name} is in no decrypted stream");
        }
    }
    for secret in &secrets {
        ensure!(
            !streams.iter().any(|bytes| secret.is_in(bytes)),
            "the private key {} was on the wire",
            secret.name
        );
    }
    Ok(())
}
