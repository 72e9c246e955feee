//! Proves from outside that endpoints serve a certificate.
//!
//! Success is every endpoint showing the exact fingerprint in several fresh
//! handshakes in a row, in each TLS version it speaks, because old workers go
//! on serving for a while after a reload. What is on disk is no proof and is
//! never looked at here. Polls until a deadline; each look is a full handshake
//! without resumption ([`probe`]).

mod dial;
pub mod probe;
pub mod starttls;
mod witness;

use std::time::Duration;

use futures_util::StreamExt;
use reseal_proto::facts::sha256;
use reseal_proto::v1::EndpointProof;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::time::Instant;

use crate::chain;
use crate::discover::Endpoint;
use probe::{Ask, ProbeError, Seen, Version};

/// In a row, per TLS version.
const HANDSHAKES: usize = 3;
const CONCURRENT: usize = 8;
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// An endpoint did not show the certificate in time.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// It shows another one.
    #[error(
        "{address} ({sni}) still serves the certificate {served} instead of {expected}: the program did not take the new file"
    )]
    Differs {
        /// "address:port".
        address: String,
        /// The name asked for.
        sni: String,
        /// First bytes of the fingerprint, hex.
        served: String,
        /// Likewise.
        expected: String,
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
    /// What clients trust; `None`: the chain is not judged (a return to an old certificate).
    pub anchors: Option<&'a [CertificateDer<'static>]>,
    /// The time at which a chain must be good.
    pub now: UnixTime,
}

/// Looks at all endpoints until each has shown what is expected or `deadline`
/// has passed. The proofs are those of the endpoints that did.
pub async fn endpoints(
    endpoints: &[Endpoint],
    expected: Expected<'_>,
    deadline: Instant,
) -> (Vec<EndpointProof>, Result<(), VerifyError>) {
    let mut results: Vec<_> = futures_util::stream::iter(endpoints.to_vec())
        .map(|endpoint| async move { until(&endpoint, expected, deadline).await })
        .buffer_unordered(CONCURRENT)
        .collect()
        .await;
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
) -> Result<EndpointProof, VerifyError> {
    let mut pause = FIRST_PAUSE;
    loop {
        let error = match look(endpoint, expected).await {
            Ok(proof) => return Ok(proof),
            Err(error) => error,
        };
        if Instant::now() + pause >= deadline {
            return Err(error);
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 3 / 2).min(LONGEST_PAUSE);
    }
}

/// One round: every version the endpoint speaks, several times in a row.
pub async fn look(endpoint: &Endpoint, expected: Expected<'_>) -> Result<EndpointProof, VerifyError> {
    let mut handshakes = 0;
    let mut versions = Vec::new();
    let mut chain_valid = false;
    let mut unspoken = None;
    for version in [Version::Tls13, Version::Tls12] {
        for round in 0..HANDSHAKES {
            match probe::handshake(endpoint, Ask { version: Some(version), ..Ask::ANYTHING }).await {
                Ok(seen) => {
                    chain_valid = judge(endpoint, expected, &seen)?;
                    handshakes += 1;
                }
                // In the first round only: a version does not go away.
                Err(error @ ProbeError::Unspoken { .. }) if round == 0 => {
                    unspoken = Some(error);
                    break;
                }
                Err(source) => return Err(probe_failed(endpoint, source)),
            }
            if round + 1 == HANDSHAKES {
                versions.push(version.name().to_owned());
            }
        }
    }
    match unspoken {
        Some(source) if versions.is_empty() => Err(probe_failed(endpoint, source)),
        _ => Ok(EndpointProof {
            address: endpoint.address.clone(),
            sni: endpoint.sni.clone(),
            vantage: "host".to_owned(),
            handshakes,
            served: expected.fingerprint.to_vec(),
            versions,
            chain_valid,
            at: crate::app::now(),
        }),
    }
}

/// Is what was seen what is expected? Says whether the chain was judged good.
fn judge(endpoint: &Endpoint, expected: Expected<'_>, seen: &Seen) -> Result<bool, VerifyError> {
    let served = sha256(&seen.chain[0]);
    if served != expected.fingerprint {
        return Err(VerifyError::Differs {
            address: endpoint.address.clone(),
            sni: endpoint.sni.clone(),
            served: hex::encode(&served[..8]),
            expected: hex::encode(&expected.fingerprint[..8]),
        });
    }
    let (Some(anchors), Ok(name)) = (expected.anchors, ServerName::try_from(endpoint.sni.as_str())) else {
        return Ok(false);
    };
    chain::accepted(&seen.chain, &name, anchors, expected.now).map(|()| true).map_err(|source| {
        VerifyError::Chain { address: endpoint.address.clone(), sni: endpoint.sni.clone(), source }
    })
}

fn probe_failed(endpoint: &Endpoint, source: ProbeError) -> VerifyError {
    VerifyError::Probe { address: endpoint.address.clone(), sni: endpoint.sni.clone(), source }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
