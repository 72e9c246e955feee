//! One fresh TLS handshake, to see what is served.
//!
//! What a server shows counts as seen only once it has signed with the leaf's
//! key ([`super::witness`]). What happens after that does not matter: a server
//! that asks for a client certificate may refuse us, it has shown its own by
//! then. No resumption, no early data, no data. [`handshake`] is for proofs;
//! [`look_once`] is for discovery, which does not know what to expect.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::{AlertDescription, ClientConfig, SupportedCipherSuite, SupportedProtocolVersion};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::dial::dial;
use super::farewell;
use super::starttls::{self, Dialogue, StarttlsError, Step};
pub use super::witness::Family;
use super::witness::{Witness, Witnessed};
use crate::discover::{Endpoint, Starttls};

/// Connection, dialogue and handshake together.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The same where something is spoken before TLS: mail servers keep strangers waiting.
const TIMEOUT_STARTTLS: Duration = Duration::from_secs(10);
/// For the first words of a server that does not speak TLS.
const GREETING: Duration = Duration::from_millis(300);

/// A TLS version, tried alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// RFC 5246.
    Tls12,
    /// RFC 8446.
    Tls13,
}

impl Version {
    /// As evidence writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tls12 => "TLSv1.2",
            Self::Tls13 => "TLSv1.3",
        }
    }

    fn rustls(self) -> &'static SupportedProtocolVersion {
        match self {
            Self::Tls12 => &rustls::version::TLS12,
            Self::Tls13 => &rustls::version::TLS13,
        }
    }
}

/// How to ask for a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    /// This version only; `None`: whatever both sides have.
    pub version: Option<Version>,
    /// Certificates with such a key only.
    pub family: Family,
    /// Say the endpoint's name (RFC 6066, section 3).
    pub named: bool,
}

impl Ask {
    /// For the endpoint's name, whatever the rest.
    pub const ANYTHING: Self = Self { version: None, family: Family::Any, named: true };

    /// In messages: "TLSv1.3 with an RSA certificate".
    pub(super) fn described(self) -> String {
        let version = self.version.map_or("TLS", Version::name);
        let without = if self.named { "" } else { " without a server name" };
        format!("{version}{}{without}", self.family.described())
    }
}

/// What a server showed.
#[derive(Debug)]
pub struct Seen {
    /// Leaf first, as served; at least one.
    pub chain: Vec<CertificateDer<'static>>,
    /// The server has proved to have the leaf's key. Always so from [`handshake`].
    pub proved: bool,
    /// What was spoken; `None` when it broke off before that was known.
    pub version: Option<Version>,
    /// What was spoken before the handshake.
    pub starttls: Starttls,
}

/// Nothing was seen.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The name is neither a DNS name nor an address.
    #[error("{0:?} is not a server name")]
    Name(String),
    /// No connection.
    #[error("no connection")]
    Connect(#[source] io::Error),
    /// The kernel did not let the agent in.
    #[error(
        "the network of container {container} may not be entered: the agent needs CAP_SYS_ADMIN to look at ports that the host cannot dial"
    )]
    Forbidden {
        /// Its name.
        container: String,
    },
    /// Something else kept the agent out.
    #[error("the network of container {container} cannot be entered")]
    Enter {
        /// Its name.
        container: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is nothing to look at any more.
    #[error("container {container} has ended")]
    Ended {
        /// Its name.
        container: String,
    },
    /// Nor is there anybody to be found there.
    #[error("nothing in container {container} listens on port {port}: correct the label or the service")]
    NotListening {
        /// Its name.
        container: String,
        /// As the label says.
        port: u16,
    },
    /// No answer.
    #[error("no answer within {} seconds", .0.as_secs_f32())]
    Timeout(Duration),
    /// No consent to TLS.
    #[error("TLS did not begin")]
    Starttls(#[source] StarttlsError),
    /// The server speaks, but not so.
    #[error("the server does not speak {asked}")]
    Unspoken {
        /// What was asked for.
        asked: String,
        /// What it said.
        #[source]
        source: io::Error,
    },
    /// Not TLS, or something broke.
    #[error("no TLS handshake")]
    Handshake(#[source] io::Error),
    /// The TLS settings were refused; not the server's fault.
    #[error("cannot set up TLS")]
    Setup(#[source] rustls::Error),
}

impl ProbeError {
    /// A stable word for failures.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Name(_) | Self::Setup(_) | Self::Forbidden { .. } | Self::Enter { .. } => "probe-setup",
            Self::Connect(_) | Self::Timeout(_) => "endpoint-unreachable",
            Self::Ended { .. } | Self::NotListening { .. } => "endpoint-unreachable",
            Self::Starttls(_) | Self::Unspoken { .. } | Self::Handshake(_) => "no-tls",
        }
    }
}

/// Connects, comes to TLS and shakes hands once.
pub async fn handshake(endpoint: &Endpoint, ask: Ask) -> Result<Seen, ProbeError> {
    let limit = if endpoint.starttls == Starttls::None { TIMEOUT } else { TIMEOUT_STARTTLS };
    match within(limit, attempt(endpoint, endpoint.starttls, ask)).await? {
        (seen, _) if seen.proved => Ok(seen),
        (_, ended) => Err(ProbeError::Handshake(ended)),
    }
}

/// What does this address serve? For somebody who does not know: where
/// `endpoint.starttls` is none, the protocol is the port's usual one, TLS from
/// the first byte, or what the server's own greeting says. An empty name asks
/// for none. Ends within `limit`, whatever the server does.
///
/// An error with the code "no-tls" means that something answers there without TLS.
pub async fn look_once(endpoint: &Endpoint, limit: Duration) -> Result<Seen, ProbeError> {
    within(limit, find(endpoint, limit / 2)).await.map(|(seen, _)| seen)
}

/// A server that waits for the other side to begin gets `patience`.
async fn find(endpoint: &Endpoint, patience: Duration) -> Result<(Seen, io::Error), ProbeError> {
    let ask = Ask { named: !endpoint.sni.is_empty(), ..Ask::ANYTHING };
    if endpoint.starttls != Starttls::None {
        return attempt(endpoint, endpoint.starttls, ask).await;
    }
    let port = endpoint.address.parse::<SocketAddr>().map_or(0, |address| address.port());
    let usual = Starttls::of_port(port);
    let error = match within(patience, attempt(endpoint, usual, ask)).await {
        Ok(seen) => return Ok(seen),
        Err(error @ (ProbeError::Timeout(_) | ProbeError::Starttls(_))) => error,
        Err(error) if shows_nothing(&error) => error,
        Err(error) => return Err(error),
    };
    match (usual, greeting(endpoint).await) {
        (known, Some(other)) if known != other => attempt(endpoint, other, ask).await,
        // Behind a mail or database port there may be TLS from the first byte.
        (known, None) if known != Starttls::None => attempt(endpoint, Starttls::None, ask).await,
        (_, _) => Err(error),
    }
}

/// What the server says by itself, if it does so soon.
async fn greeting(endpoint: &Endpoint) -> Option<Starttls> {
    let mut stream = dial(endpoint).await.ok()?;
    let mut words = [0; 256];
    let read = tokio::time::timeout(GREETING, stream.read(&mut words)).await.ok()?.ok()?;
    starttls::greeted_by(&words[..read])
}

async fn within<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, ProbeError>>,
) -> Result<T, ProbeError> {
    tokio::time::timeout(limit, work).await.unwrap_or(Err(ProbeError::Timeout(limit)))
}

/// What was seen, and how it ended if that was not well.
async fn attempt(endpoint: &Endpoint, starttls: Starttls, ask: Ask) -> Result<(Seen, io::Error), ProbeError> {
    let name = name(endpoint, ask.named)?;
    let (config, witness) = config(ask)?;
    let mut stream = dial(endpoint).await?;
    converse(&mut stream, starttls).await.map_err(ProbeError::Starttls)?;
    let shaken = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    let Witnessed { chain, proved } = witness.take();
    let (version, ended) = match shaken {
        Ok(mut stream) => {
            farewell::say(&mut stream, starttls).await;
            (version_of(&stream), io::Error::other("the server proved nothing"))
        }
        // It may have refused us after it had shown its own.
        Err(error) => (ask.version, error),
    };
    if chain.is_empty() {
        return Err(classify(ended, ask));
    }
    Ok((Seen { chain, proved, version, starttls }, ended))
}

/// A server that refuses shows nothing; one that cannot be reached was not asked.
pub(super) fn shows_nothing(error: &ProbeError) -> bool {
    matches!(error, ProbeError::Unspoken { .. } | ProbeError::Handshake(_))
}

/// Comes to the point where TLS begins.
async fn converse(stream: &mut TcpStream, protocol: Starttls) -> Result<(), StarttlsError> {
    let mut dialogue = Dialogue::new(protocol);
    let mut bytes = [0; 1024];
    loop {
        match dialogue.step()? {
            Step::Ready => return Ok(()),
            Step::Send(words) => stream.write_all(&words).await.map_err(StarttlsError::Io)?,
            Step::Receive => match stream.read(&mut bytes).await.map_err(StarttlsError::Io)? {
                0 => return Err(StarttlsError::Closed),
                read => dialogue.received(&bytes[..read])?,
            },
        }
    }
}

/// For an address no name is sent, so an address stands for none.
fn name(endpoint: &Endpoint, named: bool) -> Result<ServerName<'static>, ProbeError> {
    if named {
        return ServerName::try_from(endpoint.sni.clone())
            .map_err(|_| ProbeError::Name(endpoint.sni.clone()));
    }
    let address = endpoint.address.parse::<SocketAddr>();
    Ok(ServerName::from(address.map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |address| address.ip())))
}

fn config(ask: Ask) -> Result<(ClientConfig, Arc<Witness>), ProbeError> {
    let provider = CryptoProvider::get_default()
        .cloned()
        .unwrap_or_else(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
    let mut provider = CryptoProvider::clone(&provider);
    let witness = Arc::new(Witness::new(provider.signature_verification_algorithms, ask.family));
    // In TLS 1.2 the suite names the kind of key, too.
    provider.cipher_suites.retain(|suite| match suite {
        SupportedCipherSuite::Tls12(suite) => suite.sign.iter().any(|scheme| ask.family.has(*scheme)),
        SupportedCipherSuite::Tls13(_) => true,
    });
    let versions: &[&SupportedProtocolVersion] = match ask.version {
        Some(version) => &[version.rustls()],
        None => rustls::ALL_VERSIONS,
    };
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(versions)
        .map_err(ProbeError::Setup)?
        .dangerous()
        .with_custom_certificate_verifier(witness.clone())
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok((config, witness))
}

fn version_of(stream: &TlsStream<TcpStream>) -> Option<Version> {
    match stream.get_ref().1.protocol_version()? {
        rustls::ProtocolVersion::TLSv1_2 => Some(Version::Tls12),
        rustls::ProtocolVersion::TLSv1_3 => Some(Version::Tls13),
        _ => None,
    }
}

fn classify(error: io::Error, ask: Ask) -> ProbeError {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(
            rustls::Error::AlertReceived(
                AlertDescription::ProtocolVersion | AlertDescription::HandshakeFailure,
            )
            | rustls::Error::PeerIncompatible(_),
        ) => ProbeError::Unspoken { asked: ask.described(), source: error },
        _ => ProbeError::Handshake(error),
    }
}
