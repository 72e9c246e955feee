//! How many refusals are audited: a flood must not fill the audit chain.
//!
//! One allowance per kind of refusal; what goes beyond is counted in a metric,
//! not written. The gRPC services and the issuance hold one each.

/// Refusals audited in one second.
const PER_SECOND: u32 = 10;

/// What is left of this second.
#[derive(Debug, Default)]
pub(crate) struct Allowance {
    second: i64,
    taken: u32,
}

impl Allowance {
    /// Takes one; false when this second has had enough.
    pub(crate) fn take(&mut self, now: i64) -> bool {
        if self.second != now {
            *self = Self { second: now, taken: 0 };
        }
        self.taken += 1;
        self.taken <= PER_SECOND
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_a_second() {
        let mut allowance = Allowance::default();
        assert_eq!((0..50).filter(|_| allowance.take(7)).count(), 10);
        assert!(allowance.take(8));
    }
}
