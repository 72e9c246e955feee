//! The agent dies with SIGKILL at every fail point of a renewal, of a roll-back and of its
//! identity's renewal, on real containers. No disk ever holds a mismatched pair, no client is refused, and the next start finishes the work.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use reseal_tests::fleet::Fleet;
use reseal_tests::process::{turn, wait_until};
use reseal_tests::product::Binaries;
use reseal_tests::services::Service;
use reseal_tests::world::World;
use reseal_tests::{probe, proof};

const LONG: Duration = Duration::from_secs(90);

/// In the order in which a renewal passes them.
const POINTS: [&str; 10] = [
    "agent.before_csr",
    "agent.after_key_written",
    "agent.before_switch",
    "agent.after_switch",
    "agent.before_reload",
    "agent.after_reload",
    "agent.before_verify",
    "agent.after_verify",
    "agent.after_result",
    "agent.before_report",
];

#[test]
fn a_kill_at_every_fail_point_is_finished_by_the_next_start() -> Result<()> {
    let _turn = turn()?;
    let binaries = Binaries::with_fail_points()?;
    let mut world = World::start(&["one"], binaries, three_services, &mut |_| {})?;
    let client = probe::Client::start(&world.endpoints(), &world.root, 10)?;
    // At the first passage, and in the middle of the batch.
    let rounds = POINTS.iter().flat_map(|point| [(*point).to_owned(), format!("{point}*2")]);
    for point in rounds {
        world.agents[0].kill();
        let host = world.fleet.host("one")?;
        world.agents[0].start(host, &[("RESEAL_FAILPOINTS", &point)])?;
        reseal_tests::product::wait_for_sessions(&world.coordinator, &mut world.agents)?;
        let keys = proof::secrets(&world)?;
        let id = world.coordinator.rotate(&["--host-label", "env=demo", "--waves", "100%"])?;
        // A point that is passed once per batch is not met twice.
        let dies = wait_until(&format!("the end at {point}"), LONG, || {
            if world.agents[0].has_ended()? {
                return Ok(true);
            }
            ensure!(world.coordinator.rotation(&id)?["state"] == "completed", "neither");
            Ok(false)
        })?;
        ensure!(dies || point.ends_with("*2"), "{point} is never passed");

        // As the crash left it: pairs match, everybody is served.
        proof::no_mismatched_pair(&world).context(point.clone())?;
        for service in &world.services {
            probe::once(&service.endpoint, &world.root).context(point.clone())?;
        }
        if dies {
            world.agents[0].kill();
            world.agents[0].start(world.fleet.host("one")?, &[])?;
        }
        let rotation = world.coordinator.completed(&id, LONG).context(point.clone())?;
        assert_eq!(rotation["replaced"], true, "{point}: {rotation}");
        let authority = world.coordinator.authority("builtin/a")?;
        proof::sealed_under(&world, &authority).context(point.clone())?;
        let directories: Vec<_> = world
            .services
            .iter()
            .map(|service| Ok(service.tls_directory(world.fleet.host(&service.host)?)))
            .collect::<Result<_>>()?;
        proof::nowhere_below(&directories, &keys)
            .with_context(|| format!("old keys after a kill at {point}"))?;
    }
    for (name, seen) in client.stop() {
        assert_eq!(seen.failed, 0, "{name}: {:?}", seen.reasons);
    }
    Ok(())
}

fn three_services(fleet: &Fleet) -> Result<Vec<Service>> {
    let one = fleet.host("one")?;
    let api = Service::mtls_api(one, "api", 8443);
    let gateway = Service::gateway(one, "gateway", 443, &api.endpoint);
    Ok(vec![api, gateway, Service::haproxy(one, "edge", 8444)])
}
