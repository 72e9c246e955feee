//! A coordinator that does what a test says.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use reseal_proto::facts::sha256;
use reseal_proto::identity::COORDINATOR_DNS_NAME;
use reseal_proto::v1::agent_server::{Agent, AgentServer};
use reseal_proto::v1::enrolment_server::{Enrolment, EnrolmentServer};
use reseal_proto::v1::{
    AgentMessage, Chains, CoordinatorMessage, CsrBatch, EnrolRequest, IdentityReply, Issued, JoinToken,
    Order, RenewRequest, Welcome, agent_message, coordinator_message,
};
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

pub(crate) const FLEET: &str = "f";
pub(crate) const EPOCH: u64 = 5;
/// How long the server's certificate is good; seconds.
const VALID: i64 = 90 * 86_400;

/// A CA certificate and its key.
pub(crate) struct Ca {
    pub(crate) certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    fn new(name: &str, depth: u8, parent: Option<&Self>) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(depth));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().unwrap();
        let certificate = match parent {
            None => params.self_signed(&key).unwrap(),
            Some(parent) => params.signed_by(&key, &parent.issuer).unwrap(),
        };
        Self { certificate: certificate.der().clone(), issuer: Issuer::new(params, key) }
    }
}

/// What the services share with the test.
struct Shared {
    control: Ca,
    root: Ca,
    intermediate: Ca,
    received: mpsc::Sender<AgentMessage>,
    outbound: Mutex<Option<mpsc::Sender<Result<CoordinatorMessage, Status>>>>,
    epoch: Mutex<u64>,
    /// Seconds an identity lives.
    lifetime: Mutex<u64>,
    enrolments: Mutex<Vec<Vec<u8>>>,
    renewals: Mutex<u32>,
    /// Answers to these calls get lost.
    lose_answers: Mutex<u32>,
    refuse_renewals: Mutex<bool>,
    /// Seconds by which its clock is ahead of the host's.
    ahead: Mutex<i64>,
    /// Seconds that identities are old when they are made.
    age: Mutex<u64>,
    /// TLS handshakes that came to nothing.
    refused: Mutex<u32>,
    /// Fingerprints of the client certificates that opened a session.
    peers: Mutex<Vec<[u8; 32]>>,
}

pub(crate) struct Coordinator {
    pub(crate) address: String,
    pub(crate) received: mpsc::Receiver<AgentMessage>,
    shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Coordinator {
    pub(crate) async fn start() -> Self {
        // Made just now by a clock that is hours ahead: hosts with a slow one join all the same.
        Self::with_certificate_from(5 * 3600).await
    }

    pub(crate) async fn with_expired_certificate() -> Self {
        Self::with_certificate_from(-(VALID + 60)).await
    }

    async fn with_certificate_from(begins_in: i64) -> Self {
        reseal_proto::channel::install_crypto();
        let root = Ca::new("root", 1, None);
        let (sender, received) = mpsc::channel(256);
        let shared = Arc::new(Shared {
            control: Ca::new("control plane", 0, None),
            intermediate: Ca::new("intermediate", 0, Some(&root)),
            root,
            received: sender,
            outbound: Mutex::new(None),
            epoch: Mutex::new(EPOCH),
            lifetime: Mutex::new(86_400),
            enrolments: Mutex::default(),
            renewals: Mutex::default(),
            lose_answers: Mutex::default(),
            refuse_renewals: Mutex::default(),
            ahead: Mutex::default(),
            age: Mutex::default(),
            refused: Mutex::default(),
            peers: Mutex::default(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server_config(&shared.control, begins_in)));
        let (connections, incoming) = mpsc::channel(16);
        let task = tokio::spawn({
            let shared = shared.clone();
            async move {
                let ends = shared.clone();
                let server = tonic::transport::Server::builder()
                    .add_service(EnrolmentServer::from_arc(shared.clone()))
                    .add_service(AgentServer::from_arc(shared))
                    .serve_with_incoming(ReceiverStream::new(incoming));
                let accept = async {
                    loop {
                        let (stream, _) = listener.accept().await.unwrap();
                        match acceptor.accept(stream).await {
                            Ok(stream) => {
                                let _ = connections.send(Ok::<_, std::io::Error>(Connection(stream))).await;
                            }
                            Err(_) => *ends.refused.lock().unwrap() += 1,
                        }
                    }
                };
                tokio::select! {
                    _ = server => {}
                    () = accept => {}
                }
            }
        });
        Self { address, received, shared, task }
    }

    pub(crate) fn token(&self, host: &str) -> String {
        reseal_proto::token::encode(&JoinToken {
            fleet: FLEET.into(),
            host: host.into(),
            id: format!("token-of-{host}"),
            secret: "not checked here".into(),
            expires_at: i64::MAX,
            ca_pin: sha256(&self.shared.control.certificate).to_vec(),
            coordinators: vec![self.address.clone()],
        })
    }

    pub(crate) fn root(&self) -> CertificateDer<'static> {
        self.shared.root.certificate.clone()
    }

    pub(crate) fn intermediate(&self) -> CertificateDer<'static> {
        self.shared.intermediate.certificate.clone()
    }

    pub(crate) async fn send(&self, body: coordinator_message::Body) {
        let outbound = self.shared.outbound.lock().unwrap().clone().expect("a session is up");
        outbound.send(Ok(CoordinatorMessage { body: Some(body) })).await.expect("the session is up");
    }

    pub(crate) async fn order(&self, batch: &str, rotation: &str, installations: &[&str]) {
        let order = Order {
            batch: batch.into(),
            rotation: rotation.into(),
            epoch: *self.shared.epoch.lock().unwrap(),
            installations: installations.iter().map(|id| (*id).to_owned()).collect(),
            ..Order::default()
        };
        self.send(coordinator_message::Body::Order(order)).await;
    }

    /// Signs every CSR of a message and answers.
    pub(crate) async fn issue(&self, csrs: &CsrBatch) {
        let chains = self.chains(csrs);
        self.send(coordinator_message::Body::Chains(chains)).await;
    }

    pub(crate) fn chains(&self, csrs: &CsrBatch) -> Chains {
        let issued = csrs.csrs.iter().map(|csr| {
            let der = CertificateSigningRequestDer::from(csr.der.as_slice());
            let mut request = CertificateSigningRequestParams::from_der(&der).unwrap();
            // Not good before it is made, by this clock.
            let now = Duration::from_secs((self.shared.now() - 1).try_into().unwrap());
            request.params.not_before = (std::time::UNIX_EPOCH + now).into();
            let certificate = request.signed_by(&self.shared.intermediate.issuer).unwrap();
            let facts = reseal_proto::facts::of_chain(certificate.der(), []).unwrap();
            Issued {
                installation: csr.installation.clone(),
                spki_sha256: facts.spki_sha256,
                certificate: certificate.der().to_vec(),
                refusal: None,
            }
        });
        Chains {
            batch: csrs.batch.clone(),
            issued: issued.collect(),
            intermediates: vec![self.shared.intermediate.certificate.to_vec()],
        }
    }

    /// Ends the session without a word.
    pub(crate) fn hang_up(&self) {
        self.shared.outbound.lock().unwrap().take();
    }

    pub(crate) fn set_epoch(&self, epoch: u64) {
        *self.shared.epoch.lock().unwrap() = epoch;
    }

    pub(crate) fn set_lifetime(&self, seconds: u64) {
        *self.shared.lifetime.lock().unwrap() = seconds;
    }

    /// Its clock, as seen from the host.
    pub(crate) fn set_ahead(&self, seconds: i64) {
        *self.shared.ahead.lock().unwrap() = seconds;
    }

    /// How old identities are when they are made.
    pub(crate) fn set_age(&self, seconds: u64) {
        *self.shared.age.lock().unwrap() = seconds;
    }

    pub(crate) fn refuse_renewals(&self) {
        *self.shared.refuse_renewals.lock().unwrap() = true;
    }

    /// How many TLS handshakes were refused.
    pub(crate) fn refused(&self) -> u32 {
        *self.shared.refused.lock().unwrap()
    }

    pub(crate) fn lose_answers(&self, count: u32) {
        *self.shared.lose_answers.lock().unwrap() = count;
    }

    /// SPKI hashes of the CSRs that asked to enrol.
    pub(crate) fn enrolments(&self) -> Vec<Vec<u8>> {
        self.shared.enrolments.lock().unwrap().clone()
    }

    pub(crate) fn renewals(&self) -> u32 {
        *self.shared.renewals.lock().unwrap()
    }

    /// How many different identities have opened sessions.
    pub(crate) fn identities_seen(&self) -> usize {
        self.shared.peers.lock().unwrap().iter().collect::<BTreeSet<_>>().len()
    }
}

impl Shared {
    fn identity(&self, csr: &[u8]) -> Result<IdentityReply, Status> {
        let der = CertificateSigningRequestDer::from(csr);
        let mut request = CertificateSigningRequestParams::from_der(&der)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let lifetime = Duration::from_secs(*self.lifetime.lock().unwrap());
        let now = self.now() - *self.age.lock().unwrap() as i64;
        let now = std::time::UNIX_EPOCH + Duration::from_secs(now.try_into().unwrap());
        request.params.not_before = (now - Duration::from_secs(1)).into();
        request.params.not_after = (now + lifetime).into();
        let name = format!("spiffe://{FLEET}/host/h1");
        request.params.subject_alt_names = vec![SanType::URI(name.try_into().unwrap())];
        request.params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let leaf = request.signed_by(&self.control.issuer).unwrap();
        Ok(IdentityReply {
            fleet: FLEET.into(),
            host: "h1".into(),
            chain: vec![leaf.der().to_vec(), self.control.certificate.to_vec()],
            now: 0,
        })
    }

    fn now(&self) -> i64 {
        reseal_agent::app::now() + *self.ahead.lock().unwrap()
    }

    /// Takes one of the answers that shall get lost.
    fn loses_answer(&self) -> bool {
        let mut left = self.lose_answers.lock().unwrap();
        let lost = *left > 0;
        *left = left.saturating_sub(1);
        lost
    }
}

#[tonic::async_trait]
impl Enrolment for Shared {
    async fn enrol(&self, request: Request<EnrolRequest>) -> Result<Response<IdentityReply>, Status> {
        let csr = request.into_inner().csr;
        let reply = self.identity(&csr)?;
        let facts = reseal_proto::facts::of_chain(&reply.chain[0], []).unwrap();
        self.enrolments.lock().unwrap().push(facts.spki_sha256);
        if self.loses_answer() {
            return Err(Status::unavailable("the answer got lost"));
        }
        Ok(Response::new(reply))
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<IdentityReply>, Status> {
        if *self.refuse_renewals.lock().unwrap() {
            return Err(Status::unavailable("not now"));
        }
        *self.renewals.lock().unwrap() += 1;
        self.identity(&request.into_inner().csr).map(Response::new)
    }
}

#[tonic::async_trait]
impl Agent for Shared {
    type SessionStream = ReceiverStream<Result<CoordinatorMessage, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let peer = request.extensions().get::<Peer>().and_then(|peer| peer.0);
        self.peers.lock().unwrap().push(peer.ok_or_else(|| Status::unauthenticated("no certificate"))?);
        let mut inbound = request.into_inner();
        let (sender, receiver) = mpsc::channel(64);
        let hello = inbound.message().await?;
        let Some(agent_message::Body::Hello(_)) = hello.as_ref().and_then(|hello| hello.body.as_ref()) else {
            return Err(Status::invalid_argument("Hello comes first"));
        };
        let welcome = Welcome {
            protocol: 1,
            fleet: FLEET.into(),
            epoch: *self.epoch.lock().unwrap(),
            now: self.now(),
            anchors: vec![self.root.certificate.to_vec()],
            bundles: vec![reseal_proto::v1::TrustBundle {
                name: "managed-root".into(),
                certificates: vec![self.root.certificate.to_vec()],
            }],
        };
        let welcome = CoordinatorMessage { body: Some(coordinator_message::Body::Welcome(welcome)) };
        sender.send(Ok(welcome)).await.map_err(|_| Status::cancelled("gone"))?;
        *self.outbound.lock().unwrap() = Some(sender);
        let received = self.received.clone();
        tokio::spawn(async move {
            let mut next = hello;
            while let Some(message) = next {
                if received.send(message).await.is_err() {
                    return;
                }
                next = inbound.message().await.ok().flatten();
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

fn server_config(control: &Ca, begins_in: i64) -> rustls::ServerConfig {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![COORDINATOR_DNS_NAME.to_owned()]).unwrap();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let at = |seconds: i64| {
        std::time::UNIX_EPOCH + Duration::from_secs((reseal_agent::app::now() + seconds).try_into().unwrap())
    };
    params.not_before = at(begins_in).into();
    params.not_after = at(begins_in + VALID).into();
    let leaf = params.signed_by(&key, &control.issuer).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(control.certificate.clone()).unwrap();
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).allow_unauthenticated().build().unwrap();
    let mut config = rustls::ServerConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
        .with_client_cert_verifier(verifier)
        .with_single_cert(
            vec![leaf.der().clone(), control.certificate.clone()],
            PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
        )
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// Fingerprint of the client's certificate.
#[derive(Clone)]
struct Peer(Option<[u8; 32]>);

struct Connection(TlsStream<TcpStream>);

impl tonic::transport::server::Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        let certificates = self.0.get_ref().1.peer_certificates();
        Peer(certificates.and_then(|chain| chain.first()).map(|leaf| sha256(leaf)))
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
