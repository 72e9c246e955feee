//! The life of a CA slot.
//!
//! ```text
//! PendingSignature → Prepared → Active → Old
//!         any but Revoked ── Taint ──▶ Tainted → Revoked
//! ```
//! One DN, one key, never reused. Exactly one authority is active. A tainted
//! one never issues again, whatever happens to the record.

pub use crate::store::record::AuthorityState as State;

/// What can happen to an authority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The root signed it.
    Sign,
    /// It becomes the one that issues.
    Activate,
    /// Another became the one that issues.
    Retire,
    /// Its key is not ours alone any more.
    Taint,
    /// The root's CRL names it.
    Revoke,
}

/// An event that cannot happen in a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an authority that is {} cannot be {}", word(*state), verb(*event))]
pub struct Rejected {
    /// The state it is in.
    pub state: State,
    /// What was tried.
    pub event: Event,
}

/// The next state.
pub fn apply(state: State, event: Event) -> Result<State, Rejected> {
    match (state, event) {
        (State::PendingSignature, Event::Sign) => Ok(State::Prepared),
        (State::Prepared, Event::Activate) => Ok(State::Active),
        (State::Active, Event::Retire) => Ok(State::Old),
        (
            State::PendingSignature | State::Prepared | State::Active | State::Old | State::Tainted,
            Event::Taint,
        ) => Ok(State::Tainted),
        (State::Tainted, Event::Revoke) => Ok(State::Revoked),
        (
            State::Unknown
            | State::PendingSignature
            | State::Prepared
            | State::Active
            | State::Old
            | State::Tainted
            | State::Revoked,
            Event::Sign | Event::Activate | Event::Retire | Event::Taint | Event::Revoke,
        ) => Err(Rejected { state, event }),
    }
}

/// For people and JSON.
pub fn word(state: State) -> &'static str {
    match state {
        State::Unknown => "unknown",
        State::PendingSignature => "pending-signature",
        State::Prepared => "prepared",
        State::Active => "active",
        State::Old => "old",
        State::Tainted => "tainted",
        State::Revoked => "revoked",
    }
}

fn verb(event: Event) -> &'static str {
    match event {
        Event::Sign => "signed",
        Event::Activate => "activated",
        Event::Retire => "retired",
        Event::Taint => "tainted",
        Event::Revoke => "revoked",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EVENTS: [Event; 5] = [Event::Sign, Event::Activate, Event::Retire, Event::Taint, Event::Revoke];

    proptest! {
        #[test]
        fn a_tainted_key_never_issues_again(events in proptest::collection::vec(0usize..5, 0..20)) {
            let mut state = State::PendingSignature;
            let mut tainted = false;
            for event in events.into_iter().map(|at| EVENTS[at]) {
                if let Ok(next) = apply(state, event) { state = next; }
                tainted |= state == State::Tainted;
                prop_assert!(!(tainted && state == State::Active));
            }
        }
    }

    #[test]
    fn taint_is_reachable_from_all_but_revoked() {
        for state in [State::PendingSignature, State::Prepared, State::Active, State::Old] {
            assert_eq!(apply(state, Event::Taint), Ok(State::Tainted));
        }
        assert!(apply(State::Revoked, Event::Taint).is_err());
    }
}
