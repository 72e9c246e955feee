//! A host with troubles of its own: a clock that is wrong and jumps, disks that are full, a
//! roll-back or an identity's renewal that is killed. It goes on, it says what is wrong, and
//! nothing is lost.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use reseal_tests::fault::clock::Clock;
use reseal_tests::fleet::Fleet;
use reseal_tests::process::{command, run, turn, wait_until};
use reseal_tests::product::{Binaries, wait_for_sessions};
use reseal_tests::services::Service;
use reseal_tests::world::World;
use reseal_tests::{openssl, proof};
use serde_json::Value;

const LONG: Duration = Duration::from_secs(120);
const HOUR: i64 = 3600;

#[test]
fn a_wrong_clock_decides_nothing_and_a_jump_stops_nothing() -> Result<()> {
    let _turn = turn()?;
    let mut world = World::start(&["one"], Binaries::built()?, one_site, &mut |_| {})?;
    let before = openssl::served(&world.services[0].endpoint, &world.root)?;
    // By this clock its identity has ended six hours ago.
    let clock = Clock::new(world.fleet.directory())?;
    clock.set(30 * HOUR)?;
    world.agents[0].kill();
    world.agents[0].start(world.fleet.host("one")?, &clock.environment())?;
    wait_for_sessions(&world.coordinator, &mut world.agents)?;
    found(&world, "clock-skew", Some("ahead of"))?;

    let id = rotate(&world, "a wrong clock")?;
    wait_until("a target that is installed and not called verified", LONG, || {
        let rotation = world.coordinator.rotation(&id)?;
        ensure!(rotation["targets_by_state"]["unserved"] == 1, "{rotation}");
        Ok(())
    })?;
    let after = openssl::served(&world.services[0].endpoint, &world.root)?;
    ensure!(after.leaf() != before.leaf(), "it is not installed");
    proof::no_mismatched_pair(&world)?;

    // Seventy hours back while it runs: the session stays, the words change.
    let session = |world: &World| -> Result<String> {
        let host = world.coordinator.json(&["host", "list"])?;
        Ok(format!("{} {}", host[0]["connected"], host[0]["identity_expires_at"]))
    };
    let up = session(&world)?;
    clock.set(-40 * HOUR)?;
    found(&world, "clock-skew", Some("behind"))?;
    assert_eq!(session(&world)?, up, "another session or identity");
    ensure!(world.coordinator.rotation(&id)?["state"] != "completed", "proved with a wrong clock");
    let said = doctor(&world, &clock)?;
    ensure!(said.contains("bad      clock") && said.contains("behind"), "{said}");
    // By this clock the coordinator's certificate has not begun: a new session comes up all the same.
    world.agents[0].kill();
    world.agents[0].start(world.fleet.host("one")?, &clock.environment())?;
    wait_for_sessions(&world.coordinator, &mut world.agents)?;

    // Set right: what waited is proved by itself, in fresh handshakes, and signed.
    clock.set(0)?;
    let rotation = world.coordinator.completed(&id, LONG)?;
    assert_eq!(rotation["replaced"], true, "{rotation}");
    found(&world, "clock-skew", None)?;
    let said = doctor(&world, &clock)?;
    ensure!(said.contains("ok       clock") && said.contains("tried on 1 running"), "{said}");
    assert_eq!(openssl::served(&world.services[0].endpoint, &world.root)?.leaf(), after.leaf());
    Ok(())
}

#[test]
fn full_disks_stop_a_target_and_not_the_host() -> Result<()> {
    let _turn = turn()?;
    let mut world = World::start(&["one"], Binaries::with_fail_points()?, site_on_a_small_disk, &mut |_| {})?;
    let site = world.services[0].clone();
    let tls = site.tls_directory(world.fleet.host("one")?);
    let before = openssl::served(&site.endpoint, &world.root)?;

    // Nowhere to write the new pair: the old one stays, whole and served.
    let full = fill(&tls)?;
    let id = rotate(&world, "the certificates' disk is full")?;
    let target = wait_until("a failed target", LONG, || {
        let rotation = world.coordinator.rotation(&id)?;
        ensure!(rotation["targets_by_state"]["failed"] == 1, "{rotation}");
        Ok(rotation)
    })?;
    ensure!(target.to_string().contains("no-space"), "{target}");
    proof::no_mismatched_pair(&world)?;
    assert_eq!(openssl::served(&site.endpoint, &world.root)?.leaf(), before.leaf());
    fs::remove_file(full)?;
    world.coordinator.text(&["rotation", "abort", &id, "--reason", "there is room again"])?;

    // The state directory: the reserve is used, and a result outlives the process.
    let state = world.fleet.host("one")?.directory().join("agent");
    world.agents[0].kill();
    onto_small_disk(&state, "24m")?;
    let point = [("RESEAL_FAILPOINTS", "agent.before_report")];
    world.agents[0].start(world.fleet.host("one")?, &point)?;
    wait_until("the reserve", LONG, || Ok(fs::metadata(state.join("ballast")).map(drop)?))?;
    wait_for_sessions(&world.coordinator, &mut world.agents)?;
    let full = fill(&state)?;
    let id = rotate(&world, "the state directory's disk is full")?;
    wait_until("the kill before the result is sent", LONG, || {
        ensure!(world.agents[0].has_ended()?, "it lives");
        Ok(())
    })?;
    ensure!(!state.join("ballast").exists(), "nothing had to be given up");
    let kept = fs::read_dir(state.join("results"))?.flatten().count();
    assert_eq!(kept, 1, "a result on the full disk");
    // Not even the reserve is left: it goes on all the same.
    fs::remove_file(&full)?;
    let full = fill(&state)?;
    world.agents[0].kill();
    world.agents[0].start(world.fleet.host("one")?, &[])?;
    let rotation = world.coordinator.completed(&id, LONG)?;
    assert_eq!(rotation["replaced"], true, "{rotation}");
    found(&world, "state-disk", Some("in use"))?;
    let id = rotate(&world, "in memory")?;
    assert_eq!(world.coordinator.completed(&id, LONG)?["replaced"], true);
    proof::no_mismatched_pair(&world)?;
    fs::remove_file(full)?;
    // As after an error of the disk, and with a restart at that.
    world.agents[0].kill();
    run(command("mount", &["-o", "remount,ro"]).arg(&state))?;
    world.agents[0].start(world.fleet.host("one")?, &[])?;
    wait_for_sessions(&world.coordinator, &mut world.agents)?;
    found(&world, "state-disk", Some("read-only"))?;
    let id = rotate(&world, "a read-only file system")?;
    assert_eq!(world.coordinator.completed(&id, LONG)?["replaced"], true);
    run(command("mount", &["-o", "remount,rw"]).arg(&state))?;
    found(&world, "state-disk", None)?;
    ensure!(state.join("ballast").exists(), "the reserve is not laid down again");
    Ok(())
}

#[test]
fn a_kill_in_a_roll_back_brings_the_old_pair_back_all_the_same() -> Result<()> {
    let _turn = turn()?;
    let mut world =
        World::start(&["one"], Binaries::with_fail_points()?, site_that_never_reloads, &mut |_| {})?;
    let mut config =
        File::options().append(true).open(world.fleet.host("one")?.directory().join("agent.toml"))?;
    writeln!(config, "verify_timeout_seconds = 3")?;
    let before = openssl::served(&world.services[0].endpoint, &world.root)?;
    for point in ["agent.before_roll_back", "agent.after_roll_back", "agent.after_result"] {
        world.agents[0].kill();
        world.agents[0].start(world.fleet.host("one")?, &[("RESEAL_FAILPOINTS", point)])?;
        wait_for_sessions(&world.coordinator, &mut world.agents)?;
        let id = rotate(&world, point)?;
        wait_until(&format!("the kill at {point}"), LONG, || {
            ensure!(world.agents[0].has_ended()?, "it lives");
            Ok(())
        })?;
        proof::no_mismatched_pair(&world).context(point)?;
        world.agents[0].kill();
        world.agents[0].start(world.fleet.host("one")?, &[])?;
        wait_until(&format!("a rolled-back target after {point}"), LONG, || {
            let rotation = world.coordinator.rotation(&id)?;
            ensure!(rotation["targets_by_state"]["rolled-back"] == 1, "{rotation}");
            Ok(())
        })?;
        // The file is the old one again, and so is what is served.
        let file = world.services[0].certificate_file(world.fleet.host("one")?);
        let on_disk = openssl::certificates(&fs::read_to_string(file)?)?;
        assert_eq!(on_disk, before.chain, "{point}");
        proof::no_mismatched_pair(&world).context(point)?;
        assert_eq!(openssl::served(&world.services[0].endpoint, &world.root)?.leaf(), before.leaf());
        world.coordinator.text(&["rotation", "abort", &id, "--reason", "seen"])?;
    }
    Ok(())
}

#[test]
fn a_kill_in_the_renewal_of_the_identity_locks_nobody_out() -> Result<()> {
    let _turn = turn()?;
    let mut world = World::start(&["one"], Binaries::with_fail_points()?, one_site, &mut |_| {})?;
    let clock = Clock::new(world.fleet.directory())?;
    let points = ["agent.after_identity_stored", "agent.before_promote", "agent.after_promote"];
    for (round, point) in (1..).zip(points) {
        let identity = |world: &World| -> Result<Value> {
            Ok(world.coordinator.json(&["host", "list"])?[0]["identity_expires_at"].clone())
        };
        let before = identity(&world)?;
        world.agents[0].kill();
        // Seventeen hours of the coordinator's clock: the identity is due.
        world.coordinator.kill();
        clock.set(17 * HOUR * round)?;
        world.coordinator.start(&clock.environment())?;
        world.agents[0].start(world.fleet.host("one")?, &[("RESEAL_FAILPOINTS", point)])?;
        wait_until(&format!("the kill at {point}"), LONG, || {
            ensure!(world.agents[0].has_ended()?, "it lives");
            Ok(())
        })?;
        world.agents[0].kill();
        world.agents[0].start(world.fleet.host("one")?, &[])?;
        wait_for_sessions(&world.coordinator, &mut world.agents).context(point)?;
        ensure!(identity(&world)? != before, "{point}: the identity is the old one");
    }
    Ok(())
}

#[test]
fn a_host_that_was_off_for_weeks_comes_back_by_an_invitation() -> Result<()> {
    let _turn = turn()?;
    let mut world = World::start(&["one"], Binaries::built()?, one_site, &mut |_| {})?;
    let file = world.services[0].certificate_file(world.fleet.host("one")?);
    let pair = fs::read(&file)?;
    // The host is off; everybody's clock goes on, and with it a renewal comes due.
    let clock = Clock::new(world.fleet.directory())?;
    clock.set(25 * 24 * HOUR)?;
    let everywhere = clock.environment().into_iter().map(|(name, value)| (name.into(), value.into()));
    let everywhere: Vec<(String, String)> = everywhere.collect();
    world.agents[0].kill();
    world.coordinator.kill();
    world.coordinator.environment.clone_from(&everywhere);
    world.agents[0].environment = everywhere;
    world.coordinator.start(&clock.environment())?;
    let host = world.fleet.host("one")?;
    let log = host.directory().join("agent.log");
    world.agents[0].start(host, &clock.environment())?;
    wait_until("what to do, in the log", LONG, || {
        let said = fs::read_to_string(&log)?;
        ensure!(
            said.contains("the identity of host one has expired: run `reseal host invite one`"),
            "{said}"
        );
        Ok(())
    })?;
    let said = doctor(&world, &clock)?;
    ensure!(said.contains("bad      identity") && said.contains("expired"), "{said}");
    assert_eq!(fs::read(&file)?, pair, "the old pair stays where it is");

    // The agent that runs takes the new identity up, and what came due is renewed by itself.
    world.agents[0].enrol(host, &world.coordinator.invite("one")?)?;
    wait_for_sessions(&world.coordinator, &mut world.agents)?;
    wait_until("a renewed certificate", LONG, || {
        ensure!(fs::read(&file)? != pair, "it is the old one");
        Ok(())
    })?;
    proof::no_mismatched_pair(&world)?;
    wait_until("the new one on record", LONG, || {
        let list = world.coordinator.json(&["certs", "--managed"])?;
        ensure!(list[0]["status"] == "ok", "{list}");
        Ok(())
    })?;
    let new = openssl::certificates(&fs::read_to_string(&file)?)?;
    wait_until("the new one in handshakes", LONG, || {
        let address = world.services[0].endpoint.address.to_string();
        let mut client = command("openssl", &["s_client", "-connect", &address, "-servername"]);
        let shown = run(client.arg(&world.services[0].endpoint.sni).stdin(std::process::Stdio::null()))?;
        let first = shown.find("-----BEGIN").context("no certificate")?;
        ensure!(openssl::certificates(&shown[first..])?[0] == new[0], "another one");
        Ok(())
    })
}

/// What `reseal-agent doctor` says on the host with this clock.
fn doctor(world: &World, clock: &Clock) -> Result<String> {
    let mut doctor = world.agents[0].command(world.fleet.host("one")?, &["doctor"]);
    let output = doctor.envs(clock.environment()).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Starts a rotation of everything, under the same authority.
fn rotate(world: &World, reason: &str) -> Result<String> {
    let words =
        ["rotate", "--host-label", "env=demo", "--waves", "100%", "--yes", "--detach", "--reason", reason];
    let started = world.coordinator.json(&words)?;
    Ok(started["id"].as_str().context("an id")?.to_owned())
}

/// Waits until the coordinator has a finding of this id that says so, or none of this id.
fn found(world: &World, id: &str, says: Option<&str>) -> Result<()> {
    wait_until(&format!("finding {id}: {says:?}"), LONG, || {
        let all = world.coordinator.json(&["findings", "--host", "one"])?;
        let all = all.as_array().context("a list of findings")?;
        let found = all.iter().find(|found| found["id"] == id);
        match (found.map(Value::to_string), says) {
            (None, None) => Ok(()),
            (Some(found), Some(says)) if found.contains(says) => Ok(()),
            (found, _) => bail!("{found:?} of {all:?}"),
        }
    })
}

/// Puts a directory and what is in it on a disk of its own. It is taken away with the fleet.
fn onto_small_disk(directory: &Path, size: &str) -> Result<()> {
    let aside = directory.with_extension("aside");
    run(command("cp", &["-a"]).arg(directory).arg(&aside))?;
    let options = format!("size={size},mode=0700");
    run(command("mount", &["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(directory))?;
    run(command("cp", &["-a"]).arg(aside.join(".")).arg(directory))?;
    Ok(())
}

/// Fills a disk to the last byte; the file that does it.
fn fill(directory: &Path) -> Result<PathBuf> {
    let path = directory.join("filler");
    let mut file = File::create(&path)?;
    loop {
        match file.write(&[0; 4096]) {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::StorageFull => return Ok(path),
            Err(error) => return Err(error).context("cannot fill the disk"),
        }
    }
}

fn one_site(fleet: &Fleet) -> Result<Vec<Service>> {
    Ok(vec![Service::site(fleet.host("one")?, "shop", 443, "ecdsa-p256")])
}

fn site_on_a_small_disk(fleet: &Fleet) -> Result<Vec<Service>> {
    let services = one_site(fleet)?;
    let tls = services[0].tls_directory(fleet.host("one")?);
    fs::create_dir_all(&tls)?;
    run(command("mount", &["-t", "tmpfs", "-o", "size=256k,mode=0755", "tmpfs"]).arg(&tls))?;
    Ok(services)
}

fn site_that_never_reloads(fleet: &Fleet) -> Result<Vec<Service>> {
    let mut services = one_site(fleet)?;
    services[0].label("cert.site.reload", "none");
    Ok(services)
}
