//! What must hold whatever failed, in one list.
//!
//! A scenario notes what the coordinator has acknowledged in a [`Ledger`], lets
//! things fail, and asks [`hold`] at its end: no mismatched pair on any disk, no
//! acknowledged record lost, no target reported verified that is not served, no
//! rotation stuck. What is on record is taken from signed evidence and compared
//! with what OpenSSL is served and what lies on the hosts' disks.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use prost::Message;
use reseal_proto::v1::{EvidencePayload, TargetProof, TargetState};
use serde_json::Value;

use crate::process::wait_until;
use crate::world::World;
use crate::{openssl, proof};

/// Runs `reseal` with `--output json`, as an operator.
pub type Ask<'a> = &'a dyn Fn(&[&str]) -> Result<Value>;

/// What the coordinator has acknowledged so far: it may never be taken back.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    audit: Vec<Value>,
    rotations: BTreeSet<String>,
    authorities: BTreeSet<String>,
}

impl Ledger {
    /// Everything that is on record now; what an earlier one noted must be among it.
    pub fn note(&mut self, ask: Ask) -> Result<()> {
        let now = Self {
            audit: list(&ask(&["audit", "list"])?)?,
            rotations: fields(&ask(&["rotation", "list"])?, "id"),
            authorities: fields(&ask(&["authority", "list"])?, "fingerprint"),
        };
        let kept = now.audit.len() >= self.audit.len() && now.audit[..self.audit.len()] == self.audit;
        ensure!(kept, "the audit log lost or changed entries it had acknowledged");
        for (what, before, after) in [
            ("rotation", &self.rotations, &now.rotations),
            ("authority", &self.authorities, &now.authorities),
        ] {
            let lost: Vec<_> = before.difference(after).collect();
            ensure!(lost.is_empty(), "{what} {lost:?} was acknowledged and is gone");
        }
        *self = now;
        Ok(())
    }
}

/// The whole list, over a fleet of real hosts.
pub fn hold(world: &World, ledger: &mut Ledger) -> Result<()> {
    let ask = |words: &[&str]| world.coordinator.json(words);
    proof::no_mismatched_pair(world)?;
    ledger.note(&ask).context("no acknowledged record is lost")?;
    nothing_stuck(&ask)?;
    let mut newest: BTreeMap<String, (Vec<u64>, TargetProof)> = BTreeMap::new();
    for id in &ledger.rotations {
        for payload in payloads(&ask, id)? {
            let number = numbers(&payload.batch);
            for target in payload.targets {
                if newest.get(&target.installation).is_none_or(|(known, _)| *known < number) {
                    newest.insert(target.installation.clone(), (number.clone(), target));
                }
            }
        }
    }
    let mut compared = 0;
    for service in &world.services {
        let host = world.fleet.host(&service.host)?;
        for (file, _) in service.pairs(host) {
            let Some((_, target)) = newest.get(&file.display().to_string()) else { continue };
            let chain = openssl::certificates(&std::fs::read_to_string(&file)?)?;
            let on_disk = &chain.first().context("an empty certificate file")?.fingerprint;
            let (what, recorded) = (target.state().as_str_name(), hex::encode(&target.after));
            ensure!(
                *on_disk == recorded,
                "{} is on record as {what} with {recorded}, on disk is {on_disk}",
                file.display()
            );
            compared += 1;
            if target.state() == TargetState::Verified && !target.endpoints.is_empty() {
                let served = openssl::served(&service.endpoint, &world.root)?;
                let shown = &served.leaf().fingerprint;
                ensure!(*shown == recorded, "{} is on record as verified and serves {shown}", service.name);
            }
        }
    }
    ensure!(ledger.rotations.is_empty() || compared > 0, "nothing on record is on a disk that was looked at");
    Ok(())
}

/// `r7.1-1` as numbers: rotation, batch, epoch. Clocks may be wrong, these rise.
fn numbers(batch: &str) -> Vec<u64> {
    batch.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

/// Every rotation is at its end, or says what it waits for.
pub fn nothing_stuck(ask: Ask) -> Result<()> {
    wait_until("an end, or a reason to wait, of every rotation", Duration::from_secs(60), || {
        for row in list(&ask(&["rotation", "list"])?)? {
            let id = row["id"].as_str().context("a rotation without an id")?;
            let rotation = ask(&["rotation", "show", id])?;
            let named = |what: &str| rotation[what].as_array().is_some_and(|rows| !rows.is_empty());
            let good = match rotation["state"].as_str().unwrap_or_default() {
                "completed" | "expired" | "aborted" | "paused" => true,
                "halted" => named("failures"),
                "trailing" => named("stragglers") || named("unserved"),
                _ => false,
            };
            ensure!(good, "rotation {id} waits for nothing that it names: {rotation}");
        }
        Ok(())
    })
}

/// What agents signed, from the evidence of a rotation, which `reseal` has checked.
pub fn payloads(ask: Ask, id: &str) -> Result<Vec<EvidencePayload>> {
    let evidence = ask(&["rotation", "evidence", id, "--file", "-"])?;
    let batches = evidence["body"]["batches"].as_array().context("evidence without batches")?;
    let signed = batches.iter().filter_map(|batch| batch["payload"].as_str()).filter(|text| !text.is_empty());
    signed
        .map(|text| {
            // Base64, read as the body of a PEM block.
            let pem = format!("-----BEGIN PAYLOAD-----\n{text}\n-----END PAYLOAD-----\n");
            let (_, block) = x509_parser::pem::parse_x509_pem(pem.as_bytes())?;
            Ok(EvidencePayload::decode(&block.contents[..])?)
        })
        .collect()
}

fn list(value: &Value) -> Result<Vec<Value>> {
    Ok(value.as_array().context("a list")?.clone())
}

/// The values of a field, at whatever depth.
fn fields(value: &Value, name: &str) -> BTreeSet<String> {
    let own = value.get(name).and_then(Value::as_str).map(ToOwned::to_owned);
    let below: Vec<&Value> = match value {
        Value::Array(items) => items.iter().collect(),
        Value::Object(fields) => fields.values().collect(),
        _ => Vec::new(),
    };
    own.into_iter().chain(below.into_iter().flat_map(|value| fields(value, name))).collect()
}
