//! Every program that reloads, as a service: web servers, mail, data, a relay, and one that
//! cannot reload at all.
//!
//! Described by labels only, as [`crate::services`] does it; the reload method is left to
//! Reseal's own table wherever that has one. Some stand behind a shell or an init, as in many
//! images. Each ends at once while it has no certificate, and is started again by Docker.

use anyhow::Result;

use crate::fleet::Host;
use crate::image::PROGRAMS;
use crate::services::{Endpoint, Service};
use crate::talk::Talk;

/// User and group of PostgreSQL in its container: it does not run as root, nor read a key that
/// others own.
const POSTGRES: &str = "70:70";

/// One of each on a host that has the image.
pub fn all(host: &Host) -> Result<Vec<Service>> {
    host.engine.import(&PROGRAMS)?;
    let mut all = vec![
        Service::site(host, "nginx", 8401, "ecdsa-p256"),
        Service::haproxy(host, "haproxy", 8402),
        apache(host),
        caddy(host),
        postfix(host),
        dovecot(host),
        postgresql(host),
        redis(host),
        mosquitto(host),
        stunnel(host),
        no_reload(host),
    ];
    for service in &mut all {
        service.image = PROGRAMS.name;
    }
    Ok(all)
}

/// How the agent is expected to reload each of them.
pub const EXPECTED: [(&str, &str); 11] = [
    ("nginx", "signal HUP"),
    ("haproxy", "signal USR2"),
    ("apache", "signal USR1"),
    ("caddy", "exec caddy reload --force --config /conf/Caddyfile --adapter caddyfile"),
    ("postfix", "signal HUP"),
    ("dovecot", "signal HUP"),
    ("postgresql", "signal HUP"),
    (
        "redis",
        "exec redis-cli --tls --insecure --cert /tls/site.crt --key /tls/site.key -p 6379 CONFIG SET tls-cert-file /tls/site.crt",
    ),
    ("mosquitto", "signal HUP"),
    ("stunnel", "signal HUP"),
    ("no-reload", RESTART),
];

/// The method of those that are interrupted.
pub const RESTART: &str = "restart";

/// Behind tini, as `docker run --init` has it.
fn apache(host: &Host) -> Service {
    let configuration = "\
ServerRoot /etc/apache2
ServerName apache
PidFile /run/apache2.pid
ErrorLog /dev/stderr
User www-data
Group www-data
LoadModule mpm_event_module /usr/lib/apache2/modules/mod_mpm_event.so
LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so
LoadModule dir_module /usr/lib/apache2/modules/mod_dir.so
LoadModule ssl_module /usr/lib/apache2/modules/mod_ssl.so
DocumentRoot /var/www/html
DirectoryIndex index.html
Listen 443
SSLEngine on
SSLCertificateFile /tls/site.crt
SSLCertificateKeyFile /tls/site.key
";
    let mut service = program(host, "apache", 8403, 443, Talk::Http);
    service.command = &["tini", "--", "apache2", "-DFOREGROUND", "-f", "/conf/apache.conf"];
    service.configuration = ("/conf", "apache.conf", configuration.to_owned());
    service
}

fn caddy(host: &Host) -> Service {
    let mut service = program(host, "caddy", 8404, 443, Talk::Http);
    let configuration = format!(
        "{{\n\tauto_https off\n}}\nhttps://{}:443 {{\n\ttls /tls/site.crt /tls/site.key\n\trespond ok\n}}\n",
        service.endpoint.sni
    );
    service.command = &["caddy", "run", "--config", "/conf/Caddyfile", "--adapter", "caddyfile"];
    service.configuration = ("/conf", "Caddyfile", configuration);
    service
}

/// Two ports, one of them with STARTTLS.
fn postfix(host: &Host) -> Service {
    let script = "\
test -e /tls/site.crt || exit 1
postconf -e 'smtpd_tls_cert_file=/tls/site.crt' 'smtpd_tls_key_file=/tls/site.key' \
    'smtpd_tls_security_level=may' 'maillog_file=/dev/stdout' 'inet_interfaces=all' \
    'inet_protocols=ipv4' 'smtpd_client_connection_rate_limit=0' 'smtpd_peername_lookup=no'
postconf -Me 'smtp/inet=smtp inet n - n - - smtpd' \
    'smtps/inet=smtps inet n - n - - smtpd -o smtpd_tls_wrappermode=yes'
exec postfix start-fg
";
    let mut service = program(host, "postfix", 8405, 465, Talk::Smtps);
    more(&mut service, 8425, 25, Talk::Smtp);
    service.command = &["sh", "/conf/start.sh"];
    service.configuration = ("/conf", "start.sh", script.to_owned());
    service.label("cert.site.verify", "465,25/smtp");
    service
}

/// Three ports, behind a shell that stays.
fn dovecot(host: &Host) -> Service {
    let configuration = "\
protocols = imap pop3
ssl = yes
ssl_cert = </tls/site.crt
ssl_key = </tls/site.key
log_path = /dev/stderr
mail_location = maildir:/tmp/%u
passdb {
  driver = static
  args = password=x
}
userdb {
  driver = static
  args = uid=1000 gid=1000 home=/tmp
}
";
    let mut service = program(host, "dovecot", 8406, 993, Talk::Imaps);
    more(&mut service, 8426, 143, Talk::Imap);
    more(&mut service, 8427, 995, Talk::Pop3s);
    service.command = &["sh", "-c", "dovecot -F -c /conf/dovecot.conf; exit $?"];
    service.configuration = ("/conf", "dovecot.conf", configuration.to_owned());
    service.label("cert.site.verify", "993,143/imap,995");
    service
}

fn postgresql(host: &Host) -> Service {
    let script = "\
test -e /tls/site.crt || exit 1
data=/var/lib/postgresql/data bin=/usr/lib/postgresql/15/bin
if ! test -e $data/PG_VERSION; then
    echo 'pg:x:70:70::/tmp:' >> /etc/passwd
    mkdir -p $data /run/postgresql
    chown 70:70 $data /run/postgresql
    setpriv --reuid 70 --regid 70 --clear-groups $bin/initdb -D $data -U pg >/dev/null || exit 1
    echo 'hostssl all all all trust' > $data/pg_hba.conf
fi
exec setpriv --reuid 70 --regid 70 --clear-groups $bin/postgres -D $data -c listen_addresses='*' \
    -c ssl=on -c ssl_cert_file=/tls/site.crt -c ssl_key_file=/tls/site.key
";
    let mut service = program(host, "postgresql", 8407, 5432, Talk::Postgres);
    service.command = &["sh", "/conf/start.sh"];
    service.configuration = ("/conf", "start.sh", script.to_owned());
    service.label("cert.site.owner", POSTGRES);
    service.label("cert.site.verify", "5432/postgres");
    service
}

fn redis(host: &Host) -> Service {
    let configuration = "\
port 0
tls-port 6379
tls-cert-file /tls/site.crt
tls-key-file /tls/site.key
tls-ca-cert-dir /etc/ssl/certs
tls-auth-clients no
protected-mode no
save \"\"
";
    let mut service = program(host, "redis", 8408, 6379, Talk::Redis);
    service.command = &["redis-server", "/conf/redis.conf"];
    service.configuration = ("/conf", "redis.conf", configuration.to_owned());
    service
}

fn mosquitto(host: &Host) -> Service {
    let configuration = "\
user root
allow_anonymous true
listener 8883
certfile /tls/site.crt
keyfile /tls/site.key
";
    let mut service = program(host, "mosquitto", 8409, 8883, Talk::Mqtt);
    service.command = &["mosquitto", "-c", "/conf/mosquitto.conf"];
    service.configuration = ("/conf", "mosquitto.conf", configuration.to_owned());
    service
}

/// In front of `cat`; certificate and key in one file.
fn stunnel(host: &Host) -> Service {
    let configuration = "\
foreground = yes
pid =
[echo]
accept = 443
exec = /bin/cat
cert = /tls/site.pem
";
    let mut service = program(host, "stunnel", 8410, 443, Talk::Echo);
    service.command = &["stunnel4", "/conf/stunnel.conf"];
    service.configuration = ("/conf", "stunnel.conf", configuration.to_owned());
    service.label("cert.site.path", "/tls/site.pem");
    service.label("cert.site.layout", "combined");
    service
}

/// A program that reads its certificate once: it is restarted, because its label allows that.
/// It sends what it finds of the chain among the certificates that it trusts.
fn no_reload(host: &Host) -> Service {
    let mut service = program(host, "no-reload", 8411, 443, Talk::Http);
    service.command = &[
        "openssl",
        "s_server",
        "-accept",
        "443",
        "-cert",
        "/tls/site.crt",
        "-CAfile",
        "/tls/site.crt",
        "-key",
        "/tls/site.key",
        "-www",
        "-quiet",
    ];
    // As PID 1 it does not catch TERM.
    service.stop_signal = "SIGKILL";
    service.label("cert.site.reload", "signal:HUP,restart");
    service
}

fn program(host: &Host, name: &str, published: u16, port: u16, talk: Talk) -> Service {
    let mut service = Service::new(host, name, published, 200);
    service.endpoint.talk = talk;
    service.port = port;
    service.configuration = ("/conf", "none", String::new());
    service.label("cert.site.names", &service.endpoint.sni.clone());
    service.label("cert.site.path", "/tls/site.crt");
    service.label("cert.site.verify", &port.to_string());
    service
}

fn more(service: &mut Service, published: u16, port: u16, talk: Talk) {
    let mut address = service.endpoint.address;
    address.set_port(published);
    let name = format!("{}:{port}", service.name);
    let endpoint = Endpoint { service: name, address, talk, ..service.endpoint.clone() };
    service.also.push((endpoint, port));
}
