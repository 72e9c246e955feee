//! A fleet at work: hosts, coordinator, agents and services, every certificate issued.
//!
//! The demo and the scenarios begin here. What a world waits for is what a
//! client from outside sees; the coordinator's own opinion is asked only to
//! agree with it.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::fleet::Fleet;
use crate::probe;
use crate::process::wait_until;
use crate::product::{self, Agent, Binaries, Coordinator};
use crate::services::{Endpoint, Service};

/// Hosts of the demo.
pub const HOSTS: [&str; 3] = ["paris-1", "oslo-1", "lima-1"];

/// How long every certificate may take to be issued and served, services' restarts included.
const FIRST_ISSUANCE: Duration = Duration::from_secs(90);

/// Everything that runs. Dropped in this order.
#[derive(Debug)]
pub struct World {
    /// One per host, in the order of the hosts.
    pub agents: Vec<Agent>,
    /// The coordinator.
    pub coordinator: Coordinator,
    /// The hosts.
    pub fleet: Fleet,
    /// What runs on them.
    pub services: Vec<Service>,
    /// The managed root, as a file for clients.
    pub root: PathBuf,
}

impl World {
    /// Starts everything; `say` is told what is done.
    pub fn start(
        hosts: &[&str],
        binaries: Binaries,
        cast: fn(&Fleet) -> Result<Vec<Service>>,
        say: &mut dyn FnMut(&str),
    ) -> Result<Self> {
        let fleet = Fleet::start(hosts)?;
        let places: Vec<String> =
            fleet.hosts.iter().map(|host| format!("{} {}", host.name, host.address)).collect();
        say(&format!("{} Docker hosts: {}", hosts.len(), places.join(", ")));

        let mut coordinator = Coordinator::init(&fleet, binaries)?;
        coordinator.start(&[])?;
        coordinator.set_policy()?;
        let root = coordinator.root()?;
        say(&format!("coordinator on {}, with a CA: authority a active, b prepared", coordinator.address()));

        let agents = product::agents(&fleet, &coordinator)?;
        say(&format!("{} agents enrolled with one-time tokens", agents.len()));

        let services = cast(&fleet)?;
        for service in &services {
            service.start(fleet.host(&service.host)?)?;
        }
        say(&format!("{} service containers, without certificates", services.len()));

        let mut world = Self { agents, coordinator, fleet, services, root };
        if let Err(error) = world.wait_for_certificates("a") {
            let logs = world.fleet.save_logs()?;
            return Err(error.context(format!("the logs are in {}", logs.display())));
        }
        say(&format!(
            "{} certificates issued by a and seen on {} endpoints",
            world.certificates(),
            world.services.len()
        ));
        Ok(world)
    }

    /// Every endpoint, as a client from outside knows it.
    pub fn endpoints(&self) -> Vec<Endpoint> {
        self.services.iter().flat_map(Service::endpoints).collect()
    }

    /// How many certificates the services' labels ask for.
    pub fn certificates(&self) -> usize {
        self.services.iter().map(|service| service.certificates).sum()
    }

    /// Waits until every endpoint serves a chain through an authority, seen from outside,
    /// and the coordinator has every certificate on record as its.
    pub fn wait_for_certificates(&mut self, authority: &str) -> Result<()> {
        let name = format!("builtin/{authority}");
        let fingerprint = self.coordinator.authority(&name)?;
        let waited = self.services.iter().try_for_each(|service| {
            let what = format!("{} under {name} on {}", service.name, service.host);
            wait_until(&what, FIRST_ISSUANCE, || {
                for endpoint in service.endpoints() {
                    let issuer = probe::once(&endpoint, &self.root)?;
                    ensure!(issuer == fingerprint, "it is under another intermediate");
                }
                Ok(())
            })
            .with_context(|| self.last_words(service))
        });
        for agent in &mut self.agents {
            agent.check()?;
        }
        waited?;
        wait_until("every certificate on record", Duration::from_secs(30), || {
            let list = self.coordinator.json(&["certs", "--managed"])?;
            let rows = list.as_array().context("a list of certificates")?;
            // A service that is just being started again would be planned as unserved.
            let runs = |row: &Value| {
                let consumers = row["installation"]["consumers"].as_array();
                consumers.is_some_and(|all| all.iter().all(|one| one["running"] == true))
            };
            let good = |row: &&Value| row["authority"] == name.as_str() && row["status"] == "ok" && runs(row);
            let count = rows.iter().filter(good).count();
            if count != self.certificates() {
                bail!("{count} of {} are on record as issued by {name} and in use", self.certificates());
            }
            Ok(())
        })
    }

    /// The end of a service's log, for the error that says it does not answer.
    fn last_words(&self, service: &Service) -> String {
        let engine = self.fleet.host(&service.host).map(|host| &host.engine);
        let log = engine.and_then(|engine| engine.logs(&service.name));
        let log = log.unwrap_or_else(|error| error.to_string());
        let lines: Vec<&str> = log.lines().collect();
        let end = lines[lines.len().saturating_sub(5)..].join("\n");
        format!("service {} said last:\n{end}", service.name)
    }
}

/// Ten services over three hosts: nginx, HAProxy, and an API that two gateways on other
/// hosts reach by mTLS.
pub fn ten_services(fleet: &Fleet) -> Result<Vec<Service>> {
    let [paris, oslo, lima] = HOSTS.map(|name| fleet.host(name));
    let (paris, oslo, lima) = (paris?, oslo?, lima?);
    let api = Service::mtls_api(paris, "api", 8443);
    let gateway = Service::gateway(oslo, "gateway", 443, &api.endpoint);
    let portal = Service::gateway(lima, "portal", 443, &api.endpoint);
    Ok(vec![
        Service::site(paris, "shop", 443, "ecdsa-p256"),
        api,
        Service::haproxy(paris, "blog", 8444),
        gateway,
        Service::site(oslo, "docs", 8443, "rsa-2048"),
        Service::haproxy(oslo, "edge", 8444),
        portal,
        Service::site(lima, "wiki", 8443, "ecdsa-p384"),
        Service::haproxy(lima, "cdn", 8444),
        Service::site(lima, "status", 8445, "ecdsa-p256"),
    ])
}
