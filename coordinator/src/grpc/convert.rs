//! Between the wire and the rest: errors to statuses, records to messages.

pub(crate) use reseal_proto::error::chain;
use reseal_proto::v1;
use tonic::{Code, Status};

use crate::domain::authority;
use crate::issuance::IssuanceError;
use crate::store::StoreError;
use crate::store::record::Authority;
use crate::view::IssuedBy;

/// What a failed commit or read is to a caller.
pub(crate) fn status(error: &StoreError) -> Status {
    let code = match error {
        StoreError::Conflict { .. } | StoreError::LeaseLost { .. } => Code::Aborted,
        StoreError::Limit { .. } => Code::InvalidArgument,
        StoreError::Full { .. } => Code::ResourceExhausted,
        StoreError::Closed | StoreError::InUse { .. } | StoreError::Engine { .. } => Code::Unavailable,
        StoreError::Record(_) => Code::DataLoss,
        StoreError::Missing { .. } | StoreError::NotEmpty { .. } | StoreError::Import { .. } => {
            Code::FailedPrecondition
        }
    };
    Status::new(code, chain(error))
}

/// What a failed issuance is to an agent.
pub(crate) fn issuance_status(error: &IssuanceError) -> Status {
    let code = match error {
        IssuanceError::Host(_) => Code::PermissionDenied,
        IssuanceError::Batch { .. }
        | IssuanceError::Often { .. }
        | IssuanceError::Authority { .. }
        | IssuanceError::NoAuthority => Code::FailedPrecondition,
        IssuanceError::Size(_) => Code::InvalidArgument,
        IssuanceError::Store(error) => return status(error),
        IssuanceError::Keyring(_) | IssuanceError::Facts(_) | IssuanceError::Profile(_) => Code::Internal,
    };
    Status::new(code, chain(error))
}

/// An authority for operators.
pub(crate) fn authority_info(name: &str, record: &Authority, issued: IssuedBy) -> v1::AuthorityInfo {
    let facts = reseal_proto::facts::of_chain(&record.certificate, []).unwrap_or_default();
    let key = crate::issuance::builtin::issuer_key(&record.certificate).ok();
    v1::AuthorityInfo {
        name: format!("builtin/{name}"),
        subject: facts.subject,
        fingerprint: facts.fingerprint,
        subject_key_id: key.as_ref().map(|key| key.subject_key_id.clone()).unwrap_or_default(),
        spki_sha256: facts.spki_sha256,
        state: authority::word(record.state()).into(),
        not_after: facts.not_after,
        installations: issued.managed + issued.unmanaged,
        unmanaged: issued.unmanaged,
        reason: record.reason.clone(),
    }
}
