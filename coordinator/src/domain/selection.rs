//! Which installations an operator means.
//!
//! Kinds of filter are joined by AND, entries of one kind by OR. A compromised
//! issuer is a *key*: name, fingerprint and SKI only help to find it. An empty
//! selection selects nothing and is refused, so that a forgotten flag never
//! means the whole fleet.

use std::collections::BTreeMap;

use reseal_proto::v1;

use super::name::{Pattern, glob};

/// A selection whose parts were understood.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// The key of the compromised issuer.
    pub issuer: Option<IssuerKey>,
    hosts: Vec<String>,
    host_labels: BTreeMap<String, String>,
    names: Vec<NamePattern>,
    serials: Vec<Serial>,
    key_types: Vec<String>,
    expires_before: i64,
}

/// How a certificate is known to be from an issuer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuerKey {
    /// SHA-256 over its SubjectPublicKeyInfo: decides when the chain is known.
    pub spki_sha256: Vec<u8>,
    /// Its key identifier: decides when only the leaf is.
    pub subject_key_id: Vec<u8>,
}

impl IssuerKey {
    /// Did this key sign that certificate, as far as can be told?
    pub fn issued(&self, facts: &v1::CertificateFacts) -> bool {
        self.is_of(&facts.issuer_spki_sha256, &facts.authority_key_id)
    }

    /// The same, by what a chain shows of the issuer's key (empty when it is not in
    /// the chain) and what the leaf says of it.
    pub fn is_of(&self, issuer_spki_sha256: &[u8], authority_key_id: &[u8]) -> bool {
        if issuer_spki_sha256.is_empty() {
            !self.subject_key_id.is_empty() && authority_key_id == self.subject_key_id
        } else {
            issuer_spki_sha256 == self.spki_sha256
        }
    }
}

/// What was not understood.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectionError {
    /// No filter at all.
    #[error(
        "the selection is empty: say --compromised-issuer, --host, --host-label, --name, --serial, --key-type or --expires-before"
    )]
    Empty,
    /// A name pattern.
    #[error("name pattern {0:?} is no DNS name, address or pattern such as *.example.test")]
    Name(String),
    /// A serial.
    #[error("serial {0:?} is not hexadecimal, optionally behind \"ISSUER:\"")]
    Serial(String),
    /// Too many entries.
    #[error("the selection has {0} entries, more than the {MAX_ENTRIES} that are accepted")]
    Size(usize),
}

/// More entries in one selection are refused.
pub const MAX_ENTRIES: usize = 10_000;

#[derive(Clone, Debug)]
enum NamePattern {
    Exact(String),
    Pattern(Pattern),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Serial {
    /// Part of the issuer's name as the certificate states it; empty: any.
    issuer: String,
    serial: Vec<u8>,
}

impl Selection {
    /// Understands a selection; `issuer` is the key its words were resolved to.
    pub fn new(wire: &v1::Selection, issuer: Option<IssuerKey>) -> Result<Self, SelectionError> {
        let entries = wire.hosts.len()
            + wire.host_labels.len()
            + wire.names.len()
            + wire.serials.len()
            + wire.key_types.len();
        if entries > MAX_ENTRIES {
            return Err(SelectionError::Size(entries));
        }
        if entries == 0 && issuer.is_none() && wire.expires_before == 0 && !wire.all {
            return Err(SelectionError::Empty);
        }
        Ok(Self {
            issuer,
            hosts: wire.hosts.clone(),
            host_labels: wire.host_labels.clone(),
            names: wire.names.iter().map(|name| name_pattern(name)).collect::<Result<_, _>>()?,
            serials: wire.serials.iter().map(|serial| parse_serial(serial)).collect::<Result<_, _>>()?,
            key_types: wire.key_types.clone(),
            expires_before: wire.expires_before,
        })
    }

    /// Can anything on this host be meant?
    pub fn host(&self, name: &str, labels: &BTreeMap<String, String>) -> bool {
        (self.hosts.is_empty() || self.hosts.iter().any(|pattern| glob(pattern, name)))
            && self.host_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
    }

    /// Is this installation meant? Its host must have been asked before.
    pub fn installation(&self, host: &str, installation: &v1::Installation) -> bool {
        let Some(facts) = &installation.certificate else {
            // Nothing is there yet: only a selection by place or wanted name means it.
            return self.issuer.is_none()
                && self.serials.is_empty()
                && self.key_types.is_empty()
                && self.expires_before == 0
                && self.any_name(host, &installation.names);
        };
        self.issuer.as_ref().is_none_or(|issuer| issuer.issued(facts))
            && self.any_name(host, &facts.names)
            && (self.serials.is_empty() || self.serials.iter().any(|serial| serial.is(facts)))
            && (self.key_types.is_empty() || self.key_types.contains(&facts.key_type))
            && (self.expires_before == 0 || facts.not_after < self.expires_before)
    }

    fn any_name(&self, host: &str, names: &[String]) -> bool {
        self.names.is_empty()
            || names.iter().any(|name| {
                self.names.iter().any(|pattern| match pattern {
                    NamePattern::Exact(exact) => exact == name,
                    NamePattern::Pattern(pattern) => pattern.covers(name, host),
                })
            })
    }
}

impl Serial {
    fn is(&self, facts: &v1::CertificateFacts) -> bool {
        self.serial == facts.serial && (self.issuer.is_empty() || facts.issuer.contains(&self.issuer))
    }
}

/// Every certificate of a compromised issuer is meant: nothing narrows the selection.
pub fn means_every_certificate(wire: &v1::Selection) -> bool {
    !wire.compromised_issuer.is_empty()
        && wire.hosts.is_empty()
        && wire.host_labels.is_empty()
        && wire.names.is_empty()
        && wire.serials.is_empty()
        && wire.key_types.is_empty()
        && wire.expires_before == 0
}

fn name_pattern(text: &str) -> Result<NamePattern, SelectionError> {
    if let Ok(pattern) = text.parse::<Pattern>() {
        return Ok(NamePattern::Pattern(pattern));
    }
    match text.parse::<super::name::Name>() {
        Ok(name) => Ok(NamePattern::Exact(name.to_string())),
        Err(_) => Err(SelectionError::Name(text.chars().take(80).collect())),
    }
}

fn parse_serial(text: &str) -> Result<Serial, SelectionError> {
    let error = || SelectionError::Serial(text.chars().take(80).collect());
    let (issuer, digits) = match text.rsplit_once(':') {
        // "aa:bb:cc" is one serial, as OpenSSL prints it.
        Some((head, tail))
            if !(tail.len() == 2 && head.rsplit(':').next().is_some_and(|part| part.len() == 2)) =>
        {
            (head, tail.to_owned())
        }
        Some(_) | None => ("", text.replace(':', "")),
    };
    let digits = digits.trim().trim_start_matches("0x").to_ascii_lowercase();
    let digits = if digits.len() % 2 == 1 { format!("0{digits}") } else { digits };
    let serial = hex::decode(&digits).map_err(|_| error())?;
    let zeros = serial.iter().take_while(|byte| **byte == 0).count();
    let serial = serial[zeros.min(serial.len().saturating_sub(1))..].to_vec();
    if serial.is_empty() || serial.len() > 20 {
        Err(error())
    } else {
        Ok(Serial { issuer: issuer.to_owned(), serial })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn installation() -> v1::Installation {
        v1::Installation {
            names: vec!["a.test".into()],
            certificate: Some(v1::CertificateFacts {
                serial: vec![0xab, 0xcd],
                issuer: "CN=x issuing A".into(),
                names: vec!["a.test".into(), "10.0.0.1".into()],
                key_type: "ecdsa-p256".into(),
                authority_key_id: vec![1],
                issuer_spki_sha256: vec![2; 32],
                not_after: 1000,
                ..v1::CertificateFacts::default()
            }),
            ..v1::Installation::default()
        }
    }

    fn selects(wire: v1::Selection) -> bool {
        let key = IssuerKey { spki_sha256: vec![2; 32], subject_key_id: vec![1] };
        let selection = Selection::new(&wire, (!wire.compromised_issuer.is_empty()).then_some(key)).unwrap();
        selection.host("h1", &BTreeMap::from([("env".into(), "prod".into())]))
            && selection.installation("h1", &installation())
    }

    #[test]
    fn each_kind() {
        let base = v1::Selection::default;
        assert!(selects(v1::Selection { compromised_issuer: "a".into(), ..base() }));
        assert!(selects(v1::Selection { names: vec!["*.test".into()], ..base() }));
        assert!(selects(v1::Selection { names: vec!["10.0.0.1".into()], ..base() }));
        assert!(selects(v1::Selection { serials: vec!["AB:CD".into()], ..base() }));
        assert!(selects(v1::Selection { serials: vec!["issuing A:abcd".into()], ..base() }));
        assert!(!selects(v1::Selection { serials: vec!["issuing B:abcd".into()], ..base() }));
        assert!(selects(v1::Selection { expires_before: 1001, ..base() }));
        assert!(!selects(v1::Selection { expires_before: 1000, ..base() }));
        assert!(!selects(v1::Selection {
            names: vec!["*.test".into()],
            key_types: vec!["rsa-2048".into()],
            ..base()
        }));
        assert!(!selects(v1::Selection {
            host_labels: BTreeMap::from([("env".into(), "test".into())]),
            ..base()
        }));
        assert!(selects(v1::Selection { hosts: vec!["h*".into()], ..base() }));
    }

    #[test]
    fn nothing_means_nothing() {
        let empty = Selection::new(&v1::Selection::default(), None);
        assert_eq!(empty.unwrap_err(), SelectionError::Empty);
    }

    #[test]
    fn the_key_decides_over_the_label() {
        let key = IssuerKey { spki_sha256: vec![9; 32], subject_key_id: vec![1] };
        let mut facts = installation().certificate.unwrap();
        assert!(!key.issued(&facts), "same SKI, other key, chain known");
        facts.issuer_spki_sha256.clear();
        assert!(key.issued(&facts), "only the leaf is known");
    }

    proptest! {
        #[test]
        fn never_panics(text in ".{0,60}") {
            let _ = parse_serial(&text);
            let _ = name_pattern(&text);
        }
    }
}
