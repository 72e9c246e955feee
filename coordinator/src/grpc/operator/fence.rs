//! What a rotation does to authorities, within its own first commit.

use tonic::Status;

use super::OperatorService;
use super::choose::FoundIssuer;
use crate::domain::authority::{self, Event};
use crate::grpc::convert::status;
use crate::store::record::{Authority, AuthorityState};
use crate::store::{Commit, Versioned, keys};

impl OperatorService {
    /// Taints the compromised authority, activates the new one, retires the one
    /// that was active, within the rotation's own commit.
    pub(super) async fn change_authorities(
        &self,
        mut commit: Commit,
        compromised: Option<&FoundIssuer>,
        reason: &str,
        to_name: &str,
        to: &Versioned<Authority>,
    ) -> Result<Commit, Status> {
        let refuse = |name: &str, error: authority::Rejected| {
            Status::failed_precondition(format!("authority {name}: {error}"))
        };
        if let Some(FoundIssuer { name, authority, .. }) = compromised {
            let key = keys::authority(name);
            commit = commit.at(&key, authority.revision);
            if !matches!(authority.value.state(), AuthorityState::Tainted | AuthorityState::Revoked) {
                let mut record = authority.value.clone();
                let state =
                    authority::apply(record.state(), Event::Taint).map_err(|error| refuse(name, error))?;
                record.set_state(state);
                record.reason = reason.to_owned();
                commit = commit.put(&key, &record);
            }
        }
        let key = keys::authority(to_name);
        commit = commit.at(&key, to.revision);
        if to.value.state() != AuthorityState::Prepared {
            return Ok(commit);
        }
        let mut record = to.value.clone();
        record.set_state(
            authority::apply(record.state(), Event::Activate).map_err(|error| refuse(to_name, error))?,
        );
        commit = commit.put(&key, &record);
        let all = self.store.range::<Authority>(keys::AUTHORITIES).await.map_err(|error| status(&error))?;
        for (key, other) in all {
            let name = key.trim_start_matches(keys::AUTHORITIES);
            let is_compromised = compromised.is_some_and(|compromised| compromised.name == name);
            if other.value.state() == AuthorityState::Active && !is_compromised {
                let mut record = other.value;
                record.set_state(
                    authority::apply(record.state(), Event::Retire).map_err(|error| refuse(name, error))?,
                );
                commit = commit.at(&key, other.revision).put(&key, &record);
            }
        }
        Ok(commit)
    }
}
