//! One seed from beginning to end, on one thread.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use rcgen::CertificateParams;
use reseal::simulation::Fleet;
use reseal_proto::token;
use reseal_proto::v1::enrolment_client::EnrolmentClient;
use reseal_proto::v1::{EnrolRequest, InviteHostRequest};
use tokio::runtime::Builder;

use super::chaos::{self, Agents};
use super::host::{Host, Identity};
use super::operator;
use super::rest;
use super::runner::pkcs8;
use super::world::{self, BEGIN, FLEET, World};

/// What became of a seed.
pub struct Outcome {
    /// Everything that happened.
    pub history: Vec<String>,
    /// The rule that was broken.
    pub violation: Option<String>,
    /// Counts of what happened.
    pub seen: BTreeMap<&'static str, u64>,
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(Builder::new_current_thread().enable_time().start_paused(true).build()?)
}

/// The fleet every seed begins with.
pub fn make_fleet() -> Result<Fleet> {
    let directory = tempfile::tempdir()?;
    runtime()?.block_on(Fleet::make(FLEET, directory.path(), BEGIN))
}

/// Lives through a seed.
pub fn run(seed: u64, fleet: Arc<Fleet>) -> Result<Outcome> {
    let runtime = runtime()?;
    let outcome = runtime.block_on(async {
        world::begin();
        let world = World::new(seed, fleet);
        live(&world).await?;
        let history = world.history.all();
        Ok(Outcome { history, violation: world.checker.violation(), seen: world.checker.seen() })
    });
    // What still runs ends here, and with it everything that belongs to the seed.
    drop(runtime);
    outcome
}

async fn live(world: &Arc<World>) -> Result<()> {
    world.start().await?;
    let up = world.up().context("it runs")?;
    operator::set_policy(world, &up, None).await?;
    for host in &world.hosts {
        enrol(world, host).await?;
    }
    let mut agents = Agents::stopped(world);
    agents.start_all(world);
    world.history.note("world", "chaos");
    let operator = tokio::spawn(operator::run(world.clone()));
    chaos::strike(world, &mut agents).await;
    operator.abort();
    world.history.note("world", "calm");
    if world.checker.violation().is_some() {
        return Ok(());
    }
    chaos::heal(world, &mut agents).await;
    rest::check(world).await;
    Ok(())
}

/// Invites a host and enrols it, through the real services.
pub(super) async fn enrol(world: &World, host: &Host) -> Result<()> {
    let up = world.up().context("it runs")?;
    let invitation = InviteHostRequest { name: host.name.to_string(), ..InviteHostRequest::default() };
    let (mut operator, request) = world.operator(&up, invitation);
    let text = operator.invite_host(request).await?.into_inner().token;
    let token = token::decode(&text)?;
    let pkcs8 = pkcs8(&world.random.bytes());
    let key = rcgen::KeyPair::try_from(&pkcs8[..])?;
    let csr = CertificateParams::default().serialize_request(&key)?.der().to_vec();
    let request =
        EnrolRequest { token_id: token.id, secret: token.secret, csr, agent_version: "model".into() };
    let reply = EnrolmentClient::new(up.routes.clone()).enrol(request).await?.into_inner();
    let certificate = reply.chain.into_iter().next().context("an identity")?;
    host.disk().identity = Some(Identity { fleet: reply.fleet, certificate, pkcs8 });
    Ok(())
}
