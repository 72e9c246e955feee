//! The one gRPC client of the CLI.
//!
//! Tries the coordinators of the credentials file in order, and carries the
//! command's trace context in every request, so that the operator's command is
//! the root of the trace.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use reseal_proto::channel::{self, Trust};
use reseal_proto::facts::sha256;
use reseal_proto::telemetry::traced;
use reseal_proto::v1::operator_client::OperatorClient;
use tonic::Request;
use tonic::body::Body;
use tonic::client::GrpcService;
use tonic::codegen::{Body as HttpBody, Bytes, StdError};
use tonic::transport::Channel;

use super::credentials::Credentials;
use super::exit::CliError;

/// A reply may list a large fleet, bytes.
const MAX_REPLY_BYTES: usize = 256 * 1024 * 1024;
/// A unary call that takes longer has hung.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);

/// The operator service, and what is needed to reach it again.
pub(crate) type Rpc = OperatorClient<Channel>;

/// A connection to one of the coordinators.
pub(crate) struct Client {
    /// The operator service.
    pub(crate) rpc: Rpc,
    /// Who the operator is.
    pub(crate) credentials: Credentials,
    tls: Arc<rustls::ClientConfig>,
}

impl Client {
    /// Reads the credentials and connects.
    pub(crate) async fn connect(credentials: Option<&Path>) -> Result<Self, CliError> {
        let credentials = Credentials::read(credentials)?;
        let tls = channel::client_config(Trust::Anchor(credentials.anchor()?), Some(credentials.identity()?))
            .map_err(|error| CliError::Other(error.into()))?;
        let rpc = dial(&credentials.coordinators, &tls).await?;
        Ok(Self { rpc, credentials, tls })
    }

    /// Connects again, to whichever coordinator answers first in order.
    pub(crate) async fn reconnect(&mut self) -> Result<(), CliError> {
        self.rpc = dial(&self.credentials.coordinators, &self.tls).await?;
        Ok(())
    }

    /// The SHA-256 fingerprint of the control-plane CA this operator trusts.
    pub(crate) fn anchor(&self) -> Result<[u8; 32], CliError> {
        Ok(sha256(&self.credentials.anchor()?))
    }
}

/// A request with the trace context and a time limit.
pub(crate) fn request<T>(message: T) -> Request<T> {
    let mut request = traced(message);
    request.set_timeout(CALL_TIMEOUT);
    request
}

fn limited<T>(client: OperatorClient<T>) -> OperatorClient<T>
where
    T: GrpcService<Body, ResponseBody: HttpBody<Data = Bytes, Error: Into<StdError> + Send> + Send + 'static>,
    StdError: From<T::Error>,
{
    client.max_decoding_message_size(MAX_REPLY_BYTES)
}

async fn dial(coordinators: &[String], tls: &Arc<rustls::ClientConfig>) -> Result<Rpc, CliError> {
    let mut first = None;
    for address in coordinators {
        match channel::connect(address, tls.clone()).await {
            Ok(channel) => {
                return Ok(limited(OperatorClient::new(channel)));
            }
            Err(error) => {
                tracing::debug!(address, "no connection");
                first.get_or_insert(error);
            }
        }
    }
    Err(first.map_or_else(
        || CliError::failed("the credentials file names no coordinator", "add one to it"),
        CliError::Unreachable,
    ))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use reseal_proto::v1::StatusRequest;
    use tonic::Code;
    use tonic::codegen::http::Response;

    use super::*;

    /// What becomes of a reply that begins by saying it has this many bytes, and ends there.
    async fn reply_of(bytes: usize) -> tonic::Status {
        let mut head = vec![0];
        head.extend(u32::try_from(bytes).unwrap().to_be_bytes());
        let service = tower::service_fn(move |_: tonic::codegen::http::Request<Body>| {
            let body = Body::new(String::from_utf8(head.clone()).unwrap());
            let reply = Response::builder().header("content-type", "application/grpc").body(body).unwrap();
            std::future::ready(Ok::<_, Infallible>(reply))
        });
        limited(OperatorClient::new(service)).status(StatusRequest {}).await.unwrap_err()
    }

    #[tokio::test]
    async fn a_giant_reply_is_refused_unread() {
        let refused = reply_of((256 << 20) + 1).await;
        assert_eq!(refused.code(), Code::OutOfRange, "{refused}");
        assert!(refused.message().contains("too large"), "{refused}");
        let cut = reply_of(256 << 20).await;
        assert_ne!(cut.code(), Code::OutOfRange, "a reply of that size would be read: {cut}");
    }
}
