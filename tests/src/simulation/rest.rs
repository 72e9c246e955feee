//! What must hold once everything works again: every rotation has ended or waits
//! for a named reason and can be moved on, no batch is stuck, and the projection
//! is what the store says.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;
use reseal::domain::rotation::is_end;
use reseal::domain::{selection, target};
use reseal::store::record::{Batch, HostState};
use reseal::view::{HostView, RotationView, State, View};
use reseal_proto::facts;
use reseal_proto::v1::{EvidencePayload, RotationAction, RotationState, TargetState};
use tokio::time::Instant;

use super::operator::{control, set_policy};
use super::world::{Up, World};

/// Longer than the fifteen minutes after which a silent host's batch is failed.
const PATIENCE: Duration = Duration::from_secs(20 * 60);

/// Waits for rest and checks it.
pub async fn check(world: &Arc<World>) {
    let admitted = async {
        let up = world.up().expect("it was started");
        while set_policy(world, &up, None).await.is_err() {
            world.pause(1000, 1000).await;
        }
    };
    if tokio::time::timeout(PATIENCE, admitted).await.is_err() {
        return world.checker.fail("the policy cannot be set: the coordinator is stuck");
    }
    settle(world).await;
    for action in [RotationAction::Resume, RotationAction::Retry] {
        for id in waiting(world, action) {
            move_on(world, &id, action).await;
        }
        settle(world).await;
    }
    nothing_is_stuck(world);
    nobody_has_the_old_issuer(world);
    same_view(world).await;
    for id in waiting(world, RotationAction::Abort) {
        move_on(world, &id, RotationAction::Abort).await;
    }
    world.checker.nothing_acknowledged_is_lost();
}

/// Leads a rotation on; it may have moved by itself in this very moment.
async fn move_on(world: &World, id: &str, action: RotationAction) {
    for _ in 0..3 {
        let up = world.up().expect("it runs");
        if control(world, &up, id, action).await || !waiting(world, action).iter().any(|other| other == id) {
            return;
        }
    }
    world.checker.fail(format!("{id} waits, and {} is refused", action.as_str_name()));
}

/// Waits until nothing is running any more, or time is up.
async fn settle(world: &World) {
    let began = Instant::now();
    tokio::time::sleep(Duration::from_secs(5)).await;
    while began.elapsed() < PATIENCE && busy(world) && world.checker.violation().is_none() {
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
}

/// Is there work that will still be done?
fn busy(world: &World) -> bool {
    let mirror = world.checker.mirror();
    mirror.rotations.values().any(|rotation| rotation.state() == RotationState::Running)
        || mirror.batches.iter().any(|((host, _), batch)| {
            let record = mirror.hosts.get(host);
            let enrolled = record.is_some_and(|record| record.state() == HostState::Enrolled);
            let live = batch.rotation.is_empty()
                || mirror
                    .rotations
                    .get(&batch.rotation)
                    .is_some_and(|rotation| !is_end(rotation.state()) && batch.place <= rotation.reach());
            enrolled && live && batch.finished_at == 0
        })
}

/// Rotations that stand where this action leads on.
fn waiting(world: &World, action: RotationAction) -> Vec<String> {
    let mirror = world.checker.mirror();
    let stands = |state: RotationState| match action {
        RotationAction::Resume => state == RotationState::Paused,
        RotationAction::Retry => state == RotationState::Halted,
        RotationAction::Abort => !is_end(state),
        RotationAction::Pause | RotationAction::Unspecified => false,
    };
    let found = mirror.rotations.iter().filter(|(_, rotation)| stands(rotation.state()));
    found.map(|(id, _)| id.clone()).collect()
}

/// A rotation has ended, or it waits for hosts that are not there, or failed hosts.
fn nothing_is_stuck(world: &World) {
    let mut stuck = Vec::new();
    {
        let mirror = world.checker.mirror();
        for (id, rotation) in &mirror.rotations {
            let batches = || mirror.batches.iter().filter(|(_, batch)| batch.rotation == *id);
            let enrolled = |host: &str| {
                mirror.hosts.get(host).is_some_and(|record| record.state() == HostState::Enrolled)
            };
            match rotation.state() {
                RotationState::Completed | RotationState::Expired | RotationState::Aborted => {}
                // Somebody is gone for good, or lies, or has failed again.
                RotationState::Halted => {}
                RotationState::Running if batches().any(|((host, _), _)| !enrolled(host)) => {}
                RotationState::Running => stuck.push(format!("{id} is still running")),
                RotationState::Trailing => {
                    for ((host, name), batch) in batches() {
                        for target in left(world, host, batch).into_iter().filter(|_| enrolled(host)) {
                            stuck
                                .push(format!("{id} waits for {target} of {name} on {host}, which is there"));
                        }
                    }
                }
                state => stuck.push(format!("{id} is {state:?} after resume and retry")),
            }
        }
        for ((host, name), batch) in &mirror.batches {
            let live = batch.rotation.is_empty()
                || mirror
                    .rotations
                    .get(&batch.rotation)
                    .is_some_and(|rotation| !is_end(rotation.state()) && batch.place <= rotation.reach());
            let honest = world.checker.host(host).is_some_and(|host| !host.lies);
            let enrolled = mirror.hosts.get(host).is_some_and(|record| record.state() == HostState::Enrolled);
            let age = super::world::now() - batch.created_at;
            if live && honest && enrolled && batch.finished_at == 0 && age > 300 {
                stuck.push(format!("batch {name} of {host} is open for {age} s, and the host is there"));
            }
        }
    }
    for rule in stuck {
        world.checker.fail(format!("stuck: {rule}"));
    }
}

/// (d): once a rotation away from a compromised issuer is complete, nobody has a
/// certificate of that issuer, whatever was on its way at the time.
fn nobody_has_the_old_issuer(world: &World) {
    let mut found = Vec::new();
    {
        let mirror = world.checker.mirror();
        let complete = mirror.rotations.iter().filter(|(_, rotation)| {
            rotation.state() == RotationState::Completed
                && rotation.selection.as_ref().is_some_and(selection::means_every_certificate)
        });
        for (id, rotation) in complete {
            let issuer = &mirror.authorities[&rotation.compromised].certificate;
            let issuer = facts::of_chain(issuer, []).expect("an authority has a certificate").spki_sha256;
            for host in world.hosts.iter().filter(|host| !host.lies) {
                let record = mirror.hosts.get(&*host.name);
                let enrolled = record.is_some_and(|record| record.state() == HostState::Enrolled);
                if !enrolled || mirror.removed.contains(&*host.name) {
                    continue;
                }
                for (installation, one) in &host.disk().installations {
                    if one.facts().is_some_and(|facts| facts.issuer_spki_sha256 == issuer) {
                        found.push(format!("{installation} on {} has the old issuer after {id}", host.name));
                    }
                }
            }
        }
    }
    for rule in found {
        world.checker.fail(format!("(d) {rule}"));
    }
}

/// Targets that an honest host could prove, and that are not proved. An unserved one whose
/// installation was renewed since stays unserved.
fn left(world: &World, host: &str, batch: &Batch) -> Vec<String> {
    let payload = EvidencePayload::decode(&batch.payload[..]).unwrap_or_default();
    let Some(host) = world.checker.host(host).filter(|host| !host.lies) else { return Vec::new() };
    let disk = host.disk();
    let is_served = |id: &str| {
        let proof = payload.targets.iter().find(|proof| proof.installation == id);
        disk.installations.get(id).is_some_and(|one| proof.is_some_and(|proof| proof.after == one.served))
    };
    let targets = batch.targets.iter().filter(|target| !target.superseded);
    let left = targets.filter(|target| match target.state() {
        TargetState::Unserved => !disk.forgot && is_served(&target.installation),
        state => !target::is_end(state),
    });
    left.map(|target| target.installation.clone()).collect()
}

/// The projection equals what a fresh one reads from the store; while something is
/// written they may differ for a moment.
async fn same_view(world: &World) {
    let mut found = Vec::new();
    for _ in 0..10 {
        let Some(up) = world.up() else { return };
        found = compared(&up).await;
        if found.is_empty() {
            return;
        }
        world.pause(500, 3000).await;
    }
    for difference in found {
        world.checker.fail(format!("the projection is not what the store says: {difference}"));
    }
}

async fn compared(up: &Up) -> Vec<String> {
    let fresh = View::default();
    if fresh.load(&up.store).await.is_err() {
        return vec!["the store cannot be read".into()];
    }
    let (kept, read) = (up.view.read(), fresh.read());
    let rotations = |view: &RotationView| {
        let mut view = view.clone();
        for batch in view.batches.values_mut() {
            batch.live.clear();
        }
        view
    };
    // A host that was removed leaves an empty place.
    let hosts = |view: &State| -> Vec<(Arc<str>, HostView)> {
        // What is finished is not looked at again by itself: patience begins anew.
        let plain = |host: &HostView| HostView { last_finished: 0, renewals_after: 0, ..host.clone() };
        let hosts = view.hosts.iter().map(|(name, host)| (name.clone(), plain(host)));
        hosts.filter(|(_, host)| host.state.is_some() || !host.open.is_empty()).collect()
    };
    let (kept_hosts, read_hosts) = (hosts(&kept), hosts(&read));
    let mut found = differences("host", pairs(&kept_hosts), pairs(&read_hosts), Clone::clone);
    found.extend(differences("rotation", kept.rotations.iter(), read.rotations.iter(), rotations));
    found.extend(differences("authority", kept.authorities.iter(), read.authorities.iter(), Clone::clone));
    found
}

fn pairs<K, V>(all: &[(K, V)]) -> impl Iterator<Item = (&K, &V)> {
    all.iter().map(|(key, value)| (key, value))
}

fn differences<'a, K: Debug + 'a, V: Debug + 'a>(
    what: &str,
    kept: impl Iterator<Item = (&'a K, &'a V)>,
    read: impl Iterator<Item = (&'a K, &'a V)>,
    plain: impl Fn(&V) -> V,
) -> Vec<String> {
    let shown = |(name, value): (&K, &V)| format!("{what} {name:?} {:?}", plain(value));
    let kept: Vec<String> = kept.map(&shown).collect();
    let read: Vec<String> = read.map(&shown).collect();
    let mut found: Vec<String> =
        kept.iter().filter(|one| !read.contains(one)).map(|one| format!("only in memory: {one}")).collect();
    found
        .extend(read.iter().filter(|one| !kept.contains(one)).map(|one| format!("only in the store: {one}")));
    found
}
