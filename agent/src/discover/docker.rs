//! The Docker Engine: the few calls the agent makes, and nothing else.
//!
//! `GET /version`, `/containers/json`, `/containers/{id}/json`, `/events`,
//! `/exec/{id}/json`; `POST /containers/{id}/kill`, `/containers/{id}/restart`,
//! `/containers/{id}/exec`, `/exec/{id}/start`. A socket proxy may refuse the
//! rest (docs/AGENT.md lists them). It never starts, stops, creates or removes
//! a container. Commands and signals come from labels or from
//! [`super::programs`] only.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Mutex;
use std::time::Duration;

use bollard::Docker;
use bollard::container::LogOutput;
use bollard::exec::{CreateExecOptions, StartExecResults};
use bollard::models::{ContainerInspectResponse, ContainerSummaryStateEnum, EventMessage, PortBinding};
use bollard::query_parameters::{
    EventsOptionsBuilder, InspectContainerOptions, KillContainerOptionsBuilder, ListContainersOptionsBuilder,
    RestartContainerOptions,
};
use futures_util::{Stream, StreamExt};
use reseal_proto::facts::printable;

use super::mounts::Mount;
use super::output::Output;
use super::{Command, Container, Layers, Signal, labels, processes};

const LABELS: &str = "reseal.";

/// What a command inside a container may take before it is given up.
const EXEC_TIMEOUT: Duration = Duration::from_secs(30);
/// What changes the picture. `exec_*`, `health_status` and the like do not.
const EVENTS: [&str; 9] =
    ["create", "start", "die", "destroy", "rename", "pause", "unpause", "restart", "update"];

/// A call to the engine failed.
#[derive(Debug, thiserror::Error)]
pub enum DockerError {
    /// Not there, refused, or not what was expected.
    #[error("cannot {operation} {object}")]
    Call {
        /// "inspect container" ...
        operation: &'static str,
        /// Which.
        object: String,
        /// What the engine said.
        #[source]
        source: Box<bollard::errors::Error>,
    },
    /// A command did not end.
    #[error("{command:?} in container {container} did not end within 30 seconds")]
    Timeout {
        /// As declared.
        command: String,
        /// Its name.
        container: String,
    },
}

impl DockerError {
    /// Is the object unknown to the engine?
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Call { source, .. } if matches!(
            **source,
            bollard::errors::Error::DockerResponseServerError { status_code: 404, .. }
        ))
    }
}

/// How a command ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// Its exit status.
    pub status: i64,
    /// The end of what it wrote, printable.
    pub output: String,
}

/// A connection to the engine; made when it is first needed, and again after
/// the socket went away.
#[derive(Debug)]
pub struct Engine {
    address: String,
    client: Mutex<Option<Docker>>,
}

impl Engine {
    /// Does not connect yet.
    pub fn new(address: &str) -> Self {
        Self { address: address.to_owned(), client: Mutex::new(None) }
    }

    async fn client(&self) -> Result<Docker, DockerError> {
        if let Some(client) = self.client.lock().expect("no panic while held").clone() {
            return Ok(client);
        }
        let failed = call("connect to the Docker Engine at", &self.address);
        let client = Docker::connect_with_host(&self.address).map_err(&failed)?;
        // Older engines refuse paths of a newer API.
        let client = client.negotiate_version().await.map_err(&failed)?;
        *self.client.lock().expect("no panic while held") = Some(client.clone());
        Ok(client)
    }

    /// The engine answers; its API version.
    pub async fn version(&self) -> Result<String, DockerError> {
        let client = self.client().await?;
        Ok(client.client_version().to_string())
    }

    /// Every container, whatever its state: what has no label may be declared elsewhere.
    pub async fn containers(&self) -> Result<Vec<Container>, DockerError> {
        self.containers_unless(|_, _| None).await
    }

    /// Like [`Engine::containers`]; `known` may know one without labels already, by its id and
    /// whether it runs: then the engine is not asked about it again.
    pub async fn containers_unless(
        &self,
        known: impl Fn(&str, bool) -> Option<Container>,
    ) -> Result<Vec<Container>, DockerError> {
        let client = self.client().await?;
        let options = ListContainersOptionsBuilder::new().all(true).build();
        let listed =
            client.list_containers(Some(options)).await.map_err(call("list containers of", &self.address))?;
        let mut containers = Vec::new();
        for summary in listed {
            let labelled = summary.labels.iter().flatten().any(|(key, _)| key.starts_with(LABELS));
            let id = summary.id.unwrap_or_default();
            let running = summary.state == Some(ContainerSummaryStateEnum::RUNNING);
            if let Some(container) = known(&id, running).filter(|_| !labelled) {
                containers.push(container);
                continue;
            }
            match self.container(&id).await {
                // Gone between the two calls: its destroy event comes too.
                Ok(container) => containers.extend(container),
                // One that cannot be inspected and declares nothing does not hold up the others.
                Err(error) if !labelled && matches!(error, DockerError::Call { .. }) => {
                    tracing::warn!(container = %printable(&id), error = %crate::chain_of(&error), "not looked at");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(containers)
    }

    /// One container by name or id; `None` when there is none.
    pub async fn container(&self, name: &str) -> Result<Option<Container>, DockerError> {
        let client = self.client().await?;
        let inspected = client
            .inspect_container(name, None::<InspectContainerOptions>)
            .await
            .map_err(call("inspect container", name));
        let inspected = match inspected {
            Ok(inspected) => inspected,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error),
        };
        let mode = network_mode(&inspected);
        let mut container = read(&inspected);
        if let Some(other) = mode.strip_prefix("container:") {
            // It lives in another container's network: that one has the addresses.
            if let Ok(other) = client.inspect_container(other, None::<InspectContainerOptions>).await {
                let other = read(&other);
                container.addresses = other.addresses;
                container.published = other.published;
            }
        }
        if container.pid > 0 {
            container.process = processes::words(container.pid);
            container.behind = processes::behind(container.pid, &container.process);
        }
        Ok(Some(container))
    }

    /// What changes the picture, until the engine closes the stream.
    pub async fn events(
        &self,
    ) -> Result<impl Stream<Item = Result<EventMessage, bollard::errors::Error>> + use<>, DockerError> {
        let client = self.client().await?;
        let filters = HashMap::from([("type", vec!["container"]), ("event", EVENTS.to_vec())]);
        let options = EventsOptionsBuilder::new().filters(&filters).build();
        Ok(client.events(Some(options)))
    }

    /// Sends a signal to PID 1.
    pub async fn signal(&self, container: &str, signal: Signal) -> Result<(), DockerError> {
        let options = KillContainerOptionsBuilder::new().signal(signal.name()).build();
        self.client()
            .await?
            .kill_container(container, Some(options))
            .await
            .map_err(call("send a signal to container", container))
    }

    /// Restarts it; the engine waits the container's own stop timeout.
    pub async fn restart(&self, container: &str) -> Result<(), DockerError> {
        self.client()
            .await?
            .restart_container(container, None::<RestartContainerOptions>)
            .await
            .map_err(call("restart container", container))
    }

    /// Runs a command inside and waits for its end.
    pub async fn exec(&self, container: &str, command: &Command) -> Result<Ended, DockerError> {
        tokio::time::timeout(EXEC_TIMEOUT, self.exec_unbounded(container, command)).await.map_err(|_| {
            DockerError::Timeout { command: command.to_string(), container: container.to_owned() }
        })?
    }

    async fn exec_unbounded(&self, container: &str, command: &Command) -> Result<Ended, DockerError> {
        let client = self.client().await?;
        let failed = call("run a command in container", container);
        let options = CreateExecOptions {
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            cmd: Some(command.0.clone()),
            ..CreateExecOptions::default()
        };
        let exec = client.create_exec(container, options).await.map_err(&failed)?;
        let started = client.start_exec(&exec.id, None).await.map_err(&failed)?;
        let mut output = Output::default();
        if let StartExecResults::Attached { output: mut stream, .. } = started {
            while let Some(chunk) = stream.next().await {
                let (LogOutput::StdErr { message }
                | LogOutput::StdOut { message }
                | LogOutput::StdIn { message }
                | LogOutput::Console { message }) = chunk.map_err(&failed)?;
                output.take(&message);
            }
        }
        let inspected = client.inspect_exec(&exec.id).await.map_err(&failed)?;
        Ok(Ended { status: inspected.exit_code.unwrap_or(-1), output: output.line() })
    }
}

fn call<'a>(operation: &'static str, object: &'a str) -> impl Fn(bollard::errors::Error) -> DockerError + 'a {
    move |source| DockerError::Call { operation, object: object.to_owned(), source: Box::new(source) }
}

fn network_mode(inspected: &ContainerInspectResponse) -> String {
    inspected.host_config.as_ref().and_then(|config| config.network_mode.clone()).unwrap_or_default()
}

fn read(inspected: &ContainerInspectResponse) -> Container {
    let state = inspected.state.as_ref();
    let flag =
        |read: fn(&bollard::models::ContainerState) -> Option<bool>| state.and_then(read).unwrap_or(false);
    let running = flag(|s| s.running) && !flag(|s| s.paused) && !flag(|s| s.restarting);
    let pid = state.and_then(|state| state.pid).unwrap_or(0);
    let config = inspected.config.as_ref();
    let labels = config.and_then(|config| config.labels.clone());
    let command = inspected.path.iter().chain(inspected.args.iter().flatten()).cloned().collect();
    let mounts = inspected.mounts.iter().flatten().map(|mount| Mount {
        source: mount.source.clone().unwrap_or_default(),
        destination: mount.destination.clone().unwrap_or_default(),
        kind: mount.typ.clone().unwrap_or_default(),
    });
    let host_network = network_mode(inspected) == "host";
    Container {
        name: printable(inspected.name.as_deref().unwrap_or_default().trim_start_matches('/')),
        id: inspected.id.clone().unwrap_or_default(),
        image: printable(config.and_then(|config| config.image.as_deref()).unwrap_or_default()),
        running,
        pid: if running { i32::try_from(pid).unwrap_or(0) } else { 0 },
        process: Vec::new(),
        user: printable(config.and_then(|config| config.user.as_deref()).unwrap_or_default()),
        behind: Vec::new(),
        command,
        mounts: mounts.collect(),
        addresses: if host_network { vec![IpAddr::V4(Ipv4Addr::LOCALHOST)] } else { addresses(inspected) },
        published: published(inspected),
        declared: labels::parse(labels.iter().flatten().map(|(key, value)| (key.as_str(), value.as_str()))),
        labelled: labels.iter().flatten().any(|(key, _)| key.starts_with(LABELS)),
        image_id: inspected.image.as_deref().unwrap_or_default().trim_start_matches("sha256:").to_owned(),
        layers: layers(inspected),
        host: None,
    }
}

/// Only overlay2 says where its layers are; `LowerDir` has the uppermost first.
fn layers(inspected: &ContainerInspectResponse) -> Layers {
    let Some(driver) = &inspected.graph_driver else { return Layers::default() };
    let directory = |key: &str| driver.data.get(key).cloned().unwrap_or_default();
    Layers {
        driver: printable(&driver.name),
        lower: directory("LowerDir")
            .split(':')
            // The container's own first layer has nothing but mount points.
            .filter(|path| path.starts_with('/') && !path.ends_with("-init/diff"))
            .map(str::to_owned)
            .collect(),
        upper: Some(directory("UpperDir")).filter(|path| path.starts_with('/')).unwrap_or_default(),
    }
}

/// One address per network, IPv4 where there is one; sorted, so that the
/// inventory does not change with the engine's map order.
fn addresses(inspected: &ContainerInspectResponse) -> Vec<IpAddr> {
    let networks = inspected.network_settings.as_ref().and_then(|settings| settings.networks.as_ref());
    let mut addresses: Vec<IpAddr> = networks
        .into_iter()
        .flat_map(HashMap::values)
        .filter_map(|endpoint| {
            let parse = |text: &Option<String>| text.as_deref().and_then(|text| text.parse().ok());
            parse(&endpoint.ip_address).or_else(|| parse(&endpoint.global_ipv6_address))
        })
        .collect();
    addresses.sort();
    addresses.dedup();
    addresses
}

fn published(inspected: &ContainerInspectResponse) -> BTreeMap<u16, Vec<SocketAddr>> {
    let ports = inspected.network_settings.as_ref().and_then(|settings| settings.ports.as_ref());
    let mut published: BTreeMap<u16, Vec<SocketAddr>> = BTreeMap::new();
    for (port, bindings) in ports.into_iter().flatten() {
        let Some(Ok(port)) = port.strip_suffix("/tcp").map(str::parse) else {
            continue;
        };
        let dialled: Vec<SocketAddr> = bindings.iter().flatten().filter_map(dial).collect();
        let addresses = published.entry(port).or_default();
        addresses.extend(dialled);
        addresses.sort();
        addresses.dedup();
    }
    published
}

/// "Any address" is dialled by loopback. The IPv6 twin that the engine lists
/// for it is not: the host may have IPv6 switched off.
fn dial(binding: &PortBinding) -> Option<SocketAddr> {
    let port = binding.host_port.as_deref()?.parse().ok()?;
    let address = match binding.host_ip.as_deref() {
        None | Some("") => IpAddr::V4(Ipv4Addr::LOCALHOST),
        Some(text) => match text.parse().ok()? {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(Ipv6Addr::UNSPECIFIED) => return None,
            address => address,
        },
    };
    Some(SocketAddr::new(address, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_an_inspected_container() {
        let inspected: ContainerInspectResponse = serde_json::from_value(serde_json::json!({
            "Id": "abc", "Name": "/web", "Path": "nginx", "Args": ["-g", "daemon off;"],
            "State": {"Running": true, "Paused": false, "Restarting": false, "Pid": 42},
            "Config": {"Image": "nginx:1", "Labels": {"reseal.enable": "true", "x": "y"}},
            "HostConfig": {"NetworkMode": "bridge"},
            "Mounts": [{"Type": "bind", "Source": "/srv/tls", "Destination": "/tls", "RW": false}],
            "NetworkSettings": {
                "Ports": {"443/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8443"}, {"HostIp": "::", "HostPort": "8443"}], "53/udp": null},
                "Networks": {"b": {"IPAddress": "172.18.0.2"}, "a": {"IPAddress": "172.17.0.2"}}
            }
        }))
        .unwrap();
        let container = read(&inspected);
        assert_eq!(container.name, "web");
        assert!(container.running && container.declared.enabled);
        assert_eq!(container.pid, 42);
        assert_eq!(container.command, ["nginx", "-g", "daemon off;"]);
        assert_eq!(container.mounts[0].source, "/srv/tls");
        assert_eq!(container.addresses.len(), 2);
        assert_eq!(container.published[&443], ["127.0.0.1:8443".parse().unwrap()]);
        assert_eq!(container.published.len(), 1);
    }

    #[test]
    fn a_container_that_waits_for_its_restart_does_not_run() {
        let inspected: ContainerInspectResponse = serde_json::from_value(serde_json::json!({
            "Name": "/web", "State": {"Running": true, "Restarting": true, "Pid": 7},
            "HostConfig": {"NetworkMode": "host"}
        }))
        .unwrap();
        let container = read(&inspected);
        assert!(!container.running);
        assert_eq!(container.pid, 0);
        assert_eq!(container.addresses, [IpAddr::V4(Ipv4Addr::LOCALHOST)]);
    }
}
