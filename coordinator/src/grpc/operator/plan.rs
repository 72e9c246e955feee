//! `reseal plan`: the blast radius, without a change to anything.

use reseal_proto::v1::{PlanHost, PlanReply, PlanRequest, PlanTarget, RelyingParty, TrustStore};
use tonic::Status;

use super::OperatorService;
use super::choose::{Choice, Chosen, FoundIssuer, radius};
use crate::domain::waves::Waves;
use crate::domain::{authority, rotation, selection, unmanaged};
use crate::grpc::convert::{authority_info, chain, status};
use crate::store::record::{Authority, AuthorityState};
use crate::store::{Versioned, keys};

/// Waves of a rotation that says nothing about them.
pub(super) const WAVES: &str = "1,10%,100%";
/// Relying parties named one by one; more are counted.
const RELYING_PARTIES: usize = 100;

/// The head chunk of an inventory, read for who loads which bundle only.
#[derive(Clone, PartialEq, prost::Message)]
struct TrustStores {
    /// See [`crate::store::record::Inventory::trust_stores`].
    #[prost(message, repeated, tag = "6")]
    trust_stores: Vec<TrustStore>,
}

impl OperatorService {
    pub(super) async fn plan_reply(&self, request: PlanRequest) -> Result<PlanReply, Status> {
        let wire = request.selection.unwrap_or_default();
        let (wanted, compromised) = self.selection(&wire).await?;
        let words = if request.waves.is_empty() { WAVES } else { &request.waves };
        let waves: Waves = words.parse().map_err(|error| Status::invalid_argument(chain(&error)))?;
        let Choice { hosts: chosen, unmanaged } = self.choose(&wanted, Some(&waves)).await?;
        let mut conflicts = self.conflicts(&chosen).await?;
        let to_issuer = match self.new_issuer(&request.to_issuer, compromised.as_ref()).await {
            Ok(issuer) => Some(issuer),
            Err(error) => {
                conflicts.push(error.message().to_owned());
                None
            }
        };
        if chosen.is_empty() && !selection::means_every_certificate(&wire) {
            conflicts.push(nothing_to_rotate(unmanaged.total));
        }
        let (containers, endpoints) = radius(&chosen);
        let targets = chosen.iter().map(|host| host.installations.len()).sum::<usize>();
        let relying_parties = match &compromised {
            Some(_) => self.relying_parties().await?,
            None => Vec::new(),
        };
        let info = |name: &str, authority: &Authority| {
            authority_info(name, authority, self.view.read().issued_by(name))
        };
        Ok(PlanReply {
            compromised: compromised.as_ref().map(|issuer| info(&issuer.name, &issuer.authority.value)),
            to_issuer: to_issuer.as_ref().map(|(name, authority)| info(name, &authority.value)),
            targets: u32::try_from(targets).unwrap_or(u32::MAX),
            containers,
            endpoints,
            waves: waves.sizes(u32::try_from(chosen.len()).unwrap_or(u32::MAX)),
            warnings: self.warnings(&chosen, compromised.is_some()),
            conflicts,
            relying_parties,
            unmanaged: unmanaged.total,
            unmanaged_certificates: unmanaged.rows,
            hosts: chosen.into_iter().map(plan_host).collect(),
        })
    }

    /// The authority that new certificates come from: named, or the prepared
    /// one when the active one is compromised, or the active one.
    pub(super) async fn new_issuer(
        &self,
        words: &str,
        compromised: Option<&FoundIssuer>,
    ) -> Result<(String, Versioned<Authority>), Status> {
        if !matches!(words, "" | "builtin") {
            let found = self.resolve_issuer(words).await?;
            if compromised.is_some_and(|compromised| compromised.key.spki_sha256 == found.key.spki_sha256) {
                return Err(Status::invalid_argument(format!(
                    "--to-issuer builtin/{} is the compromised issuer itself",
                    found.name
                )));
            }
            return match found.authority.value.state() {
                AuthorityState::Active | AuthorityState::Prepared => Ok((found.name, found.authority)),
                state @ (AuthorityState::Unknown
                | AuthorityState::PendingSignature
                | AuthorityState::Old
                | AuthorityState::Tainted
                | AuthorityState::Revoked) => Err(Status::failed_precondition(format!(
                    "authority builtin/{} is {}: only a prepared or active one can issue",
                    found.name,
                    authority::word(state)
                ))),
            };
        }
        let all = self.store.range::<Authority>(keys::AUTHORITIES).await.map_err(|error| status(&error))?;
        let usable = |wanted: AuthorityState| {
            all.iter().find(|(key, authority)| {
                authority.value.state() == wanted
                    && compromised.is_none_or(|compromised| {
                        key.trim_start_matches(keys::AUTHORITIES) != compromised.name
                    })
            })
        };
        usable(AuthorityState::Active)
            .or_else(|| usable(AuthorityState::Prepared))
            .map(|(key, authority)| (key.trim_start_matches(keys::AUTHORITIES).to_owned(), authority.clone()))
            .ok_or_else(|| {
                Status::failed_precondition(
                    "no other authority is active or prepared: make one with `reseal authority prepare NAME --root-key FILE`",
                )
            })
    }

    fn warnings(&self, chosen: &[Chosen], compromised: bool) -> Vec<String> {
        let mut warnings = Vec::new();
        let offline: Vec<&str> =
            chosen.iter().filter(|host| !host.connected).map(|host| host.host.as_str()).collect();
        if !offline.is_empty() {
            warnings.push(format!(
                "{} hosts have no session and would be stragglers: {}",
                offline.len(),
                offline.iter().take(20).copied().collect::<Vec<_>>().join(", ")
            ));
        }
        if compromised {
            let state = self.view.read();
            let silent = state.hosts.iter().filter(|(name, host)| {
                host.state == Some(crate::store::record::HostState::Enrolled)
                    && host.installations == 0
                    && !self.presence.connected(name)
            });
            let silent = silent.count();
            if silent > 0 {
                warnings.push(format!("{silent} enrolled hosts never reported an inventory and are not connected: what they hold is unknown"));
            }
        }
        warnings.extend(self.excluded_before(chosen));
        let stopped: usize = chosen
            .iter()
            .flat_map(|host| &host.installations)
            .filter(|installation| !installation.consumers.iter().any(|consumer| consumer.running))
            .count();
        if stopped > 0 {
            warnings.push(format!(
                "{stopped} installations have no running container and would stay unserved until one starts"
            ));
        }
        warnings
    }

    /// Hosts that an open rotation has left out: what is planned here is what they still show.
    fn excluded_before(&self, chosen: &[Chosen]) -> Vec<String> {
        let state = self.view.read();
        let open = state.rotations.iter().filter(|(_, rotation)| !rotation::is_end(rotation.state));
        let excluded =
            open.flat_map(|(number, rotation)| rotation.record.excluded.iter().map(move |e| (number, e)));
        excluded
            .filter(|(_, excluded)| chosen.iter().any(|host| host.host == excluded.host))
            .map(|(number, excluded)| {
                format!(
                    "host {} was excluded from rotation r{number} by {} and is not replaced there: {}",
                    excluded.host, excluded.operator, excluded.reason
                )
            })
            .collect()
    }

    /// Containers that load a bundle whose root vouches for every authority.
    pub(super) async fn relying_parties(&self) -> Result<Vec<RelyingParty>, Status> {
        let hosts: Vec<String> = self.view.read().hosts.keys().map(|name| name.to_string()).collect();
        let mut parties = Vec::new();
        for host in hosts {
            let head = self.store.get::<TrustStores>(&keys::inventory(&host, 0)).await;
            let stores = head.map_err(|error| status(&error))?.map(|head| head.value.trust_stores);
            for store in stores.into_iter().flatten() {
                for container in store.containers {
                    let party = RelyingParty {
                        host: host.clone(),
                        container,
                        bundle: store.bundle.clone(),
                        verdict: "untested".into(),
                    };
                    if !parties.contains(&party) {
                        parties.push(party);
                    }
                }
            }
            if parties.len() >= RELYING_PARTIES {
                parties.truncate(RELYING_PARTIES);
                break;
            }
        }
        Ok(parties)
    }
}

/// Why a selection without a target cannot be rotated.
pub(super) fn nothing_to_rotate(unmanaged: u32) -> String {
    match unmanaged {
        0 => "the selection matches no installation".to_owned(),
        number => format!(
            "the selection matches no managed installation: nobody looks after the {number} that it does match, `reseal adopt` first"
        ),
    }
}

fn plan_host(chosen: Chosen) -> PlanHost {
    let target = |installation: reseal_proto::v1::Installation| {
        let endpoints = unmanaged::endpoints(&installation);
        let facts = installation.certificate.unwrap_or_default();
        PlanTarget {
            names: if facts.names.is_empty() { installation.names } else { facts.names },
            installation: installation.id,
            label: installation.label,
            containers: installation.consumers.into_iter().map(|consumer| consumer.container).collect(),
            endpoints,
            fingerprint: facts.fingerprint,
            not_after: facts.not_after,
            key_type: facts.key_type,
        }
    };
    PlanHost {
        name: chosen.host,
        connected: chosen.connected,
        last_seen: chosen.last_seen,
        wave: chosen.wave,
        targets: chosen.installations.into_iter().map(target).collect(),
    }
}
