//! Orders what is due by plan: missing certificates at once, old ones on their
//! threshold, failed ones after a pause.

use std::collections::BTreeSet;

use reseal_proto::v1::OnFailure;

use super::Turn;
use crate::domain::{renewal, target};
use crate::issuance::profile::serial;
use crate::store::record::{Batch, HostState, Inventory, OpenBatch, Target};
use crate::store::{Commit, StoreError, keys};

/// Hosts ordered in one activation: the rest come a second later.
const HOSTS: usize = 500;
/// Hosts whose orders are committed together.
const TOGETHER: usize = 64;
/// Writes of one commit.
const ROOM: usize = 64;
/// Finished renewals kept per host.
const KEEP: usize = 10;

/// Orders renewals for connected hosts.
pub(super) async fn order(turn: &Turn<'_>) -> Result<(), StoreError> {
    // Together, so that they share their flushes.
    let due = due_hosts(turn);
    for group in due.chunks(TOGETHER) {
        let orders = group.iter().map(|host| order_host(turn, host));
        for (host, ordered) in group.iter().zip(futures_util::future::join_all(orders).await) {
            // What is wrong with one host must not hold up the others.
            super::pass_over(host, ordered)?;
        }
    }
    Ok(())
}

fn due_hosts(turn: &Turn<'_>) -> Vec<String> {
    let state = turn.engine.view.read();
    state
        .hosts
        .iter()
        .filter(|(name, host)| {
            host.state == Some(HostState::Enrolled)
                && host.next_due <= turn.now
                && host.renewals_after <= turn.now
                // One at a time per host: what it missed is due again afterwards.
                && host.open.iter().all(|open| open.rotation.is_some())
                && turn.engine.presence.connected(name)
        })
        .take(HOSTS)
        .map(|(name, _)| name.to_string())
        .collect()
}

async fn order_host(turn: &Turn<'_>, host: &str) -> Result<(), StoreError> {
    let store = &turn.engine.store;
    let renewals = store.range::<Batch>(&keys::renewals_of(host)).await?;
    let renewing = keys::renewing(host);
    let named = store.get::<OpenBatch>(&renewing).await?;
    let name = |key: &str| OpenBatch { host: host.to_owned(), batch: last(key).to_owned() };
    if let Some((key, open)) = renewals.iter().find(|(_, batch)| batch.value.finished_at == 0) {
        if named.is_some_and(|named| named.value == name(key)) {
            // The projection will know in a moment.
            return Ok(());
        }
        // Nobody would ever find it.
        let commit = Commit::new().lease(turn.lease).at(key, open.revision).put(key, &open.value);
        return turn.commit_unless_moved(commit.put(&renewing, &name(key))).await.map(drop);
    }
    let finished = renewals;
    let newest = finished.iter().max_by_key(|(key, _)| renewal::number(last(key)));
    let (attempt, not_before) = renewal::next_try(newest.map(|(_, batch)| &batch.value));
    if not_before > turn.now {
        turn.engine.view.renewals_wait(host, not_before);
        return Ok(());
    }
    // What a rotation will do is not done twice.
    let rotations =
        super::open_batches(turn, host, |rotation| !rotation.is_empty() && turn.is_live(rotation)).await?;
    let open: BTreeSet<&str> = rotations
        .iter()
        .flat_map(|(_, batch)| &batch.value.targets)
        .map(|target| target.installation.as_str())
        .collect();
    let inventory = store.range::<Inventory>(&keys::inventory_of(host)).await?;
    let targets: Vec<Target> = inventory
        .iter()
        .flat_map(|(_, chunk)| &chunk.value.installations)
        // Only what is declared or adopted.
        .filter(|installation| installation.is_managed())
        .filter(|installation| {
            renewal::due_at(host, &installation.id, installation.certificate.as_ref().map(renewal::life))
                <= turn.now
        })
        .filter(|installation| !open.contains(installation.id.as_str()))
        .take(target::PER_BATCH)
        .map(|installation| target::pending(installation, serial()))
        .collect();
    if targets.is_empty() {
        return Ok(());
    }
    let number = finished.iter().map(|(key, _)| renewal::number(last(key))).max().unwrap_or(0) + 1;
    // A host that was removed and came back still knows the names it had: none comes again.
    let number = number.max(u64::try_from(turn.now).unwrap_or(0));
    let key = keys::batch(host, &format!("n{number:010}-{}", store.epoch()));
    let record = Batch {
        targets,
        created_at: turn.now,
        attempt,
        on_failure: OnFailure::Rollback.into(),
        ..Batch::default()
    };
    tracing::info!(%host, targets = record.targets.len(), "renewal ordered");
    // One at a time, and found again without a look at those that are finished.
    let mut commit =
        Commit::new().lease(turn.lease).absent(&key).put(&key, &record).put(&renewing, &name(&key));
    commit = match &named {
        Some(named) => commit.at(&renewing, named.revision),
        None => commit.absent(&renewing),
    };
    for (old, batch) in finished.iter().take(finished.len().saturating_sub(KEEP)).take(8) {
        let issued = store.range::<crate::store::record::Issued>(&keys::issued_of(host, last(old))).await?;
        // A batch goes with all that was issued for it, or stays until the next time.
        if commit.writes() + issued.len() >= ROOM {
            break;
        }
        commit = commit.at(old, batch.revision).delete(old);
        commit = issued.iter().fold(commit, |commit, (key, _)| commit.delete(key));
    }
    turn.commit_unless_moved(commit).await.map(drop)
}

/// The batch's name in its key.
fn last(key: &str) -> &str {
    key.rsplit('/').next().unwrap_or_default()
}
