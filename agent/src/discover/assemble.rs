//! Containers → [`Host`]. Pure: same containers, same result.
//!
//! Consumers that declare the same file on the host are consumers of one
//! installation and must agree on what it is; two installations must not share
//! files. Where they do not, a finding says so and nothing is managed there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};

use reseal_proto::v1::{Finding, Management};

use super::declared::adopted::Adopted;
use super::declared::{Declarations, tables};
use super::labels::{Certificate, Declared, Trust};
use super::mounts::{self, Located, MountError};
use super::{
    Consumer, Container, Endpoint, Host, Inside, Installation, Ladder, Place, Port, Server, TrustTarget,
    Wanted, Within, finding, programs, reloads, sort_findings,
};

/// More installations on one host are not reported.
pub const MAX_INSTALLATIONS: usize = 2000;

/// Puts together what labels declare, and nothing else.
pub fn assemble(containers: Vec<Container>) -> Host {
    assemble_with(containers, &Declarations::default())
}

/// Puts everything together. Certificates on disk are not looked at here. Where two
/// declare the same, labels come first, then the configuration, then what was adopted.
pub fn assemble_with(mut containers: Vec<Container>, declarations: &Declarations) -> Host {
    containers.sort_by(|a, b| a.name.cmp(&b.name));
    let mut work = Assembly { findings: declarations.findings.clone(), ..Assembly::default() };
    for container in &containers {
        work.add(Management::Labels, container, &container.declared);
    }
    for (name, declared) in &declarations.containers {
        match containers.iter().find(|container| container.name == *name) {
            Some(container) => work.add(Management::Configuration, container, declared),
            None => work.findings.push(tables::missing(name)),
        }
    }
    for container in &declarations.host {
        work.add(Management::Configuration, container, &container.declared);
    }
    for adopted in &declarations.adopted {
        work.adopted(adopted, &containers);
    }
    work.finish()
}

#[derive(Default)]
struct Assembly {
    installations: BTreeMap<String, Installation>,
    conflicts: BTreeSet<String>,
    trusts: BTreeMap<String, TrustTarget>,
    findings: Vec<Finding>,
}

impl Assembly {
    fn add(&mut self, management: Management, container: &Container, declared: &Declared) {
        for problem in &declared.problems {
            self.findings.push(finding(problem.id, &container.name, &problem.message, "warning"));
        }
        for trust in &declared.trusts {
            self.trust(container, declared, trust);
        }
        for certificate in &declared.certificates {
            self.certificate(management, container, certificate);
        }
    }

    /// Who mounts it is a consumer, without a word of its own. What somebody else
    /// declares by now is theirs; its other users go on being reloaded.
    fn adopted(&mut self, adopted: &Adopted, containers: &[Container]) {
        let declared = match adopted.certificate() {
            Ok(declared) => declared,
            Err(mistakes) => {
                let message = format!("what was adopted cannot be read: {}", mistakes.join("; "));
                self.findings.push(finding("bad-configuration", adopted.id(), &message, "critical"));
                return;
            }
        };
        let Some(place) = self.place(&adopted.place(), &declared) else { return };
        let id = place.id();
        let label = adopted.label.clone();
        let new = self.installation(Management::Adopted, &label, &declared, place);
        self.installations.entry(id.clone()).or_insert(new);
        for container in containers {
            let Some(declared) = adopted.used_by(container) else { continue };
            let known = self.installations.get(&id);
            if known.is_some_and(|known| known.has(&container.name)) {
                continue;
            }
            let consumer = self.consumer_with_findings(container, &declared, &label);
            if let Some(known) = self.installations.get_mut(&id) {
                known.consumers.push(consumer);
            }
        }
    }

    fn installation(
        &self,
        management: Management,
        label: &str,
        declared: &Certificate,
        place: Place,
    ) -> Installation {
        let wanted = Wanted {
            names: declared.names.clone(),
            layout: declared.layout,
            alias: declared.alias.clone(),
            usage: declared.usage,
            key_type: declared.key_type,
            issuer: declared.issuer.clone(),
            owner: declared.owner,
            mode: declared.mode,
        };
        let (id, label) = (place.id(), label.to_owned());
        Installation { id, label, management, wanted, place, consumers: Vec::new(), certificate: None }
    }

    fn locate(&mut self, container: &Container, name: &str, path: &str) -> Option<Located> {
        match mounts::locate(&container.mounts, path) {
            Ok(located) => Some(located),
            Err(error) => {
                let object = format!("{}/{name}", container.name);
                let message = error.to_string();
                self.findings.push(finding(error.code(), &object, &message, "critical"));
                None
            }
        }
    }

    fn certificate(&mut self, management: Management, container: &Container, declared: &Certificate) {
        let Some(place) = self.place(container, declared) else { return };
        let label = format!("{}/{}", container.name, declared.name);
        let consumer = self.consumer_with_findings(container, declared, &label);
        let mut new = self.installation(management, &label, declared, place);
        let id = new.id.clone();
        match self.installations.get_mut(&id) {
            None => {
                new.consumers.push(consumer);
                self.installations.insert(id, new);
            }
            Some(known) if management != known.management && known.has(&container.name) => {
                let message = format!(
                    "the label of {} declares {id} already: what the configuration says of it is not used",
                    known.label
                );
                self.findings.push(finding("bad-configuration", &label, &message, "warning"));
            }
            Some(known) if known.wanted == new.wanted && known.place == new.place => {
                known.consumers.push(consumer);
            }
            Some(known) => {
                let message = format!(
                    "{label} and {} declare the same file {id} but not the same names, layout, mounts, further files, usage, key type, owner or mode: it is not managed until they agree",
                    known.label
                );
                self.findings.push(finding("label-conflict", &id, &message, "critical"));
                self.conflicts.insert(id);
            }
        }
    }

    /// Where everything is; a finding where it cannot be managed there.
    fn place(&mut self, container: &Container, declared: &Certificate) -> Option<Place> {
        let located = self.locate(container, &declared.name, &declared.path)?;
        let mut place = Place {
            mount: located.mount.clone(),
            directory: located.directory.clone(),
            certificate: located.file.clone(),
            single: located.single,
            ..Place::default()
        };
        let mut further = |path: &String| self.locate(container, &declared.name, path);
        if declared.layout.has_key_file() {
            let key = further(&declared.key)?;
            place.key = key.file.clone();
            let beside = Located { file: key.file.clone(), ..located.clone() };
            place.key_at = (place.single || key != beside).then_some(key);
        }
        let mut optional = |path: &Option<String>| match path {
            Some(path) => further(path).map(Some),
            None => Some(None),
        };
        place.leaf = optional(&declared.leaf)?;
        place.chain = optional(&declared.chain)?;
        place.password = optional(&declared.password_file)?;
        self.on_one_mount(container, declared, &place)?;
        Some(place)
    }

    /// Can one step change everything? Where a file is mounted by itself there
    /// is no such step, and a finding says so; two directories are refused.
    fn on_one_mount(&mut self, container: &Container, declared: &Certificate, place: &Place) -> Option<()> {
        let object = format!("{}/{}", container.name, declared.name);
        let paths = declared.files();
        let files = place.files();
        if let Some((_, path)) = files.iter().zip(&paths).find(|(file, _)| file.single) {
            let message = format!(
                "{path} is mounted as a single file: it is written in place, because the container would keep the old file if it were replaced, and a pair cannot change in one step. Mount its directory instead"
            );
            self.findings.push(finding("bind-mounted-file", &object, &message, "warning"));
            return Some(());
        }
        let apart = files.iter().zip(&paths).find(|(file, _)| file.mount != place.mount);
        let Some((_, other)) = apart else { return Some(()) };
        let error = MountError::Apart { path: declared.path.clone(), other: other.clone() };
        self.findings.push(finding(error.code(), &object, &error.to_string(), "critical"));
        None
    }

    fn consumer_with_findings(
        &mut self,
        container: &Container,
        declared: &Certificate,
        label: &str,
    ) -> Consumer {
        let consumer = consumer(container, declared);
        self.findings.extend(reloads::of_consumer(container, declared, &consumer, label));
        if container.running && consumer.serves && consumer.endpoints.is_empty() {
            let message = "ports are declared, but the container has no address and its processes are not seen: run the agent with the host's PID namespace (pid: host)";
            self.findings.push(finding("endpoint-unreachable", label, message, "warning"));
        }
        consumer
    }

    fn trust(&mut self, container: &Container, all: &Declared, declared: &Trust) {
        let Some(located) = self.locate(container, &declared.name, &declared.path) else {
            return;
        };
        if located.single {
            let object = format!("{}/{}", container.name, declared.name);
            let message = format!(
                "{} is mounted as a single file, which the container would keep when the bundle is replaced: mount its directory instead",
                declared.path
            );
            self.findings.push(finding("bind-mounted-file", &object, &message, "critical"));
            return;
        }
        let place = Place {
            mount: located.mount,
            directory: located.directory,
            certificate: located.file,
            ..Place::default()
        };
        let consumer = bundle_consumer(container, all, &declared.path);
        let id = place.id();
        match self.trusts.get_mut(&id) {
            None => {
                self.trusts.insert(
                    id,
                    TrustTarget {
                        bundle: declared.bundle.clone(),
                        place,
                        owner: declared.owner,
                        mode: declared.mode,
                        consumers: vec![consumer],
                    },
                );
            }
            Some(known)
                if known.bundle == declared.bundle
                    && known.owner == declared.owner
                    && known.mode == declared.mode =>
            {
                known.consumers.push(consumer);
            }
            Some(_) => {
                let message = format!(
                    "two containers declare the bundle file {id} differently: it is not written until they agree"
                );
                self.findings.push(finding("label-conflict", &id, &message, "critical"));
                self.conflicts.insert(id);
            }
        }
    }

    fn finish(mut self) -> Host {
        self.find_shared_files();
        for id in &self.conflicts {
            self.installations.remove(id);
            self.trusts.remove(id);
        }
        if self.installations.len() > MAX_INSTALLATIONS {
            let message = format!(
                "{} installations are declared, {MAX_INSTALLATIONS} are managed: the first by path",
                self.installations.len()
            );
            self.findings.push(finding("too-many", "host", &message, "critical"));
            while self.installations.len() > MAX_INSTALLATIONS {
                self.installations.pop_last();
            }
        }
        self.findings.extend(reloads::of_installations(&self.installations));
        sort_findings(&mut self.findings);
        self.findings.dedup();
        Host {
            installations: self.installations,
            discovered: BTreeMap::new(),
            inferred: BTreeMap::new(),
            trusts: self.trusts.into_values().collect(),
            findings: self.findings,
        }
    }

    /// Two installations must not write the same file or the same `.reseal/<stem>`.
    fn find_shared_files(&mut self) {
        let mut owners: BTreeMap<String, String> = BTreeMap::new();
        let mut claim = |claimed: String, id: &str, conflicts: &mut BTreeSet<String>| {
            let other = owners.entry(claimed.clone()).or_insert_with(|| id.into());
            if other.as_str() == id {
                return None;
            }
            conflicts.insert(id.to_owned());
            let message = format!("{id} needs {claimed}, which {other} already uses: it is not managed");
            Some(finding("label-conflict", id, &message, "critical"))
        };
        let mut all: Vec<(&String, &Installation)> = self.installations.iter().collect();
        // What comes first keeps the file.
        all.sort_by_key(|(_, installation)| installation.management as i32);
        for (id, installation) in all {
            let place = &installation.place;
            let mut files: Vec<String> = place.files().iter().map(Located::path).collect();
            files.push(place.path_of(&format!(".reseal/{}", place.stem())));
            for file in files {
                self.findings.extend(claim(file, id, &mut self.conflicts));
            }
        }
        for id in self.trusts.keys() {
            self.findings.extend(claim(id.clone(), id, &mut self.conflicts));
        }
    }
}

/// The consumer that `container` is for one of its certificates, as it is now.
pub fn consumer(container: &Container, declared: &Certificate) -> Consumer {
    let known = programs::known(container, declared);
    let (known_reload, known_check) = match known {
        Some(known) => (known.ladder, known.check),
        None => (Ladder::default(), None),
    };
    let reload = declared.reload.clone().unwrap_or(known_reload);
    let mut endpoints: Vec<Endpoint> =
        declared.verify.iter().flat_map(|port| endpoints_of(container, port)).collect();
    endpoints.sort();
    endpoints.dedup();
    Consumer {
        container: container.name.clone(),
        container_id: container.id.clone(),
        image: container.image.clone(),
        program: programs::described(container),
        running: container.running,
        pid: container.pid,
        reload,
        check: declared.check.clone().or(known_check),
        serves: !declared.verify.is_empty(),
        endpoints,
        inside: Inside { user: container.user.clone(), files: declared.files() },
        host: container.host.clone(),
    }
}

/// Where a declared port can be dialled while the container runs: at its own addresses
/// and where it is published, from the host. Without any of these it is dialled by
/// loopback, from within the container's network.
fn endpoints_of(container: &Container, port: &Port) -> Vec<Endpoint> {
    if !container.running {
        return Vec::new();
    }
    let server = |published| {
        let (container, pid) = (container.name.clone(), container.pid);
        (pid > 0).then_some(Server { container, pid, port: port.port, published })
    };
    let endpoint = |address: SocketAddr, published| Endpoint {
        address: address.to_string(),
        sni: port.sni.clone(),
        starttls: port.starttls,
        within: None,
        server: server(published),
    };
    let own = container.addresses.iter().map(|address| SocketAddr::new(*address, port.port));
    let published = container.published.get(&port.port).into_iter().flatten();
    let mut endpoints: Vec<Endpoint> = own.map(|address| endpoint(address, false)).collect();
    endpoints.extend(published.map(|address| endpoint(*address, true)));
    if endpoints.is_empty() && container.pid > 0 {
        let within = Within { container: container.name.clone(), pid: container.pid };
        let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, port.port));
        endpoints.push(Endpoint { within: Some(within), ..endpoint(loopback, false) });
    }
    endpoints
}

/// A bundle at `path` has no reload label of its own: that of the container's first
/// certificate counts for it too, else the known-program table says how it takes bundles.
pub fn bundle_consumer(container: &Container, declared: &Declared, path: &str) -> Consumer {
    let known = programs::known_for_bundle(container, path);
    let (known_reload, known_check) = match known {
        Some(known) => (known.ladder, known.check),
        None => (Ladder::default(), None),
    };
    let first = declared.certificates.first();
    Consumer {
        container: container.name.clone(),
        container_id: container.id.clone(),
        image: container.image.clone(),
        program: programs::described(container),
        running: container.running,
        pid: container.pid,
        reload: first.and_then(|first| first.reload.clone()).unwrap_or(known_reload),
        check: first.and_then(|first| first.check.clone()).or(known_check),
        serves: false,
        endpoints: Vec::new(),
        inside: Inside::default(),
        host: container.host.clone(),
    }
}

#[cfg(test)]
#[path = "assemble_tests.rs"]
pub(crate) mod tests;
