//! The operator: rotates, steers, taints, bans, changes policy, at any time.
//!
//! An answer may be lost with the coordinator, or not be waited for; what was
//! acknowledged is remembered and must never be forgotten by the coordinator.

use std::sync::Arc;
use std::time::Duration;

use reseal_proto::v1::{
    AuthorityRequest, BanHostRequest, ControlRotationRequest, HostRequest, InstallAuthorityRequest,
    ListRotationsRequest, OnFailure, Policy, PrepareAuthorityRequest, RotateRequest, RotationAction,
    Selection, TaintAuthorityRequest, Usage,
};
use tonic::{Code, Status};

use super::seed::enrol;
use super::world::{FLEET, Up, World, now};

/// Acts until it is aborted.
pub async fn run(world: Arc<World>) {
    let mut pending: Option<RotateRequest> = None;
    loop {
        world.pause(500, world.weather.operator * 1000).await;
        let Some(up) = world.up() else { continue };
        let patience =
            if world.random.percent(10) { world.random.millis(0, 500) } else { Duration::from_secs(60) };
        tokio::select! {
            biased;
            () = up.gone.once() => world.history.note("operator", "the answer is lost"),
            () = tokio::time::sleep(patience) => world.history.note("operator", "does not wait for the answer"),
            () = act(&world, &up, &mut pending) => {}
        }
    }
}

async fn act(world: &World, up: &Up, pending: &mut Option<RotateRequest>) {
    match world.random.below(20) {
        0..=6 => {
            // One whose answer was lost is ordered again, with the same key.
            let request = pending.take().unwrap_or_else(|| rotation(world));
            *pending = Some(request.clone());
            if rotate(world, up, request).await.is_some_and(|code| code != Code::Unavailable) {
                *pending = None;
            }
        }
        7..=14 => {
            let action = *world.random.pick(&[
                RotationAction::Pause,
                RotationAction::Resume,
                RotationAction::Resume,
                RotationAction::Retry,
                RotationAction::Retry,
                RotationAction::Abort,
            ]);
            let number = world.checker.rotations();
            if number > 0 {
                let id = format!("r{}", number - world.random.below(number.min(3)));
                control(world, up, &id, action).await;
            }
        }
        15..=16 => {
            let excluded = world.random.pick(&world.hosts).name.clone();
            let excluded = if world.random.percent(50) { Some(&*excluded) } else { None };
            let _ = set_policy(world, up, excluded).await;
        }
        17 if world.random.percent(30) => {
            let host = world.random.pick(&world.hosts).name.clone();
            let (mut client, request) =
                world.operator(up, BanHostRequest { name: host.to_string(), reason: "taken over".into() });
            let done = client.ban_host(request).await;
            told(world, &format!("ban {host}"), done.as_ref().err());
            if done.is_ok() {
                world.checker.ban_acknowledged(&host);
            }
        }
        17 if world.random.percent(50) => {
            // Out, and in again under its name.
            let host = world.random.pick(&world.hosts);
            let (mut client, request) = world.operator(up, HostRequest { name: host.name.to_string() });
            let done = client.remove_host(request).await;
            told(world, &format!("remove {}", host.name), done.as_ref().err());
            if done.is_ok() && world.random.percent(80) {
                let enrolled = enrol(world, host).await;
                world.history.note(&host.name, format!("enrols again: {}", enrolled.is_ok()));
            }
        }
        18 if world.random.percent(30) => {
            let name = world.random.pick(&world.checker.authorities()).clone();
            let (mut client, request) =
                world.operator(up, TaintAuthorityRequest { name: name.clone(), reason: "stolen".into() });
            let done = client.taint_authority(request).await;
            told(world, &format!("taint {name}"), done.as_ref().err());
        }
        _ if world.random.percent(30) => {
            let name = world.random.pick(&world.checker.authorities()).clone();
            let (mut client, request) = world.operator(up, AuthorityRequest { name: name.clone() });
            let done = client.activate_authority(request).await;
            told(world, &format!("activate {name}"), done.as_ref().err());
        }
        _ if world.random.percent(50) => {
            let prepared = prepare(world, up).await;
            told(world, "prepare another authority", prepared.as_ref().err());
        }
        _ => {
            let (mut client, request) = world.operator(up, ListRotationsRequest {});
            let _ = client.list_rotations(request).await;
        }
    }
}

/// Prepares the next authority: its key here, its certificate from the offline root.
async fn prepare(world: &World, up: &Up) -> Result<(), Status> {
    let name = format!("a{}", world.checker.authorities().len());
    let (mut client, request) = world.operator(up, PrepareAuthorityRequest { name: name.clone() });
    let csr = client.prepare_authority(request).await?.into_inner().csr;
    let signed = world.fleet.sign_authority(FLEET, &name, &csr, now());
    let certificate = signed.map_err(|error| Status::internal(error.to_string()))?;
    let (mut client, request) = world.operator(up, InstallAuthorityRequest { name, certificate });
    client.install_authority(request).await?;
    Ok(())
}

/// A rotation nobody has ordered yet.
fn rotation(world: &World) -> RotateRequest {
    let random = &world.random;
    let host = random.pick(&world.hosts).name.to_string();
    let selection = match random.below(5) {
        0..=1 => {
            let issuer = random.pick(&world.checker.authorities()).clone();
            Selection { compromised_issuer: issuer, ..Selection::default() }
        }
        2 => Selection { hosts: vec!["*".into()], ..Selection::default() },
        3 => Selection { hosts: vec![host], ..Selection::default() },
        _ => Selection { names: vec![format!("s0.{host}.sim.test")], ..Selection::default() },
    };
    RotateRequest {
        selection: Some(selection),
        reason: "simulated".into(),
        waves: (*random.pick(&["", "1,100%", "1,2,100%", "100%"])).into(),
        max_failures: (*random.pick(&["", "1", "50%", "100%"])).into(),
        on_failure: (*random.pick(&[OnFailure::Rollback, OnFailure::Hold])).into(),
        deadline_seconds: *random.pick(&[0, 300, 1500]),
        idempotency_key: random.bytes()[..16].to_vec(),
        ..RotateRequest::default()
    }
}

/// Orders it; gives the code of what came.
async fn rotate(world: &World, up: &Up, request: RotateRequest) -> Option<Code> {
    let key = request.idempotency_key.clone();
    let (mut client, request) = world.operator(up, request);
    match client.rotate(request).await {
        Ok(reply) => {
            let id = reply.into_inner().id;
            world.history.note("operator", format!("started {id}"));
            world.checker.rotate_acknowledged(&key, &id);
            Some(Code::Ok)
        }
        Err(status) => {
            told(world, "rotate", Some(&status));
            Some(status.code())
        }
    }
}

/// Steers a rotation; false when it was refused.
pub(super) async fn control(world: &World, up: &Up, id: &str, action: RotationAction) -> bool {
    let message = ControlRotationRequest {
        id: id.into(),
        action: action.into(),
        reason: "simulated".into(),
        ..ControlRotationRequest::default()
    };
    let (mut client, request) = world.operator(up, message);
    let done = client.control_rotation(request).await;
    told(world, &format!("{} {id}", action.as_str_name()), done.as_ref().err());
    if done.is_ok() {
        world.checker.control_acknowledged(id, action);
    }
    done.is_ok()
}

/// Admits every host to its own names, or every host but one.
pub(super) async fn set_policy(world: &World, up: &Up, excluded: Option<&str>) -> Result<(), Status> {
    let hosts: Vec<String> = world.hosts.iter().map(|host| host.name.to_string()).collect();
    let hosts: Vec<String> = hosts.into_iter().filter(|host| Some(host.as_str()) != excluded).collect();
    let policy = Policy {
        name: "default".into(),
        hosts,
        names: vec!["*.{host}.sim.test".into()],
        key_types: vec!["ecdsa-p256".into()],
        usages: vec![Usage::Server.into()],
        lifetime_seconds: world.weather.lifetime,
        ..Policy::default()
    };
    let (mut client, request) = world.operator(up, policy);
    let done = client.set_policy(request).await;
    told(world, &format!("policy without {excluded:?}"), done.as_ref().err());
    done.map(drop)
}

fn told(world: &World, what: &str, error: Option<&Status>) {
    match error {
        None => world.history.note("operator", format!("{what}: done")),
        Some(status) => {
            world.history.note("operator", format!("{what}: {:?}, {}", status.code(), status.message()));
        }
    }
}
