//! An agent that is nothing but a client.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use prost::Message as _;
use rcgen::{CertificateParams, KeyPair};
use reseal_proto::channel::{self, Credentials, Trust};
use reseal_proto::v1::InventoryDelta;
use reseal_proto::v1::agent_client::AgentClient;
use reseal_proto::v1::agent_message::Body as ToCoordinator;
use reseal_proto::v1::coordinator_message::Body as FromCoordinator;
use reseal_proto::v1::enrolment_client::EnrolmentClient;
use reseal_proto::v1::{
    AgentMessage, BatchResult, CertificateFacts, Consumer, CoordinatorMessage, Csr, Endpoint, EnrolRequest,
    EvidencePayload, Hello, Installation, Issued, JoinToken, RenewRequest, Usage,
};
use reseal_proto::{facts, token};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// An agent's identity, as enrolment gave it.
#[derive(Clone)]
pub struct Identity {
    /// The host.
    pub host: String,
    /// The fleet.
    pub fleet: String,
    address: String,
    anchor: CertificateDer<'static>,
    certificate: Vec<u8>,
    key: Vec<u8>,
    local: Option<IpAddr>,
}

/// Reads a token's text.
pub fn open_token(text: &str) -> Result<JoinToken> {
    Ok(token::decode(text)?)
}

impl Identity {
    /// Enrols with a token and a new key; `local` is the address to connect from.
    pub async fn enrol(text: &str, local: Option<IpAddr>) -> Result<Self> {
        Self::enrol_with(open_token(text)?, &KeyPair::generate()?, local).await
    }

    /// Enrols with a token that may have been tampered with, and a given key.
    pub async fn enrol_with(token: JoinToken, key: &KeyPair, local: Option<IpAddr>) -> Result<Self> {
        let address = token.coordinators.first().context("a token has an address")?.clone();
        let pin = token.ca_pin[..].try_into().context("a pin has 32 bytes")?;
        let config = channel::client_config(Trust::Pin(pin), None)?;
        let mut client = EnrolmentClient::new(channel::connect_from(&address, config, local).await?);
        let csr = CertificateParams::default().serialize_request(key)?.der().to_vec();
        let request =
            EnrolRequest { token_id: token.id, secret: token.secret, csr, agent_version: "wire".into() };
        let reply = client.enrol(request).await?.into_inner();
        let anchor = reply.chain.last().context("the chain ends in the CA")?.clone();
        Ok(Self {
            host: reply.host,
            fleet: reply.fleet,
            address,
            anchor: anchor.into(),
            certificate: reply.chain.into_iter().next().unwrap_or_default(),
            key: key.serialize_der(),
            local,
        })
    }

    /// A new identity of the same host; this one is good until that is first used.
    pub async fn renew(&self) -> Result<Self> {
        let key = KeyPair::generate()?;
        let channel = channel::connect_from(&self.address, self.tls()?, self.local).await?;
        let csr = CertificateParams::default().serialize_request(&key)?.der().to_vec();
        let reply = EnrolmentClient::new(channel).renew(RenewRequest { csr }).await?.into_inner();
        let certificate = reply.chain.into_iter().next().context("a certificate")?;
        Ok(Self { certificate, key: key.serialize_der(), ..self.clone() })
    }

    /// A TLS client configuration with this identity.
    pub fn tls(&self) -> Result<std::sync::Arc<rustls::ClientConfig>> {
        let credentials = Credentials {
            chain: vec![CertificateDer::from(self.certificate.clone())],
            key: PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.key.clone())),
        };
        Ok(channel::client_config(Trust::Anchor(self.anchor.clone()), Some(credentials))?)
    }

    /// Opens a session and says Hello.
    pub async fn connect(&self) -> Result<Session> {
        self.connect_at(0).await
    }

    /// Opens a session as one that has seen this epoch.
    pub async fn connect_at(&self, epoch: u64) -> Result<Session> {
        let channel = channel::connect_from(&self.address, self.tls()?, self.local).await?;
        let mut client = AgentClient::new(channel).max_decoding_message_size(4 << 20);
        let (sender, receiver) = mpsc::channel(8);
        let hello =
            Hello { protocol: 1, agent_version: "wire".into(), now: now(), epoch, ..Hello::default() };
        sender.send(AgentMessage { body: Some(ToCoordinator::Hello(hello)) }).await?;
        let inbox = client.session(ReceiverStream::new(receiver)).await?.into_inner();
        Ok(Session { inbox, sender })
    }

    /// Signs a payload as this host.
    pub fn sign(&self, payload: &EvidencePayload) -> Result<BatchResult> {
        let bytes = payload.encode_to_vec();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &self.key)
            .ok()
            .context("a P-256 key")?;
        let random = aws_lc_rs::rand::SystemRandom::new();
        let signature = key.sign(&random, &bytes).ok().context("signs")?.as_ref().to_vec();
        Ok(BatchResult {
            batch: payload.batch.clone(),
            payload: bytes,
            signature,
            identity: self.certificate.clone(),
            inventory: None,
        })
    }
}

/// An open stream.
pub struct Session {
    inbox: tonic::Streaming<CoordinatorMessage>,
    sender: mpsc::Sender<AgentMessage>,
}

impl Session {
    /// Says something.
    pub async fn send(&self, body: ToCoordinator) -> Result<()> {
        self.sender.send(AgentMessage { body: Some(body) }).await.context("the stream is gone")
    }

    /// The next thing the coordinator says; an error when the stream ended.
    pub async fn next(&mut self) -> Result<FromCoordinator> {
        let message = self.inbox.message().await?.context("the stream ended")?;
        message.body.context("an empty message")
    }

    /// The next thing for which `wanted` gives something; what comes before is passed over.
    pub async fn next_that<T>(&mut self, wanted: impl Fn(FromCoordinator) -> Option<T>) -> Result<T> {
        let search = async {
            loop {
                if let Some(found) = wanted(self.next().await?) {
                    return Ok(found);
                }
            }
        };
        match tokio::time::timeout(PATIENCE, search).await {
            Ok(found) => found,
            Err(_) => bail!("the coordinator said nothing of the kind within {} s", PATIENCE.as_secs()),
        }
    }
}

/// An installation of a service that serves `name`.
pub fn installation(id: &str, name: &str, certificate: Option<CertificateFacts>) -> Installation {
    Installation {
        id: id.into(),
        label: format!("service/{name}"),
        names: vec![name.into()],
        usage: Usage::Server.into(),
        key_type: "ecdsa-p256".into(),
        issuer: "builtin".into(),
        layout: "pair".into(),
        consumers: vec![Consumer {
            container: "service".into(),
            container_id: "0123456789ab".into(),
            image: "service:1".into(),
            running: true,
            reload: "signal HUP".into(),
            program: "service".into(),
        }],
        endpoints: vec![Endpoint {
            address: "172.17.0.2:443".into(),
            sni: name.into(),
            ..Endpoint::default()
        }],
        certificate,
        ..Installation::default()
    }
}

/// A whole inventory.
pub fn inventory(installations: Vec<Installation>) -> InventoryDelta {
    let bytes: Vec<u8> = installations.iter().flat_map(|installation| installation.encode_to_vec()).collect();
    InventoryDelta {
        digest: facts::sha256(&bytes).to_vec(),
        upserted: installations,
        ..InventoryDelta::default()
    }
}

/// A CSR with a new key.
pub fn csr(installation: &str, name: &str) -> Result<Csr> {
    let key = KeyPair::generate()?;
    let der = CertificateParams::new(vec![name.to_owned()])?.serialize_request(&key)?.der().to_vec();
    Ok(Csr { installation: installation.into(), der, usage: Usage::Server.into() })
}

/// The facts of what was issued; `intermediates` as they came with it.
pub fn facts_of(issued: &Issued, intermediates: &[Vec<u8>]) -> Result<CertificateFacts> {
    Ok(facts::of_chain(&issued.certificate, intermediates.iter().map(Vec::as_slice))?)
}

/// Seconds since the Unix epoch.
pub fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or_default()
}
