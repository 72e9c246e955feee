//! A simulated agent: a real identity, stream, keys and signatures; no containers.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use prost::Message as _;
use rcgen::{CertificateParams, KeyPair};
use reseal_proto::channel::{self, Credentials, Trust};
use reseal_proto::v1::agent_client::AgentClient;
use reseal_proto::v1::agent_message::Body as ToCoordinator;
use reseal_proto::v1::coordinator_message::Body as FromCoordinator;
use reseal_proto::v1::enrolment_client::EnrolmentClient;
use reseal_proto::v1::*;
use reseal_proto::{facts, token};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;

use super::coordinator::Coordinator;
use super::figures::Tally;

/// What all agents share.
pub(crate) struct Fleet {
    /// Agents that have their welcome.
    pub(crate) connected: Tally,
    /// Certificates that arrived.
    pub(crate) issued: Tally,
    /// Results that were acknowledged.
    pub(crate) acknowledged: Tally,
    /// When each order arrived.
    pub(crate) order_times: Mutex<Vec<Instant>>,
    declared: watch::Sender<usize>,
    paused: AtomicBool,
}

impl Fleet {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            connected: Tally::default(),
            issued: Tally::default(),
            acknowledged: Tally::default(),
            order_times: Mutex::default(),
            declared: watch::Sender::new(0),
            paused: AtomicBool::new(false),
        })
    }

    /// From now on every agent has this many installations.
    pub(crate) fn declare(&self, number: usize) {
        self.declared.send_replace(number);
    }

    /// Agents note orders and do nothing about them.
    pub(crate) fn pause_work(&self, paused: bool) {
        self.paused.store(paused, Ordering::Relaxed);
    }
}

/// One agent.
pub(crate) struct Agent {
    name: String,
    fleet_name: String,
    address: String,
    anchor: CertificateDer<'static>,
    identity: Vec<u8>,
    key: Vec<u8>,
    local: IpAddr,
}

/// Invites and enrols `number` hosts, as real agents do.
pub(crate) async fn enrol(
    coordinator: &Coordinator,
    number: usize,
    _: &Arc<Fleet>,
) -> anyhow::Result<Vec<Agent>> {
    let slots = Arc::new(Semaphore::new(64));
    let operator = coordinator.operator().await?;
    let mut tasks = Vec::new();
    for at in 0..number {
        let (slots, mut operator) = (slots.clone(), operator.clone());
        tasks.push(tokio::spawn(async move {
            let _slot = slots.acquire().await?;
            let name = format!("sim-{at:05}");
            let invited =
                operator.invite_host(InviteHostRequest { name, ..InviteHostRequest::default() }).await?;
            let text = invited.into_inner().token;
            // An address of its own for every 10,000 agents: a pair of addresses has 28,000 ports.
            let local = IpAddr::V4(Ipv4Addr::new(127, 0, 1, u8::try_from(1 + at / 10_000)?));
            enrol_one(&text, local).await
        }));
    }
    let mut agents = Vec::with_capacity(number);
    for task in tasks {
        agents.push(task.await??);
    }
    Ok(agents)
}

async fn enrol_one(text: &str, local: IpAddr) -> anyhow::Result<Agent> {
    let token = token::decode(text)?;
    let address = token.coordinators.first().context("a token has an address")?.clone();
    let pin = token.ca_pin[..].try_into().context("a pin has 32 bytes")?;
    let config = channel::client_config(Trust::Pin(pin), None)?;
    let mut client = EnrolmentClient::new(channel::connect_from(&address, config, Some(local)).await?);
    let key = KeyPair::generate()?;
    let csr = CertificateParams::default().serialize_request(&key)?.der().to_vec();
    let request =
        EnrolRequest { token_id: token.id, secret: token.secret, csr, agent_version: "simulated".into() };
    let reply = client.enrol(request).await?.into_inner();
    let anchor = reply.chain.last().context("the chain ends in the CA")?.clone();
    Ok(Agent {
        name: reply.host,
        fleet_name: reply.fleet,
        address,
        anchor: anchor.into(),
        identity: reply.chain.into_iter().next().unwrap_or_default(),
        key: key.serialize_der(),
        local,
    })
}

struct Held {
    id: String,
    name: String,
    facts: Option<CertificateFacts>,
}

impl Agent {
    /// Connects and serves until it is aborted; a lost stream is an error of the benchmark.
    pub(crate) async fn run(self: Arc<Self>, fleet: Arc<Fleet>) {
        if let Err(error) = self.session(&fleet).await {
            eprintln!("{}: {error:#}", self.name);
        }
    }

    async fn session(&self, fleet: &Fleet) -> anyhow::Result<()> {
        let credentials = Credentials {
            chain: vec![CertificateDer::from(self.identity.clone())],
            key: PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.key.clone())),
        };
        let config = channel::client_config(Trust::Anchor(self.anchor.clone()), Some(credentials))?;
        let mut client =
            AgentClient::new(channel::connect_from(&self.address, config, Some(self.local)).await?);
        let (sender, receiver) = mpsc::channel(8);
        let send = |body| {
            let sender = sender.clone();
            async move { sender.send(AgentMessage { body: Some(body) }).await.context("the stream is gone") }
        };
        send(ToCoordinator::Hello(Hello {
            protocol: 1,
            agent_version: "simulated".into(),
            now: now(),
            ..Hello::default()
        }))
        .await?;
        let mut inbox = client.session(ReceiverStream::new(receiver)).await?.into_inner();
        let mut declared = fleet.declared.subscribe();
        let mut held: Vec<Held> = Vec::new();
        loop {
            tokio::select! {
                changed = declared.changed() => {
                    changed?;
                    let number = *declared.borrow_and_update();
                    held = (0..number).map(|at| self.installation(at)).collect();
                    send(ToCoordinator::Inventory(self.inventory(&held))).await?;
                }
                message = inbox.message() => match message?.and_then(|message| message.body) {
                    Some(FromCoordinator::Welcome(_)) => fleet.connected.add(1),
                    Some(FromCoordinator::InventoryWanted(_)) => {
                        send(ToCoordinator::Inventory(self.inventory(&held))).await?;
                    }
                    Some(FromCoordinator::Order(order)) => {
                        fleet.order_times.lock().expect("no agent panics").push(Instant::now());
                        if !fleet.paused.load(Ordering::Relaxed) {
                            self.work(order, &mut held, fleet, &mut inbox, &sender).await?;
                        }
                    }
                    Some(FromCoordinator::ResultAck(_)) => fleet.acknowledged.add(1),
                    Some(FromCoordinator::Chains(_)) | None => anyhow::bail!("unexpected end or answer"),
                },
            }
        }
    }

    /// One target first, then the rest together, then the signed result.
    async fn work(
        &self,
        order: Order,
        held: &mut [Held],
        fleet: &Fleet,
        inbox: &mut tonic::Streaming<CoordinatorMessage>,
        sender: &mpsc::Sender<AgentMessage>,
    ) -> anyhow::Result<()> {
        let mut proofs = Vec::with_capacity(order.installations.len());
        let (first, rest) = order.installations.split_at(1.min(order.installations.len()));
        for group in [first, rest] {
            if group.is_empty() {
                continue;
            }
            let csrs = group.iter().map(|id| csr(id, held)).collect::<anyhow::Result<Vec<_>>>()?;
            let body = ToCoordinator::Csrs(CsrBatch {
                batch: order.batch.clone(),
                csrs,
                traceparent: order.traceparent.clone(),
            });
            sender.send(AgentMessage { body: Some(body) }).await.context("the stream is gone")?;
            let chains = loop {
                match inbox.message().await?.and_then(|message| message.body) {
                    Some(FromCoordinator::Chains(chains)) => break chains,
                    Some(_) => {}
                    None => anyhow::bail!("the stream ended"),
                }
            };
            for issued in chains.issued {
                anyhow::ensure!(issued.refusal.is_none(), "refused: {:?}", issued.refusal);
                let chain = issued.intermediates.iter().map(Vec::as_slice);
                let facts = facts::of_chain(&issued.certificate, chain)?;
                let place = held
                    .iter_mut()
                    .find(|held| held.id == issued.installation)
                    .context("unknown installation")?;
                let before = place.facts.as_ref().map(|facts| facts.fingerprint.clone()).unwrap_or_default();
                proofs.push(TargetProof {
                    installation: issued.installation,
                    before,
                    after: facts.fingerprint.clone(),
                    state: TargetState::Verified.into(),
                    grade: Grade::ReloadObserved.into(),
                    ..TargetProof::default()
                });
                place.facts = Some(facts);
            }
            fleet.issued.add(group.len());
        }
        let payload = EvidencePayload {
            format: 1,
            fleet: self.fleet_name.clone(),
            host: self.name.clone(),
            rotation: order.rotation,
            batch: order.batch.clone(),
            epoch: order.epoch,
            started_at: now(),
            finished_at: now(),
            agent_version: "simulated".into(),
            targets: proofs,
        }
        .encode_to_vec();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &self.key)
            .ok()
            .context("a P-256 key")?;
        let signature = key
            .sign(&aws_lc_rs::rand::SystemRandom::new(), &payload)
            .ok()
            .context("signs")?
            .as_ref()
            .to_vec();
        let body = ToCoordinator::Result(BatchResult {
            batch: order.batch,
            payload,
            signature,
            identity: self.identity.clone(),
            inventory: Some(self.inventory(held)),
        });
        sender.send(AgentMessage { body: Some(body) }).await.context("the stream is gone")
    }

    fn installation(&self, at: usize) -> Held {
        Held {
            id: format!("/srv/service-{at}/tls/site.crt"),
            name: format!("s{at}.{}.simulated.test", self.name),
            facts: None,
        }
    }

    fn inventory(&self, held: &[Held]) -> InventoryDelta {
        let upserted: Vec<Installation> = held
            .iter()
            .map(|held| Installation {
                id: held.id.clone(),
                label: format!("service/{}", held.name),
                names: vec![held.name.clone()],
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
                }],
                endpoints: vec![Endpoint { address: "172.17.0.2:443".into(), sni: held.name.clone() }],
                certificate: held.facts.clone(),
                bundles: Vec::new(),
            })
            .collect();
        let digest = facts::sha256(
            &upserted.iter().flat_map(|installation| installation.encode_to_vec()).collect::<Vec<_>>(),
        );
        InventoryDelta {
            base_digest: Vec::new(),
            digest: digest.to_vec(),
            upserted,
            ..InventoryDelta::default()
        }
    }
}

fn csr(id: &str, held: &[Held]) -> anyhow::Result<Csr> {
    let held = held.iter().find(|held| held.id == id).context("ordered what is not there")?;
    let key = KeyPair::generate()?;
    let der = CertificateParams::new(vec![held.name.clone()])?.serialize_request(&key)?.der().to_vec();
    Ok(Csr { installation: id.to_owned(), der, usage: Usage::Server.into() })
}

fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(since.as_secs()).unwrap_or_default()
}
