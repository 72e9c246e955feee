//! The agent's looks at real servers, on this machine's loopback: every protocol that
//! comes to TLS by words, servers that ask for a client certificate, several certificates
//! on one port. What a look sees is what OpenSSL's client sees.

use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use reseal_agent::discover::{Endpoint, Starttls};
use reseal_agent::verify::probe::{Family, look_once};
use reseal_agent::verify::{self, Expected, VerifyError};
use reseal_proto::v1::EndpointProof;
use reseal_tests::machine;
use reseal_tests::openssl;
use reseal_tests::pki::Pki;
use reseal_tests::process::{command, run};
use reseal_tests::servers::{NEEDS, Pair, Servers, free_port};
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::time::Instant;

const LIMIT: Duration = Duration::from_secs(10);

/// A certificate as files, and what a look shall see of it.
struct Own {
    chain: PathBuf,
    key: PathBuf,
    leaf: [u8; 32],
}

impl Own {
    fn of((chain, key): (PathBuf, PathBuf)) -> Result<Self> {
        let certificates = openssl::certificates(&std::fs::read_to_string(&chain)?)?;
        let leaf = hex::decode(&certificates[0].fingerprint)?;
        Ok(Self { chain, key, leaf: leaf.try_into().ok().context("32 bytes")? })
    }

    fn pair(&self) -> Pair<'_> {
        Pair { chain: &self.chain, key: &self.key }
    }

    /// Signed by itself, for `name`, in `directory`.
    fn self_signed(directory: &Path, file: &str, name: &str, key: &[&str]) -> Result<Self> {
        let (chain, key_file) =
            (directory.join(format!("{file}.crt")), directory.join(format!("{file}.key")));
        let (subject, san) = (format!("/CN={name}"), format!("subjectAltName=DNS:{name}"));
        let words = ["req", "-x509", "-nodes", "-days", "2", "-subj", &subject, "-addext", &san, "-newkey"];
        run(command("openssl", &words).args(key).arg("-keyout").arg(&key_file).arg("-out").arg(&chain))?;
        Self::of((chain, key_file))
    }
}

fn root(pki: &Pki) -> Result<[CertificateDer<'static>; 1]> {
    let certificates = openssl::certificates(&std::fs::read_to_string(pki.root())?)?;
    Ok([CertificateDer::from(openssl::der(&certificates[0])?)])
}

fn at(port: u16, sni: &str, starttls: Starttls) -> Endpoint {
    let address = SocketAddr::from(([127, 0, 0, 1], port)).to_string();
    Endpoint { address, sni: sni.into(), starttls, ..Endpoint::default() }
}

async fn verify_one(endpoint: &Endpoint, expected: Expected<'_>) -> Result<EndpointProof, VerifyError> {
    let list = [endpoint.clone()];
    let (mut proofs, outcome) = verify::endpoints(&list, expected, Instant::now()).await;
    outcome.map(|()| proofs.remove(0))
}

fn prepare() -> Result<Pki> {
    machine::require_root()?;
    machine::ensure(NEEDS)?;
    reseal_proto::channel::install_crypto();
    let pki = Pki::new()?;
    pki.intermediate("a")?;
    Ok(pki)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_protocol_comes_to_tls() -> Result<()> {
    let pki = prepare()?;
    let anchors = root(&pki)?;
    let own = Own::of(pki.leaf("a", "a.test")?)?;
    let mut servers = Servers::new()?;
    let port = free_port;
    let [smtp, imap, pop3, ldap, ftp, postgres, mysql] =
        [port()?, port()?, port()?, port()?, port()?, port()?, port()?];
    servers.postfix(smtp, own.pair())?;
    servers.dovecot(imap, pop3, own.pair())?;
    servers.slapd(ldap, own.pair())?;
    servers.vsftpd(ftp, own.pair())?;
    servers.postgres(postgres, own.pair())?;
    servers.mariadb(mysql, own.pair(), 100)?;
    for (protocol, port, tells) in [
        (Starttls::Smtp, smtp, true),
        (Starttls::Imap, imap, true),
        (Starttls::Pop3, pop3, true),
        (Starttls::Ftp, ftp, true),
        (Starttls::Mysql, mysql, true),
        (Starttls::Ldap, ldap, false),
        (Starttls::Postgres, postgres, false),
    ] {
        let name = protocol.name();
        let endpoint = at(port, "a.test", protocol);
        // The world outside agrees that this is what is served.
        let address = endpoint.address.clone();
        let words = ["10", "openssl", "s_client", "-starttls", name, "-connect", &address, "-showcerts"];
        let seen = run(&mut command("timeout", &words)).with_context(|| name)?;
        let leaf = &openssl::certificates(&seen)?[0];
        ensure!(leaf.fingerprint == hex::encode(own.leaf), "{name}: OpenSSL sees another certificate");

        let expected = Expected {
            family: Family::Ecdsa,
            anchors: Some(&anchors),
            now: UnixTime::now(),
            ..Expected::just(own.leaf)
        };
        let proof = verify_one(&endpoint, expected).await.with_context(|| name)?;
        ensure!(proof.chain_valid && proof.handshakes >= 5, "{name}: {proof:?}");
        let error = verify_one(&endpoint, Expected::just([7; 32])).await.expect_err("another certificate");
        assert_eq!(error.code(), "served-differs", "{name}");

        // Somebody who was told nothing finds it out where the server speaks first.
        let unknown = at(port, "", Starttls::None);
        let found = look_once(&unknown, LIMIT).await;
        match found {
            Ok(seen) if tells => assert_eq!(seen.starttls, protocol),
            Err(error) if !tells => assert_eq!(error.code(), "no-tls", "{name}: {error}"),
            other => panic!("{name}: {other:?}"),
        }
        // And what speaks one protocol does not speak another.
        let wrong = if protocol == Starttls::Imap { Starttls::Smtp } else { Starttls::Imap };
        let seen = look_once(&at(port, "a.test", wrong), Duration::from_secs(3)).await;
        ensure!(seen.is_err(), "{name} was taken for {wrong:?}");
    }
    Ok(())
}

/// MariaDB refuses an address after some connections that broke off: for good, and
/// everybody behind it. Looks must not be among them.
#[tokio::test(flavor = "multi_thread")]
async fn looks_do_not_get_the_host_refused() -> Result<()> {
    let pki = prepare()?;
    let own = Own::of(pki.leaf("a", "a.test")?)?;
    let mut servers = Servers::new()?;
    let port = free_port()?;
    servers.mariadb(port, own.pair(), 2)?;
    // By loopback nobody is ever refused; by this machine's own address one is.
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect("198.51.100.1:9").context("this machine has no address but loopback")?;
    let address = SocketAddr::new(socket.local_addr()?.ip(), port).to_string();
    let endpoint = Endpoint { address: address.clone(), ..at(port, "a.test", Starttls::Mysql) };
    for _ in 0..3 {
        // One kind of key after the other is looked for while it is not the right one.
        let expected = Expected { family: Family::Rsa, ..Expected::just([7; 32]) };
        let error = verify_one(&endpoint, expected).await.expect_err("another certificate");
        assert_eq!(error.code(), "served-differs", "{error}");
        verify_one(&endpoint, Expected::just(own.leaf)).await?;
    }
    // The server does count: as it would have counted the looks.
    let rude = ["5", "openssl", "s_client", "-starttls", "mysql", "-connect", &address];
    for _ in 0..3 {
        let _ = run(&mut command("timeout", &rude));
    }
    let error = verify_one(&endpoint, Expected::just(own.leaf)).await.expect_err("refused");
    let words = format!("{:?}", anyhow::Error::from(error));
    ensure!(words.contains("blocked"), "{words}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_for_a_client_certificate_is_looked_at_all_the_same() -> Result<()> {
    let pki = prepare()?;
    let anchors = root(&pki)?;
    let own = Own::of(pki.leaf("a", "a.test")?)?;
    let mut servers = Servers::new()?;
    let (old, new, haproxy, stunnel) = (free_port()?, free_port()?, free_port()?, free_port()?);
    let certificate = servers.for_nginx("pair", own.pair())?;
    let clients = servers.file("root.pem", &pki.root())?;
    let block = |port: u16, version: &str| {
        format!(
            "server {{ listen 127.0.0.1:{port} ssl; {certificate} ssl_protocols {version}; \
             ssl_client_certificate {clients}; ssl_verify_client on; ssl_verify_depth 3; }}"
        )
    };
    servers.nginx("nginx", &[old, new], &[block(old, "TLSv1.2"), block(new, "TLSv1.3")].concat())?;
    servers.haproxy(haproxy, own.pair(), &pki.root())?;
    servers.stunnel(stunnel, own.pair(), &pki.root())?;
    for (name, port, versions) in [
        ("nginx, TLS 1.2", old, vec!["TLSv1.2"]),
        ("nginx, TLS 1.3", new, vec!["TLSv1.3"]),
        ("HAProxy", haproxy, vec!["TLSv1.3", "TLSv1.2"]),
        ("stunnel", stunnel, vec!["TLSv1.3", "TLSv1.2"]),
    ] {
        let endpoint = at(port, "a.test", Starttls::None);
        let now = UnixTime::now();
        let expected =
            Expected { family: Family::Ecdsa, anchors: Some(&anchors), now, ..Expected::just(own.leaf) };
        let proof = verify_one(&endpoint, expected).await.with_context(|| name)?;
        assert_eq!(proof.versions, versions, "{name}");
        let seen = look_once(&at(port, "", Starttls::None), LIMIT).await.with_context(|| name)?;
        ensure!(seen.proved, "{name}: without its key");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn several_certificates_on_one_port() -> Result<()> {
    prepare()?;
    let directory = tempfile::tempdir()?;
    let ec = ["ec", "-pkeyopt", "ec_paramgen_curve:P-256"];
    let make = |file: &str, name: &str, key: &[&str]| Own::self_signed(directory.path(), file, name, key);
    let ecdsa = make("ecdsa", "a.test", &ec)?;
    let rsa = make("rsa", "a.test", &["rsa:2048"])?;
    let other = make("other", "b.test", &ec)?;
    let default = make("default", "default.test", &ec)?;
    let mut servers = Servers::new()?;
    let certificate = |name: &str, own: &Own| servers.for_nginx(name, own.pair());
    let port = free_port()?;
    let blocks = format!(
        "server {{ listen 127.0.0.1:{port} ssl default_server; {} }}\n\
         server {{ listen 127.0.0.1:{port} ssl; server_name a.test; {} {} }}\n\
         server {{ listen 127.0.0.1:{port} ssl; server_name b.test; {} }}\n",
        certificate("default", &default)?,
        certificate("ecdsa", &ecdsa)?,
        certificate("rsa", &rsa)?,
        certificate("other", &other)?,
    );
    servers.nginx("nginx", &[port], &blocks)?;
    // Each is proved by its own name and kind of key, and the others are not in the way.
    for (sni, family, own) in [
        ("a.test", Family::Ecdsa, &ecdsa),
        ("a.test", Family::Rsa, &rsa),
        ("a.test", Family::Any, &rsa),
        ("b.test", Family::Ecdsa, &other),
        ("who.test", Family::Ecdsa, &default),
        ("127.0.0.1", Family::Ecdsa, &default),
    ] {
        let expected = Expected { family, ..Expected::just(own.leaf) };
        let proof = verify_one(&at(port, sni, Starttls::None), expected).await.with_context(|| sni)?;
        assert_eq!(proof.versions, ["TLSv1.3", "TLSv1.2"]);
    }
    // What was to be replaced is found by the other kind of key and without a name.
    for former in [&rsa, &default] {
        let list = [former.leaf];
        let expected = Expected { family: Family::Ecdsa, former: &list, ..Expected::just(ecdsa.leaf) };
        let error =
            verify_one(&at(port, "a.test", Starttls::None), expected).await.expect_err("still served");
        assert_eq!(error.code(), "served-differs");
        let words = error.to_string();
        ensure!(words.contains(&hex::encode(&former.leaf[..8])), "{words}");
    }
    Ok(())
}
