//! How the projection reads the store: whole at start, one rotation when it has to be.
//!
//! Of a rotation that has ended the outcome on record is read, not its batches;
//! of renewals those that are not finished: how long a start takes, and what it
//! leaves in memory, does not grow with all that was ever done.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use super::refresh::{inventory, settle, take_authority, take_batch, take_rotation};
use super::{RotationView, State, View, rotation_number};
use crate::store::outline::BatchOutline;
use crate::store::record::{Authority, Counter, Host, OpenBatch, Outcome, Rotation};
use crate::store::{Store, StoreError, Versioned, keys};

/// Batches read at once.
const PAGE: usize = 256;

impl View {
    /// Reads what the projection keeps; call before [`View::follow`], with a watch taken before.
    pub async fn load(&self, store: &Store) -> Result<(), StoreError> {
        let mut state = State::default();
        let last = store.get::<Counter>(keys::ROTATIONS).await?;
        let mut seen = last.as_ref().map_or(0, |last| last.revision);
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
        for (key, open) in store.range::<OpenBatch>(keys::RENEWING).await? {
            let batch = keys::batch(key.trim_start_matches(keys::RENEWING), &open.value.batch);
            let record = store.get::<BatchOutline>(&batch).await?;
            take_batch(&mut state, &batch, record.as_ref().map(|record| &record.value));
        }
        let last = last.map_or(0, |last| last.value.value);
        load_rotations(&mut state, store, last).await?;
        state.seen = seen;
        *self.0.state.write().unwrap_or_else(PoisonError::into_inner) = state;
        self.0.wakes.lock().unwrap_or_else(PoisonError::into_inner).extend(names.iter().cloned());
        self.0.moved.lock().unwrap_or_else(PoisonError::into_inner).extend(names);
        self.0.woken.notify_one();
        self.bump();
        Ok(())
    }

    /// Reads one rotation again, with all its batches.
    pub(super) async fn read_again(&self, store: &Store, number: u64) -> Result<(), StoreError> {
        let id = format!("r{number}");
        let key = keys::rotation(&id);
        let record = store.get::<Rotation>(&key).await?;
        let outcome = store.get::<Outcome>(&keys::outcome(&id)).await?.map(|outcome| outcome.value);
        let mut batches = Vec::new();
        loop {
            let after = batches.last().map(|(key, _): &(String, _)| key.as_str());
            let page = store.page::<BatchOutline>(&keys::batches_in(&id), after, PAGE).await?;
            let full = page.len() == PAGE;
            batches.extend(page);
            if !full {
                break;
            }
        }
        self.write(|state| {
            state.rotations.insert(number, RotationView::unrevealed());
            for (key, batch) in &batches {
                take_batch(state, key, Some(&batch.value));
            }
            take_rotation(state, &key, record.map(|record| (record.value, record.revision)));
            if let Some(rotation) = state.rotations.get_mut(&number) {
                rotation.compare_outcome(outcome.as_ref());
            }
        });
        Ok(())
    }
}

/// Every rotation up to the `last`; a number without a record is of one that never began.
async fn load_rotations(state: &mut State, store: &Store, last: u64) -> Result<(), StoreError> {
    let mut outcomes: BTreeMap<u64, Outcome> = BTreeMap::new();
    for (key, outcome) in store.range::<Outcome>(keys::OUTCOMES).await? {
        outcomes.extend(rotation_number(key.trim_start_matches(keys::OUTCOMES)).map(|n| (n, outcome.value)));
    }
    let mut records: BTreeMap<u64, Versioned<Rotation>> = BTreeMap::new();
    for (key, record) in store.range::<Rotation>(keys::ROTATION).await? {
        records.extend(rotation_number(key.trim_start_matches(keys::ROTATION)).map(|n| (n, record)));
    }
    let last = last.max(records.keys().next_back().copied().unwrap_or_default());
    for number in 1..=last {
        let id = format!("r{number}");
        let record = records.remove(&number);
        let outcome = outcomes.remove(&number).filter(|_| record.is_some());
        match &outcome {
            Some(outcome) => {
                let rotation = state.rotations.entry(number).or_insert_with(RotationView::unrevealed);
                rotation.take_outcome(outcome.clone());
                for open in &outcome.open {
                    let key = keys::batch(&open.host, &open.batch);
                    let batch = store.get::<BatchOutline>(&key).await?;
                    take_batch(state, &key, batch.as_ref().map(|batch| &batch.value));
                }
            }
            None => take_batches(state, store, &keys::batches_in(&id)).await?,
        }
        let Some(Versioned { value, revision }) = record else { continue };
        take_rotation(state, &keys::rotation(&id), Some((value, revision)));
        settle(state, number);
        if let Some(rotation) = state.rotations.get_mut(&number) {
            rotation.compare_outcome(outcome.as_ref());
        }
    }
    Ok(())
}

/// All batches under a prefix.
async fn take_batches(state: &mut State, store: &Store, prefix: &str) -> Result<(), StoreError> {
    let mut after: Option<String> = None;
    loop {
        let page = store.page::<BatchOutline>(prefix, after.as_deref(), PAGE).await?;
        for (key, batch) in &page {
            take_batch(state, key, Some(&batch.value));
        }
        match page.last() {
            Some((last, _)) if page.len() == PAGE => after = Some(last.clone()),
            _ => return Ok(()),
        }
    }
}
