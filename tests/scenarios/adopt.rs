//! Certificates that nobody labelled: containers that know nothing of Reseal are adopted, a
//! container and a process of the host are declared in the agent's configuration. Then they
//! are rotated under traffic, and looked at from outside.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use reseal_tests::fleet::{Fleet, Host};
use reseal_tests::pki::Pki;
use reseal_tests::process::{Daemon, turn, wait_until};
use reseal_tests::product::{Agent, Binaries, Coordinator, POLICY, find, wait_for_sessions};
use reseal_tests::services::{Endpoint, Service};
use reseal_tests::{machine, openssl, probe};
use serde_json::Value;

const LONG: Duration = Duration::from_secs(60);

/// One host with a coordinator, and an agent that allows nothing yet.
struct World {
    coordinator: Coordinator,
    agents: Vec<Agent>,
    fleet: Fleet,
    /// What clients accept: the managed root, and the one of what was there before.
    roots: PathBuf,
    /// The managed root alone.
    root: PathBuf,
    before: Pki,
}

impl World {
    fn start() -> Result<Self> {
        let fleet = Fleet::start(&["one"])?;
        let mut coordinator = Coordinator::init(&fleet, Binaries::with_fail_points()?)?;
        coordinator.start(&[])?;
        coordinator.set_policy()?;
        let root = coordinator.root()?;
        let before = Pki::new()?;
        before.intermediate("old")?;
        let roots = root.with_file_name("roots.pem");
        fs::write(&roots, fs::read_to_string(&root)? + &fs::read_to_string(before.root())?)?;
        let host = &fleet.hosts[0];
        let mut agent = Agent::new(host, coordinator.binaries())?;
        agent.configure("scan_interval_seconds = 5")?;
        agent.enrol(host, &coordinator.invite("one")?)?;
        agent.start(host, &[])?;
        let mut world = Self { coordinator, agents: vec![agent], fleet, roots, root, before };
        wait_for_sessions(&world.coordinator, &mut world.agents)?;
        Ok(world)
    }

    fn host(&self) -> &Host {
        &self.fleet.hosts[0]
    }

    fn agent(&mut self) -> &mut Agent {
        &mut self.agents[0]
    }

    /// Starts it with a certificate that somebody made by hand.
    fn by_hand(&self, service: &Service) -> Result<()> {
        let (chain, key) = self.before.leaf("old", &service.endpoint.sni)?;
        let tls = service.tls_directory(self.host());
        fs::create_dir_all(&tls)?;
        fs::copy(chain, tls.join("site.crt"))?;
        fs::copy(key, tls.join("site.key"))?;
        service.start(self.host())?;
        wait_until(&format!("an answer of {}", service.name), LONG, || {
            probe::once(&service.endpoint, &self.roots)
        })
        .map(drop)
    }

    fn id(&self, service: &Service) -> String {
        service.certificate_file(self.host()).display().to_string()
    }

    /// What the coordinator has on record of an installation.
    fn shown(&self, id: &str) -> Result<Value> {
        let host = self.coordinator.json(&["host", "show", "one"])?;
        find(&host, "id", id).cloned().with_context(|| format!("{id} is not on record: {host:#}"))
    }

    /// Waits until it is managed so, and has as many consumers that run.
    fn looked_at(&self, id: &str, management: &str, consumers: usize) -> Result<Value> {
        wait_until(&format!("{id} as {management}"), LONG, || {
            // How it ends says whether it could be adopted; what it prints says the rest.
            let output = self.coordinator.output(&["adopt", "one", id, "--dry-run", "--output", "json"])?;
            let text = String::from_utf8_lossy(&output.stdout);
            let said = String::from_utf8_lossy(&output.stderr);
            let view: Value = serde_json::from_str(&text).with_context(|| said.into_owned())?;
            ensure!(view["management"] == management, "it is {}: {view:#}", view["management"]);
            let all = view["installation"]["consumers"].as_array().context("a list")?;
            let running = all.iter().filter(|one| one["running"] == true).count();
            ensure!(running == consumers, "{running} consumers run: {view:#}");
            Ok(view)
        })
    }

    /// Rotates one name and waits for its end; what OpenSSL is served then.
    fn rotated(&self, endpoint: &Endpoint, file: &std::path::Path) -> Result<()> {
        // Whatever it is issued by: no authority is given up.
        let words = ["--host", "one", "--name", &endpoint.sni, "--waves", "100%"];
        let id = self.coordinator.rotate(&words)?;
        let ended = self.coordinator.completed(&id, LONG)?;
        ensure!(ended["verified_by_handshake"] == 1, "{ended:#}");
        let served = openssl::served(endpoint, &self.root)?;
        openssl::verify_strict(&served, &self.root)?;
        let on_disk = openssl::certificates(&fs::read_to_string(file)?)?;
        ensure!(on_disk == served.chain, "{} serves something else than its file", endpoint.service);
        Ok(())
    }

    /// Admits what most certificates that were made by hand are for.
    fn admit_both(&self) -> Result<()> {
        let file = self.root.with_file_name("both.toml");
        fs::write(&file, POLICY.replace("\"client\"", "\"client\", \"both\""))?;
        self.coordinator.text(&["policy", "set", "fleet", "--file", &file.display().to_string()]).map(drop)
    }

    fn adopt(&self, id: &str, options: &[&str]) -> Vec<String> {
        ["adopt", "one", id].iter().chain(options).map(|word| (*word).to_owned()).collect()
    }
}

/// Strings as the harness wants them.
fn words(all: &[String]) -> Vec<&str> {
    all.iter().map(String::as_str).collect()
}

#[test]
fn a_container_that_knows_nothing_is_adopted_renewed_and_released() -> Result<()> {
    let _turn = turn()?;
    let mut world = World::start()?;
    let web = Service::site(world.host(), "web", 443, "ecdsa-p256").unlabelled();
    let api = Service::site(world.host(), "api", 8443, "ecdsa-p256").unlabelled();
    world.by_hand(&web)?;
    world.by_hand(&api)?;
    let (id, other) = (world.id(&web), world.id(&api));

    // It is seen, with what adopting would mean; nothing is changed by looking.
    let view = world.looked_at(&id, "discovered", 1)?;
    let text = view.to_string();
    for reason in ["because its SAN has them", "because its program is nginx", "because its public key"] {
        ensure!(text.contains(reason), "{reason}: {view:#}");
    }
    ensure!(view["obstacles"].as_array().is_some_and(Vec::is_empty), "{view:#}");

    // What could not be renewed is not adopted; the policy says why.
    let said = world.coordinator.refused(5, &words(&world.adopt(&id, &["--yes"])))?;
    ensure!(said.contains("usage both is not allowed"), "{said}");
    world.admit_both()?;

    // The host does not allow it yet; then it does, without a restart.
    let said = world.coordinator.refused(5, &words(&world.adopt(&id, &["--yes"])))?;
    ensure!(said.contains("adopt = true"), "{said}");
    world.agents[0].configure("adopt = true")?;
    world.agents[0].reread();
    let done = world.coordinator.json(&words(&world.adopt(&id, &["--yes"])))?;
    ensure!(done["outcome"] == "adopted", "{done:#}");
    world.looked_at(&id, "adopted", 1)?;
    let outcomes: Vec<Value> = world
        .coordinator
        .audited("installation.adopt")?
        .iter()
        .map(|entry| entry["outcome"].clone())
        .collect();
    ensure!(outcomes == ["refused", "asked", "refused", "asked", "done"], "{outcomes:?}");

    // Under traffic: the first certificate of ours, and the next.
    let client = probe::Client::start(&[web.endpoint.clone(), api.endpoint.clone()], &world.roots, 40)?;
    for _ in 0..2 {
        world.rotated(&web.endpoint, &web.certificate_file(world.host()))?;
    }
    for (name, seen) in client.stop() {
        ensure!(seen.failed == 0 && seen.attempted > 10, "{name}: {:?}", seen.reasons);
        ensure!((seen.issuers.len() > 1) == (name == "web"), "{name}: {:?}", seen.issuers);
    }
    ensure!(openssl::pair_matches(&web.pairs(world.host())[0].0, &web.pairs(world.host())[0].1)?);

    // A restart remembers, and so it does when the container is made anew under another name.
    world.agent().kill();
    world.host().engine.docker(&["rm", "--force", "web"])?;
    let host = &world.fleet.hosts[0];
    world.agents[0].start(host, &[])?;
    wait_for_sessions(&world.coordinator, &mut world.agents)?;
    world.looked_at(&id, "adopted", 0)?;
    web.start(world.host())?;
    world.host().engine.docker(&["rename", "web", "web-2"])?;
    let view = world.looked_at(&id, "adopted", 1)?;
    ensure!(view["installation"]["consumers"][0]["container"] == "web-2", "{view:#}");
    world.rotated(&web.endpoint, &web.certificate_file(world.host()))?;

    // Killed when it was on disk and not answered: asked again, nothing is done twice.
    world.agent().kill();
    let host = &world.fleet.hosts[0];
    world.agents[0].start(host, &[("RESEAL_FAILPOINTS", "agent.after_adopted")])?;
    wait_for_sessions(&world.coordinator, &mut world.agents)?;
    world.looked_at(&other, "discovered", 1)?;
    let said = world.coordinator.refused(1, &words(&world.adopt(&other, &["--yes"])))?;
    ensure!(said.contains("harmless"), "{said}");
    ensure!(world.agent().has_ended()?, "the fail point was not passed");
    let host = &world.fleet.hosts[0];
    world.agents[0].start(host, &[])?;
    wait_for_sessions(&world.coordinator, &mut world.agents)?;
    world.looked_at(&other, "adopted", 1)?;
    let again = world.coordinator.json(&words(&world.adopt(&other, &["--yes"])))?;
    ensure!(again["outcome"] == "adopted", "{again:#}");
    world.rotated(&api.endpoint, &api.certificate_file(world.host()))?;

    // A mistake is undone: it serves as before, and nobody renews it.
    let done = world.coordinator.json(&words(&world.adopt(&id, &["--release", "--yes"])))?;
    ensure!(done["outcome"] == "released", "{done:#}");
    world.looked_at(&id, "discovered", 1)?;
    probe::once(&web.endpoint, &world.root)?;
    let said = world.coordinator.refused(1, &words(&world.adopt(&id, &["--release", "--yes"])))?;
    ensure!(said.contains("is not managed"), "{said}");
    // And may be adopted again, as it lies there now.
    let done = world.coordinator.json(&words(&world.adopt(&id, &["--yes"])))?;
    ensure!(done["outcome"] == "adopted", "{done:#}");
    world.rotated(&web.endpoint, &web.certificate_file(world.host()))
}

/// nginx on the host itself; ends with the value, workers and all.
struct OnHost {
    daemon: Daemon,
    endpoint: Endpoint,
    directory: PathBuf,
}

impl OnHost {
    fn new(host: &Host, port: u16) -> Result<Self> {
        let directory = host.directory().join("intranet");
        fs::create_dir_all(directory.join("tls"))?;
        let at = |name: &str| directory.join(name).display().to_string();
        let sni = "intranet.one.fleet.test".to_owned();
        let configuration = format!(
            "user root;\nworker_processes 2;\nerror_log {} notice;\npid {};\nevents {{}}\n\
             http {{ access_log off; server {{ listen {port} ssl; server_name {sni};\n\
             ssl_certificate {};\nssl_certificate_key {};\nlocation / {{ return 200 \"ok\\n\"; }} }} }}\n",
            at("error.log"),
            at("nginx.pid"),
            at("tls/site.crt"),
            at("tls/site.key"),
        );
        fs::write(directory.join("nginx.conf"), configuration)?;
        let words = ["-c", &at("nginx.conf"), "-p", &at(""), "-g", "daemon off;"];
        let nginx: Command = host.command(&nginx()?, &words);
        let daemon = wait_until("nginx on the host", LONG, || {
            let mut daemon = host.daemon("intranet", &nginx)?;
            std::thread::sleep(Duration::from_millis(200));
            daemon.check().map(|()| daemon)
        })?;
        let endpoint = Endpoint {
            service: "intranet".into(),
            address: std::net::SocketAddr::new(host.address.into(), port),
            sni,
            status: 200,
            talk: reseal_tests::talk::Talk::Http,
        };
        Ok(Self { daemon, endpoint, directory })
    }
}

impl Drop for OnHost {
    fn drop(&mut self) {
        self.daemon.stop(Duration::from_secs(10));
    }
}

fn nginx() -> Result<PathBuf> {
    let places = ["/usr/sbin/nginx", "/usr/bin/nginx", "/usr/local/sbin/nginx"];
    places.iter().map(PathBuf::from).find(|path| path.is_file()).context("nginx is installed somewhere else")
}

#[test]
fn what_the_configuration_declares_is_renewed_without_a_label() -> Result<()> {
    let _turn = turn()?;
    machine::ensure(machine::NGINX)?;
    let mut world = World::start()?;
    let web = Service::site(world.host(), "web", 443, "ecdsa-p256").unlabelled();
    web.start(world.host())?;
    let directory = world.host().directory().join("intranet");
    let at = |name: &str| directory.join(name).display().to_string();
    fs::create_dir_all(directory.join("tls"))?;
    let declared = format!(
        "[[certificate]]\ncontainer = 'web'\nname = 'site'\nnames = '{}'\npath = '/tls/site.crt'\nverify = 443\n\
         [[certificate]]\npid-file = '{}'\nnames = ['intranet.one.fleet.test']\npath = '{}'\nverify = 8446\n\
         [[certificate]]\ncontainer = 'web'\nnmaes = 'x.one.fleet.test'\npath = '/tls/x.crt'\n",
        web.endpoint.sni,
        at("nginx.pid"),
        at("tls/site.crt"),
    );
    world.agents[0].configure(&declared)?;
    world.agents[0].reread();

    // One mistake is a finding and takes nothing else down.
    wait_until("the finding about the mistake", LONG, || {
        let findings = world.coordinator.json(&["findings", "--host", "one"])?.to_string();
        ensure!(findings.contains("bad-configuration") && findings.contains("nearest that does is names"));
        Ok(())
    })?;
    wait_until("a certificate for the container", LONG, || probe::once(&web.endpoint, &world.root))?;
    // The first one is there before the program ever ran.
    wait_until("a certificate for the process", LONG, || {
        ensure!(directory.join("tls/site.crt").exists());
        Ok(())
    })?;
    let intranet = OnHost::new(world.host(), 8446)?;
    wait_until("an answer of the process", LONG, || probe::once(&intranet.endpoint, &world.root))?;
    let id = at("tls/site.crt");
    let shown = wait_until("its consumer", LONG, || {
        let shown = world.shown(&id)?;
        ensure!(shown["consumers"][0]["running"] == true, "{shown:#}");
        Ok(shown)
    })?;
    ensure!(shown["consumers"][0]["reload"].as_str().is_some_and(|how| how.contains("HUP")), "{shown:#}");

    let endpoints = [web.endpoint.clone(), intranet.endpoint.clone()];
    let client = probe::Client::start(&endpoints, &world.root, 40)?;
    world.rotated(&web.endpoint, &web.certificate_file(world.host()))?;
    world.rotated(&intranet.endpoint, &intranet.directory.join("tls/site.crt"))?;
    for (name, seen) in client.stop() {
        ensure!(seen.failed == 0 && seen.attempted > 10, "{name}: {:?}", seen.reasons);
    }

    // It declares nothing any more: nothing of it is managed, and everything goes on serving.
    let file = world.agents[0].config().to_owned();
    let text = fs::read_to_string(&file)?.replace(&declared, "");
    fs::write(&file, text)?;
    world.agents[0].reread();
    wait_until("the end of what was declared", LONG, || {
        ensure!(world.shown(&id).is_err_and(|error| error.to_string().contains("not on record")));
        Ok(())
    })?;
    probe::once(&intranet.endpoint, &world.root)?;
    world.agent().check()
}
