//! `reseal-agent scan`: what the labels on this host resolve to.
//!
//! Works before enrolment and without a coordinator; changes nothing. A table
//! for people, JSON with stable names for programs.

use reseal_proto::v1;
use serde_json::{Value, json};

use crate::config::Config;
use crate::discover::docker::{DockerError, Engine};
use crate::discover::watch::read_certificates;
use crate::discover::{Host, Installation, assemble};
use crate::inventory;

/// Looks once and says what was found.
pub async fn run(config: &Config, json: bool) -> Result<String, DockerError> {
    let engine = Engine::new(&config.docker);
    let mut host = assemble::assemble(engine.containers().await?);
    read_certificates(config, &mut host);
    Ok(if json { as_json(&host) } else { as_table(&host) })
}

fn as_json(host: &Host) -> String {
    let installations: Vec<Value> = host
        .installations
        .values()
        .map(|installation| installation_json(&inventory::message(installation)))
        .collect();
    let findings: Vec<Value> = host
        .findings
        .iter()
        .map(|found| {
            json!({
                "id": found.id, "object": found.object,
                "message": found.message, "severity": found.severity,
            })
        })
        .collect();
    let trusts: Vec<Value> = host
        .trusts
        .iter()
        .map(|trust| {
            let containers: Vec<&str> = trust.consumers.iter().map(|c| c.container.as_str()).collect();
            json!({"path": trust.place.id(), "bundle": trust.bundle, "containers": containers})
        })
        .collect();
    let document = json!({"installations": installations, "trust_bundles": trusts, "findings": findings});
    format!("{document:#}\n")
}

fn installation_json(installation: &v1::Installation) -> Value {
    let consumers: Vec<Value> = installation
        .consumers
        .iter()
        .map(|consumer| {
            json!({
                "container": consumer.container, "container_id": consumer.container_id,
                "image": consumer.image, "running": consumer.running, "reload": consumer.reload,
            })
        })
        .collect();
    let endpoints: Vec<Value> = installation
        .endpoints
        .iter()
        .map(|endpoint| json!({"address": endpoint.address, "sni": endpoint.sni}))
        .collect();
    let certificate = installation.certificate.as_ref().map(|facts| {
        json!({
            "fingerprint": hex::encode(&facts.fingerprint),
            "serial": hex::encode(&facts.serial),
            "subject": facts.subject, "issuer": facts.issuer, "names": facts.names,
            "not_before": facts.not_before, "not_after": facts.not_after,
            "key_type": facts.key_type,
        })
    });
    json!({
        "id": installation.id, "label": installation.label, "names": installation.names,
        "usage": usage(installation.usage()), "key_type": installation.key_type,
        "issuer": installation.issuer, "layout": installation.layout,
        "consumers": consumers, "endpoints": endpoints, "certificate": certificate,
    })
}

fn usage(usage: v1::Usage) -> &'static str {
    match usage {
        v1::Usage::Unspecified => "unspecified",
        v1::Usage::Server => "server",
        v1::Usage::Client => "client",
        v1::Usage::Both => "both",
    }
}

fn as_table(host: &Host) -> String {
    let mut rows = vec![
        ["CERTIFICATE", "NAMES", "FILE", "EXPIRES", "CONSUMERS", "RELOAD", "ENDPOINTS"].map(str::to_owned),
    ];
    rows.extend(host.installations.values().map(row));
    let mut text = if rows.len() == 1 {
        "no container declares a certificate: put reseal.* labels on one\n".to_owned()
    } else {
        columns(&rows)
    };
    if !host.trusts.is_empty() {
        let mut rows = vec![["BUNDLE", "FILE", "CONSUMERS"].map(str::to_owned)];
        rows.extend(host.trusts.iter().map(|trust| {
            let names: Vec<&str> = trust.consumers.iter().map(|c| c.container.as_str()).collect();
            [trust.bundle.clone(), trust.place.id(), names.join(",")]
        }));
        text.push('\n');
        text.push_str(&columns(&rows));
    }
    if !host.findings.is_empty() {
        let mut rows = vec![["SEVERITY", "FINDING", "OBJECT", "MESSAGE"].map(str::to_owned)];
        rows.extend(
            host.findings
                .iter()
                .map(|found| [&found.severity, &found.id, &found.object, &found.message].map(Clone::clone)),
        );
        text.push('\n');
        text.push_str(&columns(&rows));
    }
    text
}

fn row(installation: &Installation) -> [String; 7] {
    let message = inventory::message(installation);
    let list = |mut items: Vec<String>| {
        items.sort();
        items.dedup();
        if items.is_empty() { "-".to_owned() } else { items.join(",") }
    };
    let consumers = installation.consumers.iter();
    [
        installation.label.clone(),
        installation.wanted.names.join(","),
        installation.id.clone(),
        message.certificate.map_or_else(|| "missing".to_owned(), |facts| date(facts.not_after)),
        list(
            consumers
                .clone()
                .map(|c| format!("{}{}", c.container, if c.running { "" } else { " (stopped)" }))
                .collect(),
        ),
        list(consumers.map(|c| c.reload.to_string()).collect()),
        list(message.endpoints.into_iter().map(|e| e.address).collect()),
    ]
}

fn date(seconds: i64) -> String {
    let format = time::macros::format_description!("[year]-[month]-[day]");
    time::OffsetDateTime::from_unix_timestamp(seconds)
        .ok()
        .and_then(|moment| moment.format(&format).ok())
        .unwrap_or_else(|| seconds.to_string())
}

fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..N).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', width - cell.chars().count() + 2));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discover::assemble::tests::web;

    #[test]
    fn people_and_programs_see_the_same() {
        let mut container = web("web", "/srv/tls");
        container.declared.problems.push(crate::discover::labels::Problem {
            id: "unknown-label",
            message: "label \"reseal.x\" does not exist".into(),
        });
        let host = assemble::assemble(vec![container]);
        let table = as_table(&host);
        let document: Value = serde_json::from_str(&as_json(&host)).unwrap();
        assert_eq!(document["installations"][0]["id"], "/srv/tls/site.crt");
        assert_eq!(document["installations"][0]["consumers"][0]["reload"], "signal HUP");
        assert_eq!(document["findings"][0]["id"], "unknown-label");
        for word in ["web/site", "a.example.test", "missing", "signal HUP", "unknown-label"] {
            assert!(table.contains(word), "{word}: {table}");
        }
    }
}
