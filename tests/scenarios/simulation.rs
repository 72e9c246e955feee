//! Thousands of histories of a fleet, each from one number.
//!
//! `RESEAL_SEEDS=from..to` says which; without it as many as fit into a minute.
//! A seed that fails is printed with the end of its history and the command
//! that brings it back; alone, it is printed with all of it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use reseal::simulation::Fleet;
use reseal_tests::simulation::{Outcome, make_fleet, run};

/// How long seeds are begun when nobody says which.
const BUDGET: Duration = Duration::from_secs(60);
/// Lines of the history that are printed.
const TAIL: usize = 150;

/// Which seeds, and until when they are begun.
struct Wanted {
    from: u64,
    to: u64,
    until: Instant,
}

impl Wanted {
    fn read() -> Result<Self> {
        let Ok(text) = std::env::var("RESEAL_SEEDS") else {
            return Ok(Self { from: 0, to: u64::MAX, until: Instant::now() + BUDGET });
        };
        let (from, to) = text.split_once("..").context("RESEAL_SEEDS is from..to")?;
        let until = Instant::now() + Duration::from_secs(365 * 86_400);
        Ok(Self { from: from.parse()?, to: to.parse()?, until })
    }
}

#[test]
fn whatever_happens_the_rules_hold() -> Result<()> {
    let Wanted { from, to, until } = Wanted::read()?;
    let fleet = Arc::new(make_fleet()?);
    let next = AtomicU64::new(from);
    let failed: Mutex<BTreeMap<u64, Outcome>> = Mutex::default();
    let seen: Mutex<BTreeMap<&'static str, u64>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while Instant::now() < until && failed.lock().expect("no panic").is_empty() {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= to {
                        return;
                    }
                    let outcome = run(seed, fleet.clone()).unwrap_or_else(|error| Outcome {
                        history: Vec::new(),
                        violation: Some(format!("the simulation itself failed: {error:#}")),
                        seen: BTreeMap::new(),
                    });
                    let mut all = seen.lock().expect("no panic");
                    for (what, count) in &outcome.seen {
                        *all.entry(what).or_insert(0) += count;
                    }
                    if outcome.violation.is_some() {
                        failed.lock().expect("no panic").insert(seed, outcome);
                    }
                }
            });
        }
    });
    let to = next.into_inner().min(to);
    println!("seeds {from}..{to}: {:?}", seen.into_inner().expect("no panic"));
    if let Some((seed, outcome)) = failed.into_inner().expect("no panic").into_iter().next() {
        let shown = if to == from + 1 { usize::MAX } else { TAIL };
        let begin = outcome.history.len().saturating_sub(shown);
        for line in &outcome.history[begin..] {
            println!("{line}");
        }
        println!("again: RESEAL_SEEDS={seed}..{} tests/run simulation", seed + 1);
        bail!("seed {seed}: {}", outcome.violation.unwrap_or_default());
    }
    Ok(())
}

#[test]
fn one_seed_has_one_history() -> Result<()> {
    let lives = |fleet: &Arc<Fleet>| -> Result<Vec<Vec<String>>> {
        (0..12).map(|seed| Ok(run(1_000_000 + seed, fleet.clone())?.history)).collect()
    };
    // Two fleets: keys, serials and signatures differ, what happens does not.
    let (first, second) = (lives(&Arc::new(make_fleet()?))?, lives(&Arc::new(make_fleet()?))?);
    for (one, other) in first.iter().zip(&second) {
        let differ = one.iter().zip(other).position(|(one, other)| one != other);
        ensure!(
            one == other,
            "the histories part at line {differ:?}: {:?} and {:?}",
            differ.map(|at| &one[at]),
            differ.map(|at| &other[at])
        );
        ensure!(one.len() > 50, "nothing happened: {one:#?}");
    }
    Ok(())
}
