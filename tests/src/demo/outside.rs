//! What is seen from outside after the rotation: by an OpenSSL client, and by an intruder.

use std::path::PathBuf;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::openssl::{self, Client};
use crate::world::World;

/// What one endpoint serves.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    /// Service and host.
    pub(super) name: String,
    /// "a", "b" or what else its intermediate is.
    pub(super) authority: String,
    /// `openssl verify -x509_strict` accepts the chain, and the file has the same leaf.
    pub(super) good: bool,
}

/// Looks at every endpoint with `openssl s_client`, once, from a fresh process.
pub(super) fn look(world: &World, a: &str, b: &str) -> Result<Vec<Seen>> {
    world
        .services
        .iter()
        .map(|service| {
            let served = openssl::served(&service.endpoint, &world.root)?;
            let intermediate = &served.intermediate()?.fingerprint;
            let authority = match intermediate {
                other if other == a => "a".to_owned(),
                other if other == b => "b".to_owned(),
                other => other.clone(),
            };
            let host = world.fleet.host(&service.host)?;
            let file = std::fs::read_to_string(service.certificate_file(host))?;
            let on_disk = openssl::certificates(&file)?;
            let same = on_disk.first().map(|leaf| &leaf.fingerprint) == Some(&served.leaf().fingerprint);
            Ok(Seen {
                name: format!("{}/{}", service.host, service.name),
                authority,
                good: same && openssl::verify_strict(&served, &world.root).is_ok(),
            })
        })
        .collect()
}

/// A relying party, and what it said to a certificate of the compromised issuer.
#[derive(Clone, Debug)]
pub(super) struct Verdict {
    /// Service and host.
    pub(super) name: String,
    /// HTTP status for the stolen client certificate.
    pub(super) status: u16,
    /// Whether it was let in.
    pub(super) accepts: bool,
    /// Whether a client certificate of the new issuer is let in: without that, a refusal
    /// proves nothing.
    pub(super) control: bool,
}

/// Somebody with a client certificate that the compromised issuer issued.
#[derive(Debug)]
pub(super) struct Intruder {
    directory: TempDir,
    host: String,
    service: String,
}

impl Intruder {
    /// Copies a service's client certificate and key while they are still under A.
    pub(super) fn steal(world: &World, host: &str, service: &str) -> Result<Self> {
        let intruder =
            Self { directory: tempfile::tempdir()?, host: host.to_owned(), service: service.to_owned() };
        for (from, to) in intruder.own(world)?.into_iter().zip(intruder.stolen()) {
            std::fs::copy(&from, to).with_context(|| format!("cannot copy {}", from.display()))?;
        }
        Ok(intruder)
    }

    /// Tries the stolen certificate at every API that asks for one. Read from the HTTP
    /// status: in TLS 1.3 a finished handshake says nothing about the client's certificate.
    pub(super) fn knock(&self, world: &World) -> Result<Vec<Verdict>> {
        let (stolen, own) = (self.stolen(), self.own(world)?);
        let ask = |endpoint, pair: &[PathBuf; 2]| {
            let [chain, key] = pair;
            openssl::status(endpoint, &world.root, Some(Client { chain, key }))
        };
        let apis = world.services.iter().filter(|service| service.endpoint.status == 400);
        apis.map(|service| {
            let status = ask(&service.endpoint, &stolen)?;
            Ok(Verdict {
                name: format!("{}/{}", service.host, service.name),
                status,
                accepts: status == 200,
                control: ask(&service.endpoint, &own)? == 200,
            })
        })
        .collect()
    }

    fn stolen(&self) -> [PathBuf; 2] {
        ["client.crt", "client.key"].map(|name| self.directory.path().join(name))
    }

    fn own(&self, world: &World) -> Result<[PathBuf; 2]> {
        let host = world.fleet.host(&self.host)?;
        let mut services = world.services.iter();
        let service = services.find(|service| service.name == self.service);
        let tls = service.context("no such service")?.tls_directory(host);
        Ok(["client.crt", "client.key"].map(|name| tls.join(name)))
    }
}
