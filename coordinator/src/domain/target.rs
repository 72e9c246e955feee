//! The life of one target: one installation within a rotation or a renewal.
//!
//! ```text
//! Pending → Ordered → Requested → Issued → Installed → Reloaded → Verified | Unserved
//!    any of these ── Fail ──▶ Failed → RolledBack | Held
//!    Pending, Ordered … Reloaded ── Lose ──▶ Straggler ── (reconnects) ──▶ any end
//!    Unserved ── its consumer starts ──▶ Verified | Failed
//!    all but Verified ── Exclude ──▶ Excluded ── (proved after all) ──▶ Verified
//! ```
//! `Installed` and `Reloaded` live on the agent and come back with the result,
//! so the coordinator may see any later state directly.

use reseal_proto::v1::Installation;
pub use reseal_proto::v1::TargetState as State;

use crate::store::record::Target;

/// Targets in one batch, the durable unit of work of one host.
pub const PER_BATCH: usize = 50;

/// What can happen to a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Its wave was ordered.
    Order,
    /// Its host had no session for thirty seconds.
    Lose,
    /// A step forward, or an end, as the agent reports it.
    Report(State),
    /// An operator took its host out of the rotation.
    Exclude,
}

/// An event that cannot happen in a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a target that is {state:?} cannot take {event:?}")]
pub struct Rejected {
    /// The state it is in.
    pub state: State,
    /// What was tried.
    pub event: Event,
}

/// The next state.
pub fn apply(state: State, event: Event) -> Result<State, Rejected> {
    let rejected = Err(Rejected { state, event });
    match (state, event) {
        // No agent can say so of itself.
        (_, Event::Report(State::Excluded)) => rejected,
        (State::Pending, Event::Order) => Ok(State::Ordered),
        (
            State::Pending
            | State::Ordered
            | State::Requested
            | State::Issued
            | State::Installed
            | State::Reloaded
            | State::Straggler
            | State::Unserved
            | State::Failed
            | State::RolledBack
            | State::Held,
            Event::Exclude,
        ) => Ok(State::Excluded),
        // What was under way when it was excluded, and is proved all the same.
        (State::Excluded, Event::Report(State::Verified)) => Ok(State::Verified),
        (
            State::Pending
            | State::Ordered
            | State::Requested
            | State::Issued
            | State::Installed
            | State::Reloaded,
            Event::Lose,
        ) => Ok(State::Straggler),
        (
            State::Pending
            | State::Ordered
            | State::Requested
            | State::Issued
            | State::Installed
            | State::Reloaded
            | State::Straggler,
            Event::Report(next),
        ) if rank(next) > rank(state) || is_end(next) => Ok(next),
        // An agent that lost its journal starts again: going back is allowed until the end.
        (
            State::Requested | State::Issued | State::Installed | State::Reloaded | State::Straggler,
            Event::Report(State::Requested),
        ) => Ok(State::Requested),
        (
            State::Unserved,
            Event::Report(next @ (State::Verified | State::Failed | State::RolledBack | State::Held)),
        ) => Ok(next),
        (State::Failed, Event::Report(next @ (State::RolledBack | State::Held))) => Ok(next),
        (
            State::Unspecified
            | State::Pending
            | State::Ordered
            | State::Requested
            | State::Issued
            | State::Installed
            | State::Reloaded
            | State::Verified
            | State::Unserved
            | State::Failed
            | State::RolledBack
            | State::Held
            | State::Straggler
            | State::Excluded,
            Event::Order | Event::Lose | Event::Report(_) | Event::Exclude,
        ) => rejected,
    }
}

/// The name of a rotation's `number`-th batch on a host. The epoch keeps it unique
/// for ever, also after a restore from an older export.
pub fn batch_name(rotation: &str, number: usize, epoch: u64) -> String {
    format!("{rotation}.{number}-{epoch}")
}

/// The number in a batch's name: a later try has a higher one. 0 when there is none.
pub fn batch_number(name: &str) -> u64 {
    let (_, number) = name.split_once('.').unwrap_or_default();
    number.split('-').next().and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

/// A new target for an installation as it is on record; its first certificate will have `serial`.
pub fn pending(installation: &Installation, serial: impl Into<Vec<u8>>) -> Target {
    Target {
        installation: installation.id.clone(),
        label: installation.label.clone(),
        state: State::Pending.into(),
        before: installation.certificate.as_ref().map(|facts| facts.fingerprint.clone()).unwrap_or_default(),
        serial: serial.into(),
        ..Target::default()
    }
}

/// No more work is due for it.
pub fn is_end(state: State) -> bool {
    match state {
        State::Verified
        | State::Unserved
        | State::Failed
        | State::RolledBack
        | State::Held
        | State::Excluded => true,
        State::Unspecified
        | State::Pending
        | State::Ordered
        | State::Requested
        | State::Issued
        | State::Installed
        | State::Reloaded
        | State::Straggler => false,
    }
}

/// It ended, and not well: counts against the halt threshold.
pub fn is_failure(state: State) -> bool {
    matches!(state, State::Failed | State::RolledBack | State::Held)
}

fn rank(state: State) -> u8 {
    match state {
        State::Unspecified => 0,
        State::Pending => 1,
        State::Straggler => 2,
        State::Ordered => 3,
        State::Requested => 4,
        State::Issued => 5,
        State::Installed => 6,
        State::Reloaded => 7,
        State::Unserved | State::Failed | State::Excluded => 8,
        State::RolledBack | State::Held | State::Verified => 9,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_state() -> impl Strategy<Value = State> {
        (1i32..=13).prop_map(|number| State::try_from(number).unwrap())
    }

    fn any_event() -> impl Strategy<Value = Event> {
        prop_oneof![
            Just(Event::Order),
            Just(Event::Lose),
            Just(Event::Exclude),
            any_state().prop_map(Event::Report)
        ]
    }

    #[test]
    fn the_good_way() {
        let mut state = State::Pending;
        for event in [
            Event::Order,
            Event::Report(State::Requested),
            Event::Report(State::Issued),
            Event::Report(State::Installed),
            Event::Report(State::Reloaded),
            Event::Report(State::Verified),
        ] {
            state = apply(state, event).unwrap();
        }
        assert_eq!(state, State::Verified);
    }

    #[test]
    fn a_straggler_catches_up() {
        let state = apply(State::Pending, Event::Lose).unwrap();
        assert_eq!(apply(state, Event::Report(State::Verified)), Ok(State::Verified));
    }

    #[test]
    fn excluded_until_it_is_proved() {
        for state in (1i32..=12).map(|number| State::try_from(number).unwrap()) {
            let excluded = apply(state, Event::Exclude);
            assert_eq!(excluded.is_ok(), state != State::Verified, "{state:?}");
            assert!(apply(state, Event::Report(State::Excluded)).is_err(), "{state:?}");
        }
        for state in (1i32..=13).map(|number| State::try_from(number).unwrap()) {
            let reported = apply(State::Excluded, Event::Report(state));
            assert_eq!(reported.is_ok(), state == State::Verified, "{state:?}");
        }
        assert!(is_end(State::Excluded) && !is_failure(State::Excluded));
    }

    proptest! {
        /// Verified is final: whatever an agent says later, the record stands.
        #[test]
        fn verified_is_final(events in proptest::collection::vec(any_event(), 0..30)) {
            let mut state = State::Pending;
            let mut was_verified = false;
            for event in events {
                if let Ok(next) = apply(state, event) { state = next; }
                was_verified |= state == State::Verified;
                prop_assert!(!was_verified || state == State::Verified);
            }
        }

        /// Nothing comes back from an end to work in progress.
        #[test]
        fn ends_stay_ends(state in any_state(), event in any_event()) {
            if is_end(state) && let Ok(next) = apply(state, event) {
                prop_assert!(is_end(next));
            }
        }
    }
}
