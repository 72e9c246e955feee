//! `reseal-agent doctor`: can this host be looked after?
//!
//! Each check says what is wrong and what to do. Works before enrolment;
//! changes nothing. It never prints a key or a token.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;

use reseal_proto::channel::{self, Trust};
use rustix::process::{Pid, PidfdFlags, pidfd_open, test_kill_process};
use serde_json::json;

use crate::config::{Config, Signals};
use crate::discover::Reload;
use crate::discover::assemble::assemble_with;
use crate::discover::declared::Source;
use crate::discover::docker::Engine;
use crate::identity::{Identity, IdentityError, IdentityStore, Slot};
use crate::room::Room;
use crate::state::{Lock, Session};
use crate::{app, clock as clocks, link, verify};

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Good,
    Warning,
    Bad,
}

struct Check {
    name: &'static str,
    verdict: Verdict,
    message: String,
}

/// Runs every check; the text, and whether none was bad.
pub async fn run(config: &Config, json: bool) -> (String, bool) {
    let mut checks = vec![user(), state_dir(config), host_root(config)];
    checks.push(processes());
    checks.push(docker(config).await);
    checks.push(signals(config).await);
    checks.push(networks(config).await);
    checks.push(disks(config).await);
    checks.push(discovery(config).await);
    let (coordinator, now) = coordinator(config).await;
    checks.push(identity(config, now));
    checks.push(coordinator);
    checks.push(clock(config, now));
    let good = checks.iter().all(|check| check.verdict != Verdict::Bad);
    let text = if json {
        let list: Vec<_> = checks
            .iter()
            .map(
                |check| json!({"check": check.name, "result": word(check.verdict), "message": check.message}),
            )
            .collect();
        format!("{:#}\n", json!({"good": good, "checks": list}))
    } else {
        checks
            .iter()
            .map(|check| format!("{:<8} {:<12} {}\n", word(check.verdict), check.name, check.message))
            .collect()
    };
    (text, good)
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Good => "ok",
        Verdict::Warning => "warning",
        Verdict::Bad => "bad",
    }
}

fn check(name: &'static str, verdict: Verdict, message: impl Into<String>) -> Check {
    Check { name, verdict, message: message.into() }
}

fn user() -> Check {
    if rustix::process::geteuid().is_root() {
        check("user", Verdict::Good, "runs as root")
    } else {
        check(
            "user",
            Verdict::Warning,
            "does not run as root: it cannot keep the owners of keys and may not see container processes",
        )
    }
}

fn state_dir(config: &Config) -> Check {
    let path = &config.state_dir;
    match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            check("state", Verdict::Warning, format!("{} does not exist yet; enrol makes it", path.display()))
        }
        Err(error) => check("state", Verdict::Bad, format!("{}: {error}", path.display())),
        Ok(metadata) if metadata.permissions().mode() & 0o077 != 0 => {
            check("state", Verdict::Bad, format!("{} is open to others: chmod 0700 it", path.display()))
        }
        Ok(_) => check("state", Verdict::Good, path.display().to_string()),
    }
}

fn host_root(config: &Config) -> Check {
    let path = config.on_host(std::path::Path::new("/proc/1"));
    if config.host_root == std::path::Path::new("/") || path.exists() || config.host_root.is_dir() {
        check("host files", Verdict::Good, config.host_root.display().to_string())
    } else {
        check(
            "host files",
            Verdict::Bad,
            format!("host_root {} is not there: mount the host's / to it", config.host_root.display()),
        )
    }
}

/// In a container without the host's PID namespace PID 1 is the agent itself.
fn processes() -> Check {
    let threads = std::fs::read_to_string("/proc/2/comm").unwrap_or_default();
    if threads.trim() == "kthreadd" {
        check("processes", Verdict::Good, "sees the host's processes")
    } else {
        check(
            "processes",
            Verdict::Warning,
            "does not see the host's processes: reload by signal is refused; run with the host's PID namespace (pid: host)",
        )
    }
}

/// May it signal? Asked of the kernel, for this process and for every container
/// that is reloaded so; nothing is sent.
async fn signals(config: &Config) -> Check {
    let bad = |message: String| check("signals", Verdict::Bad, message);
    if config.signals == Signals::Engine {
        return check("signals", Verdict::Good, "are sent by the Docker Engine (signals = \"engine\")");
    }
    if let Err(error) = pidfd_open(rustix::process::getpid(), PidfdFlags::empty()) {
        return bad(format!(
            "the kernel gives no pidfd ({error}): Linux 5.6 is needed, and no seccomp filter against it"
        ));
    }
    let Ok(containers) = Engine::new(&config.docker).containers().await else {
        return check("signals", Verdict::Warning, "not tried: the Docker Engine does not answer");
    };
    let mut tried = 0;
    let host = assemble_with(containers, &Source::new(config).read());
    for consumer in host.installations.values().flat_map(|one| &one.consumers) {
        if !consumer.running || !consumer.reload.0.iter().any(|step| matches!(step, Reload::Signal(_))) {
            continue;
        }
        let Some(pid) = Pid::from_raw(consumer.pid) else { continue };
        let container = &consumer.container;
        if let Err(error) = pidfd_open(pid, PidfdFlags::empty()) {
            return bad(format!(
                "process {} of container {container} is not seen ({error}): run with the host's PID namespace (pid: host)",
                consumer.pid
            ));
        }
        if let Err(error) = test_kill_process(pid) {
            return bad(format!(
                "process {} of container {container} may not be signalled ({error}): the agent needs CAP_KILL",
                consumer.pid
            ));
        }
        tried += 1;
    }
    let told =
        format!("may be sent; tried on {tried} running consumers that are reloaded so, nothing was sent");
    check("signals", Verdict::Good, told)
}

/// May it look from within containers' networks? Tried on every running container that
/// declares ports, and nothing is dialled.
async fn networks(config: &Config) -> Check {
    let Ok(containers) = Engine::new(&config.docker).containers().await else {
        return check("networks", Verdict::Warning, "not tried: the Docker Engine does not answer");
    };
    let mut tried = 0;
    let host = assemble_with(containers, &Source::new(config).read());
    for consumer in host.installations.values().flat_map(|one| &one.consumers) {
        if !consumer.running || !consumer.serves || consumer.host.is_some() {
            continue;
        }
        // Only what has no other way depends on it.
        let needed = consumer.endpoints.iter().any(|endpoint| endpoint.within.is_some());
        match verify::may_enter(consumer.pid, &consumer.container) {
            Ok(()) => tried += 1,
            Err(error) => {
                let verdict = if needed { Verdict::Bad } else { Verdict::Warning };
                return check("networks", verdict, crate::chain_of(&error).to_string());
            }
        }
    }
    check(
        "networks",
        Verdict::Good,
        format!("of {tried} running consumers could be entered to look at ports that the host cannot dial"),
    )
}

/// Room where the agent writes: its own directory, and those of the certificates.
async fn disks(config: &Config) -> Check {
    let mut places = vec![config.state_dir.clone()];
    if let Ok(containers) = Engine::new(&config.docker).containers().await {
        let host = assemble_with(containers, &Source::new(config).read());
        let mounts = host.installations.values().map(|one| &one.place.mount);
        places.extend(mounts.map(|mount| config.on_host(std::path::Path::new(mount))));
    }
    places.sort();
    places.dedup();
    let mut worst = None;
    for place in &places {
        // What is not there yet is somebody else's check.
        let Ok(room) = Room::at(place) else { continue };
        if let Some(problem) = room.problem() {
            let verdict = if room.read_only || room.free == 0 { Verdict::Bad } else { Verdict::Warning };
            if worst.as_ref().is_none_or(|(known, _)| *known != Verdict::Bad) {
                worst = Some((verdict, format!("{}: {problem}", place.display())));
            }
        }
    }
    match worst {
        Some((verdict, message)) => check("disks", verdict, message),
        None => check(
            "disks",
            Verdict::Good,
            format!("room in the state directory and {} others", places.len() - 1),
        ),
    }
}

/// What the search for certificates can see.
async fn discovery(config: &Config) -> Check {
    let told = |verdict, message: String| check("discovery", verdict, message);
    if config.discovery.off {
        return told(Verdict::Warning, "is switched off: only what labels declare is seen".into());
    }
    let Ok(containers) = Engine::new(&config.docker).containers().await else {
        return told(Verdict::Warning, "not tried: the Docker Engine does not answer".into());
    };
    let held = containers
        .iter()
        .flat_map(|container| &container.mounts)
        .filter(|mount| matches!(mount.kind.as_str(), "bind" | "volume") && mount.source.starts_with('/'));
    let sources: BTreeSet<&str> = held.map(|mount| mount.source.as_str()).collect();
    let unseen: Vec<&&str> = sources
        .iter()
        .filter(|source| !config.on_host(std::path::Path::new(source)).try_exists().unwrap_or(false))
        .collect();
    if let Some(first) = unseen.first() {
        let message = format!(
            "{} of {} mounts of containers are not seen, for one {first}: are the host's files at {}?",
            unseen.len(),
            sources.len(),
            config.host_root.display()
        );
        return told(Verdict::Warning, message);
    }
    if !rustix::process::geteuid().is_root() {
        return told(
            Verdict::Warning,
            "files that only their owner may read are not seen: run as root".into(),
        );
    }
    let running = containers.iter().filter(|container| container.pid > 0);
    let hidden = running.filter(|one| !std::path::Path::new(&format!("/proc/{}/net/tcp", one.pid)).exists());
    if let Some(first) = hidden.map(|one| &one.name).next() {
        let message = format!(
            "listening ports are not seen, for one those of {first}: run with the host's PID namespace (pid: host)"
        );
        return told(Verdict::Warning, message);
    }
    let lower = containers.iter().filter_map(|one| Some((one, one.layers.lower.first()?)));
    let lost = lower.filter(|(_, path)| !config.on_host(std::path::Path::new(path)).exists());
    if let Some((first, path)) = lost.clone().next() {
        let message = format!(
            "images of {} containers are not seen, for one that of {}: {path} is not below {}",
            lost.count(),
            first.name,
            config.host_root.display()
        );
        return told(Verdict::Warning, message);
    }
    let silent = containers.iter().filter(|one| one.layers.lower.is_empty()).count();
    let images = match silent {
        0 => "the layers of their images".to_owned(),
        all => format!(
            "images, but for those of {all} containers only while they run: the engine does not say where their layers are"
        ),
    };
    let seen = (sources.len(), containers.len());
    told(Verdict::Good, format!("sees {} mounts of {} containers, their ports, and {images}", seen.0, seen.1))
}

async fn docker(config: &Config) -> Check {
    let engine = Engine::new(&config.docker);
    let version = match engine.version().await {
        Ok(version) => version,
        Err(error) => {
            return check("docker", Verdict::Bad, crate::chain_of(&error).to_string());
        }
    };
    match engine.containers().await {
        Ok(_) => check("docker", Verdict::Good, format!("{} speaks API {version}", config.docker)),
        Err(error) => check("docker", Verdict::Bad, crate::chain_of(&error).to_string()),
    }
}

/// Has it ended? By the coordinator's time where that is known: this host's
/// clock may be ahead.
fn identity(config: &Config, now: Option<i64>) -> Check {
    let store = IdentityStore::new(&config.state_dir);
    let skew = skew(config, now);
    let by = match (now, skew) {
        (Some(_), _) => "by the coordinator's clock",
        (None, Some(_)) => "by the coordinator's clock as it was last compared",
        (None, None) => "by this host's clock, which was not compared",
    };
    let now = app::now().saturating_sub(skew.unwrap_or(0));
    match store.usable(now) {
        Ok(identity) => check(
            "identity",
            Verdict::Good,
            format!(
                "host {} of fleet {}, {} hours left {by}",
                identity.host,
                identity.fleet,
                identity.not_after.saturating_sub(now) / 3600
            ),
        ),
        Err(error @ IdentityError::Expired { .. }) => {
            check("identity", Verdict::Bad, format!("{by}, {}", crate::chain_of(&error)))
        }
        Err(error) => check("identity", Verdict::Bad, crate::chain_of(&error).to_string()),
    }
}

/// Does one answer? Its clock too, unless an agent runs here: a second session
/// of this host would end that one's.
async fn coordinator(config: &Config) -> (Check, Option<i64>) {
    let store = IdentityStore::new(&config.state_dir);
    let Ok(Some(identity)) = store.load(Slot::Current) else {
        return (check("coordinator", Verdict::Warning, "not asked: this host is not enrolled"), None);
    };
    let idle = Lock::take(&config.state_dir);
    let mut last = "the identity names no coordinator".to_owned();
    for address in &identity.coordinators {
        match ask(config, &identity, address, idle.is_ok()).await {
            Ok(now) => return (check("coordinator", Verdict::Good, format!("{address} answers")), now),
            Err(error) => last = error,
        }
    }
    (check("coordinator", Verdict::Bad, last), None)
}

async fn ask(config: &Config, identity: &Identity, address: &str, idle: bool) -> Result<Option<i64>, String> {
    let credentials = identity.credentials().map_err(|error| crate::chain_of(&error).to_string())?;
    let tls = channel::client_config(Trust::Anchor(identity.ca.clone()), Some(credentials))
        .map_err(|error| crate::chain_of(&error).to_string())?;
    let channel =
        channel::connect(address, tls).await.map_err(|error| crate::chain_of(&error).to_string())?;
    if !idle {
        return Ok(None);
    }
    let session = Session::open(&config.state_dir).map_err(|error| crate::chain_of(&error).to_string())?;
    link::time_of(channel, address, &session)
        .await
        .map(Some)
        .map_err(|error| crate::chain_of(&error).to_string())
}

/// Measured now, or as the running agent has measured it.
fn skew(config: &Config, now: Option<i64>) -> Option<i64> {
    let measured = now.map(|now| app::now().saturating_sub(now));
    measured.or_else(|| Session::open(&config.state_dir).ok()?.skew())
}

fn clock(config: &Config, now: Option<i64>) -> Check {
    match skew(config, now) {
        None => check("clock", Verdict::Warning, "not compared: no coordinator was heard yet"),
        Some(skew) if clocks::is_wrong(skew) => check("clock", Verdict::Bad, clocks::told(skew)),
        Some(skew) => {
            let when = if now.is_some() { "now" } else { "at the start of the last session" };
            check("clock", Verdict::Good, format!("{skew} s ahead of the coordinator's {when}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_bare_host_is_told_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let file = dir.path().join("agent.toml");
        std::fs::write(&file, "docker = 'unix:///nonexistent.sock'").unwrap();
        let config = Config::load(Some(&file), Some(dir.path())).unwrap();
        let (text, good) = run(&config, true).await;
        assert!(!good);
        let document: serde_json::Value = serde_json::from_str(&text).unwrap();
        let result = |name: &str| {
            document["checks"]
                .as_array()
                .unwrap()
                .iter()
                .find(|check| check["check"] == name)
                .unwrap()
                .clone()
        };
        assert_eq!(result("state")["result"], "bad");
        assert_eq!(result("docker")["result"], "bad");
        assert_eq!(result("signals")["result"], "warning");
        assert_eq!(result("networks")["result"], "warning");
        assert_eq!(result("disks")["result"], "ok");
        assert_eq!(result("clock")["result"], "warning");
        let said = clock(&config, Some(i64::MIN));
        assert_eq!(said.verdict, Verdict::Bad, "{}", said.message);
        let identity = result("identity");
        assert_eq!(identity["result"], "bad");
        assert!(identity["message"].as_str().unwrap().contains("enrol"));
    }
}
