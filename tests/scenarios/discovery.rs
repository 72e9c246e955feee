//! A host full of containers that know nothing of Reseal: `reseal-agent scan` sees every
//! certificate they have, says what OpenSSL says of each, who uses it and what is wrong; and
//! a tree that was made to mislead it neither holds it up nor leads it out.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use reseal_tests::fleet::{Fleet, Host};
use reseal_tests::image;
use reseal_tests::pki::Pki;
use reseal_tests::process::{command, run, turn, wait_until};
use reseal_tests::product::Binaries;
use serde_json::Value;

/// Seconds within which everything is seen; the machine may be busy.
const SOON: Duration = Duration::from_secs(30);

#[test]
fn every_certificate_of_a_host_is_seen() -> Result<()> {
    let _turn = turn()?;
    let fleet = Fleet::start(&["one"])?;
    let host = fleet.host("one")?;
    let place = Place::new(host)?;
    place.fill(host)?;
    let (served, differs) = place.serve(host)?;

    let scan = scan(host, &["--json"])?;
    let document: Value = serde_json::from_str(&scan)?;
    let found = Found { document: &document };

    // What it is, as OpenSSL reads the very file.
    found.agrees(&place.at("pem/site.crt"), "pair", &["nginx", "second"])?;
    found.agrees(&place.at("expired/old.pem"), "combined", &["expired"])?;
    found.agrees(&place.at("weak/weak.pem"), "combined", &["weak"])?;
    found.agrees(&place.at("chain/tls/server.crt"), "pair", &["chain"])?;
    let volume = host.engine.docker(&["volume", "inspect", "--format", "{{.Mountpoint}}", "tls"])?;
    found.agrees(&Path::new(volume.trim()).join("combined.pem"), "combined", &["volume"])?;
    found.agrees(&place.at("der/site.der"), "pair", &["der"])?;
    for (file, layout) in [("stores/site.p12", "pkcs12"), ("stores/site.jks", "jks")] {
        let one = found.file(&place.at(file))?;
        ensure!(one["layout"] == layout && one["consumers"][0]["container"] == "stores", "{one:#}");
    }
    ensure!(found.one("/srv/baked/site.crt")?["origin"] == "image", "{document:#}");
    ensure!(found.one("container:writer:/var/own.pem")?["origin"] == "file", "{document:#}");

    // Who serves it, as an OpenSSL client sees it.
    let one = found.names("served.test")?;
    ensure!(one["origin"] == "endpoint" && one["endpoints"][0]["served"] == served, "{served}: {one:#}");
    ensure!(one["certificate"]["fingerprint"] == served, "{served}: {one:#}");
    let one = found.file(&place.at("differs/site.crt"))?;
    ensure!(one["endpoints"][0]["served"] == differs, "{differs}: {one:#}");
    ensure!(one["certificate"]["fingerprint"] != differs, "{one:#}");
    let address = one["endpoints"][0]["address"].as_str().unwrap_or_default();
    found.finding("served-differs-from-file", address)?;

    // What is wrong with it.
    let has = |id: &str, object: &str| found.finding(id, object);
    has("expired", "expired/old.pem")?;
    has("weak-key", "weak/weak.pem")?;
    has("key-too-open", "weak/weak.pem")?;
    has("self-signed", "pem/site.crt")?;
    has("unmanaged", "pem/site.crt")?;
    has("incomplete-chain", "chain/tls/server.crt")?;
    has("baked-private-key", "/srv/baked/site.crt")?;
    let findings = document["findings"].as_array().context("findings")?;
    ensure!(findings.iter().all(|one| one["remedy"].as_str().is_some_and(|text| !text.is_empty())));
    // The image's own trust store and what its packages bring along is none of it.
    let images = document["summary"]["discovered_in_images"].as_u64();
    ensure!(images == Some(1), "{images:?} certificates in images: {document:#}");
    ensure!(!scan.contains("PRIVATE KEY"), "a key was shown");

    // For people: a container alone, findings alone.
    let table = self::scan(host, &["--container", "expired"])?;
    ensure!(table.contains("old.pem") && !table.contains("weak.pem"), "{table}");
    ensure!(table.contains("renew it now"), "no remedy: {table}");
    Ok(())
}

#[test]
fn a_hostile_tree_neither_holds_nor_leads_out() -> Result<()> {
    let _turn = turn()?;
    let fleet = Fleet::start(&["one"])?;
    let host = fleet.host("one")?;
    let place = Place::new(host)?;
    let tree = place.at("tree");
    fs::create_dir_all(&tree)?;
    let secret = place.at("outside");
    own_certificate(&secret, "secret", "outside.test")?;
    symlink(&secret, tree.join("out"))?;
    symlink("../outside/secret.crt", tree.join("sideways.crt"))?;
    symlink("loop-b", tree.join("loop-a"))?;
    symlink("loop-a", tree.join("loop-b"))?;
    symlink(".", tree.join("itself"))?;
    symlink("/proc/self/root/etc", tree.join("magic"))?;
    run(command("mkfifo", &[]).arg(tree.join("pipe.pem")))?;
    for (name, size) in [("large.pem", 1 << 22), ("huge.log", 1 << 33)] {
        let large = fs::File::create(tree.join(name))?;
        std::io::Write::write_all(&mut &large, b"-----BEGIN CERTIFICATE-----\n")?;
        large.set_len(size)?;
    }
    let mut deep = tree.join("deep");
    for _ in 0..200 {
        fs::create_dir(&deep)?;
        deep.push("d");
    }
    for n in 0..200 {
        let directory = tree.join(format!("many/{n}"));
        fs::create_dir_all(&directory)?;
        for file in 0..100 {
            fs::write(directory.join(file.to_string()), "nothing\n")?;
        }
    }
    let odd = tree.join("a\u{1b}[31mb\n\u{202e}c");
    own_certificate(&odd, "site", "odd.test")?;
    container(host, "hostile", &[(&tree, "/data")], image::NAME, "sleep 600")?;

    let begun = Instant::now();
    let scan = scan(host, &["--json"])?;
    ensure!(begun.elapsed() < SOON, "it took {:?}", begun.elapsed());
    let document: Value = serde_json::from_str(&scan)?;
    let discovered = document["discovered"].as_array().context("discovered")?;
    ensure!(discovered.len() == 1, "{discovered:#?}");
    ensure!(discovered[0]["names"][0] == "odd.test", "{discovered:#?}");
    ensure!(document["summary"]["files"].as_u64() >= Some(20_000), "{document:#}");
    let bounds: Vec<&str> = document["findings"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|one| one["id"] == "scan-incomplete")
        .filter_map(|one| one["message"].as_str())
        .collect();
    ensure!(bounds.iter().any(|text| text.contains("max_depth")), "{bounds:?}");
    ensure!(bounds.iter().any(|text| text.contains("large.pem")), "{bounds:?}");
    let table = self::scan(host, &[])?;
    ensure!(!table.contains('\u{1b}') && !table.contains('\u{202e}'), "a name reached the terminal raw");
    Ok(())
}

/// Where the fixtures are.
struct Place(PathBuf);

impl Place {
    fn new(host: &Host) -> Result<Self> {
        let place = Self(host.directory().join("fixtures"));
        fs::create_dir_all(&place.0)?;
        Ok(place)
    }

    fn at(&self, path: &str) -> PathBuf {
        self.0.join(path)
    }

    /// Containers with a certificate each, in all the ways there are.
    fn fill(&self, host: &Host) -> Result<()> {
        let sleep = "sleep 600";
        own_certificate(&self.at("pem"), "site", "pem.test")?;
        let pem = self.at("pem");
        container(host, "nginx", &[(&pem, "/tls")], image::NAME, sleep)?;
        container(host, "second", &[(&pem, "/etc/tls")], image::NAME, sleep)?;

        host.engine.docker(&["volume", "create", "tls"])?;
        let volume = host.engine.docker(&["volume", "inspect", "--format", "{{.Mountpoint}}", "tls"])?;
        own_certificate(&self.at("volume"), "site", "volume.test")?;
        let both = self.both("volume/site")?;
        fs::write(Path::new(volume.trim()).join("combined.pem"), both)?;
        container(host, "volume", &[(Path::new("tls"), "/tls")], image::NAME, sleep)?;

        own_certificate(&self.at("der"), "pem", "der.test")?;
        let to_der = |kind: &str, from: &str, to: &str| {
            let mut openssl = command("openssl", &[kind, "-outform", "DER", "-in"]);
            run(openssl.arg(self.at(from)).arg("-out").arg(self.at(to)))
        };
        to_der("x509", "der/pem.crt", "der/site.der")?;
        to_der("pkey", "der/pem.key", "der/site.bin")?;
        fs::remove_file(self.at("der/pem.crt"))?;
        fs::remove_file(self.at("der/pem.key"))?;
        let der = self.at("der");
        container(host, "der", &[(&der, "/tls")], image::NAME, sleep)?;

        own_certificate(&self.at("stores-pem"), "site", "stores.test")?;
        fs::create_dir_all(self.at("stores"))?;
        run(command("openssl", &["pkcs12", "-export", "-passout", "pass:secret", "-in"])
            .arg(self.at("stores-pem/site.crt"))
            .arg("-inkey")
            .arg(self.at("stores-pem/site.key"))
            .arg("-out")
            .arg(self.at("stores/site.p12")))?;
        fs::write(self.at("stores/site.jks"), java_key_store(&self.at("stores-pem/site.crt"))?)?;
        container(host, "stores", &[(&self.at("stores"), "/tls")], image::NAME, sleep)?;

        fs::create_dir_all(self.at("expired"))?;
        fs::write(self.at("expired/old.pem"), expired()?)?;
        container(host, "expired", &[(&self.at("expired"), "/tls")], image::NAME, sleep)?;

        fs::create_dir_all(self.at("weak"))?;
        let weak = ["req", "-x509", "-newkey", "rsa:1024", "-nodes", "-days", "90", "-subj", "/CN=weak.test"];
        run(command("openssl", &weak)
            .args(["-addext", "subjectAltName=DNS:weak.test", "-keyout"])
            .arg(self.at("weak/weak.pem"))
            .arg("-out")
            .arg(self.at("weak/certificate")))?;
        let both =
            fs::read_to_string(self.at("weak/weak.pem"))? + &fs::read_to_string(self.at("weak/certificate"))?;
        fs::write(self.at("weak/weak.pem"), both)?;
        fs::remove_file(self.at("weak/certificate"))?;
        fs::set_permissions(self.at("weak/weak.pem"), fs::Permissions::from_mode(0o644))?;
        container(host, "weak", &[(&self.at("weak"), "/tls")], image::NAME, sleep)?;

        let pki = Pki::new()?;
        pki.intermediate("middle")?;
        let (chain, key) = pki.leaf("middle", "chain.test")?;
        fs::create_dir_all(self.at("chain/tls"))?;
        fs::create_dir_all(self.at("chain/authorities"))?;
        // The leaf alone; its issuer lies where no program sends it from.
        run(command("openssl", &["x509", "-in"])
            .arg(&chain)
            .arg("-out")
            .arg(self.at("chain/tls/server.crt")))?;
        fs::copy(&key, self.at("chain/tls/server.key"))?;
        let authorities = fs::read_to_string(&chain)?;
        let issuer = authorities.rfind("-----BEGIN").context("a chain of two")?;
        fs::write(self.at("chain/authorities/middle.pem"), &authorities[issuer..])?;
        container(host, "chain", &[(&self.at("chain"), "/tls")], image::NAME, sleep)?;

        own_certificate(&self.at("image"), "site", "baked.test")?;
        let recipe = format!("FROM {}\nCOPY site.crt site.key /srv/baked/\n", image::NAME);
        fs::write(self.at("image/Dockerfile"), recipe)?;
        let context = self.at("image").display().to_string();
        host.engine.docker(&["build", "--quiet", "--tag", "baked:1", &context])?;
        container(host, "baked", &[], "baked:1", sleep)?;

        own_certificate(&self.at("writer"), "site", "writer.test")?;
        container(host, "writer", &[], image::NAME, sleep)?;
        let both = self.both("writer/site")?;
        fs::write(self.at("writer/own.pem"), both)?;
        let own = self.at("writer/own.pem").display().to_string();
        host.engine.docker(&["cp", &own, "writer:/var/own.pem"])?;
        Ok(())
    }

    /// Programs that serve: one a certificate that it made itself in memory, one another
    /// than its file has by now. The fingerprints that they serve.
    fn serve(&self, host: &Host) -> Result<(String, String)> {
        let memory = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=served.test \
             -addext subjectAltName=DNS:served.test -keyout /memory/key -out /memory/certificate && \
             exec openssl s_server -quiet -accept 8443 -cert /memory/certificate -key /memory/key";
        let words =
            ["run", "--detach", "--name", "served", "--tmpfs", "/memory", image::NAME, "sh", "-c", memory];
        host.engine.docker(&words)?;
        own_certificate(&self.at("differs"), "site", "differs.test")?;
        let server = "openssl s_server -quiet -accept 8443 -cert /tls/site.crt -key /tls/site.key";
        container(host, "differs", &[(&self.at("differs"), "/tls")], image::NAME, server)?;
        let (served, differs) = (fingerprint(host, "served")?, fingerprint(host, "differs")?);
        own_certificate(&self.at("differs"), "site", "differs.test")?;
        Ok((served, differs))
    }

    fn both(&self, stem: &str) -> Result<String> {
        let read = |end: &str| fs::read_to_string(self.at(&format!("{stem}.{end}")));
        Ok(read("crt")? + &read("key")?)
    }
}

/// What a scan says.
struct Found<'a> {
    document: &'a Value,
}

impl Found<'_> {
    /// The discovered one whose id ends so.
    fn one(&self, end: &str) -> Result<&Value> {
        let all = self.document["discovered"].as_array().context("discovered")?;
        let one = all.iter().find(|one| one["id"].as_str().is_some_and(|id| id.ends_with(end)));
        one.with_context(|| format!("{end} was not found: {:#}", self.document))
    }

    /// The discovered one for this name.
    fn names(&self, name: &str) -> Result<&Value> {
        let all = self.document["discovered"].as_array().context("discovered")?;
        let one = all.iter().find(|one| one["names"][0] == name);
        one.with_context(|| format!("nothing for {name} was found: {:#}", self.document))
    }

    fn file(&self, path: &Path) -> Result<&Value> {
        self.one(&path.display().to_string())
    }

    /// The facts are those that OpenSSL reads.
    fn agrees(&self, path: &Path, layout: &str, consumers: &[&str]) -> Result<()> {
        let one = self.file(path)?;
        let openssl = |words: &[&str]| -> Result<String> {
            let form = if path.extension().is_some_and(|end| end == "der") { "DER" } else { "PEM" };
            let mut x509 = command("openssl", &["x509", "-noout", "-inform", form, "-in"]);
            let text = run(x509.arg(path).args(words))?;
            let value = text.split_once('=').map_or(text.as_str(), |(_, value)| value);
            Ok(value.trim().replace(':', "").to_lowercase())
        };
        let certificate = &one["certificate"];
        let same = |key: &str, expected: &str| {
            let told = certificate[key].as_str().unwrap_or_default();
            ensure!(
                told.trim_start_matches('0') == expected.trim_start_matches('0'),
                "{key}: {told}, {expected}"
            );
            Ok(())
        };
        same("fingerprint", &openssl(&["-fingerprint", "-sha256"])?)?;
        same("serial", &openssl(&["-serial"])?)?;
        let names = run(command("openssl", &["x509", "-noout", "-ext", "subjectAltName", "-inform"])
            .arg(if path.extension().is_some_and(|end| end == "der") { "DER" } else { "PEM" })
            .arg("-in")
            .arg(path))?;
        let name = certificate["names"][0].as_str().context("a name")?;
        ensure!(names.contains(name), "{name} is not in {names}");
        ensure!(one["layout"] == layout, "{one:#}");
        let told: BTreeSet<&str> = one["consumers"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|consumer| consumer["container"].as_str())
            .collect();
        ensure!(told == consumers.iter().copied().collect(), "{told:?}, expected {consumers:?}");
        Ok(())
    }

    fn finding(&self, id: &str, object: &str) -> Result<()> {
        let all = self.document["findings"].as_array().context("findings")?;
        let there = all
            .iter()
            .any(|one| one["id"] == id && one["object"].as_str().is_some_and(|text| text.ends_with(object)));
        ensure!(there, "there is no {id} on {object}: {all:#?}");
        Ok(())
    }
}

/// SHA-256 of what a container serves on port 8443, once it does.
fn fingerprint(host: &Host, container: &str) -> Result<String> {
    let format = "{{.NetworkSettings.IPAddress}}";
    let address = host.engine.docker(&["inspect", "--format", format, container])?;
    let address = format!("{}:8443", address.trim());
    wait_until("a certificate that is served", SOON, || {
        let client = [
            "-c",
            "openssl s_client -connect \"$0\" </dev/null | openssl x509 -noout -sha256 -fingerprint",
            &address,
        ];
        let text = run(&mut host.command(Path::new("bash"), &client))?;
        let value = text.trim().split_once('=').context("a fingerprint")?.1;
        Ok(value.replace(':', "").to_lowercase())
    })
}

fn scan(host: &Host, words: &[&str]) -> Result<String> {
    let agent = Binaries::built()?.agent;
    let words = [&["scan", "--state-dir", "/nonexistent"], words].concat();
    run(&mut host.command(&agent, &words))
}

fn container(host: &Host, name: &str, mounts: &[(&Path, &str)], image: &str, command: &str) -> Result<()> {
    let mut words: Vec<String> = ["run", "--detach", "--name", name].map(str::to_owned).to_vec();
    for (source, destination) in mounts {
        words.extend(["--volume".to_owned(), format!("{}:{destination}:ro", source.display())]);
    }
    words.push(image.to_owned());
    words.extend(command.split(' ').map(str::to_owned));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    host.engine.docker(&words).map(drop)
}

/// `<stem>.crt` and `<stem>.key` in `directory`.
fn own_certificate(directory: &Path, stem: &str, name: &str) -> Result<()> {
    fs::create_dir_all(directory)?;
    let subject = format!("/CN={name}");
    let names = format!("subjectAltName=DNS:{name}");
    let words = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
    run(command("openssl", &words)
        .args(["-days", "90", "-subj", &subject, "-addext", &names, "-keyout"])
        .arg(directory.join(format!("{stem}.key")))
        .arg("-out")
        .arg(directory.join(format!("{stem}.crt"))))
    .map(drop)
}

/// A certificate that has expired, and its key. OpenSSL 3.0 makes none.
fn expired() -> Result<String> {
    let key = rcgen::KeyPair::generate()?;
    let mut params = rcgen::CertificateParams::new(vec!["expired.test".to_owned()])?;
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2021, 1, 1);
    Ok(params.self_signed(&key)?.pem() + &key.serialize_pem())
}

/// A Java key store with one key, as `keytool` lays it out; what protects the key is not
/// made, because nobody here could open it.
fn java_key_store(certificate: &Path) -> Result<Vec<u8>> {
    let der = command("openssl", &["x509", "-outform", "DER", "-in"]).arg(certificate).output()?.stdout;
    let mut store = vec![0xfe, 0xed, 0xfe, 0xed];
    let number = |store: &mut Vec<u8>, number: usize| {
        store.extend_from_slice(&u32::try_from(number).unwrap_or_default().to_be_bytes());
    };
    let text = |store: &mut Vec<u8>, text: &str| {
        store.extend_from_slice(&u16::try_from(text.len()).unwrap_or_default().to_be_bytes());
        store.extend_from_slice(text.as_bytes());
    };
    number(&mut store, 2);
    number(&mut store, 1);
    number(&mut store, 1);
    text(&mut store, "site");
    store.extend_from_slice(&[0; 8]);
    number(&mut store, 64);
    store.extend_from_slice(&[7; 64]);
    number(&mut store, 1);
    text(&mut store, "X.509");
    number(&mut store, der.len());
    store.extend_from_slice(&der);
    store.extend_from_slice(&[0; 20]);
    Ok(store)
}
