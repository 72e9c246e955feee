//! The scan for people: what there is, then what is wrong and what to do.

use reseal_proto::findings;
use reseal_proto::v1::{Finding, Origin};

use super::{Options, Scanned};
use crate::discover::Installation;
use crate::discover::found::Discovered;
use crate::inventory;

/// Sections with a heading each; empty ones are left out.
pub fn of(scanned: &Scanned, options: &Options) -> String {
    let host = &scanned.host;
    let mut text = String::new();
    if !options.findings {
        text.push_str(&summary(scanned));
        managed(host.installations.values(), &mut text);
        if !host.trusts.is_empty() {
            let mut rows = vec![["BUNDLE", "FILE", "CONSUMERS"].map(str::to_owned)];
            rows.extend(host.trusts.iter().map(|trust| {
                let names: Vec<&str> = trust.consumers.iter().map(|c| c.container.as_str()).collect();
                [trust.bundle.clone(), trust.place.id(), names.join(",")]
            }));
            section(&mut text, "TRUST BUNDLES, delivered by Reseal", &rows);
        }
        for (origin, heading) in [
            (Origin::File, "DISCOVERED, declared by nobody"),
            (Origin::Image, "IN IMAGES, not on a mount"),
            (Origin::Endpoint, "SERVED, no file of it was found"),
        ] {
            discovered(host.discovered.values().filter(|found| found.origin == origin), heading, &mut text);
        }
    }
    text.push_str(&by_kind(&host.findings));
    text
}

fn summary(scanned: &Scanned) -> String {
    let host = &scanned.host;
    let found = |origin: Origin| host.discovered.values().filter(|one| one.origin == origin).count();
    let paired = &scanned.picture.paired;
    let mut text = format!(
        "{} containers · {} managed · {} discovered in files, {} in images, {} at endpoints · {} trust stores · {} keys without a certificate\n",
        scanned.containers,
        host.installations.len(),
        found(Origin::File),
        found(Origin::Image),
        found(Origin::Endpoint),
        paired.trust.len(),
        paired.keys.len(),
    );
    text.push_str(&format!(
        "looked at {} files in {} mounts, {:.2} s\n",
        scanned.picture.files,
        scanned.picture.mounts,
        scanned.took.as_secs_f64()
    ));
    text
}

fn managed<'a>(all: impl Iterator<Item = &'a Installation>, text: &mut String) {
    let heading = ["CERTIFICATE", "NAMES", "FILE", "EXPIRES", "CONSUMERS", "RELOAD", "ENDPOINTS"];
    let mut rows = vec![heading.map(str::to_owned)];
    rows.extend(all.map(row));
    if rows.len() == 1 {
        text.push_str("\nno container declares a certificate: put reseal.* labels on one\n");
    } else {
        section(text, "MANAGED by Reseal", &rows);
    }
}

fn row(installation: &Installation) -> [String; 7] {
    let message = inventory::message(installation);
    let consumers = installation.consumers.iter();
    [
        installation.label.clone(),
        installation.wanted.names.join(","),
        installation.id.clone(),
        message.certificate.map_or_else(|| "missing".to_owned(), |facts| date(facts.not_after)),
        list(consumers.clone().map(|c| running(&c.container, c.running)).collect()),
        list(consumers.map(|c| c.reload.to_string()).collect()),
        list(message.endpoints.into_iter().map(|e| e.address).collect()),
    ]
}

fn discovered<'a>(all: impl Iterator<Item = &'a Discovered>, title: &str, text: &mut String) {
    let heading = ["FILE", "NAMES", "LAYOUT", "KEY", "EXPIRES", "ISSUER", "CONSUMERS", "ENDPOINTS"];
    let mut rows = vec![heading.map(str::to_owned)];
    rows.extend(all.map(|found| {
        let facts = found.certificate.as_ref().map(|certificate| &certificate.facts);
        let names = facts
            .map(|facts| if facts.names.is_empty() { facts.subject.clone() } else { short(&facts.names) });
        let issuer = found
            .certificate
            .as_ref()
            .map(|one| if one.self_signed { "itself".to_owned() } else { one.facts.issuer.clone() });
        let unknown = || "needs its password".to_owned();
        [
            found.id.clone(),
            names.unwrap_or_else(unknown),
            found.lies.name().to_owned(),
            facts.map(|facts| facts.key_type.clone()).unwrap_or_default(),
            facts.map(|facts| date(facts.not_after)).unwrap_or_default(),
            issuer.unwrap_or_default(),
            list(found.users.iter().map(|user| running(&user.container, user.running)).collect()),
            list(found.endpoints.iter().map(|seen| seen.endpoint.address.clone()).collect()),
        ]
        .map(|cell| if cell.is_empty() { "-".to_owned() } else { cell })
    }));
    if rows.len() > 1 {
        section(text, title, &rows);
    }
}

/// The worst first; each kind with what to do about it, once.
fn by_kind(findings: &[Finding]) -> String {
    let rank = |severity: &str| match severity {
        "critical" => 0,
        "warning" => 1,
        _ => 2,
    };
    let mut all: Vec<&Finding> = findings.iter().collect();
    all.sort_by(|a, b| (rank(&a.severity), &a.id, &a.object).cmp(&(rank(&b.severity), &b.id, &b.object)));
    if all.is_empty() {
        return "\nno findings\n".to_owned();
    }
    let count = |severity: &str| findings.iter().filter(|found| found.severity == severity).count();
    let mut text = format!(
        "\nFINDINGS: {} critical, {} warnings, {} for information\n",
        count("critical"),
        count("warning"),
        count("info")
    );
    for group in all.chunk_by(|a, b| a.id == b.id && a.severity == b.severity) {
        let (severity, id) = (&group[0].severity, &group[0].id);
        text.push_str(&format!("\n{severity}  {id}"));
        if let Some(known) = findings::known(id) {
            text.push_str(&format!(": {}", known.remedy));
        }
        text.push('\n');
        for found in group {
            text.push_str(&format!("  {}\n      {}\n", found.object, found.message));
        }
    }
    text
}

fn running(container: &str, running: bool) -> String {
    format!("{container}{}", if running { "" } else { " (stopped)" })
}

fn short(names: &[String]) -> String {
    match names {
        [first, second, rest @ ..] if !rest.is_empty() => format!("{first},{second} +{}", rest.len()),
        _ => names.join(","),
    }
}

fn list(mut items: Vec<String>) -> String {
    items.sort();
    items.dedup();
    if items.is_empty() { "-".to_owned() } else { items.join(",") }
}

fn date(seconds: i64) -> String {
    let format = time::macros::format_description!("[year]-[month]-[day]");
    time::OffsetDateTime::from_unix_timestamp(seconds)
        .ok()
        .and_then(|moment| moment.format(&format).ok())
        .unwrap_or_else(|| seconds.to_string())
}

fn section<const N: usize>(text: &mut String, heading: &str, rows: &[[String; N]]) {
    text.push_str(&format!("\n{heading}\n"));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..N).map(|column| width(column).unwrap_or(0)).collect();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', width - cell.chars().count() + 2));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
}
