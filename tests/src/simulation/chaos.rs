//! Misfortune: crashes, cuts, services that stop, at any time.

use std::sync::Arc;

use tokio::task::JoinHandle;

use super::agent;
use super::host::Host;
use super::world::{World, lock};

/// The agents' processes, each to be killed at any step.
pub struct Agents(Vec<Option<JoinHandle<()>>>);

impl Agents {
    /// None of them runs.
    pub fn stopped(world: &World) -> Self {
        Self(world.hosts.iter().map(|_| None).collect())
    }

    /// Starts one; one that runs is killed.
    pub fn start(&mut self, world: &Arc<World>, at: usize) {
        self.kill(world, at);
        world.history.note(&world.hosts[at].name, "agent starts");
        self.0[at] = Some(tokio::spawn(agent::run(world.clone(), world.hosts[at].clone())));
    }

    /// kill -9.
    pub fn kill(&mut self, world: &World, at: usize) {
        if let Some(task) = self.0[at].take() {
            world.history.note(&world.hosts[at].name, "agent killed");
            task.abort();
        }
    }

    /// Starts what does not run.
    pub fn start_all(&mut self, world: &Arc<World>) {
        for at in 0..self.0.len() {
            if self.0[at].is_none() {
                self.start(world, at);
            }
        }
    }
}

/// Strikes for as long as the chaos lasts.
pub async fn strike(world: &Arc<World>, agents: &mut Agents) {
    let end = tokio::time::Instant::now() + std::time::Duration::from_secs(world.weather.chaos);
    while tokio::time::Instant::now() < end && world.checker.violation().is_none() {
        let most = if world.weather.misfortune == 0 { 60 } else { world.weather.misfortune };
        world.pause(100, most * 1000).await;
        let at = world.random.below(world.hosts.len() as u64) as usize;
        let host = world.hosts[at].clone();
        if world.weather.misfortune == 0 {
            service(world, &host);
            continue;
        }
        match world.random.below(20) {
            0..=3 => restart(world).await,
            4..=6 => {
                world.history.note(&host.name, "connections cut");
                world.cut(&host.name);
            }
            7..=9 => {
                let reachable = lock(&world.unreachable).contains(&host.name);
                world.reachable(&host.name, reachable);
            }
            10..=13 => {
                agents.kill(world, at);
                if world.random.percent(70) {
                    world.pause(0, 3000).await;
                    agents.start(world, at);
                }
            }
            14 if world.random.percent(40) => {
                agents.kill(world, at);
                world.history.note(&host.name, "the agent's state is lost");
                host.forget();
                agents.start(world, at);
            }
            14 => agents.start_all(world),
            15 => full_disk(world).await,
            16 => world.pause(0, 120_000).await,
            _ => service(world, &host),
        }
    }
}

/// Kills the coordinator and starts it, perhaps killing it again half-way.
async fn restart(world: &Arc<World>) {
    world.crash();
    let away = *world.random.pick(&[10, 1000, 60_000]);
    world.pause(0, away).await;
    for _ in 0..world.random.below(3) {
        let patience = world.random.millis(0, 2000);
        if tokio::time::timeout(patience, world.start()).await.is_err() {
            world.history.note("coord", "killed while it started");
        }
        world.crash();
    }
    world.start().await.expect("it starts");
}

async fn full_disk(world: &Arc<World>) {
    world.history.note("coord", "disk full");
    world.disk.fill(true);
    world.pause(0, 20_000).await;
    world.disk.fill(false);
    world.history.note("coord", "disk has room");
}

/// A container is started, stopped, changed.
fn service(world: &World, host: &Host) {
    let mut disk = host.disk();
    let ids: Vec<String> = disk.installations.keys().cloned().collect();
    let id = world.random.pick(&ids).clone();
    let installation = disk.installations.get_mut(&id).expect("one of them");
    if world.random.percent(60) {
        installation.running = !installation.running;
        let what = if installation.running { "starts" } else { "stops" };
        world.history.note(&host.name, format!("the service of {id} {what}"));
        if installation.running {
            installation.reload();
        } else {
            installation.served.clear();
        }
    } else {
        installation.broken = world.random.percent(world.weather.broken * 2);
    }
    drop(disk);
    host.changed();
}

/// Everything works again.
pub async fn heal(world: &Arc<World>, agents: &mut Agents) {
    world.disk.fill(false);
    if world.up().is_none() {
        world.start().await.expect("it starts");
    }
    let unreachable: Vec<Arc<str>> = lock(&world.unreachable).iter().cloned().collect();
    for host in unreachable {
        world.reachable(&host, true);
    }
    for host in &world.hosts {
        for installation in host.disk().installations.values_mut() {
            installation.broken = false;
            installation.running = true;
            installation.reload();
        }
        host.changed();
    }
    agents.start_all(world);
}
