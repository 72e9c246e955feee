//! One whole look at an endpoint: is the new certificate what it serves, always?
//!
//! The rule. What an installation is expected to serve is decided by what it
//! declares: its names and its kind of key.
//!
//! - **Asked for its name and its kind of key**, an endpoint must show the exact
//!   certificate, in every TLS version it speaks, each time. Anything else is a
//!   failure, whatever it is.
//! - **Asked for another kind of key, or for no name**, it may show nothing, or a
//!   certificate that is not ours: an RSA certificate beside the ECDSA one, the
//!   default server's. Only a *former* certificate of this installation is a
//!   failure there: what was to be replaced is still in use.
//!
//! A protocol whose servers have one certificate only (PostgreSQL, MySQL) is not asked
//! for others: what they refuse goes into their logs, and MySQL counts it.
//!
//! How often is decided by evidence ([`super::sockets`]): connections come from
//! their own source port each, several at a time, in two rounds with a pause, so
//! that they are spread over workers that share a port. Looks only; what is on
//! disk is no proof. [`super::endpoints`] looks again until a deadline.

use std::time::Duration;

use futures_util::StreamExt as _;
use reseal_proto::facts::{self, sha256};
use reseal_proto::v1::EndpointProof;
use rustls_pki_types::{CertificateDer, ServerName};

use super::probe::{self, Ask, Family, ProbeError, Seen, Version, shows_nothing};
use super::{Expected, SHOWN, VerifyError, failed, sockets};
use crate::chain;
use crate::discover::{Endpoint, Starttls};

/// Newest first.
const VERSIONS: [Version; 2] = [Version::Tls13, Version::Tls12];
const ROUNDS: usize = 2;
/// Between two rounds: what was just told to end may still take a connection.
const PAUSE: Duration = Duration::from_millis(10);
/// Connections at a time. Each ends before the next one takes its place, so that a
/// server that takes one at a time serves them all.
const AT_ONCE: usize = 4;
/// Handshakes per version, at least.
pub(super) const LEAST: usize = 4;
/// Likewise for each socket that listens on the port: one old socket of `n` is missed by
/// 4n connections once in fifty times, and by both versions' once in 3,000.
const PER_SOCKET: usize = 4;
/// Handshakes per version, at most.
const MOST: usize = 64;

/// Looks once; fails with the first thing that is not as it should be.
pub(super) async fn look(endpoint: &Endpoint, expected: Expected<'_>) -> Result<EndpointProof, VerifyError> {
    let look = Look { endpoint, expected };
    let (family, version) = look.first().await?;
    let listening = match &endpoint.server {
        Some(server) => sockets::listening(server.pid, server.port).await,
        None => None,
    };
    let sockets = listening.map_or(1, |list| sockets::sharing(&list));
    let each = (sockets * PER_SOCKET).clamp(LEAST, MOST).div_ceil(ROUNDS);
    let mut spoken = Vec::from(VERSIONS);
    // It would have taken the newest that it has.
    if let Some(newest) = version {
        spoken.retain(|version| *version <= newest);
    }
    let (mut handshakes, mut chain_valid) = (1, false);
    for round in 0..ROUNDS {
        let own = |version: &Version| {
            std::iter::repeat_n(Ask { version: Some(*version), family, named: true }, each)
        };
        let mut asks: Vec<Ask> = spoken.iter().flat_map(own).collect();
        if round > 0 {
            tokio::time::sleep(PAUSE).await;
            asks.extend(look.asides(family, &spoken));
        }
        let (mut shown, mut refused) = (Vec::new(), Vec::new());
        for (ask, result) in look.ask(asks).await {
            let own = ask.version.filter(|_| ask.named && ask.family == family);
            match (own, result) {
                (Some(version), Ok(seen)) => {
                    chain_valid = look.judge(ask, &seen.chain)?;
                    handshakes += 1;
                    shown.push(version);
                }
                (Some(version), Err(error @ ProbeError::Unspoken { .. })) => refused.push((version, error)),
                (None, Ok(seen)) => look.judge_aside(ask, &seen.chain)?,
                (None, Err(error)) if shows_nothing(&error) => {}
                (_, Err(error)) => return Err(failed(endpoint, error)),
            }
        }
        for (version, error) in refused {
            // A version does not go away, and no worker has one of its own.
            if round > 0 || shown.contains(&version) || shown.is_empty() {
                return Err(failed(endpoint, error));
            }
            spoken.retain(|other| *other != version);
        }
    }
    let vantage = match &endpoint.within {
        None => "host".to_owned(),
        Some(within) => format!("container {}", within.container),
    };
    Ok(EndpointProof {
        address: endpoint.address.clone(),
        sni: endpoint.sni.clone(),
        vantage,
        handshakes,
        served: expected.fingerprint.to_vec(),
        versions: spoken.iter().map(|version| version.name().to_owned()).collect(),
        chain_valid,
        at: crate::app::now(),
    })
}

struct Look<'a> {
    endpoint: &'a Endpoint,
    expected: Expected<'a>,
}

impl Look<'_> {
    /// One handshake tells whether the rest is worth while: the kind of key by which
    /// the expected certificate is shown, and the version, or what is shown instead.
    async fn first(&self) -> Result<(Family, Option<Version>), VerifyError> {
        let hint = if self.has_one() { Family::Any } else { self.expected.family };
        let mut families = vec![hint];
        if !self.has_one() {
            families.extend([Family::Any, Family::Ecdsa, Family::Rsa, Family::EdDsa]);
        }
        let mut shown = None;
        let mut silent = None;
        for (at, family) in families.into_iter().enumerate() {
            if at > 0 && family == hint {
                continue;
            }
            let ask = Ask { version: None, family, named: true };
            match probe::handshake(self.endpoint, ask).await {
                Ok(seen) if sha256(&seen.chain[0]) == self.expected.fingerprint => {
                    return Ok((family_of(&seen.chain[0]).unwrap_or(family), seen.version));
                }
                Ok(seen) => {
                    shown.get_or_insert(self.differs(ask, &seen.chain));
                    // Asked for its kind of key, the right one would have been shown.
                    if hint != Family::Any {
                        break;
                    }
                }
                Err(error) => {
                    let others_may = shows_nothing(&error);
                    silent.get_or_insert(failed(self.endpoint, error));
                    if !others_may {
                        break;
                    }
                }
            }
        }
        // A certificate that is shown says more than none.
        Err(shown.or(silent).unwrap_or_else(|| failed(self.endpoint, ProbeError::Timeout(PAUSE))))
    }

    /// Do servers of this protocol have one certificate, whatever they are asked for?
    fn has_one(&self) -> bool {
        match self.endpoint.starttls {
            Starttls::Postgres | Starttls::Mysql => true,
            Starttls::None
            | Starttls::Smtp
            | Starttls::Imap
            | Starttls::Pop3
            | Starttls::Ldap
            | Starttls::Ftp => false,
        }
    }

    /// What else the endpoint could show: by other kinds of key, and to those who say no name.
    fn asides(&self, own: Family, spoken: &[Version]) -> Vec<Ask> {
        if self.has_one() {
            return Vec::new();
        }
        let named = matches!(ServerName::try_from(self.endpoint.sni.as_str()), Ok(ServerName::DnsName(_)));
        let mut asks = Vec::new();
        for version in spoken.iter().copied().map(Some) {
            let others =
                [Family::Ecdsa, Family::Rsa, Family::EdDsa].into_iter().filter(|other| *other != own);
            asks.extend(others.map(|family| Ask { version, family, named: true }));
            if named {
                asks.push(Ask { version, family: Family::Any, named: false });
                asks.push(Ask { version, family: own, named: false });
            }
        }
        asks
    }

    async fn ask(&self, asks: Vec<Ask>) -> Vec<(Ask, Result<Seen, ProbeError>)> {
        futures_util::stream::iter(asks)
            .map(|ask| async move { (ask, probe::handshake(self.endpoint, ask).await) })
            .buffered(AT_ONCE)
            .collect()
            .await
    }

    /// Is what was seen what is expected? Says whether the chain was judged good.
    fn judge(&self, ask: Ask, chain: &[CertificateDer<'static>]) -> Result<bool, VerifyError> {
        if sha256(&chain[0]) != self.expected.fingerprint {
            return Err(self.differs(ask, chain));
        }
        let name = ServerName::try_from(self.endpoint.sni.as_str());
        let (Some(anchors), Ok(name)) = (self.expected.anchors, name) else {
            return Ok(false);
        };
        chain::accepted(chain, &name, anchors, self.expected.now).map(|()| true).map_err(|source| {
            VerifyError::Chain {
                address: self.endpoint.address.clone(),
                sni: self.endpoint.sni.clone(),
                source,
            }
        })
    }

    /// Others may be shown here, what was replaced may not.
    fn judge_aside(&self, ask: Ask, chain: &[CertificateDer<'static>]) -> Result<(), VerifyError> {
        let leaf = sha256(&chain[0]);
        if leaf != self.expected.fingerprint && self.expected.former.contains(&leaf) {
            return Err(self.differs(ask, chain));
        }
        Ok(())
    }

    fn differs(&self, ask: Ask, chain: &[CertificateDer<'static>]) -> VerifyError {
        VerifyError::Differs {
            address: self.endpoint.address.clone(),
            sni: self.endpoint.sni.clone(),
            asked: ask.described(),
            served: start(sha256(&chain[0])),
            expected: start(self.expected.fingerprint),
        }
    }
}

fn start(fingerprint: [u8; 32]) -> [u8; SHOWN] {
    std::array::from_fn(|at| fingerprint[at])
}

fn family_of(leaf: &CertificateDer<'_>) -> Option<Family> {
    let parsed = facts::parse(leaf).ok()?;
    Some(Family::of_key_type(&facts::key_type(parsed.public_key())))
}

#[cfg(test)]
#[path = "look_tests.rs"]
mod tests;
