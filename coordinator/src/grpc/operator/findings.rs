//! What is wrong in the fleet: what hosts report, and what only the coordinator can see.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message as _;
use reseal_proto::v1::{Finding, HostFinding, ListFindingsRequest, Selection as Wire};
use tonic::Status;

use super::OperatorService;
use super::certificates::{Rows, WINDOW, send_window};
use crate::domain::listing::{FindingFilter, Window, finding_key};
use crate::domain::selection::Selection;
use crate::domain::shared::{Hash, Search, Sharing};
use crate::grpc::convert::{chain, status};
use crate::store::keys;

/// The finding that no host can make.
const SHARED: &str = "key-shared-across-hosts";
/// Hashes of keys that are held at once while shared ones are looked for: 36 bytes each.
const KEYS: u64 = 250_000;
/// Findings about shared keys at most, but for the first key; and hosts named in each.
const SHOWN: usize = 10_000;
const NAMED_HOSTS: usize = 5;
/// Chunks of inventories read at once.
const PAGE: usize = 64;

/// A chunk of an inventory, read for the keys in it only.
#[derive(Clone, PartialEq, prost::Message)]
struct Chunk {
    /// See [`crate::store::record::Inventory::installations`].
    #[prost(message, repeated, tag = "2")]
    installations: Vec<Place>,
}

/// Of an installation: where it is, and which key lies there.
#[derive(Clone, PartialEq, prost::Message)]
struct Place {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(string, tag = "7")]
    layout: String,
    #[prost(message, optional, tag = "10")]
    certificate: Option<Key>,
}

/// Of a certificate: its key.
#[derive(Clone, PartialEq, prost::Message)]
struct Key {
    #[prost(bytes = "vec", tag = "5")]
    spki_sha256: Vec<u8>,
}

impl Place {
    /// The hash of its key, when the key lies there, too, and not only the certificate.
    fn key(&self) -> Option<&[u8]> {
        let has_key = !matches!(self.layout.as_str(), "" | "certificate");
        self.certificate.as_ref().filter(|_| has_key).map(|key| key.spki_sha256.as_slice())
    }
}

impl OperatorService {
    /// Understands which findings are wanted, and of which hosts.
    pub(super) async fn findings_meant(
        &self,
        request: &ListFindingsRequest,
    ) -> Result<(FindingFilter, BTreeSet<String>), Status> {
        let invalid = |error: &(dyn std::error::Error + 'static)| Status::invalid_argument(chain(error));
        let filter = FindingFilter::new(request).map_err(|error| invalid(&error))?;
        let wire = Wire {
            hosts: request.hosts.clone(),
            host_labels: request.host_labels.clone(),
            all: true,
            ..Wire::default()
        };
        let selection = Selection::new(&wire, None).map_err(|error| invalid(&error))?;
        let hosts: BTreeSet<String> = self.hosts_meant(&selection).await?.into_iter().collect();
        if let Some(missing) = request.hosts.iter().find(|name| !name.contains('*') && !hosts.contains(*name))
        {
            // A name that was mistyped must not read as "nothing is wrong there".
            self.host(missing).await?;
        }
        Ok((filter, hosts))
    }

    /// Sends the findings that are meant, sorted.
    pub(super) async fn send_findings(
        &self,
        request: &ListFindingsRequest,
        (filter, hosts): (&FindingFilter, &BTreeSet<String>),
        rows: &Rows<HostFinding>,
    ) -> Result<(), Status> {
        let shared = if filter.may_admit(SHARED) { self.shared_keys(hosts).await? } else { Vec::new() };
        let mut window = Window::new(WINDOW, request.reverse);
        loop {
            let mut offer = |number: usize, row: HostFinding| {
                if filter.admits(&row) {
                    let number = u32::try_from(number).unwrap_or(u32::MAX);
                    window.offer(finding_key(request.sort(), &row, number), row.encoded_len(), row);
                }
            };
            for host in hosts {
                if self.view.read().hosts.get(host.as_str()).is_none_or(|view| view.findings == 0) {
                    continue;
                }
                for (number, finding) in self.inventory(host).await?.1.into_iter().enumerate() {
                    offer(number, HostFinding { host: host.clone(), finding: Some(finding) });
                }
                if rows.is_closed() {
                    return Ok(());
                }
            }
            shared.iter().cloned().enumerate().for_each(|(number, row)| offer(number, row));
            if !send_window(&mut window, rows).await {
                return Ok(());
            }
        }
    }

    /// A finding for each key on one of these hosts that lies on another host as well.
    async fn shared_keys(&self, hosts: &BTreeSet<String>) -> Result<Vec<HostFinding>, Status> {
        let (names, installations) = {
            let state = self.view.read();
            let names: Vec<String> = state.hosts.keys().map(|name| name.to_string()).collect();
            (names, state.hosts.values().map(|host| u64::from(host.installations)).sum::<u64>())
        };
        let numbers: BTreeMap<&str, u32> = names
            .iter()
            .enumerate()
            .map(|(at, name)| (name.as_str(), u32::try_from(at).unwrap_or(u32::MAX)))
            .collect();
        let meant: BTreeSet<u32> =
            hosts.iter().filter_map(|host| numbers.get(host.as_str()).copied()).collect();
        let mut search = Search::new(installations, KEYS);
        let mut shared: BTreeMap<Hash, Vec<u32>> = BTreeMap::new();
        let (mut findings, mut left) = (0, 0);
        loop {
            self.each_key(|host, place| {
                if let (Some(number), Some(key)) = (numbers.get(host), place.key()) {
                    search.offer(*number, key);
                }
            })
            .await?;
            let (part, more) = search.take();
            for Sharing { key, hosts } in part {
                let here = hosts.iter().filter(|host| meant.contains(host)).count();
                if here > 0 && (shared.is_empty() || findings + here <= SHOWN) {
                    findings += here;
                    shared.insert(key, hosts);
                } else {
                    left += here.min(1);
                }
            }
            if !more {
                break;
            }
        }
        if shared.is_empty() {
            return Ok(Vec::new());
        }
        let mut found: BTreeMap<(String, Hash), HostFinding> = BTreeMap::new();
        self.each_key(|host, place| {
            let Some(key) = place.key().and_then(|key| Hash::try_from(key).ok()) else { return };
            if let Some(on) = shared.get(&key).filter(|_| hosts.contains(host)) {
                let message = also_on(host, on, &names, left);
                found.entry((host.to_owned(), key)).or_insert_with(|| HostFinding {
                    host: host.to_owned(),
                    finding: Some(made(&place.id, message)),
                });
            }
        })
        .await?;
        Ok(found.into_values().collect())
    }

    /// Every place of every inventory on record, with the name of its host.
    async fn each_key(&self, mut look: impl FnMut(&str, &Place)) -> Result<(), Status> {
        let mut after: Option<String> = None;
        loop {
            let page = self.store.page::<Chunk>(keys::INVENTORIES, after.as_deref(), PAGE).await;
            let page = page.map_err(|error| status(&error))?;
            for (key, chunk) in &page {
                let host = key.strip_prefix(keys::INVENTORIES).and_then(|rest| rest.split_once('/'));
                if let Some((host, _)) = host {
                    chunk.value.installations.iter().for_each(|place| look(host, place));
                }
            }
            match page.last() {
                Some((last, _)) if page.len() == PAGE => after = Some(last.clone()),
                Some(_) | None => return Ok(()),
            }
        }
    }
}

fn made(object: &str, message: String) -> Finding {
    let known = reseal_proto::findings::known(SHARED);
    Finding {
        id: SHARED.into(),
        object: object.to_owned(),
        message,
        severity: known.map_or("warning", |known| known.severity).into(),
    }
}

/// "its key lies on web-2, web-3 and 4 more hosts, too".
fn also_on(host: &str, on: &[u32], names: &[String], left: usize) -> String {
    let others: Vec<&str> = on
        .iter()
        .filter_map(|number| names.get(*number as usize))
        .map(String::as_str)
        .filter(|name| *name != host)
        .collect();
    let mut text = format!("its key lies on {}", others[..others.len().min(NAMED_HOSTS)].join(", "));
    match others.len().saturating_sub(NAMED_HOSTS) {
        0 => {}
        1 => text.push_str(" and 1 more host"),
        more => text.push_str(&format!(" and {more} more hosts")),
    }
    text.push_str(", too");
    if left > 0 {
        text.push_str(&format!("; {left} more keys are shared and not shown"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_hosts_are_named_up_to_a_bound() {
        let names: Vec<String> = (0..9).map(|at| format!("h{at}")).collect();
        assert_eq!(also_on("h0", &[0, 3], &names, 0), "its key lies on h3, too");
        let all: Vec<u32> = (0..9).collect();
        let text = also_on("h0", &all, &names, 2);
        assert_eq!(
            text,
            "its key lies on h1, h2, h3, h4, h5 and 3 more hosts, too; 2 more keys are shared and not shown"
        );
    }

    #[test]
    fn a_certificate_alone_is_no_key() {
        let place = |layout: &str| Place {
            layout: layout.into(),
            certificate: Some(Key { spki_sha256: vec![1; 32] }),
            ..Place::default()
        };
        assert!(place("pair").key().is_some() && place("pkcs12").key().is_some());
        assert!(place("certificate").key().is_none() && place("").key().is_none());
    }
}
