//! What must hold after a rotation and after a crash, looked at from outside.
//!
//! Nothing here asks the product: OpenSSL connects, files are read as they lie
//! on the hosts' disks, and secrets are searched for where they must not be.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::openssl::{self, Served};
use crate::process::{command, run};
use crate::world::World;

/// Every endpoint serves, to a fresh OpenSSL client, a chain through this intermediate that
/// `openssl verify -x509_strict` accepts, and its certificate is the one in the file.
/// Returns what was served, by service.
pub fn sealed_under(world: &World, intermediate: &str) -> Result<BTreeMap<String, Served>> {
    let mut all = BTreeMap::new();
    for service in &world.services {
        let served = openssl::served(&service.endpoint, &world.root)?;
        let found = &served.intermediate()?.fingerprint;
        ensure!(found == intermediate, "{} serves a chain through {}", service.name, served.leaf().issuer);
        openssl::verify_strict(&served, &world.root).with_context(|| service.name.clone())?;
        let file = service.certificate_file(world.fleet.host(&service.host)?);
        let on_disk = openssl::certificates(&fs::read_to_string(&file)?)?;
        ensure!(
            on_disk == served.chain,
            "{} serves another chain than {} holds",
            service.name,
            file.display()
        );
        all.insert(service.name.clone(), served);
    }
    no_mismatched_pair(world)?;
    Ok(all)
}

/// Every certificate on every disk belongs to the key beside it.
pub fn no_mismatched_pair(world: &World) -> Result<()> {
    for service in &world.services {
        for (certificate, key) in service.pairs(world.fleet.host(&service.host)?) {
            ensure!(
                openssl::pair_matches(&certificate, &key)?,
                "{} and {} do not belong together",
                certificate.display(),
                key.display()
            );
        }
    }
    Ok(())
}

/// A private key, in every form in which it could have leaked.
#[derive(Clone)]
pub struct Secret {
    /// Whose key it is.
    pub name: String,
    needles: Vec<Vec<u8>>,
}

/// The private keys that are installed now.
pub fn secrets(world: &World) -> Result<Vec<Secret>> {
    let mut all = Vec::new();
    for service in &world.services {
        for (_, key) in service.pairs(world.fleet.host(&service.host)?) {
            all.push(Secret::read(&key)?);
        }
    }
    Ok(all)
}

impl Secret {
    /// Reads the key in a PEM file.
    pub fn read(file: &Path) -> Result<Self> {
        let pem = run(command("openssl", &["pkey", "-in"]).arg(file))?;
        let text = run(command("openssl", &["pkey", "-noout", "-text", "-in"]).arg(file))?;
        let number = private_number(&text)
            .with_context(|| format!("openssl shows no private number of {}", file.display()))?;
        let base64: Vec<&str> = pem.lines().filter(|line| !line.starts_with('-')).collect();
        // The middle of the key, in PEM text: the line that holds no header any more.
        let line = base64.get(1).context("a key of one line")?;
        let hex = hex::encode(&number);
        Ok(Self {
            name: file.display().to_string(),
            needles: vec![
                line.as_bytes().to_vec(),
                hex.to_uppercase().into_bytes(),
                hex.into_bytes(),
                number,
            ],
        })
    }

    /// Is it in these bytes?
    pub fn is_in(&self, bytes: &[u8]) -> bool {
        self.needles.iter().any(|needle| memchr::memmem::find(bytes, needle).is_some())
    }
}

/// The private scalar of an EC key, or the first 32 bytes of an RSA key's exponent.
fn private_number(text: &str) -> Option<Vec<u8>> {
    let mut lines = text.lines();
    lines.find(|line| line.starts_with("priv:") || line.starts_with("privateExponent:"))?;
    let digits: String = lines
        .take_while(|line| line.starts_with(' '))
        .flat_map(|line| line.chars().filter(char::is_ascii_hexdigit))
        .collect();
    let number = hex::decode(digits).ok()?;
    let start = number.iter().position(|byte| *byte != 0)?;
    let end = number.len().min(start + 32);
    (end - start >= 16).then(|| number[start..end].to_vec())
}

/// Fails when a secret is in any file below these places.
pub fn nowhere_below(places: &[PathBuf], secrets: &[Secret]) -> Result<usize> {
    let mut searched = 0;
    let mut open = places.to_vec();
    while let Some(path) = open.pop() {
        let kind =
            fs::symlink_metadata(&path).with_context(|| format!("cannot look at {}", path.display()))?;
        if kind.is_dir() {
            for entry in fs::read_dir(&path)? {
                open.push(entry?.path());
            }
        } else if kind.is_file() {
            let bytes = fs::read(&path)?;
            searched += 1;
            if let Some(secret) = secrets.iter().find(|secret| secret.is_in(&bytes)) {
                bail!("the private key {} is in {}", secret.name, path.display());
            }
        }
    }
    Ok(searched)
}

/// Where no installation's private key may be: the coordinator's files, the agents' state,
/// every log.
pub fn forbidden_places(world: &World) -> Result<Vec<PathBuf>> {
    let mut places = vec![world.coordinator.directory().to_owned()];
    for host in &world.fleet.hosts {
        for name in ["agent", "agent.log", "agent.toml", "engine/dockerd.log"] {
            places.push(host.directory().join(name));
        }
    }
    places.push(world.fleet.save_logs()?);
    Ok(places)
}
