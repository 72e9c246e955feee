use std::sync::Arc;

use super::*;
use crate::chain::tests::{Authority, Leaf};
use crate::key::{KeyType, PrivateKey};
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::TcpListener;

struct Server {
    endpoint: Endpoint,
    leaf: [u8; 32],
    root: CertificateDer<'static>,
    config: Arc<std::sync::Mutex<Arc<rustls::ServerConfig>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
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

async fn serve(authority: &Authority, versions: Versions, client_auth: bool) -> Server {
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
    Server { endpoint, leaf, root: authority.root.clone(), config, task }
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
        let expected = Expected { fingerprint: server.leaf, anchors: Some(&anchors), now: UnixTime::now() };
        let proof = look(&server.endpoint, expected).await.unwrap();
        assert_eq!(proof.versions, names);
        assert_eq!(proof.handshakes as usize, HANDSHAKES * names.len());
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
        let expected = Expected { fingerprint: server.leaf, anchors: Some(&anchors), now: UnixTime::now() };
        let proof = look(&server.endpoint, expected).await.unwrap();
        assert_eq!(proof.handshakes as usize, HANDSHAKES);
    }
}

#[tokio::test]
async fn what_is_wrong_is_named() {
    let authority = Authority::new("a");
    let server = serve(&authority, BOTH, false).await;
    let stranger = [Authority::new("b").root];
    let own = [server.root.clone()];
    let expect =
        |fingerprint, anchors| Expected { fingerprint, anchors: Some(anchors), now: UnixTime::now() };
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
    let expected = Expected { fingerprint: leaf, anchors: None, now: UnixTime::now() };
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
