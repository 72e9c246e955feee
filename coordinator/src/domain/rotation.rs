//! The life of a rotation, and what is due next in it.
//!
//! ```text
//! Draft → AwaitingApproval → Running ⇄ Paused
//!   Running, Trailing → Halted → Running (resume, retry)
//!   Running → Trailing (only stragglers, unserved and excluded left) → Completed | Expired
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
    /// Every wave is done but for stragglers, unserved and excluded targets.
    Trail,
    /// Nothing is left to do.
    Complete,
    /// It ends with work left: the deadline passed, or nothing that is left can be done any more.
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
        (State::Running | State::Trailing, Event::Pause) => Ok(State::Paused),
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
    /// Of those, renewed since by something else: they cannot be proved any more.
    pub overtaken: u32,
    /// Taken out by an operator.
    pub excluded: u32,
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
        State::Trailing => trailing(progress, deadline_at, now),
        State::Paused | State::Halted if now >= deadline_at => expire(progress),
        State::Paused | State::Halted => Step::Wait,
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
        return Step::Apply(Event::Trail, left(progress));
    }
    if progress.failed > 0 {
        return halt_at_the_end(progress);
    }
    if progress.excluded > 0 {
        return Step::Apply(Event::Trail, left(progress));
    }
    Step::Apply(Event::Complete, String::new())
}

fn trailing(progress: &Progress, deadline_at: i64, now: i64) -> Step {
    let still = progress.working + progress.stragglers + progress.unserved - progress.overtaken;
    if still == 0 && progress.failed > 0 {
        return halt_at_the_end(progress);
    }
    if still == 0 && progress.overtaken == 0 && progress.excluded == 0 {
        return Step::Apply(Event::Complete, String::new());
    }
    if now >= deadline_at {
        return expire(progress);
    }
    if still > 0 {
        return Step::Wait;
    }
    if progress.overtaken > 0 {
        return Step::Apply(
            Event::Expire,
            format!(
                "{} unserved and {} excluded targets are left and nothing here can prove them any more: what was unserved has been renewed since; rotate those names once more for a proof",
                progress.unserved, progress.excluded
            ),
        );
    }
    // What is excluded is not clean, and may be taken in again until the deadline.
    Step::Wait
}

/// Failures below the threshold do not stop waves, but they are no success either.
fn halt_at_the_end(progress: &Progress) -> Step {
    Step::Apply(
        Event::Halt,
        format!(
            "every wave is through, {} targets failed; mend what `reseal rotation show` names, then `reseal rotation retry`, or `abort`",
            progress.failed
        ),
    )
}

fn left(progress: &Progress) -> String {
    format!(
        "{} stragglers, {} unserved, {} excluded targets left",
        progress.stragglers, progress.unserved, progress.excluded
    )
}

fn expire(progress: &Progress) -> Step {
    Step::Apply(
        Event::Expire,
        format!(
            "the deadline passed with {} targets in work, {} failed, {} stragglers, {} unserved, {} excluded",
            progress.working, progress.failed, progress.stragglers, progress.unserved, progress.excluded
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

    #[test]
    fn what_is_excluded_trails_and_never_completes() {
        let left = Progress { wave: 2, excluded: 3, ..progress() };
        assert!(matches!(next(State::Running, &left, SHARE, 100, 1), Step::Apply(Event::Trail, _)));
        assert_eq!(next(State::Trailing, &left, SHARE, 100, 1), Step::Wait);
        assert!(matches!(next(State::Trailing, &left, SHARE, 100, 100), Step::Apply(Event::Expire, _)));
        let early = Progress { wave: 1, ..left };
        assert_eq!(next(State::Running, &early, SHARE, 100, 1), Step::OrderWave(2), "it holds up no wave");
    }

    #[test]
    fn what_was_renewed_since_is_not_waited_for() {
        let overtaken = Progress { wave: 2, unserved: 2, overtaken: 2, ..progress() };
        assert!(matches!(next(State::Trailing, &overtaken, SHARE, 100, 1), Step::Apply(Event::Expire, _)));
        let one_left = Progress { overtaken: 1, ..overtaken };
        assert_eq!(next(State::Trailing, &one_left, SHARE, 100, 1), Step::Wait);
    }

    /// Every event in every state, in the order of the states' numbers.
    #[test]
    fn the_whole_machine() {
        use State::*;
        let no = None;
        let table: [(Event, [Option<State>; 10]); 9] = [
            (Event::Start, [no, Some(Running), Some(Running), no, no, no, no, no, no, no]),
            (Event::Pause, [no, no, no, Some(Paused), no, no, Some(Paused), no, no, no]),
            (Event::Resume, [no, no, no, no, Some(Running), Some(Running), no, no, no, no]),
            (Event::Halt, [no, no, no, Some(Halted), no, no, Some(Halted), no, no, no]),
            (Event::Retry, [no, no, no, Some(Running), no, Some(Running), Some(Running), no, no, no]),
            (Event::Trail, [no, no, no, Some(Trailing), no, no, no, no, no, no]),
            (Event::Complete, [no, no, no, Some(Completed), no, no, Some(Completed), no, no, no]),
            (
                Event::Expire,
                [no, no, no, Some(Expired), Some(Expired), Some(Expired), Some(Expired), no, no, no],
            ),
            (
                Event::Abort,
                [
                    no,
                    Some(Aborted),
                    Some(Aborted),
                    Some(Aborted),
                    Some(Aborted),
                    Some(Aborted),
                    Some(Aborted),
                    no,
                    no,
                    no,
                ],
            ),
        ];
        for (event, row) in table {
            for (number, wanted) in row.into_iter().enumerate() {
                let state = State::try_from(number as i32).unwrap();
                assert_eq!(
                    apply(state, event),
                    wanted.ok_or(Rejected { state, event }),
                    "{state:?} {event:?}"
                );
            }
        }
    }

    fn any_event() -> impl Strategy<Value = Event> {
        proptest::sample::select(vec![
            Event::Start,
            Event::Pause,
            Event::Resume,
            Event::Halt,
            Event::Retry,
            Event::Trail,
            Event::Complete,
            Event::Expire,
            Event::Abort,
        ])
    }

    fn any_progress() -> impl Strategy<Value = Progress> {
        let left = (0u32..3, 0u32..3, 0u32..3, 0u32..3);
        (1u32..5, 0u32..5, 0u32..9, 0u32..9, 0u32..9, 0u32..9, left).prop_map(
            |(waves, wave, attempted, working, failed, accepted, left)| Progress {
                waves,
                wave: wave.min(waves),
                attempted: attempted.max(working + failed),
                working,
                failed,
                accepted,
                stragglers: left.0,
                unserved: left.1.max(left.2),
                overtaken: left.2,
                excluded: left.3,
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
                let left = progress.stragglers + progress.unserved + progress.excluded;
                prop_assert_eq!(progress.failed + progress.working + left, 0);
            }
        }

        /// What an operator and the engine may do in any order: the ends are final, and from
        /// everywhere else there is a way on, for the operator or by the deadline.
        #[test]
        fn no_way_leads_nowhere(events in proptest::collection::vec(any_event(), 0..40)) {
            let mut state = State::Running;
            for event in events {
                let before = state;
                if let Ok(next) = apply(state, event) { state = next; }
                prop_assert!(!is_end(before) || state == before);
                prop_assert!(is_end(state) || apply(state, Event::Abort) == Ok(State::Aborted));
                prop_assert!(is_end(state) || apply(state, Event::Expire) == Ok(State::Expired));
            }
        }

        /// At its deadline no rotation goes on waiting, but for what a halt makes of failures.
        #[test]
        fn the_deadline_ends_the_waiting(number in 3i32..=6, progress in any_progress()) {
            let state = State::try_from(number).unwrap();
            prop_assert!(next(state, &progress, SHARE, 1, 1) != Step::Wait, "{state:?} {progress:?}");
        }
    }
}
