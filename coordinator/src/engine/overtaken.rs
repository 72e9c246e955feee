//! Notes which unserved targets have been renewed since, by something else.
//!
//! An unserved target is proved when its consumer starts, unless the installation
//! has another certificate by then: nothing can prove the old one any more. Such
//! a target stays unserved, and its rotation does not wait for it.

use super::Turn;
use crate::domain::rotation;
use crate::domain::target::State;
use crate::store::record::Batch;
use crate::store::{Commit, StoreError, Versioned, keys};
use crate::view::RotationView;

/// Looks at one host whose inventory has changed.
pub(super) async fn note(turn: &Turn<'_>, host: &str) -> Result<(), StoreError> {
    let waiting = waiting(turn, host);
    if waiting.is_empty() {
        return Ok(());
    }
    let store = &turn.engine.store;
    let mut batches = Vec::new();
    for rotation in &waiting {
        batches.extend(store.range::<Batch>(&keys::batches_on(host, rotation)).await?);
    }
    let waited_for = batches.len();
    let since = batches.iter().map(|(_, batch)| batch.value.created_at).min().unwrap_or_default();
    for rotation in others(turn, &waiting, since) {
        batches.extend(store.range::<Batch>(&keys::batches_on(host, &rotation)).await?);
    }
    batches.extend(store.range::<Batch>(&keys::renewals_of(host)).await?);
    for (key, batch) in &batches[..waited_for] {
        let mut record = batch.value.clone();
        let mut changed = false;
        for target in record.targets.iter_mut().filter(|target| !target.superseded) {
            if target.state() == State::Unserved
                && !target.overtaken
                && let Some(by) = renewed_by(&target.installation, batch, &batches)
            {
                target.overtaken = true;
                target.overtaken_by = by.to_owned();
                changed = true;
            }
        }
        if changed {
            tracing::info!(host, batch = %key, "unserved targets were renewed before they could be proved");
            let commit = Commit::new().lease(turn.lease).at(key, batch.revision).put(key, &record);
            turn.commit_unless_moved(commit).await?;
        }
    }
    Ok(())
}

/// The name of a later batch that put another certificate into this installation.
fn renewed_by<'a>(
    installation: &str,
    unserved: &Versioned<Batch>,
    batches: &'a [(String, Versioned<Batch>)],
) -> Option<&'a str> {
    // Within one second, by which was written last.
    let order = |batch: &Versioned<Batch>| (batch.value.created_at, batch.revision);
    let (key, _) = batches.iter().find(|(_, later)| {
        order(later) > order(unserved)
            && later.value.finished_at >= unserved.value.finished_at
            && later.value.rotation != unserved.value.rotation
            && later.value.targets.iter().any(|target| {
                target.installation == installation
                    && matches!(target.state(), State::Verified | State::Unserved | State::Held)
            })
    })?;
    key.rsplit('/').next()
}

/// Rotations that wait for an unserved target on this host.
fn waiting(turn: &Turn<'_>, host: &str) -> Vec<String> {
    let state = turn.engine.view.read();
    let waits = |rotation: &RotationView| {
        rotation::accepts_work(rotation.state)
            && rotation
                .batches_of(host)
                .any(|(_, batch)| batch.counts.of(State::Unserved) > u32::from(batch.overtaken))
    };
    let waiting = state.rotations.iter().filter(|(_, rotation)| waits(rotation));
    waiting.map(|(number, _)| format!("r{number}")).collect()
}

/// Other rotations that are open, or have ended since then.
fn others(turn: &Turn<'_>, waiting: &[String], since: i64) -> Vec<String> {
    let state = turn.engine.view.read();
    let open_since = |rotation: &RotationView| {
        rotation.is_open() || (rotation.revision != 0 && rotation.record.ended_at >= since)
    };
    let others = state.rotations.iter().filter(|(_, rotation)| open_since(rotation));
    others.map(|(number, _)| format!("r{number}")).filter(|id| !waiting.contains(id)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::record::Target;

    fn batch(rotation: &str, created_at: i64, finished_at: i64, state: State) -> Batch {
        Batch {
            rotation: rotation.into(),
            created_at,
            finished_at,
            targets: vec![Target { installation: "/a".into(), state: state.into(), ..Target::default() }],
            ..Batch::default()
        }
    }

    #[test]
    fn only_a_later_certificate_overtakes() {
        let unserved = Versioned { revision: 5, value: batch("r1", 100, 110, State::Unserved) };
        let at = |revision, other: Batch, installation: &str| {
            let all = [("renewal/h/n1-1".to_owned(), Versioned { revision, value: other })];
            renewed_by(installation, &unserved, &all).map(str::to_owned)
        };
        let by = |other: Batch, installation: &str| at(1, other, installation);
        let same_second = || batch("", 100, 110, State::Verified);
        assert!(at(6, same_second(), "/a").is_some() && at(4, same_second(), "/a").is_none());
        assert_eq!(by(batch("", 200, 210, State::Verified), "/a").as_deref(), Some("n1-1"));
        assert_eq!(by(batch("r2", 200, 210, State::Unserved), "/a").as_deref(), Some("n1-1"));
        assert_eq!(by(batch("r2", 200, 210, State::RolledBack), "/a"), None, "the old one is back");
        assert_eq!(by(batch("r2", 200, 0, State::Pending), "/a"), None, "not yet");
        assert_eq!(by(batch("r2", 50, 60, State::Verified), "/a"), None, "before");
        assert_eq!(by(batch("r2", 200, 210, State::Verified), "/b"), None, "another installation");
    }
}
