//! What scenarios over the wire ask a coordinator, in one line each.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use reseal_proto::v1::{
    ListAuditRequest, RotateRequest, Rotation, RotationRequest, RotationState, Selection,
};
use tonic::Code;

use super::{Operator, Settings};
use crate::product::Binaries;

/// For one scenario.
pub fn runtime() -> tokio::runtime::Runtime {
    reseal_proto::channel::install_crypto();
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

/// A coordinator with fail points.
pub fn settings() -> Result<Settings> {
    Ok(Settings {
        program: Binaries::with_fail_points()?.reseal,
        fleet: "wire".into(),
        log_level: "info".into(),
        tracing: None,
    })
}

/// Looks until something is there.
pub async fn until<T, F: Future<Output = Result<Option<T>>>>(
    what: &str,
    seconds: u64,
    mut look: impl FnMut() -> F,
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

/// Waits until a rotation is in a state.
pub async fn in_state(operator: &Operator, id: &str, state: RotationState) -> Result<Rotation> {
    until(&format!("{id} {}", state.as_str_name()), 60, || {
        let (mut operator, id) = (operator.clone(), id.to_owned());
        async move { Ok(Some(show(&mut operator, &id).await?).filter(|shown| shown.state() == state)) }
    })
    .await
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
