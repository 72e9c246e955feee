//! What is measured: CPU and memory of a process, percentiles, the crypto bound.

use std::ops::Sub;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rcgen::{CertificateParams, CertificateSigningRequestParams, Issuer, KeyPair};
use tokio::sync::watch;

/// CPU time and resident memory of a process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    /// User and system.
    pub(crate) cpu: Duration,
    /// Bytes.
    pub(crate) resident: i64,
}

impl Sub for Usage {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self { cpu: self.cpu - before.cpu, resident: self.resident - before.resident }
    }
}

/// CPU time of a process or thread, from its `stat` file in `/proc`.
fn cpu(path: &str) -> anyhow::Result<Duration> {
    let stat = std::fs::read_to_string(path).context("the process is gone")?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok()).unwrap_or_default();
    // The kernel's unit here has been a hundredth of a second on every Linux of the last decades.
    Ok(Duration::from_millis(10 * (ticks(11) + ticks(12))))
}

fn thread_cpu() -> anyhow::Result<Duration> {
    cpu("/proc/thread-self/stat")
}

/// From `/proc`.
pub(crate) fn usage(pid: u32) -> anyhow::Result<Usage> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let resident = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|line| line.split_whitespace().next()?.parse::<i64>().ok())
        .context("no VmRSS")?;
    Ok(Usage { cpu: cpu(&format!("/proc/{pid}/stat"))?, resident: resident * 1024 })
}

/// CPU and memory once it is at rest: at most 2 % of a core for a second.
pub(crate) async fn settled(pid: u32) -> anyhow::Result<Usage> {
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut before = usage(pid)?;
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let after = usage(pid)?;
        if (after - before).cpu <= Duration::from_millis(20) || Instant::now() > deadline {
            return Ok(after);
        }
        before = after;
    }
}

/// Size of a directory, without the file that is kept for a full disk.
pub(crate) fn directory_bytes(path: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(path) else {
        return std::fs::metadata(path).map_or(0, |facts| facts.len());
    };
    entries
        .flatten()
        .filter(|entry| entry.file_name() != "ballast")
        .map(|entry| directory_bytes(&entry.path()))
        .sum()
}

/// The `share`-th percentile; zero of nothing.
pub(crate) fn percentile(times: &[Duration], share: usize) -> Duration {
    let mut times = times.to_vec();
    times.sort();
    times.get((times.len().saturating_sub(1)) * share / 100).copied().unwrap_or_default()
}

/// CPU seconds to verify a CSR and sign a leaf with rcgen, nothing else, on every
/// core at once: the benchmark keeps all of them busy too, and two threads of one
/// core are slower than one.
pub(crate) fn crypto_bound(duration: Duration) -> anyhow::Result<f64> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads: Vec<_> =
        (0..cores).map(|_| std::thread::spawn(move || crypto_bound_of_one(duration))).collect();
    let mut sum = 0.0;
    for thread in threads {
        sum += thread.join().map_err(|_| anyhow::anyhow!("a measuring thread panicked"))??;
    }
    Ok(sum / cores as f64)
}

fn crypto_bound_of_one(duration: Duration) -> anyhow::Result<f64> {
    let ca_key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    let issuer = Issuer::new(params, ca_key);
    let key = KeyPair::generate()?;
    let csr = CertificateParams::new(vec!["bound.example.test".into()])?.serialize_request(&key)?;
    let (began, cpu, mut rounds) = (Instant::now(), thread_cpu()?, 0u32);
    while began.elapsed() < duration {
        let params = CertificateSigningRequestParams::from_der(csr.der())?;
        std::hint::black_box(params.signed_by(&issuer)?);
        rounds += 1;
    }
    Ok((thread_cpu()? - cpu).as_secs_f64() / f64::from(rounds))
}

/// A number that many tasks raise and one waits for.
pub(crate) struct Tally(watch::Sender<usize>);

impl Default for Tally {
    fn default() -> Self {
        Self(watch::Sender::new(0))
    }
}

impl Tally {
    pub(crate) fn add(&self, number: usize) {
        self.0.send_modify(|value| *value += number);
    }

    pub(crate) fn reset(&self) {
        self.0.send_replace(0);
    }

    pub(crate) async fn wait(&self, number: usize, patience: Duration) -> anyhow::Result<()> {
        let mut receiver = self.0.subscribe();
        let reached = tokio::time::timeout(patience, receiver.wait_for(|value| *value >= number)).await;
        match reached {
            Ok(_) => Ok(()),
            Err(_) => anyhow::bail!("only {} of {number} in time", *self.0.borrow()),
        }
    }
}
