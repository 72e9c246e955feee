//! Gives up on results that never come.
//!
//! A batch whose host is connected and has said nothing for a quarter of an hour
//! is failed, with a reason: a gate must not wait for ever, and a renewal must
//! be tried again. What the agent installed after all is in its inventory.

use reseal_proto::v1::{Failure, TargetState};

use super::Turn;
use crate::domain::rotation;
use crate::domain::target::{self, Event};
use crate::metrics::ends;
use crate::store::record::Batch;
use crate::store::{Commit, StoreError, keys};

/// Seconds.
const PATIENCE: i64 = 900;

/// Fails overdue batches.
pub(super) async fn fail(turn: &Turn<'_>) -> Result<(), StoreError> {
    for (host, batch) in overdue(turn) {
        let key = keys::batch(&host, &batch);
        let Some(mut record) = turn.engine.store.get::<Batch>(&key).await? else { continue };
        if record.value.finished_at != 0 || !turn.has_passed(PATIENCE, record.value.created_at) {
            continue;
        }
        let before = ends(&record.value);
        for target in &mut record.value.targets {
            if let Ok(state) = target::apply(target.state(), Event::Report(TargetState::Failed)) {
                target.set_state(state);
                target.failure = Some(Failure {
                    code: "no-result".into(),
                    reason: format!(
                        "the agent of host {host} is connected and has sent no result for {} minutes; look at its log, then retry",
                        PATIENCE / 60
                    ),
                    ..Failure::default()
                });
            }
        }
        record.value.finished_at = turn.now;
        tracing::warn!(%host, %batch, "no result in time: failed");
        let mut commit = Commit::new().lease(turn.lease).at(&key, record.revision).put(&key, &record.value);
        if keys::rotation_of(&batch).is_none() {
            commit = commit.delete(keys::renewing(&host));
        }
        if turn.commit_unless_moved(commit).await? {
            turn.engine.metrics.finished(&before, &record.value);
        }
    }
    Ok(())
}

/// Ordered, unfinished batches of hosts that have been connected all the time.
fn overdue(turn: &Turn<'_>) -> Vec<(String, String)> {
    let state = turn.engine.view.read();
    let mut found = Vec::new();
    for (name, host) in &state.hosts {
        if host.open.is_empty() {
            continue;
        }
        let Some(connected) = turn.engine.presence.show(name) else { continue };
        // An agent works on one batch after the other: only the first one is waited for.
        let ordered = host.open.iter().find_map(|open| {
            match open.rotation.map(|number| state.rotations.get(&number)) {
                None => Some((open, 0)),
                Some(Some(rotation))
                    if rotation::accepts_work(rotation.state) && open.place <= rotation.reach =>
                {
                    Some((open, rotation.record.wave_at))
                }
                Some(_) => None,
            }
        });
        if let Some((open, ordered_at)) = ordered
            && [ordered_at, connected.since, host.last_finished]
                .iter()
                .all(|since| turn.has_passed(PATIENCE, *since))
        {
            found.push((name.to_string(), open.batch.to_string()));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::engine::{Engine, LEASE};
    use crate::metrics::Metrics;
    use crate::store::record::{Host, HostState, OpenBatch, Target};
    use crate::store::simulated::{Disk, Simulated};
    use crate::store::{Presence, Store};
    use crate::view::View;

    /// The failure of an open batch, `since` seconds after it was made.
    async fn after(since: i64, connected: bool) -> Option<Failure> {
        let store = Store::over(Arc::new(Simulated::open(&Disk::default(), "c1"))).unwrap();
        let key = keys::batch("h1", "n1-1");
        let state = TargetState::Pending.into();
        let target = Target { installation: "/a".into(), state, ..Target::default() };
        let batch = Batch { targets: vec![target], created_at: 1_000, ..Batch::default() };
        let host = Host { state: HostState::Enrolled.into(), ..Host::default() };
        let open = OpenBatch { host: "h1".into(), batch: "n1-1".into() };
        let commit = Commit::new().put(keys::host("h1"), &host).put(&key, &batch);
        store.commit(commit.put(keys::renewing("h1"), &open)).await.unwrap();
        let view = View::default();
        view.load(&store).await.unwrap();
        let presence = Presence::new(1);
        if connected {
            presence.connect("h1", "1.0", 0, 1_000).unwrap();
        }
        let lease = store.lease(keys::ENGINE_LEASE, "c1", LEASE).await.unwrap().unwrap();
        let engine = Engine {
            store,
            view,
            presence,
            metrics: Metrics::default(),
            now: || 0,
            name: "c1".into(),
            started_at: 0,
        };
        fail(&Turn { engine: &engine, lease: &lease, now: 1_000 + since, settled: 0 }).await.unwrap();
        let batch = engine.store.get::<Batch>(&key).await.unwrap().unwrap().value;
        let failure = batch.targets[0].failure.clone();
        assert_eq!(batch.finished_at != 0, failure.is_some());
        let open = engine.store.get::<OpenBatch>(&keys::renewing("h1")).await.unwrap();
        assert_eq!(open.is_none(), failure.is_some(), "the next one may be ordered");
        assert_eq!(batch.targets[0].state() == TargetState::Failed, failure.is_some());
        failure
    }

    #[tokio::test]
    async fn a_connected_host_has_a_quarter_of_an_hour() {
        assert_eq!(after(15 * 60 - 1, true).await, None);
        let failure = after(15 * 60, true).await.expect("it is given up");
        assert_eq!(failure.code, "no-result");
        assert!(failure.reason.contains("host h1") && failure.reason.contains("15 minutes"), "{failure:?}");
        assert_eq!(after(15 * 60, false).await, None, "a host that is away is waited for");
    }
}
