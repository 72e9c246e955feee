//! A busy store does not grow in memory: what replaced pages leave behind is
//! freed. Alone in its process, because it measures the process.

use reseal::store::Sled;
use reseal::store::kv::{Kv, Member, Write};

#[tokio::test]
async fn memory_stays_flat_under_writes() {
    let home = tempfile::tempdir().expect("a directory");
    let engine = Sled::create(&home.path().join("store"), "c1", 0).expect("new");
    let write = async |rounds: u8| {
        for round in 0..rounds {
            let member = |n: u32| Member {
                writes: vec![Write::Put(format!("host/web-{n:04}"), vec![round; 300])],
                ..Member::default()
            };
            for answer in engine.commit((0..1000).map(member).collect()).await.expect("works") {
                answer.expect("no guard");
            }
        }
    };
    write(60).await;
    let before = resident();
    write(250).await;
    let after = resident();
    // Without the sweep after each group it is 80 MiB.
    assert!(after < before + 24 * 1024, "grew from {before} to {after} KiB in 250,000 writes");
}

/// Resident memory in KiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("VmRSS");
    line.split_whitespace().nth(1).expect("a number").parse().expect("a number")
}
