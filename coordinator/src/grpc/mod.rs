//! The wire's side of the coordinator: three services on one port.
//!
//! It checks who calls, turns messages into values, and meets the rest of the
//! coordinator in the store, the projection and the issuance. It never calls
//! the engine.

mod agent;
mod auth;
mod convert;
mod enrolment;
mod inventory;
mod operator;
mod outbox;
mod refused;
mod results;
mod sessions;
pub mod tls;

use std::sync::Arc;
use std::time::Duration;

use reseal_proto::v1::agent_server::AgentServer;
use reseal_proto::v1::enrolment_server::EnrolmentServer;
use reseal_proto::v1::operator_server::OperatorServer;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;
use tonic::transport::Server;

use self::agent::{AgentParts, AgentService};
use self::enrolment::EnrolmentService;
use self::operator::OperatorService;
use self::sessions::Sessions;
use crate::domain::Now;
use crate::issuance::Issuance;
use crate::issuance::control::ControlPlane;
use crate::issuance::keyring::Keyring;
use crate::metrics::Metrics;
use crate::store::{Presence, Store};
use crate::view::View;

/// An agent's message at most: a whole inventory.
const AGENT_MESSAGE: usize = 2 * 1024 * 1024;
/// An operator's or enrolling host's message at most.
const SMALL_MESSAGE: usize = 1024 * 1024;
const ENROL_MESSAGE: usize = 32 * 1024;
/// Flow-control windows per stream and connection: an agent sends little, and
/// what it sends is not large.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 128 * 1024;

/// What the services are made of.
pub struct Parts {
    /// The store.
    pub store: Store,
    /// Its projection.
    pub view: View,
    /// Who is connected.
    pub presence: Presence,
    /// CSRs in, chains out.
    pub issuance: Issuance,
    /// The control plane.
    pub control: Arc<ControlPlane>,
    /// Wraps CA keys.
    pub keyring: Arc<Keyring>,
    /// Counters.
    pub metrics: Metrics,
    /// What join tokens say about where to connect.
    pub advertise: Arc<[String]>,
    /// The clock.
    pub now: Now,
    /// When this process started.
    pub started_at: i64,
}

/// The server failed.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// No TLS.
    #[error("cannot set up TLS")]
    Tls(#[from] tls::TlsError),
    /// tonic gave up.
    #[error("the gRPC server stopped")]
    Transport(#[from] tonic::transport::Error),
}

/// Serves until `shutdown` says so.
pub async fn serve(
    listener: TcpListener,
    parts: Parts,
    mut shutdown: watch::Receiver<bool>,
) -> Result<(), ServeError> {
    let config = tls::server_config(parts.control.clone(), parts.now)?;
    let (routes, dispatcher) = services(parts);
    let result = Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .http2_keepalive_timeout(Some(Duration::from_secs(20)))
        .max_concurrent_streams(32)
        .add_routes(routes)
        .serve_with_incoming_shutdown(ReceiverStream::new(tls::accept(listener, config)), async move {
            let _ = shutdown.wait_for(|stop| *stop).await;
        })
        .await;
    dispatcher.abort();
    Ok(result?)
}

/// The services, and the task that wakes their sessions.
pub(crate) fn services(parts: Parts) -> (Routes, JoinHandle<()>) {
    let sessions = Sessions::default();
    let dispatcher = tokio::spawn(sessions.clone().dispatch(parts.view.clone()));
    let enrolment =
        EnrolmentService::new(parts.store.clone(), parts.control.clone(), parts.metrics.clone(), parts.now);
    let agent = AgentService::new(AgentParts {
        store: parts.store.clone(),
        view: parts.view.clone(),
        presence: parts.presence.clone(),
        sessions: sessions.clone(),
        issuance: parts.issuance.clone(),
        control: parts.control.clone(),
        metrics: parts.metrics,
        now: parts.now,
    });
    let operator = OperatorService {
        store: parts.store,
        view: parts.view,
        presence: parts.presence,
        sessions,
        issuance: parts.issuance,
        control: parts.control,
        keyring: parts.keyring,
        advertise: parts.advertise,
        now: parts.now,
        started_at: parts.started_at,
        starting: Arc::default(),
        watches: Arc::new(Semaphore::new(operator::WATCHES)),
        exports: Arc::new(Semaphore::new(operator::EXPORTS)),
        sorts: Arc::new(Semaphore::new(operator::certificates::SORTED)),
        refusals: Arc::default(),
    };
    let routes = Routes::new(EnrolmentServer::new(enrolment).max_decoding_message_size(ENROL_MESSAGE))
        .add_service(AgentServer::new(agent).max_decoding_message_size(AGENT_MESSAGE))
        .add_service(OperatorServer::new(operator).max_decoding_message_size(SMALL_MESSAGE));
    (routes, dispatcher)
}
