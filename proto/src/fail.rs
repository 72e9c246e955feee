//! Fail points: places between two lines where a test kills the process.
//!
//! [`point`] does nothing unless the environment variable `RESEAL_FAILPOINTS`
//! names the point, and the binaries call it only behind their `failpoints`
//! feature, which no release has. The kill is a real SIGKILL-like abort: no
//! destructor runs and no buffer is flushed.

use std::sync::OnceLock;

/// Kills the process here when `RESEAL_FAILPOINTS` (comma-separated) names this
/// point. `name*3` kills at the third passage.
pub fn point(name: &str) {
    static WANTED: OnceLock<Vec<Wanted>> = OnceLock::new();
    let wanted = WANTED.get_or_init(|| {
        let list = std::env::var("RESEAL_FAILPOINTS").unwrap_or_default();
        list.split(',').filter(|item| !item.is_empty()).map(Wanted::parse).collect()
    });
    for item in wanted.iter().filter(|item| item.name == name) {
        if item.passed.fetch_add(1, std::sync::atomic::Ordering::SeqCst) + 1 == item.at {
            std::process::abort();
        }
    }
}

struct Wanted {
    name: String,
    at: u32,
    passed: std::sync::atomic::AtomicU32,
}

impl Wanted {
    fn parse(item: &str) -> Self {
        let (name, at) = match item.split_once('*') {
            Some((name, at)) => (name, at.parse().unwrap_or(1)),
            None => (item, 1),
        };
        Self { name: name.to_owned(), at, passed: 0.into() }
    }
}
