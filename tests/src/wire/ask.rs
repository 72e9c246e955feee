//! What scenarios over the wire ask a coordinator, in one line each.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use reseal_proto::v1::{
    ListAuditRequest, RotateRequest, Rotation, RotationRequest, RotationState, Selection,
};
use tonic::Code;

use super::{Coordinator, Operator, Puppet, Session, Settings};
use crate::product::Binaries;

/// For one scenario.
pub fn runtime() -> tokio::runtime::Runtime {
    reseal_proto::channel::install_crypto();
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

/// A coordinator with fail points.
pub fn settings() -> Result<Settings> {
    Ok(of(Binaries::with_fail_points()?))
}

/// A coordinator as users get it.
pub fn as_released() -> Result<Settings> {
    Ok(of(Binaries::built()?))
}

fn of(binaries: Binaries) -> Settings {
    Settings { program: binaries.reseal, fleet: "wire".into(), log_level: "info".into(), tracing: None }
}

/// A host "h1" with this many certificates of the authority that is active.
pub async fn one_host(coordinator: &Coordinator, certificates: usize) -> Result<(Operator, Puppet, Session)> {
    let operator = coordinator.operator().await?;
    let mut puppet = Puppet::enrol(coordinator, "h1", certificates).await?;
    let mut session = puppet.connect().await?;
    puppet.serve(&mut session).await.context("the first certificates")?;
    Ok((operator, puppet, session))
}

/// Looks until something is there.
pub async fn until<T>(
    what: &str,
    seconds: u64,
    mut look: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    loop {
        if let Some(found) = look().await? {
            return Ok(found);
        }
        ensure!(Instant::now() < deadline, "{what} did not happen within {seconds} s");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The gRPC status in an error.
pub fn code(error: &anyhow::Error) -> Option<Code> {
    error.chain().find_map(|cause| cause.downcast_ref::<tonic::Status>()).map(tonic::Status::code)
}

/// A rotation away from authority a; the same request each time.
pub fn from_a(waves: &str) -> RotateRequest {
    RotateRequest {
        selection: Some(Selection { compromised_issuer: "a".into(), ..Selection::default() }),
        reason: "test".into(),
        waves: waves.into(),
        idempotency_key: vec![1; 16],
        ..RotateRequest::default()
    }
}

/// A rotation of what is on these hosts; `key` makes it another request.
pub fn of_hosts(host: &str, waves: &str, key: u8) -> RotateRequest {
    RotateRequest {
        selection: Some(Selection { hosts: vec![host.into()], ..Selection::default() }),
        idempotency_key: vec![key; 16],
        ..from_a(waves)
    }
}

/// A rotation as it stands.
pub async fn show(operator: &mut Operator, id: &str) -> Result<Rotation> {
    Ok(operator.show_rotation(RotationRequest { id: id.into() }).await?.into_inner())
}

/// Waits until a rotation is as wanted.
pub async fn shown(
    operator: &Operator,
    id: &str,
    seconds: u64,
    wanted: impl Fn(&Rotation) -> bool,
) -> Result<Rotation> {
    let mut last = Rotation::default();
    let looked = until("a rotation as wanted", seconds, async || {
        last = show(&mut operator.clone(), id).await?;
        Ok(wanted(&last).then_some(()))
    });
    looked.await.with_context(|| format!("{id} did not get there: {last:#?}"))?;
    Ok(last)
}

/// Waits until a rotation is in a state.
pub async fn in_state(operator: &Operator, id: &str, state: RotationState) -> Result<Rotation> {
    let found = shown(operator, id, 60, |shown| shown.state() == state).await;
    found.with_context(|| format!("it is not {}", state.as_str_name()))
}

/// Action, outcome and detail of every audit entry, oldest first.
pub async fn audit(operator: &mut Operator) -> Result<Vec<(String, String, String)>> {
    let mut stream = operator.list_audit(ListAuditRequest::default()).await?.into_inner();
    let mut entries = Vec::new();
    while let Some(entry) = stream.message().await? {
        entries.push((entry.action, entry.outcome, entry.detail));
    }
    Ok(entries)
}
