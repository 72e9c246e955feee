//! A Docker Engine that knows only the calls that docs/AGENT.md lists, and
//! containers that are TLS servers in this process.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use reseal_agent::pem;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::broadcast;

/// What may happen to a container between its check and its reload.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Meanwhile {
    Nothing,
    Stopped,
    /// Made anew under another name, with the same mount.
    Recreated,
}

/// A container of the engine: certificate in `mount`, served on `port`.
pub(crate) struct Container {
    name: String,
    mount: PathBuf,
    labels: Vec<(String, String)>,
    pub(crate) running: bool,
    /// Reads its files again when it is signalled.
    pub(crate) obeys: bool,
    /// Likewise, when a command with `reload` in it is run.
    pub(crate) obeys_exec: bool,
    /// Likewise, when it is restarted.
    pub(crate) obeys_restart: bool,
    /// Exit status of its configuration check.
    pub(crate) check: i64,
    /// What somebody does to it while its check runs.
    pub(crate) meanwhile: Meanwhile,
    serving: Arc<Mutex<Option<Arc<rustls::ServerConfig>>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Container {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Container {
    /// What is on disk is what it serves from now on.
    fn load(&self) {
        let read = |file: &str| std::fs::read(self.mount.join(file)).unwrap();
        let chain = pem::read_certificates(&read("site.crt")).unwrap();
        let key = pem::read_key(&read("site.key")).unwrap();
        let config = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(chain, PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.to_vec())))
            .unwrap();
        *self.serving.lock().unwrap() = Some(Arc::new(config));
    }
}

type Containers = Arc<Mutex<BTreeMap<String, Container>>>;

/// The engine.
pub(crate) struct Engine {
    socket: PathBuf,
    pub(crate) containers: Containers,
    events: broadcast::Sender<String>,
    calls: Arc<Mutex<Vec<String>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Engine {
    pub(crate) async fn start(directory: &Path) -> Self {
        let socket = directory.join("docker.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let containers = Containers::default();
        let events = broadcast::Sender::new(64);
        let calls = Arc::new(Mutex::new(Vec::new()));
        // The agent looks whether PID 1 catches the signal: ours is this process.
        let hangup = tokio::signal::unix::SignalKind::hangup();
        let caught = tokio::signal::unix::signal(hangup).unwrap();
        let task = tokio::spawn({
            let (containers, events, calls) = (containers.clone(), events.clone(), calls.clone());
            async move {
                let _caught = caught;
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    let one = serve(stream, containers.clone(), events.subscribe(), calls.clone());
                    tokio::spawn(one);
                }
            }
        });
        Self { socket, containers, events, calls, task }
    }

    pub(crate) fn address(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// Creates a container that does not run; says its installation's id.
    pub(crate) async fn create(&self, name: &str, mount: &Path, extra: &[(&str, &str)]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let serving: Arc<Mutex<Option<Arc<rustls::ServerConfig>>>> = Arc::default();
        let current = serving.clone();
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let config = current.lock().unwrap().clone();
                if let Some(config) = config {
                    let acceptor = tokio_rustls::TlsAcceptor::from(config);
                    tokio::spawn(async move { acceptor.accept(stream).await.map(drop) });
                }
            }
        });
        let mut labels = vec![
            ("reseal.enable".to_owned(), "true".to_owned()),
            ("reseal.cert.site.names".to_owned(), format!("{name}.example.test")),
            ("reseal.cert.site.path".to_owned(), "/tls/site.crt".to_owned()),
            ("reseal.cert.site.reload".to_owned(), "signal:HUP".to_owned()),
            ("reseal.cert.site.check".to_owned(), "exec:program -t".to_owned()),
            ("reseal.cert.site.verify".to_owned(), port.to_string()),
        ];
        labels.extend(extra.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
        let container = Container {
            name: name.to_owned(),
            mount: mount.to_owned(),
            labels,
            running: false,
            obeys: true,
            obeys_exec: false,
            obeys_restart: true,
            check: 0,
            meanwhile: Meanwhile::Nothing,
            serving,
            task,
        };
        self.containers.lock().unwrap().insert(name.to_owned(), container);
        self.event("create");
        format!("{}/site.crt", mount.display())
    }

    pub(crate) fn start_container(&self, name: &str) {
        let mut containers = self.containers.lock().unwrap();
        let container = containers.get_mut(name).unwrap();
        container.load();
        container.running = true;
        drop(containers);
        self.event("start");
    }

    pub(crate) fn change(&self, name: &str, change: impl FnOnce(&mut Container)) {
        change(self.containers.lock().unwrap().get_mut(name).unwrap());
    }

    /// Every call that was made and is not on the documented list.
    pub(crate) fn forbidden_calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().iter().filter(|call| call.starts_with("FORBIDDEN")).cloned().collect()
    }

    pub(crate) fn calls(&self, contains: &str) -> usize {
        self.calls.lock().unwrap().iter().filter(|call| call.contains(contains)).count()
    }

    fn event(&self, action: &str) {
        let _ = self.events.send(json!({"Type": "container", "Action": action}).to_string());
    }
}

async fn serve(
    mut stream: UnixStream,
    containers: Containers,
    mut events: broadcast::Receiver<String>,
    calls: Arc<Mutex<Vec<String>>>,
) {
    let Some((method, path, sent)) = request(&mut stream).await else { return };
    let path = path.split('?').next().unwrap_or_default();
    let path = match path.strip_prefix("/v1.") {
        Some(rest) => rest.split_once('/').map_or("", |(_, rest)| rest),
        None => path.trim_start_matches('/'),
    };
    calls.lock().unwrap().push(format!("{method} {path}"));
    let parts: Vec<&str> = path.split('/').collect();
    let (status, body) = match (method.as_str(), parts.as_slice()) {
        ("GET", ["version"]) => (200, json!({"ApiVersion": "1.41"})),
        ("GET", ["containers", "json"]) => {
            (200, containers.lock().unwrap().values().map(summary).collect::<Value>())
        }
        ("GET", ["containers", name, "json"]) => match containers.lock().unwrap().get(*name) {
            Some(container) => (200, inspected(container)),
            None => (404, json!({"message": "no such container"})),
        },
        ("GET", ["events"]) => {
            let head =
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
            let _ = stream.write_all(head.as_bytes()).await;
            while let Ok(event) = events.recv().await {
                let chunk = format!("{:x}\r\n{event}\n\r\n", event.len() + 1);
                if stream.write_all(chunk.as_bytes()).await.is_err() {
                    return;
                }
            }
            return;
        }
        ("POST", ["containers", name, "kill"]) => {
            let containers = containers.lock().unwrap();
            if containers[*name].obeys {
                containers[*name].load();
            }
            (204, Value::Null)
        }
        ("POST", ["containers", name, "exec"]) => match containers.lock().unwrap().get(*name) {
            Some(container) if container.running && sent.contains("reload") => {
                (201, json!({"Id": format!("{name}+reload")}))
            }
            Some(container) if container.running => (201, json!({"Id": name})),
            _ => (409, json!({"message": "container is not running"})),
        },
        ("POST", ["containers", name, "restart"]) => {
            let containers = containers.lock().unwrap();
            if containers[*name].obeys_restart {
                containers[*name].load();
            }
            (204, Value::Null)
        }
        ("POST", ["exec", name, "start"]) => {
            match name.strip_suffix("+reload") {
                Some(name) => {
                    let containers = containers.lock().unwrap();
                    if containers[name].obeys_exec {
                        containers[name].load();
                    }
                }
                None => happen(&containers, name),
            }
            let head = "HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n";
            let _ = stream.write_all(head.as_bytes()).await;
            let text = b"what the check says";
            let mut frame = vec![2, 0, 0, 0, 0, 0, 0, text.len() as u8];
            frame.extend_from_slice(text);
            let _ = stream.write_all(&frame).await;
            return;
        }
        ("GET", ["exec", name, "json"]) if name.ends_with("+reload") => (200, json!({"ExitCode": 0})),
        ("GET", ["exec", name, "json"]) => {
            (200, json!({"ExitCode": containers.lock().unwrap().get(*name).map_or(137, |c| c.check)}))
        }
        _ => {
            calls.lock().unwrap().push(format!("FORBIDDEN {method} {path}"));
            (403, json!({"message": "the proxy does not allow this"}))
        }
    };
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let head = format!(
        "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    let _ = stream.write_all(head.as_bytes()).await;
    let _ = stream.write_all(body.as_bytes()).await;
}

fn happen(containers: &Containers, name: &str) {
    let mut containers = containers.lock().unwrap();
    let Some(container) = containers.get_mut(name) else { return };
    match std::mem::replace(&mut container.meanwhile, Meanwhile::Nothing) {
        Meanwhile::Nothing => {}
        Meanwhile::Stopped => container.running = false,
        Meanwhile::Recreated => {
            let mut container = containers.remove(name).unwrap();
            container.name = format!("{name}-2");
            container.load();
            containers.insert(container.name.clone(), container);
        }
    }
}

/// Method, path and body.
async fn request(stream: &mut UnixStream) -> Option<(String, String, String)> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|end| end == b"\r\n\r\n") {
            break end + 4;
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let length = head
        .lines()
        .find_map(|line| {
            line.to_ascii_lowercase().strip_prefix("content-length:").map(|n| n.trim().to_owned())
        })
        .and_then(|length| length.parse::<usize>().ok())
        .unwrap_or(0);
    while bytes.len() < end + length {
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
    let mut words = head.split(' ');
    let body = String::from_utf8_lossy(&bytes[end..]).into_owned();
    Some((words.next()?.to_owned(), words.next()?.to_owned(), body))
}

fn labels(container: &Container) -> Value {
    container
        .labels
        .iter()
        .map(|(key, value)| (key.clone(), json!(value)))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

fn summary(container: &Container) -> Value {
    json!({"Id": container.name, "Names": [format!("/{}", container.name)], "Labels": labels(container)})
}

fn inspected(container: &Container) -> Value {
    let pid = if container.running { std::process::id() } else { 0 };
    json!({
        "Id": container.name, "Name": format!("/{}", container.name), "Path": "program", "Args": [],
        "State": {"Running": container.running, "Paused": false, "Restarting": false, "Pid": pid},
        "Config": {"Image": "services", "Labels": labels(container)},
        "HostConfig": {"NetworkMode": "host"},
        "Mounts": [{"Type": "bind", "Source": container.mount, "Destination": "/tls", "RW": false}],
        "NetworkSettings": {"Ports": {}, "Networks": {}}
    })
}
