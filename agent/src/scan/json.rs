//! The scan for programs. Names are stable; times are seconds since the Unix epoch.

use reseal_proto::findings;
use reseal_proto::v1;
use serde_json::{Value, json};

use super::{Options, Scanned};
use crate::discover::Host;
use crate::discover::found::{Discovered, KeyFile};
use crate::discover::infer::Inferred;
use crate::inventory;

/// One document.
pub fn of(scanned: &Scanned, options: &Options) -> String {
    let host = &scanned.host;
    let findings: Vec<Value> = host.findings.iter().map(finding).collect();
    let document = if options.findings {
        json!({"findings": findings})
    } else {
        json!({
            "summary": summary(scanned),
            "installations": host.installations.values()
                .map(|installation| installation_json(&inventory::message(installation))).collect::<Vec<_>>(),
            "discovered": host.discovered.values()
                .map(|found| discovered(found, host.inferred.get(&found.id))).collect::<Vec<_>>(),
            "trust_bundles": bundles(host),
            "trust_files": scanned.picture.paired.trust.iter()
                .map(|file| json!({"path": file.path, "certificates": file.count})).collect::<Vec<_>>(),
            "keys_without_certificate": scanned.picture.paired.keys.iter().map(key).collect::<Vec<_>>(),
            "findings": findings,
        })
    };
    format!("{document:#}\n")
}

fn summary(scanned: &Scanned) -> Value {
    let of = |origin: v1::Origin| scanned.host.discovered.values().filter(|one| one.origin == origin).count();
    let worse = |severity: &str| scanned.host.findings.iter().filter(|one| one.severity == severity).count();
    json!({
        "containers": scanned.containers,
        "managed": scanned.host.installations.len(),
        "discovered_in_files": of(v1::Origin::File),
        "discovered_in_images": of(v1::Origin::Image),
        "discovered_at_endpoints": of(v1::Origin::Endpoint),
        "trust_files": scanned.picture.paired.trust.len(),
        "superseded_files": scanned.picture.paired.superseded,
        "keys_without_certificate": scanned.picture.paired.keys.len(),
        "mounts": scanned.picture.mounts,
        "files": scanned.picture.files,
        "files_opened": scanned.picture.opened,
        "milliseconds": u64::try_from(scanned.took.as_millis()).unwrap_or(u64::MAX),
        "critical": worse("critical"), "warning": worse("warning"), "info": worse("info"),
    })
}

fn finding(found: &v1::Finding) -> Value {
    json!({
        "id": found.id, "object": found.object, "message": found.message, "severity": found.severity,
        "remedy": findings::known(&found.id).map(|known| known.remedy).unwrap_or_default(),
    })
}

fn bundles(host: &Host) -> Vec<Value> {
    host.trusts
        .iter()
        .map(|trust| {
            let containers: Vec<&str> = trust.consumers.iter().map(|c| c.container.as_str()).collect();
            json!({"path": trust.place.id(), "bundle": trust.bundle, "containers": containers})
        })
        .collect()
}

fn discovered(found: &Discovered, inferred: Option<&Inferred>) -> Value {
    let mut value = installation_json(&inventory::discovered_message(found, inferred));
    let Some(fields) = value.as_object_mut() else { return value };
    if let Some(inferred) = inferred {
        let adoption = json!({"decisions": inferred.decisions, "obstacles": inferred.obstacles});
        fields.insert("adoption".into(), adoption);
    }
    if let Some(files) = &found.files {
        fields.insert("format".into(), json!(files.format.name()));
        fields.insert("mount".into(), json!(files.mount));
        fields.insert("file".into(), json!(files.certificate));
        fields.insert("key".into(), files.key.as_ref().map_or(Value::Null, key));
        fields.insert("also".into(), json!(files.also));
        fields.insert("certificates".into(), json!(files.count));
        fields.insert("mode".into(), json!(format!("{:04o}", files.access.mode)));
        fields.insert("owner".into(), json!(format!("{}:{}", files.access.uid, files.access.gid)));
    }
    if let Some(certificate) = &found.certificate {
        fields.insert("self_signed".into(), json!(certificate.self_signed));
        fields.insert("authority".into(), json!(certificate.authority));
    }
    fields.insert("opened".into(), json!(found.certificate.is_some()));
    if let Some(consumers) = fields.get_mut("consumers").and_then(Value::as_array_mut) {
        for (consumer, user) in consumers.iter_mut().zip(&found.users) {
            consumer["path"] = json!(user.path);
        }
    }
    value
}

fn key(key: &KeyFile) -> Value {
    json!({"path": key.path, "encrypted": key.encrypted, "mode": format!("{:04o}", key.mode)})
}

fn installation_json(installation: &v1::Installation) -> Value {
    let consumers: Vec<Value> = installation
        .consumers
        .iter()
        .map(|consumer| {
            json!({
                "container": consumer.container, "container_id": consumer.container_id,
                "image": consumer.image, "running": consumer.running, "reload": consumer.reload,
                "program": consumer.program,
            })
        })
        .collect();
    let endpoints: Vec<Value> = installation
        .endpoints
        .iter()
        .map(|endpoint| {
            json!({
                "address": endpoint.address, "sni": endpoint.sni, "starttls": endpoint.starttls,
                "within": endpoint.within, "served": hex::encode(&endpoint.served),
            })
        })
        .collect();
    let certificate = installation.certificate.as_ref().map(|facts| {
        json!({
            "fingerprint": hex::encode(&facts.fingerprint),
            "serial": hex::encode(&facts.serial),
            "spki_sha256": hex::encode(&facts.spki_sha256),
            "subject": facts.subject, "issuer": facts.issuer, "names": facts.names,
            "not_before": facts.not_before, "not_after": facts.not_after,
            "key_type": facts.key_type,
        })
    });
    json!({
        "id": installation.id, "label": installation.label, "names": installation.names,
        "usage": usage(installation.usage()), "key_type": installation.key_type,
        "issuer": installation.issuer, "layout": installation.layout,
        "management": management(installation.management()), "origin": origin(installation.origin()),
        "consumers": consumers, "endpoints": endpoints, "certificate": certificate,
    })
}

fn management(management: v1::Management) -> &'static str {
    match management {
        v1::Management::Labels => "labels",
        v1::Management::Configuration => "configuration",
        v1::Management::Adopted => "adopted",
        v1::Management::Discovered => "discovered",
    }
}

/// As the table writes it, too.
pub fn origin(origin: v1::Origin) -> &'static str {
    match origin {
        v1::Origin::File => "file",
        v1::Origin::Image => "image",
        v1::Origin::Endpoint => "endpoint",
    }
}

fn usage(usage: v1::Usage) -> &'static str {
    match usage {
        v1::Usage::Unspecified => "unspecified",
        v1::Usage::Server => "server",
        v1::Usage::Client => "client",
        v1::Usage::Both => "both",
    }
}
