//! The real coordinator, started for one benchmark and stopped with it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use reseal_proto::channel::{self, Credentials, Trust};
use reseal_proto::v1::operator_client::OperatorClient;
use reseal_proto::v1::{Policy, Usage as CertificateUsage};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tonic::transport::Channel;

use super::figures::{Usage, usage};

/// A client of the operator service.
pub(crate) type Operator = OperatorClient<Channel>;

/// Where it listens: an address of its own on loopback.
const ADDRESS: &str = "127.0.0.77:17443";

/// The process and its directory.
pub(crate) struct Coordinator {
    process: Child,
    directory: tempfile::TempDir,
}

impl Coordinator {
    /// Makes a fleet and starts its coordinator.
    pub(crate) async fn start(program: Option<PathBuf>) -> anyhow::Result<Self> {
        let program = match program {
            Some(program) => program,
            None => std::env::current_exe()?.with_file_name("reseal"),
        };
        ensure!(
            program.exists(),
            "{} is not built: cargo build --release -p reseal-coordinator",
            program.display()
        );
        let directory = tempfile::tempdir()?;
        let collector = collector().await?;
        let config = directory.path().join("reseal.toml");
        let data = directory.path().join("data");
        std::fs::write(
            &config,
            format!(
                "data_dir = {data:?}\nlisten = \"{ADDRESS}\"\nadvertise = [\"{ADDRESS}\"]\nmetrics_listen = \"127.0.0.77:19464\"\nkek_files = [{kek:?}]\n\
                 [telemetry]\nlog_level = \"warn\"\nsample_ratio = 0.01\notlp_endpoint = \"{collector}\"\n",
                kek = directory.path().join("kek"),
            ),
        )?;
        let made = Command::new(&program)
            .args(["init", "--fleet", "simulated", "--admin", "bench", "--config"])
            .arg(&config)
            .arg("--admin-out")
            .arg(directory.path().join("admin.json"))
            .stdout(Stdio::null())
            .status()?;
        ensure!(made.success(), "reseal init failed");
        let log = std::fs::File::create(directory.path().join("log"))?;
        let process = Command::new(&program)
            .args(["serve", "--config"])
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        let coordinator = Self { process, directory };
        let mut operator = coordinator.operator().await?;
        operator
            .set_policy(Policy {
                name: "simulated".into(),
                names: vec!["**.simulated.test".into()],
                key_types: vec!["ecdsa-p256".into()],
                usages: vec![CertificateUsage::Server.into()],
                lifetime_seconds: 30 * 86_400,
                ..Policy::default()
            })
            .await?;
        Ok(coordinator)
    }

    /// A client with the admin's credentials; waits until the coordinator answers.
    pub(crate) async fn operator(&self) -> anyhow::Result<Operator> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            match self.try_operator().await {
                Ok(operator) => return Ok(operator),
                Err(error) if Instant::now() > deadline => {
                    let log = std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
                    return Err(error.context(log));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    async fn try_operator(&self) -> anyhow::Result<Operator> {
        let text = std::fs::read_to_string(self.directory.path().join("admin.json"))?;
        let file: serde_json::Value = serde_json::from_str(&text)?;
        let part = |name: &str| file[name].as_str().context("admin.json lacks a field").map(str::as_bytes);
        let credentials = Credentials {
            chain: CertificateDer::pem_slice_iter(part("certificate")?).collect::<Result<_, _>>()?,
            key: PrivateKeyDer::from_pem_slice(part("key")?)?,
        };
        let anchor = CertificateDer::from_pem_slice(part("ca")?)?;
        let config = channel::client_config(Trust::Anchor(anchor), Some(credentials))?;
        Ok(OperatorClient::new(channel::connect(ADDRESS, config).await?))
    }

    /// CPU and memory now.
    pub(crate) fn usage(&self) -> anyhow::Result<Usage> {
        usage(self.process.id())
    }

    /// CPU and memory once it is at rest: less than 2 % of a core for a second.
    pub(crate) async fn settled(&self) -> anyhow::Result<Usage> {
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut before = self.usage()?;
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let after = self.usage()?;
            if (after - before).cpu <= Duration::from_millis(20) || Instant::now() > deadline {
                return Ok(after);
            }
            before = after;
        }
    }

    /// Size of the store.
    pub(crate) fn store_bytes(&self) -> u64 {
        fn size(path: &Path) -> u64 {
            let Ok(entries) = std::fs::read_dir(path) else {
                return std::fs::metadata(path).map_or(0, |facts| facts.len());
            };
            entries
                .flatten()
                .filter(|entry| entry.file_name() != "ballast")
                .map(|entry| size(&entry.path()))
                .sum()
        }
        size(&self.directory.path().join("data"))
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A collector that takes spans and forgets them; gives its address.
async fn collector() -> anyhow::Result<String> {
    let listener = tokio::net::TcpListener::bind("127.0.0.77:0").await?;
    let address = listener.local_addr()?;
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(TraceServiceServer::new(Forget))
            .serve_with_incoming(incoming),
    );
    Ok(format!("http://{address}"))
}

struct Forget;

#[tonic::async_trait]
impl TraceService for Forget {
    async fn export(
        &self,
        _: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}
