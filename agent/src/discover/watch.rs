//! Keeps the picture of the host fresh: events, a full scan now and then.
//!
//! One task owns the scan; everybody else reads the newest [`Host`] or asks
//! for a fresh one. While the engine cannot be reached the last picture stays
//! (with a finding): an empty one would tell the coordinator that everything
//! is gone. An installation whose container is gone stays known while its
//! certificate is on disk, so that recreating a container loses nothing. The
//! search for what nobody declared runs beside it ([`search`]) and never holds
//! it up: its newest answer is merged into whatever is published.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use futures_util::StreamExt;
use reseal_proto::v1::{Finding, Management};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{debug, warn};

use super::declared::{Declarations, Source};
use super::docker::{DockerError, Engine};
use super::endpoints::{Endpoints, Served};
use super::search::{self, Answer, Picture};
use super::{Consumer, Container, Host, Installation, assemble, finding, infer, merge, sort_findings};
use crate::config::Config;
use crate::{chain, inside, install};

/// Events come in bursts; one scan answers all of a burst.
const SETTLE: Duration = Duration::from_millis(100);
const RETRY: Duration = Duration::from_secs(2);

/// The newest picture and the way to a fresh one; cheap to clone.
#[derive(Clone, Debug)]
pub struct Discovery {
    engine: Arc<Engine>,
    host: watch::Receiver<Option<Arc<Host>>>,
    requests: mpsc::Sender<Request>,
    source: Source,
}

enum Request {
    Scan(oneshot::Sender<Option<Arc<Host>>>),
    Search,
    Note(Note),
}

/// A finding of somebody else, kept until it is taken back.
struct Note {
    id: &'static str,
    object: String,
    finding: Option<Finding>,
}

impl Discovery {
    /// Starts the task; it ends with the last `Discovery`.
    pub fn start(config: Arc<Config>, engine: Arc<Engine>) -> Self {
        let (sender, host) = watch::channel(None);
        let (requests, receiver) = mpsc::channel(64);
        let (answer, answers) = mpsc::channel(1);
        let source = Source::new(&config);
        let task = Task {
            searcher: (!config.discovery.off).then(|| search::start(&config, answer.clone())),
            _answer: answer,
            answers,
            searching: false,
            wanted: None,
            picture: None,
            looked: mpsc::channel(1),
            endpoints: Some(Endpoints::default()),
            look_again: None,
            served: Vec::new(),
            containers: Vec::new(),
            changed: Some(BTreeSet::new()),
            config,
            source: source.clone(),
            engine: engine.clone(),
            requests: receiver,
            sender,
            notes: BTreeMap::new(),
            scanned: None,
        };
        tokio::spawn(task.run());
        Self { engine, host, requests, source }
    }

    /// Follows the picture; `None` until the first scan succeeded.
    pub fn watch(&self) -> watch::Receiver<Option<Arc<Host>>> {
        self.host.clone()
    }

    /// The newest picture.
    pub fn host(&self) -> Option<Arc<Host>> {
        self.host.borrow().clone()
    }

    /// Scans now; falls back to the newest picture when the engine is away.
    pub async fn scan(&self) -> Option<Arc<Host>> {
        let (answer, answered) = oneshot::channel();
        if self.requests.send(Request::Scan(answer)).await.is_err() {
            return self.host();
        }
        answered.await.ok().flatten().or_else(|| self.host())
    }

    /// Has everything scanned and searched again, soon: what was not told by an event has changed.
    pub async fn search(&self) {
        let _ = self.requests.send(Request::Search).await;
    }

    /// Adds (`Some`) or takes back (`None`) a finding.
    pub async fn note(&self, id: &'static str, object: &str, found: Option<Finding>) {
        let note = Note { id, object: object.to_owned(), finding: found };
        let _ = self.requests.send(Request::Note(note)).await;
    }

    /// What is declared without labels.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// The engine.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The consumers of an installation as they are at this moment: one call
    /// per container, by name, because it may have been recreated. A container
    /// that is gone, or declares something else now, is no consumer any more.
    pub async fn consumers(&self, installation: &Installation) -> Result<Vec<Consumer>, DockerError> {
        let newest = self.host().and_then(|host| host.installations.get(&installation.id).cloned());
        let known = newest.as_ref().unwrap_or(installation);
        let declarations = declarations(&self.source).await;
        let mut consumers = Vec::new();
        for consumer in &known.consumers {
            let mut containers: Vec<Container> = Vec::new();
            if consumer.host.is_none() {
                match self.engine.container(&consumer.container).await? {
                    Some(container) => containers.push(container),
                    None => continue,
                }
            }
            let fresh = assemble::assemble_with(containers, &declarations);
            if let Some(found) = fresh.installations.get(&installation.id) {
                let same = found.consumers.iter().filter(|one| one.container == consumer.container);
                consumers.extend(same.cloned());
            }
        }
        Ok(consumers)
    }
}

/// Read off the async threads.
async fn declarations(source: &Source) -> Declarations {
    let source = source.clone();
    tokio::task::spawn_blocking(move || source.read()).await.expect("reading files does not panic")
}

struct Task {
    config: Arc<Config>,
    source: Source,
    engine: Arc<Engine>,
    requests: mpsc::Receiver<Request>,
    sender: watch::Sender<Option<Arc<Host>>>,
    notes: BTreeMap<(&'static str, String), Finding>,
    /// As scanned, without notes.
    scanned: Option<Host>,
    /// Of the last scan.
    containers: Vec<Container>,
    /// Ids that events named since then; `None`: an event named none.
    changed: Option<BTreeSet<String>>,
    /// The thread that searches, if it shall.
    searcher: Option<SyncSender<search::Request>>,
    /// Keeps `answers` open where nothing is searched.
    _answer: mpsc::Sender<Answer>,
    answers: mpsc::Receiver<Answer>,
    /// A request is on its way; the next waits in `wanted`.
    searching: bool,
    wanted: Option<search::Request>,
    picture: Option<Arc<Picture>>,
    /// What a look at endpoints answers.
    looked: (mpsc::Sender<Looked>, mpsc::Receiver<Looked>),
    /// `None` while a look is on its way; the next waits in `look_again`, and says
    /// whether what is in no file is looked at once more.
    endpoints: Option<Endpoints>,
    look_again: Option<bool>,
    served: Vec<Served>,
}

/// A look at endpoints has ended.
type Looked = (Endpoints, Vec<Served>);

impl Task {
    async fn run(mut self) {
        loop {
            // Listening begins before the scan, so that nothing falls between.
            let events = match self.engine.events().await {
                Ok(events) => Some(events.boxed()),
                Err(error) => {
                    self.unreachable(&error);
                    None
                }
            };
            if let Some(events) = events {
                self.scan(true).await;
                if self.follow(events).await.is_err() {
                    return;
                }
            }
            // Without the engine, requests are answered from what is known.
            let retry = tokio::time::sleep(RETRY);
            tokio::pin!(retry);
            loop {
                tokio::select! {
                    () = &mut retry => break,
                    request = self.requests.recv() => match request {
                        None => return,
                        Some(Request::Scan(answer)) => { let _ = answer.send(None); }
                        Some(Request::Search) => self.changed = None,
                        Some(Request::Note(note)) => self.note(note),
                    },
                    Some(answer) = self.answers.recv() => self.found(answer),
                    Some(looked) = self.looked.1.recv() => self.seen(looked),
                }
            }
        }
    }

    /// Until the stream of events ends; `Err` when nobody listens any more.
    async fn follow(
        &mut self,
        mut events: futures_util::stream::BoxStream<
            'static,
            Result<bollard::models::EventMessage, bollard::errors::Error>,
        >,
    ) -> Result<(), ()> {
        // Everything is looked at again now and then, a part of it when there was an event.
        let mut full = tokio::time::Instant::now() + self.config.scan_interval;
        let mut due = full;
        loop {
            tokio::select! {
                event = events.next() => match event {
                    Some(Ok(event)) => {
                        debug!(action = ?event.action, "container event");
                        let id = event.actor.and_then(|actor| actor.id);
                        match (id, &mut self.changed) {
                            (Some(id), Some(changed)) => { changed.insert(id); }
                            (Some(_), None) => {}
                            (None, _) => self.changed = None,
                        }
                        due = due.min(tokio::time::Instant::now() + SETTLE);
                    }
                    Some(Err(error)) => {
                        warn!(%error, "the engine's event stream broke");
                        return Ok(());
                    }
                    None => return Ok(()),
                },
                () = tokio::time::sleep_until(due) => {
                    let now = tokio::time::Instant::now();
                    let everything = now >= full;
                    if everything {
                        full = now + self.config.scan_interval;
                    }
                    due = full;
                    if !self.scan(everything).await {
                        return Ok(());
                    }
                }
                Some(answer) = self.answers.recv() => self.found(answer),
                    Some(looked) = self.looked.1.recv() => self.seen(looked),
                request = self.requests.recv() => match request {
                    None => return Err(()),
                    Some(Request::Note(note)) => self.note(note),
                    Some(Request::Search) => {
                        self.scan(true).await;
                    }
                    Some(Request::Scan(answer)) => {
                        let fresh = self.scan(false).await;
                        let _ = answer.send(if fresh { self.sender.borrow().clone() } else { None });
                    }
                },
            }
        }
    }

    /// Looks at every container again, or at those with labels and those that changed.
    async fn scan(&mut self, full: bool) -> bool {
        let changed = if full { None } else { self.changed.clone() };
        let known = |id: &str, running: bool| {
            let same = changed.as_ref().is_some_and(|changed| !changed.contains(id));
            let mut known = self.containers.iter().filter(|_| same);
            known.find(|container| container.id == id && container.running == running).cloned()
        };
        let containers = match self.engine.containers_unless(known).await {
            Ok(containers) => containers,
            Err(error) => {
                self.unreachable(&error);
                return false;
            }
        };
        self.changed = Some(BTreeSet::new());
        self.search(&containers, changed);
        let names: Vec<String> = containers.iter().map(|c| c.name.clone()).collect();
        let declarations = declarations(&self.source).await;
        let mut host = assemble::assemble_with(containers, &declarations);
        if let Some(before) = &self.scanned {
            keep_orphans(&mut host, before, &names, &declarations);
        }
        let config = self.config.clone();
        let host = tokio::task::spawn_blocking(move || {
            read_certificates(&config, &mut host);
            host
        })
        .await;
        let Ok(mut host) = host else { return false };
        // An orphan without a file is nothing.
        host.installations.retain(|_, i| !i.consumers.is_empty() || i.certificate.is_some());
        self.scanned = Some(host);
        self.publish(None);
        true
    }

    /// Has the containers searched that are new or changed.
    fn search(&mut self, containers: &[Container], changed: Option<BTreeSet<String>>) {
        let ids = |all: &[Container]| all.iter().map(|one| one.id.clone()).collect::<BTreeSet<_>>();
        let (before, now) = (ids(&self.containers), ids(containers));
        self.containers = containers.to_vec();
        let changed = changed.map(|mut changed| {
            changed.extend(now.difference(&before).cloned());
            changed
        });
        let same = changed.as_ref().is_some_and(BTreeSet::is_empty) && before == now;
        if same || self.searcher.is_none() {
            return;
        }
        let request = search::Request { containers: containers.to_vec(), changed };
        self.wanted = Some(match self.wanted.take() {
            Some(before) => before.and(request),
            None => request,
        });
        self.send();
    }

    fn send(&mut self) {
        if !self.searching
            && let (Some(searcher), Some(request)) = (&self.searcher, self.wanted.take())
        {
            self.searching = searcher.try_send(request).is_ok();
        }
    }

    fn found(&mut self, answer: Answer) {
        self.picture = Some(answer.picture);
        if answer.done {
            self.searching = false;
            self.send();
        }
        self.publish(None);
        self.look(answer.full);
    }

    /// Looks at the endpoints of running containers, beside everything else.
    fn look(&mut self, again: bool) {
        if self.config.discovery.no_probes {
            return;
        }
        let Some(mut endpoints) = self.endpoints.take() else {
            self.look_again = Some(again || self.look_again == Some(true));
            return;
        };
        let host = self.sender.borrow().clone().unwrap_or_default();
        let (files, held) = (merge::files_of_containers(&host), merge::in_files(&host));
        let (containers, config) = (self.containers.clone(), self.config.clone());
        let sender = self.looked.0.clone();
        tokio::spawn(async move {
            let doubtful = |served: &Served| {
                again && served.chain.first().is_none_or(|leaf| !held.contains(&leaf.facts.fingerprint))
            };
            let served = endpoints.look(&containers, &files, &config.discovery, doubtful).await;
            let _ = sender.send((endpoints, served)).await;
        });
    }

    fn seen(&mut self, (endpoints, served): Looked) {
        self.endpoints = Some(endpoints);
        if self.served != served {
            self.served = served;
            self.publish(None);
        }
        if let Some(again) = self.look_again.take() {
            self.look(again);
        }
    }

    fn note(&mut self, note: Note) {
        let key = (note.id, note.object);
        let changed = match note.finding {
            Some(found) => self.notes.insert(key, found.clone()) != Some(found),
            None => self.notes.remove(&key).is_some(),
        };
        if changed {
            self.publish(None);
        }
    }

    fn unreachable(&self, error: &DockerError) {
        warn!(error = %crate::chain_of(error), "the Docker Engine cannot be asked");
        self.publish(Some(finding(
            "docker-unreachable",
            &self.config.docker,
            "the Docker Engine cannot be asked: what is reported is what was last seen",
            "critical",
        )));
    }

    fn publish(&self, extra: Option<Finding>) {
        let Some(mut host) = self.scanned.clone() else {
            return;
        };
        if let Some(picture) = &self.picture {
            merge::merge(&mut host, picture, &self.served, crate::app::now());
            host.inferred = infer::found::all(&host, &self.containers);
        }
        host.findings.extend(self.notes.values().cloned());
        host.findings.extend(extra);
        sort_findings(&mut host.findings);
        self.sender.send_replace(Some(Arc::new(host)));
    }
}

/// What lost its last container stays, unless that container is there again
/// and declares something else, or nobody declares it any more.
fn keep_orphans(host: &mut Host, before: &Host, names: &[String], declarations: &Declarations) {
    for (id, installation) in &before.installations {
        let still = match installation.management {
            Management::Labels => true,
            Management::Configuration => {
                let container = installation.label.split('/').next().unwrap_or_default();
                declarations.containers.contains_key(container)
            }
            // Known without any container.
            Management::Adopted | Management::Discovered => false,
        };
        let declared_away = installation.consumers.iter().any(|consumer| names.contains(&consumer.container));
        let conflict = host.findings.iter().any(|found| found.id == "label-conflict" && found.object == *id);
        if still && !host.installations.contains_key(id) && !declared_away && !conflict {
            host.installations
                .insert(id.clone(), Installation { consumers: Vec::new(), ..installation.clone() });
        }
    }
}

/// Fills in what is on disk.
pub fn read_certificates(config: &Config, host: &mut Host) {
    for installation in host.installations.values_mut() {
        host.findings.extend(inside::findings(config, installation));
        host.findings.extend(install::read::changed(config, installation));
        let problem = match install::read::chain(config, installation) {
            Ok(None) => {
                installation.certificate = None;
                continue;
            }
            Ok(Some(found)) => match chain::facts_of(&found) {
                Ok(facts) => {
                    installation.certificate = Some(facts);
                    continue;
                }
                Err(error) => ("certificate-unreadable", crate::chain_of(&error).to_string()),
            },
            Err(error) => (error.code(), crate::chain_of(&error).to_string()),
        };
        installation.certificate = None;
        host.findings.push(finding(problem.0, &installation.id, &problem.1, "critical"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discover::assemble::tests::web;

    #[test]
    fn a_recreated_container_loses_nothing() {
        let before = assemble::assemble(vec![web("web", "/srv/tls")]);
        let mut gone = Host::default();
        keep_orphans(&mut gone, &before, &[], &Declarations::default());
        let orphan = gone.installations.values().next().unwrap();
        assert!(orphan.consumers.is_empty());
        let mut relabelled = Host::default();
        keep_orphans(&mut relabelled, &before, &["web".to_owned()], &Declarations::default());
        assert!(relabelled.installations.is_empty());
    }
}
