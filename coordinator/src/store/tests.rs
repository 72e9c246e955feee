//! The store as its callers see it.

use super::audit::Chain;
use super::kv::{MAX_VALUE, Write};
use super::record::{AuditEntry, Counter, Fleet, WrappedKey};
use super::*;

use tempfile::TempDir;

use std::path::PathBuf;

fn fresh() -> (Store, PathBuf, TempDir) {
    let home = tempfile::tempdir().expect("a directory");
    let path = home.path().join("store");
    (Store::create(&path, "c1").expect("new"), path, home)
}

fn number(value: u64) -> Counter {
    Counter { value }
}

fn audited(object: &str) -> AuditDraft {
    AuditDraft { actor: "operator/alice".to_owned(), object: object.to_owned(), ..AuditDraft::default() }
}

async fn chain(store: &Store, name: &str) -> Chain {
    let mut chain = Chain::empty(name);
    for (_, entry) in store.range::<AuditEntry>(keys::AUDIT).await.expect("reads") {
        if entry.value.chain == name {
            chain.follow(&entry.value).expect("a chain");
        }
    }
    chain
}

#[tokio::test]
async fn keeps_what_it_was_given() {
    let (store, path, _home) = fresh();
    let revision = store.commit(Commit::new().absent("n/1").put("n/1", &number(7))).await.expect("absent");
    let found = store.get::<Counter>("n/1").await.expect("reads").expect("there");
    assert_eq!(found, Versioned { revision, value: number(7) });
    store
        .commit(Commit::new().at("n/1", revision).put("n/1", &number(8)).audit(audited("n/1")))
        .await
        .expect("current");
    let stale = store.commit(Commit::new().at("n/1", revision).delete("n/1").audit(audited("n/1"))).await;
    assert!(stale.expect_err("stale").is_conflict());
    let epoch = store.epoch();
    drop(store);

    let store = Store::open(&path, "c1").expect("reopens");
    assert_eq!(store.epoch(), epoch + 1);
    let found = store.get::<Counter>("n/1").await.expect("reads").expect("there");
    assert_eq!(found.value, number(8));
    assert_eq!(chain(&store, "c1").await.sequence(), 1);
    store.commit(Commit::new().audit(audited("again"))).await.expect("no guard");
    assert_eq!(chain(&store, "c1").await.sequence(), 2, "the chain goes on after a restart");
    drop(store);

    let store = Store::open(&path, "c0").expect("reopens under another name");
    store.commit(Commit::new().audit(audited("other"))).await.expect("no guard");
    assert_eq!(chain(&store, "c0").await.sequence(), 1);
    assert_eq!(chain(&store, "c1").await.sequence(), 2);
}

#[tokio::test]
async fn one_opens_what_one_made_and_only_once() {
    let (store, path, home) = fresh();
    assert_eq!(Store::open(&path, "c1").err().expect("open already").code(), "store-in-use");
    assert_eq!(Store::create(&path, "c1").err().expect("exists").code(), "store-not-empty");
    let nowhere = home.path().join("nowhere");
    assert_eq!(Store::open(&nowhere, "c1").err().expect("missing").code(), "store-missing");
    drop(store);
    Store::open(&path, "c1").expect("free again");
}

#[tokio::test]
async fn a_damaged_record_is_an_error_that_names_it() {
    let (store, _path, _home) = fresh();
    let put = |key: &str, value: &[u8]| kv::Member {
        writes: vec![Write::Put(key.to_owned(), value.to_vec())],
        ..kv::Member::default()
    };
    store.0.kv.commit(vec![put("n/new", &[2, 8, 1]), put("n/bad", &[1, 255])]).await.expect("works");
    let newer = store.get::<Counter>("n/new").await.expect_err("newer");
    assert_eq!(newer.code(), "record-damaged");
    assert!(newer.to_string().contains("n/new") && newer.to_string().contains("newer reseal"), "{newer}");
    let damaged = store.range::<Counter>("n/").await.expect_err("damaged");
    assert!(damaged.to_string().contains("n/bad"), "{damaged}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_at_once_each_get_their_own_answer() {
    let (store, _path, _home) = fresh();
    let task = |n: u64| {
        let store = store.clone();
        tokio::spawn(async move {
            let own = format!("own/{n:04}");
            let shared = format!("shared/{:04}", n / 4);
            store.commit(Commit::new().absent(&own).put(&own, &number(n))).await.expect("nobody else's");
            let won = store.commit(Commit::new().absent(&shared).put(&shared, &number(n))).await;
            let seen = store.get::<Counter>(&shared).await.expect("reads").expect("someone's");
            match won {
                Ok(revision) => assert_eq!(seen, Versioned { revision, value: number(n) }),
                Err(error) => assert!(error.is_conflict() && seen.value != number(n)),
            }
            u64::from(seen.value == number(n))
        })
    };
    let tasks: Vec<_> = (0..2000).map(task).collect();
    let mut winners = 0;
    for task in tasks {
        winners += task.await.expect("no panic");
    }
    assert_eq!(winners, 500, "one of four each");
    let all = store.range::<Counter>("own/").await.expect("reads");
    assert_eq!(all.len(), 2000, "read over several pages");
    assert!(all.iter().enumerate().all(|(n, (_, found))| found.value == number(n as u64)));
}

#[tokio::test]
async fn the_largest_values_make_no_file_that_is_never_synced() {
    let (store, path, _home) = fresh();
    let large = Fleet { control_ca: vec![7; MAX_VALUE - 16], ..Fleet::default() };
    for round in 0..6u64 {
        for group in 0..10 {
            let key = |n: u64| format!("large/{:0>900}", group * 15 + n);
            let commit = (0..15).fold(Commit::new(), |commit, n| {
                let mut large = large.clone();
                large.created_at = i64::try_from(round).expect("small");
                commit.put(key(n), &large)
            });
            store.commit(commit).await.expect("within the limits");
        }
    }
    let blobs = std::fs::read_dir(path.join("sled/blobs")).expect("a directory").count();
    assert_eq!(blobs, 0);
    assert_eq!(store.range::<Fleet>("large/").await.expect("reads").len(), 150);
}

async fn exported(store: &Store) -> Vec<u8> {
    let mut export = store.export(1_000);
    let mut bytes = Vec::new();
    while let Some(chunk) = export.next().await.expect("exports") {
        bytes.extend(chunk);
    }
    bytes
}

async fn filled() -> (Store, PathBuf, TempDir) {
    let (store, path, home) = fresh();
    let wrapped = WrappedKey { kek_id: vec![1; 8], data_key: vec![2; 60], sealed: vec![3; 200] };
    let fleet = Fleet { name: "acme".to_owned(), control_key: Some(wrapped), ..Fleet::default() };
    store.commit(Commit::new().put(keys::FLEET, &fleet).audit(audited("fleet"))).await.expect("works");
    for group in 0..20u64 {
        let commit =
            (0..60).fold(Commit::new(), |commit, n| commit.put(format!("n/{group:02}/{n:02}"), &number(n)));
        store.commit(commit.audit(audited("numbers"))).await.expect("works");
    }
    (store, path, home)
}

#[tokio::test]
async fn an_export_becomes_the_same_store() {
    let (store, _path, home) = filled().await;
    let lease =
        store.lease(keys::ENGINE_LEASE, "c1", Duration::from_secs(9)).await.expect("works").expect("free");
    let bytes = exported(&store).await;
    assert!(bytes.starts_with(br#"{"format":"reseal-store-export","version":1,"fleet":"acme","epoch":"#));
    let copy = home.path().join("copy");
    let imported = Store::import(&copy, "c1", bytes.as_slice()).await.expect("whole");
    assert_eq!((imported.header.fleet.as_str(), imported.header.at), ("acme", 1_000));
    let found = Store::open(&copy, "c1").expect("opens");
    assert!(found.epoch() > store.epoch() + 999);
    for prefix in ["audit/", "n/", keys::FLEET] {
        let old = store.0.kv.page(prefix, None, 5000).await.expect("reads");
        let new = found.0.kv.page(prefix, None, 5000).await.expect("reads");
        assert!(!old.is_empty());
        assert!(
            old.iter()
                .map(|(key, entry)| (key, &entry.value))
                .eq(new.iter().map(|(key, entry)| (key, &entry.value)))
        );
    }
    assert_eq!(chain(&found, "c1").await.sequence(), 21);
    found.commit(Commit::new().audit(audited("after"))).await.expect("works");
    assert_eq!(chain(&found, "c1").await.sequence(), 22);
    let taken = found.lease(keys::ENGINE_LEASE, "c2", Duration::from_secs(9)).await.expect("works");
    assert!(taken.expect("the old holder is of an old epoch").revision > lease.revision);
}

#[tokio::test]
async fn a_damaged_or_cut_export_leaves_nothing() {
    let (store, _path, home) = filled().await;
    let bytes = exported(&store).await;
    let target = home.path().join("target");
    let mut bad: Vec<Vec<u8>> =
        (0..bytes.len()).step_by(bytes.len() / 24).map(|end| bytes[..end].to_vec()).collect();
    for at in (0..bytes.len()).step_by(bytes.len() / 24) {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1;
        bad.push(flipped);
    }
    bad.push([bytes.as_slice(), b"x"].concat());
    for bytes in bad {
        let refused = Store::import(&target, "c1", bytes.as_slice()).await.expect_err("not whole");
        assert_eq!(refused.code(), "import-refused", "{refused}");
        let left: Vec<_> = home
            .path()
            .read_dir()
            .expect("a directory")
            .map(|entry| entry.expect("an entry").file_name())
            .collect();
        assert_eq!(left, ["store"]);
    }
    std::fs::create_dir(&target).expect("made");
    std::fs::write(target.join("precious"), "x").expect("written");
    let refused = Store::import(&target, "c1", bytes.as_slice()).await.expect_err("not empty");
    assert_eq!(refused.code(), "store-not-empty");
    assert!(target.join("precious").exists());
}

/// Pairs are written together all the while; an export that shows one instant shows equal pairs,
/// and never the one that is revealed without the one it was revealed after.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_export_shows_one_instant_of_a_busy_store() {
    let (store, _path, home) = filled().await;
    let writers: Vec<_> = (0..20)
        .map(|w| {
            let store = store.clone();
            tokio::spawn(async move {
                for round in 1.. {
                    let (a, z) = (format!("a/{w:02}/{round:06}"), format!("z/{w:02}"));
                    let gone = format!("a/{w:02}/{:06}", round.max(10) - 10);
                    let written = store.commit(Commit::new().put(a, &number(round))).await;
                    let revealed = store.commit(Commit::new().put(z, &number(round)).delete(gone)).await;
                    if written.or(revealed).is_err() {
                        return;
                    }
                }
            })
        })
        .collect();
    let busy = async {
        for w in 0..20 {
            let key = format!("z/{w:02}");
            while store.get::<Counter>(&key).await.expect("reads").is_none_or(|found| found.value.value < 20) {
                tokio::task::yield_now().await;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), busy).await.expect("the writers write");
    let bytes = exported(&store).await;
    writers.iter().for_each(tokio::task::JoinHandle::abort);
    let copy = home.path().join("copy");
    Store::import(&copy, "c1", bytes.as_slice()).await.expect("whole");
    let copy = Store::open(&copy, "c1").expect("opens");
    let revealed = copy.range::<Counter>("z/").await.expect("reads");
    assert_eq!(revealed.len(), 20);
    for (key, newest) in revealed {
        let w = key.strip_prefix("z/").expect("of z");
        let there = copy.range::<Counter>(&format!("a/{w}/")).await.expect("reads");
        let numbers: Vec<u64> = there.iter().map(|(_, found)| found.value.value).collect();
        let newest = newest.value.value;
        let expected: Vec<u64> = (newest - 9..=newest).collect();
        assert!(
            numbers == expected || numbers == (newest - 9..=newest + 1).collect::<Vec<_>>(),
            "{key}: {numbers:?}"
        );
    }
}
