//! Trying failed targets again, and excluded ones when those are meant too.
//!
//! Each gets a place in a new batch of its host; in the old batch it is marked
//! superseded: it counts no more, and what it proved stays. What nobody looks after
//! any more on its host stays as it is.

use std::collections::{BTreeMap, BTreeSet};

use tonic::Status;

use super::OperatorService;
use crate::domain::target::{self, State};
use crate::grpc::convert::status;
use crate::issuance::profile::serial;
use crate::store::outline::InventoryOutline;
use crate::store::record::{Batch, Rotation, Target};
use crate::store::{Commit, Versioned, keys};
use crate::view::rotation_number;

/// Hosts whose new batches are written at once, so that they share their flushes.
const TOGETHER: usize = 64;

/// What is tried again.
pub(super) struct Retry<'a> {
    /// The rotation.
    pub(super) id: &'a str,
    /// Its record.
    pub(super) rotation: &'a Rotation,
    /// Excluded targets, too.
    pub(super) excluded: bool,
    /// Seconds since the Unix epoch.
    pub(super) now: i64,
}

/// Targets that were left as they are.
#[derive(Clone, Copy, Default)]
pub(super) struct Left {
    /// Another rotation works on them by now.
    pub(super) busy: usize,
    /// Only discovered by now: their host does not declare them any more.
    pub(super) unmanaged: usize,
}

/// What else is on record of a host.
struct Here<'a> {
    /// The rotation's batches there.
    own: &'a [(String, Versioned<Batch>)],
    /// Installations that another open rotation works on.
    elsewhere: &'a BTreeSet<String>,
    /// Installations that nobody looks after.
    discovered: &'a BTreeSet<&'a str>,
}

impl Left {
    fn and(self, other: Self) -> Self {
        Self { busy: self.busy + other.busy, unmanaged: self.unmanaged + other.unmanaged }
    }
}

impl Retry<'_> {
    fn means(&self, state: State) -> bool {
        target::is_failure(state) || (self.excluded && state == State::Excluded)
    }
}

impl OperatorService {
    /// Makes the new batches; gives how many targets were left as they are, and why.
    pub(super) async fn retry_batches(&self, retry: &Retry<'_>) -> Result<Left, Status> {
        let hosts: Vec<(String, Vec<String>)> = {
            let state = self.view.read();
            let number = rotation_number(retry.id).unwrap_or_default();
            let Some(view) = state.rotations.get(&number) else { return Ok(Left::default()) };
            let mut hosts = BTreeMap::<String, Vec<String>>::new();
            for ((host, name), batch) in &view.batches {
                if batch.finished && batch.counts.iter().any(|(state, _)| retry.means(state)) {
                    hosts.entry(host.to_string()).or_default().push(name.to_string());
                }
            }
            hosts.into_iter().collect()
        };
        let mut left = Left::default();
        for group in hosts.chunks(TOGETHER) {
            let work = group.iter().map(|(host, batches)| self.retry_host(retry, host, batches));
            left = futures_util::future::try_join_all(work).await?.into_iter().fold(left, Left::and);
        }
        Ok(left)
    }

    /// One batch after the other: each takes a number that the next must not.
    async fn retry_host(&self, retry: &Retry<'_>, host: &str, batches: &[String]) -> Result<Left, Status> {
        let inventory = self.store.range::<InventoryOutline>(&keys::inventory_of(host)).await;
        let chunks = inventory.map_err(|error| status(&error))?;
        let discovered: BTreeSet<&str> = chunks
            .iter()
            .flat_map(|(_, chunk)| &chunk.value.installations)
            .filter(|installation| !installation.management().is_managed())
            .map(|installation| installation.id.as_str())
            .collect();
        let mut left = Left::default();
        for batch in batches {
            let own = self.store.range::<Batch>(&keys::batches_on(host, retry.id)).await;
            let own = own.map_err(|error| status(&error))?;
            let elsewhere = self.elsewhere(retry.id, host).await?;
            let here = Here { own: &own, elsewhere: &elsewhere, discovered: &discovered };
            left = left.and(self.retry_batch(retry, host, batch, &here).await?);
        }
        Ok(left)
    }

    /// Installations of a host that another open rotation works on.
    async fn elsewhere(&self, id: &str, host: &str) -> Result<BTreeSet<String>, Status> {
        let others: Vec<String> = {
            let state = self.view.read();
            let open = state.rotations.iter().filter(|(_, rotation)| rotation.is_open());
            open.map(|(number, _)| format!("r{number}")).filter(|other| other != id).collect()
        };
        let mut found = BTreeSet::new();
        for other in others {
            let batches = self.store.range::<Batch>(&keys::batches_on(host, &other)).await;
            let batches = batches.map_err(|error| status(&error))?.into_iter().map(|(_, batch)| batch.value);
            let targets = batches.filter(|batch| batch.finished_at == 0).flat_map(|batch| batch.targets);
            found.extend(targets.map(|target| target.installation));
        }
        Ok(found)
    }

    async fn retry_batch(
        &self,
        retry: &Retry<'_>,
        host: &str,
        batch: &str,
        here: &Here<'_>,
    ) -> Result<Left, Status> {
        let key = keys::batch(host, batch);
        let Some((_, old)) = here.own.iter().find(|(name, _)| *name == key) else {
            return Ok(Left::default());
        };
        let mut record = old.value.clone();
        let meant = record.targets.iter_mut().filter(|t| !t.superseded && retry.means(t.state()));
        let (busy, meant): (Vec<_>, Vec<_>) =
            meant.partition(|target| here.elsewhere.contains(&target.installation));
        let (unmanaged, meant): (Vec<_>, Vec<_>) =
            meant.into_iter().partition(|target| here.discovered.contains(target.installation.as_str()));
        let left = Left { busy: busy.len(), unmanaged: unmanaged.len() };
        if meant.is_empty() {
            return Ok(left);
        }
        let targets = meant.into_iter().map(|target| {
            target.superseded = true;
            Target {
                installation: target.installation.clone(),
                label: target.label.clone(),
                before: target.before.clone(),
                state: State::Pending.into(),
                serial: serial().to_vec(),
                ..Target::default()
            }
        });
        let next = Batch {
            rotation: retry.id.to_owned(),
            place: old.value.place,
            targets: targets.collect(),
            created_at: retry.now,
            attempt: old.value.attempt + 1,
            traceparent: retry.rotation.traceparent.clone(),
            on_failure: retry.rotation.on_failure,
            ..Batch::default()
        };
        let next_key = keys::batch(host, &target::batch_name(retry.id, here.own.len(), self.store.epoch()));
        let commit =
            Commit::new().at(&key, old.revision).put(&key, &record).absent(&next_key).put(&next_key, &next);
        self.store.commit(commit).await.map_err(|error| status(&error))?;
        Ok(left)
    }
}
