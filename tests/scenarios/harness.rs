//! The harness proves itself, with certificates made by the `openssl` program:
//! what it calls a failure is one, and nothing is left when it is gone.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use reseal_tests::capture::Capture;
use reseal_tests::fleet::{Fleet, Host};
use reseal_tests::pki::Pki;
use reseal_tests::process::{self, Daemon, turn, wait_for, wait_until};
use reseal_tests::services::Service;
use reseal_tests::{clean, network::Network, openssl, probe};

/// Puts a pair where the service expects it: a combined file by rename, a pair
/// through one link, as the agent is to do it.
fn install(
    service: &Service,
    host: &Host,
    stem: &str,
    pair: &(std::path::PathBuf, std::path::PathBuf),
) -> Result<()> {
    let directory = service.tls_directory(host);
    let (chain, key) = (fs::read(&pair.0)?, fs::read(&pair.1)?);
    if service.certificate_file(host).ends_with("site.pem") {
        let half = directory.join("half");
        fs::write(&half, [chain, key].concat())?;
        fs::rename(half, directory.join("site.pem"))?;
        return Ok(());
    }
    let generation = format!("{stem}-{}", openssl::sha256(&chain));
    fs::create_dir_all(directory.join(&generation))?;
    fs::write(directory.join(&generation).join(format!("{stem}.crt")), chain)?;
    fs::write(directory.join(&generation).join(format!("{stem}.key")), key)?;
    let current = directory.join(format!("{stem}-current"));
    let half = directory.join("half");
    symlink(&generation, &half)?;
    fs::rename(half, &current)?;
    for name in ["crt", "key"] {
        let link = directory.join(format!("{stem}.{name}"));
        if !link.exists() {
            symlink(format!("{stem}-current/{stem}.{name}"), link)?;
        }
    }
    Ok(())
}

fn issue(pki: &Pki, service: &Service, host: &Host, issuer: &str) -> Result<()> {
    install(service, host, "site", &pki.leaf(issuer, &service.endpoint.sni)?)?;
    if service.certificates == 2 {
        install(service, host, "client", &pki.leaf(issuer, &service.endpoint.sni)?)?;
    }
    fs::copy(pki.root(), service.tls_directory(host).join("ca.pem"))?;
    Ok(())
}

#[test]
fn counts_truly_and_leaves_nothing() -> Result<()> {
    let _turn = turn()?;
    let pki = Pki::new()?;
    pki.intermediate("a")?;
    pki.intermediate("b")?;
    let root = pki.root();
    let mut fleet = Fleet::start(&["one", "two"])?;
    let directory = fleet.directory().to_owned();
    let (one, two) = (fleet.host("one")?, fleet.host("two")?);
    let site = Service::site(one, "shop", 443, "ecdsa-p256");
    let api = Service::mtls_api(one, "api", 8443);
    let gateway = Service::gateway(two, "gateway", 443, &api.endpoint);
    let proxy = Service::haproxy(two, "edge", 8443);
    let services = [&site, &api, &gateway, &proxy];
    for service in services {
        let host = fleet.host(&service.host)?;
        service.start(host)?;
        issue(&pki, service, host, "a")?;
    }
    let endpoints: Vec<_> = services.iter().map(|s| s.endpoint.clone()).collect();
    for endpoint in &endpoints {
        wait_until(&format!("{} answers", endpoint.service), Duration::from_secs(60), || {
            probe::once(endpoint, &root)
        })?;
    }

    // A reload with new certificates, seen by a client all the time.
    let client = probe::Client::start(&endpoints, &root, 20)?;
    let all_served = |more: u64| {
        let before = client.tally();
        wait_for("more connections", Duration::from_secs(30), || {
            let now = client.tally();
            let enough = endpoints.iter().all(|endpoint| {
                let count =
                    |tally: &probe::Tally| tally.get(&endpoint.service).map_or(0, |seen| seen.attempted);
                count(&now) >= count(&before) + more
            });
            Ok(enough.then_some(()))
        })
    };
    all_served(20)?;
    for service in services {
        let host = fleet.host(&service.host)?;
        issue(&pki, service, host, "b")?;
        let signal = if service.name == "edge" { "USR2" } else { "HUP" };
        host.engine.docker(&["kill", "--signal", signal, &service.name])?;
    }
    for endpoint in &endpoints {
        wait_until(&format!("{} serves b", endpoint.service), Duration::from_secs(30), || {
            let served = openssl::served(endpoint, &root)?;
            openssl::verify_strict(&served, &root)?;
            anyhow::ensure!(served.leaf().issuer == "CN=test b", "issuer {}", served.leaf().issuer);
            Ok(())
        })?;
    }
    all_served(20)?;
    let tally = client.tally();
    for endpoint in &endpoints {
        let seen = &tally[&endpoint.service];
        assert_eq!(seen.failed, 0, "{}: {:?}", endpoint.service, seen.reasons);
        assert_eq!(seen.issuers.len(), 2, "{} was seen under a and b", endpoint.service);
    }

    // The mTLS edge: with a certificate, without one, with a stranger's.
    let stranger = Pki::new()?;
    stranger.intermediate("a")?;
    let ours = pki.leaf("a", "client.test")?;
    let theirs = stranger.leaf("a", "client.test")?;
    let answer = |pair: &(std::path::PathBuf, std::path::PathBuf)| {
        let client = openssl::Client { chain: &pair.0, key: &pair.1 };
        openssl::status(&api.endpoint, &root, Some(client))
    };
    assert_eq!(answer(&ours)?, 200);
    assert_eq!(answer(&theirs)?, 400);
    assert_eq!(openssl::status(&api.endpoint, &root, None)?, 400);
    assert_eq!(openssl::status(&gateway.endpoint, &root, None)?, 200);
    assert!(openssl::served(&site.endpoint, &stranger.root()).is_err());

    // What breaks is counted: a cable out, a service gone.
    two.cut()?;
    one.engine.docker(&["stop", "--time=1", "shop"])?;
    for name in ["shop", "edge", "gateway"] {
        wait_for(&format!("a failure of {name}"), Duration::from_secs(30), || {
            Ok(client.tally().get(name).filter(|seen| seen.failed > 0).map(drop))
        })?;
    }
    two.heal()?;
    wait_until("edge answers again", Duration::from_secs(30), || probe::once(&proxy.endpoint, &root))?;
    drop(client);

    // An engine that is killed leaves its containers running and comes back to them.
    let two = fleet.host_mut("two")?;
    two.engine.kill();
    probe::once(&proxy.endpoint, &root)?;
    two.engine.boot()?;
    assert_eq!(two.engine.state("edge")?, "running");

    drop(fleet);
    assert!(nothing_is_left(&directory)?);
    Ok(())
}

/// Not a test by itself: the owner that the next test kills.
#[test]
#[ignore = "runs only inside a_killed_run_is_cleaned_up"]
fn owner() -> Result<()> {
    let fleet = Fleet::start(&["one"])?;
    let one = fleet.host("one")?;
    let container = Service::site(one, "shop", 443, "ecdsa-p256");
    container.start(one)?;
    let sleeper = ["run", "--detach", reseal_tests::image::NAME, "sleep", "infinity"];
    let id = one.engine.docker(&sleeper)?;
    let pid = one.engine.docker(&["inspect", "--format", "{{.State.Pid}}", id.trim()])?;
    let note = format!("{}\n{}\n", fleet.directory().display(), pid.trim());
    fs::write(std::env::var("RESEAL_TEST_NOTE")?, note)?;
    wait_for("a kill", Duration::from_secs(60), || Ok(None::<()>))
}

#[test]
fn a_killed_run_is_cleaned_up() -> Result<()> {
    let _turn = turn()?;
    let scratch = tempfile::tempdir()?;
    let note = scratch.path().join("note");
    let words = ["--exact", "owner", "--ignored"];
    let mut command = process::command(std::env::current_exe()?, &words);
    command.env("RESEAL_TEST_NOTE", &note);
    let mut owner = Daemon::start("owner", &command, &scratch.path().join("log"))?;
    let text = wait_for("the owner's fleet", Duration::from_secs(120), || {
        owner.check()?;
        Ok(fs::read_to_string(&note).ok().filter(|text| text.lines().count() == 2))
    })?;
    let mut lines = text.lines();
    let directory = Path::new(lines.next().unwrap()).to_owned();
    let container: u32 = lines.next().unwrap().parse()?;

    // While its owner lives, nobody takes it down.
    let number = number(&directory)?;
    assert!(!clean::leftovers(clean::Which::AbandonedAndKept)?.contains(&number));
    owner.kill();
    assert!(process::alive(container), "a kill of the owner leaves its containers");
    assert!(clean::leftovers(clean::Which::Abandoned)?.contains(&number));
    assert!(!process::alive(container));
    assert!(nothing_is_left(&directory)?);
    Ok(())
}

/// What the secrecy scenario relies on: a captured connection can be read with its keys.
#[test]
fn a_capture_is_decrypted() -> Result<()> {
    let _turn = turn()?;
    let pki = Pki::new()?;
    pki.intermediate("a")?;
    let fleet = Fleet::start(&["one"])?;
    let one = fleet.host("one")?;
    let site = Service::site(one, "shop", 443, "ecdsa-p256");
    site.start(one)?;
    issue(&pki, &site, one, "a")?;
    wait_until("shop answers", Duration::from_secs(60), || probe::once(&site.endpoint, &pki.root()))?;
    let scratch = tempfile::tempdir()?;
    let keys = scratch.path().join("keys");
    let capture = Capture::start(&fleet.bridge(), 443, scratch.path())?;
    let address = site.endpoint.address.to_string();
    let request = "printf 'GET /a-word-to-find HTTP/1.0\\r\\n\\r\\n' | openssl s_client -quiet";
    let line = format!("{request} -connect {address} -keylogfile {}", keys.display());
    process::run(&mut process::command("sh", &["-c", &line]))?;
    let streams = capture.decrypted(&keys)?;
    let seen = |word: &str| {
        let found = |bytes: &Vec<u8>| memchr::memmem::find(bytes, word.as_bytes()).is_some();
        streams.iter().any(found)
    };
    assert!(seen("a-word-to-find") && seen("200 OK"), "{} streams", streams.len());
    assert!(!seen("a-word-that-was-not-said"));
    Ok(())
}

fn number(directory: &Path) -> Result<u8> {
    Ok(directory.file_name().unwrap().to_str().unwrap().parse()?)
}

fn nothing_is_left(directory: &Path) -> Result<bool> {
    let network = Network { number: number(directory)? };
    let bridge = Path::new("/sys/class/net").join(network.bridge());
    Ok(!directory.exists()
        && !bridge.exists()
        && network.namespaces().is_empty()
        && clean::mounts_below(directory)?.is_empty()
        && clean::processes(network, directory).is_empty())
}
