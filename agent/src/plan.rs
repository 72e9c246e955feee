//! What is next for a target? Pure: (journal, disk) → one step.
//!
//! The journal says how far we meant to go, the disk how far we got. Asked at
//! the start of a batch and after every crash; doing the step again is
//! harmless, and whatever the answer, certificate and key on disk match.

use crate::install::Progress;
use crate::journal::Phase;

/// The next step of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The result is known: report it (again).
    Report,
    /// Ask for a certificate.
    Request {
        /// With the key that is on disk already.
        reuse: bool,
    },
    /// The new pair is complete and validated: make it the current one.
    Switch,
    /// It is the current one: reload and verify.
    Prove,
    /// A failure was being undone: undo it (again).
    RollBack,
}

/// Decides.
pub fn next(phase: Phase, disk: Progress) -> Next {
    match (phase, disk) {
        (Phase::Done, _) => Next::Report,
        (Phase::RollingBack, _) => Next::RollBack,
        (Phase::Ordered, _) => Next::Request { reuse: false },
        // Switched although the intent was never written: cannot be, but what
        // is live must be proved, not replaced.
        (Phase::Requested | Phase::Installing, Progress::Live) => Next::Prove,
        (Phase::Installing, Progress::Staged) => Next::Switch,
        (Phase::Requested, Progress::Staged) => Next::Request { reuse: true },
        (Phase::Requested | Phase::Installing, Progress::Keyed) => Next::Request { reuse: true },
        (Phase::Requested | Phase::Installing, Progress::Absent) => Next::Request { reuse: false },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PHASES: [Phase; 5] =
        [Phase::Ordered, Phase::Requested, Phase::Installing, Phase::RollingBack, Phase::Done];
    const DISKS: [Progress; 4] = [Progress::Absent, Progress::Keyed, Progress::Staged, Progress::Live];

    proptest! {
        #[test]
        fn nothing_unvalidated_becomes_current(
            phase in proptest::sample::select(PHASES.as_slice()),
            disk in proptest::sample::select(DISKS.as_slice()),
        ) {
            match next(phase, disk) {
                // The intent to install is written after validation only.
                Next::Switch => prop_assert_eq!((phase, disk), (Phase::Installing, Progress::Staged)),
                Next::Prove => prop_assert_eq!(disk, Progress::Live),
                Next::Request { reuse: true } => prop_assert!(matches!(disk, Progress::Keyed | Progress::Staged)),
                Next::Request { reuse: false } => prop_assert!(phase == Phase::Ordered || disk == Progress::Absent),
                Next::Report => prop_assert_eq!(phase, Phase::Done),
                Next::RollBack => prop_assert_eq!(phase, Phase::RollingBack),
            }
        }

        /// Wherever it is killed, running the steps again reaches a result,
        /// and never takes more steps than there are.
        #[test]
        fn always_comes_to_an_end(
            phase in proptest::sample::select(PHASES.as_slice()),
            disk in proptest::sample::select(DISKS.as_slice()),
            kill in proptest::collection::vec(any::<bool>(), 12),
        ) {
            let (mut phase, mut disk) = (phase, disk);
            let mut steps = 0;
            for killed in kill.into_iter().chain(std::iter::repeat_n(false, 8)) {
                steps += 1;
                match next(phase, disk) {
                    Next::Report => { phase = Phase::Done; break; }
                    Next::Request { .. } => {
                        phase = Phase::Requested;
                        disk = Progress::Keyed;
                        if !killed { disk = Progress::Staged; phase = Phase::Installing; }
                    }
                    Next::Switch => disk = Progress::Live,
                    Next::Prove | Next::RollBack => if !killed { phase = Phase::Done },
                }
            }
            prop_assert_eq!(phase, Phase::Done, "after {} steps", steps);
        }
    }
}
