//! Kills a process that commits with -9, many times, and looks at what is left:
//! every acknowledged record is there, no commit is there by half, and the
//! audit chain holds. (That a power loss is survived too is shown by
//! `store_power.rs`.) `RESEAL_CRASH_CYCLES` asks for more cycles than 20.

use reseal::store::audit::Chain;
use reseal::store::record::{AuditEntry, Counter};
use reseal::store::{AuditDraft, Commit, Store, keys};

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Tells the child where to write.
const STORE: &str = "RESEAL_TEST_STORE";
const WRITERS: u64 = 40;

#[test]
fn kill_9_loses_nothing_acknowledged() {
    let cycles = std::env::var("RESEAL_CRASH_CYCLES").map_or(20, |cycles| cycles.parse().expect("a number"));
    let home = tempfile::tempdir().expect("a directory");
    let path = home.path().join("store");
    drop(Store::create(&path, "c1").expect("new"));
    let mut acknowledged = BTreeMap::new();
    let mut epoch = 0;
    for cycle in 0..cycles {
        let mut child = Killed(child(&path));
        let output = BufReader::new(child.0.stdout.take().expect("piped"));
        let wanted = 1 + cycle * 173 % 2000;
        let mut seen = 0;
        for line in output.lines() {
            let line = line.expect("text");
            // The harness prints its own words in front of the first one.
            let Some((_, words)) = line.split_once("acknowledged ") else { continue };
            let (writer, value) = words.split_once(' ').expect("two words");
            let value: u64 = value.parse().expect("a number");
            let newest = acknowledged.entry(writer.to_owned()).or_insert(0);
            *newest = value.max(*newest);
            seen += 1;
            if seen == wanted {
                child.0.kill().expect("still running");
            }
        }
        assert!(seen >= wanted, "the child ended by itself after {seen} of {wanted}");
        drop(child);
        epoch = check(&path, &acknowledged, epoch);
    }
    let records: u64 = acknowledged.values().sum();
    println!("{cycles} kills, {records} acknowledged records, none lost");
}

/// What must be true of the store after each kill; returns its epoch.
fn check(path: &Path, acknowledged: &BTreeMap<String, u64>, epoch: u64) -> u64 {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        let store = Store::open(path, "c1").expect("opens after a kill");
        assert!(store.epoch() > epoch);
        let mut commits = 0;
        for (writer, newest) in acknowledged {
            let get = async |half: &str| {
                let key = format!("{half}/{writer}");
                let found = store.get::<Counter>(&key).await.expect("reads");
                found.unwrap_or_else(|| panic!("{key} is lost"))
            };
            let (left, right) = (get("left").await, get("right").await);
            assert!(left.value.value >= *newest, "{writer}: {newest} was acknowledged, {left:?} is there");
            assert_eq!(left, right, "a commit is there by half");
            commits += left.value.value;
        }
        let mut chain = Chain::empty("c1");
        for (_, entry) in store.range::<AuditEntry>(keys::AUDIT).await.expect("reads") {
            chain.follow(&entry.value).expect("the chain holds");
        }
        assert!(chain.sequence() >= commits, "an entry for each commit");
        store.epoch()
    })
}

fn child(path: &Path) -> Child {
    Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "commits_until_killed", "--ignored", "--nocapture"])
        .env(STORE, path)
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts")
}

/// Dead and reaped when dropped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the child of the test above"]
async fn commits_until_killed() {
    let path = std::env::var(STORE).expect("started by the test above");
    let store = Store::open(Path::new(&path), "c1").expect("opens");
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let store = store.clone();
            tokio::spawn(async move {
                let (left, right) = (format!("left/{writer}"), format!("right/{writer}"));
                let mut current = store.get::<Counter>(&left).await.expect("reads");
                loop {
                    let guarded = match &current {
                        Some(found) => Commit::new().at(&left, found.revision),
                        None => Commit::new().absent(&left),
                    };
                    let value = Counter { value: current.map_or(0, |found| found.value.value) + 1 };
                    let commit = guarded
                        .put(&left, &value)
                        .put(&right, &value)
                        .audit(AuditDraft { object: left.clone(), ..AuditDraft::default() });
                    let revision = store.commit(commit).await.expect("commits");
                    let mut out = std::io::stdout().lock();
                    let told =
                        writeln!(out, "acknowledged {writer} {}", value.value).and_then(|()| out.flush());
                    if told.is_err() {
                        return;
                    }
                    current = Some(reseal::store::Versioned { revision, value });
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.expect("no panic");
    }
}
