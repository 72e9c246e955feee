use std::sync::Arc;

use super::look::look;
use super::probe::Version;
use super::*;
use crate::chain::tests::{Authority, Leaf};
use crate::discover::Starttls;
use crate::key::{KeyType, PrivateKey};
use reseal_proto::facts::sha256;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

struct Site {
    endpoint: Endpoint,
    leaf: [u8; 32],
    root: CertificateDer<'static>,
    config: Arc<std::sync::Mutex<Arc<rustls::ServerConfig>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Site {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Versions = &'static [&'static rustls::SupportedProtocolVersion];

fn server_config(
    authority: &Authority,
    versions: Versions,
    client_auth: bool,
) -> (rustls::ServerConfig, [u8; 32]) {
    let key = PrivateKey::generate(KeyType::EcdsaP256).unwrap();
    let chain = authority.issue(&key, &Leaf::server(&["a.test", "127.0.0.1"]));
    let leaf = sha256(&chain[0]);
    let pkcs8 = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.to_pkcs8().unwrap().to_vec()));
    let builder = rustls::ServerConfig::builder_with_protocol_versions(versions);
    let builder = if client_auth {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(authority.root.clone()).unwrap();
        let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build().unwrap();
        builder.with_client_cert_verifier(verifier)
    } else {
        builder.with_no_client_auth()
    };
    (builder.with_single_cert(chain, pkcs8).unwrap(), leaf)
}

async fn serve(authority: &Authority, versions: Versions, client_auth: bool) -> Site {
    reseal_proto::channel::install_crypto();
    let (config, leaf) = server_config(authority, versions, client_auth);
    let config = Arc::new(std::sync::Mutex::new(Arc::new(config)));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = Endpoint {
        address: listener.local_addr().unwrap().to_string(),
        sni: "a.test".into(),
        ..Endpoint::default()
    };
    let current = config.clone();
    let task = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let acceptor = tokio_rustls::TlsAcceptor::from(current.lock().unwrap().clone());
            tokio::spawn(async move { acceptor.accept(stream).await.map(drop) });
        }
    });
    Site { endpoint, leaf, root: authority.root.clone(), config, task }
}

fn expected<'a>(fingerprint: [u8; 32], anchors: &'a [CertificateDer<'static>]) -> Expected<'a> {
    Expected { anchors: Some(anchors), now: UnixTime::now(), ..Expected::just(fingerprint) }
}

const BOTH: Versions = &[&rustls::version::TLS12, &rustls::version::TLS13];
const OLD: Versions = &[&rustls::version::TLS12];
const NEW: Versions = &[&rustls::version::TLS13];

#[tokio::test]
async fn every_spoken_version_is_looked_at() {
    let authority = Authority::new("a");
    for (versions, names) in
        [(BOTH, vec!["TLSv1.3", "TLSv1.2"]), (OLD, vec!["TLSv1.2"]), (NEW, vec!["TLSv1.3"])]
    {
        let server = serve(&authority, versions, false).await;
        let anchors = [server.root.clone()];
        let expected = expected(server.leaf, &anchors);
        let proof = look(&server.endpoint, expected).await.unwrap();
        assert_eq!(proof.versions, names);
        assert_eq!(proof.handshakes as usize, 1 + look::LEAST * names.len());
        assert!(proof.chain_valid);
        let address = Endpoint { sni: "127.0.0.1".into(), ..server.endpoint.clone() };
        assert!(look(&address, expected).await.unwrap().chain_valid);
    }
}

#[tokio::test]
async fn a_server_that_wants_a_client_certificate_is_seen_all_the_same() {
    let authority = Authority::new("a");
    for versions in [OLD, NEW] {
        let server = serve(&authority, versions, true).await;
        let anchors = [server.root.clone()];
        let expected = expected(server.leaf, &anchors);
        let proof = look(&server.endpoint, expected).await.unwrap();
        assert_eq!(proof.handshakes as usize, 1 + look::LEAST);
    }
}

#[tokio::test]
async fn what_is_wrong_is_named() {
    let authority = Authority::new("a");
    let server = serve(&authority, BOTH, false).await;
    let stranger = [Authority::new("b").root];
    let own = [server.root.clone()];
    let expect = expected;
    let code = |result: Result<EndpointProof, VerifyError>| result.unwrap_err().code();
    let result = look(&server.endpoint, expect([7; 32], own.as_slice())).await;
    assert_eq!(code(result), "served-differs");
    let result = look(&server.endpoint, expect(server.leaf, stranger.as_slice())).await;
    assert_eq!(code(result), "chain-invalid");
    let other = Endpoint { sni: "b.test".into(), ..server.endpoint.clone() };
    let result = look(&other, expect(server.leaf, own.as_slice())).await;
    assert_eq!(code(result), "chain-invalid");

    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = closed.local_addr().unwrap().to_string();
    drop(closed);
    let gone = Endpoint { address, sni: "a.test".into(), ..Endpoint::default() };
    let result = look(&gone, expect(server.leaf, own.as_slice())).await;
    assert_eq!(code(result), "endpoint-unreachable");
}

#[tokio::test]
async fn waits_until_the_new_one_is_served() {
    let authority = Authority::new("a");
    let server = serve(&authority, BOTH, false).await;
    let (config, leaf) = server_config(&authority, BOTH, false);
    let endpoints_list = [server.endpoint.clone()];
    let expected = Expected::just(leaf);
    // Before the switch a short deadline passes without success.
    let soon = Instant::now() + Duration::from_millis(100);
    let (proofs, result) = endpoints(&endpoints_list, expected, soon).await;
    assert!(proofs.is_empty());
    assert_eq!(result.unwrap_err().code(), "served-differs");
    // The switch comes while it is being waited for.
    let late = Instant::now() + Duration::from_secs(20);
    let switch = async {
        tokio::task::yield_now().await;
        *server.config.lock().unwrap() = Arc::new(config);
    };
    let ((proofs, result), ()) = tokio::join!(endpoints(&endpoints_list, expected, late), switch);
    result.unwrap();
    assert_eq!(proofs[0].served, leaf);
}

/// Takes one connection after the other and gives each to `serve`.
async fn plain<F>(serve: impl Fn(tokio::net::TcpStream) -> F + Send + 'static) -> Endpoint
where
    F: Future<Output = std::io::Result<()>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    Endpoint { address, sni: "a.test".into(), ..Endpoint::default() }
}

/// An SMTP server that comes to TLS and has `config`.
async fn mail(config: rustls::ServerConfig) -> Endpoint {
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    plain(move |mut stream| {
        let acceptor = acceptor.clone();
        async move {
            for (says, hears) in [("220 mx ESMTP\r\n", "EHLO"), ("250-mx\r\n250 STARTTLS\r\n", "STARTTLS")] {
                stream.write_all(says.as_bytes()).await?;
                let mut heard = [0; 64];
                let read = stream.read(&mut heard).await?;
                if !heard[..read].starts_with(hears.as_bytes()) {
                    return stream.write_all(b"500 what?\r\n").await;
                }
            }
            stream.write_all(b"220 go\r\n").await?;
            acceptor.accept(stream).await.map(drop)
        }
    })
    .await
}

#[tokio::test]
async fn a_look_finds_out_what_is_spoken() {
    let authority = Authority::new("a");
    let limit = Duration::from_secs(5);
    let server = serve(&authority, BOTH, true).await;
    let seen = probe::look_once(&server.endpoint, limit).await.unwrap();
    assert_eq!(sha256(&seen.chain[0]), server.leaf);
    assert_eq!((seen.proved, seen.version), (true, Some(Version::Tls13)));

    let (config, leaf) = server_config(&authority, BOTH, false);
    let mail = mail(config).await;
    // Nobody said that it is a mail server.
    for sni in ["a.test", ""] {
        let endpoint = Endpoint { sni: sni.into(), ..mail.clone() };
        let seen = probe::look_once(&endpoint, limit).await.unwrap();
        assert_eq!((sha256(&seen.chain[0]), seen.starttls), (leaf, Starttls::Smtp));
    }
    // TLS from the first byte where something else is usual, and the other way round.
    let unusual = Endpoint { starttls: Starttls::Smtp, ..server.endpoint.clone() };
    let error = probe::look_once(&unusual, Duration::from_millis(500)).await.unwrap_err();
    assert_eq!(error.code(), "endpoint-unreachable", "both wait for the other");
    let told = Endpoint { starttls: Starttls::Smtp, ..mail.clone() };
    let expected = Expected::just(leaf);
    look(&told, expected).await.unwrap();
    assert_eq!(look(&mail, expected).await.unwrap_err().code(), "no-tls");
}

#[tokio::test]
async fn a_look_ends_whatever_the_server_does() {
    reseal_proto::channel::install_crypto();
    let silent = plain(|stream| async move {
        std::future::pending::<()>().await;
        drop(stream);
        Ok(())
    })
    .await;
    let http = plain(|mut stream| async move {
        let mut heard = [0; 2048];
        let read = stream.read(&mut heard).await?;
        assert!(read > 0);
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await
    })
    .await;
    let endless = plain(|mut stream| async move {
        loop {
            stream.write_all(b"220-and another line\r\n").await?;
        }
    })
    .await;
    let rude = plain(|stream| async move {
        drop(stream);
        Ok(())
    })
    .await;
    let limit = Duration::from_secs(2);
    for (endpoint, code) in
        [(silent, "endpoint-unreachable"), (http, "no-tls"), (endless, "no-tls"), (rude, "no-tls")]
    {
        let begun = Instant::now();
        let error = probe::look_once(&endpoint, limit).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(begun.elapsed() < limit * 2);
        for starttls in [Starttls::Smtp, Starttls::Mysql, Starttls::Ldap] {
            let told = Endpoint { starttls, ..endpoint.clone() };
            probe::look_once(&told, limit).await.unwrap_err();
        }
        assert!(begun.elapsed() < limit * 6);
    }
}

#[tokio::test]
async fn slow_endpoints_do_not_hold_back_the_others() {
    let authority = Authority::new("a");
    let server = serve(&authority, BOTH, false).await;
    let mut all = vec![Endpoint { sni: "z.test".into(), ..server.endpoint.clone() }];
    for _ in 0..12 {
        let silent = plain(|stream| async move {
            std::future::pending::<()>().await;
            drop(stream);
            Ok(())
        });
        all.push(silent.await);
    }
    let begun = Instant::now();
    let deadline = begun + Duration::from_millis(500);
    let (proofs, outcome) = endpoints(&all, Expected::just(server.leaf), deadline).await;
    assert_eq!(proofs.len(), 1);
    assert_eq!(outcome.unwrap_err().code(), "endpoint-unreachable");
    // One handshake's time: they are all slow at the same time.
    assert!(begun.elapsed() < Duration::from_secs(9), "{:?}", begun.elapsed());
}

/// A process with nothing in its network but what listens in this test's.
fn server(port: u16, published: bool) -> Option<Server> {
    let pid = i32::try_from(std::process::id()).unwrap();
    Some(Server { container: "web".into(), pid, port, published })
}

#[tokio::test]
async fn what_the_host_does_not_find_is_looked_at_from_within() {
    let authority = Authority::new("a");
    let real = serve(&authority, BOTH, false).await;
    let port = real.endpoint.address.parse::<SocketAddr>().unwrap().port();
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap()
    };
    let soon = || Instant::now() + Duration::from_millis(300);
    let at = |address: String, server| Endpoint { address, server, ..real.endpoint.clone() };

    // Nobody at the address, but the kernel says that something listens on the port.
    let nobody = at(format!("127.0.0.77:{}", closed.port()), server(port, false));
    let (proofs, outcome) = endpoints(&[nobody], Expected::just(real.leaf), soon()).await;
    outcome.unwrap();
    assert_eq!(proofs[0].vantage, "container web");
    assert_eq!(proofs[0].address, real.endpoint.address);

    // Others come by the published address: no other way is taken.
    let published = at(closed.to_string(), server(port, true));
    let (proofs, outcome) = endpoints(&[published], Expected::just(real.leaf), soon()).await;
    assert_eq!((proofs.len(), outcome.unwrap_err().code()), (0, "endpoint-unreachable"));

    // Where the host finds it, that is the view.
    let both = at(real.endpoint.address.clone(), server(port, false));
    let (proofs, _) = endpoints(&[both], Expected::just(real.leaf), soon()).await;
    assert_eq!(proofs[0].vantage, "host");

    // Nothing listens at all.
    let none = at(closed.to_string(), server(closed.port(), false));
    let error = endpoints(&[none], Expected::just(real.leaf), soon()).await.1.unwrap_err();
    assert!(crate::chain_of(&error).to_string().contains("nothing in container web listens"), "{error}");
}

#[tokio::test]
async fn a_container_that_ends_in_the_middle_is_told_so() {
    let authority = Authority::new("a");
    let real = serve(&authority, BOTH, false).await;
    let mut sleeper = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    let pid = i32::try_from(sleeper.id()).unwrap();
    let server = Server { container: "web".into(), pid, port: 1, published: false };
    let endpoint = Endpoint { server: Some(server), ..real.endpoint.clone() };
    let deadline = Instant::now() + Duration::from_millis(400);
    let expected = Expected::just([7; 32]);
    let list = [endpoint];
    let ends = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
    };
    let ((_, outcome), ()) = tokio::join!(endpoints(&list, expected, deadline), ends);
    let error = crate::chain_of(&outcome.unwrap_err()).to_string();
    assert!(error.contains("container web has ended"), "{error}");
}
