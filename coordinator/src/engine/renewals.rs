//! Orders what is due by plan: missing certificates at once, old ones on their
//! threshold, failed ones after a pause.

use std::collections::BTreeSet;

use reseal_proto::v1::OnFailure;

use super::Turn;
use crate::domain::{renewal, target};
use crate::issuance::profile::serial;
use crate::store::record::{Batch, HostState, Inventory, Target};
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
            super::pass_over(&host.name, ordered)?;
        }
    }
    Ok(())
}

struct DueHost {
    name: String,
    attempt: u32,
}

fn due_hosts(turn: &Turn<'_>) -> Vec<DueHost> {
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
        .map(|(name, host)| DueHost { name: name.to_string(), attempt: host.failed_renewals })
        .collect()
}

async fn order_host(turn: &Turn<'_>, due: &DueHost) -> Result<(), StoreError> {
    let store = &turn.engine.store;
    let host = &due.name;
    let renewals = store.range::<Batch>(&keys::renewals_of(host)).await?;
    // What a rotation will do is not done twice.
    let rotations =
        super::open_batches(turn, host, |rotation| !rotation.is_empty() && turn.is_live(rotation)).await?;
    let open: BTreeSet<&str> = renewals
        .iter()
        .chain(&rotations)
        .filter(|(_, batch)| batch.value.finished_at == 0)
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
    let finished: Vec<&(String, crate::store::Versioned<Batch>)> =
        renewals.iter().filter(|(_, batch)| batch.value.finished_at != 0).collect();
    let number = finished.iter().map(|(key, _)| renewal::number(last(key))).max().unwrap_or(0) + 1;
    // A host that was removed and came back still knows the names it had: none comes again.
    let number = number.max(u64::try_from(turn.now).unwrap_or(0));
    let key = keys::batch(host, &format!("n{number:010}-{}", store.epoch()));
    let record = Batch {
        targets,
        created_at: turn.now,
        attempt: due.attempt,
        on_failure: OnFailure::Rollback.into(),
        ..Batch::default()
    };
    tracing::info!(%host, targets = record.targets.len(), "renewal ordered");
    let mut commit = Commit::new().lease(turn.lease).absent(&key).put(&key, &record);
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
