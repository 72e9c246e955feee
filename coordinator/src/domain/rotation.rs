//! The life of a rotation, and what is due next in it.
//!
//! ```text
//! Draft → AwaitingApproval → Running ⇄ Paused
//!   Running, Trailing → Halted → Running (resume, retry)
//!   Running → Trailing (only stragglers and unserved left) → Completed | Expired
//!   any but the ends → Aborted
//! ```
//! [`next`] is asked by the engine whenever something changed; what it answers
//! depends on its arguments alone, so a new coordinator goes on where the old
//! one was killed.

pub use reseal_proto::v1::RotationState as State;

use super::waves::Threshold;

/// What can happen to a rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// It was ordered, or approved.
    Start,
    /// An operator holds it.
    Pause,
    /// An operator lets it go on.
    Resume,
    /// Too many targets failed.
    Halt,
    /// Failed targets are tried again.
    Retry,
    /// Every wave is done but for stragglers and unserved targets.
    Trail,
    /// Nothing is left to do.
    Complete,
    /// The deadline passed with work left.
    Expire,
    /// An operator ended it.
    Abort,
}

/// An event that cannot happen in a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a rotation that is {} cannot take {}", word(*state), verb(*event))]
pub struct Rejected {
    /// The state it is in.
    pub state: State,
    /// What was tried.
    pub event: Event,
}

/// The next state.
pub fn apply(state: State, event: Event) -> Result<State, Rejected> {
    match (state, event) {
        (State::Draft | State::AwaitingApproval, Event::Start) => Ok(State::Running),
        (State::Running, Event::Pause) => Ok(State::Paused),
        (State::Paused | State::Halted, Event::Resume) => Ok(State::Running),
        (State::Running | State::Trailing, Event::Halt) => Ok(State::Halted),
        (State::Halted | State::Running | State::Trailing, Event::Retry) => Ok(State::Running),
        (State::Running, Event::Trail) => Ok(State::Trailing),
        (State::Running | State::Trailing, Event::Complete) => Ok(State::Completed),
        (State::Running | State::Paused | State::Halted | State::Trailing, Event::Expire) => {
            Ok(State::Expired)
        }
        (
            State::Draft
            | State::AwaitingApproval
            | State::Running
            | State::Paused
            | State::Halted
            | State::Trailing,
            Event::Abort,
        ) => Ok(State::Aborted),
        (
            State::Unspecified
            | State::Draft
            | State::AwaitingApproval
            | State::Running
            | State::Paused
            | State::Halted
            | State::Trailing
            | State::Completed
            | State::Expired
            | State::Aborted,
            Event::Start
            | Event::Pause
            | Event::Resume
            | Event::Halt
            | Event::Retry
            | Event::Trail
            | Event::Complete
            | Event::Expire
            | Event::Abort,
        ) => Err(Rejected { state, event }),
    }
}

/// Nothing happens to it any more.
pub fn is_end(state: State) -> bool {
    matches!(state, State::Completed | State::Expired | State::Aborted)
}

/// Its ordered batches are to be worked on: a pause or halt orders no new wave
/// but lets a host finish what it has begun.
pub fn accepts_work(state: State) -> bool {
    matches!(state, State::Running | State::Paused | State::Halted | State::Trailing)
}

/// Counts over the targets of a rotation, superseded ones left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Waves there are.
    pub waves: u32,
    /// Waves ordered so far.
    pub wave: u32,
    /// Targets in ordered waves that are no stragglers: they are *attempted*.
    pub attempted: u32,
    /// Of those, still being worked on.
    pub working: u32,
    /// Failed, rolled back or held.
    pub failed: u32,
    /// Failures that a resume has accepted.
    pub accepted: u32,
    /// Ordered, and their host is away.
    pub stragglers: u32,
    /// Installed, nothing running to prove it.
    pub unserved: u32,
    /// Proved.
    pub verified: u32,
}

/// What the engine is to do with a rotation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing now.
    Wait,
    /// Order this wave.
    OrderWave(u32),
    /// Apply this event, with a note for people.
    Apply(Event, String),
}

/// What next? `deadline_at` and `now` are seconds since the Unix epoch.
pub fn next(state: State, progress: &Progress, threshold: Threshold, deadline_at: i64, now: i64) -> Step {
    match state {
        State::Running => running(progress, threshold, deadline_at, now),
        State::Trailing if progress.working == 0 && progress.stragglers == 0 && progress.unserved == 0 => {
            finish(progress)
        }
        State::Trailing | State::Paused | State::Halted if now >= deadline_at => expire(progress),
        State::Trailing | State::Paused | State::Halted => Step::Wait,
        State::Unspecified
        | State::Draft
        | State::AwaitingApproval
        | State::Completed
        | State::Expired
        | State::Aborted => Step::Wait,
    }
}

fn running(progress: &Progress, threshold: Threshold, deadline_at: i64, now: i64) -> Step {
    let failed = progress.failed.saturating_sub(progress.accepted);
    if failed > 0 && threshold.halts(failed, progress.attempted) {
        return Step::Apply(
            Event::Halt,
            format!(
                "{failed} of {} attempted targets failed; mend what `reseal rotation show` names, then `reseal rotation retry`",
                progress.attempted
            ),
        );
    }
    if now >= deadline_at {
        return expire(progress);
    }
    if progress.working > 0 {
        return Step::Wait;
    }
    if progress.wave < progress.waves {
        return Step::OrderWave(progress.wave + 1);
    }
    if progress.stragglers > 0 || progress.unserved > 0 {
        return Step::Apply(
            Event::Trail,
            format!("{} stragglers, {} unserved targets left", progress.stragglers, progress.unserved),
        );
    }
    finish(progress)
}

/// Failures below the threshold do not stop waves, but they are no success either.
fn finish(progress: &Progress) -> Step {
    if progress.failed == 0 {
        return Step::Apply(Event::Complete, String::new());
    }
    Step::Apply(
        Event::Halt,
        format!(
            "every wave is through, {} targets failed; mend what `reseal rotation show` names, then `reseal rotation retry`, or `abort`",
            progress.failed
        ),
    )
}

fn expire(progress: &Progress) -> Step {
    Step::Apply(
        Event::Expire,
        format!(
            "the deadline passed with {} targets in work, {} failed, {} stragglers, {} unserved",
            progress.working, progress.failed, progress.stragglers, progress.unserved
        ),
    )
}

/// For people and JSON.
pub fn word(state: State) -> &'static str {
    match state {
        State::Unspecified => "unspecified",
        State::Draft => "draft",
        State::AwaitingApproval => "awaiting-approval",
        State::Running => "running",
        State::Paused => "paused",
        State::Halted => "halted",
        State::Trailing => "trailing",
        State::Completed => "completed",
        State::Expired => "expired",
        State::Aborted => "aborted",
    }
}

/// What the audit log calls it.
pub fn audit_action(event: Event) -> &'static str {
    match event {
        Event::Start => "rotation.start",
        Event::Pause => "rotation.pause",
        Event::Resume => "rotation.resume",
        Event::Halt => "rotation.halt",
        Event::Retry => "rotation.retry",
        Event::Trail => "rotation.trail",
        Event::Complete => "rotation.complete",
        Event::Expire => "rotation.expire",
        Event::Abort => "rotation.abort",
    }
}

fn verb(event: Event) -> &'static str {
    match event {
        Event::Start => "a start",
        Event::Pause => "a pause",
        Event::Resume => "a resume",
        Event::Halt => "a halt",
        Event::Retry => "a retry",
        Event::Trail => "trailing",
        Event::Complete => "completion",
        Event::Expire => "expiry",
        Event::Abort => "an abort",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SHARE: Threshold = Threshold::BasisPoints(200);

    fn progress() -> Progress {
        Progress { waves: 2, wave: 1, attempted: 10, ..Progress::default() }
    }

    #[test]
    fn the_next_wave_waits_for_this_one() {
        let busy = Progress { working: 1, ..progress() };
        assert_eq!(next(State::Running, &busy, SHARE, 100, 1), Step::Wait);
        assert_eq!(next(State::Running, &progress(), SHARE, 100, 1), Step::OrderWave(2));
        assert_eq!(next(State::Paused, &progress(), SHARE, 100, 1), Step::Wait);
    }

    #[test]
    fn one_failure_in_ten_halts_at_once_even_while_others_work() {
        let failing = Progress { working: 5, failed: 1, ..progress() };
        assert!(matches!(next(State::Running, &failing, SHARE, 100, 1), Step::Apply(Event::Halt, _)));
        let accepted = Progress { accepted: 1, ..failing };
        assert_eq!(next(State::Running, &accepted, SHARE, 100, 1), Step::Wait);
    }

    #[test]
    fn stragglers_trail_until_the_deadline() {
        let left = Progress { wave: 2, stragglers: 1, ..progress() };
        assert!(matches!(next(State::Running, &left, SHARE, 100, 1), Step::Apply(Event::Trail, _)));
        assert_eq!(next(State::Trailing, &left, SHARE, 100, 1), Step::Wait);
        assert!(matches!(next(State::Trailing, &left, SHARE, 100, 100), Step::Apply(Event::Expire, _)));
        let none = Progress { stragglers: 0, ..left };
        assert!(matches!(next(State::Trailing, &none, SHARE, 100, 100), Step::Apply(Event::Complete, _)));
    }

    #[test]
    fn a_rotation_with_failures_never_completes() {
        let failed = Progress { wave: 2, failed: 1, attempted: 1000, ..progress() };
        assert!(matches!(next(State::Running, &failed, SHARE, 100, 1), Step::Apply(Event::Halt, _)));
        assert!(next(State::Trailing, &failed, SHARE, 100, 1) != Step::Apply(Event::Complete, String::new()));
    }

    fn any_progress() -> impl Strategy<Value = Progress> {
        (1u32..5, 0u32..5, 0u32..9, 0u32..9, 0u32..9, 0u32..9, 0u32..3, 0u32..3).prop_map(
            |(waves, wave, attempted, working, failed, accepted, stragglers, unserved)| Progress {
                waves,
                wave: wave.min(waves),
                attempted: attempted.max(working + failed),
                working,
                failed,
                accepted,
                stragglers,
                unserved,
                verified: 0,
            },
        )
    }

    proptest! {
        /// Whatever the engine is told to apply can be applied: no rotation gets stuck on a rejection.
        #[test]
        fn every_step_is_possible(number in 1i32..=9, progress in any_progress(), now in 0i64..3) {
            let state = State::try_from(number).unwrap();
            if let Step::Apply(event, _) = next(state, &progress, SHARE, 1, now) {
                prop_assert!(apply(state, event).is_ok(), "{state:?} {event:?}");
            }
        }

        /// *Complete* means that nothing is failed, missing or unproved.
        #[test]
        fn complete_means_clean(number in 1i32..=9, progress in any_progress(), now in 0i64..3) {
            let state = State::try_from(number).unwrap();
            if let Step::Apply(Event::Complete, _) = next(state, &progress, SHARE, 1, now) {
                prop_assert_eq!(progress.failed + progress.stragglers + progress.unserved + progress.working, 0);
            }
        }
    }
}
