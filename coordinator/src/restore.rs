//! What an import brings back is looked at before it acts.
//!
//! A store is as old as its export: hosts banned since, operators removed since
//! and authorities tainted since are as they were. The import voids every join
//! token and marks the store; `reseal serve` refuses a marked one until somebody
//! on this machine has read the lists and said, with `reseal store
//! confirm-restore`, what has to be as it is now. Nothing listens before that, so
//! nobody who was shut out can use the time.

use std::collections::BTreeSet;

use crate::domain::{authority, rotation};
use crate::store::record::{
    Authority, AuthorityState, Counter, Host, HostState, Operator, Policy, Restored, Rotation,
};
use crate::store::{AuditDraft, Commit, Store, StoreError, Versioned, keys};

/// How far the numbers of rotations jump: those made since the export are not used again.
const ROTATIONS: u64 = 1000;
/// Who confirms: whoever is on the machine and can read the store.
const ACTOR: &str = "coordinator";

/// A restore could not be confirmed, or a store may not be served.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// Nobody has looked at it.
    #[error(
        "this store was imported and nobody has looked at it: hosts banned, operators removed and authorities tainted since its export are as they were; look with `reseal store confirm-restore --config FILE`, then say --yes"
    )]
    Unconfirmed,
    /// Nothing was imported, or it is confirmed.
    #[error("this store waits for no confirmation: it was not imported, or is confirmed already")]
    NothingToConfirm,
    /// A name that is in no list.
    #[error(
        "no {kind} {name:?} is in this store; the names are in the list that the command prints without --yes"
    )]
    Unknown {
        /// "host", "operator", "authority", "policy".
        kind: &'static str,
        /// As given.
        name: String,
    },
    /// An authority that cannot be tainted.
    #[error("authority {name} cannot be tainted")]
    Authority {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: authority::Rejected,
    },
    /// The store.
    #[error("cannot look at the restored store")]
    Store(#[from] StoreError),
}

/// What somebody has to look at.
#[derive(Debug)]
pub struct Review {
    /// When the export was made, seconds since the Unix epoch.
    pub exported_at: i64,
    /// Hosts that may speak, or may join.
    pub hosts: Vec<(String, Host)>,
    /// Everybody who may act.
    pub operators: Vec<(String, Operator)>,
    /// What may be issued to whom.
    pub policies: Vec<(String, Policy)>,
    /// All authorities.
    pub authorities: Vec<(String, AuthorityState)>,
    /// Rotations that had not ended.
    pub rotations: Vec<(String, rotation::State)>,
}

/// What has changed since the export and has to be so again.
#[derive(Clone, Debug, Default)]
pub struct Corrections {
    /// Hosts to ban.
    pub ban: Vec<String>,
    /// Operators to remove.
    pub remove_operators: Vec<String>,
    /// Policies to remove.
    pub remove_policies: Vec<String>,
    /// Authorities to taint.
    pub taint: Vec<String>,
}

/// May this store be served?
pub async fn check(store: &Store) -> Result<(), RestoreError> {
    match store.get::<Restored>(keys::RESTORED).await? {
        Some(restored) if restored.value.confirmed_at == 0 => Err(RestoreError::Unconfirmed),
        Some(_) | None => Ok(()),
    }
}

/// What is in a store that waits for its confirmation.
pub async fn review(store: &Store) -> Result<Review, RestoreError> {
    let restored = unconfirmed(store).await?;
    let hosts = named::<Host>(store, keys::HOSTS).await?;
    let authorities = named::<Authority>(store, keys::AUTHORITIES).await?;
    let rotations = named::<Rotation>(store, keys::ROTATION).await?;
    let open = rotations.into_iter().map(|(name, rotation)| (name, rotation.value.state()));
    Ok(Review {
        exported_at: restored.value.exported_at,
        hosts: hosts
            .into_iter()
            .filter(|(_, host)| host.value.state() != HostState::Banned)
            .map(|(name, host)| (name, host.value))
            .collect(),
        operators: named::<Operator>(store, keys::OPERATORS)
            .await?
            .into_iter()
            .map(|(name, operator)| (name, operator.value))
            .collect(),
        policies: named::<Policy>(store, keys::POLICIES)
            .await?
            .into_iter()
            .map(|(name, policy)| (name, policy.value))
            .collect(),
        authorities: authorities
            .into_iter()
            .map(|(name, authority)| (name, authority.value.state()))
            .collect(),
        rotations: open.filter(|(_, state)| !rotation::is_end(*state)).collect(),
    })
}

/// Puts right what has changed since the export, and lets the store be served. Rotations that ran are paused. Killed
/// in the middle, it may be said again, without the operators and policies that are removed already.
pub async fn confirm(store: &Store, corrections: &Corrections, now: i64) -> Result<(), RestoreError> {
    let restored = unconfirmed(store).await?;
    known::<Host>(store, "host", keys::HOSTS, &corrections.ban).await?;
    known::<Operator>(store, "operator", keys::OPERATORS, &corrections.remove_operators).await?;
    known::<Policy>(store, "policy", keys::POLICIES, &corrections.remove_policies).await?;
    known::<Authority>(store, "authority", keys::AUTHORITIES, &corrections.taint).await?;
    for name in &corrections.ban {
        ban(store, name, now).await?;
    }
    for name in &corrections.remove_operators {
        let draft = draft(now, "operator.remove", format!("operator/{name}"));
        store.commit(Commit::new().delete(keys::operator(name)).audit(draft)).await?;
    }
    for name in &corrections.remove_policies {
        let draft = draft(now, "policy.remove", format!("policy/{name}"));
        store.commit(Commit::new().delete(keys::policy(name)).audit(draft)).await?;
    }
    for name in &corrections.taint {
        taint(store, name, now).await?;
    }
    for (id, rotation) in named::<Rotation>(store, keys::ROTATION).await? {
        let Versioned { mut value, revision } = rotation;
        let Ok(paused) = rotation::apply(value.state(), rotation::Event::Pause) else { continue };
        value.set_state(paused);
        value.note =
            "restored from an older export: see what became of it since, then resume or abort".into();
        let draft = draft(now, "rotation.pause", format!("rotation/{id}"));
        let key = keys::rotation(&id);
        store.commit(Commit::new().at(&key, revision).put(&key, &value).audit(draft)).await?;
    }
    // Last, and together: until now it is not confirmed.
    let last = store.get::<Counter>(keys::ROTATIONS).await?.map_or(0, |last| last.value.value);
    let record = Restored { confirmed_at: now, ..restored.value };
    let commit = Commit::new()
        .at(keys::RESTORED, restored.revision)
        .put(keys::RESTORED, &record)
        .put(keys::ROTATIONS, &Counter { value: last + ROTATIONS })
        .audit(draft(now, "store.confirm-restore", "store".into()));
    store.commit(commit).await?;
    Ok(())
}

async fn unconfirmed(store: &Store) -> Result<Versioned<Restored>, RestoreError> {
    let restored = store.get::<Restored>(keys::RESTORED).await?;
    restored.filter(|restored| restored.value.confirmed_at == 0).ok_or(RestoreError::NothingToConfirm)
}

async fn named<M: prost::Message + Default>(
    store: &Store,
    prefix: &str,
) -> Result<Vec<(String, Versioned<M>)>, StoreError> {
    let records = store.range::<M>(prefix).await?;
    Ok(records.into_iter().map(|(key, record)| (key.trim_start_matches(prefix).to_owned(), record)).collect())
}

/// A slip of the pen must not leave the real one as it was.
async fn known<M: prost::Message + Default>(
    store: &Store,
    kind: &'static str,
    prefix: &str,
    wanted: &[String],
) -> Result<(), RestoreError> {
    let names: BTreeSet<String> =
        named::<M>(store, prefix).await?.into_iter().map(|(name, _)| name).collect();
    match wanted.iter().find(|name| !names.contains(*name)) {
        Some(name) => Err(RestoreError::Unknown { kind, name: name.clone() }),
        None => Ok(()),
    }
}

async fn ban(store: &Store, name: &str, now: i64) -> Result<(), RestoreError> {
    let key = keys::host(name);
    let Some(Versioned { mut value, revision }) = store.get::<Host>(&key).await? else { return Ok(()) };
    value.set_state(HostState::Banned);
    value.ban_reason = "banned before the store was restored".into();
    let draft = draft(now, "host.ban", format!("host/{name}"));
    store.commit(Commit::new().at(&key, revision).put(&key, &value).audit(draft)).await?;
    Ok(())
}

async fn taint(store: &Store, name: &str, now: i64) -> Result<(), RestoreError> {
    let key = keys::authority(name);
    let Some(Versioned { mut value, revision }) = store.get::<Authority>(&key).await? else { return Ok(()) };
    let state = authority::apply(value.state(), authority::Event::Taint)
        .map_err(|source| RestoreError::Authority { name: name.to_owned(), source })?;
    value.set_state(state);
    value.reason = "tainted before the store was restored".into();
    let draft = draft(now, "authority.taint", format!("authority/{name}"));
    store.commit(Commit::new().at(&key, revision).put(&key, &value).audit(draft)).await?;
    Ok(())
}

fn draft(now: i64, action: &str, object: String) -> AuditDraft {
    AuditDraft {
        at: now,
        actor: ACTOR.into(),
        action: action.into(),
        object,
        outcome: "done".into(),
        detail: "confirming a restore".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::record::{Batch, Token};

    async fn restored(folder: &std::path::Path) -> Store {
        let store = Store::create(&folder.join("old"), "c").unwrap();
        let host = Host { state: HostState::Enrolled.into(), ..Host::default() };
        let token = Token { host: "h2".into(), expires_at: i64::MAX, ..Token::default() };
        let rotation = Rotation { state: rotation::State::Running.into(), ..Rotation::default() };
        let active = Authority { state: AuthorityState::Active.into(), ..Authority::default() };
        let commit = Commit::new()
            .put(keys::host("h1"), &host)
            .put(keys::token("t1"), &token)
            .put(keys::operator("bob"), &Operator::default())
            .put(keys::policy("wide"), &Policy { name: "wide".into(), ..Policy::default() })
            .put(keys::rotation("r7"), &rotation)
            .put(keys::ROTATIONS, &Counter { value: 7 })
            .put(keys::authority("a"), &active)
            .put(keys::batch("h1", "r7.0-1"), &Batch { rotation: "r7".into(), ..Batch::default() });
        store.commit(commit).await.unwrap();
        let mut export = store.export(99);
        let mut bytes = Vec::new();
        while let Some(part) = export.next().await.unwrap() {
            bytes.extend(part);
        }
        let epoch = store.epoch();
        drop((store, export));
        Store::import(&folder.join("new"), "c", &bytes[..], 0).await.unwrap();
        let store = Store::open(&folder.join("new"), "c").unwrap();
        assert!(store.epoch() > epoch + 1000);
        store
    }

    #[tokio::test]
    async fn what_was_shut_out_stays_out() {
        let folder = tempfile::tempdir().unwrap();
        let store = restored(folder.path()).await;
        assert!(store.get::<Token>(&keys::token("t1")).await.unwrap().is_none(), "a token came back");
        assert!(matches!(check(&store).await, Err(RestoreError::Unconfirmed)));
        let review = review(&store).await.unwrap();
        assert_eq!(review.exported_at, 99);
        assert_eq!((review.hosts.len(), review.operators.len(), review.rotations.len()), (1, 1, 1));
        assert_eq!(review.policies.len(), 1);

        let typo = Corrections { ban: vec!["h11".into()], ..Corrections::default() };
        assert!(matches!(confirm(&store, &typo, 100).await, Err(RestoreError::Unknown { .. })));
        assert!(check(&store).await.is_err(), "a mistake confirms nothing");

        let corrections = Corrections {
            ban: vec!["h1".into()],
            remove_operators: vec!["bob".into()],
            remove_policies: vec!["wide".into()],
            taint: vec!["a".into()],
        };
        confirm(&store, &corrections, 100).await.unwrap();
        check(&store).await.unwrap();
        let host = store.get::<Host>(&keys::host("h1")).await.unwrap().unwrap();
        assert_eq!(host.value.state(), HostState::Banned);
        assert!(store.get::<Operator>(&keys::operator("bob")).await.unwrap().is_none());
        assert!(store.get::<Policy>(&keys::policy("wide")).await.unwrap().is_none());
        let authority = store.get::<Authority>(&keys::authority("a")).await.unwrap().unwrap();
        assert_eq!(authority.value.state(), AuthorityState::Tainted);
        let rotation = store.get::<Rotation>(&keys::rotation("r7")).await.unwrap().unwrap();
        assert_eq!(rotation.value.state(), rotation::State::Paused);
        assert_eq!(store.get::<Counter>(keys::ROTATIONS).await.unwrap().unwrap().value.value, 1007);
        assert!(matches!(confirm(&store, &corrections, 101).await, Err(RestoreError::NothingToConfirm)));
    }

    #[tokio::test]
    async fn a_store_that_was_never_imported_is_served() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::create(&folder.path().join("new"), "c").unwrap();
        check(&store).await.unwrap();
        assert!(matches!(review(&store).await, Err(RestoreError::NothingToConfirm)));
    }
}
