//! How the projection follows the store.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::batches::{BatchView, RotationView};
use super::hosts::OpenBatch;
use super::{State, View, rotation_number};
use crate::domain::{renewal, target};
use crate::issuance::builtin::issuer_key;
use crate::store::outline::{BatchOutline, InventoryOutline};
use crate::store::record::{Authority, Counter, Host, Rotation};
use crate::store::{Hint, Store, StoreError, Watch, keys};

/// Beyond this many changed keys in one go, more are collected before the next.
const BUSY: usize = 64;
/// How long they are collected.
const COLLECT: Duration = Duration::from_millis(20);

impl View {
    /// Reads the whole store; call before [`View::follow`], with a watch taken before.
    pub async fn load(&self, store: &Store) -> Result<(), StoreError> {
        let mut state = State::default();
        let mut seen = store.get::<Counter>(keys::ROTATIONS).await?.map_or(0, |last| last.revision);
        for (key, authority) in store.range::<Authority>(keys::AUTHORITIES).await? {
            take_authority(&mut state, &key, Some(&authority.value));
        }
        for (key, host) in store.range::<Host>(keys::HOSTS).await? {
            let name = key.trim_start_matches(keys::HOSTS);
            state.hosts.entry(Arc::from(name)).or_default().take_record(Some(&host.value));
        }
        let names: Vec<Arc<str>> = state.hosts.keys().cloned().collect();
        for name in &names {
            let (revision, chunks) = inventory(store, name).await?;
            seen = seen.max(revision);
            if let Some(host) = state.hosts.get_mut(name) {
                host.take_inventory(name, revision, &chunks);
            }
        }
        for (key, rotation) in store.range::<Rotation>(keys::ROTATION).await? {
            take_rotation(&mut state, &key, Some((rotation.value, rotation.revision)));
        }
        let mut after = None;
        loop {
            let page = store.page::<BatchOutline>(keys::BATCHES, after.as_deref(), 256).await?;
            let Some((last, _)) = page.last() else { break };
            after = Some(last.clone());
            for (key, batch) in &page {
                take_batch(&mut state, key, Some(&batch.value));
            }
        }
        state.seen = seen;
        *self.0.state.write().unwrap_or_else(PoisonError::into_inner) = state;
        self.0.wakes.lock().unwrap_or_else(PoisonError::into_inner).extend(names.iter().cloned());
        self.0.moved.lock().unwrap_or_else(PoisonError::into_inner).extend(names);
        self.0.woken.notify_one();
        self.bump();
        Ok(())
    }

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
        for key in changed {
            let host = keys::host_of(key);
            if !key.starts_with(keys::BATCHES) {
                self.put_batches(std::mem::take(&mut batches));
            }
            if key.starts_with(keys::ROTATION) {
                forget();
                let record =
                    store.get::<Rotation>(key).await?.map(|rotation| (rotation.value, rotation.revision));
                let woken = self.write(|state| {
                    let woken = take_rotation(state, key, record);
                    self.put_moved(changed_since_chosen(state, key));
                    woken
                });
                self.wake(woken);
            } else if key.starts_with(keys::BATCHES) {
                let record = store.get::<BatchOutline>(key).await?.map(|batch| batch.value);
                batches.push((key, record));
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
        self.put_batches(batches);
        Ok(())
    }

    /// All at once: a batch that takes over from another is never seen without it.
    fn put_batches(&self, batches: Vec<(&Arc<str>, Option<BatchOutline>)>) {
        if !batches.is_empty() {
            let woken: Vec<Arc<str>> = self.write(|state| {
                let put = batches.iter().filter_map(|(key, record)| take_batch(state, key, record.as_ref()));
                put.collect()
            });
            self.wake(woken);
        }
    }

    fn write<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
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
async fn inventory(store: &Store, host: &str) -> Result<(u64, Vec<InventoryOutline>), StoreError> {
    let chunks = store.range::<InventoryOutline>(&keys::inventory_of(host)).await?;
    let newest = chunks.iter().map(|(_, chunk)| chunk.revision).max().unwrap_or_default();
    Ok((newest, chunks.into_iter().map(|(_, chunk)| chunk.value).collect()))
}

fn take_authority(state: &mut State, key: &str, record: Option<&Authority>) {
    let name = key.trim_start_matches(keys::AUTHORITIES);
    match record.map(|record| issuer_key(&record.certificate)) {
        Some(Ok(issuer)) => drop(state.authorities.insert(name.to_owned(), issuer)),
        // No certificate yet, or none any more.
        Some(Err(_)) | None => drop(state.authorities.remove(name)),
    }
}

/// Gives the hosts that have something new to look at.
fn take_rotation(state: &mut State, key: &str, record: Option<(Rotation, u64)>) -> Vec<Arc<str>> {
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
    if !moved {
        return Vec::new();
    }
    let reach = rotation.reach;
    let open = rotation.batches.iter().filter(|(_, batch)| !batch.finished && batch.place <= reach);
    open.map(|((host, _), _)| host.clone()).collect()
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

fn take_batch(state: &mut State, key: &str, record: Option<&BatchOutline>) -> Option<Arc<str>> {
    let (name, batch) = key.trim_start_matches(keys::BATCHES).split_once('/')?;
    let name: Arc<str> =
        state.hosts.get_key_value(name).map_or_else(|| Arc::from(name), |(name, _)| name.clone());
    let host = state.hosts.entry(name.clone()).or_default();
    let was_open = host.open.iter().position(|open| &*open.batch == batch);
    let Some(record) = record else {
        if let Some(at) = was_open {
            host.open.remove(at);
        }
        for rotation in state.rotations.values_mut() {
            rotation.remove(name.clone(), batch);
        }
        // Of a rotation that never began nothing is left then.
        state.rotations.retain(|_, rotation| rotation.revision != 0 || !rotation.batches.is_empty());
        return None;
    };
    let rotation = rotation_number(&record.rotation);
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
        }
        None if finished && renewal::number(batch) >= host.newest_renewal => {
            host.newest_renewal = renewal::number(batch);
            let failed = record.targets.iter().any(|target| target::is_failure(target.state()));
            host.failed_renewals = if failed { record.attempt + 1 } else { 0 };
            host.renewals_after =
                if failed { record.finished_at + renewal::pause(record.attempt + 1) } else { 0 };
        }
        // Under way, or older than what counts.
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
