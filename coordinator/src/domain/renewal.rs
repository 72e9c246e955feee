//! When a certificate is renewed by plan.
//!
//! A long-lived certificate is due with 30 days left, a short-lived one with a
//! third of its lifetime left, whichever comes later. Up to a tenth of the
//! remaining time is taken off, fixed per installation, so that a fleet does
//! not come all at once. A failed renewal is tried again with growing pauses.

use reseal_proto::facts::sha256;
use reseal_proto::v1::CertificateFacts;

use super::target;
use crate::store::record::Batch;

const DAY: i64 = 86_400;
/// Days left at which a long-lived certificate is due.
pub const LONG_LIVED_DAYS_LEFT: i64 = 30;
/// First pause after a failed renewal, seconds; it doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: i64 = 30;
/// Longest pause between tries, seconds.
pub const MAX_PAUSE: i64 = 3600;

/// notBefore and notAfter, as [`due_at`] wants them.
pub fn life(facts: &CertificateFacts) -> (i64, i64) {
    (facts.not_before, facts.not_after)
}

/// When the certificate of `installation` is due, seconds since the Unix epoch;
/// `life` is its notBefore and notAfter. One that is not there is due at once (0).
pub fn due_at(host: &str, installation: &str, life: Option<(i64, i64)>) -> i64 {
    let Some((not_before, not_after)) = life else {
        return 0;
    };
    let lifetime = not_after.saturating_sub(not_before).max(0);
    let margin = (LONG_LIVED_DAYS_LEFT * DAY).min(lifetime / 3);
    not_after.saturating_sub(margin).saturating_sub(jitter(host, installation, margin / 10))
}

/// Seconds to wait after the `attempt`-th failure in a row, 1-based.
pub fn pause(attempt: u32) -> i64 {
    FIRST_PAUSE
        .saturating_mul(1_i64.checked_shl(attempt.saturating_sub(1).min(20)).unwrap_or(i64::MAX))
        .min(MAX_PAUSE)
}

/// The next try after a host's newest finished renewal: which it is in a row of failed ones,
/// and when it may be.
pub fn next_try(newest: Option<&Batch>) -> (u32, i64) {
    let failed = newest.filter(|batch| batch.targets.iter().any(|t| target::is_failure(t.state())));
    failed.map_or((0, 0), |batch| {
        (batch.attempt + 1, batch.finished_at.saturating_add(pause(batch.attempt + 1)))
    })
}

/// The number in the name of a renewal's batch: `n0000000007-3` is 7; 0: it is no such name.
pub fn number(batch: &str) -> u64 {
    batch.strip_prefix('n').and_then(|rest| rest.split('-').next()?.parse().ok()).unwrap_or(0)
}

/// 0 ..= `spread`, always the same for one installation.
fn jitter(host: &str, installation: &str, spread: i64) -> i64 {
    let digest = sha256(format!("{host}\0{installation}").as_bytes());
    let number = u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]);
    i64::from(number) % (spread.max(0) + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::record::Target;
    use proptest::prelude::*;

    #[test]
    fn thresholds() {
        assert_eq!(due_at("h", "i", None), 0);
        let year = due_at("h", "i", Some((0, 365 * DAY)));
        assert!((332 * DAY..=335 * DAY).contains(&year), "{year}");
        let hour = due_at("h", "i", Some((0, 3600)));
        assert!((2280..=2400).contains(&hour), "{hour}");
    }

    #[test]
    fn numbers_are_read_from_names() {
        assert_eq!([number("n0000000007-3"), number("r7.0-3"), number("n"), number("")], [7, 0, 0, 0]);
    }

    #[test]
    fn pauses_grow_to_an_hour() {
        assert_eq!([pause(1), pause(2), pause(3), pause(9), pause(99)], [30, 60, 120, MAX_PAUSE, MAX_PAUSE]);
    }

    #[test]
    fn a_failed_renewal_is_tried_again_later_and_later() {
        let batch = |state: target::State, attempt| Batch {
            targets: vec![Target { state: state.into(), ..Target::default() }],
            finished_at: 1000,
            attempt,
            ..Batch::default()
        };
        assert_eq!(next_try(None), (0, 0));
        assert_eq!(next_try(Some(&batch(target::State::Verified, 3))), (0, 0));
        assert_eq!(next_try(Some(&batch(target::State::Failed, 0))), (1, 1030));
        assert_eq!(next_try(Some(&batch(target::State::RolledBack, 2))), (3, 1120));
    }

    proptest! {
        #[test]
        fn due_lies_within_the_lifetime(start in 0i64..1_000_000, lifetime in 60i64..400 * DAY, host in "[a-z]{1,8}") {
            let due = due_at(&host, "i", Some((start, start + lifetime)));
            prop_assert!(due >= start && due <= start + lifetime);
        }
    }
}
