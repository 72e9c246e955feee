use super::values::Starttls;
use super::*;
use crate::discover::Reload;
use proptest::prelude::*;

fn read(labels: &[(&str, &str)]) -> Declared {
    parse(labels.iter().copied())
}

const MINIMAL: [(&str, &str); 3] = [
    ("reseal.enable", "true"),
    ("reseal.cert.site.names", "a.example.test,10.0.0.5"),
    ("reseal.cert.site.path", "/tls/site.crt"),
];

fn with(extra: &[(&'static str, &'static str)]) -> Declared {
    let mut labels = MINIMAL.to_vec();
    labels.extend(extra);
    read(&labels)
}

#[test]
fn the_defaults_are_the_documented_ones() {
    let declared = read(&MINIMAL);
    assert_eq!(declared.problems, []);
    assert_eq!(
        declared.certificates,
        [Certificate {
            name: "site".into(),
            names: vec!["a.example.test".into(), "10.0.0.5".into()],
            path: "/tls/site.crt".into(),
            key: "/tls/site.key".into(),
            leaf: None,
            chain: None,
            layout: Layout::Pair,
            password_file: None,
            alias: None,
            usage: Usage::Server,
            key_type: KeyType::EcdsaP256,
            issuer: "builtin".into(),
            owner: None,
            mode: None,
            reload: None,
            check: None,
            verify: Vec::new(),
        }]
    );
}

#[test]
fn everything_that_can_be_said() {
    let declared = with(&[
        ("reseal.cert.site.key", "/tls/private.pem"),
        ("reseal.cert.site.usage", "both"),
        ("reseal.cert.site.key-type", "rsa-3072"),
        ("reseal.cert.site.owner", "101:102"),
        ("reseal.cert.site.mode", "0640"),
        ("reseal.cert.site.reload", "exec:nginx -s 're load'"),
        ("reseal.cert.site.check", "exec:nginx -t"),
        ("reseal.cert.site.verify", "443, 8443@api.example.test"),
        ("reseal.trust.ca.bundle", "managed-root"),
        ("reseal.trust.ca.path", "/tls/ca.pem"),
        ("com.docker.compose.service", "x"),
    ]);
    assert_eq!(declared.problems, []);
    let certificate = &declared.certificates[0];
    assert_eq!(certificate.key, "/tls/private.pem");
    assert_eq!(certificate.reload, Some(Ladder(vec![Reload::Exec(Command::of(["nginx", "-s", "re load"]))])));
    assert_eq!(certificate.owner, Some(Owner { uid: 101, gid: 102 }));
    assert_eq!(certificate.mode, Some(0o640));
    assert_eq!(
        certificate.verify,
        [
            Port { port: 443, sni: "a.example.test".into(), starttls: Starttls::None },
            Port { port: 8443, sni: "api.example.test".into(), starttls: Starttls::None }
        ]
    );
    assert_eq!(declared.trusts[0].path, "/tls/ca.pem");
}

#[test]
fn a_port_says_what_comes_before_tls() {
    let declared = with(&[(
        "reseal.cert.site.verify",
        "25,587,143,110,389,5432,3306,21,465,25/tls@mx.test,2525/smtp,5433/postgres@db.test",
    )]);
    assert_eq!(declared.problems, []);
    let ports: Vec<String> = declared.certificates[0]
        .verify
        .iter()
        .map(|one| format!("{}/{}@{}", one.port, one.starttls.name(), one.sni.split('.').next().unwrap()))
        .collect();
    let expected = "25/smtp@a 587/smtp@a 143/imap@a 110/pop3@a 389/ldap@a 5432/postgres@a 3306/mysql@a \
                    21/ftp@a 465/@a 25/@mx 2525/smtp@a 5433/postgres@db";
    assert_eq!(ports.join(" "), expected);
}

#[test]
fn an_unknown_key_names_its_nearest() {
    for (typed, nearest) in [
        ("reseal.cert.site.nmaes", "reseal.cert.site.names"),
        ("reseal.cert.site.keytype", "reseal.cert.site.key-type"),
        ("reseal.certs.site.path", "reseal.cert.site.path"),
        ("reseal.enabled", "reseal.enable"),
        ("reseal.trust.site.bundel", "reseal.trust.site.bundle"),
    ] {
        let declared = with(&[(typed, "x")]);
        let unknown: Vec<_> =
            declared.problems.iter().filter(|problem| problem.id == "unknown-label").collect();
        assert_eq!(unknown.len(), 1, "{typed}");
        assert!(unknown[0].message.ends_with(nearest), "{typed}: {}", unknown[0].message);
        assert_eq!(declared.certificates.len(), 1, "{typed}");
    }
}

#[test]
fn labels_without_enable_are_a_finding() {
    let declared = read(&MINIMAL[1..]);
    assert_eq!(declared.certificates, []);
    assert_eq!(declared.problems[0].id, "not-enabled");
    assert_eq!(read(&[("other", "x")]), Declared::default());
}

#[test]
fn a_bad_value_is_named_and_nothing_is_managed() {
    for (key, value) in [
        ("reseal.cert.site.names", "a b"),
        ("reseal.cert.site.names", ""),
        ("reseal.cert.site.names", "a.test,,b.test"),
        ("reseal.cert.site.names", "*.*.test"),
        ("reseal.cert.site.names", "1.2.3.4.5"),
        ("reseal.cert.site.path", "tls/site.crt"),
        ("reseal.cert.site.path", "/tls/../site.crt"),
        ("reseal.cert.site.path", "/tls//site.crt"),
        ("reseal.cert.site.path", "/tls/"),
        ("reseal.cert.site.path", "/tls/.reseal/x"),
        ("reseal.cert.site.leaf", "/tls/site.crt"),
        ("reseal.cert.site.chain", "/tls/site.key"),
        ("reseal.cert.site.alias", "Web"),
        ("reseal.cert.site.key", "/tls/site.crt"),
        ("reseal.cert.site.layout", "jceks"),
        ("reseal.cert.site.layout", "pkcs12"),
        ("reseal.cert.site.password-file", "/tls/password"),
        ("reseal.cert.site.usage", "smtp"),
        ("reseal.cert.site.key-type", "rsa-1024"),
        ("reseal.cert.site.issuer", "acme"),
        ("reseal.cert.site.owner", "root"),
        ("reseal.cert.site.owner", "-1"),
        ("reseal.cert.site.mode", "0644"),
        ("reseal.cert.site.mode", "640 "),
        ("reseal.cert.site.mode", "0200"),
        ("reseal.cert.site.mode", "4600"),
        ("reseal.cert.site.reload", "signal:KILL"),
        ("reseal.cert.site.reload", "exec:"),
        ("reseal.cert.site.reload", "exec:sh -c 'open"),
        ("reseal.cert.site.reload", "Restart"),
        ("reseal.cert.site.check", "nginx -t"),
        ("reseal.cert.site.verify", "0"),
        ("reseal.cert.site.verify", "65536"),
        ("reseal.cert.site.verify", "443@*.test"),
        ("reseal.cert.site.verify", "443@"),
        ("reseal.cert.site.verify", "+443"),
        ("reseal.cert.site.verify", "443/https"),
        ("reseal.cert.site.verify", "443/"),
        ("reseal.cert.site.verify", "443/SMTP"),
        ("reseal.cert.site.verify", "443@a.test/smtp"),
        ("reseal.cert.site.verify", "/smtp"),
    ] {
        let mut labels: BTreeMap<&str, &str> = MINIMAL.into_iter().collect();
        labels.insert(key, value);
        let declared = parse(labels);
        assert_eq!(declared.certificates, [], "{key}={value}");
        let field = key.rsplit('.').next().unwrap();
        assert!(
            declared
                .problems
                .iter()
                .any(|problem| problem.id == "bad-label" && problem.message.contains(field)),
            "{key}={value}: {:?}",
            declared.problems
        );
    }
}

#[test]
fn what_is_missing_is_said() {
    let declared = read(&[("reseal.enable", "true"), ("reseal.cert.site.usage", "client")]);
    let text = format!("{:?}", declared.problems);
    assert!(text.contains("names is missing") && text.contains("path is missing"), "{text}");
}

#[test]
fn a_combined_file_has_no_key_file() {
    let combined = with(&[("reseal.cert.site.layout", "combined")]);
    assert_eq!(combined.certificates.len(), 1);
    let both = with(&[("reseal.cert.site.layout", "combined"), ("reseal.cert.site.key", "/tls/k.pem")]);
    assert_eq!(both.certificates, []);
}

#[test]
fn a_key_store_has_a_password_and_nothing_beside_it() {
    for layout in ["pkcs12", "jks"] {
        let store = with(&[
            ("reseal.cert.site.layout", layout),
            ("reseal.cert.site.password-file", "/tls/password"),
            ("reseal.cert.site.alias", "web.1"),
        ]);
        assert_eq!(store.problems, []);
        assert_eq!(store.certificates[0].files(), ["/tls/site.crt"]);
        let with_chain = with(&[
            ("reseal.cert.site.layout", layout),
            ("reseal.cert.site.password-file", "/tls/password"),
            ("reseal.cert.site.chain", "/tls/chain.pem"),
        ]);
        assert_eq!(with_chain.certificates, []);
    }
    let pair = with(&[
        ("reseal.cert.site.key", "/private/site.key"),
        ("reseal.cert.site.chain", "/tls/chain.pem"),
        ("reseal.cert.site.leaf", "/tls/cert.pem"),
    ]);
    let files = ["/tls/site.crt", "/private/site.key", "/tls/cert.pem", "/tls/chain.pem"];
    assert_eq!(pair.certificates[0].files(), files);
}

#[test]
fn a_client_certificate_is_served_nowhere() {
    let declared = with(&[("reseal.cert.site.usage", "client"), ("reseal.cert.site.verify", "443")]);
    assert_eq!(declared.certificates, []);
    let declared = with(&[("reseal.cert.site.usage", "client"), ("reseal.cert.site.verify", "none")]);
    assert_eq!(declared.certificates.len(), 1);
}

#[test]
fn sni_of_wildcards_and_addresses() {
    assert_eq!(default_sni(&["*.a.test".into()]), "reseal-probe.a.test");
    assert_eq!(default_sni(&["::1".into(), "b.test".into()]), "b.test");
    assert_eq!(default_sni(&["::1".into()]), "::1");
}

#[test]
fn messages_are_fit_for_a_terminal() {
    let declared = with(&[("reseal.\x1b[31m\u{202e}x", "y")]);
    for problem in &declared.problems {
        assert!(!problem.message.chars().any(char::is_control), "{problem:?}");
    }
}

fn label() -> impl Strategy<Value = (String, String)> {
    let field = prop_oneof![
        proptest::sample::select(CERTIFICATE_KEYS.as_slice()).prop_map(str::to_owned),
        ".{0,12}",
    ];
    let key = prop_oneof![
        (proptest::sample::select(["cert", "trust"].as_slice()), "[a-z-]{0,4}", field)
            .prop_map(|(kind, name, field)| format!("reseal.{kind}.{name}.{field}")),
        Just("reseal.enable".to_owned()),
        "reseal[.]?.{0,20}",
    ];
    let value =
        prop_oneof![Just("true".to_owned()), "[a-z*.,0-9:@/]{0,30}", "(exec|signal):.{0,20}", ".{0,60}",];
    (key, value)
}

proptest! {
    #[test]
    fn never_panics_and_never_lets_a_bad_path_through(labels in proptest::collection::vec(label(), 0..12)) {
        let declared = parse(labels.iter().map(|(key, value)| (key.as_str(), value.as_str())));
        if !declared.enabled {
            prop_assert!(declared.certificates.is_empty() && declared.trusts.is_empty());
        }
        for certificate in &declared.certificates {
            for path in [&certificate.path, &certificate.key] {
                prop_assert!(path.starts_with('/'));
                prop_assert!(!path.split('/').skip(1).any(|part| matches!(part, "" | "." | ".." | ".reseal")));
            }
            let files: std::collections::BTreeSet<String> = certificate.files().into_iter().collect();
            prop_assert_eq!(files.len(), certificate.files().len());
            prop_assert!(!certificate.names.is_empty());
            prop_assert!(certificate.mode.unwrap_or(0o600) & 0o007 == 0);
        }
    }

    #[test]
    fn a_command_is_split_as_written(words in proptest::collection::vec("[a-zA-Z0-9/=. -]{1,8}", 1..6)) {
        prop_assume!(!words[0].trim().is_empty());
        let text: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
        prop_assert_eq!(Command::from_str(&text.join(" ")).unwrap().0, words);
    }

    #[test]
    fn distance_is_a_metric(a in "[a-c]{0,6}", b in "[a-c]{0,6}", c in "[a-c]{0,6}") {
        prop_assert_eq!(values::distance(&a, &b), values::distance(&b, &a));
        prop_assert_eq!(values::distance(&a, &b) == 0, a == b);
        prop_assert!(values::distance(&a, &c) <= values::distance(&a, &b) + values::distance(&b, &c));
    }
}
