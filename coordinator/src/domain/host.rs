//! The life of a host, and who may speak for it.
//!
//! ```text
//! Invited → Enrolled → Banned
//! ```
//! An identity is known by its key. A renewed identity is accepted beside the
//! old one until it is first used: the answer that carried it may get lost.

use crate::store::record::{Host, HostState};

/// What a presented key is to the host's record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The identity in use.
    Current,
    /// The renewed one, seen for the first time: the old one ends now.
    Promote,
}

/// Why an agent may not speak.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// No such host, or not enrolled.
    #[error("host {0} is not enrolled; invite it with `reseal host invite {0}`")]
    NotEnrolled(String),
    /// Cut off.
    #[error("host {host} is banned: {reason}")]
    Banned {
        /// The host.
        host: String,
        /// The operator's words.
        reason: String,
    },
    /// A certificate of this host that was replaced.
    #[error("host {0} presented an identity that was replaced; enrol it again with a new invitation")]
    Replaced(String),
}

/// May the holder of this key speak for `name`?
pub fn standing(name: &str, host: Option<&Host>, spki_sha256: &[u8]) -> Result<Standing, Refused> {
    let Some(host) = host else {
        return Err(Refused::NotEnrolled(name.to_owned()));
    };
    match host.state() {
        HostState::Unknown | HostState::Invited => Err(Refused::NotEnrolled(name.to_owned())),
        HostState::Banned => Err(Refused::Banned { host: name.to_owned(), reason: host.ban_reason.clone() }),
        HostState::Enrolled if host.identity_spki_sha256 == spki_sha256 => Ok(Standing::Current),
        HostState::Enrolled if !host.next_spki_sha256.is_empty() && host.next_spki_sha256 == spki_sha256 => {
            Ok(Standing::Promote)
        }
        HostState::Enrolled => Err(Refused::Replaced(name.to_owned())),
    }
}

/// For people and JSON.
pub fn word(state: HostState) -> &'static str {
    match state {
        HostState::Unknown => "unknown",
        HostState::Invited => "invited",
        HostState::Enrolled => "enrolled",
        HostState::Banned => "banned",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_speak() {
        let mut host = Host {
            state: HostState::Enrolled.into(),
            identity_spki_sha256: vec![1],
            next_spki_sha256: vec![2],
            ..Host::default()
        };
        assert_eq!(standing("h", Some(&host), &[1]), Ok(Standing::Current));
        assert_eq!(standing("h", Some(&host), &[2]), Ok(Standing::Promote));
        assert!(matches!(standing("h", Some(&host), &[3]), Err(Refused::Replaced(_))));
        host.next_spki_sha256.clear();
        assert!(standing("h", Some(&host), &[]).is_err());
        host.state = HostState::Banned.into();
        assert!(matches!(standing("h", Some(&host), &[1]), Err(Refused::Banned { .. })));
        assert!(standing("h", None, &[1]).is_err());
    }
}
