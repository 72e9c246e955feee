//! The fleet simulator: N agents over real mTLS against one real coordinator.
//!
//! A benchmark, not a test: it prints figures and ratios of one run and asserts
//! nothing about time. The coordinator is the real program with everything
//! switched on (policy, intent records, durable store, audit, metrics, tracing
//! sampled at 1 %); the agents are simulated in this process: real keys, CSRs,
//! signatures and streams, no containers. The crypto bound (verify a CSR, sign
//! a leaf) is measured in the same run.
//!
//! ```text
//! cargo build --release --bin reseal --bin simulate
//! target/release/simulate --agents 1000 --certificates 10
//! ```

mod agent;
mod figures;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::Parser;
use reseal_proto::v1::{RotateRequest, Rotation, RotationRequest, RotationState, Selection};
use reseal_tests::wire::{Collector, Coordinator, Operator, Settings};
use tokio::sync::watch;

use agent::Fleet;
use figures::{Usage, crypto_bound, directory_bytes, percentile, settled, usage};

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
    reseal: Option<PathBuf>,
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
    println!(
        "crypto bound           {:.1} µs of CPU to verify a CSR and sign a leaf (every core busy, this run)",
        bound * 1e6
    );
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(run(options, bound))
}

async fn run(options: Options, bound: f64) -> anyhow::Result<()> {
    let patience = Duration::from_secs(options.patience);
    let certificates = options.agents * options.certificates;
    let program = match &options.reseal {
        Some(program) => program.clone(),
        None => std::env::current_exe()?.with_file_name("reseal"),
    };
    ensure!(program.exists(), "{} is not built: cargo build --release --bin reseal", program.display());
    let mut coordinator = Coordinator::start(Settings {
        program,
        fleet: "simulated".into(),
        log_level: "warn".into(),
        tracing: Some((Collector::start().await?.1, 0.01)),
    })
    .await?;
    let began = Instant::now();
    let agents = agent::enrol(&coordinator, options.agents).await?;
    println!("enrolled               {} agents in {:.1} s", agents.len(), began.elapsed().as_secs_f64());

    // A process that has done nothing yet: what hosts and records cost is measured against it.
    coordinator.kill();
    coordinator.run(&[])?;
    let mut operator = coordinator.operator().await?;
    let fresh = settled(coordinator.pid()).await?;

    let fleet = Arc::new(Fleet::default());
    let (away, watched) = watch::channel(false);
    let began = Instant::now();
    let running: Vec<_> = agents
        .into_iter()
        .map(|agent| tokio::spawn(agent::run(agent, fleet.clone(), watched.clone())))
        .collect();
    fleet.connected.wait(options.agents, patience).await.context("not every agent connected")?;
    println!("connected              {} agents in {:.2} s", options.agents, began.elapsed().as_secs_f64());
    let idle = settled(coordinator.pid()).await?;
    let per_agent = (idle.resident - fresh.resident) as f64 / options.agents as f64;
    println!("memory per idle agent  {:.1} KB (must: 48)", per_agent / 1e3);

    let (cpu, began) = (usage(coordinator.pid())?, Instant::now());
    fleet.declare(options.certificates);
    everything(&fleet, &options, patience).await.context("first issuance")?;
    phase("first issuance", certificates, bound, began.elapsed(), usage(coordinator.pid())? - cpu);

    let compromised = Selection { compromised_issuer: "a".into(), ..Selection::default() };
    let everywhere = Selection { hosts: vec!["*".into()], ..Selection::default() };
    let mut shares = Vec::new();
    let mut memory = Vec::new();
    for (round, selection) in [compromised, everywhere.clone(), everywhere.clone()].into_iter().enumerate() {
        fleet.forget();
        let (cpu, began) = (usage(coordinator.pid())?, Instant::now());
        let id = rotate(&mut operator, selection).await?;
        let accepted = Instant::now();
        everything(&fleet, &options, patience).await.context("rotation")?;
        let (took, used) = (began.elapsed(), usage(coordinator.pid())? - cpu);
        let rotation = ended(&mut operator, &id, patience).await?;
        let state = rotation.state();
        ensure!(state == RotationState::Completed, "{id} is {}: {}", state.as_str_name(), rotation.note);
        phase(&format!("rotation {}", round + 1), certificates, bound, took, used);
        shares.push(bound * certificates as f64 / used.cpu.as_secs_f64());
        if round == 0 {
            println!(
                "  accepted             after {:.2} s: chosen, recorded, revealed",
                (accepted - began).as_secs_f64()
            );
            orders("  fan-out under load", &fleet.orders_since(accepted));
        }
        memory.push(settled(coordinator.pid()).await?.resident);
    }
    let megabytes: Vec<String> = memory.iter().map(|bytes| format!("{:.0}", *bytes as f64 / 1e6)).collect();
    println!(
        "memory after each      {} MB in all, with every session open (flat: no growth)",
        megabytes.join(", ")
    );

    // Everything again from the disk, nobody connected: what the records cost.
    away.send_replace(true);
    coordinator.kill();
    coordinator.run(&[])?;
    let mut operator = coordinator.operator().await?;
    let records = settled(coordinator.pid()).await?;
    let per_certificate = (records.resident - fresh.resident) as f64 / certificates as f64;
    println!("memory per certificate {per_certificate:.0} B (must: 800)");
    fleet.connected.reset();
    away.send_replace(false);
    let began = Instant::now();
    fleet.connected.wait(options.agents, patience).await.context("not every agent came back")?;
    println!("back after a kill -9   {} agents in {:.2} s", options.agents, began.elapsed().as_secs_f64());
    settled(coordinator.pid()).await?;

    // A wave that has nothing to do but to arrive: the agents only note the time.
    fleet.pause_work();
    fleet.forget();
    rotate(&mut operator, everywhere).await?;
    let accepted = Instant::now();
    let deadline = accepted + patience;
    while fleet.orders_since(accepted).len() < options.agents {
        ensure!(Instant::now() < deadline, "only {} agents were ordered", fleet.orders_since(accepted).len());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    orders("fan-out, idle fleet", &fleet.orders_since(accepted));
    println!("store                  {:.1} MB on disk", directory_bytes(&coordinator.data()) as f64 / 1e6);
    if options.json {
        println!(
            "{}",
            serde_json::json!({
                "agents": options.agents,
                "certificates": certificates,
                "crypto_bound_us": bound * 1e6,
                "share_of_bound": shares,
                "bytes_per_agent": per_agent,
                "bytes_per_certificate": per_certificate,
                "resident_after_rotations": memory,
            })
        );
    }
    for task in running {
        task.abort();
    }
    Ok(())
}

async fn rotate(operator: &mut Operator, selection: Selection) -> anyhow::Result<String> {
    let mut idempotency_key = vec![0; 16];
    aws_lc_rs::rand::fill(&mut idempotency_key).ok().context("no random bytes")?;
    let request = RotateRequest {
        selection: Some(selection),
        reason: "benchmark".into(),
        waves: "100%".into(),
        idempotency_key,
        ..RotateRequest::default()
    };
    Ok(operator.rotate(request).await?.into_inner().id)
}

/// Every certificate arrived, every result was taken.
async fn everything(fleet: &Fleet, options: &Options, patience: Duration) -> anyhow::Result<()> {
    fleet.issued.wait(options.agents * options.certificates, patience).await?;
    fleet.acknowledged.wait(options.agents, patience).await
}

async fn ended(operator: &mut Operator, id: &str, patience: Duration) -> anyhow::Result<Rotation> {
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

fn orders(name: &str, times: &[Duration]) {
    println!(
        "{name:<22} p50 {:.0} ms, p99 {:.0} ms to {} agents (must at 10,000: p99 300 ms)",
        percentile(times, 50).as_secs_f64() * 1e3,
        percentile(times, 99).as_secs_f64() * 1e3,
        times.len()
    );
}
