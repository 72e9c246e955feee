//! Is this the certificate that was asked for, and would a client accept it?
//!
//! Everything is checked before anything is written: key, order, chain to an
//! anchor, names, dates, usage. The same path check judges what an endpoint
//! serves. Pure: time and anchors are arguments. webpki does path building
//! (RFC 5280, section 6); key kind, order and names are ours.

use reseal_proto::facts::{self, FactsError, sha256};
use reseal_proto::v1::{CertificateFacts, Usage};
use rustls_pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage};

use crate::clock::MOST_SKEW;
use crate::discover::Wanted;
use crate::pem::{self, PemError};

/// Why a chain is not installed, or not accepted where it is served.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// Not readable.
    #[error("certificate {position} of the chain cannot be read")]
    Unreadable {
        /// 0 is the leaf.
        position: usize,
        /// Why.
        #[source]
        source: FactsError,
    },
    /// Not PEM.
    #[error("the certificate file cannot be read")]
    Pem(#[source] PemError),
    /// The leaf is for another key.
    #[error("the certificate is for another key than the one that was made for it")]
    Key,
    /// The leaf's key is of another kind than declared.
    #[error("the certificate has a key of type {found}, declared is {wanted}")]
    KeyType {
        /// In the certificate.
        found: String,
        /// By label.
        wanted: &'static str,
    },
    /// A certificate does not sign the one in front of it.
    #[error("certificate {position} of the chain is not the issuer of the one before it")]
    Order {
        /// 0 is the leaf.
        position: usize,
    },
    /// A declared name is not in it.
    #[error("the certificate does not cover {0}")]
    Name(String),
    /// No path to an anchor, a date, a usage.
    #[error("the chain does not build to an accepted root for {purpose}")]
    Path {
        /// "a server", "a client".
        purpose: &'static str,
        /// What webpki says.
        #[source]
        source: webpki::Error,
    },
    /// By this host's own clock its life has not begun.
    #[error(
        "the certificate begins {0} s from now by this host's clock: that clock is behind, or the coordinator's is ahead; nothing is installed before they agree"
    )]
    NotBegun(i64),
    /// There is nothing to build to.
    #[error("no accepted root is known yet: the coordinator has sent none")]
    NoAnchor,
    /// An anchor is not usable.
    #[error("an accepted root sent by the coordinator cannot be read")]
    Anchor(#[source] webpki::Error),
}

impl ChainError {
    /// A stable word for failures.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unreadable { .. } | Self::Pem(_) => "certificate-unreadable",
            Self::Key => "key-mismatch",
            Self::KeyType { .. } => "key-type-mismatch",
            Self::Order { .. } => "chain-order",
            Self::Name(_) => "name-mismatch",
            Self::Path { .. } | Self::NotBegun(_) => "chain-invalid",
            Self::NoAnchor | Self::Anchor(_) => "no-anchor",
        }
    }
}

/// The facts of a certificate file: leaf first, the rest as its chain.
pub fn facts(text: &[u8]) -> Result<CertificateFacts, ChainError> {
    let certificates = pem::read_certificates(text).map_err(ChainError::Pem)?;
    facts_of(&certificates)
}

/// The facts of a chain, leaf first; at least one certificate.
pub fn facts_of(chain: &[CertificateDer<'_>]) -> Result<CertificateFacts, ChainError> {
    let (leaf, rest) = chain.split_first().ok_or(ChainError::Pem(PemError::NoCertificate))?;
    facts::of_chain(leaf, rest.iter().map(AsRef::as_ref))
        .map_err(|source| ChainError::Unreadable { position: 0, source })
}

/// Checks a new chain (leaf first) against what was asked for.
pub fn validate(
    chain: &[CertificateDer<'_>],
    wanted: &Wanted,
    spki_sha256: &[u8],
    anchors: &[CertificateDer<'_>],
    now: UnixTime,
) -> Result<CertificateFacts, ChainError> {
    let found = facts_of(chain)?;
    if found.spki_sha256 != spki_sha256 {
        return Err(ChainError::Key);
    }
    if found.key_type != wanted.key_type.name() {
        return Err(ChainError::KeyType { found: found.key_type, wanted: wanted.key_type.name() });
    }
    check_order(chain)?;
    let leaf = EndEntityCert::try_from(&chain[0])
        .map_err(|source| ChainError::Path { purpose: "anything", source })?;
    for name in &wanted.names {
        // A wildcard is covered by itself only; webpki matches concrete names.
        let covered = match ServerName::try_from(name.as_str()) {
            Ok(server) => leaf.verify_is_valid_for_subject_name(&server).is_ok(),
            Err(_) => false,
        };
        if !covered && !found.names.contains(name) {
            return Err(ChainError::Name(name.clone()));
        }
    }
    if matches!(wanted.usage, Usage::Server | Usage::Both) {
        check_path(chain, anchors, now, Purpose::Server)?;
    }
    if matches!(wanted.usage, Usage::Client | Usage::Both) {
        check_path(chain, anchors, now, Purpose::Client)?;
    }
    Ok(found)
}

/// Has its life begun by this host's own clock, too? A coordinator whose clock is
/// ahead must not make a fleet serve what no client accepts yet. notBefore lies up
/// to an hour back, so this is about hours, not minutes.
pub fn begun(found: &CertificateFacts, own_clock: i64) -> Result<(), ChainError> {
    match found.not_before.saturating_sub(own_clock) {
        ..=MOST_SKEW => Ok(()),
        early => Err(ChainError::NotBegun(early)),
    }
}

/// Would a client that trusts `anchors` accept this served chain for `name`?
pub fn accepted(
    chain: &[CertificateDer<'_>],
    name: &ServerName<'_>,
    anchors: &[CertificateDer<'_>],
    now: UnixTime,
) -> Result<(), ChainError> {
    check_path(chain, anchors, now, Purpose::Server)?;
    if covers(&chain[0], name) { Ok(()) } else { Err(ChainError::Name(name.to_str().into_owned())) }
}

/// Is this a certificate for that name (RFC 9525, section 6.3)?
pub fn covers(leaf: &CertificateDer<'_>, name: &ServerName<'_>) -> bool {
    EndEntityCert::try_from(leaf).is_ok_and(|leaf| leaf.verify_is_valid_for_subject_name(name).is_ok())
}

/// Is subject and issuer the same, as in a root? `false` for what cannot be read.
pub fn is_self_issued(certificate: &CertificateDer<'_>) -> bool {
    facts::parse(certificate).is_ok_and(|parsed| parsed.subject() == parsed.issuer())
}

#[derive(Clone, Copy)]
enum Purpose {
    Server,
    Client,
}

fn check_path(
    chain: &[CertificateDer<'_>],
    anchors: &[CertificateDer<'_>],
    now: UnixTime,
    purpose: Purpose,
) -> Result<(), ChainError> {
    let roots: Vec<TrustAnchor<'_>> = anchors
        .iter()
        .map(|anchor| webpki::anchor_from_trusted_cert(anchor).map_err(ChainError::Anchor))
        .collect::<Result<_, _>>()?;
    if roots.is_empty() {
        return Err(ChainError::NoAnchor);
    }
    let (words, usage) = match purpose {
        Purpose::Server => ("a server", KeyUsage::server_auth()),
        Purpose::Client => ("a client", KeyUsage::client_auth()),
    };
    let failed = |source| ChainError::Path { purpose: words, source };
    let (leaf, intermediates) = chain.split_first().ok_or(ChainError::Pem(PemError::NoCertificate))?;
    EndEntityCert::try_from(leaf)
        .map_err(failed)?
        .verify_for_usage(webpki::ALL_VERIFICATION_ALGS, &roots, intermediates, now, usage, None, None)
        .map(|_| ())
        .map_err(failed)
}

/// Each certificate signs the one in front of it: some programs send the file
/// as it is, and some clients do not sort.
fn check_order(chain: &[CertificateDer<'_>]) -> Result<(), ChainError> {
    for position in 1..chain.len() {
        let read = |position: usize| {
            facts::parse(&chain[position]).map_err(|source| ChainError::Unreadable { position, source })
        };
        let (subject, issuer) = (read(position - 1)?, read(position)?);
        let signs = subject.issuer() == issuer.subject()
            && subject.verify_signature(Some(issuer.public_key())).is_ok();
        if !signs {
            return Err(ChainError::Order { position });
        }
    }
    Ok(())
}

/// SHA-256 over the DER encoding of the leaf.
pub fn fingerprint(leaf: &CertificateDer<'_>) -> [u8; 32] {
    sha256(leaf)
}

#[cfg(test)]
#[path = "chain_tests.rs"]
pub(crate) mod tests;
