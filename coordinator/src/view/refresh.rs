//! How the projection follows the store.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::batches::{BatchView, RotationView};
use super::hosts::OpenBatch;
use super::{State, View, rotation_number};
use crate::issuance::builtin::issuer_key;
use crate::store::outline::{BatchOutline, InventoryOutline};
use crate::store::record::{Authority, Host, Outcome, Rotation};
use crate::store::{Hint, Store, StoreError, Watch, keys};

/// Beyond this many changed keys in one go, more are collected before the next.
const BUSY: usize = 64;
/// How long they are collected.
const COLLECT: Duration = Duration::from_millis(20);

impl View {
    /// Follows the store until it closes. `forget` is called when policies,
    /// authorities or rotations changed.
    pub async fn follow(&self, store: Store, mut watch: Watch, forget: impl Fn() + Send) {
        while let Some(first) = watch.next().await {
            let mut hints = vec![first];
            while let Some(more) = watch.ready() {
                hints.push(more);
            }
            let mut written: Vec<Arc<str>> = Vec::with_capacity(hints.len());
            let (mut resync, mut newest) = (false, 0);
            for hint in hints {
                match hint {
                    Hint::Key { key, revision } => {
                        newest = newest.max(revision);
                        written.push(key);
                    }
                    Hint::Resync => resync = true,
                }
            }
            // Hosts before their inventories, which belong to nobody else; inventories before
            // batches: what a result has changed on its host is seen before its end.
            let rank = |key: &str| (!key.starts_with(keys::HOSTS), !key.starts_with(keys::INVENTORIES));
            written.sort_by_key(|key| (rank(key), key.clone()));
            written.dedup();
            let busy = written.len() > BUSY;
            let result = if resync {
                forget();
                self.load(&store).await
            } else {
                self.refresh(&store, &written, &forget).await
            };
            let mut failed = result;
            while let Err(error) = failed {
                tracing::error!(%error, "cannot follow the store; reading it again");
                tokio::time::sleep(Duration::from_secs(1)).await;
                failed = self.load(&store).await;
            }
            self.write(|state| state.seen = state.seen.max(newest));
            self.bump();
            if busy {
                tokio::time::sleep(COLLECT).await;
            }
        }
    }

    async fn refresh(
        &self,
        store: &Store,
        changed: &[Arc<str>],
        forget: impl Fn(),
    ) -> Result<(), StoreError> {
        let mut last_inventory: Option<&str> = None;
        let mut batches = Vec::new();
        let mut again = BTreeSet::new();
        for key in changed {
            let is_batch = keys::host_and_batch(key).is_some();
            if !is_batch {
                again.extend(self.put_batches(std::mem::take(&mut batches)));
            }
            if is_batch {
                let record = store.get::<BatchOutline>(key).await?.map(|batch| batch.value);
                batches.push((key, record));
            } else if key.starts_with(keys::ROTATION) {
                forget();
                let record =
                    store.get::<Rotation>(key).await?.map(|rotation| (rotation.value, rotation.revision));
                let woken = self.write(|state| {
                    let woken = take_rotation(state, key, record);
                    self.put_moved(changed_since_chosen(state, key));
                    woken
                });
                self.wake(woken);
            } else if key.starts_with(keys::OUTCOMES) {
                let number = rotation_number(key.trim_start_matches(keys::OUTCOMES)).unwrap_or_default();
                let record = store.get::<Outcome>(key).await?.map(|outcome| outcome.value);
                self.write(|state| {
                    if let Some(rotation) = state.rotations.get_mut(&number) {
                        rotation.compare_outcome(record.as_ref());
                    }
                });
            } else if key.starts_with(keys::HOSTS) {
                let record = store.get::<Host>(key).await?.map(|host| host.value);
                let name: Arc<str> = Arc::from(key.trim_start_matches(keys::HOSTS));
                self.write(|state| match &record {
                    Some(record) => state.hosts.entry(name.clone()).or_default().take_record(Some(record)),
                    // Its open batches stay open: the host may come back under its name.
                    None => {
                        if let Some(host) = state.hosts.get_mut(&name) {
                            host.take_record(None);
                        }
                    }
                });
                self.wake([name]);
            } else if key.starts_with(keys::INVENTORIES) {
                let host = keys::host_of_inventory(key);
                let Some(name) = host.filter(|name| last_inventory != Some(*name)) else { continue };
                last_inventory = Some(name);
                let (revision, chunks) = inventory(store, name).await?;
                let name: Arc<str> = Arc::from(name);
                // Under the same lock: whoever sees the one sees the other.
                self.write(|state| {
                    if let Some(host) = state.hosts.get_mut(&name) {
                        host.take_inventory(&name, revision, &chunks);
                    }
                    self.put_moved([name.clone()]);
                });
            } else if key.starts_with(keys::AUTHORITIES) {
                forget();
                let record = store.get::<Authority>(key).await?.map(|authority| authority.value);
                self.write(|state| take_authority(state, key, record.as_ref()));
            } else if key.starts_with(keys::POLICIES) {
                forget();
            }
        }
        again.extend(self.put_batches(batches));
        for number in again {
            self.read_again(store, number).await?;
        }
        Ok(())
    }

    /// All at once: a batch that takes over from another is never seen without it. Gives
    /// rotations to read again: one of their settled batches has changed.
    fn put_batches(&self, batches: Vec<(&Arc<str>, Option<BatchOutline>)>) -> BTreeSet<u64> {
        let mut again = BTreeSet::new();
        if !batches.is_empty() {
            let woken: Vec<Arc<str>> = self.write(|state| {
                let put = batches.iter().filter_map(|(key, record)| {
                    if let Some(number) = settled(state, key) {
                        again.insert(number);
                        return None;
                    }
                    take_batch(state, key, record.as_ref())
                });
                put.collect()
            });
            self.wake(woken);
        }
        again
    }

    pub(super) fn write<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.0.state.write().unwrap_or_else(PoisonError::into_inner))
    }

    fn wake(&self, hosts: impl IntoIterator<Item = Arc<str>>) {
        let mut wakes = self.0.wakes.lock().unwrap_or_else(PoisonError::into_inner);
        let before = wakes.len();
        wakes.extend(hosts);
        if wakes.len() > before {
            self.0.woken.notify_one();
        }
    }
}

/// Every chunk of a host's inventory, and the newest revision among them.
pub(super) async fn inventory(store: &Store, host: &str) -> Result<(u64, Vec<InventoryOutline>), StoreError> {
    let chunks = store.range::<InventoryOutline>(&keys::inventory_of(host)).await?;
    let newest = chunks.iter().map(|(_, chunk)| chunk.revision).max().unwrap_or_default();
    Ok((newest, chunks.into_iter().map(|(_, chunk)| chunk.value).collect()))
}

pub(super) fn take_authority(state: &mut State, key: &str, record: Option<&Authority>) {
    let name = key.trim_start_matches(keys::AUTHORITIES);
    match record.map(|record| issuer_key(&record.certificate)) {
        Some(Ok(issuer)) => drop(state.authorities.insert(name.to_owned(), issuer)),
        // No certificate yet, or none any more.
        Some(Err(_)) | None => drop(state.authorities.remove(name)),
    }
}

/// Gives the hosts that have something new to look at.
pub(super) fn take_rotation(state: &mut State, key: &str, record: Option<(Rotation, u64)>) -> Vec<Arc<str>> {
    let Some(number) = rotation_number(key.trim_start_matches(keys::ROTATION)) else {
        return Vec::new();
    };
    let Some((record, revision)) = record else {
        state.rotations.remove(&number);
        return Vec::new();
    };
    let rotation = state.rotations.entry(number).or_insert_with(RotationView::unrevealed);
    let moved = record.reach() != rotation.reach || record.state() != rotation.record.state();
    rotation.take_record(record, revision);
    settle(state, number);
    let Some(rotation) = state.rotations.get(&number).filter(|_| moved) else {
        return Vec::new();
    };
    let reach = rotation.reach;
    let open = rotation.batches.iter().filter(|(_, batch)| !batch.finished && batch.place <= reach);
    open.map(|((host, _), _)| host.clone()).collect()
}

/// Lets go of the batches of a rotation that has ended.
pub(super) fn settle(state: &mut State, number: u64) {
    let dropped = state.rotations.get_mut(&number).map(RotationView::settle).unwrap_or_default();
    for (host, batch) in dropped {
        if let Some(host) = state.hosts.get_mut(&host) {
            host.open.retain(|open| open.batch != batch);
        }
    }
}

/// The rotation of a batch that is in memory no more.
fn settled(state: &State, key: &str) -> Option<u64> {
    let (host, batch) = keys::host_and_batch(key)?;
    let number = rotation_number(keys::rotation_of(batch)?)?;
    state.rotations.get(&number)?.has_settled(host, batch).then_some(number)
}

/// Hosts whose inventory changed between the choosing of a rotation's targets and
/// now: the engine may have looked at them before there was a rotation to see. And
/// those with other open work: its certificates are in no inventory yet.
fn changed_since_chosen(state: &State, key: &str) -> Vec<Arc<str>> {
    let number = rotation_number(key.trim_start_matches(keys::ROTATION)).unwrap_or_default();
    let Some(rotation) = state.rotations.get(&number).filter(|rotation| rotation.record.wave <= 1) else {
        return Vec::new();
    };
    let since = rotation.record.chosen_at_revision;
    let changed =
        state.hosts.iter().filter(|(_, host)| host.inventory_revision > since || host.has_other_work(number));
    changed.map(|(name, _)| name.clone()).collect()
}

pub(super) fn take_batch(state: &mut State, key: &str, record: Option<&BatchOutline>) -> Option<Arc<str>> {
    let (name, batch) = keys::host_and_batch(key)?;
    let rotation = keys::rotation_of(batch).and_then(rotation_number);
    let name: Arc<str> =
        state.hosts.get_key_value(name).map_or_else(|| Arc::from(name), |(name, _)| name.clone());
    let host = state.hosts.entry(name.clone()).or_default();
    let was_open = host.open.iter().position(|open| &*open.batch == batch);
    let Some(record) = record else {
        if let Some(at) = was_open {
            host.open.remove(at);
        }
        if let Some(number) = rotation
            && let Some(view) = state.rotations.get_mut(&number)
        {
            view.remove(name.clone(), batch);
            // Of a rotation that never began nothing is left then.
            if view.revision == 0 && view.batches.is_empty() {
                state.rotations.remove(&number);
            }
        }
        return None;
    };
    let finished = record.finished_at != 0;
    if finished {
        host.last_finished = host.last_finished.max(record.finished_at);
    }
    match (was_open, finished) {
        (None, false) => {
            host.open.push(OpenBatch { batch: batch.into(), rotation, place: record.place });
            host.open.sort_by(|a, b| a.batch.cmp(&b.batch));
        }
        (Some(at), true) => drop(host.open.remove(at)),
        (Some(_), false) | (None, true) => {}
    }
    match rotation {
        Some(number) => {
            let rotation = state.rotations.entry(number).or_insert_with(RotationView::unrevealed);
            rotation.put(name.clone(), batch, BatchView::of(record));
            settle(state, number);
        }
        // Whether it failed, and how long to wait then, is looked up when something is due.
        None if finished => host.renewals_after = 0,
        None => {}
    }
    (was_open.is_none() && !finished).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Commit;
    use crate::store::record::Inventory;
    use crate::store::simulated::{Disk, Simulated};
    use reseal_proto::v1::Installation;

    /// A host may report before anybody has looked at its enrolment.
    #[tokio::test]
    async fn a_host_and_its_first_inventory_come_together() {
        let store = Store::over(Arc::new(Simulated::open(&Disk::default(), "c1"))).expect("new");
        let view = View::default();
        let watch = store.watch();
        let inventory = Inventory {
            installations: vec![Installation { id: "/a".into(), ..Installation::default() }],
            ..Inventory::default()
        };
        let commit = Commit::new()
            .put(keys::inventory("web-1", 0), &inventory)
            .put(keys::host("web-1"), &Host::default());
        let revision = store.commit(commit).await.expect("unguarded");
        let following = {
            let (view, store) = (view.clone(), store.clone());
            tokio::spawn(async move { view.follow(store, watch, || ()).await })
        };
        assert!(view.catches_up(revision).await);
        assert_eq!(view.read().hosts["web-1"].installations, 1);
        following.abort();
    }
}
