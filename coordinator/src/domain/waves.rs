//! Waves and the halt threshold, as an operator writes them.
//!
//! `1,10%,100%` are cumulative numbers or shares of *hosts*; the last must be
//! all of them. `2%` or `3` is the halt threshold.

/// Why a text is no wave list or threshold.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum WavesError {
    /// An entry is neither a number nor a share.
    #[error("{0:?} is neither a number of hosts nor a share such as 10%")]
    Entry(String),
    /// Falling, or a zero.
    #[error("waves {0:?} must rise, from 1 host or 1% upwards")]
    Order(String),
    /// Too many.
    #[error("{0} waves are too many: a list has at most 50, a rotation whose pace was changed 500")]
    Count(usize),
    /// The last wave leaves hosts out.
    #[error("waves {0:?} must end with 100%, or hosts would be left out")]
    End(String),
    /// A pace for what is ordered already.
    #[error("every wave is ordered already: there is no pace left to change")]
    Ordered,
    /// Not a threshold.
    #[error("{0:?} is neither a number of targets nor a share such as 2%, up to 100%")]
    Threshold(String),
}

/// One entry: hosts, or hundredths of the hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    Hosts(u32),
    Percent(u32),
}

/// A wave list that is sound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waves(Vec<Entry>);

impl std::str::FromStr for Waves {
    type Err = WavesError;

    fn from_str(text: &str) -> Result<Self, WavesError> {
        let entries = text.split(',').map(|item| entry(item.trim())).collect::<Result<Vec<_>, _>>()?;
        if entries.len() > 50 {
            return Err(WavesError::Count(entries.len()));
        }
        if entries.iter().any(|entry| matches!(entry, Entry::Hosts(0) | Entry::Percent(0)))
            || !rises(&entries)
        {
            return Err(WavesError::Order(text.to_owned()));
        }
        if entries.last() != Some(&Entry::Percent(100)) {
            return Err(WavesError::End(text.to_owned()));
        }
        Ok(Self(entries))
    }
}

impl Waves {
    /// Cumulative numbers of hosts, strictly rising, ending at `hosts`; empty for no host.
    pub fn sizes(&self, hosts: u32) -> Vec<u32> {
        let mut sizes: Vec<u32> = Vec::new();
        for entry in &self.0 {
            let size = match *entry {
                Entry::Hosts(number) => number.min(hosts),
                Entry::Percent(share) => {
                    u32::try_from((u64::from(hosts) * u64::from(share)).div_ceil(100)).unwrap_or(hosts)
                }
            };
            if size > sizes.last().copied().unwrap_or(0) {
                sizes.push(size);
            }
        }
        sizes
    }
}

/// Waves of a rotation that runs: cumulative numbers of hosts, and how many of the waves are ordered.
#[derive(Clone, Copy, Debug)]
pub struct Pace<'a> {
    /// As ordered.
    pub waves: &'a [u32],
    /// The first so many cannot be changed any more.
    pub ordered: u32,
}

impl Pace<'_> {
    /// What is ordered stays, the rest follows the new list. Its numbers and shares are
    /// of all hosts of the rotation, as in the first list; those that are reached already count no more.
    pub fn change(self, to: &Waves) -> Result<Vec<u32>, WavesError> {
        let hosts = self.waves.last().copied().unwrap_or(0);
        let mut waves: Vec<u32> = self.waves.iter().take(self.ordered as usize).copied().collect();
        let reached = waves.last().copied().unwrap_or(0);
        if reached >= hosts {
            return Err(WavesError::Ordered);
        }
        waves.extend(to.sizes(hosts).into_iter().filter(|size| *size > reached));
        if waves.len() > MAX_CHANGED {
            return Err(WavesError::Count(waves.len()));
        }
        Ok(waves)
    }
}

/// Waves of a rotation at most, however often its pace is changed.
const MAX_CHANGED: usize = 500;

/// The halt threshold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threshold {
    /// This many failed targets halt.
    Targets(u32),
    /// This share of the attempted targets, in hundredths of a percent.
    BasisPoints(u32),
}

impl std::str::FromStr for Threshold {
    type Err = WavesError;

    fn from_str(text: &str) -> Result<Self, WavesError> {
        let error = || WavesError::Threshold(text.to_owned());
        match text.trim().strip_suffix('%') {
            Some(share) => {
                let share: f64 = share.trim().parse().map_err(|_| error())?;
                if (0.0..=100.0).contains(&share) {
                    Ok(Self::BasisPoints((share * 100.0).round() as u32))
                } else {
                    Err(error())
                }
            }
            None => text.trim().parse().map(Self::Targets).map_err(|_| error()),
        }
    }
}

impl Threshold {
    /// Hundredths of a percent, and targets: one of them is 0, as a rotation's record has it.
    pub fn as_record(self) -> (u32, u32) {
        match self {
            Self::BasisPoints(share) => (share, 0),
            // 0 targets means the first failure, and must not read as "the share counts".
            Self::Targets(number) => (0, number.max(1)),
        }
    }

    /// Do `failed` of `attempted` targets halt the rotation? At least one failure is needed.
    pub fn halts(self, failed: u32, attempted: u32) -> bool {
        let limit = match self {
            Self::Targets(number) => number,
            Self::BasisPoints(share) => {
                u32::try_from((u64::from(attempted) * u64::from(share)).div_ceil(10_000)).unwrap_or(u32::MAX)
            }
        };
        failed >= limit.max(1)
    }
}

fn entry(text: &str) -> Result<Entry, WavesError> {
    let error = || WavesError::Entry(text.chars().take(40).collect());
    match text.strip_suffix('%') {
        Some(share) => match share.parse() {
            Ok(share) if share <= 100 => Ok(Entry::Percent(share)),
            Ok(_) | Err(_) => Err(error()),
        },
        None => text.parse().map(Entry::Hosts).map_err(|_| error()),
    }
}

fn rises(entries: &[Entry]) -> bool {
    let rising = |numbers: Vec<u32>| numbers.windows(2).all(|pair| pair[0] < pair[1]);
    let hosts = entries.iter().filter_map(|entry| match entry {
        Entry::Hosts(number) => Some(*number),
        Entry::Percent(_) => None,
    });
    let shares = entries.iter().filter_map(|entry| match entry {
        Entry::Hosts(_) => None,
        Entry::Percent(share) => Some(*share),
    });
    rising(hosts.collect()) && rising(shares.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_usual() {
        let waves: Waves = "1,10%,100%".parse().unwrap();
        assert_eq!(waves.sizes(100), [1, 10, 100]);
        assert_eq!(waves.sizes(3), [1, 3]);
        assert_eq!(waves.sizes(1), [1]);
        assert!(waves.sizes(0).is_empty());
    }

    #[test]
    fn refused() {
        for bad in ["", "10%", "0,100%", "50%,10%,100%", "x,100%", "200%", "1,,100%", "-1,100%"] {
            assert!(bad.parse::<Waves>().is_err(), "{bad}");
        }
        for bad in ["", "x", "101%", "-1%", "NaN%"] {
            assert!(bad.parse::<Threshold>().is_err(), "{bad}");
        }
    }

    #[test]
    fn one_failure_halts_a_small_wave() {
        let threshold: Threshold = "2%".parse().unwrap();
        assert!(threshold.halts(1, 10));
        assert!(!threshold.halts(0, 10));
        assert!(!threshold.halts(19, 1000));
        assert!(threshold.halts(20, 1000));
    }

    #[test]
    fn another_pace_for_what_is_left() {
        let pace = |ordered| Pace { waves: &[1, 10, 100], ordered };
        assert_eq!(pace(1).change(&"1,5,25%,100%".parse().unwrap()), Ok(vec![1, 5, 25, 100]));
        assert_eq!(pace(2).change(&"1,5,25%,100%".parse().unwrap()), Ok(vec![1, 10, 25, 100]));
        assert_eq!(pace(2).change(&"100%".parse().unwrap()), Ok(vec![1, 10, 100]));
        assert_eq!(pace(3).change(&"100%".parse().unwrap()), Err(WavesError::Ordered));
        let many: Vec<u32> = (1..=499).chain([10_000]).collect();
        let full = Pace { waves: &many, ordered: 499 };
        assert_eq!(full.change(&"90%,100%".parse().unwrap()), Err(WavesError::Count(501)));
    }

    proptest! {
        #[test]
        fn a_changed_pace_keeps_what_is_ordered_and_reaches_all(
            hosts in 1u32..5_000, first in 1u32..50, share in 1u32..99, ordered in 0u32..4, other in 1u32..99,
        ) {
            let waves = format!("{first},{share}%,100%").parse::<Waves>().unwrap().sizes(hosts);
            let to = format!("{other}%,100%").parse::<Waves>().unwrap();
            if let Ok(changed) = (Pace { waves: &waves, ordered }).change(&to) {
                let kept = waves.len().min(ordered as usize);
                prop_assert_eq!(&changed[..kept], &waves[..kept]);
                prop_assert_eq!(changed.last(), Some(&hosts));
                prop_assert!(changed.windows(2).all(|pair| pair[0] < pair[1]));
            }
        }

        #[test]
        fn sizes_rise_to_all(hosts in 1u32..100_000, first in 1u32..50, share in 1u32..99) {
            let sizes = format!("{first},{share}%,100%").parse::<Waves>().unwrap().sizes(hosts);
            prop_assert_eq!(sizes.last(), Some(&hosts));
            prop_assert!(sizes.windows(2).all(|pair| pair[0] < pair[1]));
        }

        #[test]
        fn never_panics(text in ".{0,40}") {
            let _ = text.parse::<Waves>();
            let _ = text.parse::<Threshold>();
        }
    }
}
