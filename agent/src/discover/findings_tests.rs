use reseal_proto::v1::CertificateFacts;

use super::*;
use crate::dir::Access;
use crate::discover::formats::{Certificate, Format};
use crate::discover::found::{Files, Lies};

const NOW: i64 = 1_000 * DAY;

fn found(id: &str) -> Discovered {
    Discovered {
        id: id.into(),
        label: "web/a".into(),
        origin: Origin::File,
        lies: Lies::Pair,
        files: Some(Files {
            mount: "/srv".into(),
            certificate: id.into(),
            format: Format::Pem,
            count: 1,
            access: Access { uid: 0, gid: 0, mode: 0o644 },
            key: Some(KeyFile { path: "/srv/a.key".into(), encrypted: false, open: false, mode: 0o600 }),
            also: Vec::new(),
        }),
        certificate: Some(Certificate {
            facts: CertificateFacts {
                names: vec!["a.test".into()],
                key_type: "rsa-2048".into(),
                not_before: NOW - 100 * DAY,
                not_after: NOW + 80 * DAY,
                ..CertificateFacts::default()
            },
            authority: false,
            self_signed: false,
            signs_another: false,
            issuer_beside: false,
            weak_signature: None,
            bits: Some(2048),
            usage: Usage::Server,
            key_id: Vec::new(),
        }),
        missing_issuer: None,
        users: Vec::new(),
        endpoints: Vec::new(),
    }
}

fn judged(change: impl FnOnce(&mut Discovered, &mut Certificate)) -> Vec<String> {
    let mut one = found("/srv/a.crt");
    let mut certificate = one.certificate.take().unwrap();
    change(&mut one, &mut certificate);
    one.certificate = Some(certificate);
    let host = Host { discovered: [(one.id.clone(), one)].into(), ..Host::default() };
    let mut ids: Vec<_> = judge(&host, &[], &[], NOW).into_iter().map(|found| found.id).collect();
    ids.retain(|id| id != "unmanaged");
    ids
}

#[test]
fn each_fault_is_found_by_itself() {
    assert_eq!(judged(|_, _| {}), [""; 0]);
    assert_eq!(judged(|_, c| c.facts.not_after = NOW - 1), ["expired"]);
    assert_eq!(judged(|_, c| c.facts.not_after = NOW + 29 * DAY), ["expiring"]);
    assert_eq!(judged(|_, c| c.bits = Some(1024)), ["weak-key"]);
    assert_eq!(judged(|_, c| c.weak_signature = Some("SHA-1")), ["weak-signature"]);
    assert_eq!(judged(|_, c| c.self_signed = true), ["self-signed"]);
    assert_eq!(judged(|f, _| f.missing_issuer = Some("CN=x".into())), ["incomplete-chain"]);
    assert_eq!(judged(|_, c| c.facts.names.clear()), ["name-mismatch"]);
    let open = |f: &mut Discovered| f.files.as_mut().unwrap().key.as_mut().unwrap().open = true;
    assert_eq!(judged(|f, _| open(f)), ["key-too-open"]);
}

#[test]
fn short_lives_are_measured_by_a_third() {
    let short = |left: i64| {
        judged(|_, c| {
            c.facts.not_before = NOW + left - 9 * 3600;
            c.facts.not_after = NOW + left;
        })
    };
    assert_eq!(short(4 * 3600), [""; 0]);
    assert_eq!(short(2 * 3600), ["expiring"]);
}

#[test]
fn what_nobody_declared_is_told_once_where_it_is_much() {
    let all = (0..EACH + 5).map(|n| format!("/srv/{n:04}.crt")).map(|id| (id.clone(), found(&id)));
    let host = Host { discovered: all.collect(), ..Host::default() };
    let findings = judge(&host, &[], &[], NOW);
    assert_eq!(findings.len(), EACH + 1);
    assert!(findings.last().unwrap().message.starts_with("5 more"), "{findings:?}");
}

#[test]
fn what_is_baked_in_is_judged_by_its_key() {
    let baked = |lies| judged(|f, _| (f.origin, f.lies) = (Origin::Image, lies));
    assert_eq!(baked(Lies::Combined), ["baked-private-key"]);
    assert_eq!(baked(Lies::Certificate), ["baked-certificate"]);
    let keys = [KeyFile { path: "image:1:/k".into(), encrypted: false, open: true, mode: 0o644 }];
    let findings = judge(&Host::default(), &[], &keys, NOW);
    assert_eq!((findings.len(), findings[0].id.as_str()), (1, "baked-private-key"));
}

#[test]
fn every_kind_is_a_known_one() {
    for id in ["expired", "expiring", "weak-key", "weak-signature", "self-signed", "incomplete-chain"] {
        assert_ne!(kind(id, "x", "y").severity, "", "{id}");
    }
    assert_eq!(kind("expired", "x", "y").severity, "critical");
    assert_eq!(kind("unmanaged", "x", "y").severity, "info");
}
