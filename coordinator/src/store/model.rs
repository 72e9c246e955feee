//! Random groups of commits against the simplest thing that could be right: a map.

use super::error::StoreError;
use super::kv::{Guard, Kv, Member, Write};
use super::{Hint, Sled, keys};

use proptest::prelude::*;

use std::collections::BTreeMap;

/// What a guard asks for, before revisions are known.
#[derive(Clone, Debug)]
enum Wish {
    Absent(u8),
    Current(u8),
    Stale(u8),
}

/// Guards and writes of one member; a write without a value deletes.
type Wanted = (Vec<Wish>, Vec<(u8, Option<Vec<u8>>)>);

#[derive(Clone, Debug)]
enum Step {
    Group(Vec<Wanted>),
    Page { after: Option<u8>, limit: usize },
    Reopen,
}

fn key(n: u8) -> String {
    format!("k/{n:02}")
}

fn step() -> impl Strategy<Value = Step> {
    let number = 0..12u8;
    let wish = prop_oneof![
        1 => number.clone().prop_map(Wish::Absent),
        4 => number.clone().prop_map(Wish::Current),
        1 => number.clone().prop_map(Wish::Stale),
    ];
    let value = prop::option::weighted(0.7, prop::collection::vec(any::<u8>(), 0..200));
    let writes = prop::collection::vec((number.clone(), value), 0..4);
    let group = prop::collection::vec((prop::collection::vec(wish, 0..3), writes), 1..6);
    let page = (prop::option::of(number), 1..20usize);
    prop_oneof![
        12 => group.prop_map(Step::Group),
        4 => page.prop_map(|(after, limit)| Step::Page { after, limit }),
        1 => Just(Step::Reopen),
    ]
}

type Model = BTreeMap<String, (u64, Vec<u8>)>;

/// The guards a wish stands for in the engine's present state.
fn guard(wish: &Wish, model: &Model) -> Guard {
    let revision = |n: u8| model.get(&key(n)).map_or(1, |(revision, _)| *revision);
    match wish {
        Wish::Absent(n) => Guard::Absent(key(*n)),
        Wish::Current(n) => Guard::Revision(key(*n), revision(*n)),
        Wish::Stale(n) => Guard::Revision(key(*n), revision(*n) - 1),
    }
}

fn holds(guard: &Guard, model: &Model) -> bool {
    match guard {
        Guard::Absent(key) => !model.contains_key(key),
        Guard::Revision(key, revision) => model.get(key).is_some_and(|(now, _)| now == revision),
        Guard::Lease(_) => false,
    }
}

fn members(wanted: &[Wanted], model: &Model) -> Vec<Member> {
    let member = |(wishes, writes): &Wanted| {
        let guards: BTreeMap<String, Guard> = wishes
            .iter()
            .map(|wish| guard(wish, model))
            .map(|guard| (guard.key().to_owned(), guard))
            .collect();
        let writes: BTreeMap<String, Write> = writes
            .iter()
            .map(|(n, value)| match value {
                Some(value) => (key(*n), Write::Put(key(*n), value.clone())),
                None => (key(*n), Write::Delete(key(*n))),
            })
            .collect();
        Member { guards: guards.into_values().collect(), writes: writes.into_values().collect(), audit: None }
    };
    wanted.iter().map(member).collect()
}

async fn group(engine: &Sled, model: &mut Model, group: Vec<Member>) {
    let mut watch = engine.watch();
    let answers = engine.commit(group.clone()).await.expect("the engine works");
    let mut hints = Vec::new();
    let mut newest = model.values().map(|(revision, _)| *revision).max().unwrap_or(0);
    for (member, answer) in group.iter().zip(answers) {
        if !member.guards.iter().all(|guard| holds(guard, model)) {
            assert!(answer.is_err_and(|error| error.is_conflict()), "{member:?}");
            continue;
        }
        let revision = answer.unwrap_or_else(|error: StoreError| panic!("{error}: {member:?}"));
        for write in &member.writes {
            assert!(revision > newest, "a revision above all before");
            hints.push(Hint::Key { key: write.key().into(), revision });
            match write {
                Write::Put(key, value) => model.insert(key.clone(), (revision, value.clone())),
                Write::Delete(key) => model.remove(key),
            };
        }
        if !member.writes.is_empty() {
            newest = revision;
        }
    }
    for hint in hints {
        assert_eq!(watch.ready(), Some(hint));
    }
    assert_eq!(watch.ready(), None);
}

async fn check(engine: &Sled, model: &Model, after: Option<&str>, limit: usize) {
    let page = engine.page("k/", after, limit).await.expect("the engine works");
    let page: Vec<_> = page.into_iter().map(|(key, entry)| (key, (entry.revision, entry.value))).collect();
    let later = model.iter().filter(|(key, _)| after.is_none_or(|after| key.as_str() > after));
    let expected: Vec<_> = later.take(limit).map(|(key, value)| (key.clone(), value.clone())).collect();
    assert_eq!(page, expected);
}

async fn run(steps: Vec<Step>) {
    let home = tempfile::tempdir().expect("a directory");
    let path = home.path().join("store");
    let mut engine = Sled::create(&path, "c1", 0).expect("new");
    let mut model = Model::new();
    for step in steps {
        match step {
            Step::Group(wanted) => {
                let members = members(&wanted, &model);
                group(&engine, &mut model, members).await;
            }
            Step::Page { after, limit } => {
                check(&engine, &model, after.map(key).as_deref(), limit).await;
            }
            Step::Reopen => {
                let epoch = engine.epoch();
                drop(engine);
                engine = Sled::open(&path, "c1").expect("reopens");
                assert_eq!(engine.epoch(), epoch + 1);
            }
        }
        check(&engine, &model, None, usize::MAX).await;
    }
    for n in 0..12 {
        let entry = engine.get(&key(n)).await.expect("the engine works");
        assert_eq!(entry.map(|entry| (entry.revision, entry.value)), model.get(&key(n)).cloned());
    }
    assert!(engine.get(keys::EPOCH).await.expect("the engine works").is_some());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_a_map(steps in prop::collection::vec(step(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(run(steps));
    }
}
