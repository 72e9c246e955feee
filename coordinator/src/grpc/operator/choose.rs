//! From an operator's words to installations: who is meant, and in which wave.

use std::collections::{BTreeMap, BTreeSet};

use reseal_proto::v1::{self, Installation};
use tonic::Status;

use super::OperatorService;
use crate::domain::selection::{IssuerKey, Selection};
use crate::domain::unmanaged;
use crate::domain::waves::Waves;
use crate::grpc::convert::{chain, status};
use crate::store::record::{Authority, Host, HostState, Inventory};
use crate::store::{StoreError, Versioned, keys};
use crate::view::RotationView;

/// A host with the installations that are meant.
pub(super) struct Chosen {
    pub(super) host: String,
    pub(super) connected: bool,
    pub(super) last_seen: i64,
    /// In the order of work, 1-based.
    pub(super) place: u32,
    /// 1-based.
    pub(super) wave: u32,
    pub(super) installations: Vec<Installation>,
}

/// What a selection means.
pub(super) struct Choice {
    /// The targets of a rotation.
    pub(super) hosts: Vec<Chosen>,
    /// What is meant and nobody looks after: no target.
    pub(super) unmanaged: Unmanaged,
}

/// Discovered certificates that a selection means.
#[derive(Default)]
pub(super) struct Unmanaged {
    /// How many there are.
    pub(super) total: u32,
    /// Some of them, in the order of hosts and ids.
    pub(super) rows: Vec<v1::UnmanagedCertificate>,
}

impl Unmanaged {
    /// Counts one; keeps it while there are fewer than `most`.
    fn add(&mut self, host: &str, installation: &Installation, most: usize) {
        self.total = self.total.saturating_add(1);
        if self.rows.len() < most {
            self.rows.push(unmanaged::named(host, installation));
        }
    }
}

/// Discovered certificates that are named in a plan; more are counted.
const UNMANAGED: usize = 1_000;

/// An issuer that was found by the words for it.
pub(super) struct FoundIssuer {
    pub(super) name: String,
    pub(super) key: IssuerKey,
    pub(super) authority: Versioned<Authority>,
}

impl OperatorService {
    /// Finds an authority by name, certificate fingerprint, SKI or SPKI hash.
    pub(super) async fn resolve_issuer(&self, words: &str) -> Result<FoundIssuer, Status> {
        let slot = words.strip_prefix("builtin/").unwrap_or(words);
        let digits = words.replace(':', "").to_ascii_lowercase();
        let mut names = Vec::new();
        for (key, authority) in
            self.store.range::<Authority>(keys::AUTHORITIES).await.map_err(|error| status(&error))?
        {
            let name = key.trim_start_matches(keys::AUTHORITIES).to_owned();
            let Ok(issuer) = crate::issuance::builtin::issuer_key(&authority.value.certificate) else {
                names.push(name);
                continue;
            };
            let fingerprint = hex::encode(reseal_proto::facts::sha256(&authority.value.certificate));
            let forms = [fingerprint, hex::encode(&issuer.subject_key_id), hex::encode(&issuer.spki_sha256)];
            let subject = reseal_proto::facts::of_chain(&authority.value.certificate, [])
                .map(|facts| facts.subject)
                .unwrap_or_default();
            if name == slot || subject == words || forms.contains(&digits) {
                return Ok(FoundIssuer { name, key: issuer, authority });
            }
            names.push(name);
        }
        let words: String = words.chars().take(100).collect();
        Err(Status::not_found(format!(
            "no issuer is known as {words:?}; known are {}; a fingerprint, SKI or SPKI hash in hexadecimal finds one too",
            names.iter().map(|name| format!("builtin/{name}")).collect::<Vec<_>>().join(", ")
        )))
    }

    /// Understands a selection.
    pub(super) async fn selection(
        &self,
        wire: &v1::Selection,
    ) -> Result<(Selection, Option<FoundIssuer>), Status> {
        let issuer = match wire.compromised_issuer.as_str() {
            "" => None,
            words => Some(self.resolve_issuer(words).await?),
        };
        let selection = Selection::new(wire, issuer.as_ref().map(|issuer| issuer.key.clone()))
            .map_err(|error| Status::invalid_argument(chain(&error)))?;
        Ok((selection, issuer))
    }

    /// Every installation that is meant, host by host: connected hosts first, so
    /// that the first wave can prove something, then by name. Only managed ones become
    /// targets, whatever a selection says.
    pub(super) async fn choose(
        &self,
        selection: &Selection,
        waves: Option<&Waves>,
    ) -> Result<Choice, Status> {
        let mut chosen = Vec::new();
        let mut unmanaged = Unmanaged::default();
        for (name, host) in self.enrolled(selection).await.map_err(|error| status(&error))? {
            let chunks = self
                .store
                .range::<Inventory>(&keys::inventory_of(&name))
                .await
                .map_err(|error| status(&error))?;
            let (installations, discovered): (Vec<_>, Vec<_>) = chunks
                .into_iter()
                .flat_map(|(_, chunk)| chunk.value.installations)
                .filter(|installation| selection.installation(&name, installation))
                .partition(Installation::is_managed);
            discovered.iter().for_each(|one| unmanaged.add(&name, one, UNMANAGED));
            if installations.is_empty() {
                continue;
            }
            let absent = self.presence.absent_since(&name, self.started_at);
            chosen.push(Chosen {
                connected: absent.is_none(),
                last_seen: absent.unwrap_or_else(self.now),
                place: 0,
                wave: 0,
                installations,
                host: name,
            });
            drop(host);
        }
        chosen.sort_by(|a, b| b.connected.cmp(&a.connected).then_with(|| a.host.cmp(&b.host)));
        if let Some(waves) = waves {
            let sizes = waves.sizes(u32::try_from(chosen.len()).unwrap_or(u32::MAX));
            for (at, host) in chosen.iter_mut().enumerate() {
                host.place = u32::try_from(at + 1).unwrap_or(u32::MAX);
                let before = sizes.iter().take_while(|size| at >= **size as usize).count();
                host.wave = u32::try_from(before + 1).unwrap_or(u32::MAX);
            }
        }
        Ok(Choice { hosts: chosen, unmanaged })
    }

    /// Certificates of this issuer that nobody looks after: the first `most` of them.
    pub(super) async fn unmanaged_of(&self, issuer: &str, most: usize) -> Result<Unmanaged, Status> {
        let (key, hosts): (IssuerKey, Vec<String>) = {
            let state = self.view.read();
            let Some(key) = state.authorities.get(issuer) else { return Ok(Unmanaged::default()) };
            let hosts = state.hosts.iter().filter(|(_, host)| host.unmanaged_of(key) > 0);
            (key.clone(), hosts.map(|(name, _)| name.to_string()).collect())
        };
        let mut found = Unmanaged::default();
        for host in hosts {
            if found.rows.len() >= most {
                break;
            }
            for installation in self.inventory(&host).await?.0 {
                let is_from = installation.certificate.as_ref().is_some_and(|facts| key.issued(facts));
                if is_from && !installation.is_managed() {
                    found.add(&host, &installation, most);
                }
            }
        }
        Ok(found)
    }

    /// Hosts on which something can be meant.
    async fn enrolled(&self, selection: &Selection) -> Result<Vec<(String, Host)>, StoreError> {
        let candidates: Vec<String> = {
            let state = self.view.read();
            let shows = |host: &crate::view::HostView| {
                selection.issuer.as_ref().is_none_or(|issuer| host.shows(issuer))
            };
            state
                .hosts
                .iter()
                .filter(|(_, host)| host.state == Some(HostState::Enrolled) && shows(host))
                .map(|(name, _)| name.to_string())
                .collect()
        };
        let mut hosts = Vec::with_capacity(candidates.len());
        for name in candidates {
            if let Some(host) = self.store.get::<Host>(&keys::host(&name)).await?.map(|host| host.value)
                && selection.host(&name, &host.labels)
            {
                hosts.push((name, host));
            }
        }
        Ok(hosts)
    }

    /// Installations that another rotation is working on: `host, installation, rotation`.
    pub(super) async fn conflicts(&self, chosen: &[Chosen]) -> Result<Vec<String>, Status> {
        let busy: BTreeMap<String, Vec<(String, String)>> = {
            let state = self.view.read();
            let open = |host: &Chosen| {
                let view = state.hosts.get(host.host.as_str())?;
                let batches: Vec<(String, String)> = view
                    .open
                    .iter()
                    .filter_map(|open| Some((open.batch.to_string(), format!("r{}", open.rotation?))))
                    .collect();
                (!batches.is_empty()).then(|| (host.host.clone(), batches))
            };
            chosen.iter().filter_map(open).collect()
        };
        let mut conflicts = Vec::new();
        for host in chosen {
            for (batch, rotation) in busy.get(&host.host).into_iter().flatten() {
                if !self.is_open(rotation) {
                    continue;
                }
                let key = keys::batch(&host.host, batch);
                let record = self
                    .store
                    .get::<crate::store::record::Batch>(&key)
                    .await
                    .map_err(|error| status(&error))?;
                let targets: BTreeSet<String> = record
                    .into_iter()
                    .flat_map(|record| record.value.targets)
                    .map(|target| target.installation)
                    .collect();
                for installation in
                    host.installations.iter().filter(|installation| targets.contains(&installation.id))
                {
                    conflicts.push(format!(
                        "{} on host {} is a target of rotation {rotation}",
                        installation.label, host.host
                    ));
                }
            }
        }
        Ok(conflicts)
    }

    /// A rotation that is not at an end, if there is one.
    pub(super) fn open_rotation(&self) -> Option<String> {
        let state = self.view.read();
        let mut all = state.rotations.iter();
        all.find(|(_, rotation)| rotation.is_open()).map(|(number, _)| format!("r{number}"))
    }

    /// How many rotations have not ended.
    pub(super) fn open_rotations(&self) -> usize {
        self.view.read().rotations.values().filter(|rotation| rotation.is_open()).count()
    }

    pub(super) fn is_open(&self, rotation: &str) -> bool {
        let state = self.view.read();
        crate::view::rotation_number(rotation)
            .and_then(|number| state.rotations.get(&number))
            .is_some_and(RotationView::is_open)
    }
}

/// Containers and endpoints of what was chosen, each once.
pub(super) fn radius(chosen: &[Chosen]) -> (u32, u32) {
    let mut containers = BTreeSet::new();
    let mut endpoints = BTreeSet::new();
    for host in chosen {
        for installation in &host.installations {
            containers
                .extend(installation.consumers.iter().map(|consumer| (&host.host, &consumer.container)));
            endpoints.extend(
                installation.endpoints.iter().map(|endpoint| (&host.host, &endpoint.address, &endpoint.sni)),
            );
        }
    }
    let number = |length| u32::try_from(length).unwrap_or(u32::MAX);
    (number(containers.len()), number(endpoints.len()))
}
