//! A client that opens new TLS connections to every endpoint, all the time, and counts.
//!
//! Each connection is a full handshake checked against the root and the
//! endpoint's name, and one HTTP request whose status must be the expected
//! one. A connection that fails for whatever reason, a timeout too, is counted
//! as failed, with its reason; none is tried twice.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, anyhow, bail};
use rustls::client::Resumption;
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};

use crate::openssl::sha256;
use crate::services::Endpoint;
use crate::talk::Talk;

/// A service that takes longer than this has failed its client.
const PATIENCE: Duration = Duration::from_secs(5);
/// Reasons kept per endpoint; all failures are counted.
const REASONS: usize = 20;

/// What the client saw at one endpoint.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Connections begun.
    pub attempted: u64,
    /// Connections that did not end in the expected answer.
    pub failed: u64,
    /// The first reasons, with their times.
    pub reasons: Vec<(SystemTime, String)>,
    /// The intermediates served, by SHA-256 fingerprint.
    pub issuers: BTreeMap<String, Met>,
}

/// Connections that were shown the same intermediate.
#[derive(Clone, Copy, Debug)]
pub struct Met {
    /// How many.
    pub connections: u64,
    /// When the last of them was begun.
    pub last: Instant,
}

/// What the client saw, by service.
pub type Tally = BTreeMap<String, Seen>;

/// Connections begun, and failed, over all endpoints.
pub fn totals(tally: &Tally) -> (u64, u64) {
    let sum = |of: fn(&Seen) -> u64| tally.values().map(of).sum();
    (sum(|seen| seen.attempted), sum(|seen| seen.failed))
}

/// The running client; stops on drop.
#[derive(Debug)]
pub struct Client {
    stop: Arc<AtomicBool>,
    tally: Arc<Mutex<Tally>>,
    threads: Vec<JoinHandle<()>>,
}

impl Client {
    /// Starts one thread per endpoint, each opening `per_second` connections a second.
    pub fn start(endpoints: &[Endpoint], root: &Path, per_second: u32) -> Result<Self> {
        let tls = configuration(root)?;
        let stop = Arc::new(AtomicBool::new(false));
        let tally = Arc::new(Mutex::new(Tally::new()));
        let threads = endpoints
            .iter()
            .map(|endpoint| {
                let (endpoint, tls) = (endpoint.clone(), tls.clone());
                let (stop, tally) = (stop.clone(), tally.clone());
                std::thread::spawn(move || {
                    watch(&endpoint, &tls, Duration::from_secs(1) / per_second, &stop, &tally);
                })
            })
            .collect();
        Ok(Self { stop, tally, threads })
    }

    /// What was seen so far.
    pub fn tally(&self) -> Tally {
        self.tally.lock().expect("no thread panics with it").clone()
    }

    /// Ends all connections and returns what was seen.
    pub fn stop(mut self) -> Tally {
        self.end();
        self.tally()
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.end();
    }
}

fn watch(
    endpoint: &Endpoint,
    tls: &Arc<ClientConfig>,
    pace: Duration,
    stop: &AtomicBool,
    tally: &Mutex<Tally>,
) {
    let mut next = Instant::now();
    while !stop.load(Ordering::SeqCst) {
        let begun = Instant::now();
        let result = connect(endpoint, tls);
        let mut tally = tally.lock().expect("no thread panics with it");
        let seen = tally.entry(endpoint.service.clone()).or_default();
        seen.attempted += 1;
        match result {
            Ok(issuer) => {
                let met = seen.issuers.entry(issuer).or_insert(Met { connections: 0, last: begun });
                met.connections += 1;
                met.last = begun;
            }
            Err(error) => {
                seen.failed += 1;
                if seen.reasons.len() < REASONS {
                    seen.reasons.push((SystemTime::now(), format!("{error:#}")));
                }
            }
        }
        drop(tally);
        // The pace of new connections; a slow one is not made up for.
        next = (next + pace).max(Instant::now());
        std::thread::sleep(next - Instant::now());
    }
}

/// One connection, whole; the fingerprint of the intermediate it was shown.
pub fn once(endpoint: &Endpoint, root: &Path) -> Result<String> {
    connect(endpoint, &configuration(root)?)
}

fn configuration(root: &Path) -> Result<Arc<ClientConfig>> {
    reseal_proto::channel::install_crypto();
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(root)
        .with_context(|| format!("cannot read the root certificate {}", root.display()))?
    {
        roots.add(certificate?)?;
    }
    let mut tls = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    tls.resumption = Resumption::disabled();
    Ok(Arc::new(tls))
}

fn connect(endpoint: &Endpoint, tls: &Arc<ClientConfig>) -> Result<String> {
    let name = ServerName::try_from(endpoint.sni.clone())?;
    let tcp = TcpStream::connect_timeout(&endpoint.address, PATIENCE).context("no connection")?;
    tcp.set_read_timeout(Some(PATIENCE))?;
    tcp.set_write_timeout(Some(PATIENCE))?;
    tcp.set_nodelay(true)?;
    let mut tcp = tcp;
    endpoint.talk.before_tls(&mut tcp).context("no way to the handshake")?;
    let connection = ClientConnection::new(tls.clone(), name)?;
    let mut stream = rustls::StreamOwned::new(connection, tcp);
    if endpoint.talk != Talk::Http {
        endpoint.talk.inside_tls(&mut stream)?;
        return issuer(&stream.conn);
    }
    let request = format!("GET / HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", endpoint.sni);
    stream.write_all(request.as_bytes()).context("no handshake")?;
    let mut answer = Vec::new();
    match Read::by_ref(&mut stream).take(65_536).read_to_end(&mut answer) {
        Ok(_) => {}
        // Some servers close without a farewell; the status line tells whether they answered.
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => {}
        Err(error) => return Err(error).context("no answer"),
    }
    let status = status(&answer)?;
    if status != endpoint.status {
        bail!("HTTP status {status} instead of {}", endpoint.status);
    }
    issuer(&stream.conn)
}

fn issuer(connection: &ClientConnection) -> Result<String> {
    let chain = connection.peer_certificates().unwrap_or_default();
    chain.get(1).map(|issuer| sha256(issuer)).context("the chain has no intermediate")
}

fn status(answer: &[u8]) -> Result<u16> {
    let text = String::from_utf8_lossy(&answer[..answer.len().min(200)]);
    let line = text.lines().next().unwrap_or_default();
    line.strip_prefix("HTTP/1.")
        .and_then(|rest| rest.split(' ').nth(1)?.parse().ok())
        .ok_or_else(|| anyhow!("{line:?} is no HTTP answer"))
}
