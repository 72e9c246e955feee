//! A disk that fills up: new work is refused loudly, what is there stays
//! readable, room given back is used at once, and with no room at all the
//! ballast file is what lets the store be opened again. Runs on a small file
//! system of its own, in a mount namespace of its own.

use reseal::store::record::Fleet;
use reseal::store::{Commit, Store, StoreError};

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;
use std::process::Command;

/// Tells the child where its small file system is.
const DISK: &str = "RESEAL_TEST_DISK";

#[test]
fn a_full_disk_refuses_new_work_and_keeps_the_old() {
    let home = tempfile::tempdir().expect("a directory");
    let script = "mount -t tmpfs -o size=128m tmpfs \"$RESEAL_TEST_DISK\" && exec \"$0\" \"$@\"";
    let ran = Command::new("unshare")
        .args(["--mount", "--map-root-user", "sh", "-c", script])
        .arg(std::env::current_exe().expect("this test"))
        .args(["--exact", "fills_its_disk", "--ignored", "--nocapture"])
        .env(DISK, home.path())
        .output()
        .unwrap_or_else(|error| panic!("unshare does not run ({error}): apt-get install -y util-linux"));
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success(), "{said}{}", String::from_utf8_lossy(&ran.stderr));
    assert!(said.contains("1 passed"), "{said}");
}

fn large(n: i64) -> Fleet {
    Fleet { control_ca: vec![7; 60_000], created_at: n, ..Fleet::default() }
}

/// Commits until refused; the number that was acknowledged so far.
async fn fill(store: &Store, mut n: i64) -> (i64, StoreError) {
    loop {
        match store.commit(Commit::new().put(format!("large/{n:06}"), &large(n))).await {
            Ok(_) => n += 1,
            Err(error) => return (n, error),
        }
    }
}

async fn check(store: &Store, acknowledged: i64) {
    let records = store.range::<Fleet>("large/").await.expect("reads");
    assert_eq!(records.len() as i64, acknowledged);
    assert!(records.iter().enumerate().all(|(n, (_, found))| found.value == large(n as i64)));
}

/// Takes all room there is.
fn exhaust(path: &Path) {
    let mut filler = File::create(path).expect("made");
    let ended = io::copy(&mut io::repeat(1).take(1 << 30), &mut filler).expect_err("no room");
    assert_eq!(ended.kind(), io::ErrorKind::StorageFull);
}

#[tokio::test]
#[ignore = "the child of the test above"]
async fn fills_its_disk() {
    let disk = std::env::var(DISK).expect("started by the test above");
    let (path, filler) = (Path::new(&disk).join("store"), Path::new(&disk).join("filler"));
    let store = Store::create(&path, "c1").expect("new");
    fs::write(&filler, vec![1; 40 << 20]).expect("written");

    let (first, full) = fill(&store, 0).await;
    assert!(first > 50, "{first} found room");
    assert_eq!(full.code(), "disk-full");
    assert!(full.to_string().contains("ballast"), "{full}");
    check(&store, first).await;
    fs::remove_file(&filler).expect("removed");
    let (second, full) = fill(&store, first).await;
    assert!(second > first + 50, "the room given back is used: {first}, {second}");
    assert_eq!(full.code(), "disk-full");
    check(&store, second).await;
    drop(store);

    exhaust(&filler);
    let full = Store::open(&path, "c1").err().expect("no room to open it");
    assert_eq!(full.code(), "disk-full");
    fs::remove_file(path.join("ballast")).expect("there");
    let store = Store::open(&path, "c1").expect("opens, thanks to the ballast");
    check(&store, second).await;
    assert_eq!(fill(&store, second).await.0, second, "still no room for new work");
    fs::remove_file(&filler).expect("removed");
    drop(store);
    let store = Store::open(&path, "c1").expect("opens");
    check(&store, second).await;
}
