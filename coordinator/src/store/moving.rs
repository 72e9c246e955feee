//! Exports and imports: the same store, or nothing.

use super::record::{Counter, Fleet, WrappedKey};
use super::tests::{audited, chain, fresh, number};
use super::*;

use tempfile::TempDir;

use std::path::PathBuf;
use std::sync::Mutex;

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
    let imported = Store::import(&copy, "c1", bytes.as_slice(), 0).await.expect("whole");
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
        let refused = Store::import(&target, "c1", bytes.as_slice(), 0).await.expect_err("not whole");
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
    let refused = Store::import(&target, "c1", bytes.as_slice(), 0).await.expect_err("not empty");
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
            while store.get::<Counter>(&key).await.expect("reads").is_none_or(|found| found.value.value < 20)
            {
                tokio::task::yield_now().await;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), busy).await.expect("the writers write");
    let mut exports = Vec::new();
    for _ in 0..15 {
        exports.push(exported(&store).await);
    }
    writers.iter().for_each(tokio::task::JoinHandle::abort);
    for (n, bytes) in exports.iter().enumerate() {
        let copy = home.path().join(format!("copy-{n}"));
        Store::import(&copy, "c1", bytes.as_slice(), 0).await.expect("whole");
        check_pairs(&Store::open(&copy, "c1").expect("opens")).await;
    }
}

async fn check_pairs(store: &Store) {
    let revealed = store.range::<Counter>("z/").await.expect("reads");
    assert_eq!(revealed.len(), 20);
    for (key, newest) in revealed {
        let w = key.strip_prefix("z/").expect("of z");
        let there = store.range::<Counter>(&format!("a/{w}/")).await.expect("reads");
        let numbers: Vec<u64> = there.iter().map(|(_, found)| found.value.value).collect();
        let newest = newest.value.value;
        let settled: Vec<u64> = (newest - 9..=newest).collect();
        let next_unrevealed: Vec<u64> = (newest - 9..=newest + 1).collect();
        assert!(numbers == settled || numbers == next_unrevealed, "{key} {newest}: {numbers:?}");
    }
}

/// An engine under which somebody commits whenever [`WATCHED`] is read.
struct Meddled {
    engine: Sled,
    meddler: Mutex<Option<Store>>,
    answers: Mutex<Vec<bool>>,
}

const WATCHED: &str = "a/watched";

#[async_trait::async_trait]
impl Kv for Meddled {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let meddler = self.meddler.lock().expect("no panic").clone();
        if let (WATCHED, Some(meddler)) = (key, meddler) {
            let commit = meddler.commit(Commit::new().put("z/late", &number(1)));
            let answer = tokio::time::timeout(Duration::from_millis(300), commit).await;
            self.answers.lock().expect("no panic").push(answer.is_ok());
        }
        self.engine.get(key).await
    }

    async fn page(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, Entry)>, StoreError> {
        self.engine.page(prefix, after, limit).await
    }

    async fn commit(&self, group: Vec<kv::Member>) -> Result<Vec<Result<u64, StoreError>>, StoreError> {
        self.engine.commit(group).await
    }

    async fn acquire(&self, key: &str, holder: &str, ttl: Duration) -> Result<Option<Lease>, StoreError> {
        self.engine.acquire(key, holder, ttl).await
    }

    async fn renew(&self, lease: &Lease) -> Result<bool, StoreError> {
        self.engine.renew(lease).await
    }

    async fn release(&self, lease: &Lease) -> Result<(), StoreError> {
        self.engine.release(lease).await
    }

    fn watch(&self) -> Watch {
        self.engine.watch()
    }

    fn epoch(&self) -> u64 {
        self.engine.epoch()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_are_held_while_an_export_corrects_itself_and_go_on_after() {
    let home = tempfile::tempdir().expect("a directory");
    let engine = Sled::create(&home.path().join("store"), "c1", 0).expect("new");
    let meddled = Arc::new(Meddled { engine, meddler: Mutex::new(None), answers: Mutex::new(Vec::new()) });
    let store = Store::over(meddled.clone()).expect("starts");
    store.commit(Commit::new().put(WATCHED, &number(1))).await.expect("works");
    let mut export = store.export(1);
    export.next().await.expect("exports").expect("a header");
    export.next().await.expect("exports").expect("a page");
    store.commit(Commit::new().put(WATCHED, &number(2))).await.expect("works");
    *meddled.meddler.lock().expect("no panic") = Some(store.clone());
    while export.next().await.expect("exports").is_some() {}
    let meddler = meddled.meddler.lock().expect("no panic").take();
    assert_eq!(*meddled.answers.lock().expect("no panic"), [false], "asked once, and held");
    drop(meddler);
    let late = async {
        while store.get::<Counter>("z/late").await.expect("reads").is_none() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), late).await.expect("committed when the export is done");
}
