//! Who is speaking: `spiffe://<fleet>/host/<name>`, `/operator/<name>`, `/coordinator`.
//!
//! The identity is the URI SAN of a certificate of the control-plane CA
//! (SPIFFE X509-SVID, section 2: exactly one URI SAN). Both sides parse it here
//! and nowhere else.

use std::fmt;

use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// The DNS name every coordinator certificate carries and every client expects.
/// The control-plane CA signs it for coordinators only.
pub const COORDINATOR_DNS_NAME: &str = "coordinator.reseal.internal";

/// One identity under the control-plane CA.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// An agent, for its host only.
    Host(String),
    /// A person or a program behind the CLI.
    Operator(String),
    /// A coordinator.
    Coordinator,
}

/// A role in a fleet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The trust domain.
    pub fleet: String,
    /// Who it is there.
    pub role: Role,
}

/// Why a certificate or a text is no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Not of the form `spiffe://fleet/kind/name`.
    #[error("identity {0:?} is not spiffe://FLEET/host/NAME, /operator/NAME or /coordinator")]
    Form(String),
    /// A name that could not be a path component or a DNS label.
    #[error(
        "{what} name {name:?} must be 1 to 63 of a-z, 0-9, '-', '.', '_' and start with a letter or digit"
    )]
    Name {
        /// "fleet", "host", "operator" ...
        what: &'static str,
        /// As it came in.
        name: String,
    },
    /// The certificate could not be read.
    #[error("certificate is not readable X.509: {0}")]
    Certificate(String),
    /// SPIFFE wants exactly one URI SAN.
    #[error("certificate has {0} URI names, an identity has exactly one")]
    Uris(usize),
}

impl Identity {
    /// The identity of a leaf certificate, DER. The chain must have been verified before.
    pub fn of_certificate(der: &[u8]) -> Result<Self, IdentityError> {
        let (_, certificate) =
            X509Certificate::from_der(der).map_err(|error| IdentityError::Certificate(error.to_string()))?;
        let san = certificate
            .subject_alternative_name()
            .map_err(|error| IdentityError::Certificate(error.to_string()))?;
        let uris: Vec<&str> = san
            .iter()
            .flat_map(|san| &san.value.general_names)
            .filter_map(|name| match name {
                GeneralName::URI(uri) => Some(*uri),
                _ => None,
            })
            .collect();
        match uris[..] {
            [uri] => uri.parse(),
            _ => Err(IdentityError::Uris(uris.len())),
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/{}", self.fleet, self.role)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(name) => write!(f, "host/{name}"),
            Self::Operator(name) => write!(f, "operator/{name}"),
            Self::Coordinator => f.write_str("coordinator"),
        }
    }
}

impl std::str::FromStr for Identity {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let form = || IdentityError::Form(text.to_owned());
        let rest = text.strip_prefix("spiffe://").ok_or_else(form)?;
        let mut parts = rest.split('/');
        let fleet = parts.next().ok_or_else(form)?;
        check_name("fleet", fleet)?;
        let role = match (parts.next(), parts.next(), parts.next()) {
            (Some("coordinator"), None, _) => Role::Coordinator,
            (Some("host"), Some(name), None) => {
                check_name("host", name)?;
                Role::Host(name.to_owned())
            }
            (Some("operator"), Some(name), None) => {
                check_name("operator", name)?;
                Role::Operator(name.to_owned())
            }
            _ => return Err(form()),
        };
        Ok(Self { fleet: fleet.to_owned(), role })
    }
}

/// Checks a name that becomes part of an identity and of store keys.
pub fn check_name(what: &'static str, name: &str) -> Result<(), IdentityError> {
    let good = (1..=63).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-._".contains(c));
    if good { Ok(()) } else { Err(IdentityError::Name { what, name: name.to_owned() }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_the_three_kinds() {
        for text in ["spiffe://f/host/web-1", "spiffe://f/operator/alice", "spiffe://f/coordinator"] {
            assert_eq!(text.parse::<Identity>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn refuses_what_could_mislead() {
        for text in [
            "spiffe://f/host/",
            "spiffe://f/host/a/b",
            "spiffe://f/host/../x",
            "spiffe://f/coordinator/x",
            "spiffe:///host/a",
            "https://f/host/a",
            "spiffe://f/host/A",
            "spiffe://f/host/a%2fb",
        ] {
            assert!(text.parse::<Identity>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in ".{0,200}") {
            let _ = text.parse::<Identity>();
        }
    }
}
