use serde_json::Value;

use super::*;
use crate::discover::assemble::tests::web;

fn scanned() -> Scanned {
    let mut container = web("web", "/srv/tls");
    container.declared.problems.push(crate::discover::labels::Problem {
        id: "unknown-label",
        message: "label \"reseal.x\" does not exist".into(),
    });
    let host = assemble::assemble(vec![container, web("other", "/srv/other")]);
    Scanned { host, containers: 2, ..Scanned::default() }
}

#[test]
fn people_and_programs_see_the_same() {
    let options = Options::default();
    let table = table::of(&scanned(), &options);
    let document: Value = serde_json::from_str(&json::of(&scanned(), &options)).unwrap();
    let installation = &document["installations"][1];
    assert_eq!(installation["id"], "/srv/tls/site.crt");
    assert_eq!(installation["management"], "labels");
    assert_eq!(installation["consumers"][0]["reload"], "signal HUP, exec nginx -s reload");
    assert_eq!(document["findings"][0]["id"], "unknown-label");
    assert!(document["findings"][0]["remedy"].as_str().unwrap().contains("correct the key"));
    for word in [
        "web/site",
        "a.example.test",
        "missing",
        "signal HUP, exec nginx -s reload",
        "unknown-label",
        "correct the key",
    ] {
        assert!(table.contains(word), "{word}: {table}");
    }
}

#[test]
fn one_container_alone_or_findings_alone() {
    let mut one = scanned();
    only(&mut one, &["other".to_owned()]);
    assert_eq!(one.host.installations.len(), 1);
    assert!(one.host.findings.is_empty());
    let findings = Options { findings: true, ..Options::default() };
    let table = table::of(&scanned(), &findings);
    assert!(table.contains("unknown-label") && !table.contains("MANAGED"), "{table}");
}
