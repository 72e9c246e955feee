//! The coordinator without threads, disk and TLS; never in a release.
//!
//! Store, audit, issuance, engine, projection and the three services are the
//! real ones, wired as [`crate::app`] wires them, over an engine in memory
//! ([`crate::store::simulated`]). Callers talk to the services in the same
//! process and say who they are. The simulation in `tests/` is its only user.

use std::path::Path;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::service::Routes;

pub use crate::grpc::tls::identify;

use crate::app::{App, Wiring};
use crate::domain::Now;
use crate::domain::csr::Request;
use crate::grpc;
use crate::init;
use crate::issuance::keyring::Keyring;
use crate::issuance::profile::{self, Ca};
use crate::store::Store;
use crate::store::simulated::{Disk, Simulated};
use crate::view::View;

/// Name of the coordinator, its audit chain and its lease.
const NAME: &str = "simulated";

/// A fleet as `reseal init` makes it: on a disk, with what its files hold.
pub struct Fleet {
    /// Its records.
    pub disk: Disk,
    /// Opens its keys.
    pub keyring: Arc<Keyring>,
    /// Certificate of its first admin, DER.
    pub admin: Vec<u8>,
    root: Ca,
}

impl Fleet {
    /// Makes one; the key-encryption key is a file in `directory`.
    pub async fn make(name: &str, directory: &Path, now: i64) -> anyhow::Result<Self> {
        let kek = directory.join("kek");
        Keyring::create_file(&kek)?;
        let keyring = Arc::new(Keyring::load(&[kek])?);
        let made = init::make(name, "admin", &keyring, now)?;
        let disk = Disk::default();
        let store = Store::inline(Arc::new(Simulated::open(&disk, NAME)));
        store.commit(made.commit).await?;
        let root = profile::ca("managed root", &made.managed_root, &made.root_pkcs8)?;
        Ok(Self { disk, keyring, admin: made.admin_certificate, root })
    }

    /// The offline root signs the CSR of an authority; gives its certificate, DER.
    pub fn sign_authority(&self, fleet: &str, slot: &str, csr: &[u8], now: i64) -> anyhow::Result<Vec<u8>> {
        let request = Request::from_der(csr)?;
        let name = profile::authority_name(fleet, slot);
        Ok(profile::intermediate(&name, &request.spki, &self.root, now)?)
    }
}

/// A coordinator that runs.
pub struct Coordinator {
    /// Its three services.
    pub routes: Routes,
    /// Its store.
    pub store: Store,
    /// Its projection.
    pub view: View,
    disk: Disk,
    tasks: Vec<JoinHandle<()>>,
    _stop: watch::Sender<bool>,
}

impl Coordinator {
    /// Starts one over a disk; a coordinator that still has it gets no further.
    pub async fn start(disk: &Disk, keyring: Arc<Keyring>, now: Now) -> anyhow::Result<Self> {
        let store = Store::inline(Arc::new(Simulated::open(disk, NAME)));
        let (stop, stopping) = watch::channel(false);
        let wiring = Wiring { name: NAME.into(), advertise: Arc::new(["simulated:7443".into()]), now };
        let App { parts, engine, follower } = App::start(store, keyring, wiring, stopping).await?;
        let (store, view) = (parts.store.clone(), parts.view.clone());
        let (routes, dispatcher) = grpc::services(parts);
        let tasks = vec![engine, follower, dispatcher];
        Ok(Self { routes, store, view, disk: disk.clone(), tasks, _stop: stop })
    }

    /// Ends it as kill -9 does: nothing of it reaches the disk any more. Its
    /// connections are the caller's to cut.
    pub fn kill(self) {
        self.disk.seize();
        for task in self.tasks {
            task.abort();
        }
    }
}
