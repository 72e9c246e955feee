//! One fresh TLS handshake, to see what is served.
//!
//! The verifier accepts any chain and keeps it, but counts it as seen only
//! once the server has signed with the leaf's key. What happens after that
//! does not matter: a server that asks for a client certificate may refuse us,
//! it has shown its own by then. No resumption, no early data, no data.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::{
    AlertDescription, ClientConfig, DigitallySignedStruct, SignatureScheme, SupportedProtocolVersion,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::net::TcpStream;

use crate::discover::Endpoint;

const TIMEOUT: Duration = Duration::from_secs(5);

/// A TLS version, tried alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

/// What a server showed and proved to have the key of.
#[derive(Debug)]
pub struct Seen {
    /// Leaf first, as served; at least one.
    pub chain: Vec<CertificateDer<'static>>,
}

/// Nothing was seen.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The name is neither a DNS name nor an address.
    #[error("{0:?} is not a server name")]
    Name(String),
    /// No connection.
    #[error("no connection")]
    Connect(#[source] std::io::Error),
    /// No answer.
    #[error("no answer within 5 seconds")]
    Timeout,
    /// The server speaks, but not this version.
    #[error("the server does not speak {version}")]
    Version {
        /// Which.
        version: &'static str,
        /// What it said.
        #[source]
        source: std::io::Error,
    },
    /// Not TLS, or something broke.
    #[error("no TLS handshake")]
    Handshake(#[source] std::io::Error),
    /// The TLS settings were refused; not the server's fault.
    #[error("cannot set up TLS")]
    Setup(#[source] rustls::Error),
}

impl ProbeError {
    /// A stable word for failures.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Name(_) | Self::Setup(_) => "probe-setup",
            Self::Connect(_) | Self::Timeout => "endpoint-unreachable",
            Self::Version { .. } | Self::Handshake(_) => "no-tls",
        }
    }
}

/// Connects and shakes hands once.
pub async fn handshake(endpoint: &Endpoint, version: Version) -> Result<Seen, ProbeError> {
    let name =
        ServerName::try_from(endpoint.sni.clone()).map_err(|_| ProbeError::Name(endpoint.sni.clone()))?;
    let provider = CryptoProvider::get_default()
        .cloned()
        .unwrap_or_else(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
    let witness = Arc::new(Witness {
        algorithms: provider.signature_verification_algorithms,
        seen: Mutex::new(Witnessed::default()),
    });
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version.rustls()])
        .map_err(ProbeError::Setup)?
        .dangerous()
        .with_custom_certificate_verifier(witness.clone())
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    let work = async {
        let stream = TcpStream::connect(&endpoint.address).await.map_err(ProbeError::Connect)?;
        let _ = stream.set_nodelay(true);
        tokio_rustls::TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
            .map(drop)
            .map_err(|error| classify(error, version))
    };
    let result = tokio::time::timeout(TIMEOUT, work).await.unwrap_or(Err(ProbeError::Timeout));
    let witnessed = std::mem::take(&mut *witness.seen.lock().expect("no panic while held"));
    match (witnessed, result) {
        (Witnessed { chain, proved: true }, _) if !chain.is_empty() => Ok(Seen { chain }),
        (_, Err(error)) => Err(error),
        // A handshake cannot succeed without a signature.
        (_, Ok(())) => Err(ProbeError::Handshake(std::io::Error::other("the server proved nothing"))),
    }
}

fn classify(error: std::io::Error, version: Version) -> ProbeError {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(
            rustls::Error::AlertReceived(
                AlertDescription::ProtocolVersion | AlertDescription::HandshakeFailure,
            )
            | rustls::Error::PeerIncompatible(_),
        ) => ProbeError::Version { version: version.name(), source: error },
        _ => ProbeError::Handshake(error),
    }
}

#[derive(Debug)]
struct Witness {
    algorithms: WebPkiSupportedAlgorithms,
    seen: Mutex<Witnessed>,
}

#[derive(Debug, Default)]
struct Witnessed {
    chain: Vec<CertificateDer<'static>>,
    proved: bool,
}

impl Witness {
    fn proved(&self) {
        self.seen.lock().expect("no panic while held").proved = true;
    }
}

impl ServerCertVerifier for Witness {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let chain = std::iter::once(end_entity)
            .chain(intermediates)
            .map(|certificate| certificate.clone().into_owned())
            .collect();
        self.seen.lock().expect("no panic while held").chain = chain;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let valid =
            rustls::crypto::verify_tls12_signature(message, certificate, signature, &self.algorithms)?;
        self.proved();
        Ok(valid)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let valid =
            rustls::crypto::verify_tls13_signature(message, certificate, signature, &self.algorithms)?;
        self.proved();
        Ok(valid)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
