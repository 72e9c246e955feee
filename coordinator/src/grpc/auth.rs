//! Who may call what: the allow-list of each service.
//!
//! `Enrol` takes anybody (the token is the credential), `Renew` and the agent
//! session take hosts, the operator service takes operators with the role each
//! call names. An identity is looked up in the store on every call, so that a
//! removed operator or a banned host is out at once.

use std::sync::Arc;

use reseal_proto::identity::Role;
use tonic::{Request, Status};

use super::convert::status;
use super::tls::{Peer, PeerIdentity};
use crate::domain::host::{self, Standing};
use crate::store::record::{Host, Operator};
use crate::store::{Commit, Store, Versioned, keys};

/// What an operator may do; each includes the ones before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum OperatorRole {
    /// Look.
    Viewer,
    /// Plan and rotate.
    Operator,
    /// Hosts, policies, authorities, operators.
    Admin,
}

impl OperatorRole {
    /// As stored and typed.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

impl std::str::FromStr for OperatorRole {
    type Err = Status;

    fn from_str(text: &str) -> Result<Self, Status> {
        match text {
            "viewer" => Ok(Self::Viewer),
            "operator" => Ok(Self::Operator),
            "admin" => Ok(Self::Admin),
            other => {
                Err(Status::invalid_argument(format!("role {other:?} is not viewer, operator or admin")))
            }
        }
    }
}

/// An operator who was recognised.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    /// Its name.
    pub(crate) name: String,
    /// Its role.
    pub(crate) role: OperatorRole,
}

impl Caller {
    /// As audit entries name it.
    pub(crate) fn actor(&self) -> String {
        format!("operator/{}", self.name)
    }
}

/// The identity of the connection a request came over.
pub(crate) fn peer<T>(request: &Request<T>) -> Result<Arc<PeerIdentity>, Status> {
    request.extensions().get::<Peer>().and_then(|peer| peer.identity.clone()).ok_or_else(|| {
        Status::unauthenticated("this call needs a client certificate of the fleet's control-plane CA")
    })
}

/// Lets an operator through who has at least this role.
pub(crate) async fn operator<T>(
    store: &Store,
    fleet: &str,
    request: &Request<T>,
    least: OperatorRole,
) -> Result<Caller, Status> {
    let peer = peer(request)?;
    let Role::Operator(name) = &peer.identity.role else {
        return Err(Status::permission_denied(format!("{} is not an operator", peer.identity)));
    };
    if peer.identity.fleet != fleet {
        return Err(Status::permission_denied(format!("{} is not of fleet {fleet}", peer.identity)));
    }
    let record = store.get::<Operator>(&keys::operator(name)).await.map_err(|error| status(&error))?;
    let Some(record) =
        record.map(|record| record.value).filter(|record| record.spki_sha256 == peer.spki_sha256)
    else {
        return Err(Status::permission_denied(format!(
            "operator {name} was removed or has newer credentials"
        )));
    };
    let role: OperatorRole = record.role.parse()?;
    if role < least {
        return Err(Status::permission_denied(format!(
            "operator {name} is {}, this needs {}",
            role.word(),
            least.word()
        )));
    }
    Ok(Caller { name: name.clone(), role })
}

/// Lets an agent through, for its host; ends an identity that was renewed.
pub(crate) async fn agent<T>(
    store: &Store,
    fleet: &str,
    request: &Request<T>,
) -> Result<(String, Arc<PeerIdentity>), Status> {
    let peer = peer(request)?;
    let Role::Host(name) = &peer.identity.role else {
        return Err(Status::permission_denied(format!("{} is not an agent", peer.identity)));
    };
    if peer.identity.fleet != fleet {
        return Err(Status::permission_denied(format!("{} is not of fleet {fleet}", peer.identity)));
    }
    let key = keys::host(name);
    let record = store.get::<Host>(&key).await.map_err(|error| status(&error))?;
    let standing = host::standing(name, record.as_ref().map(|record| &record.value), &peer.spki_sha256)
        .map_err(|refused| Status::permission_denied(refused.to_string()))?;
    match (standing, record) {
        (Standing::Promote, Some(Versioned { revision, value })) => {
            let promoted = Host {
                identity_spki_sha256: value.next_spki_sha256.clone(),
                next_spki_sha256: Vec::new(),
                ..value
            };
            let commit = Commit::new().at(&key, revision).put(&key, &promoted);
            store.commit(commit).await.map_err(|error| status(&error))?;
        }
        (Standing::Current | Standing::Promote, _) => {}
    }
    Ok((name.clone(), peer))
}
