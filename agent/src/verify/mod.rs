//! Proves from outside that endpoints serve a certificate.
//!
//! One look at an endpoint ([`look`]) is several full handshakes without
//! resumption ([`probe`]), behind the words that a protocol wants first
//! ([`starttls`]). It is repeated until it shows what is expected or a deadline
//! has passed. An endpoint is dialled from the host; where that finds nobody and
//! the port is not published, from within the container's network ([`dial`]),
//! if the kernel says that something listens there ([`sockets`]). What is on
//! disk is no proof and is never looked at here.

mod dial;
mod farewell;
mod look;
pub mod probe;
mod sockets;
pub mod starttls;
mod witness;

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use reseal_proto::v1::EndpointProof;
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::chain;
use crate::discover::{Endpoint, Server, Within};
pub(crate) use dial::may_enter;
use probe::{Family, ProbeError};

/// Looks at a time, of one installation. Whoever fails makes room until it tries again.
const CONCURRENT: usize = 32;
/// Of a fingerprint in a message; bytes.
const SHOWN: usize = 8;
/// For one look; what is slower than that is told as a timeout.
const LOOK: Duration = Duration::from_secs(20);
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// An endpoint did not show the certificate in time.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// It shows another one.
    #[error(
        "{address} ({sni}), asked for {asked}, still serves the certificate {} instead of {}: the program did not take the new file",
        hex::encode(served),
        hex::encode(expected)
    )]
    Differs {
        /// "address:port".
        address: String,
        /// The name asked for.
        sni: String,
        /// "TLSv1.3 with an RSA certificate" ...
        asked: String,
        /// First bytes of the fingerprint.
        served: [u8; SHOWN],
        /// Likewise.
        expected: [u8; SHOWN],
    },
    /// The right one, with a chain no client accepts.
    #[error("{address} ({sni}) serves the new certificate with a chain that clients refuse")]
    Chain {
        /// "address:port".
        address: String,
        /// The name asked for.
        sni: String,
        /// Why.
        #[source]
        source: chain::ChainError,
    },
    /// No handshake came about.
    #[error("{address} ({sni}) cannot be verified")]
    Probe {
        /// "address:port".
        address: String,
        /// The name asked for.
        sni: String,
        /// Why.
        #[source]
        source: ProbeError,
    },
}

impl VerifyError {
    /// A stable word for failures.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Differs { .. } => "served-differs",
            Self::Chain { .. } => "chain-invalid",
            Self::Probe { source, .. } => source.code(),
        }
    }
}

/// What to look for.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    /// SHA-256 of the leaf.
    pub fingerprint: [u8; 32],
    /// Of its key; `Any` where that is not known.
    pub family: Family,
    /// SHA-256 of earlier certificates of the same installation: wherever one of them is
    /// still shown, the look fails.
    pub former: &'a [[u8; 32]],
    /// What clients trust; `None`: the chain is not judged (a return to an old certificate).
    pub anchors: Option<&'a [CertificateDer<'static>]>,
    /// The time at which a chain must be good.
    pub now: UnixTime,
}

impl Expected<'_> {
    /// A certificate of which no more is known; its chain is not judged.
    pub fn just(fingerprint: [u8; 32]) -> Self {
        let now = UnixTime::since_unix_epoch(Duration::ZERO);
        Self { fingerprint, family: Family::Any, former: &[], anchors: None, now }
    }
}

/// Looks at all endpoints until each has shown what is expected or `deadline`
/// has passed. The proofs are those of the endpoints that did, by address.
pub async fn endpoints(
    endpoints: &[Endpoint],
    expected: Expected<'_>,
    deadline: Instant,
) -> (Vec<EndpointProof>, Result<(), VerifyError>) {
    let limit = Semaphore::new(CONCURRENT);
    let looks: FuturesUnordered<_> =
        endpoints.iter().map(|endpoint| until(endpoint, expected, deadline, &limit)).collect();
    let mut results: Vec<_> = looks.collect().await;
    results.sort_by(|a, b| key(a).cmp(key(b)));
    let mut proofs = Vec::new();
    let mut outcome = Ok(());
    for result in results {
        match result {
            Ok(proof) => proofs.push(proof),
            Err(error) if outcome.is_ok() => outcome = Err(error),
            Err(_) => {}
        }
    }
    (proofs, outcome)
}

fn key(result: &Result<EndpointProof, VerifyError>) -> &str {
    match result {
        Ok(proof) => &proof.address,
        Err(
            VerifyError::Differs { address, .. }
            | VerifyError::Chain { address, .. }
            | VerifyError::Probe { address, .. },
        ) => address,
    }
}

async fn until(
    endpoint: &Endpoint,
    expected: Expected<'_>,
    deadline: Instant,
    limit: &Semaphore,
) -> Result<EndpointProof, VerifyError> {
    let server = endpoint.server.as_ref();
    let was_there = server.is_some_and(|server| sockets::exists(server.pid));
    let mut dialled = endpoint.clone();
    let mut listens = false;
    let mut pause = FIRST_PAUSE;
    loop {
        let looked = {
            let _permit = limit.acquire().await;
            tokio::time::timeout(LOOK, look::look(&dialled, expected)).await
        };
        let error = match looked {
            Ok(Ok(proof)) => return Ok(proof),
            Ok(Err(error)) => error,
            Err(_) => failed(&dialled, ProbeError::Timeout(LOOK)),
        };
        if let Some(server) = server.filter(|_| finds_nobody(&error))
            && let Some(other) = elsewhere(&dialled, server).await
        {
            // It may have begun to listen just now: the way from the host comes first.
            if std::mem::replace(&mut listens, true) {
                dialled = other;
            }
            continue;
        }
        if Instant::now() + pause >= deadline {
            return Err(match server.filter(|_| was_there) {
                Some(server) => explained(&dialled, error, server).await,
                None => error,
            });
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 3 / 2).min(LONGEST_PAUSE);
    }
}

fn finds_nobody(error: &VerifyError) -> bool {
    matches!(error, VerifyError::Probe { source: ProbeError::Connect(_), .. })
}

/// Another way to what listens on the port: where it says that it listens, dialled from
/// within. For a published port there is none: its users come by the host.
async fn elsewhere(dialled: &Endpoint, server: &Server) -> Option<Endpoint> {
    if server.published {
        return None;
    }
    let listening = sockets::listening(server.pid, server.port).await?;
    let address = SocketAddr::new(sockets::dialled(&listening)?, server.port).to_string();
    let within = Some(Within { container: server.container.clone(), pid: server.pid });
    let other = Endpoint { address, within, ..dialled.clone() };
    (other != *dialled).then_some(other)
}

/// The error, or what the kernel knows better about a process that was there at first.
async fn explained(dialled: &Endpoint, error: VerifyError, server: &Server) -> VerifyError {
    let container = server.container.clone();
    if !sockets::exists(server.pid) {
        return failed(dialled, ProbeError::Ended { container });
    }
    let listening = sockets::listening(server.pid, server.port).await;
    if listening.is_some_and(|list| list.is_empty()) && error.code() != "served-differs" {
        return failed(dialled, ProbeError::NotListening { container, port: server.port });
    }
    error
}

fn failed(endpoint: &Endpoint, source: ProbeError) -> VerifyError {
    VerifyError::Probe { address: endpoint.address.clone(), sni: endpoint.sni.clone(), source }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
