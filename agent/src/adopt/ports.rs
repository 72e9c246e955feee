//! Where a certificate is served at the moment of its adoption.
//!
//! The ports on which a container's own network listens, and those it
//! publishes, are each asked once for the certificate's name; one that shows
//! this very certificate counts. Bounded in number and time. Not asked in the
//! host's own network, where every program of the host would be.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use futures_util::StreamExt as _;
use reseal_proto::facts::sha256;

use crate::discover::infer::found::verify_label;
use crate::discover::sockets::{self, Socket};
use crate::discover::{Container, Endpoint, Starttls};
use crate::verify::probe;

/// Ports of one container that are asked.
const MOST_PORTS: usize = 64;
const CONCURRENT: usize = 8;
/// For one port.
const LIMIT: Duration = Duration::from_secs(3);
/// For all of them.
const PATIENCE: Duration = Duration::from_secs(8);
/// Of a list of sockets that is read, bytes.
const MOST_BYTES: u64 = 256 * 1024;

/// By container: ports, as the label `verify` has them, that serve the certificate with
/// this fingerprint. `sni` is the name to ask for; an address means no SNI.
pub(super) async fn serving(
    containers: Vec<Container>,
    sni: &str,
    fingerprint: &[u8],
) -> BTreeMap<String, BTreeSet<String>> {
    let listed = tokio::task::spawn_blocking(move || {
        let dialled = |container: &Container| (container.name.clone(), candidates(container));
        containers.iter().map(dialled).collect::<Vec<_>>()
    });
    let listed = listed.await.expect("reading /proc does not panic");
    let all: Vec<(String, u16, SocketAddr)> = listed
        .into_iter()
        .flat_map(|(name, ports)| ports.into_iter().map(move |(port, address)| (name.clone(), port, address)))
        .collect();
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut looks = futures_util::stream::iter(all)
        .map(|(name, port, address)| async move {
            let endpoint =
                Endpoint { address: address.to_string(), sni: sni.to_owned(), ..Endpoint::default() };
            (name, port, shown(&endpoint).await)
        })
        .buffer_unordered(CONCURRENT);
    let collect = async {
        while let Some((name, port, shown)) = looks.next().await {
            let Some((served, starttls)) = shown else { continue };
            if served == fingerprint {
                found.entry(name).or_default().insert(verify_label(port, starttls, sni));
            }
        }
    };
    // What does not answer in time is not declared.
    let _ = tokio::time::timeout(PATIENCE, collect).await;
    found
}

/// SHA-256 of the certificate that is shown there, and what was spoken before.
async fn shown(endpoint: &Endpoint) -> Option<(Vec<u8>, Starttls)> {
    let seen = probe::look_once(endpoint, LIMIT).await.ok().filter(|seen| seen.proved)?;
    Some((sha256(&seen.chain[0]).to_vec(), seen.starttls))
}

/// Container port → an address to dial it at.
fn candidates(container: &Container) -> BTreeMap<u16, SocketAddr> {
    let mut ports = BTreeMap::new();
    if !container.running {
        return ports;
    }
    for (port, dialled) in &container.published {
        ports.extend(dialled.first().map(|address| (*port, *address)));
    }
    if let Some(own) = container.addresses.first().filter(|own| !own.is_loopback()) {
        for port in listening(container.pid) {
            ports.insert(port, SocketAddr::new(*own, port));
        }
    }
    while ports.len() > MOST_PORTS {
        ports.pop_last();
    }
    ports
}

/// TCP ports on which the network of a process listens, but for loopback.
fn listening(pid: i32) -> BTreeSet<u16> {
    if pid <= 0 || is_own_network(pid) {
        return BTreeSet::new();
    }
    let sockets = sockets::listening(pid, MOST_BYTES).unwrap_or_default();
    sockets.into_iter().filter(is_reachable).map(|socket| socket.port).collect()
}

fn is_own_network(pid: i32) -> bool {
    match (sockets::namespace(&pid.to_string(), "net"), sockets::namespace("self", "net")) {
        (Some(theirs), Some(ours)) => theirs == ours,
        // What cannot be seen is left alone.
        (_, _) => true,
    }
}

/// Not bound to loopback alone.
fn is_reachable(socket: &Socket) -> bool {
    ![IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)].contains(&socket.address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_listens() {
        let text = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n\
                    0: 00000000:01BB 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0\n\
                    1: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0\n\
                    2: 020011AC:0050 0A000001:9C40 01 00000000:00000000 00:00000000 00000000     0\n\
                    3: 020011AC:20FB 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0\n";
        let ports = text.lines().filter_map(sockets::listener).filter(is_reachable).map(|socket| socket.port);
        assert_eq!(ports.collect::<BTreeSet<u16>>(), BTreeSet::from([443, 8443]));
    }

    #[test]
    fn the_hosts_own_network_is_left_alone() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(is_own_network(own));
        assert_eq!(listening(own), BTreeSet::new());
        assert_eq!(listening(0), BTreeSet::new());
    }
}
