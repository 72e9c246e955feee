//! Endpoints that the host cannot dial, and ports with several certificates, in real
//! containers: each is renewed, and proved from where it can be seen. What a proof says
//! was served is what OpenSSL sees from within the same network.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use reseal_proto::v1::{TargetProof, TargetState};
use reseal_tests::fleet::{Fleet, Host};
use reseal_tests::process::{command, run, turn, wait_until};
use reseal_tests::product::{self, Binaries, Coordinator};
use reseal_tests::{image, invariants, openssl};

const LONG: Duration = Duration::from_secs(60);

/// An nginx in a network that is not the usual one.
struct Place {
    name: &'static str,
    /// For `docker run`.
    network: String,
    /// What its `listen` says.
    listens: String,
    /// From where it is to be seen.
    vantage: &'static str,
    /// Where OpenSSL finds it from within its network.
    dialled: String,
}

impl Place {
    fn directory(&self, host: &Host) -> PathBuf {
        host.directory().join("services").join(self.name)
    }

    fn name_on(&self, host: &Host) -> String {
        format!("{}.{}.fleet.test", self.name, host.name)
    }

    fn start(&self, host: &Host, blocks: &str, labels: &[String]) -> Result<()> {
        let (tls, etc) = (self.directory(host).join("tls"), self.directory(host).join("etc"));
        fs::create_dir_all(&tls)?;
        fs::create_dir_all(&etc)?;
        let configuration = format!(
            "user root; worker_processes 2; error_log /dev/stderr notice; pid /run/{}.pid; events {{}}\n\
             http {{ access_log off; ssl_protocols TLSv1.2 TLSv1.3;\n{blocks}\n}}\n",
            self.name
        );
        fs::write(etc.join("nginx.conf"), configuration)?;
        let mut words = vec![
            "run".to_owned(),
            "--detach".to_owned(),
            "--restart=on-failure".to_owned(),
            format!("--name={}", self.name),
            format!("--network={}", self.network),
            format!("--volume={}:/tls:ro", tls.display()),
            format!("--volume={}:/etc/nginx:ro", etc.display()),
            "--label=reseal.enable=true".to_owned(),
        ];
        words.extend(labels.iter().map(|label| format!("--label=reseal.cert.{label}")));
        words.extend([image::NAME, "nginx", "-g", "daemon off;"].map(str::to_owned));
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        host.engine.docker(&words).map(drop).with_context(|| format!("cannot start {}", self.name))
    }

    /// One certificate, called `site`.
    fn simple(&self, host: &Host) -> Result<()> {
        let port = self.dialled.rsplit(':').next().unwrap_or_default();
        let labels = [
            format!("site.names={}", self.name_on(host)),
            "site.path=/tls/site.crt".to_owned(),
            format!("site.verify={port}"),
        ];
        let block = format!(
            "server {{ listen {} ssl; server_name {}; ssl_certificate /tls/site.crt; ssl_certificate_key /tls/site.key; }}",
            self.listens,
            self.name_on(host)
        );
        self.start(host, &block, &labels)
    }

    /// The leaf that OpenSSL is shown from within, asked so.
    fn served(&self, host: &Host, options: &[&str]) -> Result<String> {
        let pid = host.engine.docker(&["inspect", "--format", "{{.State.Pid}}", self.name])?;
        let network = format!("--net=/proc/{}/ns/net", pid.trim());
        let words = [&network, "timeout", "5", "openssl", "s_client", "-connect", self.dialled.as_str()];
        let text = run(command("nsenter", &words).args(["-servername", &self.name_on(host)]).args(options))?;
        let chain = openssl::certificates(&text)?;
        Ok(chain.first().context("no certificate")?.fingerprint.clone())
    }

    fn on_disk(&self, host: &Host, file: &str) -> Result<String> {
        let text = fs::read_to_string(self.directory(host).join("tls").join(file))?;
        Ok(openssl::certificates(&text)?[0].fingerprint.clone())
    }
}

#[test]
fn what_the_host_cannot_dial_is_proved_from_within() -> Result<()> {
    let _turn = turn()?;
    let fleet = Fleet::start(&["one"])?;
    let one = fleet.host("one")?;
    let mut coordinator = Coordinator::init(&fleet, Binaries::built()?)?;
    coordinator.start(&[])?;
    coordinator.set_policy()?;
    let _agents = product::agents(&fleet, &coordinator)?;
    one.engine.docker(&["network", "create", "--internal", "secluded"])?;
    // Only the network of a container that runs can be shared.
    one.engine.docker(&["run", "--detach", "--name=holder", image::NAME, "sleep", "infinity"])?;

    let place = |name, network: &str, listens: &str, vantage, dialled: &str| Place {
        name,
        network: network.to_owned(),
        listens: listens.to_owned(),
        vantage,
        dialled: dialled.to_owned(),
    };
    let hosted = format!("{}:9443", one.address);
    let places = [
        place("alone", "none", "443", "container alone", "127.0.0.1:443"),
        place("inner", "bridge", "127.0.0.1:443", "container inner", "127.0.0.1:443"),
        place("beside", "container:holder", "8443", "host", "127.0.0.1:8443"),
        place("internal", "secluded", "443", "host", "127.0.0.1:443"),
        place("hosted", "host", "127.0.0.1:8444", "host", "127.0.0.1:8444"),
        place("picky", "host", &hosted, "container picky", &hosted),
    ];
    for place in &places {
        place.simple(one)?;
    }
    let both = place("both", "bridge", "443", "host", "127.0.0.1:443");
    two_certificates(&both, one)?;

    let installations = places.len() + 2;
    let issued = || {
        let rows = coordinator.json(&["certs", "--managed"])?;
        let rows = rows.as_array().context("a list of certificates")?;
        let good = rows.iter().filter(|row| row["status"] == "ok").count();
        ensure!(good == installations, "{good} of {installations} are issued");
        places.iter().try_for_each(|place| {
            let (served, on_disk) = (place.served(one, &[])?, place.on_disk(one, "site.crt")?);
            ensure!(served == on_disk, "{} serves something else", place.name);
            Ok(())
        })
    };
    wait_until("every first certificate in use", LONG, issued)?;

    let id = coordinator.rotate(&["--host-label", "env=demo", "--waves", "100%"])?;
    coordinator.completed(&id, LONG)?;
    let ask = |words: &[&str]| coordinator.json(words);
    let payloads = invariants::payloads(&ask, &id)?;
    let proofs: BTreeMap<String, TargetProof> = payloads
        .into_iter()
        .flat_map(|payload| payload.targets)
        .map(|target| (target.label.clone(), target))
        .collect();
    assert_eq!(proofs.len(), installations);
    for place in &places {
        let proof = &proofs[&format!("{}/site", place.name)];
        assert_eq!(proof.state(), TargetState::Verified, "{}", place.name);
        let vantages: Vec<&str> = proof.endpoints.iter().map(|one| one.vantage.as_str()).collect();
        assert_eq!(vantages, [place.vantage], "{}: {proof:?}", place.name);
        let endpoint = &proof.endpoints[0];
        let served = place.served(one, &[])?;
        assert_eq!(served, hex::encode(&endpoint.served), "{}", place.name);
        assert_eq!(served, place.on_disk(one, "site.crt")?, "{}", place.name);
        ensure!(endpoint.chain_valid && endpoint.handshakes >= 9, "{}: {endpoint:?}", place.name);
    }
    // Each by its kind of key, and neither for the other.
    for (name, kind) in [("ecdsa", "ECDSA+SHA256"), ("rsa", "RSA-PSS+SHA256")] {
        let proof = &proofs[&format!("both/{name}")];
        assert_eq!(proof.state(), TargetState::Verified, "{name}");
        let served = both.served(one, &["-sigalgs", kind])?;
        assert_eq!(served, both.on_disk(one, &format!("{name}.crt"))?, "{name}");
        assert_eq!(served, hex::encode(&proof.endpoints[0].served), "{name}");
    }
    Ok(())
}

/// An ECDSA and an RSA installation for one name on one port, behind a default server that
/// has neither.
fn two_certificates(place: &Place, host: &Host) -> Result<()> {
    let etc = place.directory(host).join("etc");
    fs::create_dir_all(&etc)?;
    let words = ["req", "-x509", "-nodes", "-newkey", "rsa:2048", "-subj", "/CN=default", "-days", "2"];
    run(command("openssl", &words)
        .arg("-keyout")
        .arg(etc.join("default.key"))
        .arg("-out")
        .arg(etc.join("default.crt")))?;
    let name = place.name_on(host);
    let blocks = format!(
        "server {{ listen 443 ssl default_server; ssl_certificate default.crt; ssl_certificate_key default.key; }}\n\
         server {{ listen 443 ssl; server_name {name};\n\
         ssl_certificate /tls/ecdsa.crt; ssl_certificate_key /tls/ecdsa.key;\n\
         ssl_certificate /tls/rsa.crt; ssl_certificate_key /tls/rsa.key; }}"
    );
    let mut labels = Vec::new();
    for (kind, key_type) in [("ecdsa", "ecdsa-p256"), ("rsa", "rsa-2048")] {
        labels.push(format!("{kind}.names={name}"));
        labels.push(format!("{kind}.path=/tls/{kind}.crt"));
        labels.push(format!("{kind}.key-type={key_type}"));
        labels.push(format!("{kind}.verify=443"));
    }
    place.start(host, &blocks, &labels)
}
