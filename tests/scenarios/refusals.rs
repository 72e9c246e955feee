//! What makes no sense is refused with a word about the object, and changes nothing: bad
//! labels, selections that match nothing, two rotations over one target, a name that policy
//! does not admit. And a reload leaves a container's restart policy alone.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use reseal_tests::fleet::Fleet;
use reseal_tests::process::{turn, wait_until};
use reseal_tests::product::{Binaries, rotate};
use reseal_tests::services::Service;
use reseal_tests::world::World;
use reseal_tests::{openssl, probe, proof};

const LONG: Duration = Duration::from_secs(60);

fn two_sites(fleet: &Fleet) -> Result<Vec<Service>> {
    let one = fleet.host("one")?;
    let shop = Service::site(one, "shop", 443, "ecdsa-p256");
    // As most images people build: no stop signal.
    let plain = Service::site(one, "plain", 8443, "ecdsa-p256").without_stop_signal();
    Ok(vec![shop, plain])
}

#[test]
fn what_makes_no_sense_is_refused() -> Result<()> {
    let _turn = turn()?;
    let world = World::start(&["one"], Binaries::built()?, two_sites, &mut |_| {})?;
    let coordinator = &world.coordinator;
    let one = world.fleet.host("one")?;

    bad_labels(&world)?;

    // Selections.
    let nothing = ["--name", "nobody.example.test"];
    let said = coordinator.refused(1, &rotate("x", &nothing))?;
    ensure!(said.contains("matches no"), "{said}");
    let plan = coordinator.json(&[&["plan"], &nothing[..]].concat())?;
    assert_eq!(plan["targets"], 0);
    coordinator.refused(2, &rotate("x", &[]))?;
    let said = coordinator.output(&["plan", "--compromised-issuer", "nobody"])?;
    ensure!(!said.status.success(), "an issuer that is not there");
    coordinator.refused(1, &rotate("x", &["--key-type", "dsa"]))?;
    coordinator.refused(2, &rotate("", &["--name", "*"]))?;
    for waves in ["0", "0%", "101%", "50%,10%", "x", ""] {
        coordinator.refused(2, &rotate("x", &["--host-label", "env=demo", "--waves", waves]))?;
    }

    // Two rotations over one target: the agent stands still, so that the first cannot end.
    world.agents[0].pause();
    let words = ["--name", "shop.one.fleet.test"];
    let id = coordinator.rotate(&words)?;
    let said = coordinator.refused(1, &rotate("again", &words))?;
    ensure!(said.contains(&id), "the running rotation is not named: {said}");
    world.agents[0].resume();
    coordinator.completed(&id, LONG)?;
    assert_eq!(coordinator.audited("rotation.start")?.len(), 1);

    // A name that policy does not admit is not issued, and says so.
    let check = ["policy", "check", "--host", "one", "--name", "shop.two.fleet.test"];
    coordinator.refused(5, &check)?;
    let foreign = Service::site(one, "thief", 8444, "ecdsa-p256");
    let mut foreign = foreign.without_stop_signal();
    foreign.label("cert.site.names", "shop.two.fleet.test");
    foreign.start(one)?;
    wait_until("a refusal in the audit log", LONG, || {
        let entries = coordinator.audited("certificates.issue")?;
        let refused = |entry: &serde_json::Value| entry.to_string().contains("1 refused");
        ensure!(entries.iter().any(refused), "none");
        Ok(())
    })?;
    ensure!(!foreign.certificate_file(one).exists(), "a stolen name was installed");
    Ok(())
}

/// A reload is no wish to stop: when the program falls over later, Docker starts it again.
#[test]
fn a_reload_leaves_the_restart_policy_alone() -> Result<()> {
    let _turn = turn()?;
    let world = World::start(&["one"], Binaries::built()?, two_sites, &mut |_| {})?;
    let one = world.fleet.host("one")?;
    world.coordinator.text(&rotate("x", &["--host-label", "env=demo"]))?;
    for service in &world.services {
        let inspect = |what: &str| {
            let format = format!("{{{{{what}}}}}");
            let text = one.engine.docker(&["inspect", "--format", &format, &service.name])?;
            anyhow::Ok(text.trim().to_owned())
        };
        let (restarts, pid) = (inspect(".RestartCount")?, inspect(".State.Pid")?.parse()?);
        // nginx's master falls over: its exit code is not 0.
        reseal_tests::process::signal(pid, rustix::process::Signal::KILL);
        wait_until(&format!("{} to be started again", service.name), LONG, || {
            ensure!(inspect(".RestartCount")? != restarts, "{}", inspect(".State.Status")?);
            probe::once(&service.endpoint, &world.root)
        })?;
    }
    Ok(())
}

fn bad_labels(world: &World) -> Result<()> {
    let one = world.fleet.host("one")?;
    // Label, value, the finding it must give, a word of its message.
    let cases = [
        ("cert.site.pathh", "/tls/site.crt", "unknown-label", "path"),
        ("cert.site.path", "tls/site.crt", "bad-label", "path"),
        ("cert.site.path", "/tls/../../etc/passwd", "bad-label", "path"),
        ("cert.site.names", "", "bad-label", "names"),
        ("cert.site.names", "a b.fleet.test", "bad-label", "names"),
        ("cert.site.mode", "0666", "bad-label", "mode"),
        ("cert.site.reload", "signal:NOPE", "bad-label", "reload"),
        ("cert.site.key-type", "dsa", "bad-label", "key-type"),
        ("cert.si\u{1b}[2Jte.path", "/tls/x", "bad-label", "label"),
        ("enable", "maybe", "bad-label", "enable"),
    ];
    let before: Vec<_> = world
        .services
        .iter()
        .map(|service| openssl::served(&service.endpoint, &world.root))
        .collect::<Result<_>>()?;
    for (number, (key, value, ..)) in cases.iter().enumerate() {
        let mut service = Service::site(one, &format!("bad{number}"), 9000 + number as u16, "ecdsa-p256");
        service.label(key, value);
        service.start(one)?;
    }
    for (number, (key, value, id, word)) in cases.iter().enumerate() {
        let name = format!("bad{number}");
        let what = format!("finding {id} about {key}={value}");
        wait_until(&what, LONG, || {
            let findings = world.coordinator.json(&["findings", "--host", "one"])?;
            let all = findings.as_array().context("a list of findings")?;
            let about = all
                .iter()
                .filter(|finding| finding["object"].as_str().is_some_and(|object| object.contains(&name)));
            let texts: Vec<String> = about.map(ToString::to_string).collect();
            let fits = |text: &String| text.contains(id) && text.contains(word);
            ensure!(texts.iter().any(fits), "{texts:?}");
            Ok(())
        })?;
    }
    // The agent alone says the same, before anybody asks the coordinator.
    let scan = reseal_tests::process::run(&mut world.agents[0].command(one, &["scan"]))?;
    ensure!(scan.contains("unknown-label"), "{scan}");
    ensure!(!scan.contains('\u{1b}'), "a label reached the terminal raw");
    // Nobody else was disturbed.
    for (service, old) in world.services.iter().zip(&before) {
        let now = openssl::served(&service.endpoint, &world.root)?;
        assert_eq!(now.leaf(), old.leaf(), "{} changed", service.name);
    }
    proof::no_mismatched_pair(world)?;
    let names: Vec<String> = (0..cases.len()).map(|number| format!("bad{number}")).collect();
    let mut remove = vec!["rm", "--force"];
    remove.extend(names.iter().map(String::as_str));
    one.engine.docker(&remove)?;
    Ok(())
}
