//! Targets that were installed while nothing ran that could prove them.
//!
//! Their batch is kept under `state_dir/unserved` after its result was handed
//! over. When a consumer starts and is seen serving the very certificate, the
//! target's proof is completed and the whole result signed and sent again. A
//! newer certificate for the same installation ends the wait. So wait, too,
//! targets of a host whose clock was wrong or not compared yet: those without an
//! endpoint that could show them again are completed as soon as it is right.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use prost::Message;
use reseal_proto::v1::{EndpointProof, Grade, TargetProof, TargetState};
use tracing::{error, info};

use crate::app;
use crate::clock::Standing;
use crate::evidence;
use crate::identity::{IdentityStore, Slot};
use crate::journal::Batch;
use crate::outbox::Outbox;
use crate::state::{self, StateError};
use crate::target::{CLOCK_SKEW, CLOCK_UNKNOWN};

const DIRECTORY: &str = "unserved";
const EXTENSION: &str = "pb";

/// Batches with a target that waits for its proof.
#[derive(Debug)]
pub struct Unserved {
    state_dir: PathBuf,
    identities: IdentityStore,
    outbox: Arc<Outbox>,
    batches: Mutex<Vec<Batch>>,
}

impl Unserved {
    /// Reads them back.
    pub fn open(
        state_dir: &Path,
        identities: IdentityStore,
        outbox: Arc<Outbox>,
    ) -> Result<Self, StateError> {
        let directory = state_dir.join(DIRECTORY);
        state::make_dir(&directory)?;
        let mut batches = Vec::new();
        for entry in std::fs::read_dir(&directory).map_err(StateError::io("list", &directory))? {
            let path = entry.map_err(StateError::io("list", &directory))?.path();
            if path.extension().is_some_and(|extension| extension == EXTENSION) {
                let bytes = state::read(&path)?.unwrap_or_default();
                batches.push(Batch::decode(bytes.as_slice()).map_err(|_| StateError::Damaged { path })?);
            }
        }
        Ok(Self { state_dir: state_dir.to_owned(), identities, outbox, batches: Mutex::new(batches) })
    }

    /// A batch has ended: what waits in it is kept, what waited for an
    /// installation it has renewed is given up.
    pub fn keep(&self, batch: &Batch) {
        let mut batches = self.held();
        batches.retain(|known| name_of(known) != name_of(batch));
        for known in batches.iter_mut() {
            let replaced =
                |id: &str| proofs(batch).any(|proof| proof.installation == id && proof.after != proof.before);
            let given_up = known.entries.iter_mut().filter_map(|entry| entry.proof.as_mut());
            for proof in given_up.filter(|proof| replaced(&proof.installation)) {
                // The result said Unserved and stays as it was said.
                proof.grade = Grade::Unknown.into();
            }
        }
        batches.push(batch.clone());
        self.store(&mut batches);
    }

    /// Installations that wait for a proof.
    pub fn installations(&self) -> std::collections::BTreeSet<String> {
        let held = self.held();
        let waits =
            |proof: &&TargetProof| proof.state() == TargetState::Unserved && proof.grade() != Grade::Unknown;
        let waiting = held.iter().flat_map(proofs).filter(waits);
        waiting.map(|proof| proof.installation.clone()).collect()
    }

    /// Does a target wait for this certificate to be seen?
    pub fn waits(&self, installation: &str, fingerprint: &[u8]) -> bool {
        self.held().iter().flat_map(proofs).any(|proof| waits_for(proof, installation, fingerprint))
    }

    /// It was seen: completes the proofs and sends their results again.
    pub fn proved(&self, installation: &str, fingerprint: &[u8], endpoints: &[EndpointProof]) {
        self.complete(
            |proof| waits_for(proof, installation, fingerprint),
            |proof| {
                proof.set_grade(Grade::Probe);
                proof.endpoints = endpoints.to_vec();
            },
        );
    }

    /// Once the clock is right, and known to be, what had nothing to wait for
    /// but that is complete.
    pub fn clock_is(&self, clock: Standing) {
        match clock {
            Standing::Right => {}
            Standing::Unmeasured | Standing::Wrong(_) => return,
        }
        let only_time = |proof: &TargetProof| {
            let waited_for = proof.failure.as_ref().map(|failure| failure.code.as_str());
            let time = matches!(waited_for, Some(CLOCK_SKEW | CLOCK_UNKNOWN));
            time && is_waiting(proof) && proof.endpoints.is_empty()
        };
        self.complete(only_time, |_| {});
    }

    fn complete(&self, which: impl Fn(&TargetProof) -> bool, change: impl Fn(&mut TargetProof)) {
        let mut batches = self.held();
        let mut any = false;
        for batch in batches.iter_mut() {
            let waiting = batch.entries.iter_mut().filter_map(|entry| entry.proof.as_mut());
            let mut changed = false;
            for proof in waiting.filter(|proof| which(proof)) {
                proof.set_state(TargetState::Verified);
                proof.failure = None;
                change(proof);
                changed = true;
            }
            if changed {
                info!(batch = %name_of(batch), "a target that waited for its proof is verified now");
                self.send(batch);
                any = true;
            }
        }
        if any {
            self.store(&mut batches);
        }
    }

    fn send(&self, batch: &Batch) {
        let identity = match self.identities.load(Slot::Current) {
            Ok(Some(identity)) => identity,
            Ok(None) => return error!("no identity to sign a late result with"),
            Err(error) => {
                return error!(error = %crate::chain_of(&error), "no identity to sign a late result with");
            }
        };
        if batch.fleet != identity.fleet {
            return error!(batch = %name_of(batch), fleet = %batch.fleet, "a late result is of the time when this machine was in another fleet: nobody would take it");
        }
        let sent = match evidence::sign(batch, app::now(), &identity) {
            Ok(signed) => self.outbox.put(signed),
            Err(error) => return error!(error = %crate::chain_of(&error), "a late result cannot be signed"),
        };
        if let Err(error) = sent {
            error!(error = %crate::chain_of(&error), "a late result is sent but could not be stored");
        }
    }

    /// Writes what still waits, removes what does not.
    fn store(&self, batches: &mut Vec<Batch>) {
        batches.retain(|batch| {
            let name = state::file_name(name_of(batch), EXTENSION);
            let waits = proofs(batch).any(is_waiting);
            let done = if waits {
                state::write_in(&self.state_dir, DIRECTORY, &name, &batch.encode_to_vec())
            } else {
                state::remove(&self.state_dir.join(DIRECTORY), &name)
            };
            if let Err(error) = done {
                error!(error = %crate::chain_of(&error), "cannot remember which targets are unserved");
            }
            waits
        });
    }

    fn held(&self) -> std::sync::MutexGuard<'_, Vec<Batch>> {
        self.batches.lock().expect("no panic while held")
    }
}

fn proofs(batch: &Batch) -> impl Iterator<Item = &TargetProof> {
    batch.entries.iter().filter_map(|entry| entry.proof.as_ref())
}

/// `Unknown` marks one that was given up.
fn is_waiting(proof: &TargetProof) -> bool {
    proof.state() == TargetState::Unserved && proof.grade() != Grade::Unknown
}

fn waits_for(proof: &TargetProof, installation: &str, fingerprint: &[u8]) -> bool {
    is_waiting(proof) && proof.installation == installation && proof.after == fingerprint
}

fn name_of(batch: &Batch) -> &str {
    batch.order.as_ref().map_or("", |order| order.batch.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::tests::enrolled;
    use crate::journal::Entry;
    use reseal_proto::v1::{EvidencePayload, Order};

    fn batch(name: &str, state: TargetState, after: u8) -> Batch {
        let proof = TargetProof {
            installation: "/srv/site.crt".into(),
            before: vec![0; 32],
            after: vec![after; 32],
            state: state.into(),
            grade: Grade::FileOnly.into(),
            ..TargetProof::default()
        };
        Batch {
            order: Some(Order { batch: name.into(), ..Order::default() }),
            started_at: 1,
            fleet: "f".into(),
            entries: vec![Entry {
                installation: "/srv/site.crt".into(),
                proof: Some(proof),
                ..Entry::default()
            }],
        }
    }

    fn open(dir: &Path) -> (Unserved, Arc<Outbox>) {
        let outbox = Arc::new(Outbox::open(dir).unwrap());
        (Unserved::open(dir, enrolled(dir), outbox.clone()).unwrap(), outbox)
    }

    #[test]
    fn is_proved_later_and_said_once() {
        let dir = tempfile::tempdir().unwrap();
        open(dir.path()).0.keep(&batch("r1.0", TargetState::Unserved, 7));
        let (unserved, outbox) = open(dir.path());
        assert!(unserved.waits("/srv/site.crt", &[7; 32]));
        unserved.proved("/srv/site.crt", &[8; 32], &[]);
        assert!(outbox.waiting().is_empty());
        unserved.proved("/srv/site.crt", &[7; 32], &[EndpointProof::default()]);
        let Some(crate::outbox::Known::Finished(result)) = outbox.known("r1.0") else {
            panic!("no late result");
        };
        let payload = EvidencePayload::decode(result.payload.as_slice()).unwrap();
        assert_eq!(payload.targets[0].state(), TargetState::Verified);
        assert_eq!(payload.targets[0].grade(), Grade::Probe);
        assert!(!open(dir.path()).0.waits("/srv/site.crt", &[7; 32]));
    }

    #[test]
    fn what_waited_for_the_right_time_only_is_completed() {
        for code in [CLOCK_SKEW, CLOCK_UNKNOWN] {
            let dir = tempfile::tempdir().unwrap();
            let (unserved, _) = open(dir.path());
            unserved.keep(&batch("r1.0", TargetState::Unserved, 7));
            let mut skewed = batch("r2.0", TargetState::Unserved, 8);
            let proof = skewed.entries[0].proof.as_mut().unwrap();
            proof.installation = "/srv/client.crt".into();
            proof.failure = Some(reseal_proto::v1::Failure { code: code.into(), ..Default::default() });
            unserved.keep(&skewed);
            // After a restart nobody knows yet whether the clock is right.
            let (unserved, outbox) = open(dir.path());
            unserved.clock_is(Standing::Unmeasured);
            unserved.clock_is(Standing::Wrong(7200));
            assert!(outbox.waiting().is_empty());
            unserved.clock_is(Standing::Right);
            assert_eq!(outbox.waiting(), ["r2.0"], "nothing ran that could prove the other one");
            let Some(crate::outbox::Known::Finished(result)) = outbox.known("r2.0") else {
                panic!("no late result");
            };
            let payload = EvidencePayload::decode(result.payload.as_slice()).unwrap();
            let late = &payload.targets[0];
            assert_eq!((late.state(), &late.failure), (TargetState::Verified, &None));
        }
    }

    #[test]
    fn a_newer_certificate_ends_the_wait() {
        let dir = tempfile::tempdir().unwrap();
        let (unserved, _) = open(dir.path());
        unserved.keep(&batch("r1.0", TargetState::Unserved, 7));
        unserved.keep(&batch("r2.0", TargetState::Verified, 8));
        assert!(!unserved.waits("/srv/site.crt", &[7; 32]));
        assert!(!open(dir.path()).0.waits("/srv/site.crt", &[7; 32]));
        assert_eq!(std::fs::read_dir(dir.path().join("unserved")).unwrap().count(), 0);
    }
}
