//! The fleet simulator: N agents over real mTLS against one real coordinator.
//!
//! A benchmark, not a test: it prints figures and ratios of one run and asserts
//! nothing about time. The coordinator is the real program with everything
//! switched on (policy, intent records, durable store, audit, metrics, tracing
//! sampled at 1 %); the agents are simulated in this process: real keys, CSRs,
//! signatures and streams, no containers. The crypto bound (verify a CSR, sign
//! a leaf) is measured in the same run.
//!
//! `cargo run --release -p reseal-tests --bin simulate -- --agents 1000 --certificates 10`

mod agent;
mod coordinator;
mod figures;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::Parser;
use reseal_proto::v1::{self, RotateRequest, RotationRequest, RotationState, Selection};

use agent::{Agent, Fleet};
use coordinator::Coordinator;
use figures::{Usage, crypto_bound, percentile};

/// Measures a coordinator with a simulated fleet.
#[derive(Parser)]
struct Options {
    /// Simulated agents.
    #[arg(long, default_value_t = 1000)]
    agents: usize,
    /// Certificates on each, at most 50.
    #[arg(long, default_value_t = 10)]
    certificates: usize,
    /// The coordinator; the sibling of this program when not said.
    #[arg(long)]
    reseal: Option<std::path::PathBuf>,
    /// Print the figures as JSON too.
    #[arg(long)]
    json: bool,
    /// Longest time for any phase, seconds.
    #[arg(long, default_value_t = 600)]
    patience: u64,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    ensure!((1..=50).contains(&options.certificates), "--certificates must be 1 to 50");
    ensure!((1..=50_000).contains(&options.agents), "--agents must be 1 to 50000");
    reseal_proto::channel::install_crypto();
    let bound = crypto_bound(Duration::from_secs(2))?;
    println!("crypto bound           {:.1} µs of CPU for verify + sign (one core, this run)", bound * 1e6);
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(run(options, bound))
}

async fn run(options: Options, bound: f64) -> anyhow::Result<()> {
    let patience = Duration::from_secs(options.patience);
    let certificates = options.agents * options.certificates;
    let coordinator = Coordinator::start(options.reseal.clone()).await?;
    let mut operator = coordinator.operator().await?;

    let began = Instant::now();
    let fleet = Fleet::new();
    let agents = agent::enrol(&coordinator, options.agents, &fleet).await?;
    println!("enrolled               {} agents in {:.1} s", agents.len(), began.elapsed().as_secs_f64());

    let before = coordinator.settled().await?;
    let began = Instant::now();
    let mut running = Vec::new();
    for agent in agents {
        running.push(tokio::spawn(Agent::run(Arc::new(agent), fleet.clone())));
    }
    fleet.connected.wait(options.agents, patience).await.context("not every agent connected")?;
    let connect = began.elapsed();
    let idle = coordinator.settled().await?;
    let per_agent = (idle.resident - before.resident) as f64 / options.agents as f64;
    println!("connected              {} agents in {:.2} s", options.agents, connect.as_secs_f64());
    println!("memory per idle agent  {:.1} KB (must: 48)", per_agent / 1e3);

    let (cpu, began) = (coordinator.usage()?, Instant::now());
    fleet.declare(options.certificates);
    fleet.issued.wait(certificates, patience).await.context("first issuance did not finish")?;
    fleet.acknowledged.wait(options.agents, patience).await.context("not every result was acknowledged")?;
    phase("first issuance", certificates, bound, began.elapsed(), coordinator.usage()? - cpu);
    let tracked = coordinator.settled().await?;

    fleet.issued.reset();
    fleet.acknowledged.reset();
    let (cpu, began) = (coordinator.usage()?, Instant::now());
    fleet.order_times.lock().expect("no agent panics").clear();
    let id = operator
        .rotate(RotateRequest {
            selection: Some(Selection { compromised_issuer: "a".into(), ..Selection::default() }),
            reason: "benchmark".into(),
            waves: "100%".into(),
            idempotency_key: vec![7; 16],
            ..RotateRequest::default()
        })
        .await?
        .into_inner()
        .id;
    let accepted = Instant::now();
    fleet.issued.wait(certificates, patience).await.context("the rotation did not finish")?;
    fleet.acknowledged.wait(options.agents, patience).await.context("not every result was acknowledged")?;
    let (took, used) = (began.elapsed(), coordinator.usage()? - cpu);
    let rotation = ended(&mut operator, &id, patience).await?;
    ensure!(
        rotation.state() == RotationState::Completed,
        "the rotation is {}: {}",
        rotation.state().as_str_name(),
        rotation.note
    );
    println!(
        "rotation accepted      after {:.2} s: chosen, recorded, revealed",
        (accepted - began).as_secs_f64()
    );
    phase("rotation", certificates, bound, took, used);
    let orders: Vec<Duration> = {
        let times = fleet.order_times.lock().expect("no agent panics");
        times.iter().map(|at| at.saturating_duration_since(accepted)).collect()
    };
    println!(
        "fan-out under load     p50 {:.0} ms, p99 {:.0} ms to {} agents, while they already work",
        percentile(&orders, 50).as_secs_f64() * 1e3,
        percentile(&orders, 99).as_secs_f64() * 1e3,
        orders.len()
    );

    fan_out(&mut operator, &coordinator, &fleet, options.agents, patience).await?;

    let after = coordinator.settled().await?;
    let per_certificate = |memory: &Usage| (memory.resident - idle.resident) as f64 / certificates as f64;
    println!(
        "memory per certificate {:.0} B after the first issuance, {:.0} B after the rotation (must: 800)",
        per_certificate(&tracked),
        per_certificate(&after)
    );
    println!("store                  {:.1} MB on disk", coordinator.store_bytes() as f64 / 1e6);
    if options.json {
        println!(
            "{}",
            serde_json::json!({
                "agents": options.agents,
                "certificates": certificates,
                "crypto_bound_us": bound * 1e6,
                "rotation_seconds": took.as_secs_f64(),
                "coordinator_us_per_certificate": used.cpu.as_secs_f64() * 1e6 / certificates as f64,
                "share_of_bound": bound * certificates as f64 / used.cpu.as_secs_f64(),
                "bytes_per_agent": per_agent,
                "bytes_per_certificate": per_certificate(&after),
            })
        );
    }
    for task in running {
        task.abort();
    }
    Ok(())
}

/// A wave that has nothing to do but to arrive: the agents only note the time.
async fn fan_out(
    operator: &mut coordinator::Operator,
    coordinator: &Coordinator,
    fleet: &Arc<Fleet>,
    agents: usize,
    patience: Duration,
) -> anyhow::Result<()> {
    fleet.pause_work(true);
    fleet.order_times.lock().expect("no agent panics").clear();
    coordinator.settled().await?;
    operator
        .rotate(RotateRequest {
            selection: Some(Selection { hosts: vec!["*".into()], ..Selection::default() }),
            reason: "benchmark of the fan-out".into(),
            waves: "100%".into(),
            idempotency_key: vec![8; 16],
            ..RotateRequest::default()
        })
        .await?;
    let accepted = Instant::now();
    let deadline = Instant::now() + patience;
    let orders = loop {
        let orders: Vec<Duration> = {
            let times = fleet.order_times.lock().expect("no agent panics");
            times.iter().map(|at| at.saturating_duration_since(accepted)).collect()
        };
        if orders.len() >= agents {
            break orders;
        }
        ensure!(Instant::now() < deadline, "only {} of {agents} agents were ordered", orders.len());
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    println!(
        "fan-out                p50 {:.0} ms, p99 {:.0} ms to {} agents (must at 10,000: p99 300 ms)",
        percentile(&orders, 50).as_secs_f64() * 1e3,
        percentile(&orders, 99).as_secs_f64() * 1e3,
        orders.len()
    );
    Ok(())
}

fn phase(name: &str, certificates: usize, bound: f64, took: Duration, used: Usage) {
    let each = used.cpu.as_secs_f64() / certificates as f64;
    println!(
        "{name:<22} {certificates} certificates in {:.2} s, {:.0} per second; coordinator {:.1} µs of CPU each, {:.0} % of the crypto bound (must: 60 %)",
        took.as_secs_f64(),
        certificates as f64 / took.as_secs_f64(),
        each * 1e6,
        100.0 * bound / each
    );
}

async fn ended(
    operator: &mut coordinator::Operator,
    id: &str,
    patience: Duration,
) -> anyhow::Result<v1::Rotation> {
    let deadline = Instant::now() + patience;
    loop {
        let shown = operator.show_rotation(RotationRequest { id: id.to_owned() }).await?.into_inner();
        let running = matches!(shown.state(), RotationState::Running | RotationState::Trailing);
        if !running || Instant::now() > deadline {
            return Ok(shown);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
