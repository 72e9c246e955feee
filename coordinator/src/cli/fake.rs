//! For tests: an operator service that plays a script, over real TLS.
//!
//! It proves what the client does when answers get lost and streams break; what
//! a coordinator answers is the server's own tests' business.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use reseal_proto::identity::COORDINATOR_DNS_NAME;
use reseal_proto::v1::operator_server::{Operator, OperatorServer};
use reseal_proto::v1::{self, Rotation};
use rustls_pki_types::PrivateKeyDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status};

use super::credentials::{Credentials, pem};

type Answer<T> = Result<Response<T>, Status>;
type Later<'a, T> = Pin<Box<dyn Future<Output = Answer<T>> + Send + 'a>>;
type Items<T> = tokio_stream::Iter<std::vec::IntoIter<Result<T, Status>>>;

/// What the service answers, in order, and what it was asked.
#[derive(Default)]
pub(crate) struct Script {
    /// One entry per `WatchRotation`: the snapshots of that stream.
    pub(crate) watches: VecDeque<Vec<Result<Rotation, Status>>>,
    /// One entry per `Rotate`.
    pub(crate) rotates: VecDeque<Result<String, Status>>,
    /// Idempotency keys seen.
    pub(crate) keys: Vec<Vec<u8>>,
    /// Connections accepted.
    pub(crate) connections: u32,
}

/// A service that runs until it is dropped.
pub(crate) struct Fake {
    pub(crate) script: Arc<Mutex<Script>>,
    pub(crate) address: SocketAddr,
    ca: Vec<u8>,
    acceptor: TlsAcceptor,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Fake {
    /// Starts it on a free loopback port.
    pub(crate) async fn start(script: Script) -> Self {
        let (ca, acceptor) = tls();
        let script = Arc::new(Mutex::new(script));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = serve(listener, acceptor.clone(), script.clone());
        Self { script, address, ca, acceptor, task }
    }

    /// Dies with every connection; [`Fake::revive`] brings it back at the same address.
    pub(crate) async fn die(&mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }

    /// Listens again.
    pub(crate) async fn revive(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.task = serve(listener, self.acceptor.clone(), self.script.clone());
    }

    /// Credentials of an operator that trusts it; the first address is a dead one.
    pub(crate) fn credentials(&self, folder: &std::path::Path) -> std::path::PathBuf {
        let key = KeyPair::generate().unwrap();
        let own = CertificateParams::default().self_signed(&key).unwrap();
        let credentials = Credentials {
            fleet: "demo".into(),
            coordinators: vec!["127.0.0.1:1".into(), self.address.to_string()],
            operator: "alice".into(),
            ca: pem("CERTIFICATE", &self.ca),
            certificate: pem("CERTIFICATE", own.der()),
            key: key.serialize_pem(),
        };
        let path = folder.join("alice.json");
        let file = super::file::NewFile::reserve(&path, 0o600).unwrap();
        credentials.write(file).unwrap();
        path
    }
}

/// A CA, and an acceptor with a certificate for the name every client expects.
fn tls() -> (Vec<u8>, TlsAcceptor) {
    reseal_proto::channel::install_crypto();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let key = KeyPair::generate().unwrap();
    let ca = params.self_signed(&key).unwrap().der().to_vec();
    let issuer = Issuer::new(params, key);
    let leaf_key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec![COORDINATOR_DNS_NAME.to_owned()])
        .unwrap()
        .signed_by(&leaf_key, &issuer)
        .unwrap();
    let der = PrivateKeyDer::try_from(leaf_key.serialize_der()).unwrap();
    let mut config = rustls::ServerConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], der)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    (ca, TlsAcceptor::from(Arc::new(config)))
}

fn serve(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    script: Arc<Mutex<Script>>,
) -> tokio::task::JoinHandle<()> {
    let service = OperatorServer::new(Player(script.clone()));
    let incoming = futures_util::stream::unfold((listener, acceptor), move |(listener, acceptor)| {
        let script = script.clone();
        async move {
            let accepted = async {
                let (stream, _) = listener.accept().await?;
                script.lock().unwrap().connections += 1;
                acceptor.accept(stream).await.map(Secured)
            };
            Some((accepted.await, (listener, acceptor)))
        }
    });
    tokio::spawn(async move {
        let _ = tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming).await;
    })
}

struct Secured(TlsStream<TcpStream>);

impl Connected for Secured {
    type ConnectInfo = ();
    fn connect_info(&self) {}
}

impl AsyncRead for Secured {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Secured {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

struct Player(Arc<Mutex<Script>>);

impl Player {
    fn watch(&self) -> Answer<Items<Rotation>> {
        let next = self.0.lock().unwrap().watches.pop_front();
        let snapshots = next.ok_or_else(|| Status::unavailable("the script is over"))?;
        Ok(Response::new(tokio_stream::iter(snapshots)))
    }

    fn start(&self, request: v1::RotateRequest) -> Answer<v1::RotateReply> {
        let mut script = self.0.lock().unwrap();
        script.keys.push(request.idempotency_key);
        let next = script.rotates.pop_front().ok_or_else(|| Status::unavailable("the script is over"))?;
        next.map(|id| Response::new(v1::RotateReply { id }))
    }
}

/// Methods as `async_trait` writes them; those without a body are not part of any script.
macro_rules! methods {
    ($($name:ident($request:ty) -> $reply:ty $(= $body:expr)?;)*) => {
        $(fn $name<'a, 'b>(&'a self, request: Request<$request>) -> Later<'b, $reply>
        where
            'a: 'b,
            Self: 'b,
        {
            let answer: Answer<$reply> = methods!(@ self, request, $name $(, $body)?);
            Box::pin(std::future::ready(answer))
        })*
    };
    (@ $self:ident, $request:ident, $name:ident, $body:expr) => { $body($self, $request.into_inner()) };
    (@ $self:ident, $request:ident, $name:ident) => {{
        drop($request);
        Err(Status::unimplemented(stringify!($name)))
    }};
}

impl Operator for Player {
    type ListCertificatesStream = Items<v1::CertificateRow>;
    type ListFindingsStream = Items<v1::HostFinding>;
    type WatchRotationStream = Items<Rotation>;
    type EvidenceStream = Items<v1::Chunk>;
    type ListAuditStream = Items<v1::AuditEntry>;
    type ExportStoreStream = Items<v1::Chunk>;

    methods! {
        status(v1::StatusRequest) -> v1::StatusReply;
        invite_host(v1::InviteHostRequest) -> v1::InviteHostReply;
        list_hosts(v1::ListHostsRequest) -> v1::ListHostsReply;
        show_host(v1::HostRequest) -> v1::ShowHostReply;
        ban_host(v1::BanHostRequest) -> v1::Done;
        remove_host(v1::HostRequest) -> v1::Done;
        list_certificates(v1::ListCertificatesRequest) -> Items<v1::CertificateRow>;
        show_certificate(v1::ShowCertificateRequest) -> v1::ShowCertificateReply;
        list_findings(v1::ListFindingsRequest) -> Items<v1::HostFinding>;
        adopt(v1::AdoptRequest) -> v1::AdoptReply;
        set_policy(v1::Policy) -> v1::Done;
        remove_policy(v1::RemovePolicyRequest) -> v1::Done;
        list_policies(v1::ListPoliciesRequest) -> v1::ListPoliciesReply;
        check_policy(v1::CheckPolicyRequest) -> v1::CheckPolicyReply;
        plan(v1::PlanRequest) -> v1::PlanReply;
        rotate(v1::RotateRequest) -> v1::RotateReply = Player::start;
        list_rotations(v1::ListRotationsRequest) -> v1::ListRotationsReply;
        show_rotation(v1::RotationRequest) -> Rotation;
        watch_rotation(v1::RotationRequest) -> Items<Rotation> = |player: &Player, _| player.watch();
        control_rotation(v1::ControlRotationRequest) -> Rotation;
        exclude_host(v1::ExcludeHostRequest) -> Rotation;
        pace_rotation(v1::PaceRotationRequest) -> Rotation;
        evidence(v1::RotationRequest) -> Items<v1::Chunk>;
        list_authorities(v1::ListAuthoritiesRequest) -> v1::ListAuthoritiesReply;
        prepare_authority(v1::PrepareAuthorityRequest) -> v1::PrepareAuthorityReply;
        install_authority(v1::InstallAuthorityRequest) -> v1::Done;
        activate_authority(v1::AuthorityRequest) -> v1::Done;
        taint_authority(v1::TaintAuthorityRequest) -> v1::Done;
        show_trust(v1::ShowTrustRequest) -> v1::TrustBundle;
        add_operator(v1::AddOperatorRequest) -> v1::AddOperatorReply;
        list_operators(v1::ListOperatorsRequest) -> v1::ListOperatorsReply;
        remove_operator(v1::RemoveOperatorRequest) -> v1::Done;
        list_audit(v1::ListAuditRequest) -> Items<v1::AuditEntry>;
        export_store(v1::ExportStoreRequest) -> Items<v1::Chunk>;
    }
}
