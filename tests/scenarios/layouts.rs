//! Certificates in every layout that containers really use, on a real Docker host: issued,
//! renewed, rolled back, refused, and killed at every point, seen from inside the containers
//! and by OpenSSL and Java.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use reseal_tests::layouts::{JAVA, Laid, Lie, PASSWORD, by_hand};
use reseal_tests::openssl::Certificate;
use reseal_tests::process::{command, run, turn, wait_until};
use reseal_tests::product::{Binaries, wait_for_sessions};
use reseal_tests::world::World;
use reseal_tests::{machine, openssl, probe};
use serde_json::Value;

const LONG: Duration = Duration::from_secs(60);
const EVERYTHING: [&str; 4] = ["--host-label", "env=demo", "--waves", "100%"];

/// A host with an agent, a coordinator, and these containers.
fn lay(binaries: Binaries, lies: &[Lie]) -> Result<(World, Vec<Laid>)> {
    machine::require_root()?;
    machine::ensure(JAVA)?;
    let world = World::start(&["one"], binaries, |_| Ok(Vec::new()), &mut |_| {})?;
    let host = world.fleet.host("one")?;
    let start = |(port, lie): (u16, &Lie)| Laid::start(host, *lie, port, &[]);
    let laid = (8443..).zip(lies).map(start).collect::<Result<Vec<_>>>()?;
    let authority = world.coordinator.authority("builtin/a")?;
    for one in &laid {
        under(&world, one, &authority)?;
    }
    // Proved, so that what was there before is gone.
    wait_until("every first renewal at its end", LONG, || {
        let certificates = world.coordinator.json(&["certs", "--managed"])?;
        let rows = certificates.as_array().context("rows")?;
        let good = rows.iter().filter(|row| row["authority"] == "builtin/a" && row["status"] == "ok").count();
        ensure!(good == laid.len(), "{certificates}");
        Ok(())
    })?;
    Ok((world, laid))
}

/// Waits until the container sees, and its endpoint serves, a chain of this authority.
fn under(world: &World, laid: &Laid, authority: &str) -> Result<Vec<Certificate>> {
    wait_until(&format!("{} under the authority", laid.name), LONG, || {
        let chain = laid.inside(world.fleet.host("one")?)?;
        if laid.lie != Lie::Der {
            let issuer = chain.get(1).context("no intermediate")?;
            ensure!(issuer.fingerprint == authority, "issued by {}", issuer.subject);
        } else {
            ensure!(chain[0].issuer != chain[0].subject && chain.len() == 1, "not renewed");
        }
        if let Some(endpoint) = &laid.endpoint {
            let served = openssl::served(endpoint, &world.root)?;
            ensure!(served.chain == chain, "{} serves something else than it has", laid.name);
        }
        Ok(chain)
    })
}

#[test]
fn every_layout_is_renewed_as_its_container_sees_it() -> Result<()> {
    let _turn = turn()?;
    let (world, laid) = lay(Binaries::built()?, &Lie::ALL)?;
    let host = world.fleet.host("one")?;
    let of = |lie: Lie| laid.iter().find(|one| one.lie == lie).context("not laid");
    let before = laid.iter().map(|one| one.inside(host)).collect::<Result<Vec<_>>>()?;
    let (singles, certbot) = (of(Lie::Singles)?, of(Lie::Certbot)?);
    let inode = |path: &Path| fs::metadata(path).map(|file| file.ino());
    let held = (inode(&singles.at("tls/site.crt"))?, inode(&singles.at("tls/site.key"))?);
    let times = |laid: &Laid| fs::metadata(laid.at("tls/site.crt")).and_then(|file| file.modified());
    let time = times(singles)?;

    // What can reload refuses nobody; the store's server only starts again.
    let served = laid.iter().filter(|one| one.lie != Lie::Pkcs12);
    let endpoints: Vec<_> = served.filter_map(|one| one.endpoint.clone()).collect();
    let client = probe::Client::start(&endpoints, &world.root, 10)?;
    let id = world.coordinator.rotate(&["--compromised-issuer", "builtin/a", "--waves", "100%"])?;
    let rotation = wait_until("the end of the rotation", LONG, || {
        let rotation = world.coordinator.rotation(&id)?;
        let state = rotation["state"].as_str().unwrap_or_default();
        ensure!(matches!(state, "completed" | "trailing"), "{rotation}");
        Ok(rotation)
    })?;
    // Nothing serves the Java store and the DER files here.
    assert_eq!(rotation["targets_by_state"]["verified"], 6, "{rotation}");
    assert_eq!(rotation["targets_by_state"]["unserved"], 2, "{rotation}");
    let authority = world.coordinator.authority("builtin/b")?;
    for (one, before) in laid.iter().zip(&before) {
        let chain = under(&world, one, &authority)?;
        ensure!(chain[0].key != before[0].key, "{} has its old key", one.name);
    }
    for (name, seen) in client.stop() {
        assert_eq!(seen.failed, 0, "{name}: {:?}", seen.reasons);
        ensure!(seen.attempted > 5, "{name} was hardly asked");
    }

    // The files that are mounted are the same files, and a second later.
    assert_eq!((inode(&singles.at("tls/site.crt"))?, inode(&singles.at("tls/site.key"))?), held);
    ensure!(times(singles)? >= time + Duration::from_secs(1));
    for one in laid.iter().filter(|one| !one.lie.is_atomic()) {
        found(&world, "bind-mounted-file", &one.name)?;
    }
    // certbot's archive is as it was; what was not declared still leads there.
    let (archived, live) = (certbot.at("le/archive/site"), certbot.at("le/live/site"));
    let cert = fs::read_link(live.join("cert.pem"))?;
    assert_eq!(cert, Path::new("../../archive/site/cert1.pem"));
    let old = openssl::certificates(&fs::read_to_string(archived.join("fullchain1.pem"))?)?;
    ensure!(old[0].issuer == old[0].subject, "the archive was written to");
    let chain = certbot.bytes(host, "/le/live/site/chain.pem")?;
    let chain = openssl::certificates(&String::from_utf8(chain)?)?;
    assert_eq!(chain, certbot.inside(host)?[1..]);
    stores_open(&world, of(Lie::Pkcs12)?, of(Lie::Jks)?)
}

/// OpenSSL in the container and Java on the host show what is in the stores.
fn stores_open(world: &World, pkcs12: &Laid, jks: &Laid) -> Result<()> {
    let host = world.fleet.host("one")?;
    let words =
        ["openssl", "pkcs12", "-info", "-noout", "-passin", "file:/tls/password", "-in", "/tls/site.p12"];
    let both = ["sh", "-c", &format!("{} 2>&1", words.join(" "))].map(ToOwned::to_owned);
    let said = pkcs12.exec(host, &both.each_ref().map(String::as_str))?;
    for expected in ["MAC: sha256", "PBES2, PBKDF2, AES-256-CBC"] {
        ensure!(said.contains(expected), "{expected} is not in {said}");
    }
    for (laid, path, kind) in [(pkcs12, "/tls/site.p12", "PKCS12"), (jks, "/tls/site.jks", "jks")] {
        let directory = tempfile::tempdir()?;
        let file = directory.path().join("store");
        fs::write(&file, laid.bytes(host, path)?)?;
        let words = ["-list", "-v", "-storepass", PASSWORD, "-keystore"];
        let said = run(command("keytool", &words).arg(&file))?;
        // The entry keeps the name it had.
        for expected in ["Alias name: web", "PrivateKeyEntry", "Certificate chain length: 2"] {
            ensure!(said.contains(expected), "{kind}: {expected} is not in {said}");
        }
        ensure!(said.to_lowercase().contains(&format!("keystore type: {}", kind.to_lowercase())), "{said}");
    }
    Ok(())
}

/// In the order in which a renewal passes them.
const POINTS: [&str; 11] = [
    "agent.before_csr",
    "agent.after_key_written",
    "agent.before_switch",
    "agent.in_window",
    "agent.after_switch",
    "agent.before_reload",
    "agent.after_reload",
    "agent.before_verify",
    "agent.after_verify",
    "agent.after_result",
    "agent.before_report",
];

#[test]
fn a_kill_at_every_point_is_finished_by_the_next_start() -> Result<()> {
    let lies = [Lie::Singles, Lie::Mixed, Lie::Certbot, Lie::Debian, Lie::SingleCombined];
    killed_everywhere(&lies, &POINTS)
}

#[test]
fn a_kill_at_every_point_spoils_no_key_store() -> Result<()> {
    let points: Vec<&str> = POINTS.into_iter().filter(|point| *point != "agent.in_window").collect();
    killed_everywhere(&[Lie::Pkcs12, Lie::Jks, Lie::Der], &points)
}

fn killed_everywhere(lies: &[Lie], points: &[&str]) -> Result<()> {
    let _turn = turn()?;
    let (mut world, laid) = lay(Binaries::with_fail_points()?, lies)?;
    let serving = laid.iter().filter(|one| one.endpoint.is_some()).count() as u64;
    for point in points {
        restart(&mut world, &[("RESEAL_FAILPOINTS", point)])?;
        let id = world.coordinator.rotate(&EVERYTHING)?;
        wait_until(&format!("the end at {point}"), LONG, || {
            ensure!(world.agents[0].has_ended()?, "it lives");
            Ok(())
        })?;
        // As the crash left it: only between two files that are mounted by themselves
        // can they not belong together, and everybody is served all the same.
        let mut torn = 0;
        for one in &laid {
            let (_, matches) = one.look(world.fleet.host("one")?).context((*point).to_owned())?;
            let open = *point == "agent.in_window" && !one.lie.is_atomic();
            ensure!(matches || open, "{point}: {}", one.name);
            torn += usize::from(!matches);
            if let Some(endpoint) = &one.endpoint {
                probe::once(endpoint, &world.root).context((*point).to_owned())?;
            }
        }
        ensure!(torn > 0 || *point != "agent.in_window", "the window was not met");
        restart(&mut world, &[])?;
        wait_until(&format!("the end of the rotation after {point}"), LONG, || {
            let rotation = world.coordinator.rotation(&id)?;
            let count = |state: &str| rotation["targets_by_state"][state].as_u64().unwrap_or(0);
            let idle = laid.len() as u64 - serving;
            ensure!(count("verified") == serving && count("unserved") == idle, "{rotation}");
            Ok(())
        })?;
        let authority = world.coordinator.authority("builtin/a")?;
        for one in &laid {
            under(&world, one, &authority).context((*point).to_owned())?;
        }
    }
    Ok(())
}

#[test]
fn a_kill_in_a_roll_back_brings_everything_back_as_it_was() -> Result<()> {
    let _turn = turn()?;
    let lies = [Lie::Singles, Lie::Certbot, Lie::Debian];
    let (mut world, laid) = lay(Binaries::with_fail_points()?, &lies)?;
    world.agents[0].configure("verify_timeout_seconds = 3")?;
    let before = laid.iter().map(|one| one.inside(world.fleet.host("one")?)).collect::<Result<Vec<_>>>()?;
    for point in ["agent.before_roll_back", "agent.in_window*2", "agent.after_roll_back"] {
        // A configuration that nginx refuses: nothing is reloaded, everything goes back.
        spoil(&laid, true)?;
        restart(&mut world, &[("RESEAL_FAILPOINTS", point)])?;
        let words = ["--name", "singles.one.fleet.test", "--waves", "100%"];
        let id = world.coordinator.rotate(&words)?;
        wait_until(&format!("the kill at {point}"), LONG, || {
            ensure!(world.agents[0].has_ended()?, "it lives");
            Ok(())
        })?;
        restart(&mut world, &[])?;
        let halted = world.coordinator.in_state(&id, "halted", LONG)?;
        assert_eq!(halted["targets_by_state"]["rolled-back"], 1, "{halted}");
        spoil(&laid, false)?;
        for (one, before) in laid.iter().zip(&before) {
            assert_eq!(one.inside(world.fleet.host("one")?)?, *before, "{} after {point}", one.name);
        }
        world.coordinator.text(&["rotation", "abort", &id, "--reason", "seen"])?;
    }
    Ok(())
}

#[test]
fn what_is_not_the_agents_is_refused_or_given_back() -> Result<()> {
    let _turn = turn()?;
    let lies = [Lie::Singles, Lie::Certbot, Lie::Debian, Lie::Pkcs12];
    let (world, laid) = lay(Binaries::built()?, &lies)?;
    let host = world.fleet.host("one")?;
    let [singles, certbot, debian, store] = &laid[..] else { bail!("four are laid") };

    // certbot renews by itself: its link is back, with another certificate.
    let (chain, key, ..) = by_hand(&certbot.dns, 90 * 86_400)?;
    for (file, content) in [("fullchain", &chain), ("privkey", &key)] {
        fs::write(certbot.at(&format!("le/archive/site/{file}2.pem")), content)?;
        let link = certbot.at(&format!("le/live/site/{file}.pem"));
        fs::remove_file(&link)?;
        std::os::unix::fs::symlink(format!("../../archive/site/{file}2.pem"), link)?;
    }
    let id = refused(&world, certbot, "changed-by-others")?;
    assert_eq!(certbot.inside(host)?, openssl::certificates(&chain)?);
    // Acknowledged as the message says, and rolled back: the links are certbot's again.
    fs::remove_file(certbot.at("le/live/site/.reseal/fullchain/installed"))?;
    world.coordinator.text(&["rotation", "abort", &id, "--reason", "seen"])?;
    spoil(&laid, true)?;
    let id = failed(&world, certbot, "rolled-back", "check-refused")?;
    let link = fs::read_link(certbot.at("le/live/site/fullchain.pem"))?;
    assert_eq!(link, Path::new("../../archive/site/fullchain2.pem"));
    assert_eq!(certbot.inside(host)?, openssl::certificates(&chain)?);
    spoil(&laid, false)?;
    retry(&world, &id)?;

    // Somebody edits what was written.
    let file = debian.at("ssl/certs/site.pem");
    let written = fs::read_to_string(&file)?;
    fs::write(&file, format!("# mine\n{written}"))?;
    let id = refused(&world, debian, "changed-by-others")?;
    ensure!(fs::read_to_string(&file)?.starts_with("# mine"), "it was written over");
    fs::write(&file, written)?;
    retry(&world, &id)?;

    // A mounted file is replaced on the host: the container holds the old one.
    let path = singles.at("tls/site.crt");
    let seen = singles.inside(host)?;
    fs::copy(&path, singles.at("tls/new"))?;
    fs::rename(singles.at("tls/new"), &path)?;
    let id = refused(&world, singles, "bind-mounted-file")?;
    assert_eq!(singles.inside(host)?, seen);
    host.engine.docker(&["restart", &singles.name])?;
    retry(&world, &id)?;

    // No password, no store.
    fs::rename(store.at("tls/password"), store.at("tls/elsewhere"))?;
    let id = refused(&world, store, "password-unreadable")?;
    found(&world, "password-unreadable", "site.p12")?;
    fs::rename(store.at("tls/elsewhere"), store.at("tls/password"))?;
    retry(&world, &id)
}

#[test]
fn a_key_that_its_reader_cannot_read_is_never_installed() -> Result<()> {
    let _turn = turn()?;
    let (world, _) = lay(Binaries::built()?, &[])?;
    let host = world.fleet.host("one")?;
    // A program that runs as somebody else from its start on, and needs no key yet.
    let user = ["--user=1234:1234"];
    let labels = [("cert.site.verify", "none"), ("cert.site.key", "/tls/site.key")];
    let sleeps = Laid::start_as(host, Lie::Der, "sleeper", 8443, &labels, &user)?;
    fs::set_permissions(sleeps.at("tls/site.key"), std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    let before = (fs::read(sleeps.at("tls/site.der"))?, fs::read(sleeps.at("tls/site.key"))?);
    found(&world, "key-unreadable", "site.der")?;
    let said = wait_until("a failed renewal", LONG, || {
        let said = fs::read_to_string(host.directory().join("agent.log"))?;
        ensure!(said.contains("cannot read /tls/site.key"), "{said}");
        Ok(said)
    })?;
    ensure!(said.contains("user 1234") && said.contains("owner=1234"), "{said}");
    assert_eq!((fs::read(sleeps.at("tls/site.der"))?, fs::read(sleeps.at("tls/site.key"))?), before);
    // Everybody may read it: told, and then the owner is declared.
    fs::set_permissions(sleeps.at("tls/site.key"), std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    found(&world, "key-too-open", "site.der")?;
    host.engine.docker(&["rm", "--force", "sleeper"])?;
    let labels = [&labels[..], &[("cert.site.owner", "1234"), ("cert.site.mode", "0400")]].concat();
    let sleeps = Laid::start_as(host, Lie::Der, "sleeper2", 8443, &labels, &user)?;
    wait_until("a key of its own", LONG, || {
        let readable = sleeps.exec(host, &["sh", "-c", "id -u && cat /tls/site.key | wc -c"])?;
        ensure!(readable.starts_with("1234"), "{readable}");
        let (chain, matches) = sleeps.look(host)?;
        ensure!(matches && chain[0].issuer != chain[0].subject, "not renewed");
        Ok(())
    })?;
    let key = fs::metadata(sleeps.at("tls/site.key"))?;
    assert_eq!((key.uid(), key.mode() & 0o777), (1234, 0o400));
    Ok(())
}

/// A target that fails at the install, with nothing changed; its rotation.
fn refused(world: &World, laid: &Laid, code: &str) -> Result<String> {
    failed(world, laid, "failed", code)
}

fn failed(world: &World, laid: &Laid, state: &str, code: &str) -> Result<String> {
    let id = world.coordinator.rotate(&["--name", &laid.dns, "--waves", "100%"])?;
    let halted = world.coordinator.in_state(&id, "halted", LONG)?;
    assert_eq!(halted["targets_by_state"][state], 1, "{halted}");
    ensure!(halted["failures"].to_string().contains(code), "{code}: {halted}");
    Ok(id)
}

fn retry(world: &World, id: &str) -> Result<()> {
    world.coordinator.text(&["rotation", "retry", id])?;
    world.coordinator.completed(id, LONG).map(drop)
}

/// Makes nginx refuse its configuration, or not.
fn spoil(laid: &[Laid], spoilt: bool) -> Result<()> {
    for one in laid {
        let file = one.at("etc/nginx.conf");
        let text = fs::read_to_string(&file)?.replace("nonsense;\n", "");
        fs::write(file, if spoilt { format!("{text}nonsense;\n") } else { text })?;
    }
    Ok(())
}

fn restart(world: &mut World, environment: &[(&str, &str)]) -> Result<()> {
    world.agents[0].kill();
    world.agents[0].start(world.fleet.host("one")?, environment)?;
    wait_for_sessions(&world.coordinator, &mut world.agents)
}

/// `reseal-agent scan` tells of it.
fn found(world: &World, id: &str, object: &str) -> Result<Value> {
    wait_until(&format!("the finding {id} of {object}"), LONG, || {
        let host = world.fleet.host("one")?;
        let said = run(&mut world.agents[0].command(host, &["scan", "--output", "json"]))?;
        let said: Value = serde_json::from_str(&said)?;
        let all = said["findings"].as_array().context("findings")?;
        let is = |found: &&Value| {
            found["id"] == id && found["object"].as_str().is_some_and(|known| known.contains(object))
        };
        all.iter().find(is).cloned().with_context(|| format!("{said:#}"))
    })
}
