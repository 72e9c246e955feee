//! Services that fail while they get a new certificate, on real containers: a refused
//! configuration, a closed port, a forgotten process that goes on serving, a container that is
//! recreated or stopped in the middle. Each is rolled back or held as ordered, the gate counts
//! it, later waves are untouched, and a retry ends it well. And one trace through all of it.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use reseal_tests::fleet::{Fleet, Host};
use reseal_tests::invariants::{self, Ledger};
use reseal_tests::process::{command, run, turn, wait_until};
use reseal_tests::product::{Binaries, rotate, wait_for_sessions};
use reseal_tests::services::Service;
use reseal_tests::wire::Collector;
use reseal_tests::world::World;
use reseal_tests::{openssl, probe};
use serde_json::Value;

const LONG: Duration = Duration::from_secs(60);
/// Both hosts, one after the other: `one` first.
const EVERYTHING: [&str; 4] = ["--host-label", "env=demo", "--waves", "1,100%"];
const SHOP: [&str; 4] = ["--name", "shop.one.fleet.test", "--waves", "100%"];

/// What fails, and the check of it.
type Phase = (&'static str, fn(&World) -> Result<()>);

/// `shop` is the one that fails.
fn cast(fleet: &Fleet) -> Result<Vec<Service>> {
    let (one, two) = (fleet.host("one")?, fleet.host("two")?);
    let shop = Service::site(one, "shop", 443, "ecdsa-p256").with_a_gate();
    Ok(vec![
        // Two processes may listen on its port.
        shop.with_configuration(|text| text.replace("443 ssl", "443 ssl reuseport")),
        Service::site(one, "blog", 8443, "ecdsa-p256"),
        Service::site(two, "docs", 443, "ecdsa-p256"),
        Service::haproxy(two, "edge", 8443),
    ])
}

#[test]
fn a_service_that_fails_is_rolled_back_or_held_and_stops_the_rotation() -> Result<()> {
    let _turn = turn()?;
    let mut world = World::start(&["one", "two"], Binaries::built()?, cast, &mut |_| {})?;
    one_trace_leads_to_the_last_handshake(&mut world)?;
    let mut ledger = Ledger::default();
    let healthy: Vec<_> = world.endpoints().into_iter().filter(|one| one.service != "shop").collect();
    let client = probe::Client::start(&healthy, &world.root, 5)?;
    let phases: [Phase; 7] = [
        ("a worker that is held open", a_held_worker_disturbs_nobody),
        ("a refused configuration, rolled back", a_refused_configuration_is_rolled_back),
        ("a refused configuration, held", a_refused_configuration_is_held_as_ordered),
        ("a closed port", a_closed_port_is_rolled_back),
        ("a forgotten process", a_forgotten_process_is_noticed),
        ("a container recreated", a_container_recreated_in_the_middle),
        ("a container stopped", a_container_stopped_in_the_middle),
    ];
    for (what, phase) in phases {
        phase(&world).context(what)?;
        invariants::hold(&world, &mut ledger).context(what)?;
    }
    for (name, seen) in client.stop() {
        assert_eq!(seen.failed, 0, "{name}: {:?}", seen.reasons);
    }
    Ok(())
}

/// From the operator's command to the agent's last step: one trace, as a collector gets it.
fn one_trace_leads_to_the_last_handshake(world: &mut World) -> Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    let address = std::net::SocketAddr::from((world.fleet.gateway(), 0));
    let (collector, endpoint) = runtime.block_on(Collector::start_on(address))?;
    let telemetry = [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str())];
    world.coordinator.kill();
    world.coordinator.start(&telemetry)?;
    for (agent, host) in world.agents.iter_mut().zip(&world.fleet.hosts) {
        agent.kill();
        // What fails here fails soon.
        agent.configure("verify_timeout_seconds = 3")?;
        agent.start(host, &telemetry)?;
    }
    wait_for_sessions(&world.coordinator, &mut world.agents)?;
    run(world.coordinator.command(&rotate("traced", &EVERYTHING)).envs(telemetry))?;
    let steps = [
        ("reseal", "reseal"),
        ("reseal-coordinator", "operator"),
        ("reseal-coordinator", "order.send"),
        ("reseal-coordinator", "csrs"),
        ("reseal-agent", "order"),
        ("reseal-agent", "request"),
        ("reseal-agent", "validate"),
        ("reseal-agent", "install"),
        ("reseal-agent", "reload"),
        ("reseal-agent", "verify"),
    ];
    wait_until("every step in one trace", LONG, || {
        let seen = collector.seen();
        let has = |trace: &str, (service, span): &(&str, &str)| {
            seen.contains(&((*service).to_owned(), trace.to_owned(), (*span).to_owned()))
        };
        let commands = seen.iter().filter(|(service, ..)| service == "reseal");
        let traces: Vec<&str> = commands.map(|(_, trace, _)| trace.as_str()).collect();
        let whole = traces.iter().any(|trace| steps.iter().all(|step| has(trace, step)));
        ensure!(whole, "no trace of {traces:?} has them all: {seen:?}");
        Ok(())
    })?;
    // The collector ends here; nobody minds.
    Ok(())
}

/// An old worker that a client holds open goes on with its connection; all new ones get
/// the new certificate.
fn a_held_worker_disturbs_nobody(world: &World) -> Result<()> {
    let docs = service(world, "docs")?;
    let mut held = Held::open(world, docs)?;
    let old = openssl::served(&docs.endpoint, &world.root)?;
    let id = world.coordinator.rotate(&["--name", &docs.endpoint.sni])?;
    world.coordinator.completed(&id, LONG)?;
    let new = openssl::served(&docs.endpoint, &world.root)?;
    assert_ne!(old.leaf().key, new.leaf().key);
    let (certificate, answer) = held.finish()?;
    assert_eq!(certificate, *old.leaf(), "the connection is from before");
    ensure!(answer.contains("200 OK"), "the held connection was cut: {answer:?}");
    Ok(())
}

fn a_refused_configuration_is_rolled_back(world: &World) -> Result<()> {
    let (shop, one) = shop(world)?;
    let before = Picture::take(world)?;
    shop.configure(one, |text| format!("{text}nonsense;\n"))?;
    let id = world.coordinator.rotate(&EVERYTHING)?;
    let halted = world.coordinator.in_state(&id, "halted", LONG)?;
    // One failure of the two that were attempted is too many; the second wave is not ordered.
    failed(&halted, "shop", "rolled-back", &["check-refused"])?;
    assert_eq!(halted["wave"], 1, "{halted}");
    assert_eq!(halted["targets_by_state"]["verified"], 1, "{halted}");
    let now = Picture::take(world)?;
    now.unchanged(&before, &["shop", "docs", "edge"])?;
    now.replaced(&before, &["blog"])?;
    shop.configure(one, str::to_owned)?;
    retry(world, &id)?;
    Picture::take(world)?.replaced(&before, &["shop", "blog", "docs", "edge"])
}

fn a_refused_configuration_is_held_as_ordered(world: &World) -> Result<()> {
    let (shop, one) = shop(world)?;
    let before = Picture::take(world)?;
    shop.configure(one, |text| format!("{text}nonsense;\n"))?;
    let hold = ["--on-failure", "hold", "--max-failures", "2"];
    let id = world.coordinator.rotate(&[&EVERYTHING[..], &hold].concat())?;
    let halted = world.coordinator.in_state(&id, "halted", LONG)?;
    // One failure is below the threshold: the second wave went, and then it is no success.
    failed(&halted, "shop", "held", &["check-refused"])?;
    assert_eq!(halted["wave"], 2, "{halted}");
    assert_eq!(halted["targets_by_state"]["verified"], 3, "{halted}");
    let now = Picture::take(world)?;
    now.replaced(&before, &["blog", "docs", "edge"])?;
    let (old, new) = (before.of("shop")?, now.of("shop")?);
    assert_ne!(old.on_disk, new.on_disk, "held means that the new pair stays on the disk");
    assert_eq!(old.served, new.served, "nothing was reloaded");
    shop.configure(one, str::to_owned)?;
    retry(world, &id)?;
    Picture::take(world)?.replaced(&before, &["shop"])
}

fn a_closed_port_is_rolled_back(world: &World) -> Result<()> {
    let (shop, one) = shop(world)?;
    let before = Picture::take(world)?;
    shop.configure(one, |text| text.replace("listen 443", "listen 444"))?;
    let id = world.coordinator.rotate(&[&SHOP[..], &["--on-failure", "rollback"]].concat())?;
    let halted = world.coordinator.in_state(&id, "halted", LONG)?;
    // Docker may accept what the container does not.
    failed(&halted, "shop", "rolled-back", &["endpoint-unreachable", "no-tls"])?;
    ensure!(probe::once(&shop.endpoint, &world.root).is_err(), "the port is open");
    assert_eq!(on_disk(shop, one)?, before.of("shop")?.on_disk, "the earlier pair is back");
    shop.configure(one, str::to_owned)?;
    retry(world, &id)?;
    Picture::take(world)?.replaced(&before, &["shop"])
}

/// A second nginx that somebody left behind answers on the same port, from what it once read.
fn a_forgotten_process_is_noticed(world: &World) -> Result<()> {
    let (shop, one) = shop(world)?;
    let before = Picture::take(world)?;
    let old = std::fs::read_to_string(shop.etc(one).join("nginx.conf"))?
        .replace("/run/nginx.pid", "/run/forgotten.pid")
        .replace("worker_processes 2", "worker_processes 16");
    std::fs::write(shop.etc(one).join("forgotten.conf"), old)?;
    let forgotten = ["exec", "shop", "nginx", "-c", "/etc/nginx/forgotten.conf"];
    one.engine.docker(&forgotten)?;
    let id = world.coordinator.rotate(&SHOP)?;
    let halted = world.coordinator.in_state(&id, "halted", LONG)?;
    failed(&halted, "shop", "rolled-back", &["served-differs"])?;
    Picture::take(world)?.unchanged(&before, &["shop"])?;
    one.engine.docker(&[&forgotten[..], &["-s", "stop"]].concat())?;
    retry(world, &id)?;
    Picture::take(world)?.replaced(&before, &["shop"])
}

fn a_container_recreated_in_the_middle(world: &World) -> Result<()> {
    let (shop, one) = shop(world)?;
    let before = Picture::take(world)?;
    let id = held_in_the_middle(world)?;
    one.engine.docker(&["rm", "--force", "shop"])?;
    shop.let_go(one)?;
    shop.start(one)?;
    // Found again by its mount, and proved on the new one.
    world.coordinator.completed(&id, LONG)?;
    Picture::take(world)?.unchanged(&before, &["blog", "docs", "edge"])?;
    Picture::take(world)?.replaced(&before, &["shop"])
}

fn a_container_stopped_in_the_middle(world: &World) -> Result<()> {
    let (shop, one) = shop(world)?;
    let before = Picture::take(world)?;
    let id = held_in_the_middle(world)?;
    one.engine.docker(&["stop", "--time", "5", "shop"])?;
    shop.let_go(one)?;
    // Installed, and nobody can prove it before it runs again.
    world.coordinator.in_state(&id, "trailing", LONG)?;
    assert_ne!(on_disk(shop, one)?, before.of("shop")?.on_disk, "the new pair is not there");
    assert_eq!(one.engine.state("shop")?, "exited", "what was stopped on purpose was started");
    one.engine.docker(&["start", "shop"])?;
    world.coordinator.completed(&id, LONG)?;
    Picture::take(world)?.replaced(&before, &["shop"])
}

/// Starts a rotation of `shop` and returns in the middle of it: the new pair is on disk,
/// the reload waits for its check.
fn held_in_the_middle(world: &World) -> Result<String> {
    let (shop, one) = shop(world)?;
    let before = on_disk(shop, one)?;
    shop.hold(one)?;
    let id = world.coordinator.rotate(&SHOP)?;
    wait_until("the check before the reload", LONG, || {
        ensure!(shop.is_held(one)?, "it does not run");
        Ok(())
    })?;
    assert_ne!(on_disk(shop, one)?, before, "the new pair is installed");
    Ok(id)
}

fn retry(world: &World, id: &str) -> Result<()> {
    world.coordinator.text(&["rotation", "retry", id])?;
    world.coordinator.completed(id, LONG).map(drop)
}

/// One target failed, and the rotation says which, how and why.
fn failed(rotation: &Value, service: &str, state: &str, codes: &[&str]) -> Result<()> {
    let failures = rotation["failures"].as_array().context("failures")?;
    ensure!(failures.len() == 1, "{failures:?}");
    let failure = &failures[0];
    let label = failure["label"].as_str().unwrap_or_default();
    ensure!(label.contains(service), "{failure}");
    ensure!(failure["state"] == state, "{failure}");
    ensure!(codes.iter().any(|code| failure["code"] == *code), "{failure}");
    Ok(())
}

/// Every service as it is from outside and on its host's disk.
struct Picture(Vec<(String, Shot)>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Shot {
    on_disk: Vec<openssl::Certificate>,
    served: Vec<openssl::Certificate>,
}

impl Picture {
    fn take(world: &World) -> Result<Self> {
        let shot = |service: &Service| {
            let on_disk = on_disk(service, world.fleet.host(&service.host)?)?;
            let served = openssl::served(&service.endpoint, &world.root)?.chain;
            Ok((service.name.clone(), Shot { on_disk, served }))
        };
        world.services.iter().map(shot).collect::<Result<_>>().map(Self)
    }

    fn of(&self, name: &str) -> Result<&Shot> {
        let found = self.0.iter().find(|(service, _)| service == name);
        found.map(|(_, shot)| shot).with_context(|| format!("no service {name}"))
    }

    fn unchanged(&self, before: &Self, names: &[&str]) -> Result<()> {
        names.iter().try_for_each(|name| {
            ensure!(self.of(name)? == before.of(name)?, "{name} is not as it was");
            Ok(())
        })
    }

    fn replaced(&self, before: &Self, names: &[&str]) -> Result<()> {
        names.iter().try_for_each(|name| {
            let (old, new) = (before.of(name)?, self.of(name)?);
            ensure!(new.on_disk == new.served, "{name} serves something else than its file");
            ensure!(old.served[0].key != new.served[0].key, "{name} has its old key");
            Ok(())
        })
    }
}

fn on_disk(service: &Service, host: &Host) -> Result<Vec<openssl::Certificate>> {
    openssl::certificates(&std::fs::read_to_string(service.certificate_file(host))?)
}

fn service<'a>(world: &'a World, name: &str) -> Result<&'a Service> {
    let found = world.services.iter().find(|service| service.name == name);
    found.with_context(|| format!("no service {name}"))
}

fn shop(world: &World) -> Result<(&Service, &Host)> {
    Ok((service(world, "shop")?, world.fleet.host("one")?))
}

/// A connection with half a request on it: the worker that has it cannot end.
struct Held {
    openssl: Child,
    output: BufReader<std::process::ChildStdout>,
    head: String,
}

impl Held {
    fn open(world: &World, service: &Service) -> Result<Self> {
        let address = service.endpoint.address.to_string();
        let words = ["s_client", "-showcerts", "-connect", &address, "-servername", &service.endpoint.sni];
        let mut openssl = command("openssl", &words)
            .arg("-CAfile")
            .arg(&world.root)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let mut output = BufReader::new(openssl.stdout.take().context("piped")?);
        let mut head = String::new();
        while !head.contains("Verify return code") {
            ensure!(output.read_line(&mut head)? > 0, "no handshake: {head}");
        }
        let stdin = openssl.stdin.as_mut().context("piped")?;
        stdin.write_all(b"GET / HTTP/1.1\r\nConnection: close\r\n")?;
        Ok(Self { openssl, output, head })
    }

    /// Ends the request: the certificate of the connection, and the answer.
    fn finish(&mut self) -> Result<(openssl::Certificate, String)> {
        let stdin = self.openssl.stdin.as_mut().context("piped")?;
        stdin.write_all(b"Host: docs\r\n\r\n")?;
        let mut answer = String::new();
        self.output.read_to_string(&mut answer)?;
        let first = openssl::certificates(&self.head)?.into_iter().next();
        Ok((first.context("no certificate")?, answer))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.openssl.kill();
        let _ = self.openssl.wait();
    }
}
