//! The coordinator's side of TLS 1.3: who connects, before any byte of gRPC.
//!
//! A client certificate is asked for and verified against the control-plane CA
//! when it comes; enrolment is the one call that needs none. Handshakes run in
//! tasks of their own, bounded in number and time, in all and for each address
//! ([`sources`]), so that a slow, silent or greedy client holds up nobody.

mod sources;

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwap;
use reseal_proto::facts;
use reseal_proto::identity::Identity;
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use self::sources::Sources;
use crate::domain::Now;
use crate::issuance::control::ControlPlane;
use crate::issuance::profile::SERVER;

/// A client that has not finished its handshake by then is dropped.
const HANDSHAKE: Duration = Duration::from_secs(20);
/// Handshakes at a time; more wait.
const HANDSHAKES: usize = 1024;
/// Connections that wait or shake hands; more wait in the listen queue.
const CONNECTIONS: usize = 8192;

/// Open connections without a client certificate: only an enrolment needs one.
const STRANGERS: usize = 1024;

/// TLS could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The certificate could not be made.
    #[error("cannot make the coordinator's server certificate")]
    Certificate(#[from] crate::issuance::profile::ProfileError),
    /// rustls refused it.
    #[error("cannot use the coordinator's server certificate")]
    Config(#[from] rustls::Error),
    /// The client verifier could not be built.
    #[error("cannot verify client certificates")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// The certificate a client presented, verified against the control-plane CA.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    /// From its URI SAN; `None`: no certificate, or none that is an identity.
    pub(crate) identity: Option<Arc<PeerIdentity>>,
}

/// An identity and the key that proved it.
#[derive(Clone, Debug)]
pub(crate) struct PeerIdentity {
    /// Who.
    pub(crate) identity: Identity,
    /// SHA-256 over the SubjectPublicKeyInfo.
    pub(crate) spki_sha256: [u8; 32],
    /// The certificate, DER.
    pub(crate) certificate: Vec<u8>,
    /// End of its validity, seconds since the Unix epoch.
    pub(crate) not_after: i64,
}

/// The server certificate in use; made anew long before it expires, so that a
/// coordinator may run for years.
#[derive(Debug)]
pub(crate) struct ServerCertificate(ArcSwap<CertifiedKey>);

impl ResolvesServerCert for ServerCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

impl ServerCertificate {
    fn new(control: &ControlPlane, now: i64) -> Result<Arc<Self>, TlsError> {
        Ok(Arc::new(Self(ArcSwap::from_pointee(certified_key(control, now)?))))
    }

    /// Replaces it every [`RENEWAL`], for ever.
    async fn keep_fresh(self: Arc<Self>, control: Arc<ControlPlane>, now: Now) {
        loop {
            tokio::time::sleep(RENEWAL).await;
            match certified_key(&control, now()) {
                Ok(fresh) => self.0.store(Arc::new(fresh)),
                Err(error) => tracing::error!(%error, "cannot renew the coordinator's own certificate"),
            }
        }
    }
}

/// A third of its lifetime.
const RENEWAL: Duration = Duration::from_secs(SERVER.unsigned_abs() / 3);

fn certified_key(control: &ControlPlane, now: i64) -> Result<CertifiedKey, TlsError> {
    let server = control.server(now)?;
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(server.pkcs8.to_vec()));
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key)?;
    Ok(CertifiedKey::new(server.chain.into_iter().map(CertificateDer::from).collect(), key))
}

/// The server side's configuration; its certificate is renewed in the background.
pub(crate) fn server_config(control: Arc<ControlPlane>, now: Now) -> Result<Arc<ServerConfig>, TlsError> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(control.ca_certificate.clone()))?;
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).allow_unauthenticated().build()?;
    let certificate = ServerCertificate::new(&control, now())?;
    tokio::spawn(certificate.clone().keep_fresh(control, now));
    let mut config = ServerConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec()];
    // A test decrypts what went over the wire and searches it for keys; no release can be told to.
    #[cfg(feature = "failpoints")]
    {
        config.key_log = Arc::new(rustls::KeyLogFile::new());
    }
    // A resumed session would carry an identity that may have been banned since.
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// Accepts for ever; finished handshakes come out of the receiver.
pub(crate) fn accept(
    listener: TcpListener,
    config: Arc<ServerConfig>,
) -> mpsc::Receiver<io::Result<Connection>> {
    let (sender, receiver) = mpsc::channel(64);
    let acceptor = TlsAcceptor::from(config);
    let (handshakes, connections) =
        (Arc::new(Semaphore::new(HANDSHAKES)), Arc::new(Semaphore::new(CONNECTIONS)));
    let sources = Sources::default();
    let strangers = Arc::new(Semaphore::new(STRANGERS));
    tokio::spawn(async move {
        loop {
            let Ok(slot) = connections.clone().acquire_owned().await else { return };
            let (stream, address) = tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        // Out of descriptors, most likely: the queue waits, we breathe.
                        tracing::warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                },
                () = sender.closed() => return,
            };
            let Some(place) = sources.enter(address.ip()) else {
                tracing::debug!(%address, "too many connections from this address");
                continue;
            };
            let (acceptor, sender) = (acceptor.clone(), sender.clone());
            let (handshakes, strangers) = (handshakes.clone(), strangers.clone());
            tokio::spawn(async move {
                let work = async {
                    // Its own address first: what waits here takes nothing from others.
                    let _own = place.handshakes.acquire().await;
                    let _shared = handshakes.acquire().await;
                    let mut connection = handshake(acceptor, stream, address).await?;
                    if connection.peer.identity.is_none() {
                        let place = strangers.try_acquire_owned();
                        let crowded = |_| io::Error::other("too many connections without a certificate");
                        connection._stranger = Some(place.map_err(crowded)?);
                    }
                    io::Result::Ok(connection)
                };
                let shaken = tokio::time::timeout(HANDSHAKE, work).await;
                drop((place, slot));
                match shaken {
                    Ok(Ok(connection)) => drop(sender.send(Ok(connection)).await),
                    Ok(Err(error)) => tracing::debug!(%address, %error, "handshake failed"),
                    Err(_) => tracing::debug!(%address, "handshake took too long"),
                }
            });
        }
    });
    receiver
}

async fn handshake(acceptor: TlsAcceptor, stream: TcpStream, address: SocketAddr) -> io::Result<Connection> {
    stream.set_nodelay(true)?;
    let stream = acceptor.accept(stream).await?;
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let identity = certificate.and_then(|certificate| match peer_identity(certificate) {
        Ok(identity) => Some(Arc::new(identity)),
        Err(error) => {
            tracing::warn!(%address, %error, "client certificate is no identity");
            None
        }
    });
    Ok(Connection { stream: Box::new(stream), peer: Peer { identity }, _stranger: None })
}

fn peer_identity(certificate: &[u8]) -> Result<PeerIdentity, String> {
    let identity = Identity::of_certificate(certificate).map_err(|error| error.to_string())?;
    let parsed = facts::parse(certificate).map_err(|error| error.to_string())?;
    Ok(PeerIdentity {
        identity,
        spki_sha256: facts::sha256(parsed.public_key().raw),
        certificate: certificate.to_vec(),
        not_after: parsed.validity().not_after.timestamp(),
    })
}

/// Says who calls, where there is no TLS to say it.
#[cfg(feature = "simulation")]
pub fn identify<T>(request: &mut tonic::Request<T>, certificate: &[u8]) -> Result<(), String> {
    let identity = Some(Arc::new(peer_identity(certificate)?));
    request.extensions_mut().insert(Peer { identity });
    Ok(())
}

/// A connection after its handshake.
pub(crate) struct Connection {
    stream: Box<TlsStream<TcpStream>>,
    peer: Peer,
    /// The place of one without a certificate.
    _stranger: Option<OwnedSemaphorePermit>,
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream).poll_shutdown(context)
    }
}
