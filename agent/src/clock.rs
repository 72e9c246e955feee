//! How far this host's clock is from the coordinator's, and what time it really is.
//!
//! Measured at each Welcome and carried on with the kernel's boot-time clock,
//! which nobody sets and which counts while the host is suspended. So a wrong
//! clock, or one that jumps, decides nothing: identities and certificates are
//! judged by the coordinator's time. While the skew is beyond [`MOST_SKEW`], or
//! was not measured yet since the start, nothing is called verified (see
//! [`crate::target`]).

use std::sync::Mutex;
use std::time::Duration;

use rustls_pki_types::UnixTime;

use crate::app;

/// A clock that differs by more is wrong; seconds.
pub const MOST_SKEW: i64 = 300;

/// The coordinator's clock as this host knows it.
#[derive(Debug, Default)]
pub struct Clock {
    measured: Mutex<Option<Measured>>,
}

#[derive(Clone, Copy, Debug)]
struct Measured {
    /// The coordinator's clock, seconds since the Unix epoch.
    theirs: i64,
    /// This host's boot-time clock at that moment, seconds.
    boot: i64,
}

/// What is known of this host's own clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// No coordinator was heard since the start: it may be right or wrong.
    Unmeasured,
    /// Near enough to the coordinator's.
    Right,
    /// Ahead by so many seconds; beyond what is tolerated.
    Wrong(i64),
}

impl Measured {
    fn now(self, boot: i64) -> i64 {
        self.theirs.saturating_add(boot.saturating_sub(self.boot))
    }
}

impl Clock {
    /// A Welcome said what time it is.
    pub fn measure(&self, theirs: i64) {
        *self.held() = Some(Measured { theirs, boot: app::boot_time() });
    }

    /// Seconds since the Unix epoch by the coordinator's clock; by this host's
    /// until a coordinator has been heard.
    pub fn now(&self) -> i64 {
        let measured = *self.held();
        measured.map_or_else(app::now, |measured| measured.now(app::boot_time()))
    }

    /// The same for certificate validation.
    pub fn unix_time(&self) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(self.now()).unwrap_or(0)))
    }

    /// Seconds by which this host is ahead; `None` until it was measured.
    pub fn skew(&self) -> Option<i64> {
        let measured = *self.held();
        measured.map(|measured| app::now().saturating_sub(measured.now(app::boot_time())))
    }

    /// Can this host's clock be trusted?
    pub fn standing(&self) -> Standing {
        match self.skew() {
            None => Standing::Unmeasured,
            Some(skew) if is_wrong(skew) => Standing::Wrong(skew),
            Some(_) => Standing::Right,
        }
    }

    fn held(&self) -> std::sync::MutexGuard<'_, Option<Measured>> {
        self.measured.lock().expect("no panic while held")
    }
}

/// Beyond what is tolerated?
pub fn is_wrong(skew: i64) -> bool {
    skew.saturating_abs() > MOST_SKEW
}

/// For people.
pub fn told(skew: i64) -> String {
    let side = if skew > 0 { "ahead of" } else { "behind" };
    format!(
        "this host's clock is {} s {side} the coordinator's: set it (timedatectl, chrony); nothing is called verified before",
        skew.saturating_abs()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goes_on_by_the_coordinators_clock() {
        let clock = Clock::default();
        assert_eq!((clock.skew(), clock.standing()), (None, Standing::Unmeasured));
        let far = app::now() + 86_400;
        clock.measure(far);
        assert!((far..far + 5).contains(&clock.now()), "{} is not {far}", clock.now());
        let Standing::Wrong(skew) = clock.standing() else { panic!("a day is wrong") };
        let said = told(skew);
        assert!(said.contains("s behind the coordinator's"), "{said}");
        clock.measure(app::now() - MOST_SKEW + 20);
        assert_eq!(clock.standing(), Standing::Right);
    }

    #[test]
    fn a_coordinator_may_say_any_time() {
        for (theirs, skew) in [(i64::MIN, i64::MAX), (i64::MAX, app::now() - i64::MAX)] {
            let clock = Clock::default();
            clock.measure(theirs);
            let Standing::Wrong(found) = clock.standing() else { panic!("{theirs} is wrong") };
            assert!(found.abs_diff(skew) < 60, "{found} is not {skew}");
            assert!(clock.now().abs_diff(theirs) < 60);
            let _ = (clock.unix_time(), told(found));
        }
    }

    #[test]
    fn a_suspended_host_knows_how_long_it_slept() {
        let measured = Measured { theirs: 1000, boot: 50 };
        assert_eq!(measured.now(50 + 7200), 8200);
        assert!(is_wrong(-301) && is_wrong(i64::MIN) && !is_wrong(300));
    }
}
