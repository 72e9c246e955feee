//! Writes trust bundles where `reseal.trust.*` labels want them.
//!
//! When a session brings bundles and whenever the host changes, each declared
//! file is compared and, when it differs, replaced in one step; only then its
//! consumers are reloaded. Without a session the last bundles known are
//! written. Never takes a file away.

use reseal_proto::v1::{Finding, TrustBundle};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::dir::{Access, Dir, DirError};
use crate::discover::{TrustTarget, finding};
use crate::pem;
use crate::target::Tools;

const MODE: u32 = 0o644;

/// Follows session and host for ever. `welcomed` changes with each Welcome.
pub async fn run(tools: Tools, mut welcomed: watch::Receiver<u64>) {
    let mut host = tools.discovery.watch();
    loop {
        let targets = host.borrow_and_update().as_ref().map(|host| host.trusts.clone()).unwrap_or_default();
        let bundles = tools.session.bundles();
        // Before the first Welcome ever there is nothing to say about bundles.
        if tools.session.epoch() > 0 {
            for target in &targets {
                write(&tools, target, &bundles).await;
            }
        }
        tokio::select! {
            changed = host.changed() => if changed.is_err() { return },
            changed = welcomed.changed() => if changed.is_err() { return },
        }
    }
}

async fn write(tools: &Tools, target: &TrustTarget, bundles: &[TrustBundle]) {
    let path = target.place.id();
    let bundle = bundles.iter().find(|bundle| bundle.name == target.bundle);
    let problem = match bundle.filter(|bundle| !bundle.certificates.is_empty()) {
        None => Some(finding(
            "unknown-bundle",
            &path,
            &format!("the coordinator has no bundle {}; the file stays as it is", target.bundle),
            "warning",
        )),
        Some(bundle) => deliver(tools, target, bundle, &path).await,
    };
    tools.discovery.note("trust", &path, problem).await;
}

async fn deliver(tools: &Tools, target: &TrustTarget, bundle: &TrustBundle, path: &str) -> Option<Finding> {
    let text = pem::certificates(bundle.certificates.iter().map(Vec::as_slice));
    let (config, copy) = (tools.config.clone(), target.clone());
    let written = tokio::task::spawn_blocking(move || {
        let dir = Dir::open(&config, &copy.place)?;
        replace(&dir, &copy, text.as_bytes())
    })
    .await
    .expect("file operations do not panic");
    match written {
        Ok(false) => return None,
        Ok(true) => info!(bundle = %target.bundle, path, "trust bundle written"),
        Err(error) => {
            let message = crate::chain_of(&error).to_string();
            warn!(path, error = %message, "trust bundle not written");
            return Some(finding(error.code(), path, &message, "critical"));
        }
    }
    let _no_window = tools.windows.read().await;
    let (_, reloaded) = tools.reloader.reload(tools.discovery.engine(), &target.consumers).await;
    let error = reloaded.err()?;
    let message = format!("the new bundle is on disk, but {}", crate::chain_of(&error));
    warn!(path, error = %message, "a consumer did not take the bundle");
    Some(finding(error.code(), path, &message, "critical"))
}

/// Says whether the bytes changed.
fn replace(dir: &Dir, target: &TrustTarget, bytes: &[u8]) -> Result<bool, DirError> {
    let name = &target.place.certificate;
    let there = dir.read(name, pem::MAX_FILE_BYTES)?;
    if there.as_ref().is_some_and(|there| there.bytes.as_slice() == bytes) {
        return Ok(false);
    }
    let mut access = there.map_or(
        Access {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            mode: MODE,
        },
        |there| there.access,
    );
    if let Some(owner) = target.owner {
        (access.uid, access.gid) = (owner.uid, owner.gid);
    }
    access.mode = target.mode.unwrap_or(access.mode);
    dir.replace(name, bytes, access)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::discover::Place;
    use std::path::Path;

    #[test]
    fn writes_only_what_changed() {
        let mount = tempfile::tempdir().unwrap();
        let target = TrustTarget {
            bundle: "managed-root".into(),
            place: Place {
                mount: mount.path().to_str().unwrap().into(),
                directory: String::new(),
                certificate: "ca.pem".into(),
                ..Place::default()
            },
            owner: None,
            mode: None,
            consumers: Vec::new(),
        };
        let config = Config::load(Some(Path::new("/dev/null")), None).unwrap();
        let dir = Dir::open(&config, &target.place).unwrap();
        assert!(replace(&dir, &target, b"one").unwrap());
        assert!(!replace(&dir, &target, b"one").unwrap());
        assert!(replace(&dir, &target, b"two").unwrap());
        let there = dir.read("ca.pem", 10).unwrap().unwrap();
        assert_eq!(there.bytes.as_slice(), b"two");
        assert_eq!(there.access.mode, MODE);
    }
}
