//! What is wrong with what was found: facts → findings. Pure; time is an argument.
//!
//! Each says on what it was seen and what was seen there; what to do about it
//! is in [`reseal_proto::findings`], and at length in docs/FINDINGS.md.

use std::collections::BTreeSet;

use reseal_proto::findings::known;
use reseal_proto::v1::{CertificateFacts, Finding, Origin, Usage};

use super::found::{Discovered, KeyFile};
use super::{Host, finding};

const DAY: i64 = 86_400;
/// A certificate with less life than this, or a third of it, is expiring.
const EXPIRING: i64 = 30 * DAY;
/// More of the kinds that only inform are told in one finding.
const EACH: usize = 200;

/// Everything that is wrong by the files, of what is declared and what is not.
/// `keys` and `baked_keys` are without a certificate, on mounts and in images.
pub fn judge(host: &Host, keys: &[KeyFile], baked_keys: &[KeyFile], now: i64) -> Vec<Finding> {
    let mut findings = Vec::new();
    for installation in host.installations.values() {
        if let Some(facts) = &installation.certificate {
            findings.extend(dates(&installation.id, facts, now));
            let rsa = facts.key_type.strip_prefix("rsa-").and_then(|bits| bits.parse().ok());
            if rsa.is_some_and(|bits: usize| bits < 2048) {
                findings.push(kind("weak-key", &installation.id, &format!("its key is {}", facts.key_type)));
            }
        }
    }
    let mut told: BTreeSet<&str> = BTreeSet::new();
    for found in host.discovered.values() {
        certificate(found, now, &mut findings);
        if found.origin == Origin::Image {
            findings.push(baked(found));
            continue;
        }
        if let Some(key) = found.files.as_ref().and_then(|files| files.key.as_ref())
            && told.insert(&key.path)
        {
            findings.extend(too_open(key));
        }
    }
    findings.extend(keys.iter().filter(|key| !told.contains(key.path.as_str())).filter_map(too_open));
    let alone = "a private key without a certificate is in the image";
    findings.extend(baked_keys.iter().map(|key| kind("baked-private-key", &key.path, alone)));
    findings.extend(unmanaged(host));
    findings
}

fn baked(found: &Discovered) -> Finding {
    let who = found
        .certificate
        .as_ref()
        .map_or("a key store", |one| one.facts.names.first().unwrap_or(&one.facts.subject).as_str());
    let image = found.users.first().map(|user| format!(" {}", user.image)).unwrap_or_default();
    if found.lies.has_key() {
        kind("baked-private-key", &found.id, &format!("{who}: its private key is in the image{image}"))
    } else {
        kind("baked-certificate", &found.id, &format!("{who}: it is in the image{image}, without its key"))
    }
}

fn certificate(found: &Discovered, now: i64, findings: &mut Vec<Finding>) {
    let Some(certificate) = &found.certificate else { return };
    let facts = &certificate.facts;
    let mut tell = |id: &str, what: &str| findings.push(kind(id, &found.id, what));
    if let Some(weak) = certificate.weak_key() {
        tell("weak-key", &format!("{}: its key is {weak}", facts.subject));
    }
    if let Some(weak) = certificate.weak_signature.filter(|_| !certificate.self_signed) {
        tell("weak-signature", &format!("{}: it is signed with {weak}", facts.subject));
    }
    if certificate.self_signed && (found.lies.has_key() || found.origin == Origin::Endpoint) {
        tell("self-signed", &format!("{}: it has signed itself", facts.subject));
    }
    if let Some(issuer) = &found.missing_issuer {
        let what =
            format!("its issuer {issuer} is an intermediate that is neither in the file nor beside it");
        tell("incomplete-chain", &what);
    }
    if facts.names.is_empty() && matches!(certificate.usage, Usage::Server | Usage::Both) {
        let what = format!(
            "{}: it has no subjectAltName, so no client that follows RFC 9525 accepts it for any name",
            facts.subject
        );
        tell("name-mismatch", &what);
    }
    findings.extend(dates(&found.id, facts, now));
}

fn dates(object: &str, facts: &CertificateFacts, now: i64) -> Option<Finding> {
    let left = facts.not_after.saturating_sub(now);
    let life = facts.not_after.saturating_sub(facts.not_before);
    let who = facts.names.first().unwrap_or(&facts.subject);
    if left < 0 {
        return Some(kind("expired", object, &format!("{who}: it has expired {}", ago(-left))));
    }
    (left < EXPIRING.min(life / 3))
        .then(|| kind("expiring", object, &format!("{who}: it expires {}", within(left))))
}

fn ago(seconds: i64) -> String {
    match seconds {
        0..DAY => "today".to_owned(),
        _ => format!("{} days ago", seconds / DAY),
    }
}

fn within(seconds: i64) -> String {
    match seconds {
        0..DAY => format!("in {} hours", seconds / 3600),
        _ => format!("in {} days", seconds / DAY),
    }
}

fn too_open(key: &KeyFile) -> Option<Finding> {
    (key.open && !key.encrypted).then(|| {
        let what = format!("everybody may read this private key (mode {:04o})", key.mode);
        kind("key-too-open", &key.path, &what)
    })
}

fn unmanaged(host: &Host) -> Vec<Finding> {
    let of_somebody = |found: &&Discovered| {
        found.origin != Origin::Image && (found.lies.has_key() || !found.endpoints.is_empty())
    };
    let all: Vec<&Discovered> = host.discovered.values().filter(of_somebody).collect();
    let one = |found: &&Discovered| {
        let users: Vec<&str> = found.users.iter().map(|user| user.container.as_str()).collect();
        let used = if users.is_empty() { "no container".to_owned() } else { users.join(", ") };
        let own = found.id.starts_with("container:");
        let lost = if own { "; it is in the container's own layer and lost with it" } else { "" };
        kind("unmanaged", &found.id, &format!("{}, used by {used}: nobody declared it{lost}", found.label))
    };
    let mut findings: Vec<Finding> = all.iter().take(EACH).map(one).collect();
    if all.len() > EACH {
        let what = format!("{} more certificates are declared by nobody", all.len() - EACH);
        findings.push(kind("unmanaged", "host", &what));
    }
    findings
}

/// A finding of a known kind, with the severity it has as a rule.
pub fn kind(id: &str, object: &str, message: &str) -> Finding {
    finding(id, object, message, known(id).map_or("warning", |known| known.severity))
}

#[cfg(test)]
#[path = "findings_tests.rs"]
mod tests;
