use super::*;
use crate::discover::processes::Process;
use table::{Seen, Survives};

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

fn process(pid: i32, text: &str) -> Process {
    Process { pid, parent: 1, words: words(text) }
}

fn running(text: &str) -> Container {
    Container { pid: 1, running: true, process: words(text), ..Container::default() }
}

fn site() -> Certificate {
    let labels = [
        ("reseal.enable", "true"),
        ("reseal.cert.site.names", "a.example.test"),
        ("reseal.cert.site.path", "/tls/site.crt"),
        ("reseal.cert.site.verify", "6379"),
    ];
    crate::discover::labels::parse(labels).certificates.remove(0)
}

fn ladder(container: &Container) -> Option<String> {
    known(container, &site()).map(|known| known.ladder.to_string())
}

fn check(container: &Container) -> Option<String> {
    known(container, &site())?.check.map(|check| check.to_string())
}

#[test]
fn nginx_by_title_by_command_and_by_image() {
    let mut by_title = running("nginx");
    by_title.process = vec!["nginx: master process nginx -c /etc/x.conf -g daemon off;".into()];
    by_title.command = words("sh -c run");
    assert_eq!(ladder(&by_title).unwrap(), "signal HUP, exec nginx -s reload -c /etc/x.conf");
    assert_eq!(check(&by_title).unwrap(), "nginx -t -c /etc/x.conf");
    for (command, image) in [
        ("/usr/sbin/nginx -g x", "x"),
        ("/docker-entrypoint.sh nginx -g x", "x"),
        ("/sbin/tini -g -- nginx -g x", "x"),
        ("/start", "docker.io/library/nginx:1.25"),
    ] {
        let container = Container { command: words(command), image: image.into(), ..Container::default() };
        assert_eq!(described(&container), "nginx", "{command} {image}");
        assert!(ladder(&container).is_some());
    }
}

#[test]
fn haproxy_needs_its_master() {
    let container = running("haproxy -Ws -f /etc/haproxy/haproxy.cfg");
    assert_eq!(ladder(&container).unwrap(), "signal USR2");
    assert_eq!(check(&container).unwrap(), "haproxy -c -q -f /etc/haproxy/haproxy.cfg");
    let single = known(&running("haproxy -db -f /etc/haproxy/haproxy.cfg"), &site()).unwrap();
    assert!(single.ladder.is_empty() && single.program.advice.contains("-W"));
}

#[test]
fn each_program_gets_its_own_steps() {
    for (process, steps, checked) in [
        ("/usr/sbin/apache2 -DFOREGROUND", "signal USR1, exec apache2ctl -k graceful", Some("apache2ctl -t")),
        (
            "httpd -DFOREGROUND -f /conf/x.conf",
            "signal USR1, exec httpd -k graceful -f /conf/x.conf",
            Some("httpd -t -f /conf/x.conf"),
        ),
        (
            "caddy run --config /etc/caddy/Caddyfile --adapter caddyfile",
            "exec caddy reload --force --config /etc/caddy/Caddyfile --adapter caddyfile",
            Some("caddy validate --config /etc/caddy/Caddyfile --adapter caddyfile"),
        ),
        (
            "caddy run --config=/c.json",
            "exec caddy reload --force --config=/c.json",
            Some("caddy validate --config=/c.json"),
        ),
        ("/usr/lib/postfix/sbin/master -i", "signal HUP, exec postfix reload", Some("postfix check")),
        ("/usr/sbin/dovecot -F -c /c", "signal HUP, exec doveadm -c /c reload", Some("doveconf -n -c /c")),
        ("postgres", "signal HUP", None),
        ("/usr/lib/postgresql/15/bin/postgres -D /data", "signal HUP", None),
        (
            "redis-server *:6379",
            "exec redis-cli --tls --insecure --cert /tls/site.crt --key /tls/site.key -p 6379 CONFIG SET tls-cert-file /tls/site.crt",
            None,
        ),
        ("mosquitto -c /etc/mosquitto/mosquitto.conf", "signal HUP", None),
        ("stunnel4 /etc/stunnel/stunnel.conf", "signal HUP", None),
        ("mariadbd --user=mysql", "exec mariadb -e FLUSH SSL", None),
        ("envoy -c /etc/envoy.yaml", "none", None),
        ("slapd -d 0", "none", None),
    ] {
        let container = running(process);
        assert_eq!(ladder(&container).as_deref(), Some(steps), "{process}");
        assert_eq!(check(&container).as_deref(), checked, "{process}");
    }
    assert!(known(&running("envoy -c /etc/envoy.yaml"), &site()).unwrap().watches);
    assert!(ladder(&running("/opt/kafka/master --x")).is_none(), "not every master is Postfix");
    assert!(ladder(&running("my-own-server --port 443")).is_none());
}

#[test]
fn client_certificates_and_bundles_have_columns_of_their_own() {
    let redis = running("redis-server *:6379");
    let mut client = site();
    client.usage = Usage::Client;
    client.verify.clear();
    let said = known(&redis, &client).unwrap().ladder.to_string();
    assert_eq!(said, "exec redis-cli CONFIG SET tls-client-cert-file /tls/site.crt");
    let said = known_for_bundle(&redis, "/tls/ca.pem").unwrap().ladder.to_string();
    assert_eq!(said, "exec redis-cli CONFIG SET tls-ca-cert-file /tls/ca.pem");
}

#[test]
fn wrappers_are_looked_through_where_that_is_certain() {
    let behind = |first: &str, behind: Vec<Process>| {
        let mut container = running(first);
        container.behind = behind;
        container.image = "nginx".into();
        container
    };
    let nginx = behind("/bin/sh -c nginx", vec![process(7, "nginx: master")]);
    assert_eq!(recognise(&nginx).unwrap().pid, 7);
    assert_eq!(described(&nginx), "nginx behind sh");
    assert!(ladder(&nginx).unwrap().starts_with("signal HUP"));
    // An init that starts one program: whatever that is.
    let own = behind("tini -- my-server", vec![process(8, "my-server")]);
    assert_eq!(recognise(&own).unwrap().pid, 8);
    let through = vec![process(8, "sh /run.sh"), process(9, "dovecot -F")];
    assert_eq!(recognise(&behind("tini -- /run.sh", through)).unwrap().pid, 9);
    // A shell that starts something unknown: it may be anything.
    let error = recognise(&behind("sh -c x", vec![process(8, "my-server")])).unwrap_err();
    assert!(error.to_string().contains("sh") && error.to_string().contains("my-server"), "{error}");
    let two = vec![process(8, "nginx: master"), process(9, "redis-server *:6379")];
    let error = recognise(&behind("supervisord -n", two)).unwrap_err();
    assert!(error.to_string().contains("nginx, Redis"), "{error}");
    // The image's name says nothing about a shell.
    let shell = behind("/bin/sh -c sleep", Vec::new());
    assert!(ladder(&shell).is_none());
    assert_eq!(described(&shell), "sh");
}

#[test]
fn the_table_is_whole() {
    for program in table::ALL {
        assert!(!program.sources.is_empty(), "{} has no source", program.name);
        let claims = [program.server, program.client, program.bundle, program.crl];
        let tried = claims.iter().any(|claim| claim.seen == Seen::Tried);
        assert!(!tried || !program.tried.is_empty(), "{} was tried with what?", program.name);
        if tried && matches!(program.server.takes, Takes::Signal(_) | Takes::Exec) {
            assert_ne!(program.connections, Survives::Unused, "{}", program.name);
        }
        let command = format!("{} -W", program.executables[0]);
        let mut container = running(&command);
        if command.starts_with("master") {
            container.process = words("/usr/lib/postfix/sbin/master");
        }
        let known =
            known(&container, &site()).unwrap_or_else(|| panic!("{} is not recognised", program.name));
        assert_eq!(known.program.name, program.name);
        // What the column says is what is tried first.
        match program.server.takes {
            Takes::Signal(signal) => assert_eq!(known.ladder.0[0], Reload::Signal(signal)),
            Takes::Exec => assert!(matches!(known.ladder.0[0], Reload::Exec(_))),
            Takes::Watched => assert!(known.ladder.is_empty()),
            Takes::Restart | Takes::Unused | Takes::Unknown => {
                assert!(known.ladder.is_empty() && !program.advice.is_empty(), "{}", program.name);
            }
        }
        assert!(known.ladder.0.iter().all(Reload::is_gentle), "{}: a restart only by label", program.name);
    }
    let mut names: Vec<&str> = table::ALL.iter().flat_map(|program| program.executables).copied().collect();
    names.sort_unstable();
    assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "two programs of one name");
}

/// The document shows the table as it is here.
#[test]
fn the_document_shows_the_table() {
    let document = include_str!("../../../../docs/RELOAD.md");
    let mut missing = Vec::new();
    for program in table::ALL {
        let tried = if program.tried.is_empty() { "–" } else { program.tried };
        let takes = [program.server, program.client, program.bundle, program.crl].map(|claim| claim.told());
        let rows = [
            format!("| {} | {} | {tried} |", program.name, takes.join(" | ")),
            format!(
                "| {} | {} | {} | {} | {} |",
                program.name,
                program.crl_depth.told(),
                program.connections.told(),
                program.sessions.told(),
                program.cut
            ),
            format!("| {} | {} |", program.name, program.sources.join("; ")),
        ];
        missing.extend(rows.into_iter().filter(|row| !document.contains(row.as_str())));
    }
    assert!(missing.is_empty(), "docs/RELOAD.md lacks these rows:\n{}", missing.join("\n"));
}
