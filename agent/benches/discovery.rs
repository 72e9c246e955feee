//! How fast the search for certificates is: a benchmark, not a test.
//!
//! `cargo bench -p reseal-agent --bench discovery`, or with `-- MOUNTS FILES`
//! (200 mounts of 100 files each). It makes a tree like the mounts of a host:
//! one file in a hundred is a certificate or a key, the others are what
//! services keep. Prints files a second for each second of processor time, when
//! everything is read and when nothing changed, from a warm page cache.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use reseal_agent::app;
use reseal_agent::config::Config;
use reseal_agent::discover::Container;
use reseal_agent::discover::mounts::Mount;
use reseal_agent::discover::search::{Picture, Search};
use rustix::time::{ClockId, clock_gettime};

fn main() {
    let mut numbers = std::env::args().skip(1).filter_map(|word| word.parse::<usize>().ok());
    let (mounts, files) = (numbers.next().unwrap_or(200), numbers.next().unwrap_or(100));
    let dir = tempfile::tempdir().expect("a directory for the tree");
    let containers: Vec<Container> = (0..mounts).map(|number| container(dir.path(), number, files)).collect();
    let mut config = Config::load(None, Some(dir.path())).expect("the defaults");
    config.host_root = "/".into();
    println!("{mounts} containers, {} files", mounts * files);
    // Once unmeasured: the page cache is warm afterwards.
    Search::new(&config).run(&containers, None, later());
    for _ in 0..5 {
        let mut search = Search::new(&config);
        measured("everything read", || search.run(&containers, None, later()));
        measured("nothing changed", || search.run(&containers, None, later()));
    }
}

/// What was just written counts as old, as it is on a host.
fn later() -> i64 {
    app::now() + 60
}

fn container(root: &Path, number: usize, files: usize) -> Container {
    let source = root.join(format!("mount-{number:04}"));
    for directory in ["", "conf", "data", "data/deeper"] {
        fs::create_dir_all(source.join(directory)).expect("a directory");
    }
    let (certificate, key) = pair(number);
    for file in 0..files {
        let directory = ["", "conf", "data", "data/deeper"][file % 4];
        let (name, bytes) = match file {
            0 => ("site.crt".to_owned(), certificate.clone().into_bytes()),
            1 => ("site.key".to_owned(), key.clone().into_bytes()),
            // Text, and bytes that are none, from a few bytes to more than is read of them.
            _ => {
                let size = 1usize << (4 + file % 13);
                let byte = if file % 2 == 0 { b'a' } else { 0xee };
                (format!("file-{file}"), vec![byte; size])
            }
        };
        fs::write(source.join(directory).join(name), bytes).expect("a file");
    }
    Container {
        name: format!("container-{number:04}"),
        id: format!("{number:064}"),
        mounts: vec![Mount {
            source: source.display().to_string(),
            destination: "/data".into(),
            kind: "bind".into(),
        }],
        ..Container::default()
    }
}

fn pair(number: usize) -> (String, String) {
    let key = rcgen::KeyPair::generate().expect("a key");
    let params = rcgen::CertificateParams::new(vec![format!("site-{number}.test")]).expect("a name");
    (params.self_signed(&key).expect("a certificate").pem(), key.serialize_pem())
}

fn measured(what: &str, run: impl FnOnce() -> Picture) {
    let (begun, processor) = (Instant::now(), processor_time());
    let picture = run();
    let (took, spent) = (begun.elapsed(), processor_time() - processor);
    println!(
        "{what}: {} files, {} opened, {} certificates; {:.1} ms, {:.1} ms of processor, {:.0} files/s and core",
        picture.files,
        picture.opened,
        picture.paired.discovered.len(),
        took.as_secs_f64() * 1e3,
        spent.as_secs_f64() * 1e3,
        picture.files as f64 / spent.as_secs_f64()
    );
}

fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or_default())
}
