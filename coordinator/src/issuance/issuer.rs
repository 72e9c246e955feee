//! What an issuer is: a step, not a wait.
//!
//! The one seam of issuance. An issuer gets what policy has granted and answers
//! at once: a chain, a refusal, or when to ask again. So a slow order at another
//! CA survives a restart.

use std::time::Duration;

use async_trait::async_trait;
use reseal_proto::v1::Usage;

use crate::domain::name::Name;

/// A request that policy has admitted and whose intent is on record.
#[derive(Clone, Debug)]
pub struct Grant {
    /// From the CSR.
    pub names: Vec<Name>,
    /// SubjectPublicKeyInfo, DER.
    pub spki: Vec<u8>,
    /// What it is for.
    pub usage: Usage,
    /// From policy.
    pub lifetime: Duration,
    /// The serial the intent names, for issuers that let us choose.
    pub serial: Vec<u8>,
}

/// What came of one grant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Done.
    Issued {
        /// Leaf, DER.
        certificate: Vec<u8>,
    },
    /// Ask again later.
    Waiting {
        /// Not before this has passed.
        retry_after: Duration,
        /// What the issuer wants to see first, if anything.
        challenge: Option<String>,
    },
    /// Never.
    Refused {
        /// For the person who reads it.
        reason: String,
    },
}

/// Where certificates come from.
#[async_trait]
pub trait Issuer: Send + Sync {
    /// Takes each grant one step further; one answer per grant, in order. `now`
    /// is seconds since the Unix epoch.
    async fn step(&self, grants: Vec<Grant>, now: i64) -> Vec<Step>;

    /// Intermediates between its leaves and the root, the leaf's issuer first, DER.
    fn intermediates(&self) -> &[Vec<u8>];
}
