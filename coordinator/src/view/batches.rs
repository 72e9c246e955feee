//! Rotations and their batches in the projection: counts, not targets.

use std::collections::BTreeMap;
use std::sync::Arc;

use reseal_proto::v1::{Grade, TargetState};

use crate::domain::rotation::{self, Progress};
use crate::domain::target;
use crate::store::outline::BatchOutline;
use crate::store::record::{Outcome, Rotation};

/// Targets by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts([u16; 14]);

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
    /// Its host's place in the rotation's order.
    pub place: u32,
    /// Its targets, superseded ones left out.
    pub counts: Counts,
    /// Verified ones by grade: handshake or better, weaker.
    pub probed: u16,
    /// Unserved ones that were renewed since: they cannot be proved any more.
    pub overtaken: u16,
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
    pub fn of(record: &BatchOutline) -> Self {
        let mut counts = Counts::default();
        let (mut probed, mut overtaken) = (0, 0);
        for target in record.targets.iter().filter(|target| !target.superseded) {
            counts.add(target.state());
            if target.state() == TargetState::Verified && target.grade() as i32 >= Grade::Probe as i32 {
                probed += 1;
            }
            if target.state() == TargetState::Unserved && target.overtaken {
                overtaken += 1;
            }
        }
        let finished = record.finished_at != 0;
        Self {
            place: record.place,
            counts,
            probed,
            overtaken,
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
    /// Hosts ordered so far.
    pub reach: u32,
    /// Its record's revision.
    pub revision: u64,
    /// The record; small.
    pub record: Rotation,
    /// Its batches, by host and name; changed by [`RotationView::put`] and [`RotationView::remove`].
    /// Of one that has ended only those that a result may still come for.
    pub batches: BTreeMap<(Arc<str>, Box<str>), BatchView>,
    /// What the other batches of one that has ended add up to.
    pub(super) settled: Option<Outcome>,
    /// The outcome on record is not what is known here.
    pub(super) outcome_due: bool,
    /// What the batches that are ordered add up to.
    pub(super) ordered: Sums,
}

/// Targets of the batches that are ordered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sums {
    attempted: u32,
    working: u32,
    stragglers: u32,
    failed: u32,
    unserved: u32,
    overtaken: u32,
    excluded: u32,
    verified: u32,
}

impl Sums {
    fn of(batch: &BatchView) -> Self {
        let excluded = batch.counts.of(TargetState::Excluded);
        let all = batch.counts.sum(|_| true) - excluded;
        let if_so = |so: bool| if so { all } else { 0 };
        Self {
            attempted: if_so(!batch.straggling),
            working: if_so(!batch.straggling && !batch.finished),
            stragglers: if_so(batch.straggling),
            failed: batch.counts.sum(target::is_failure),
            unserved: batch.counts.of(TargetState::Unserved),
            overtaken: u32::from(batch.overtaken),
            excluded,
            verified: batch.counts.of(TargetState::Verified),
        }
    }

    fn each(&mut self, other: Self, change: impl Fn(u32, u32) -> u32) {
        self.attempted = change(self.attempted, other.attempted);
        self.working = change(self.working, other.working);
        self.stragglers = change(self.stragglers, other.stragglers);
        self.failed = change(self.failed, other.failed);
        self.unserved = change(self.unserved, other.unserved);
        self.overtaken = change(self.overtaken, other.overtaken);
        self.excluded = change(self.excluded, other.excluded);
        self.verified = change(self.verified, other.verified);
    }
}

impl RotationView {
    /// A rotation whose record was not seen yet.
    pub(crate) fn unrevealed() -> Self {
        Self {
            state: rotation::State::Draft,
            reach: 0,
            revision: 0,
            record: Rotation::default(),
            batches: BTreeMap::new(),
            settled: None,
            outcome_due: false,
            ordered: Sums::default(),
        }
    }

    /// Is it on record, and not at an end?
    pub fn is_open(&self) -> bool {
        self.revision != 0 && !rotation::is_end(self.state)
    }

    /// Takes a record; keeps the batches.
    pub(super) fn take_record(&mut self, record: Rotation, revision: u64) {
        self.state = record.state();
        if self.reach != record.reach() {
            self.reach = record.reach();
            self.ordered = Sums::default();
            for batch in self.batches.values().filter(|batch| batch.place <= self.reach) {
                self.ordered.each(Sums::of(batch), u32::saturating_add);
            }
        }
        self.revision = revision;
        self.record = record;
    }

    /// Takes a batch as it is now; what its agent said of an unfinished one is kept.
    pub(super) fn put(&mut self, host: Arc<str>, name: &str, mut batch: BatchView) {
        let key = (host, Box::from(name));
        if let Some(old) = self.batches.get_mut(&key) {
            if !batch.finished {
                batch.live = std::mem::take(&mut old.live);
            }
            if old.place <= self.reach {
                self.ordered.each(Sums::of(old), u32::saturating_sub);
            }
        }
        if batch.place <= self.reach {
            self.ordered.each(Sums::of(&batch), u32::saturating_add);
        }
        self.batches.insert(key, batch);
    }

    /// Forgets a batch that is on record no more.
    pub(super) fn remove(&mut self, host: Arc<str>, name: &str) {
        if let Some(old) = self.batches.remove(&(host, Box::from(name)))
            && old.place <= self.reach
        {
            self.ordered.each(Sums::of(&old), u32::saturating_sub);
        }
    }

    /// Its batches on one host, by name.
    pub fn batches_of<'a>(&'a self, host: &'a str) -> impl Iterator<Item = (&'a str, &'a BatchView)> {
        let from = (Arc::from(host), Box::from(""));
        let batches = self.batches.range(from..).take_while(move |((name, _), _)| **name == *host);
        batches.map(|((_, batch), view)| (&**batch, view))
    }

    /// What the domain asks about.
    pub fn progress(&self) -> Progress {
        let sums = self.ordered;
        Progress {
            waves: u32::try_from(self.record.waves.len()).unwrap_or(u32::MAX),
            wave: self.record.wave,
            accepted: self.record.failures_accepted,
            failed: sums.failed,
            unserved: sums.unserved,
            overtaken: sums.overtaken,
            excluded: sums.excluded,
            verified: sums.verified,
            stragglers: sums.stragglers,
            attempted: sums.attempted,
            working: sums.working,
        }
    }
}
