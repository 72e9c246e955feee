//! What listening ports serve: one handshake each, and again only after a change.
//!
//! A service must not be disturbed: each port gets one connection when its
//! container has started or its files have changed, and one per full scan while
//! it serves something else than its file; a few at a time, none to excluded
//! ports ([`super::settings`]). What does not speak TLS is not asked again until
//! its container starts anew. Called by [`super::watch`] and by the scan.

pub mod listeners;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use futures_util::StreamExt as _;

use super::formats::{Certificate, certificate};
use super::found::User;
use super::settings::Settings;
use super::{Container, Endpoint, Within, pairing, sockets};
use crate::verify::probe;
use listeners::{Listener, listeners};

/// For one look; a service on the same host answers in milliseconds.
const LIMIT: Duration = Duration::from_secs(2);
const CONCURRENT: usize = 4;
const MOST_CHAIN: usize = 16;
/// More ports of one host are not looked at.
const MOST_PORTS: usize = 2_000;

/// An endpoint and what it served.
#[derive(Clone, Debug, PartialEq)]
pub struct Served {
    /// The container's name.
    pub container: String,
    /// Its id.
    pub container_id: String,
    /// The container as a user of what it serves.
    pub user: User,
    /// Where it was dialled, and what was spoken before TLS.
    pub endpoint: Endpoint,
    /// Leaf first.
    pub chain: Vec<Certificate>,
}

/// What is known of a port.
#[derive(Clone, Debug)]
struct Known {
    pid: i32,
    /// Files of the container when it was looked at.
    files: u64,
    /// `None`: no TLS there.
    served: Option<Served>,
}

/// Remembers what each port served.
#[derive(Debug, Default)]
pub struct Endpoints {
    known: BTreeMap<(String, u16), Known>,
}

/// A port that is to be looked at.
struct Due {
    id: String,
    port: u16,
    pid: i32,
    files: u64,
    user: User,
    endpoint: Endpoint,
}

impl Endpoints {
    /// Looks at ports that are new or changed, and at those for which `doubtful` says so.
    /// `files` is a number for each container, by id, that changes with its certificates.
    pub async fn look(
        &mut self,
        containers: &[Container],
        files: &BTreeMap<String, u64>,
        settings: &Settings,
        doubtful: impl Fn(&Served) -> bool,
    ) -> Vec<Served> {
        let all = containers.to_vec();
        let listening = tokio::task::spawn_blocking(move || listeners(&all)).await.unwrap_or_default();
        let mut there = BTreeSet::new();
        let mut due = Vec::new();
        for listener in listening.into_iter().take(MOST_PORTS) {
            let Some(container) = containers.get(listener.container) else { continue };
            let mut declared = container.declared.certificates.iter().flat_map(|one| &one.verify);
            // What is declared is looked at by whoever verifies it.
            if settings.skip_ports.contains(&listener.port) || declared.any(|one| one.port == listener.port) {
                continue;
            }
            let key = (container.id.clone(), listener.port);
            let files = files.get(&container.id).copied().unwrap_or_default();
            let current = self.known.get(&key).is_some_and(|known| {
                known.pid == container.pid
                    && match &known.served {
                        // Not even a changed file makes TLS of what is none.
                        None => true,
                        Some(served) => known.files == files && !doubtful(served),
                    }
            });
            if !current {
                due.push(Due {
                    id: container.id.clone(),
                    port: listener.port,
                    pid: container.pid,
                    files,
                    user: pairing::user(container, ""),
                    endpoint: endpoint(container, &listener),
                });
            }
            there.insert(key);
        }
        self.known.retain(|key, _| there.contains(key));
        let looked: Vec<(Due, Option<Served>)> = futures_util::stream::iter(due)
            .map(|due| async move {
                let served = look_at(&due).await;
                (due, served)
            })
            .buffer_unordered(CONCURRENT)
            .collect()
            .await;
        for (due, served) in looked {
            let known = Known { pid: due.pid, files: due.files, served };
            self.known.insert((due.id, due.port), known);
        }
        self.known.values().filter_map(|known| known.served.clone()).collect()
    }
}

/// How to dial a listener: by its published port, by the container's address, or from within.
fn endpoint(container: &Container, listener: &Listener) -> Endpoint {
    let any = |address: &IpAddr| address.is_unspecified();
    let reachable = |address: &IpAddr| listener.addresses.iter().any(|bound| any(bound) || bound == address);
    let beyond = listener.addresses.iter().any(|bound| !bound.is_loopback());
    let published = container.published.get(&listener.port).and_then(|all| all.first()).filter(|_| beyond);
    let own = container.addresses.iter().find(|address| reachable(address));
    if let Some(address) = published {
        return Endpoint { address: address.to_string(), ..Endpoint::default() };
    }
    if let Some(address) = own {
        let address = SocketAddr::new(*address, listener.port);
        return Endpoint { address: address.to_string(), ..Endpoint::default() };
    }
    let bound = listener.addresses.first().copied().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    Endpoint {
        address: SocketAddr::new(sockets::dialled(bound), listener.port).to_string(),
        within: Some(Within { container: container.name.clone(), pid: container.pid }),
        ..Endpoint::default()
    }
}

async fn look_at(due: &Due) -> Option<Served> {
    // Whoever names nobody gets the certificate that is meant for everybody.
    let seen = match probe::look_once(&due.endpoint, LIMIT).await {
        Ok(seen) => seen,
        Err(error) => {
            let (container, address) = (&due.user.container, &due.endpoint.address);
            tracing::debug!(%container, %address, error = %crate::chain_of(&error), "serves no certificate");
            return None;
        }
    };
    let chain: Vec<Vec<u8>> = seen.chain.iter().take(MOST_CHAIN).map(|one| one.to_vec()).collect();
    let chain = certificate::read_all(&chain);
    (!chain.is_empty()).then(|| Served {
        container: due.user.container.clone(),
        container_id: due.id.clone(),
        user: due.user.clone(),
        endpoint: Endpoint { starttls: seen.starttls, ..due.endpoint.clone() },
        chain,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container() -> Container {
        Container {
            name: "web".into(),
            id: "1".into(),
            pid: 7,
            addresses: vec!["172.17.0.2".parse().unwrap()],
            published: BTreeMap::from([(443, vec!["127.0.0.1:8443".parse().unwrap()])]),
            ..Container::default()
        }
    }

    fn listener(port: u16, address: &str) -> Listener {
        Listener { container: 0, port, addresses: BTreeSet::from([address.parse().unwrap()]) }
    }

    #[test]
    fn a_port_is_dialled_where_others_dial_it() {
        let address = |port, bound| {
            let endpoint = endpoint(&container(), &listener(port, bound));
            (endpoint.address, endpoint.within.is_some())
        };
        assert_eq!(address(443, "0.0.0.0"), ("127.0.0.1:8443".to_owned(), false));
        assert_eq!(address(8443, "::"), ("172.17.0.2:8443".to_owned(), false));
        assert_eq!(address(8443, "172.17.0.2"), ("172.17.0.2:8443".to_owned(), false));
        assert_eq!(address(443, "127.0.0.1"), ("127.0.0.1:443".to_owned(), true));
        assert_eq!(address(9, "::1"), ("[::1]:9".to_owned(), true));
    }
}
