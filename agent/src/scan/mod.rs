//! `reseal-agent scan`: every certificate on this host, declared or not.
//!
//! Works before enrolment and without a coordinator; changes nothing. [`table`]
//! is for people, [`json`] has stable names for programs.

pub mod json;
pub mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::config::Config;
use crate::discover::declared::Source;
use crate::discover::docker::{DockerError, Engine};
use crate::discover::endpoints::Endpoints;
use crate::discover::search::{Picture, Search};
use crate::discover::watch::read_certificates;
use crate::discover::{Host, assemble, infer, merge, sort_findings};

/// What is shown, and how.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// For programs.
    pub json: bool,
    /// Findings only.
    pub findings: bool,
    /// What concerns these containers only; empty: everything.
    pub containers: Vec<String>,
}

/// What was looked at, and for how long.
#[derive(Clone, Debug, Default)]
pub struct Scanned {
    /// Declared and discovered.
    pub host: Host,
    /// What is neither: trust stores, keys without a certificate.
    pub picture: Picture,
    /// Containers of the host.
    pub containers: usize,
    /// From the first call to the engine to the last file.
    pub took: Duration,
}

/// Looks once and says what was found.
pub async fn run(config: &Config, options: &Options) -> Result<String, DockerError> {
    let mut scanned = look(config).await?;
    if !options.containers.is_empty() {
        only(&mut scanned, &options.containers);
    }
    Ok(if options.json { json::of(&scanned, options) } else { table::of(&scanned, options) })
}

/// Looks at everything once.
pub async fn look(config: &Config) -> Result<Scanned, DockerError> {
    let begun = Instant::now();
    let engine = Engine::new(&config.docker);
    let containers = engine.containers().await?;
    let count = containers.len();
    let source = Source::new(config);
    let settings = config.clone();
    let searched = containers.clone();
    let (mut host, picture) = tokio::task::spawn_blocking(move || {
        let mut host = assemble::assemble_with(searched.clone(), &source.read());
        read_certificates(&settings, &mut host);
        let now = crate::app::now();
        let picture = if settings.discovery.off {
            Picture::default()
        } else {
            let mut search = Search::new(&settings);
            let mut picture = search.run(&searched, None, now);
            search.look_into_images(&searched, None, now, &mut picture);
            picture
        };
        (host, picture)
    })
    .await
    .unwrap_or_default();
    let settings = &config.discovery;
    let served = if settings.off || settings.no_probes {
        Vec::new()
    } else {
        Endpoints::default().look(&containers, &BTreeMap::new(), settings, |_| false).await
    };
    merge::merge(&mut host, &picture, &served, crate::app::now());
    host.inferred = infer::found::all(&host, &containers);
    sort_findings(&mut host.findings);
    Ok(Scanned { host, picture, containers: count, took: begun.elapsed() })
}

/// Leaves out what does not concern the containers of these names.
fn only(scanned: &mut Scanned, names: &[String]) {
    let host = &mut scanned.host;
    host.installations.retain(|_, one| one.consumers.iter().any(|user| names.contains(&user.container)));
    host.discovered.retain(|_, one| one.users.iter().any(|user| names.contains(&user.container)));
    host.trusts.retain(|one| one.consumers.iter().any(|user| names.contains(&user.container)));
    let mut objects: BTreeSet<String> = names.iter().cloned().collect();
    objects.extend(host.installations.keys().chain(host.discovered.keys()).cloned());
    objects.extend(host.installations.values().map(|one| one.label.clone()));
    let keys = host.discovered.values().filter_map(|one| one.files.as_ref()?.key.as_ref());
    objects.extend(keys.map(|key| key.path.clone()));
    let endpoints = host.discovered.values().flat_map(|one| &one.endpoints);
    objects.extend(endpoints.map(|seen| seen.endpoint.address.clone()));
    let concerns = |object: &str| {
        let container = object.split('/').next().unwrap_or_default();
        objects.contains(object) || names.iter().any(|name| name == container)
    };
    host.findings.retain(|found| concerns(&found.object));
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
