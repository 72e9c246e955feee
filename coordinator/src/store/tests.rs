//! The store as its callers see it.

use super::audit::Chain;
use super::kv::{MAX_VALUE, Write};
use super::record::{AuditEntry, Counter, Fleet};
use super::*;

use tempfile::TempDir;

use std::path::PathBuf;

pub(super) fn fresh() -> (Store, PathBuf, TempDir) {
    let home = tempfile::tempdir().expect("a directory");
    let path = home.path().join("store");
    (Store::create(&path, "c1").expect("new"), path, home)
}

pub(super) fn number(value: u64) -> Counter {
    Counter { value }
}

pub(super) fn audited(object: &str) -> AuditDraft {
    AuditDraft { actor: "operator/alice".to_owned(), object: object.to_owned(), ..AuditDraft::default() }
}

pub(super) async fn chain(store: &Store, name: &str) -> Chain {
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
