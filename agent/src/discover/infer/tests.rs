use super::*;
use proptest::prelude::*;

fn facts(names: &[&str], key_type: &str) -> CertificateFacts {
    CertificateFacts {
        subject: "C=XX, CN=old.example.test".into(),
        issuer: "CN=Some CA".into(),
        names: names.iter().map(|name| (*name).to_owned()).collect(),
        key_type: key_type.into(),
        ..CertificateFacts::default()
    }
}

fn nginx<'a>() -> Using<'a> {
    Using {
        container: "web",
        image: "nginx:1",
        program: "nginx",
        reload: Some("signal HUP"),
        running: true,
        path: "/tls/site.crt",
        ports: BTreeSet::from(["443".to_owned()]),
    }
}

const KEY: Key<'static> = Key { path: "/srv/tls/site.key", encrypted: false, open: false, mode: 0o600 };

fn found(facts: &CertificateFacts) -> Found<'_> {
    Found {
        id: "/srv/tls/site.crt",
        layout: "pair",
        mount: "/srv/tls",
        facts: Some(facts),
        usage: Usage::Server,
        key: Some(KEY),
        users: vec![nginx()],
        ..Found::default()
    }
}

fn said(lines: &[String], text: &str) -> bool {
    lines.iter().any(|line| line.contains(text))
}

#[test]
fn a_plain_nginx_is_adopted_with_reasons() {
    let facts = facts(&["www.example.test", "*.example.test", "10.0.0.5"], "rsa-3072");
    let inferred = infer(&found(&facts));
    assert_eq!(inferred.obstacles, Vec::<String>::new());
    assert_eq!(inferred.field("names"), "www.example.test,*.example.test,10.0.0.5");
    assert_eq!(inferred.field("key-type"), "rsa-3072");
    assert_eq!(inferred.field("key"), "/srv/tls/site.key");
    assert_eq!(inferred.declaration.label, "web/site");
    assert_eq!(inferred.declaration.users[0].verify, "443");
    for line in [
        "names: www.example.test,*.example.test,10.0.0.5, because its SAN has them",
        "reload: signal HUP for web, because its program is nginx",
        "verify: 443 of web, because it is served there",
        "issuer: builtin, in the place of CN=Some CA",
        "owner and mode: kept as they are (mode 0600)",
    ] {
        assert!(said(&inferred.decisions, line), "{line}: {:#?}", inferred.decisions);
    }
    // How it reloads is never kept: the table says it each time.
    assert_eq!(inferred.field("reload"), "");
}

#[test]
fn a_certificate_without_san_keeps_its_common_name_and_it_is_said() {
    let facts = facts(&[], "rsa-1024");
    let inferred = infer(&found(&facts));
    assert_eq!(inferred.obstacles, Vec::<String>::new());
    assert_eq!(inferred.field("names"), "old.example.test");
    assert!(said(&inferred.decisions, "it has no SAN"));
    assert_eq!(inferred.field("key-type"), "rsa-2048");
    assert!(said(&inferred.decisions, "rsa-1024 is too weak"));
}

#[test]
fn names_that_cannot_be_asked_for_are_left_out_and_told() {
    let facts = facts(&["spiffe://x/y", "a.test"], "ed25519");
    let inferred = infer(&found(&facts));
    assert_eq!(inferred.field("names"), "a.test");
    assert!(said(&inferred.decisions, "spiffe://x/y left out"));
    assert_eq!(inferred.field("key-type"), "ecdsa-p256");
    let uri_only = CertificateFacts { names: vec!["spiffe://x/y".into()], ..facts };
    assert!(said(&infer(&found(&uri_only)).obstacles, "no name that can be asked for"));
}

#[test]
fn what_stands_in_the_way_is_named() {
    let facts = facts(&["a.test"], "ecdsa-p256");
    let base = || found(&facts);
    let stranger = Using { program: "java", reload: None, ..nginx() };
    let also = ["/srv/tls/fullchain.pem".to_owned()];
    let cases: Vec<(Found<'_>, &str)> = vec![
        (Found { layout: "certificate", key: None, ..base() }, "no private key"),
        (Found { layout: "pkcs12", ..base() }, "password-file"),
        (Found { facts: None, layout: "jks", ..base() }, "protected by a password"),
        (Found { elsewhere: Some("it is baked into the image x".into()), ..base() }, "baked into"),
        (Found { key: Some(Key { encrypted: true, ..KEY }), ..base() }, "is encrypted"),
        (Found { users: vec![stranger], ..base() }, "reseal.cert.site.reload=signal:HUP"),
        (Found { users: Vec::new(), ..base() }, "no container mounts it"),
        (Found { sharing: vec!["/srv/tls/b.crt"], ..base() }, "has the same key file"),
        (Found { also: &also, ..base() }, "holds the same certificate"),
        (Found { id: "/srv/tls/.reseal/x.crt", ..base() }, "belongs to the agent"),
    ];
    for (found, wanted) in cases {
        let inferred = infer(&found);
        assert!(said(&inferred.obstacles, wanted), "{wanted}: {:#?}", inferred.obstacles);
    }
}

#[test]
fn a_client_certificate_is_looked_for_on_no_port() {
    let facts = facts(&["a.test"], "ecdsa-p256");
    let inferred = infer(&Found { usage: Usage::Client, ..found(&facts) });
    assert_eq!(inferred.obstacles, Vec::<String>::new());
    assert_eq!(inferred.declaration.users[0].verify, "");
}

proptest! {
    /// Whatever lies there: what is adopted reads back as a declaration, and what
    /// is not adopted says why.
    #[test]
    fn adopted_or_an_obstacle(
        names in proptest::collection::vec("[a-z*]{1,5}([.][a-z]{1,5}){0,2}|.{0,12}|10[.]0[.]0[.][0-9]", 0..4),
        subject in "(CN=)?[a-z.]{0,12}.{0,8}",
        key_type in "(rsa-(1024|2048|3072|4096|8192)|ecdsa-p(256|384|521)|ed25519|unknown|.{0,8})",
        layout in proptest::sample::select(["pair", "combined", "certificate", "pkcs12", "jks", ""].as_slice()),
        id in "/srv(/[a-z.]{1,6}){1,3}|.{0,20}",
        port in "[0-9]{1,6}(@[a-z.]{1,6})?",
        reload in any::<bool>(),
        usage in proptest::sample::select([Usage::Unspecified, Usage::Server, Usage::Client, Usage::Both].as_slice()),
    ) {
        let facts = CertificateFacts { names, subject, key_type, ..CertificateFacts::default() };
        let user = Using {
            reload: reload.then_some("signal HUP"),
            ports: BTreeSet::from([port]),
            ..nginx()
        };
        let found = Found { id: &id, layout, facts: Some(&facts), usage, users: vec![user], ..found(&facts) };
        let inferred = infer(&found);
        if inferred.obstacles.is_empty() {
            let certificate = inferred.declaration.certificate().unwrap();
            prop_assert_eq!(&certificate.path, &id);
            prop_assert!(reload && !certificate.names.is_empty());
            prop_assert!(certificate.reload.is_none() && certificate.check.is_none());
        }
        let message = inferred.message();
        prop_assert!(message.decisions.iter().chain(&message.obstacles).all(|line| line.chars().count() <= 400));
    }
}
