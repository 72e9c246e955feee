//! A coordinator and a Docker Engine to test the agent against, in this process.
//!
//! Both speak the real protocols over real sockets; the services behind the
//! engine are real TLS servers that read their files when they are signalled.
//! What they cannot stand for, containers, is tested on real ones elsewhere.

pub(crate) mod coordinator;
pub(crate) mod engine;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use reseal_agent::app;
use reseal_agent::config::{Config, Signals};
use reseal_agent::identity::IdentityStore;
use reseal_proto::v1::{AgentMessage, agent_message};

use tokio::sync::oneshot;

use coordinator::Coordinator;
use engine::Engine;

/// Nothing that is waited for takes as long.
pub(crate) const LONG: Duration = Duration::from_secs(30);

/// One agent with its surroundings.
pub(crate) struct World {
    pub(crate) coordinator: Coordinator,
    pub(crate) engine: Engine,
    pub(crate) config: Arc<Config>,
    pub(crate) identities: IdentityStore,
    agent: Option<(oneshot::Sender<()>, std::thread::JoinHandle<()>)>,
    directory: tempfile::TempDir,
}

impl Drop for World {
    fn drop(&mut self) {
        self.kill();
    }
}

impl World {
    /// Enrolled, not started.
    pub(crate) async fn enrolled() -> Self {
        let world = Self::new().await;
        let token = world.coordinator.token("h1");
        world.identities.enrol(&token, app::now()).await.expect("a good token enrols");
        world
    }

    pub(crate) async fn new() -> Self {
        Self::with(Coordinator::start().await).await
    }

    pub(crate) async fn with(coordinator: Coordinator) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let engine = Engine::start(directory.path()).await;
        let file = directory.path().join("agent.toml");
        let text =
            format!("docker = '{}'\nverify_timeout_seconds = 2\nsignals = 'engine'\n", engine.address());
        std::fs::write(&file, text).unwrap();
        let state_dir = directory.path().join("state");
        let config = Arc::new(Config::load(Some(&file), Some(&state_dir)).unwrap());
        let identities = IdentityStore::new(&state_dir);
        Self { coordinator, engine, config, identities, agent: None, directory }
    }

    /// From its start on the agent sends signals by itself, not by the engine.
    pub(crate) fn signals_of_its_own(&mut self) {
        let config = Config { signals: Signals::Process, ..(*self.config).clone() };
        self.config = Arc::new(config);
    }

    /// A directory that is mounted into containers.
    pub(crate) fn mount(&self, name: &str) -> PathBuf {
        use std::os::unix::fs::PermissionsExt as _;
        let path = self.directory.path().join(name);
        std::fs::create_dir(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// On a thread and a runtime of its own, as the program has it.
    pub(crate) fn start(&mut self) {
        let (config, identities) = (self.config.clone(), self.identities.clone());
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let tasks = app::start(config, identities).unwrap();
                tokio::select! {
                    () = tasks => panic!("a task of the agent ended"),
                    _ = stopped => {}
                }
            });
        });
        self.agent = Some((stop, thread));
    }

    /// Drops every task of the agent where it stands.
    pub(crate) fn kill(&mut self) {
        if let Some((stop, thread)) = self.agent.take() {
            let _ = stop.send(());
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the agent panicked");
        }
    }

    /// The next message from the agent of the kind that `wanted` picks.
    pub(crate) async fn next<T>(
        &mut self,
        what: &str,
        mut wanted: impl FnMut(agent_message::Body) -> Option<T>,
    ) -> T {
        let search = async {
            loop {
                let AgentMessage { body } =
                    self.coordinator.received.recv().await.expect("the coordinator runs");
                if let Some(found) = body.and_then(&mut wanted) {
                    return found;
                }
            }
        };
        tokio::time::timeout(LONG, search).await.unwrap_or_else(|_| panic!("no {what} came"))
    }
}
