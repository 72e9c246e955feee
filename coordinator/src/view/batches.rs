//! Rotations and their batches in the projection: counts, not targets.

use std::collections::BTreeMap;
use std::sync::Arc;

use reseal_proto::v1::{Grade, TargetState};

use crate::domain::rotation::{self, Progress};
use crate::domain::target;
use crate::store::record::{Batch, Rotation};

/// Targets by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts([u16; 13]);

impl Counts {
    /// One more in this state.
    pub fn add(&mut self, state: TargetState) {
        self.0[state as usize] += 1;
    }

    /// How many in this state.
    pub fn of(&self, state: TargetState) -> u32 {
        u32::from(self.0[state as usize])
    }

    /// Each state and its number, without the empty ones.
    pub fn iter(&self) -> impl Iterator<Item = (TargetState, u32)> + '_ {
        self.0.iter().enumerate().filter(|(_, number)| **number > 0).filter_map(|(state, number)| {
            let state = TargetState::try_from(i32::try_from(state).ok()?).ok()?;
            Some((state, u32::from(*number)))
        })
    }

    fn sum(&self, wanted: impl Fn(TargetState) -> bool) -> u32 {
        self.iter().filter(|(state, _)| wanted(*state)).map(|(_, number)| number).sum()
    }
}

/// What is kept of a batch.
#[derive(Clone, Debug)]
pub struct BatchView {
    /// Its wave.
    pub wave: u32,
    /// Its targets, superseded ones left out.
    pub counts: Counts,
    /// Verified ones by grade: handshake or better, weaker.
    pub probed: u16,
    /// Its result is on record.
    pub finished: bool,
    /// Its host was away when it was ordered.
    pub straggling: bool,
    /// What the agent says of single targets meanwhile; for display only.
    pub live: BTreeMap<Box<str>, TargetState>,
}

impl BatchView {
    /// Targets by state: what the agent says of those it has spoken of, the record of the others.
    pub fn shown(&self) -> Counts {
        // In an unfinished batch the record has all of them in one state.
        let recorded = self.counts.iter().map(|(state, _)| state).find(|state| !target::is_end(*state));
        let mut shown = self.counts;
        for state in self.live.values() {
            if let Some(recorded) = recorded.filter(|recorded| shown.of(*recorded) > 0) {
                shown.0[recorded as usize] -= 1;
                shown.add(*state);
            }
        }
        shown
    }

    /// Summarises a record.
    pub(super) fn of(record: &Batch) -> Self {
        let mut counts = Counts::default();
        let mut probed = 0;
        for target in record.targets.iter().filter(|target| !target.superseded) {
            counts.add(target.state());
            if target.state() == TargetState::Verified && target.grade() as i32 >= Grade::Probe as i32 {
                probed += 1;
            }
        }
        let finished = record.finished_at != 0;
        Self {
            wave: record.wave,
            counts,
            probed,
            finished,
            straggling: !finished && counts.of(TargetState::Straggler) > 0,
            live: BTreeMap::new(),
        }
    }
}

/// What is kept of a rotation.
#[derive(Clone, Debug)]
pub struct RotationView {
    /// Its state.
    pub state: rotation::State,
    /// Waves ordered so far.
    pub wave: u32,
    /// Its record's revision.
    pub revision: u64,
    /// The record; small.
    pub record: Rotation,
    /// Its batches, by host and name.
    pub batches: BTreeMap<(Arc<str>, Box<str>), BatchView>,
}

impl RotationView {
    /// Takes a record; keeps the batches.
    pub(super) fn take_record(&mut self, record: Rotation, revision: u64) {
        self.state = record.state();
        self.wave = record.wave;
        self.revision = revision;
        self.record = record;
    }

    /// What the domain asks about.
    pub fn progress(&self) -> Progress {
        let mut progress = Progress {
            waves: u32::try_from(self.record.waves.len()).unwrap_or(u32::MAX),
            wave: self.wave,
            accepted: self.record.failures_accepted,
            ..Progress::default()
        };
        for batch in self.batches.values().filter(|batch| batch.wave <= self.wave) {
            let failed = batch.counts.sum(target::is_failure);
            let all = batch.counts.sum(|_| true);
            progress.failed += failed;
            progress.unserved += batch.counts.of(TargetState::Unserved);
            progress.verified += batch.counts.of(TargetState::Verified);
            if batch.straggling {
                progress.stragglers += all;
            } else {
                progress.attempted += all;
                if !batch.finished {
                    progress.working += all;
                }
            }
        }
        progress
    }

    /// Targets by state as a person wants to see them: an unfinished batch shows
    /// what its agent last said, an ordered one at least `Ordered`.
    pub fn counts(&self) -> BTreeMap<u32, u32> {
        let mut sums = BTreeMap::new();
        for batch in self.batches.values() {
            for (state, number) in batch.shown().iter() {
                let ordered = batch.wave <= self.wave && !rotation::is_end(self.state);
                let state =
                    if state == TargetState::Pending && ordered { TargetState::Ordered } else { state };
                *sums.entry(state as u32).or_insert(0) += number;
            }
        }
        sums
    }
}
