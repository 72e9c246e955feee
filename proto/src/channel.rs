//! A gRPC channel to the coordinator: TLS 1.3, the fleet's own CA as only anchor.
//!
//! There is no trust on first use: before an agent has the control-plane CA it
//! has its pin, from the join token, and accepts a chain only if that very
//! certificate ends it.
//!
//! The coordinator's certificate is young after each of its starts, and the clock
//! here may be slow: one that is *not yet* good by up to [`SLOW_CLOCK`] is judged
//! as if at its own beginning. One that has expired is refused.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::facts::sha256;
use crate::identity::COORDINATOR_DNS_NAME;

/// How the coordinator is recognised.
pub enum Trust {
    /// By the control-plane CA certificate.
    Anchor(CertificateDer<'static>),
    /// By the SHA-256 fingerprint of that certificate, which the coordinator sends.
    Pin([u8; 32]),
}

/// A client certificate and its key. `Debug` shows neither.
pub struct Credentials {
    /// Leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// The private key.
    pub key: PrivateKeyDer<'static>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(..)")
    }
}

/// Why no channel came up.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The anchor or the client certificate cannot be used.
    #[error("cannot use this TLS identity")]
    Tls(#[source] rustls::Error),
    /// "address:port" did not parse.
    #[error("coordinator address {0:?} is not HOST:PORT")]
    Address(String),
    /// No connection, or no handshake.
    #[error("cannot connect to the coordinator at {address}")]
    Connect {
        /// "address:port".
        address: String,
        /// What went wrong below.
        #[source]
        source: tonic::transport::Error,
    },
}

/// Makes aws-lc-rs the process's crypto provider. Call first in `main`; twice is harmless.
pub fn install_crypto() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

/// How far behind the clock here may be, and the coordinator is still reached.
/// Whoever has stolen an old key of the coordinator could use it against a machine
/// whose clock he holds back; not more than this.
pub const SLOW_CLOCK: Duration = Duration::from_secs(3 * 24 * 3600);

/// The TLS side of a channel; one per identity, shared by reconnects.
pub fn client_config(
    trust: Trust,
    credentials: Option<Credentials>,
) -> Result<Arc<ClientConfig>, ChannelError> {
    let builder = ClientConfig::builder_with_protocol_versions(&[&rustls::version::TLS13]);
    let provider = CryptoProvider::get_default()
        .cloned()
        .unwrap_or_else(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
    let anchored = match trust {
        Trust::Anchor(anchor) => Anchored::To(anchored(anchor, &provider).map_err(ChannelError::Tls)?),
        Trust::Pin(pin) => Anchored::ByPin(pin),
    };
    let verifier = Arc::new(Verifier { anchored, provider });
    let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
    let mut config = match credentials {
        Some(Credentials { chain, key }) => {
            builder.with_client_auth_cert(chain, key).map_err(ChannelError::Tls)?
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// Connects to one coordinator; fails within ten seconds when it does not answer.
pub async fn connect(address: &str, tls: Arc<ClientConfig>) -> Result<Channel, ChannelError> {
    connect_from(address, tls, None).await
}

/// Like [`connect`], from a given local address: a fleet simulator needs several.
pub async fn connect_from(
    address: &str,
    tls: Arc<ClientConfig>,
    local: Option<std::net::IpAddr>,
) -> Result<Channel, ChannelError> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|_| ChannelError::Address(address.to_owned()))?
        .connect_timeout(Duration::from_secs(10))
        .http2_keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(20))
        .keep_alive_while_idle(true);
    let target = address.to_owned();
    let connector = tower::service_fn(move |_: Uri| {
        let (target, tls) = (target.clone(), tls.clone());
        async move {
            let stream = match local {
                None => TcpStream::connect(&target).await?,
                Some(local) => {
                    let peer = tokio::net::lookup_host(&target).await?.next().ok_or_else(|| {
                        std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no address")
                    })?;
                    let socket = tokio::net::TcpSocket::new_v4()?;
                    socket.bind((local, 0).into())?;
                    socket.connect(peer).await?
                }
            };
            stream.set_nodelay(true)?;
            let name = ServerName::try_from(COORDINATOR_DNS_NAME).expect("a constant DNS name");
            let stream = tokio_rustls::TlsConnector::from(tls).connect(name, stream).await?;
            Ok::<_, std::io::Error>(TokioIo::new(stream))
        }
    });
    endpoint
        .connect_with_connector(connector)
        .await
        .map_err(|source| ChannelError::Connect { address: address.to_owned(), source })
}

/// Accepts a chain that ends in the anchor, or in the one certificate with the pin.
#[derive(Debug)]
struct Verifier {
    anchored: Anchored,
    provider: Arc<CryptoProvider>,
}

/// What a chain has to end in.
#[derive(Debug)]
enum Anchored {
    /// The CA certificate that is known.
    To(Arc<WebPkiServerVerifier>),
    /// The one that comes with the chain and has this fingerprint.
    ByPin([u8; 32]),
}

/// Judges chains by one CA certificate.
fn anchored(
    anchor: CertificateDer<'static>,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<WebPkiServerVerifier>, rustls::Error> {
    let mut roots = RootCertStore::empty();
    roots.add(anchor)?;
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .map_err(|error| rustls::Error::General(error.to_string()))
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verifier = match &self.anchored {
            Anchored::To(verifier) => verifier.clone(),
            Anchored::ByPin(pin) => {
                let root = intermediates
                    .iter()
                    .find(|certificate| sha256(certificate) == *pin)
                    .ok_or(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
                anchored(root.clone().into_owned(), &self.provider)?
            }
        };
        let at =
            |time| verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, time);
        match at(now) {
            Err(rustls::Error::InvalidCertificate(CertificateError::NotValidYetContext {
                not_before,
                ..
            })) if not_before.as_secs() <= now.as_secs().saturating_add(SLOW_CLOCK.as_secs()) => {
                at(not_before)
            }
            judged => judged,
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("the control plane speaks TLS 1.3 only".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
