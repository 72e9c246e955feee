//! Notices a clock that was put forward or back.
//!
//! How long a host is away, or a result is waited for, is measured with the
//! clock of the day, because it has to outlive a restart. When that clock jumps,
//! six hours have not passed, and a moment that a wrong clock has written must
//! not be waited for: patience begins anew. The engine asks on every turn.

use std::time::Duration;

use tokio::time::Instant;

use crate::domain;

/// Corrections up to this are no jump, seconds.
const JUMP: i64 = 10;

/// How long after a jump no deadline passes, seconds.
pub(super) const GRACE: i64 = 600;

/// The clock of the day beside the one that only runs.
pub(super) struct Steady {
    wall: i64,
    read: Instant,
    settled: i64,
}

impl Steady {
    /// It has been right since `settled`, as far as is known.
    pub(super) fn new(settled: i64, now: i64) -> Self {
        Self { wall: now, read: Instant::now(), settled }
    }

    /// Since when the clock has not jumped.
    pub(super) fn settled(&mut self, now: i64) -> i64 {
        let passed = self.read.elapsed();
        self.read += passed;
        let off = jump(self.wall, now, passed);
        self.wall = now;
        if off != 0 {
            tracing::warn!(seconds = off, "the clock was put forward or back; patience begins anew");
            self.settled = now;
        }
        self.settled
    }
}

/// By how much the clock has jumped; 0: not at all.
fn jump(before: i64, now: i64, passed: Duration) -> i64 {
    let off = domain::put_forward(before, now, passed);
    if off.saturating_abs() > JUMP { off } else { 0 }
}

/// Have so many seconds passed since then? Counted from `settled` at the earliest, and
/// from there for a moment that is still to come.
pub(super) fn has_passed(seconds: i64, since: i64, settled: i64, now: i64) -> bool {
    let since = if since > now + JUMP { settled } else { since.max(settled) };
    now >= since.saturating_add(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOURS: i64 = 6 * 3600;

    #[test]
    fn a_jump_is_told_from_time_that_passed() {
        let second = Duration::from_secs(1);
        assert_eq!(jump(1000, 1001, second), 0);
        assert_eq!(jump(1000, 1600, Duration::from_secs(600)), 0);
        assert_eq!(jump(1000, 1003, second), 0, "a correction");
        assert_eq!(jump(1000, 1001 + HOURS, second), HOURS);
        assert_eq!(jump(1000, 1001 - HOURS, second), -HOURS);
    }

    #[test]
    fn patience_begins_anew_after_a_jump() {
        assert!(!has_passed(30, 1000, 0, 1029));
        assert!(has_passed(30, 1000, 0, 1030));
        // Put forward at 1010: the hours have not passed.
        let now = 1010 + HOURS;
        assert!(!has_passed(30, 1000, now, now + 29));
        assert!(has_passed(30, 1000, now, now + 30));
        // Put back: a moment of the wrong clock is not waited for.
        assert!(!has_passed(30, now, 1020, 1049));
        assert!(has_passed(30, now, 1020, 1050));
    }
}
