//! Real services in containers, described by labels only.
//!
//! Each service starts without a certificate and exits; Docker starts it again
//! (`--restart on-failure`) until the agent has put one into its directory,
//! which the container sees read-only. The configurations reload without
//! refusing a connection: nginx hands its sockets to new workers, HAProxy's
//! master passes its listeners on.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::fleet::Host;
use crate::image;
use crate::talk::Talk;

/// Where a service container sees its certificates.
pub const TLS: &str = "/tls";

/// An address that serves TLS, as a client from outside knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The service behind it.
    pub service: String,
    /// Where to connect.
    pub address: SocketAddr,
    /// The name to ask for and to check.
    pub sni: String,
    /// The HTTP status a client without a certificate gets.
    pub status: u16,
    /// What is spoken there.
    pub talk: Talk,
}

/// A container to be.
#[derive(Clone, Debug)]
pub struct Service {
    /// The container's name.
    pub name: String,
    /// The host it runs on.
    pub host: String,
    /// Where it answers.
    pub endpoint: Endpoint,
    /// Its labels.
    pub labels: Vec<(String, String)>,
    /// Installations the labels declare: the number of certificates it needs.
    pub certificates: usize,
    /// More of its ports that serve the same certificate: where they answer, and which port it
    /// is in the container.
    pub also: Vec<(Endpoint, u16)>,
    /// Of the endpoint, in the container.
    pub(crate) port: u16,
    pub(crate) image: &'static str,
    pub(crate) command: &'static [&'static str],
    /// As the program's official image has it.
    pub(crate) stop_signal: &'static str,
    /// Directory in the container, file name, content.
    pub(crate) configuration: (&'static str, &'static str, String),
}

/// A site on HAProxy that answers 200, with its certificate in `/tls/site.pem`.
pub(crate) const HAPROXY: &str = "\
global
    stats socket /run/haproxy-admin.sock mode 600 level admin expose-fd listeners
defaults
    mode http
    timeout connect 5s
    timeout client 10s
    timeout server 10s
frontend tls
    bind :443 ssl crt /tls/site.pem
    http-request return status 200 content-type text/plain string \"ok\"
";

/// The domain all services live under.
pub const DOMAIN: &str = "fleet.test";

impl Service {
    /// A TLS site on nginx; its reload method is left to Reseal's own table.
    pub fn site(host: &Host, name: &str, port: u16, key_type: &str) -> Self {
        let mut service = Self::nginx(host, name, port, 200, "", "return 200 \"ok\\n\";");
        service.label("cert.site.key-type", key_type);
        service
    }

    /// An API on nginx that wants a client certificate of the managed root; without one
    /// it answers 400.
    pub fn mtls_api(host: &Host, name: &str, port: u16) -> Self {
        let settings = "
        ssl_client_certificate /tls/ca.pem;
        ssl_verify_client on;
        ssl_verify_depth 3;";
        let answer = "return 200 \"hello $ssl_client_s_dn\\n\";";
        let mut service = Self::nginx(host, name, port, 400, settings, answer);
        service.trusts_managed_root();
        service
    }

    /// A site on nginx that asks `api` for each answer, over a new mTLS connection with a
    /// client certificate of its own.
    pub fn gateway(host: &Host, name: &str, port: u16, api: &Endpoint) -> Self {
        let answer = format!(
            "
            proxy_pass https://{};
            proxy_http_version 1.1;
            proxy_set_header Connection close;
            proxy_ssl_name {};
            proxy_ssl_server_name on;
            proxy_ssl_verify on;
            proxy_ssl_verify_depth 3;
            proxy_ssl_trusted_certificate /tls/ca.pem;
            proxy_ssl_certificate /tls/client.crt;
            proxy_ssl_certificate_key /tls/client.key;
            proxy_ssl_session_reuse off;
            proxy_next_upstream off;
        ",
            api.address, api.sni
        );
        let mut service = Self::nginx(host, name, port, 200, "", &answer);
        service.trusts_managed_root();
        service.label("cert.client.names", &service.endpoint.sni.clone());
        service.label("cert.client.path", "/tls/client.crt");
        service.label("cert.client.usage", "client");
        service.label("cert.client.reload", "signal:HUP");
        service.label("cert.client.verify", "none");
        service.certificates += 1;
        service
    }

    /// A site on HAProxy: certificate and key in one file, master and worker.
    pub fn haproxy(host: &Host, name: &str, port: u16) -> Self {
        let mut service = Self::new(host, name, port, 200);
        service.stop_signal = "SIGUSR1";
        service.command = &["haproxy", "-W", "-db", "-f", "/etc/haproxy/haproxy.cfg"];
        service.configuration = ("/etc/haproxy", "haproxy.cfg", HAPROXY.to_owned());
        service.label("cert.site.names", &service.endpoint.sni.clone());
        service.label("cert.site.path", "/tls/site.pem");
        service.label("cert.site.layout", "combined");
        service.label("cert.site.reload", "signal:USR2");
        service.label("cert.site.verify", "443");
        service
    }

    fn nginx(host: &Host, name: &str, port: u16, status: u16, settings: &str, answer: &str) -> Self {
        let mut service = Self::new(host, name, port, status);
        let configuration = format!(
            "\
user root;
worker_processes 2;
error_log /dev/stderr notice;
pid /run/nginx.pid;
worker_shutdown_timeout 10s;
events {{}}
http {{
    access_log off;
    default_type text/plain;
    server {{
        listen 443 ssl;
        server_name {};
        ssl_certificate /tls/site.crt;
        ssl_certificate_key /tls/site.key;
        ssl_protocols TLSv1.2 TLSv1.3;{settings}
        location / {{ {answer} }}
    }}
}}
",
            service.endpoint.sni
        );
        service.stop_signal = "SIGQUIT";
        service.command = &["nginx", "-g", "daemon off;"];
        service.configuration = ("/etc/nginx", "nginx.conf", configuration);
        service.label("cert.site.names", &service.endpoint.sni.clone());
        service.label("cert.site.path", "/tls/site.crt");
        service.label("cert.site.verify", "443");
        service
    }

    pub(crate) fn new(host: &Host, name: &str, port: u16, status: u16) -> Self {
        let mut service = Self {
            name: name.to_owned(),
            host: host.name.clone(),
            endpoint: Endpoint {
                service: name.to_owned(),
                address: SocketAddr::new(IpAddr::V4(host.address), port),
                sni: format!("{name}.{}.{DOMAIN}", host.name),
                status,
                talk: Talk::Http,
            },
            labels: Vec::new(),
            certificates: 1,
            also: Vec::new(),
            port: 443,
            image: image::NAME,
            command: &[],
            stop_signal: "",
            configuration: ("", "", String::new()),
        };
        service.label("enable", "true");
        service
    }

    /// Takes the stop signal away, as most images people build have none: Docker then takes
    /// any signal that comes through its API for a wish to stop, and forgets the restart policy.
    pub fn without_stop_signal(mut self) -> Self {
        self.stop_signal = "";
        self
    }

    /// A container that knows nothing of Reseal.
    pub fn unlabelled(mut self) -> Self {
        self.labels.clear();
        self
    }

    /// Before each reload its configuration is checked, and the check takes as long as
    /// [`Service::hold`] wants: so a scenario can be in the middle of a renewal.
    pub fn with_a_gate(mut self) -> Self {
        let (inside, ..) = self.configuration;
        let wait = format!("while test -e {inside}/hold; do sleep 0.05; done; nginx -t");
        self.label("cert.site.check", &format!("exec:sh -c '{wait}'"));
        self
    }

    /// Holds the check before the next reload until [`Service::let_go`].
    pub fn hold(&self, host: &Host) -> Result<()> {
        Ok(fs::write(self.etc(host).join("hold"), "")?)
    }

    /// Ends it.
    pub fn let_go(&self, host: &Host) -> Result<()> {
        Ok(fs::remove_file(self.etc(host).join("hold"))?)
    }

    /// Is the agent waiting for the check now?
    pub fn is_held(&self, host: &Host) -> Result<bool> {
        Ok(host.engine.docker(&["top", &self.name, "-o", "pid,args"])?.contains("/hold"))
    }

    /// Changes the configuration on the disk, as an operator of the service would; nothing
    /// is reloaded. Without a change it is as it was at the start.
    pub fn configure(&self, host: &Host, change: impl FnOnce(&str) -> String) -> Result<()> {
        let (_, file, content) = &self.configuration;
        Ok(fs::write(self.etc(host).join(file), change(content))?)
    }

    /// Its configuration before it is started.
    pub fn with_configuration(mut self, change: impl FnOnce(&str) -> String) -> Self {
        self.configuration.2 = change(&self.configuration.2);
        self
    }

    /// The directory on the host with its configuration.
    pub fn etc(&self, host: &Host) -> PathBuf {
        self.directory(host).join("etc")
    }

    /// Every endpoint of it.
    pub fn endpoints(&self) -> Vec<Endpoint> {
        std::iter::once(&self.endpoint).chain(self.also.iter().map(|(one, _)| one)).cloned().collect()
    }

    fn trusts_managed_root(&mut self) {
        self.label("trust.peers.bundle", "managed-root");
        self.label("trust.peers.path", "/tls/ca.pem");
    }

    /// Sets the label `reseal.<key>`.
    pub fn label(&mut self, key: &str, value: &str) {
        let key = format!("reseal.{key}");
        self.labels.retain(|(other, _)| *other != key);
        self.labels.push((key, value.to_owned()));
    }

    /// The directory on the host that the container sees as [`TLS`].
    pub fn tls_directory(&self, host: &Host) -> PathBuf {
        self.directory(host).join("tls")
    }

    /// The certificate file that the endpoint serves from, on the host.
    pub fn certificate_file(&self, host: &Host) -> PathBuf {
        let combined = self.labels.iter().any(|(key, _)| key == "reseal.cert.site.layout");
        let name = if combined { "site.pem" } else { "site.crt" };
        self.tls_directory(host).join(name)
    }

    /// Certificate and key of every installation on the host: twice the same file when combined.
    pub fn pairs(&self, host: &Host) -> Vec<(PathBuf, PathBuf)> {
        let tls = self.tls_directory(host);
        let names: &[(&str, &str)] =
            match (self.certificate_file(host).ends_with("site.pem"), self.certificates) {
                (true, _) => &[("site.pem", "site.pem")],
                (false, 1) => &[("site.crt", "site.key")],
                (false, _) => &[("site.crt", "site.key"), ("client.crt", "client.key")],
            };
        names.iter().map(|(certificate, key)| (tls.join(certificate), tls.join(key))).collect()
    }

    fn directory(&self, host: &Host) -> PathBuf {
        host.directory().join("services").join(&self.name)
    }

    /// Writes the service's configuration and starts its container.
    pub fn start(&self, host: &Host) -> Result<()> {
        let (inside, file, content) = &self.configuration;
        let etc = self.etc(host);
        let tls = self.tls_directory(host);
        for directory in [&etc, &tls] {
            fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        }
        fs::write(etc.join(file), content)?;
        let mut words = vec![
            "run".to_owned(),
            "--detach".to_owned(),
            "--restart=on-failure".to_owned(),
            format!("--name={}", self.name),
            format!("--hostname={}", self.name),
            format!("--publish={}:{}", self.endpoint.address.port(), self.port),
            format!("--volume={}:{TLS}:ro", tls.display()),
            format!("--volume={}:{inside}:ro", etc.display()),
        ];
        words.extend(
            self.also.iter().map(|(one, inside)| format!("--publish={}:{inside}", one.address.port())),
        );
        if !self.stop_signal.is_empty() {
            words.push(format!("--stop-signal={}", self.stop_signal));
        }
        words.extend(self.labels.iter().map(|(key, value)| format!("--label={key}={value}")));
        words.push(self.image.to_owned());
        words.extend(self.command.iter().map(|word| (*word).to_owned()));
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        host.engine.docker(&words).with_context(|| format!("cannot start service {}", self.name))?;
        Ok(())
    }
}
