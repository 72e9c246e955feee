//! Survives a power loss: watches the system calls of a process that commits.
//! Before each acknowledgement, everything written to the database file must
//! have been followed by an fdatasync of it that succeeded. (kill -9 proves
//! nothing here, since the kernel keeps what a killed process wrote.)

use reseal::store::record::Counter;
use reseal::store::{Commit, Store};

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::Command;

/// Tells the child where to write.
const STORE: &str = "RESEAL_TEST_STORE";
const COMMITS: usize = 25;

#[test]
fn fdatasync_comes_between_the_write_and_the_acknowledgement() {
    let home = tempfile::tempdir().expect("a directory");
    let path = home.path().join("store");
    let trace = home.path().join("trace");
    drop(Store::create(&path, "c1").expect("new"));
    let traced = Command::new("strace")
        .args(["-f", "-y", "-e", "trace=write,pwrite64,fdatasync", "-o"])
        .arg(&trace)
        .arg(std::env::current_exe().expect("this test"))
        .args(["--exact", "commits_one_by_one", "--ignored", "--nocapture"])
        .env(STORE, &path)
        .output()
        .unwrap_or_else(|error| panic!("strace does not run ({error}): apt-get install -y strace"));
    assert!(traced.status.success(), "{}", String::from_utf8_lossy(&traced.stderr));
    let trace = std::fs::read_to_string(trace).expect("a trace");
    let mut disk = Disk::default();
    trace.lines().for_each(|line| disk.observe(line));
    assert_eq!(disk.acknowledged, COMMITS, "all acknowledgements were seen");
}

/// What the database file has been through. Writes and syncs are counted when
/// they begin and when they end, because a call of one thread may be interrupted
/// in the trace by those of another.
#[derive(Default)]
struct Disk {
    begun: usize,
    ended: usize,
    /// Writes that a sync has made durable: those that had ended when it began.
    durable: usize,
    /// Syncs under way, by thread, and the writes they will have made durable.
    syncing: BTreeMap<String, usize>,
    /// Writes begun before the last acknowledgement.
    told: usize,
    acknowledged: usize,
}

impl Disk {
    fn observe(&mut self, line: &str) {
        let (thread, call) = line.split_once(' ').expect("thread and call");
        let call = call.trim_start();
        let of_database = call.contains("/store/sled/db>");
        let begins = |name: &str| of_database && call.starts_with(&format!("{name}("));
        let ends = |name: &str| {
            call.starts_with(&format!("<... {name} resumed>"))
                || (begins(name) && !call.ends_with("<unfinished ...>"))
        };
        let succeeds = || call.rsplit_once("= ").is_some_and(|(_, result)| !result.starts_with('-'));
        if begins("pwrite64") {
            self.begun += 1;
        }
        if ends("pwrite64") {
            assert!(succeeds(), "{line}");
            self.ended += 1;
        }
        if begins("fdatasync") {
            self.syncing.insert(thread.to_owned(), self.ended);
        }
        if ends("fdatasync") {
            assert!(succeeds(), "{line}");
            let covered = self.syncing.remove(thread).expect("it began");
            self.durable = covered.max(self.durable);
        }
        if call.starts_with("write(") && call.contains("acknowledged") {
            assert!(self.begun > self.told, "acknowledged without a write: {line}");
            assert_eq!(self.durable, self.begun, "acknowledged before it was durable: {line}");
            self.told = self.begun;
            self.acknowledged += 1;
        }
    }
}

#[tokio::test]
#[ignore = "the child of the test above"]
async fn commits_one_by_one() {
    let path = std::env::var(STORE).expect("started by the test above");
    let store = Store::open(Path::new(&path), "c1").expect("opens");
    for n in 0..COMMITS {
        let value = Counter { value: n as u64 };
        store.commit(Commit::new().put(format!("n/{n}"), &value)).await.expect("commits");
        let mut out = std::io::stdout().lock();
        writeln!(out, "acknowledged {n}").and_then(|()| out.flush()).expect("told");
    }
}
