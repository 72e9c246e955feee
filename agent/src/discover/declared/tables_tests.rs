use super::*;
use crate::discover::assemble::{assemble_with, tests::web};
use crate::discover::labels::Declared;
use proptest::prelude::*;
use reseal_proto::v1::Management;

fn declared(text: &str) -> Declarations {
    read(&toml::from_str(text).unwrap(), true)
}

fn messages(declarations: &Declarations) -> String {
    declarations.findings.iter().map(|found| format!("{}: {}\n", found.object, found.message)).collect()
}

const NGINX: &str = "
    [[certificate]]
    unit = 'nginx.service'
    names = ['www.example.test', 'example.test']
    path = '/etc/ssl/site/site.crt'
    reload = 'signal:HUP'
    verify = 443
";

#[test]
fn a_container_that_cannot_be_relabelled() {
    let text = "
        [[certificate]]
        container = 'web'
        name = 'site'
        names = 'a.example.test'
        path = '/tls/site.crt'
        key-type = 'rsa-2048'
        mode = '0640'
        verify = [443, '8443@b.example.test']
        [[trust]]
        container = 'web'
        bundle = 'managed-root'
        path = '/tls/ca.pem'
    ";
    let declarations = declared(text);
    assert_eq!(messages(&declarations), "");
    let bare = Container { declared: Declared::default(), ..web("web", "/srv/tls") };
    let host = assemble_with(vec![bare], &declarations);
    let found = &host.installations["/srv/tls/site.crt"];
    assert_eq!((found.label.as_str(), found.management), ("web/site", Management::Configuration));
    assert_eq!(found.wanted.mode, Some(0o640));
    assert_eq!(found.consumers[0].endpoints.len(), 3);
    assert_eq!(host.trusts[0].place.id(), "/srv/tls/ca.pem");
    assert_eq!(host.trusts[0].consumers[0].reload.to_string(), "signal HUP, exec nginx -s reload");
    assert_eq!(host.findings, []);
}

#[test]
fn a_process_of_the_host() {
    let declarations = declared(NGINX);
    assert_eq!(messages(&declarations), "");
    let host = assemble_with(Vec::new(), &declarations);
    let found = &host.installations["/etc/ssl/site/site.crt"];
    assert_eq!(found.label, "host:nginx.service/site");
    assert_eq!(found.place.mount, "/etc/ssl/site");
    let consumer = &found.consumers[0];
    assert_eq!(consumer.host, Some(HostProcess::Unit("nginx.service".into())));
    assert_eq!(consumer.reload.to_string(), "signal HUP");
    assert!(consumer.serves && consumer.endpoints.is_empty(), "it does not run");
}

#[test]
fn where_it_answers_may_be_said() {
    let mut declarations = declared(&format!("{NGINX}\naddress = '10.0.0.7'"));
    declarations.host[0].running = true;
    let host = assemble_with(Vec::new(), &declarations);
    let consumer = &host.installations["/etc/ssl/site/site.crt"].consumers[0];
    let addresses: Vec<_> = consumer.endpoints.iter().map(|one| one.address.as_str()).collect();
    assert_eq!(addresses, ["10.0.0.7:443"]);
    assert_eq!(consumer.container, "host:nginx.service@10.0.0.7");
}

#[test]
fn links_are_followed_beneath_the_directory_that_is_said() {
    let text = "
        [[certificate]]
        pid-file = '/run/nginx.pid'
        names = 'a.test'
        path = '/etc/letsencrypt/live/a.test/fullchain.pem'
        key = '/etc/letsencrypt/live/a.test/privkey.pem'
        directory = '/etc/letsencrypt'
    ";
    let declarations = declared(text);
    assert_eq!(messages(&declarations), "");
    assert_eq!(declarations.host[0].mounts[0].source, "/etc/letsencrypt");
    let outside = declared(&text.replace("'/etc/letsencrypt'", "'/etc/other'"));
    assert!(messages(&outside).contains("is not beneath it"), "{}", messages(&outside));
}

#[test]
fn one_process_with_several_certificates() {
    let second = NGINX.replace("site.crt", "deeper/api.crt").replace("/site/", "/");
    let declarations = declared(&format!("{NGINX}{second}"));
    assert_eq!(messages(&declarations), "");
    assert_eq!(declarations.host.len(), 1, "one lock, one reload at a time");
    let host = assemble_with(Vec::new(), &declarations);
    assert_eq!(host.installations.len(), 2, "{:?}", host.findings);
}

#[test]
fn what_a_process_cannot_be_asked_for_is_refused() {
    for (change, said) in [
        ("reload = 'restart'", "only a container can be restarted"),
        ("container = 'web'", "not beside container"),
        ("pid-file = '/run/x.pid'", "one of the two"),
        ("address = 'localhost'", "must be an IP address"),
        ("mode = 640", "write it as text"),
        ("names = 'a b'", "names"),
        ("unit = 'nginx'", "must be a systemd service"),
        ("unit = '../x.service'", "must be a systemd service"),
        ("path = 'relative.crt'", "absolute"),
        ("name = 'A'", "a-z"),
        ("owner = ['0']", "must be text"),
    ] {
        let key = change.split(' ').next().unwrap();
        let kept: Vec<&str> =
            NGINX.lines().filter(|line| !line.trim_start().starts_with(&format!("{key} "))).collect();
        let declarations = declared(&format!("{}\n{change}", kept.join("\n")));
        assert!(declarations.host.is_empty() && declarations.containers.is_empty(), "{change}");
        assert!(messages(&declarations).contains(said), "{change}: {}", messages(&declarations));
    }
    let unnamed = declared(&NGINX.replace("unit = 'nginx.service'", ""));
    assert!(messages(&unnamed).contains("who gets the signal"), "{}", messages(&unnamed));
    let command = NGINX.replace("signal:HUP", "exec:systemctl reload nginx");
    assert_eq!(declared(&command).host.len(), 1);
    let within = read(&toml::from_str(&command).unwrap(), false);
    assert!(messages(&within).contains("host_root"), "{}", messages(&within));
}

#[test]
fn one_mistake_leaves_the_others_alone() {
    let text =
        format!("{NGINX}\n[[certificate]]\ncontainer = 'web'\nnmaes = 'a.test'\npath = '/tls/a.crt'\n");
    let declarations = declared(&text);
    assert_eq!(declarations.host.len(), 1);
    let said = messages(&declarations);
    assert!(said.contains("the nearest that does is names") && said.contains("names is missing"), "{said}");
    // An unknown key beside a good declaration does not stop it.
    let beside = declared(&format!("{NGINX}\nownre = '0'"));
    assert_eq!(beside.host.len(), 1);
    assert!(messages(&beside).contains("the nearest that does is owner"));
}

#[test]
fn odd_documents_are_findings() {
    for text in ["adopt = 1", "certificate = 'x'", "certificate = ['x']", "[certificate]\nname = 'x'"] {
        let declarations = declared(text);
        assert_eq!(declarations.findings.len(), 1, "{text}: {}", messages(&declarations));
        assert_eq!(declarations.findings[0].id, "bad-configuration");
    }
    assert!(declared("adopt = true").adopt);
    let many = NGINX.repeat(MOST + 1);
    assert!(messages(&declared(&many)).contains("the first 256 are read"));
}

#[test]
fn a_label_and_the_configuration_do_not_fight() {
    let text = "
        [[certificate]]
        container = 'web'
        names = 'other.example.test'
        path = '/tls/site.crt'
    ";
    let host = assemble_with(vec![web("web", "/srv/tls")], &declared(text));
    let found = &host.installations["/srv/tls/site.crt"];
    assert_eq!((found.management, found.consumers.len()), (Management::Labels, 1));
    assert_eq!(host.findings[0].id, "bad-configuration");
    let nobody = assemble_with(Vec::new(), &declared(text));
    assert_eq!(nobody.findings[0].id, "container-missing");
}

fn value() -> impl Strategy<Value = toml::Value> {
    let leaf = prop_oneof![
        any::<i64>().prop_map(toml::Value::Integer),
        any::<bool>().prop_map(toml::Value::Boolean),
        "[a-z0-9:/.,@-]{0,20}".prop_map(toml::Value::String),
        "(signal:HUP|exec:true|restart|none|/tls/a.crt|a.test|443|nginx.service)"
            .prop_map(toml::Value::String),
        ".{0,20}".prop_map(toml::Value::String),
    ];
    prop_oneof![leaf.clone(), proptest::collection::vec(leaf, 0..4).prop_map(toml::Value::Array)]
}

proptest! {
    #[test]
    fn never_panics_and_says_whatever_it_leaves_out(
        tables in proptest::collection::vec(
            proptest::collection::btree_map(
                prop_oneof![
                    proptest::sample::select(labels::CERTIFICATE_KEYS.as_slice()).prop_map(str::to_owned),
                    proptest::sample::select(CERTIFICATE_OWN.as_slice()).prop_map(str::to_owned),
                    ".{0,10}",
                ],
                value(),
                0..8,
            ),
            0..5,
        ),
    ) {
        let number = tables.len();
        let list = tables.into_iter().map(|table| toml::Value::Table(table.into_iter().collect())).collect();
        let document = toml::Table::from_iter([("certificate".to_owned(), toml::Value::Array(list))]);
        let declarations = read(&document, true);
        let host = declarations.host.iter().map(|one| &one.declared);
        let taken: usize = host.chain(declarations.containers.values()).map(|one| one.certificates.len()).sum();
        prop_assert!(taken + declarations.findings.len() >= number);
        for container in &declarations.host {
            prop_assert!(container.mounts.iter().all(|mount| mount.source.starts_with('/') && mount.source != "/"));
        }
        for found in &declarations.findings {
            prop_assert!(!found.message.chars().any(char::is_control));
        }
    }
}
