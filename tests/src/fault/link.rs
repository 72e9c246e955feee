//! A link that loses: everything, every third packet, or one answer.
//!
//! Packets are lost in the host's own network namespace, so that neither side
//! is told: no FIN, no RST, no carrier lost. An answer is lost by a [`Relay`]
//! that the host's traffic to the coordinator is led through; it sees only what
//! a network sees, encrypted bytes.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::fleet::Host;
use crate::process::run;

/// A host whose link loses packets, both ways, until the value is dropped.
#[derive(Debug)]
pub struct Lossy<'a> {
    host: &'a Host,
}

const EVERY_THIRD: &[&str] = &["-m", "statistic", "--mode", "nth", "--every", "3", "--packet", "0"];

impl<'a> Lossy<'a> {
    /// Loses every third packet.
    pub fn every_third(host: &'a Host) -> Result<Self> {
        drop_packets(host, "-I", EVERY_THIRD)?;
        Ok(Self { host })
    }
}

impl Drop for Lossy<'_> {
    fn drop(&mut self) {
        if let Err(error) = drop_packets(self.host, "-D", EVERY_THIRD) {
            eprintln!("could not heal the link of {}: {error:#}", self.host.name);
        }
    }
}

/// Loses every packet of a host and tells nobody, until [`appear`]: the peer has vanished.
pub fn vanish(host: &Host) -> Result<()> {
    drop_packets(host, "-I", &[])
}

/// It is there again.
pub fn appear(host: &Host) -> Result<()> {
    drop_packets(host, "-D", &[])
}

fn drop_packets(host: &Host, verb: &str, matches: &[&str]) -> Result<()> {
    for place in [["INPUT", "-i"], ["OUTPUT", "-o"]] {
        iptables(host, verb, &[&place[..], &["eth0", "-p", "tcp"], matches, &["-j", "DROP"]].concat())?;
    }
    Ok(())
}

/// Leads a host's connections to the coordinator through a [`Relay`], from the next one on,
/// until the value is dropped.
#[derive(Debug)]
pub struct Detour<'a> {
    host: &'a Host,
    rule: Vec<String>,
}

impl<'a> Detour<'a> {
    /// From `coordinator` ("address:port") to the relay.
    pub fn new(host: &'a Host, coordinator: &str, relay: &Relay) -> Result<Self> {
        let (address, port) = coordinator.split_once(':').context("an address and a port")?;
        let to = relay.address.to_string();
        let words = ["OUTPUT", "-p", "tcp", "-d", address, "--dport", port, "-j", "DNAT", "--to", &to];
        let rule: Vec<String> = [&["-t", "nat"], &words[..]].concat().into_iter().map(Into::into).collect();
        let detour = Self { host, rule };
        detour.change("-I")?;
        Ok(detour)
    }

    fn change(&self, verb: &str) -> Result<()> {
        let mut words: Vec<&str> = self.rule.iter().map(String::as_str).collect();
        words.insert(2, verb);
        iptables(self.host, words[0], &words[1..])
    }
}

impl Drop for Detour<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.change("-D") {
            eprintln!("could not end the detour of {}: {error:#}", self.host.name);
        }
    }
}

fn iptables(host: &Host, verb: &str, rule: &[&str]) -> Result<()> {
    let mut iptables = host.command("iptables".as_ref(), &["-w", "10", verb]);
    run(iptables.args(rule)).map(drop).context("cannot change the host's packet filter")
}

/// Passes bytes on, until it is told to lose an answer.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    shared: Arc<Shared>,
    listener: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    to: SocketAddr,
    stop: AtomicBool,
    /// Answers that still pass; the one after them is lost, with its connection.
    passing: AtomicUsize,
    lost: AtomicUsize,
    open: Mutex<Vec<TcpStream>>,
}

/// Nothing is to be lost.
const NEVER: usize = usize::MAX;

impl Relay {
    /// Listens on `address` and passes everything on to `to`.
    pub fn start(address: Ipv4Addr, to: &str) -> Result<Self> {
        let listener = TcpListener::bind((address, 0))?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            to: to.parse()?,
            stop: AtomicBool::new(false),
            passing: AtomicUsize::new(NEVER),
            lost: AtomicUsize::new(0),
            open: Mutex::default(),
        });
        let accepting = shared.clone();
        let listener = std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if accepting.stop.load(Ordering::SeqCst) {
                    return;
                }
                // A coordinator that is away refuses; the client sees the end of its connection.
                let _ = accepting.join(client);
            }
        });
        Ok(Self { address, shared, listener: Some(listener) })
    }

    /// Lets `passing` more pieces of what the coordinator says through, loses the next one and
    /// ends its connection; after that nothing is lost. A piece is what the network delivers at once.
    pub fn lose_after(&self, passing: usize) {
        self.shared.passing.store(passing, Ordering::SeqCst);
    }

    /// Loses nothing any more.
    pub fn pass_all(&self) {
        self.shared.passing.store(NEVER, Ordering::SeqCst);
    }

    /// How many answers were lost.
    pub fn lost(&self) -> usize {
        self.shared.lost.load(Ordering::SeqCst)
    }

    /// Ends every connection.
    pub fn cut(&self) {
        for stream in self.shared.open.lock().expect("no thread panics with it").drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        // Wakes the listener.
        let _ = TcpStream::connect_timeout(&self.address, Duration::from_secs(1));
        self.cut();
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
    }
}

impl Shared {
    fn join(self: &Arc<Self>, client: TcpStream) -> Result<()> {
        let server = TcpStream::connect_timeout(&self.to, Duration::from_secs(5))?;
        self.open
            .lock()
            .expect("no thread panics with it")
            .extend([client.try_clone()?, server.try_clone()?]);
        let (from_client, to_server) = (client.try_clone()?, server.try_clone()?);
        std::thread::spawn(move || pass(from_client, to_server, || true));
        let shared = self.clone();
        std::thread::spawn(move || pass(server, client, || shared.may_pass()));
        Ok(())
    }

    /// Counts a piece of an answer; false for the one that is lost.
    fn may_pass(&self) -> bool {
        let next = |left: usize| match left {
            NEVER => None,
            0 => Some(NEVER),
            more => Some(more - 1),
        };
        match self.passing.fetch_update(Ordering::SeqCst, Ordering::SeqCst, next) {
            Ok(0) => {
                self.lost.fetch_add(1, Ordering::SeqCst);
                false
            }
            Ok(_) | Err(_) => true,
        }
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, may_pass: impl Fn() -> bool) {
    let mut piece = [0; 64 * 1024];
    loop {
        let length = match from.read(&mut piece) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(_) => break,
        };
        if !may_pass() || to.write_all(&piece[..length]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
