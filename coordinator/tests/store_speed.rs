//! How fast the store commits: a benchmark, not a test. Prints records per
//! second and CPU per record for some numbers of concurrent committers.
//! `cargo test -p reseal-coordinator --test store_speed -- --ignored --nocapture`

use reseal::store::record::Fleet;
use reseal::store::{Commit, Store};

use std::time::Instant;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a benchmark"]
async fn commits_per_second() {
    for (committers, records) in [(1, 2_000), (10, 10_000), (100, 50_000), (1_000, 100_000)] {
        let home = tempfile::tempdir().expect("a directory");
        let store = Store::create(&home.path().join("store"), "c1").expect("new");
        let (begun, cpu) = (Instant::now(), cpu_seconds());
        let tasks: Vec<_> = (0..committers)
            .map(|task| {
                let store = store.clone();
                tokio::spawn(async move {
                    let record = Fleet { control_ca: vec![7; 1_000], ..Fleet::default() };
                    for n in 0..records / committers {
                        let key = format!("batch/host-{task:05}/{n:05}");
                        let commit = Commit::new().absent(key.as_str()).put(key, &record);
                        store.commit(commit).await.expect("absent");
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.expect("no panic");
        }
        let (seconds, cpu) = (begun.elapsed().as_secs_f64(), cpu_seconds() - cpu);
        println!(
            "{committers:5} committers, 1 KB: {:7.0} records/s, {:5.1} µs of CPU per record",
            f64::from(records) / seconds,
            cpu * 1e6 / f64::from(records)
        );
    }
}

/// CPU time of this process so far, user and system.
fn cpu_seconds() -> f64 {
    /// Unit of /proc, the same on every Linux of today.
    const TICKS: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/self/stat").expect("Linux");
    let (_, numbers) = stat.rsplit_once(')').expect("a name in brackets");
    let fields = numbers.split_whitespace().skip(11).take(2);
    fields.map(|ticks| ticks.parse::<f64>().expect("a number")).sum::<f64>() / TICKS
}
