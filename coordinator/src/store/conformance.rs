//! What every engine must do, tested against `dyn Kv`: each test takes a fresh,
//! empty engine. An engine is tested by listing it at the end of this file.

use super::audit::{Chain, Draft};
use super::error::StoreError;
use super::kv::{Entry, Guard, Kv, MAX_KEY, MAX_VALUE, Member, Write};
use super::record::{self, AuditEntry};
use super::{Hint, keys};

use std::time::Duration;

const TTL: Duration = Duration::from_secs(10);

fn put(key: &str, value: &str) -> Write {
    Write::Put(key.to_owned(), value.as_bytes().to_vec())
}

fn member(guards: Vec<Guard>, writes: Vec<Write>) -> Member {
    Member { guards, writes, audit: None }
}

fn absent(key: &str) -> Guard {
    Guard::Absent(key.to_owned())
}

fn at(key: &str, revision: u64) -> Guard {
    Guard::Revision(key.to_owned(), revision)
}

async fn one(kv: &dyn Kv, member: Member) -> Result<u64, StoreError> {
    kv.commit(vec![member]).await.expect("the engine works").remove(0)
}

async fn value(kv: &dyn Kv, key: &str) -> Option<String> {
    let entry = kv.get(key).await.expect("the engine works")?;
    Some(String::from_utf8(entry.value).expect("text"))
}

async fn puts_gets_deletes(kv: &dyn Kv) {
    assert_eq!(kv.get("a").await.expect("works"), None);
    let first = one(kv, member(vec![], vec![put("a", "1"), put("b", "")])).await.expect("unguarded");
    let entry = Entry { revision: first, value: b"1".to_vec() };
    assert_eq!(kv.get("a").await.expect("works"), Some(entry));
    assert_eq!(value(kv, "b").await.as_deref(), Some(""), "an empty value is a value");
    let second = one(kv, member(vec![], vec![put("a", "1")])).await.expect("unguarded");
    assert!(second > first);
    let same = kv.get("a").await.expect("works").expect("there");
    assert_eq!(same.revision, second, "the same value again is a new revision");
    let gone = member(vec![], vec![Write::Delete("a".to_owned()), Write::Delete("none".to_owned())]);
    one(kv, gone).await.expect("unguarded");
    assert_eq!(value(kv, "a").await, None);
    let third = one(kv, member(vec![absent("a")], vec![put("a", "1")])).await.expect("absent");
    assert!(third > second, "a revision never comes back");
}

async fn guards_all_or_nothing(kv: &dyn Kv) {
    let first = one(kv, member(vec![absent("a")], vec![put("a", "1")])).await.expect("absent");
    let refused = one(kv, member(vec![absent("b"), absent("a")], vec![put("b", "2")])).await;
    assert!(matches!(&refused, Err(StoreError::Conflict { key }) if key == "a"), "{refused:?}");
    assert_eq!(value(kv, "b").await, None);
    let second = one(kv, member(vec![at("a", first)], vec![put("a", "2")])).await.expect("current");
    let refused = one(kv, member(vec![at("a", first)], vec![put("a", "3")])).await;
    assert!(refused.expect_err("stale").is_conflict());
    let refused = one(kv, member(vec![at("c", second)], vec![put("c", "3")])).await;
    assert!(refused.expect_err("never there").is_conflict());
    assert_eq!(value(kv, "a").await.as_deref(), Some("2"));
    one(kv, member(vec![at("a", second)], vec![])).await.expect("a guard alone may be asked");
}

async fn members_of_a_group_are_judged_in_order(kv: &dyn Kv) {
    let group = vec![
        member(vec![absent("a")], vec![put("a", "first")]),
        member(vec![absent("a")], vec![put("a", "second"), put("b", "second")]),
        member(vec![absent("c")], vec![Write::Delete("a".to_owned())]),
        member(vec![absent("a")], vec![put("a", "fourth")]),
    ];
    let answers = kv.commit(group).await.expect("works");
    let answers: Vec<Option<u64>> = answers.into_iter().map(Result::ok).collect();
    let [Some(first), None, Some(third), Some(fourth)] = answers[..] else {
        panic!("{answers:?}");
    };
    assert!(first < third && third < fourth, "each has its own revision");
    assert_eq!(value(kv, "a").await.as_deref(), Some("fourth"));
    assert_eq!(value(kv, "b").await, None);
}

async fn pages_by_prefix(kv: &dyn Kv) {
    let names = ["a", "b/1", "b/2", "b/3", "b0", "c"];
    let writes = names.iter().map(|name| put(name, name)).collect();
    one(kv, member(vec![], writes)).await.expect("unguarded");
    let page = async |after, limit| -> Vec<String> {
        let page = kv.page("b/", after, limit).await.expect("works");
        page.into_iter().map(|(key, _)| key).collect()
    };
    assert_eq!(page(None, 10).await, ["b/1", "b/2", "b/3"]);
    assert_eq!(page(None, 2).await, ["b/1", "b/2"]);
    assert_eq!(page(Some("b/2"), 2).await, ["b/3"]);
    assert_eq!(page(Some("b/3"), 2).await, [""; 0]);
    assert_eq!(page(Some("a"), 1).await, ["b/1"], "after a key before the prefix");
}

async fn limits_name_the_key(kv: &dyn Kv) {
    let many = |count: usize| (0..count).map(|n| format!("key/{n:03}"));
    let full = vec![b'x'; MAX_VALUE];
    let accepted = [
        member(many(64).map(Guard::Absent).collect(), many(64).map(|key| put(&key, "x")).collect()),
        member(vec![], vec![Write::Put("v".to_owned(), full.clone())]),
        member(vec![], vec![put(&"k".repeat(MAX_KEY), "x")]),
    ];
    for member in accepted {
        one(kv, member).await.expect("within the limits");
    }
    let over = vec![b'x'; MAX_VALUE + 1];
    let refused = [
        (member(many(65).map(Guard::Absent).collect(), vec![]), "key/064"),
        (member(vec![], many(65).map(|key| put(&key, "x")).collect()), "key/064"),
        (member(vec![], vec![Write::Put("big".to_owned(), over)]), "big"),
        (member(vec![], vec![put("twice", "1"), Write::Delete("twice".to_owned())]), "twice"),
        (member(vec![absent("twice"), at("twice", 1)], vec![]), "twice"),
        (member(vec![], vec![put("", "x")]), ""),
        (member(vec![], vec![put(&"k".repeat(MAX_KEY + 1), "x")]), "kkkk"),
        (member(vec![], many(17).map(|key| Write::Put(key, full.clone())).collect()), "key/000"),
    ];
    for (member, name) in refused {
        match one(kv, member).await {
            Err(StoreError::Limit { key, .. }) => assert!(key.starts_with(name), "{key}: {name}"),
            other => panic!("{name}: {other:?}"),
        }
    }
    let untouched = kv.get("key/000").await.expect("works").expect("there");
    assert_eq!(untouched.value, b"x");
}

async fn a_lease_fences(kv: &dyn Kv) {
    let lease = kv.acquire("lease/x", "c1", TTL).await.expect("works").expect("free");
    assert_eq!(kv.acquire("lease/x", "c1", TTL).await.expect("works"), Some(lease.clone()));
    assert_eq!(kv.acquire("lease/x", "c2", TTL).await.expect("works"), None);
    assert!(kv.renew(&lease).await.expect("works"));
    let fenced = || member(vec![Guard::Lease(lease.clone())], vec![put("a", "1")]);
    one(kv, fenced()).await.expect("held");
    kv.release(&lease).await.expect("works");
    assert!(!kv.renew(&lease).await.expect("works"));
    let refused = one(kv, fenced()).await.expect_err("released");
    assert_eq!(refused.code(), "lease-lost");
    let next = kv.acquire("lease/x", "c2", TTL).await.expect("works").expect("free again");
    assert_ne!(next.revision, lease.revision);
    one(kv, fenced()).await.expect_err("the old holder stays out");
    kv.release(&lease).await.expect("giving up what is lost is no error");
    assert!(kv.renew(&next).await.expect("works"), "and takes it from nobody");
}

async fn hints_follow_writes(kv: &dyn Kv) {
    let mut watch = kv.watch();
    let first = one(kv, member(vec![], vec![put("a", "1"), put("b", "1")])).await.expect("unguarded");
    one(kv, member(vec![absent("a")], vec![put("c", "1")])).await.expect_err("refused");
    let second = one(kv, member(vec![], vec![Write::Delete("a".to_owned())])).await.expect("unguarded");
    let mut hints = Vec::new();
    while hints.len() < 3 {
        let next = tokio::time::timeout(Duration::from_secs(10), watch.next()).await;
        hints.push(next.expect("in time").expect("open"));
    }
    let hint = |key: &str, revision| Hint::Key { key: key.into(), revision };
    assert_eq!(hints, [hint("a", first), hint("b", first), hint("a", second)]);
}

async fn audit_is_one_with_the_writes(kv: &dyn Kv) {
    let audited = |guards, writes, object: &str| Member {
        audit: Some(Draft { object: object.to_owned(), at: 5, ..Draft::default() }),
        ..member(guards, writes)
    };
    let group = vec![
        audited(vec![absent("a")], vec![put("a", "1")], "first"),
        audited(vec![absent("a")], vec![put("a", "2")], "refused"),
        audited(vec![], vec![], "second"),
    ];
    kv.commit(group).await.expect("works");
    one(kv, audited(vec![], vec![put("b", "1")], "third")).await.expect("unguarded");
    let page = kv.page(keys::AUDIT, None, 10).await.expect("works");
    let mut chain = Chain::empty("c1");
    let mut objects = Vec::new();
    for (key, entry) in page {
        let entry: AuditEntry = record::decode(&key, &entry.value).expect("an entry");
        assert_eq!(key, keys::audit("c1", entry.sequence));
        chain.follow(&entry).expect("a chain");
        objects.push(entry.object);
    }
    assert_eq!(objects, ["first", "second", "third"]);
}

macro_rules! suite {
    ($engine:ident, $fresh:expr) => {
        suite!($engine, $fresh,
            puts_gets_deletes, guards_all_or_nothing, members_of_a_group_are_judged_in_order,
            pages_by_prefix, limits_name_the_key, a_lease_fences, hints_follow_writes,
            audit_is_one_with_the_writes
        );
    };
    ($engine:ident, $fresh:expr, $($test:ident),+) => {
        mod $engine {
            $(
                #[tokio::test]
                async fn $test() {
                    let (kv, _home) = $fresh;
                    super::$test(&kv).await;
                }
            )+
        }
    };
}

suite!(sled, {
    let home = tempfile::tempdir().expect("a directory");
    (crate::store::Sled::create(&home.path().join("store"), "c1", 0).expect("new"), home)
});

suite!(
    simulated,
    (crate::store::simulated::Simulated::open(&crate::store::simulated::Disk::default(), "c1"), ())
);
