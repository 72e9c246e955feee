//! `reseal-agent doctor`: can this host be looked after?
//!
//! Each check says what is wrong and what to do. Works before enrolment;
//! changes nothing. It never prints a key or a token.

use std::os::unix::fs::PermissionsExt as _;

use reseal_proto::channel::{self, Trust};
use serde_json::json;

use crate::app;
use crate::config::Config;
use crate::discover::docker::Engine;
use crate::identity::{IdentityStore, Slot};
use crate::scan;

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
    checks.push(identity(config));
    checks.push(coordinator(config).await);
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

async fn docker(config: &Config) -> Check {
    let engine = Engine::new(&config.docker);
    let version = match engine.version().await {
        Ok(version) => version,
        Err(error) => {
            return check("docker", Verdict::Bad, crate::chain_of(&error).to_string());
        }
    };
    match scan::run(config, false).await {
        Ok(_) => check("docker", Verdict::Good, format!("{} speaks API {version}", config.docker)),
        Err(error) => check("docker", Verdict::Bad, crate::chain_of(&error).to_string()),
    }
}

fn identity(config: &Config) -> Check {
    let store = IdentityStore::new(&config.state_dir);
    match store.usable(app::now()) {
        Ok(identity) => check(
            "identity",
            Verdict::Good,
            format!(
                "host {} of fleet {}, {} hours left",
                identity.host,
                identity.fleet,
                (identity.not_after - app::now()) / 3600
            ),
        ),
        Err(error) => check("identity", Verdict::Bad, crate::chain_of(&error).to_string()),
    }
}

async fn coordinator(config: &Config) -> Check {
    let store = IdentityStore::new(&config.state_dir);
    let Ok(Some(identity)) = store.load(Slot::Current) else {
        return check("coordinator", Verdict::Warning, "not asked: this host is not enrolled");
    };
    if identity.not_before > app::now() {
        return check(
            "coordinator",
            Verdict::Bad,
            "not asked: by this host's clock the identity is not valid yet; set the clock",
        );
    }
    let mut last = "the identity names no coordinator".to_owned();
    for address in &identity.coordinators {
        let tls = identity.credentials().map_err(|error| crate::chain_of(&error).to_string());
        let tls = tls.and_then(|credentials| {
            channel::client_config(Trust::Anchor(identity.ca.clone()), Some(credentials))
                .map_err(|error| crate::chain_of(&error).to_string())
        });
        let connected = match tls {
            Ok(tls) => channel::connect(address, tls)
                .await
                .map(drop)
                .map_err(|error| crate::chain_of(&error).to_string()),
            Err(error) => Err(error),
        };
        match connected {
            Ok(()) => return check("coordinator", Verdict::Good, format!("{address} answers")),
            Err(error) => last = error,
        }
    }
    check("coordinator", Verdict::Bad, last)
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
        let identity = result("identity");
        assert_eq!(identity["result"], "bad");
        assert!(identity["message"].as_str().unwrap().contains("enrol"));
    }
}
