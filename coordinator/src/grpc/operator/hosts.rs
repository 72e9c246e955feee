//! Hosts: invited, listed, banned, removed; and what they hold.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use reseal_proto::facts::sha256;
use reseal_proto::v1::{self, Installation, InviteHostReply, InviteHostRequest, JoinToken};
use reseal_proto::{identity, token};
use tonic::Status;

use super::OperatorService;
use crate::domain::{host, rotation};
use crate::grpc::auth::Caller;
use crate::grpc::convert::status;
use crate::issuance::keyring::random;
use crate::store::record::{Batch, Host, HostState, Inventory, Issued, Token};
use crate::store::{AuditDraft, Commit, Versioned, keys};

/// Records deleted in one commit.
const PAGE: usize = 60;
const HOUR: u64 = 3600;
const MAX_LIFETIME: u64 = 7 * 24 * HOUR;
/// Labels of a host, and bytes of each, at most.
const MAX_LABELS: usize = 50;
const MAX_LABEL: usize = 200;

impl OperatorService {
    pub(super) async fn invite(
        &self,
        caller: &Caller,
        request: InviteHostRequest,
    ) -> Result<InviteHostReply, Status> {
        identity::check_name("host", &request.name)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let printable = |text: &str| {
            text.len() <= MAX_LABEL && !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic())
        };
        if request.labels.len() > MAX_LABELS
            || !request.labels.iter().all(|(key, value)| printable(key) && printable(value))
        {
            return Err(Status::invalid_argument(format!(
                "labels must be at most {MAX_LABELS}, each of 1 to {MAX_LABEL} printable ASCII characters"
            )));
        }
        let lifetime = match request.lifetime_seconds {
            0 => HOUR,
            seconds @ 1..=MAX_LIFETIME => seconds,
            seconds => {
                return Err(Status::invalid_argument(format!(
                    "a token may live 7 days, not {seconds} seconds"
                )));
            }
        };
        let now = (self.now)();
        let expires_at = now + i64::try_from(lifetime).unwrap_or(i64::MAX);
        let id = hex::encode(random::<8>());
        let secret = URL_SAFE_NO_PAD.encode(random::<32>());
        let key = keys::host(&request.name);
        let existing = self.store.get::<Host>(&key).await.map_err(|error| status(&error))?;
        let commit = match existing {
            None => {
                let host = Host {
                    state: HostState::Invited.into(),
                    labels: request.labels.clone(),
                    ..Host::default()
                };
                Commit::new().absent(&key).put(&key, &host)
            }
            Some(Versioned { value, .. }) if value.state() == HostState::Banned => {
                return Err(Status::failed_precondition(format!(
                    "host {} is banned ({}); `reseal host remove {}` first if it may come back",
                    request.name, value.ban_reason, request.name
                )));
            }
            // It keeps its identity until the new token is used.
            Some(Versioned { revision, .. }) => Commit::new().at(&key, revision),
        };
        let record = Token {
            host: request.name.clone(),
            secret_sha256: sha256(secret.as_bytes()).to_vec(),
            expires_at,
            labels: request.labels,
            ..Token::default()
        };
        let token_key = keys::token(&id);
        let mut commit = commit.absent(&token_key).put(&token_key, &record).audit(AuditDraft {
            at: now,
            actor: caller.actor(),
            action: "host.invite".into(),
            object: format!("host/{}", request.name),
            outcome: "done".into(),
            detail: format!("token {id} for {lifetime} seconds"),
        });
        // Old tokens go when new ones come: a host has one that works, and the list stays short.
        let tokens = self.store.range::<Token>(keys::TOKENS).await.map_err(|error| status(&error))?;
        let stale = |token: &Token| token.host == record.host || token.expires_at + 86_400 < now;
        for (old, _) in tokens.iter().filter(|(_, token)| stale(&token.value)).take(40) {
            commit = commit.delete(old);
        }
        self.store.commit(commit).await.map_err(|error| status(&error))?;
        let token = token::encode(&JoinToken {
            fleet: self.control.fleet.clone(),
            host: request.name,
            id,
            secret,
            expires_at,
            ca_pin: self.control.anchor().to_vec(),
            coordinators: self.advertise.to_vec(),
        });
        Ok(InviteHostReply { token, expires_at })
    }

    pub(super) async fn hosts(&self, labels: &BTreeMap<String, String>) -> Result<Vec<v1::Host>, Status> {
        let records = self.store.range::<Host>(keys::HOSTS).await.map_err(|error| status(&error))?;
        Ok(records
            .into_iter()
            .filter(|(_, host)| labels.iter().all(|(key, value)| host.value.labels.get(key) == Some(value)))
            .map(|(key, host)| self.host_row(key.trim_start_matches(keys::HOSTS), &host.value))
            .collect())
    }

    pub(super) async fn host(&self, name: &str) -> Result<(Versioned<Host>, v1::Host), Status> {
        let record = self.store.get::<Host>(&keys::host(name)).await.map_err(|error| status(&error))?;
        let record = record.ok_or_else(|| {
            let name: String = name.chars().take(63).collect();
            Status::not_found(format!("no host {name:?}; see `reseal host list`"))
        })?;
        let row = self.host_row(name, &record.value);
        Ok((record, row))
    }

    pub(super) async fn inventory(
        &self,
        host: &str,
    ) -> Result<(Vec<Installation>, Vec<v1::Finding>), Status> {
        let chunks =
            self.store.range::<Inventory>(&keys::inventory_of(host)).await.map_err(|error| status(&error))?;
        let mut installations = Vec::new();
        let mut findings = Vec::new();
        for (_, chunk) in chunks {
            installations.extend(chunk.value.installations);
            findings.extend(chunk.value.findings);
        }
        Ok((installations, findings))
    }

    pub(super) async fn ban(&self, caller: &Caller, name: &str, reason: &str) -> Result<(), Status> {
        if reason.trim().is_empty() || reason.len() > 1000 {
            return Err(Status::invalid_argument("a ban needs a reason of at most 1000 bytes"));
        }
        let (Versioned { mut value, revision }, _) = self.host(name).await?;
        value.set_state(HostState::Banned);
        value.ban_reason = reason.to_owned();
        value.identity_spki_sha256.clear();
        value.next_spki_sha256.clear();
        let key = keys::host(name);
        let draft = self.draft(caller, "host.ban", &format!("host/{name}"), reason);
        self.store
            .commit(Commit::new().at(&key, revision).put(&key, &value).audit(draft))
            .await
            .map_err(|error| status(&error))?;
        Ok(())
    }

    pub(super) async fn remove_host(&self, caller: &Caller, name: &str) -> Result<(), Status> {
        let (record, _) = self.host(name).await?;
        let busy = {
            let state = self.view.read();
            state.hosts.get(name).into_iter().flat_map(|host| &host.open).find_map(|open| {
                let number = open.rotation?;
                let running = state.rotations.get(&number).is_some_and(|view| !rotation::is_end(view.state));
                running.then(|| format!("r{number}"))
            })
        };
        if let Some(rotation) = busy {
            return Err(Status::failed_precondition(format!(
                "host {name} is part of rotation {rotation}: let it end, or take the host out with `reseal rotation exclude {rotation} {name}`"
            )));
        }
        let key = keys::host(name);
        let draft = self.draft(caller, "host.remove", &format!("host/{name}"), "");
        // Before the host's own record: killed in between, the same command goes on.
        self.remove_records_of(name).await?;
        let mut commit = Commit::new().at(&key, record.revision).delete(&key).audit(draft);
        let tokens = self.store.range::<Token>(keys::TOKENS).await.map_err(|error| status(&error))?;
        for (token, _) in tokens.iter().filter(|(_, token)| token.value.host == name).take(10) {
            commit = commit.delete(token);
        }
        self.store.commit(commit).await.map_err(|error| status(&error))?;
        // What its session reported in this very moment.
        self.remove_records_of(name).await
    }

    /// Its inventory, and renewals that were ordered and will never be done: under its
    /// name a new host may come.
    async fn remove_records_of(&self, host: &str) -> Result<(), Status> {
        let chunks = self.store.range::<Inventory>(&keys::inventory_of(host)).await;
        let mut gone: Vec<String> =
            chunks.map_err(|error| status(&error))?.into_iter().map(|(key, _)| key).collect();
        gone.push(keys::renewing(host));
        let renewals = self.store.range::<Batch>(&keys::renewals_of(host)).await;
        for (key, batch) in renewals.map_err(|error| status(&error))? {
            if batch.value.finished_at == 0 {
                let name = key.rsplit('/').next().unwrap_or_default().to_owned();
                let issued = self.store.range::<Issued>(&keys::issued_of(host, &name)).await;
                gone.extend(issued.map_err(|error| status(&error))?.into_iter().map(|(key, _)| key));
                gone.push(key);
            }
        }
        for page in gone.chunks(PAGE) {
            let commit = page.iter().fold(Commit::new(), |commit, key| commit.delete(key));
            self.store.commit(commit).await.map_err(|error| status(&error))?;
        }
        Ok(())
    }

    fn host_row(&self, name: &str, record: &Host) -> v1::Host {
        let state = self.view.read();
        let view = state.hosts.get(name);
        let connected = self.presence.show(name);
        let last_seen = match &connected {
            Some(connected) => connected.last_seen,
            None => self.presence.absent_since(name, 0).unwrap_or(0),
        };
        v1::Host {
            name: name.to_owned(),
            labels: record.labels.clone(),
            state: host::word(record.state()).into(),
            connected: connected.is_some(),
            last_seen,
            enrolled_at: record.enrolled_at,
            identity_expires_at: record.identity_expires_at,
            agent_version: connected
                .as_ref()
                .map(|connected| connected.version.to_string())
                .unwrap_or_default(),
            clock_skew: connected.as_ref().map_or(0, |connected| connected.clock_skew_ms / 1000),
            installations: view.map_or(0, |view| view.installations),
            discovered: view.map_or(0, |view| view.discovered),
            findings: view.map_or(0, |view| view.findings),
            ban_reason: record.ban_reason.clone(),
        }
    }
}
