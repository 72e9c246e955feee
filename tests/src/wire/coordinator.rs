//! A real coordinator on loopback, with a store of its own.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use reseal_proto::channel::{self, Credentials, Trust};
use reseal_proto::v1::operator_client::OperatorClient;
use reseal_proto::v1::{InviteHostRequest, Policy, Usage};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tonic::transport::Channel;

use crate::process::{Daemon, command, run, wait_for};

/// A client of the operator service.
pub type Operator = OperatorClient<Channel>;

/// How it is run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The `reseal` program.
    pub program: PathBuf,
    /// The fleet's name.
    pub fleet: String,
    /// "warn", "info", "debug".
    pub log_level: String,
    /// An OTLP collector, and the share of traces recorded.
    pub tracing: Option<(String, f64)>,
}

/// The process and its directory; both end with the value.
pub struct Coordinator {
    settings: Settings,
    directory: tempfile::TempDir,
    data: PathBuf,
    address: SocketAddr,
    metrics: SocketAddr,
    daemon: Option<Daemon>,
}

impl Coordinator {
    /// Makes a fleet and starts its coordinator, with a policy that admits `**.wire.test`.
    pub async fn start(settings: Settings) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let data = directory.path().join("data");
        Self::start_with(settings, directory, data).await
    }

    /// Likewise, with its store in a directory of the caller's choice.
    pub async fn start_in(settings: Settings, data: PathBuf) -> Result<Self> {
        Self::start_with(settings, tempfile::tempdir()?, data).await
    }

    async fn start_with(settings: Settings, directory: tempfile::TempDir, data: PathBuf) -> Result<Self> {
        let address = free_address()?;
        let metrics = free_address()?;
        let path = |name: &str| directory.path().join(name);
        let mut config = format!(
            "data_dir = {:?}\nlisten = \"{address}\"\nadvertise = [\"{address}\"]\nmetrics_listen = \"{metrics}\"\n\
             kek_files = [{:?}]\n[telemetry]\nlog_level = {:?}\n",
            data,
            path("kek"),
            settings.log_level
        );
        if let Some((collector, ratio)) = &settings.tracing {
            config.push_str(&format!("otlp_endpoint = {collector:?}\nsample_ratio = {ratio:?}\n"));
        }
        std::fs::write(path("reseal.toml"), config)?;
        let mut init =
            command(&settings.program, &["init", "--fleet", &settings.fleet, "--admin", "alice", "--config"]);
        run(init.arg(path("reseal.toml")).arg("--admin-out").arg(path("admin.json")))?;
        let mut coordinator = Self { settings, directory, data, address, metrics, daemon: None };
        coordinator.run(&[])?;
        let mut operator = coordinator.operator().await?;
        operator
            .set_policy(Policy {
                name: "wire".into(),
                names: vec!["**.wire.test".into()],
                key_types: vec!["ecdsa-p256".into()],
                usages: vec![Usage::Server.into()],
                lifetime_seconds: 30 * 86_400,
                ..Policy::default()
            })
            .await?;
        Ok(coordinator)
    }

    /// Starts the process, again after a [`Coordinator::kill`]; `environment` may name fail points.
    pub fn run(&mut self, environment: &[(&str, &str)]) -> Result<()> {
        let mut serve = command(&self.settings.program, &["serve", "--config"]);
        serve.arg(self.directory.path().join("reseal.toml")).envs(environment.iter().copied());
        self.daemon = Some(Daemon::start("reseal serve", &serve, &self.log_path())?);
        Ok(())
    }

    /// kill -9.
    pub fn kill(&mut self) {
        self.daemon = None;
    }

    /// Waits until the process has ended by itself, as it does at a fail point.
    pub fn wait_for_end(&mut self, within: Duration) -> Result<()> {
        let daemon = self.daemon.as_mut().context("it does not run")?;
        wait_for("the coordinator's end", within, || Ok(daemon.ended()?.map(|_| ())))?;
        self.daemon = None;
        Ok(())
    }

    /// Has it ended by itself?
    pub fn has_ended(&mut self) -> Result<bool> {
        match &mut self.daemon {
            Some(daemon) => Ok(daemon.ended()?.is_some()),
            None => Ok(true),
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.daemon.as_ref().map_or(0, Daemon::pid)
    }

    /// Where it listens.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// The directory of its store.
    pub fn data(&self) -> PathBuf {
        self.data.clone()
    }

    /// The admin's credentials file.
    pub fn credentials(&self) -> PathBuf {
        self.directory.path().join("admin.json")
    }

    /// Everything it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    /// The `reseal` command line with the admin's credentials.
    pub fn reseal(&self, arguments: &[&str]) -> std::process::Command {
        let mut command = command(&self.settings.program, arguments);
        command.env("RESEAL_CREDENTIALS", self.credentials());
        command
    }

    /// Runs a `reseal` command that must succeed, with `--output json`.
    pub fn json(&self, arguments: &[&str]) -> Result<serde_json::Value> {
        let text = run(self.reseal(arguments).args(["--output", "json"]))?;
        serde_json::from_str(&text).with_context(|| format!("{arguments:?} printed no JSON: {text}"))
    }

    /// A counter or gauge of its metrics, by name and labels as they are written.
    pub fn metric(&self, name: &str) -> Result<u64> {
        let mut stream = std::net::TcpStream::connect(self.metrics)?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: metrics\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.and_then(|value| value.trim().parse().ok()).with_context(|| format!("no metric {name}: {text}"))
    }

    /// A client with the admin's credentials; waits until the coordinator answers.
    pub async fn operator(&self) -> Result<Operator> {
        self.operator_with(&self.credentials()).await
    }

    /// A client with other credentials.
    pub async fn operator_with(&self, credentials: &Path) -> Result<Operator> {
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        loop {
            match self.try_operator(credentials).await {
                Ok(operator) => return Ok(operator),
                Err(error) if std::time::Instant::now() > deadline => {
                    return Err(
                        error.context(format!("the coordinator does not answer; its log:\n{}", self.log()))
                    );
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    async fn try_operator(&self, credentials: &Path) -> Result<Operator> {
        let file: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(credentials)?)?;
        let part = |name: &str| file[name].as_str().context("a field is missing").map(str::as_bytes);
        let identity = Credentials {
            chain: CertificateDer::pem_slice_iter(part("certificate")?).collect::<Result<_, _>>()?,
            key: PrivateKeyDer::from_pem_slice(part("key")?)?,
        };
        let anchor = CertificateDer::from_pem_slice(part("ca")?)?;
        let config = channel::client_config(Trust::Anchor(anchor), Some(identity))?;
        Ok(OperatorClient::new(channel::connect(&self.address(), config).await?))
    }

    /// A join token for a host.
    pub async fn invite(&self, name: &str, lifetime_seconds: u64) -> Result<String> {
        let request =
            InviteHostRequest { name: name.into(), lifetime_seconds, ..InviteHostRequest::default() };
        Ok(self.operator().await?.invite_host(request).await?.into_inner().token)
    }
}

/// An address on loopback that nobody listens on now.
fn free_address() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    ensure!(address.port() != 0, "no free port");
    Ok(address)
}
