//! What the batches of a rotation add up to; of one that has ended that is all that is kept.
//!
//! While a rotation is open each of its batches has its numbers in memory. When
//! it has ended, those that nobody works on any more are put together, and the
//! engine puts the sum on record: the next start reads that one record instead of
//! them. The batches stay the truth. When one of them changes all the same (a
//! proof that came late), its rotation is read again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use reseal_proto::v1::TargetState;

use super::batches::{BatchView, RotationView, Sums};
use crate::domain::{rotation, target};
use crate::store::record::{OpenBatch, Outcome, OutcomeWave};

/// Open batches that an outcome names. With more of them it is not put on record, and
/// the rotation's batches are read at each start, until results have come.
const NAMED: usize = 400;

/// Host and name of a batch.
pub(super) type BatchKey = (Arc<str>, Box<str>);

impl RotationView {
    /// Targets by state and wave, hosts and proofs, as a person wants to see them: an
    /// unfinished batch shows what its agent last said, an ordered one at least `Ordered`.
    pub fn shown(&self) -> Outcome {
        let mut sum = self
            .settled
            .clone()
            .unwrap_or_else(|| Outcome { hosts: hosts(&self.batches), ..Outcome::default() });
        for batch in self.batches.values() {
            let ordered = batch.place <= self.reach && !rotation::is_end(self.state);
            let states = batch.shown();
            let states = states.iter().map(|(state, number)| match state {
                TargetState::Pending if ordered => (TargetState::Ordered, number),
                state => (state, number),
            });
            add(&mut sum, &self.record.waves, batch, states);
        }
        sum
    }

    /// What is to be put on record of one that has ended; `None` when it is there, or
    /// too many of its batches are open.
    pub fn outcome_due(&self) -> Option<Outcome> {
        self.outcome_due.then(|| self.outcome()).flatten()
    }

    fn outcome(&self) -> Option<Outcome> {
        let settled = self.settled.as_ref().filter(|_| self.batches.len() <= NAMED)?;
        let name = |(host, batch): &BatchKey| OpenBatch { host: host.to_string(), batch: batch.to_string() };
        Some(Outcome { open: self.batches.keys().map(name).collect(), ..settled.clone() })
    }

    /// Takes the outcome that is on record; its open batches are to be put then.
    pub(super) fn take_outcome(&mut self, mut outcome: Outcome) {
        outcome.open.clear();
        self.settled = Some(outcome);
        self.ordered = Sums::default();
    }

    /// Is the outcome on record what is known here?
    pub(super) fn compare_outcome(&mut self, recorded: Option<&Outcome>) {
        let known = self.outcome();
        self.outcome_due = known.is_some() && known.as_ref() != recorded;
    }

    /// It has ended, and this batch is among those that were put together.
    pub(super) fn has_settled(&self, host: &str, batch: &str) -> bool {
        self.settled.is_some() && !self.batches.contains_key(&(Arc::from(host), Box::from(batch)))
    }

    /// Puts together what nobody works on any more, once it has ended and all of it is
    /// known. Gives the unfinished ones among them: they were never ordered.
    pub(super) fn settle(&mut self) -> Vec<BatchKey> {
        let known = self.settled.is_some() || self.batches.len() >= self.record.batches as usize;
        if self.revision == 0 || !rotation::is_end(self.state) || !known {
            return Vec::new();
        }
        let mut settled = self.settled.take().unwrap_or_else(|| {
            self.outcome_due = true;
            Outcome { hosts: hosts(&self.batches), ..Outcome::default() }
        });
        let mut dropped = Vec::new();
        let reach = self.reach;
        self.batches.retain(|key, batch| {
            if !batch.finished && batch.place <= reach {
                return true;
            }
            add(&mut settled, &self.record.waves, batch, batch.counts.iter());
            self.outcome_due = true;
            if !batch.finished {
                dropped.push(key.clone());
            }
            false
        });
        self.settled = Some(settled);
        self.ordered = Sums::default();
        dropped
    }
}

fn hosts(batches: &BTreeMap<BatchKey, BatchView>) -> u32 {
    let hosts: BTreeSet<&Arc<str>> = batches.keys().map(|(host, _)| host).collect();
    u32::try_from(hosts.len()).unwrap_or(u32::MAX)
}

/// Adds a batch; `waves`: hosts up to and including each wave.
fn add(
    sum: &mut Outcome,
    waves: &[u32],
    batch: &BatchView,
    states: impl Iterator<Item = (TargetState, u32)>,
) {
    let wave = waves.iter().take_while(|upto| **upto < batch.place).count();
    if sum.waves.len() <= wave {
        sum.waves.resize(wave + 1, OutcomeWave::default());
    }
    for (state, number) in states {
        *sum.targets.entry(state as u32).or_default() += number;
        let wave = &mut sum.waves[wave];
        wave.targets += number;
        if target::is_end(state) {
            wave.done += number;
        }
        if target::is_failure(state) {
            wave.failed += number;
        }
    }
    sum.probed += u32::from(batch.probed);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::record::{Batch, Counter, Host, HostState, Rotation, Target};
    use crate::store::simulated::{Disk, Simulated};
    use crate::store::{Commit, Store, keys};
    use crate::view::View;

    fn batch(place: u32, state: TargetState) -> Batch {
        let target = Target { installation: "/a".into(), state: state.into(), ..Target::default() };
        let finished_at = if target::is_end(state) { 50 } else { 0 };
        Batch { rotation: "r1".into(), place, targets: vec![target], finished_at, ..Batch::default() }
    }

    /// A rotation over four hosts that was aborted in its second wave, at three hosts.
    async fn aborted() -> Store {
        let store = Store::over(Arc::new(Simulated::open(&Disk::default(), "c1"))).expect("new");
        let rotation = Rotation {
            state: rotation::State::Aborted.into(),
            waves: vec![1, 3, 4],
            wave: 2,
            batches: 4,
            ..Rotation::default()
        };
        let mut commit =
            Commit::new().put(keys::ROTATIONS, &Counter { value: 1 }).put(keys::rotation("r1"), &rotation);
        let states =
            [TargetState::Verified, TargetState::Unserved, TargetState::Pending, TargetState::Pending];
        for (place, state) in (1..).zip(states) {
            let (name, host) =
                (format!("h{place}"), Host { state: HostState::Enrolled.into(), ..Host::default() });
            commit =
                commit.put(keys::batch(&name, "r1.0-1"), &batch(place, state)).put(keys::host(&name), &host);
        }
        store.commit(commit).await.expect("unguarded");
        store
    }

    async fn loaded(store: &Store) -> View {
        let view = View::default();
        view.load(store).await.expect("readable");
        view
    }

    fn shown(view: &View) -> Outcome {
        view.read().rotations[&1].shown()
    }

    async fn put(store: &Store, host: &str, batch: &Batch) {
        let commit = Commit::new().put(keys::batch(host, "r1.0-1"), batch);
        store.commit(commit).await.expect("unguarded");
    }

    #[tokio::test]
    async fn one_record_stands_for_the_batches_of_an_ended_rotation() {
        let store = aborted().await;
        let whole = loaded(&store).await;
        let sum = shown(&whole);
        assert_eq!(sum.hosts, 4);
        assert_eq!(sum.targets[&(TargetState::Pending as u32)], 2, "{sum:?}");
        let wave = |targets, done| OutcomeWave { targets, done, failed: 0 };
        assert_eq!(sum.waves, [wave(1, 1), wave(2, 1), wave(1, 0)]);
        // Only of the one that is at work may something still be heard.
        let open = |view: &View, host: &str| view.read().hosts[host].open.len();
        assert_eq!((open(&whole, "h2"), open(&whole, "h3"), open(&whole, "h4")), (0, 1, 0));
        let outcome = whole.read().rotations[&1].outcome_due().expect("not on record yet");
        let named = OpenBatch { host: "h3".into(), batch: "r1.0-1".into() };
        assert_eq!(outcome.open, [named]);

        store.commit(Commit::new().put(keys::outcome("r1"), &outcome)).await.expect("unguarded");
        // Nobody looks at those that have settled.
        let gone = Commit::new().delete(keys::batch("h1", "r1.0-1")).delete(keys::batch("h4", "r1.0-1"));
        store.commit(gone).await.expect("unguarded");
        let again = loaded(&store).await;
        assert_eq!(shown(&again), sum);
        assert_eq!(again.read().rotations[&1].outcome_due(), None);
        assert_eq!((open(&again, "h2"), open(&again, "h3"), open(&again, "h4")), (0, 1, 0));
        // It came to its end while nobody looked.
        put(&store, "h3", &batch(3, TargetState::Verified)).await;
        let late = loaded(&store).await;
        assert_eq!(shown(&late).targets[&(TargetState::Verified as u32)], 2);
        let outcome = late.read().rotations[&1].outcome_due().expect("another one");
        assert!(outcome.open.is_empty() && outcome.hosts == 4, "{outcome:?}");
    }

    #[tokio::test]
    async fn what_changes_after_the_end_is_seen() {
        let store = aborted().await;
        let watch = store.watch();
        let view = loaded(&store).await;
        let following = {
            let (view, store) = (view.clone(), store.clone());
            tokio::spawn(async move { view.follow(store, watch, || ()).await })
        };
        let mut changed = view.changed();
        // One that was at work, and one that was settled.
        for (host, place, verified) in [("h3", 3, 2), ("h2", 2, 3)] {
            put(&store, host, &batch(place, TargetState::Verified)).await;
            let seen = async {
                while shown(&view).targets[&(TargetState::Verified as u32)] != verified {
                    changed.changed().await;
                }
            };
            tokio::time::timeout(std::time::Duration::from_secs(10), seen).await.expect(host);
            assert_eq!(
                format!("{:?}", view.read().rotations),
                format!("{:?}", loaded(&store).await.read().rotations)
            );
        }
        let outcome = view.read().rotations[&1].outcome_due().expect("not on record yet");
        assert_eq!(outcome.waves[1], OutcomeWave { targets: 2, done: 2, failed: 0 });
        following.abort();
    }

    #[tokio::test]
    async fn with_too_many_open_batches_it_is_read_whole() {
        let mut view = RotationView::unrevealed();
        let record = Rotation {
            state: rotation::State::Aborted.into(),
            waves: vec![1],
            wave: 1,
            ..Rotation::default()
        };
        view.take_record(record, 1);
        let open = BatchView { place: 1, ..BatchView::of(&Default::default()) };
        for host in 0..=NAMED {
            view.put(format!("h{host}").into(), "r1.0-1", open.clone());
        }
        view.settle();
        assert_eq!((view.outcome_due(), view.batches.len()), (None, NAMED + 1));
        view.put("h0".into(), "r1.0-1", BatchView { finished: true, ..open });
        view.settle();
        assert_eq!(view.outcome_due().map(|outcome| outcome.open.len()), Some(NAMED));
    }
}
