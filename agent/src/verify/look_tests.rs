use std::sync::Arc;

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::{TcpListener, TcpSocket};

use super::*;
use crate::chain::tests::{Authority, Leaf};
use crate::discover::Server;
use crate::key::{KeyType, PrivateKey};

fn pair(authority: &Authority, kind: KeyType, name: &str) -> (Arc<CertifiedKey>, [u8; 32]) {
    let key = PrivateKey::generate(kind).unwrap();
    let chain = authority.issue(&key, &Leaf::server(&[name]));
    let leaf = sha256(&chain[0]);
    let pkcs8 = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.to_pkcs8().unwrap().to_vec()));
    let signer = rustls::crypto::aws_lc_rs::sign::any_supported_type(&pkcs8).unwrap();
    (Arc::new(CertifiedKey::new(chain, signer)), leaf)
}

/// What a server shows to whom.
#[derive(Clone, Debug, Default)]
struct Shows {
    ecdsa: Option<Arc<CertifiedKey>>,
    rsa: Option<Arc<CertifiedKey>>,
    /// To those who say no name.
    unnamed: Option<Arc<CertifiedKey>>,
}

impl ResolvesServerCert for Shows {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let takes = |family: Family| hello.signature_schemes().iter().any(|scheme| family.has(*scheme));
        if hello.server_name().is_none() {
            return self.unnamed.clone();
        }
        let ecdsa = self.ecdsa.clone().filter(|_| takes(Family::Ecdsa));
        ecdsa.or_else(|| self.rsa.clone().filter(|_| takes(Family::Rsa)))
    }
}

async fn serve(listener: TcpListener, shows: Shows) {
    let config = rustls::ServerConfig::builder().with_no_client_auth().with_cert_resolver(Arc::new(shows));
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move { acceptor.accept(stream).await.map(drop) });
        }
    });
}

async fn endpoint(shows: Shows) -> Endpoint {
    reseal_proto::channel::install_crypto();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    serve(listener, shows).await;
    Endpoint { address, sni: "a.test".into(), ..Endpoint::default() }
}

#[tokio::test]
async fn a_second_certificate_hides_nothing_and_disturbs_nobody() {
    let authority = Authority::new("a");
    let (ecdsa, ecdsa_leaf) = pair(&authority, KeyType::EcdsaP256, "a.test");
    let (rsa, rsa_leaf) = pair(&authority, KeyType::Rsa2048, "a.test");
    let (stranger, stranger_leaf) = pair(&authority, KeyType::EcdsaP256, "other.test");
    let shows = Shows { ecdsa: Some(ecdsa), rsa: Some(rsa), unnamed: Some(stranger) };
    let endpoint = endpoint(shows).await;
    let anchors = [authority.root.clone()];
    // Both are proved, whether it is known what kind they are or not.
    for (fingerprint, family) in [
        (ecdsa_leaf, Family::Ecdsa),
        (ecdsa_leaf, Family::Any),
        (rsa_leaf, Family::Rsa),
        (rsa_leaf, Family::Any),
    ] {
        let now = rustls_pki_types::UnixTime::now();
        let expected = Expected { family, anchors: Some(&anchors), now, ..Expected::just(fingerprint) };
        let proof = look(&endpoint, expected).await.unwrap();
        assert!(proof.chain_valid && proof.versions.len() == 2);
    }
    // The one of the default server is not what is asked for, nor in the way.
    let error = look(&endpoint, Expected::just(stranger_leaf)).await.unwrap_err();
    assert_eq!(error.code(), "served-differs");

    // But none of them may be what was to be replaced.
    for (former, shown_for) in
        [(rsa_leaf, "TLSv1.3 with an RSA certificate"), (stranger_leaf, "TLSv1.3 without a server name")]
    {
        let former = [[9; 32], former];
        let expected = Expected { family: Family::Ecdsa, former: &former, ..Expected::just(ecdsa_leaf) };
        let error = look(&endpoint, expected).await.unwrap_err();
        assert_eq!(error.code(), "served-differs");
        assert!(error.to_string().contains(shown_for), "{error}");
    }
    // Nor does it matter that a former one is the same.
    let former = [ecdsa_leaf];
    look(&endpoint, Expected { former: &former, ..Expected::just(ecdsa_leaf) }).await.unwrap();
}

#[tokio::test]
async fn another_kind_of_key_is_told_as_what_is_served() {
    let authority = Authority::new("a");
    let (rsa, rsa_leaf) = pair(&authority, KeyType::Rsa2048, "a.test");
    let endpoint = endpoint(Shows { rsa: Some(rsa), ..Shows::default() }).await;
    let expected = Expected { family: Family::Ecdsa, ..Expected::just([7; 32]) };
    let error = look(&endpoint, expected).await.unwrap_err();
    assert_eq!(error.code(), "served-differs");
    assert!(error.to_string().contains(&hex::encode(&rsa_leaf[..8])), "{error}");
    // Nothing is shown to those without a name, and that is all right.
    look(&endpoint, Expected::just(rsa_leaf)).await.unwrap();
}

/// Several workers with a socket each, as SO_REUSEPORT gives them; one is from before.
#[tokio::test]
async fn one_old_worker_of_many_is_met() {
    let authority = Authority::new("a");
    let (new, leaf) = pair(&authority, KeyType::EcdsaP256, "a.test");
    let (old, _) = pair(&authority, KeyType::EcdsaP256, "a.test");
    let show = |one: &Arc<CertifiedKey>| Shows { ecdsa: Some(one.clone()), ..Shows::default() };
    reseal_proto::channel::install_crypto();
    let bind = |port: u16| {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseport(true).unwrap();
        socket.bind(std::net::SocketAddr::from(([127, 0, 0, 1], port))).unwrap();
        socket.listen(64).unwrap()
    };
    let first = bind(0);
    let port = first.local_addr().unwrap().port();
    serve(first, show(&new)).await;
    for _ in 0..6 {
        serve(bind(port), show(&new)).await;
    }
    let pid = i32::try_from(std::process::id()).unwrap();
    let server = Server { container: "web".into(), pid, port, published: false };
    let endpoint = Endpoint {
        address: format!("127.0.0.1:{port}"),
        sni: "a.test".into(),
        server: Some(server),
        ..Endpoint::default()
    };
    let proof = look(&endpoint, Expected::just(leaf)).await.unwrap();
    assert_eq!(proof.handshakes as usize, 1 + 2 * 7 * PER_SOCKET);
    serve(bind(port), show(&old)).await;
    // 65 connections miss one socket of eight once in 6,000 times; 5 in a row never.
    let mut met = 0;
    for _ in 0..5 {
        met += usize::from(look(&endpoint, Expected::just(leaf)).await.is_err());
    }
    assert!(met >= 4, "the old worker was met in {met} of 5 looks");
}

/// A server that takes one connection at a time.
#[tokio::test]
async fn a_server_that_serves_one_at_a_time_is_proved() {
    let authority = Authority::new("a");
    let (one, leaf) = pair(&authority, KeyType::EcdsaP256, "a.test");
    reseal_proto::channel::install_crypto();
    let shows = Shows { ecdsa: Some(one), ..Shows::default() };
    let config = rustls::ServerConfig::builder().with_no_client_auth().with_cert_resolver(Arc::new(shows));
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            if let Ok(mut stream) = acceptor.accept(stream).await {
                // Until the client goes.
                let _ = tokio::io::AsyncReadExt::read(&mut stream, &mut [0]).await;
            }
        }
    });
    let endpoint = Endpoint { address, sni: "a.test".into(), ..Endpoint::default() };
    look(&endpoint, Expected::just(leaf)).await.unwrap();
}
