//! Is the new certificate in use? Every consumer loads it ([`super::ladder`]), every
//! endpoint shows it.
//!
//! Consumers may be stopped, started and made anew by others meanwhile: what is
//! not the new certificate's fault is looked at again. The grade of a proof is
//! decided here, and nothing is called verified by a host that does not know
//! what time it is; nor does such a host judge a chain.

use reseal_proto::v1::{Failure, Grade, TargetState, Usage};
use tokio::time::Instant;
use tracing::{info, warn};

use super::ladder::Way;
use super::{Shown, Target, TargetError, unseen};
use crate::clock::Standing;
use crate::discover::Consumer;
use crate::journal::Entry;
use crate::reload::ReloadError;
use crate::verify::Expected;
use crate::verify::probe::Family;

/// Consumers may change under the agent's hands this often in one target.
const MOST_CHANGES: usize = 3;

/// How a target ends that did not fail.
struct End {
    state: TargetState,
    grade: Grade,
    /// What it still waits for.
    failure: Option<Failure>,
}

impl Target<'_> {
    /// Reloads every consumer, looks at every endpoint, ends the target.
    pub async fn prove(&self) {
        let entry = self.journal.entry(self.at).await;
        let mut shown = Shown::default();
        let mut outcome = self.attempt(&entry, &mut shown).await;
        for _ in 0..MOST_CHANGES {
            match &outcome {
                Err(error) if self.changed_meanwhile(error, &shown).await => {
                    info!(error = %crate::chain_of(error), installation = %self.installation.id, "a consumer changed meanwhile: looking again");
                    outcome = self.attempt(&entry, &mut shown).await;
                }
                Ok(_) | Err(_) => break,
            }
        }
        match outcome {
            Ok(End { state, grade, failure }) => {
                let (after, previous) = (entry.new.clone(), entry.previous.clone());
                self.done(entry, state, grade, failure, after, shown).await;
                // Only once the proof is on record: until then the way back stays open.
                if state == TargetState::Verified {
                    self.settle(previous).await;
                }
            }
            Err(error) => self.undo(error, shown).await,
        }
    }

    async fn attempt(&self, entry: &Entry, shown: &mut Shown) -> Result<End, TargetError> {
        if self.installation.place.in_place() {
            let consumers = self.consumers().await?;
            self.files(move |files| files.seen_by(&consumers)).await?;
        }
        // Once: a Welcome in the middle must not call verified what was not judged.
        let clock = self.tools.clock.standing();
        let anchors = self.tools.session.anchors();
        let former: Vec<[u8; 32]> = entry.before.as_slice().try_into().into_iter().collect();
        let expected = Expected {
            fingerprint: entry.new.as_slice().try_into().unwrap_or([0; 32]),
            family: Family::of_key_type(self.installation.wanted.key_type.name()),
            former: &former,
            // A chain is not judged by a clock that may be wrong.
            anchors: (clock != Standing::Unmeasured).then_some(&anchors),
            now: self.tools.clock.unix_time(),
        };
        let consumers = self.load(expected, Way::Forward, shown).await?;
        let (state, grade) = self.judge(&consumers, shown);
        Ok(at_a_known_time(state, grade, clock))
    }

    /// Was it somebody who stopped or recreated a container, and not the new
    /// certificate? One that ended after it was reloaded may have ended of it.
    async fn changed_meanwhile(&self, error: &TargetError, shown: &Shown) -> bool {
        if let TargetError::Reload(ReloadError::Stopped { .. }) = error {
            // By its mount it is found again, whatever its name is now.
            self.tools.discovery.scan().await;
            return true;
        }
        let of_a_consumer = matches!(
            error,
            TargetError::Reload(_)
                | TargetError::Verify(_)
                | TargetError::NotReloaded { .. }
                | TargetError::NoStepHelped { .. }
        );
        if !of_a_consumer {
            return false;
        }
        self.tools.discovery.scan().await;
        let now = self.consumers().await.unwrap_or_default();
        now.iter().any(|consumer| consumer.running && !shown.seen.contains(&consumer.container_id))
    }

    pub(super) async fn consumers(&self) -> Result<Vec<Consumer>, TargetError> {
        self.tools.discovery.consumers(self.installation).await.map_err(TargetError::Docker)
    }

    fn judge(&self, consumers: &[Consumer], shown: &Shown) -> (TargetState, Grade) {
        let client_only = self.installation.wanted.usage == Usage::Client;
        match (shown.endpoints.is_empty() || unseen(consumers), shown.reloads.is_empty()) {
            (false, _) => (TargetState::Verified, Grade::Probe),
            (true, false) if client_only => (TargetState::Verified, Grade::ReloadObserved),
            (true, false) => (TargetState::Unserved, Grade::ReloadObserved),
            (true, true) => (TargetState::Unserved, Grade::FileOnly),
        }
    }

    pub(super) fn deadline(&self) -> Instant {
        Instant::now() + self.tools.config.verify_timeout
    }

    /// The new one is proved: older keys go. A failure here harms nothing.
    async fn settle(&self, previous: Option<String>) {
        let settled = self.files(move |files| files.settle(previous.as_deref())).await;
        if let Err(error) = settled {
            warn!(error = %crate::chain_of(&error), installation = %self.installation.id, "old keys could not be removed");
        }
    }
}

/// Nothing is called verified by a host that does not know the time: the proof
/// is completed when its clock is known to be right (see [`crate::served`]).
fn at_a_known_time(state: TargetState, grade: Grade, clock: Standing) -> End {
    let missing = match clock {
        Standing::Right => None,
        Standing::Wrong(skew) => Some(TargetError::Clock(skew)),
        Standing::Unmeasured => Some(TargetError::NoTime),
    };
    match missing {
        Some(error) if state == TargetState::Verified => {
            End { state: TargetState::Unserved, grade, failure: Some(error.failure()) }
        }
        Some(_) | None => End { state, grade, failure: None },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_right_clock_lets_anything_be_called_verified() {
        let code = |state, clock| {
            let end = at_a_known_time(state, Grade::Probe, clock);
            (end.state, end.failure.map(|failure| failure.code))
        };
        let (verified, unserved) = (TargetState::Verified, TargetState::Unserved);
        assert_eq!(code(verified, Standing::Right), (verified, None));
        assert_eq!(code(verified, Standing::Wrong(-7200)), (unserved, Some("clock-skew".into())));
        assert_eq!(code(verified, Standing::Unmeasured), (unserved, Some("clock-unknown".into())));
        // What waits for its consumer says so and nothing else.
        assert_eq!(code(unserved, Standing::Unmeasured), (unserved, None));
    }
}
