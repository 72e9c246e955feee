//! Finds targets that a running rotation did not know of.
//!
//! A compromise is about every certificate of a key, not about those that were
//! on record when the rotation began: a chain that was on its way to a host, a
//! host that reports again after a month. Whenever an inventory changes it is
//! looked through, and what is missing joins the newest ordered wave. So does
//! what other open work was given by that key and has not reported yet: after
//! the taint no more of it is signed.

use std::collections::BTreeSet;

use reseal_proto::v1::{Installation, OnFailure};

use super::Turn;
use crate::domain::selection::{self, IssuerKey};
use crate::domain::{rotation, target};
use crate::issuance::profile::serial;
use crate::store::record::{Batch, Inventory, Issued, Rotation};
use crate::store::{AuditDraft, Commit, StoreError, keys};

/// Adds what was missed.
pub(super) async fn add(turn: &Turn<'_>) -> Result<(), StoreError> {
    let mut moved = turn.engine.view.take_moved();
    while let Some(host) = moved.pop_first() {
        if let Err(error) = super::pass_over(&host, look_at(turn, &host).await) {
            moved.insert(host);
            turn.engine.view.put_moved(moved);
            return Err(error);
        }
    }
    Ok(())
}

/// A host whose inventory has changed.
async fn look_at(turn: &Turn<'_>, host: &str) -> Result<(), StoreError> {
    for wanted in concerned(turn, host) {
        look(turn, host, &wanted).await?;
    }
    super::overtaken::note(turn, host).await
}

struct Wanted {
    rotation: String,
    place: u32,
    /// Name and key of the compromised authority.
    authority: String,
    issuer: IssuerKey,
    on_failure: OnFailure,
    traceparent: String,
}

/// Rotations away from an issuer that this host still shows, or may be about to install.
fn concerned(turn: &Turn<'_>, host: &str) -> Vec<Wanted> {
    let state = turn.engine.view.read();
    let Some(view) = state.hosts.get(host) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for (number, rotation) in &state.rotations {
        let record = &rotation.record;
        if !rotation::accepts_work(rotation.state)
            || !record.selection.as_ref().is_some_and(selection::means_every_certificate)
            || record.excludes(host)
        {
            continue;
        }
        let Some(issuer) = state.authorities.get(&record.compromised) else { continue };
        if view.issued_by(issuer) > 0 || view.has_other_work(*number) {
            found.push(Wanted {
                rotation: format!("r{number}"),
                place: rotation.reach,
                authority: record.compromised.clone(),
                issuer: issuer.clone(),
                on_failure: record.on_failure(),
                traceparent: record.traceparent.clone(),
            });
        }
    }
    found
}

async fn look(turn: &Turn<'_>, host: &str, wanted: &Wanted) -> Result<(), StoreError> {
    let store = &turn.engine.store;
    let own = store.range::<Batch>(&keys::batches_on(host, &wanted.rotation)).await?;
    // Not what other open work will renew: its certificate may be from before the taint.
    let known: BTreeSet<&str> = own
        .iter()
        .flat_map(|(_, batch)| &batch.value.targets)
        .map(|target| target.installation.as_str())
        .collect();
    let mut on_its_way = BTreeSet::new();
    for (key, _) in super::open_batches(turn, host, |rotation| rotation != wanted.rotation).await? {
        let name = key.rsplit('/').next().unwrap_or_default();
        let issued = store.range::<Issued>(&keys::issued_of(host, name)).await?;
        let issued = issued.into_iter().filter(|(_, issued)| issued.value.authority == wanted.authority);
        on_its_way.extend(issued.flat_map(|(_, issued)| issued.value.leaves).map(|leaf| leaf.installation));
    }
    let inventory = store.range::<Inventory>(&keys::inventory_of(host)).await?;
    let missed: Vec<&Installation> = inventory
        .iter()
        .flat_map(|(_, chunk)| &chunk.value.installations)
        // What was only discovered is never ordered; the rotation says how many there are.
        .filter(|installation| installation.is_managed())
        .filter(|installation| {
            installation.certificate.as_ref().is_some_and(|facts| wanted.issuer.issued(facts))
                || on_its_way.contains(&installation.id)
        })
        .filter(|installation| !known.contains(installation.id.as_str()))
        .collect();
    let taken = own.len();
    for (number, chunk) in missed.chunks(target::PER_BATCH).enumerate() {
        let name = target::batch_name(&wanted.rotation, taken + number, store.epoch());
        let key = keys::batch(host, &name);
        let record = Batch {
            rotation: wanted.rotation.clone(),
            place: wanted.place,
            targets: chunk.iter().map(|installation| target::pending(installation, serial())).collect(),
            created_at: turn.now,
            traceparent: wanted.traceparent.clone(),
            on_failure: wanted.on_failure.into(),
            ..Batch::default()
        };
        tracing::warn!(host, rotation = %wanted.rotation, targets = chunk.len(), "found targets that the rotation had missed");
        let draft = AuditDraft {
            at: turn.now,
            actor: "coordinator".into(),
            action: "rotation.extend".into(),
            object: format!("rotation/{}", wanted.rotation),
            outcome: "done".into(),
            detail: format!("{} targets found on host {host}", chunk.len()),
        };
        // With the rotation's own record: whoever would complete it meanwhile has to look again.
        let rotation_key = keys::rotation(&wanted.rotation);
        let Some(mut rotation) = store.get::<Rotation>(&rotation_key).await? else { return Ok(()) };
        if !rotation::accepts_work(rotation.value.state()) || rotation.value.excludes(host) {
            return Ok(());
        }
        rotation.value.batches += 1;
        let commit = Commit::new().lease(turn.lease).absent(&key).put(&key, &record).audit(draft);
        store.commit(commit.at(&rotation_key, rotation.revision).put(&rotation_key, &rotation.value)).await?;
    }
    Ok(())
}
